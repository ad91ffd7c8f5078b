//! A pass through a model, forward alone or forward and backward.
//!
//! On the CPU a batch is cut into shards of a few hundred tokens, and each goes forward and backward
//! on one thread, so that its activations stay in that thread's cache and threads meet once a step
//! instead of at every operation. Which shards there are and in what order their gradients are added
//! depends on the shapes alone, so the number of threads changes no bit of a result.

use crate::{
    card,
    gradients::{Gradients, Loss, Sink},
    product::Number,
    storage,
    tape::{Node, Tape, Weights},
};
use candle_core::{DType, Device, Error, Tensor, Var, bail};
use half::bf16;
use rayon::prelude::*;
use std::{ops::Range, rc::Rc, sync::Arc};

type Result<T, E = Error> = std::result::Result<T, E>;

/// What activations are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// Fused operations on the CPU: activations and products in `bf16`, sums in `f32`.
    Bf16,
    /// Fused operations on the CPU, in `f32`.
    F32,
    /// Kernels on a card: activations and products in `bf16`, sums in `f32`.
    Card,
    /// candle's own operations, on any device, in the type of the parameters.
    Composed,
}

impl Compute {
    /// The fastest for parameters of this type, there.
    pub fn fastest(device: &Device, dtype: DType) -> Self {
        match (device, dtype) {
            (device, DType::F32) if card::takes(device) => Self::Card,
            (Device::Cpu, DType::F32) if crate::multiplies_bf16() => Self::Bf16,
            (Device::Cpu, DType::F32) => Self::F32,
            _ => Self::Composed,
        }
    }
}

/// Tokens of a shard, if its rows are no longer: enough for products to be efficient, few enough
/// for the activations of a layer to stay in the cache.
const SHARD_TOKENS: usize = 512;
/// Sets of gradients that shards add to at the same time.
const LANES: usize = 8;

/// The rows of each shard.
fn shards(rows: usize, seq_len: usize) -> Vec<Range<usize>> {
    let size = (SHARD_TOKENS / seq_len.max(1)).max(1);
    (0..rows).step_by(size).map(|first| first..rows.min(first + size)).collect()
}

/// The mean loss of `rows` sequences of `seq_len` tokens, and its gradients.
///
/// `loss` answers for the range of rows that it is given: with the mean over their tokens.
pub fn gradients<Failure: From<Error> + Send>(
    compute: Compute,
    (rows, seq_len): (usize, usize),
    loss: impl Fn(&Pass, Range<usize>) -> Result<Loss, Failure> + Sync,
) -> Result<(f64, Gradients), Failure> {
    match compute {
        Compute::Bf16 => fused_gradients::<bf16, _>(rows, seq_len, loss),
        Compute::F32 => fused_gradients::<f32, _>(rows, seq_len, loss),
        Compute::Card => card::gradients((rows, seq_len), loss),
        Compute::Composed => {
            let loss = loss(&Pass::Composed, 0..rows)?;
            Ok(Gradients::composed(loss)?)
        }
    }
}

fn fused_gradients<E: Fused, Failure: From<Error> + Send>(
    rows: usize,
    seq_len: usize,
    loss: impl Fn(&Pass, Range<usize>) -> Result<Loss, Failure> + Sync,
) -> Result<(f64, Gradients), Failure> {
    let weights = Arc::new(Weights::<E>::new(true));
    let shards = shards(rows, seq_len);
    let size = shards.len().div_ceil(LANES).max(1);
    let lane = |shards: &[Range<usize>]| {
        let (mut sum, mut sink) = (0.0, Sink::default());
        for shard in shards {
            let share = shard.len() as f64 / rows as f64;
            let tape = Rc::new(Tape::new(weights.clone(), Some(share)));
            let (mean, gradients) = loss(&E::pass(tape), shard.clone())?.backward(sink)?;
            sum += share * mean;
            sink = gradients;
        }
        Ok((sum, sink))
    };
    let lanes = shards.par_chunks(size).map(lane).collect::<Result<Vec<_>, Failure>>()?;
    let mean = lanes.iter().map(|(sum, _)| sum).sum();
    let sinks: Vec<_> = lanes.into_iter().map(|(_, sink)| sink).collect();
    Ok((mean, Gradients::merge(sinks)?))
}

