//! The linear layer on a card.

use super::{BF16, Product, tape::Node};
use crate::pass::Activations;
use candle_core::{Result, Tensor, bail};

/// See [`linear`](crate::linear) and [`linear_add`](crate::linear_add).
pub(crate) fn linear(xs: &Node, weight: &Tensor, residual: Option<&Node>) -> Result<Activations> {
    let card = xs.tape.card();
    let prepared = xs.tape.weight(weight)?;
    let (tokens, outputs, inputs) = (xs.tokens(), prepared.outputs, prepared.inputs);
    if xs.channels != inputs {
        bail!("linear: a weight of {:?} for {} channels", weight.shape(), xs.channels);
    }
    let ys = card.allocate(tokens * outputs * BF16)?;
    if let Some(residual) = residual {
        if residual.dims() != (tokens, outputs) {
            bail!("linear_add: {:?} is added to {:?}", (tokens, outputs), residual.dims());
        }
        card.copy(residual.values.address, ys.address, ys.bytes)?;
    }
    card.product(Product {
        rows: tokens,
        columns: outputs,
        inner: inputs,
        a: (xs.values.address, false),
        b: (prepared.packed.address, true),
        c: (ys.address, false),
        alpha: 1.0,
        beta: if residual.is_some() { 1.0 } else { 0.0 },
        batch: 1,
    })?;
    let (x, weight, residual) = (xs.clone(), weight.clone(), residual.and_then(|node| node.at));
    let node = xs.tape.record(ys, outputs, move |flow, d_ys| {
        if prepared.trained {
            let d_weight = flow.sink.dense(flow.card, &weight)?;
            flow.card.product(Product {
                rows: outputs,
                columns: inputs,
                inner: tokens,
                a: (d_ys.address, true),
                b: (x.values.address, false),
                c: (d_weight, true),
                alpha: 1.0,
                beta: 1.0,
                batch: 1,
            })?;
        }
        if let Some(at) = x.at {
            let (d_xs, more) = flow.slot(at, x.values.bytes)?;
            flow.card.product(Product {
                rows: tokens,
                columns: inputs,
                inner: outputs,
                a: (d_ys.address, false),
                b: (prepared.packed.address, false),
                c: (d_xs, false),
                alpha: 1.0,
                beta: if more { 1.0 } else { 0.0 },
                batch: 1,
            })?;
        }
        flow.give(residual, d_ys)
    });
    Ok(Activations::Card(node))
}
