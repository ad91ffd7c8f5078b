//! Losses, and the gradients of weights: summed up by each lane of shards, then over the lanes.

use crate::{
    card,
    pass::{Activations, Fused, dispatch},
    tape::Node,
};
use candle_core::{D, DType, Device, Result, Tensor, TensorId, backprop::GradStore, bail};
use rayon::prelude::*;
use std::collections::HashMap;

/// A mean over tokens, in nats.
pub struct Loss(Kind);

pub(crate) type Backward = Box<dyn FnOnce(Sink) -> Result<Sink>>;
pub(crate) type CardBackward = Box<dyn FnOnce(&mut card::Sink) -> Result<()>>;

enum Kind {
    Fused {
        mean: f64,
        backward: Option<Backward>,
    },
    /// The mean is still in the card's memory.
    Card {
        mean: card::Memory,
        backward: Option<CardBackward>,
    },
    Composed(Tensor),
}

impl Loss {
    /// `backward` adds its gradients to sums.
    pub(crate) fn fused(mean: f64, backward: Option<Backward>) -> Self {
        Self(Kind::Fused { mean, backward })
    }

    /// `backward` adds its gradients to sums.
    pub(crate) fn card(mean: card::Memory, backward: Option<CardBackward>) -> Self {
        Self(Kind::Card { mean, backward })
    }

    pub(crate) fn composed(mean: Tensor) -> Self {
        Self(Kind::Composed(mean))
    }

    /// The value, and the sums with its gradients added.
    pub(crate) fn backward(self, sink: Sink) -> Result<(f64, Sink)> {
        match self.0 {
            Kind::Fused { mean, backward: Some(backward) } => Ok((mean, backward(sink)?)),
            _ => bail!("gradients: the loss is of another pass"),
        }
    }

    /// Where the value stands. Its gradients are added to `sink`.
    pub(crate) fn card_backward(self, sink: &mut card::Sink) -> Result<card::Memory> {
        match self.0 {
            Kind::Card { mean, backward: Some(backward) } => {
                backward(sink)?;
                Ok(mean)
            }
            _ => bail!("gradients: the loss is of another pass"),
        }
    }

    /// The mean of all `activations`.
    pub fn mean(activations: &Activations) -> Result<Self> {
        fn fused<E: Fused>(x: &Node<E>) -> Result<Loss> {
            let count = x.values().len();
            let sum: f64 = x.values().iter().map(|x| f64::from(x.load())).sum();
            let slope = x.tape.share().unwrap_or(0.0) / count as f64;
            let d_x = move |_: &mut Sink| vec![E::store(slope as f32); count];
            Ok(x.tape.loss(sum / count as f64, x, d_x))
        }
        dispatch!([activations], fused(activations), card::mean(activations), {
            activations.mean_all().map(Self::composed)
        })
    }
}

/// The sums of gradients of weights, in the order in which they were first met: what is added up
/// later must not depend on the order of a hash table.
#[derive(Default)]
pub struct Sink(Vec<Sums>);

struct Sums {
    weight: Tensor,
    dense: Option<Vec<f32>>,
    /// Of a table: the rows that were looked up, and their gradients.
    rows: Vec<(Vec<u32>, Vec<f32>)>,
}

impl Sink {
    pub(crate) fn dense(&mut self, weight: &Tensor) -> &mut [f32] {
        self.sums(weight).dense.get_or_insert_with(|| vec![0.0; weight.elem_count()])
    }

    pub(crate) fn rows(&mut self, table: &Tensor, ids: Vec<u32>, gradients: Vec<f32>) {
        self.sums(table).rows.push((ids, gradients));
    }

    fn sums(&mut self, weight: &Tensor) -> &mut Sums {
        // A model has tens of weights.
        let at = self.0.iter().position(|sums| sums.weight.id() == weight.id());
        let at = at.unwrap_or_else(|| {
            self.0.push(Sums { weight: weight.clone(), dense: None, rows: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

/// Gradients of a loss, by variable.
pub struct Gradients(Source);

enum Source {
    Fused(HashMap<TensorId, Tensor>),
    Candle(GradStore),
}

impl Gradients {
    /// The gradient of a variable, of the same shape.
    pub fn get(&self, var: &Tensor) -> Option<&Tensor> {
        match &self.0 {
            Source::Fused(gradients) => gradients.get(&var.id()),
            Source::Candle(gradients) => gradients.get(var),
        }
    }

    /// Those of a composed loss, and its value.
    pub(crate) fn composed(loss: Loss) -> Result<(f64, Self)> {
        let Kind::Composed(mean) = loss.0 else { bail!("gradients: the loss is of another pass") };
        let value = mean.to_dtype(DType::F64)?.to_scalar()?;
        Ok((value, Self(Source::Candle(mean.backward()?))))
    }

    /// The sums over all lanes, in their order.
    pub(crate) fn merge(lanes: Vec<Sink>) -> Result<Self> {
        let mut weights: Vec<(Tensor, Vec<Sums>)> = Vec::new();
        for sums in lanes.into_iter().flat_map(|lane| lane.0) {
            match weights.iter_mut().find(|(weight, _)| weight.id() == sums.weight.id()) {
                Some((_, parts)) => parts.push(sums),
                None => weights.push((sums.weight.clone(), vec![sums])),
            }
        }
        let sums = weights
            .into_par_iter()
            .map(|(weight, parts)| {
                let gradient =
                    Tensor::from_vec(total(&weight, parts)?, weight.shape(), &Device::Cpu)?;
                Ok((weight, gradient))
            })
            .collect::<Result<Vec<_>>>()?;
        Self::of_weights(sums)
    }

    /// Those of variables, from weights and their gradients.
    pub(crate) fn of_weights(sums: Vec<(Tensor, Tensor)>) -> Result<Self> {
        let mut gradients: HashMap<TensorId, Tensor> = HashMap::new();
        let mut add = |id, gradient: &Tensor| -> Result<()> {
            let sum = match gradients.get(&id) {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            };
            gradients.insert(id, sum);
            Ok(())
        };
        for (tensor, gradient) in &sums {
            if tensor.is_variable() {
                add(tensor.id(), gradient)?;
                continue;
            }
            // A weight that was computed from variables by candle.
            let grads = (tensor * gradient)?.sum_all()?.backward()?;
            for var in tensor.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
                if let Some(gradient) = grads.get(var) {
                    add(var.id(), gradient)?;
                }
            }
        }
        Ok(Self(Source::Fused(gradients)))
    }
}

fn total(weight: &Tensor, mut parts: Vec<Sums>) -> Result<Vec<f32>> {
    let mut dense = parts.iter_mut().filter_map(|part| part.dense.take());
    let mut total = dense.next().unwrap_or_else(|| vec![0.0; weight.elem_count()]);
    for part in dense {
        total.iter_mut().zip(part).for_each(|(total, x)| *total += x);
    }
    let width = weight.dim(D::Minus1)?;
    for (ids, gradients) in parts.into_iter().flat_map(|part| part.rows) {
        for (&id, gradient) in ids.iter().zip(gradients.chunks_exact(width)) {
            let row = &mut total[id as usize * width..][..width];
            row.iter_mut().zip(gradient).for_each(|(total, x)| *total += x);
        }
    }
    Ok(total)
}
