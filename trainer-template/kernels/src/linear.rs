//! The linear layer.

use crate::{
    card, composed,
    pass::{Activations, Fused, dispatch},
    product::Mode,
    tape::Node,
};
use candle_core::{Result, Tensor, bail};

/// `x wᵀ`, with `weight` as `[outputs, inputs]`.
pub fn linear(xs: &Activations, weight: &Tensor) -> Result<Activations> {
    dispatch!([xs], fused(xs, weight, None), card::linear(xs, weight, None), {
        composed::linear(xs, weight).map(Activations::Composed)
    })
}

/// `residual + x wᵀ`: the end of a branch, on the residual stream.
pub fn linear_add(
    xs: &Activations,
    weight: &Tensor,
    residual: &Activations,
) -> Result<Activations> {
    dispatch!(
        [xs, residual],
        fused(xs, weight, Some(residual)),
        card::linear(xs, weight, Some(residual)),
        (residual + composed::linear(xs, weight)?).map(Activations::Composed)
    )
}

fn fused<E: Fused>(
    xs: &Node<E>,
    weight: &Tensor,
    residual: Option<&Node<E>>,
) -> Result<Activations> {
    let prepared = xs.tape.weight(weight)?;
    let (outputs, inputs) = (prepared.outputs, prepared.inputs);
    if xs.channels != inputs {
        bail!("linear: a weight of {:?} for {} channels", weight.shape(), xs.channels);
    }
    let len = xs.tokens() * outputs;
    let (mut ys, mode) = match residual {
        None => (vec![E::default(); len], Mode::Overwrite),
        Some(residual) if residual.values().len() == len && residual.channels == outputs => {
            (residual.values().to_vec(), Mode::Add)
        }
        Some(residual) => {
            let there = (residual.tokens(), residual.channels);
            bail!("linear_add: {:?} is added to {there:?}", (xs.tokens(), outputs));
        }
    };
    E::outputs(xs.values(), &prepared.packed, &mut ys, mode);
    let (x, weight, residual) = (xs.clone(), weight.clone(), residual.and_then(|node| node.at));
    let node = xs.tape.record(ys, outputs, move |flow, d_ys: Vec<E>| {
        if prepared.trained {
            E::d_weight(&d_ys, x.values(), x.input(), flow.sink.dense(&weight), outputs);
        }
        if let Some(at) = x.at {
            let (d_xs, mode) = flow.slot(at, x.values().len());
            E::d_inputs(&d_ys, &prepared.packed, d_xs, mode);
        }
        flow.give(residual, d_ys);
        Ok(())
    });
    Ok(E::activations(node))
}