/// Answers for `rows` sequences of `seq_len` tokens, without gradients: those of `answer` for each
/// range of rows that it is given, one after another.
pub fn infer<Failure: From<Error> + Send>(
    compute: Compute,
    (rows, seq_len): (usize, usize),
    answer: impl Fn(&Pass, Range<usize>) -> Result<Vec<f32>, Failure> + Sync,
) -> Result<Vec<f32>, Failure> {
    match compute {
        Compute::Bf16 => fused_infer::<bf16, _>(rows, seq_len, answer),
        Compute::F32 => fused_infer::<f32, _>(rows, seq_len, answer),
        Compute::Card => card::infer((rows, seq_len), answer),
        Compute::Composed => answer(&Pass::Composed, 0..rows),
    }
}

fn fused_infer<E: Fused, Failure: From<Error> + Send>(
    rows: usize,
    seq_len: usize,
    answer: impl Fn(&Pass, Range<usize>) -> Result<Vec<f32>, Failure> + Sync,
) -> Result<Vec<f32>, Failure> {
    let weights = Arc::new(Weights::<E>::new(false));
    let shards = shards(rows, seq_len).into_par_iter();
    let pass = || E::pass(Rc::new(Tape::new(weights.clone(), None)));
    let answers = shards.map(|shard| answer(&pass(), shard)).collect::<Result<Vec<_>, _>>()?;
    Ok(answers.concat())
}

/// One shard on its way through the model.
pub enum Pass {
    #[doc(hidden)]
    Bf16(Rc<Tape<bf16>>),
    #[doc(hidden)]
    F32(Rc<Tape<f32>>),
    #[doc(hidden)]
    Card(Rc<card::Tape>),
    #[doc(hidden)]
    Composed,
}

/// The output of an operation: `[token, channel]`, the tokens of a shard's sequences one after
/// another.
#[derive(Clone)]
pub enum Activations {
    #[doc(hidden)]
    Bf16(Node<bf16>),
    #[doc(hidden)]
    F32(Node<f32>),
    #[doc(hidden)]
    Card(card::Node),
    /// With the graph that candle keeps.
    Composed(Tensor),
}

/// Runs an operation on activations of one kind: a generic function on fused ones, the one for a
/// card, or their composed twin.
macro_rules! dispatch {
    ([$first:ident $(, $other:ident)*], $fused:expr, $card:expr, $composed:expr) => {
        match ($first $(, $other)*) {
            #[allow(unused_parens)]
            ($crate::pass::Activations::Bf16($first) $(, $crate::pass::Activations::Bf16($other))*) => $fused,
            #[allow(unused_parens)]
            ($crate::pass::Activations::F32($first) $(, $crate::pass::Activations::F32($other))*) => $fused,
            #[allow(unused_parens)]
            ($crate::pass::Activations::Card($first) $(, $crate::pass::Activations::Card($other))*) => $card,
            #[allow(unused_parens)]
            ($crate::pass::Activations::Composed($first) $(, $crate::pass::Activations::Composed($other))*) => $composed,
            #[allow(unreachable_patterns)]
            _ => candle_core::bail!("activations of different passes"),
        }
    };
}
pub(crate) use dispatch;

impl Activations {
    /// Tokens and channels.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Bf16(node) => Ok((node.tokens(), node.channels)),
            Self::F32(node) => Ok((node.tokens(), node.channels)),
            Self::Card(node) => Ok(node.dims()),
            Self::Composed(tensor) => tensor.dims2(),
        }
    }

    /// The values alone, `[token, channel]`; no gradient comes back from there. See [`apply`].
    pub fn values(&self) -> Result<Tensor> {
        match self {
            Self::Bf16(node) => node.tensor(),
            Self::F32(node) => node.tensor(),
            Self::Card(node) => node.tensor(),
            Self::Composed(tensor) => Ok(tensor.detach()),
        }
    }
}

/// Any differentiable expression of candle's on activations: `f` gets a tensor `[token, channel]`
/// for each of `inputs` and returns another one. Slower than a fused operation, and complete:
/// gradients go to the inputs and to every variable that `f` uses.
pub fn apply(
    inputs: &[&Activations],
    f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Activations> {
    fn fused<E: Fused>(
        nodes: Vec<&Node<E>>,
        f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Activations> {
        let Some(first) = nodes.first() else { bail!("apply: there is no input") };
        let vars = nodes
            .iter()
            .map(|node| Var::from_tensor(&node.tensor()?))
            .collect::<Result<Vec<_>>>()?;
        let tensors: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let ys = f(&tensors)?;
        let (_, channels) = ys.dims2()?;
        let values = storage::read([&ys.detach()], |[ys]: [&[f32]; 1]| {
            ys.iter().map(|&y| E::store(y)).collect()
        })?;
        let ats: Vec<_> = nodes.iter().map(|node| node.at).collect();
        let node = first.tape.record(values, channels, move |flow, d_ys: Vec<E>| {
            let d_ys: Vec<f32> = d_ys.into_iter().map(E::load).collect();
            let d_ys = Tensor::from_vec(d_ys, ys.shape(), &Device::Cpu)?;
            let grads = (&ys * d_ys)?.sum_all()?.backward()?;
            for (var, at) in vars.iter().zip(ats) {
                if let Some(grad) = grads.get(var) {
                    let grad = storage::read([grad], |[xs]: [&[f32]; 1]| {
                        xs.iter().map(|&x| E::store(x)).collect()
                    })?;
                    flow.give(at, grad);
                }
            }
            for tensor in ys.sorted_nodes().into_iter().filter(|tensor| tensor.is_variable()) {
                let inner = vars.iter().any(|var| var.id() == tensor.id());
                if let (false, Some(grad)) = (inner, grads.get(tensor)) {
                    let sums = flow.sink.dense(tensor);
                    storage::read([grad], |[grad]: [&[f32]; 1]| {
                        sums.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
                    })?;
                }
            }
            Ok(())
        });
        Ok(E::activations(node))
    }
    match inputs.first() {
        Some(Activations::Bf16(_)) => fused(nodes_of::<bf16>(inputs)?, f),
        Some(Activations::F32(_)) => fused(nodes_of::<f32>(inputs)?, f),
        Some(Activations::Card(_)) => {
            let nodes = inputs
                .iter()
                .map(|input| match input {
                    Activations::Card(node) => Ok(node),
                    _ => bail!("activations of different passes"),
                })
                .collect::<Result<_>>()?;
            card::apply(nodes, f)
        }
        _ => {
            let tensors = inputs
                .iter()
                .map(|input| match input {
                    Activations::Composed(tensor) => Ok(tensor.clone()),
                    _ => bail!("activations of different passes"),
                })
                .collect::<Result<Vec<_>>>()?;
            f(&tensors).map(Activations::Composed)
        }
    }
}

fn nodes_of<'a, E: Fused>(inputs: &[&'a Activations]) -> Result<Vec<&'a Node<E>>> {
    let node = |input: &&'a Activations| match E::node(input) {
        Some(node) => Ok(node),
        None => bail!("activations of different passes"),
    };
    inputs.iter().map(node).collect()
}

/// An element type that there are fused operations for.
pub trait Fused: Number {
    fn pass(tape: Rc<Tape<Self>>) -> Pass;
    fn activations(node: Node<Self>) -> Activations;
    fn node(activations: &Activations) -> Option<&Node<Self>>;
}

impl Fused for bf16 {
    fn pass(tape: Rc<Tape<Self>>) -> Pass {
        Pass::Bf16(tape)
    }

    fn activations(node: Node<Self>) -> Activations {
        Activations::Bf16(node)
    }

    fn node(activations: &Activations) -> Option<&Node<Self>> {
        match activations {
            Activations::Bf16(node) => Some(node),
            _ => None,
        }
    }
}

impl Fused for f32 {
    fn pass(tape: Rc<Tape<Self>>) -> Pass {
        Pass::F32(tape)
    }

    fn activations(node: Node<Self>) -> Activations {
        Activations::F32(node)
    }

    fn node(activations: &Activations) -> Option<&Node<Self>> {
        match activations {
            Activations::F32(node) => Some(node),
            _ => None,
        }
    }
}
