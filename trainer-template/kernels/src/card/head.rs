//! The end of the model on a card: some rows of logits at a time.

use super::{
    BF16, Launch, Memory, Product, arguments, download_f32,
    elementwise::total,
    tape::{Node, Weight, floats},
    upload_ids,
};
use crate::gradients::Loss;
use candle_core::{Result, Tensor, bail};
use std::rc::Rc;

/// Logits that are held at a time.
const LOGITS: usize = 1 << 27;

fn prepared(xs: &Node, weight: &Tensor) -> Result<Rc<Weight>> {
    let prepared = xs.tape.weight(weight)?;
    if xs.channels != prepared.inputs {
        bail!("cross_entropy: a weight of {:?} for {} channels", weight.shape(), xs.channels);
    }
    Ok(prepared)
}

/// One block a row.
fn rows_of(kernel: &'static str, rows: usize, vocab: usize) -> Launch {
    // A thread of `row_loss` holds up to sixteen logits.
    let threads = (vocab / 16).next_power_of_two().clamp(128, 1024);
    Launch { kernel, grid: [rows, 1], threads, shared: 0 }
}

/// Calls `body` with the first row, the number of rows, and their logits, for some rows at a time.
fn logits(
    xs: &Node,
    weight: &Weight,
    tokens: std::ops::Range<usize>,
    mut body: impl FnMut(usize, usize, &Memory) -> Result<()>,
) -> Result<()> {
    let card = xs.tape.card();
    let (vocab, channels) = (weight.outputs, weight.inputs);
    let size = (LOGITS / vocab).clamp(1, tokens.len());
    let logits = floats(card, size * vocab)?;
    for first in tokens.clone().step_by(size) {
        let rows = size.min(tokens.end - first);
        card.product(Product {
            rows,
            columns: vocab,
            inner: channels,
            a: (xs.values.address.offset(first * channels * BF16), false),
            b: (weight.packed.address, true),
            c: (logits.address, true),
            alpha: 1.0,
            beta: 0.0,
            batch: 1,
        })?;
        body(first, rows, &logits)?;
    }
    Ok(())
}

/// The cost of every token.
fn nats(xs: &Node, weight: &Weight, targets: &[u32], soft_cap: f64) -> Result<Memory> {
    let card = xs.tape.card();
    let targets = upload_ids(card, targets)?;
    let nats = floats(card, xs.tokens())?;
    logits(xs, weight, 0..xs.tokens(), |first, rows, logits| {
        let [targets, nats] = [&targets, &nats].map(|memory| memory.address.offset(first * 4));
        card.launch(
            rows_of("row_nats", rows, weight.outputs),
            arguments![logits, targets, nats, weight.outputs, soft_cap as f32],
        )
    })?;
    Ok(nats)
}

/// See [`token_nats`](crate::token_nats).
pub(crate) fn token_nats(
    xs: &Node,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: f64,
) -> Result<Vec<f32>> {
    let nats = nats(xs, &*prepared(xs, weight)?, targets, soft_cap)?;
    download_f32(xs.tape.card(), nats.address, xs.tokens())
}

/// See [`last_logits`](crate::last_logits).
pub(crate) fn last_logits(xs: &Node, weight: &Tensor, soft_cap: f64) -> Result<Vec<f32>> {
    let (card, weight) = (xs.tape.card(), prepared(xs, weight)?);
    let (tokens, vocab) = (xs.tokens(), weight.outputs);
    let mut last = Vec::new();
    logits(xs, &weight, tokens - 1..tokens, |_, _, logits| {
        let grid = [vocab.div_ceil(256), 1];
        card.launch(
            Launch { kernel: "soft_cap", grid, threads: 256, shared: 0 },
            arguments![logits, soft_cap as f32, vocab],
        )?;
        last = download_f32(card, logits.address, vocab)?;
        Ok(())
    })?;
    Ok(last)
}

/// See [`cross_entropy`](crate::cross_entropy). The gradients of the input and of the weight are
/// computed on the way forward, so that logits are held for some rows only.
pub(crate) fn cross_entropy(
    xs: &Node,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: f64,
) -> Result<Loss> {
    let (card, prepared) = (xs.tape.card(), prepared(xs, weight)?);
    let (tokens, vocab, channels) = (xs.tokens(), prepared.outputs, xs.channels);
    let Some(share) = xs.tape.share() else {
        let nats = nats(xs, &prepared, targets, soft_cap)?;
        let mean = total(card, "sum_f32", &nats, tokens, 1.0 / tokens as f32)?;
        return Ok(xs.tape.loss(mean, xs, |_| bail!("this loss has no gradient")));
    };
    let targets = upload_ids(card, targets)?;
    let nats = floats(card, tokens)?;
    let d_xs = card.allocate(xs.values.bytes)?;
    let d_weight = if prepared.trained { Some(xs.tape.zeros(&[vocab, channels])?) } else { None };
    let d_logits = card.allocate((LOGITS / vocab).clamp(1, tokens) * vocab * BF16)?;
    let slope = (share / tokens as f64) as f32;
    logits(xs, &prepared, 0..tokens, |first, rows, logits| {
        let [targets, nats] = [&targets, &nats].map(|memory| memory.address.offset(first * 4));
        card.launch(
            rows_of("row_loss", rows, vocab),
            arguments![logits, targets, nats, &d_logits, vocab, soft_cap as f32, slope],
        )?;
        card.product(Product {
            rows,
            columns: channels,
            inner: vocab,
            a: (d_logits.address, false),
            b: (prepared.packed.address, false),
            c: (d_xs.address.offset(first * channels * BF16), false),
            alpha: 1.0,
            beta: 0.0,
            batch: 1,
        })?;
        let Some(d_weight) = &d_weight else { return Ok(()) };
        card.product(Product {
            rows: vocab,
            columns: channels,
            inner: rows,
            a: (d_logits.address, true),
            b: (xs.values.address.offset(first * channels * BF16), false),
            c: (card.address(d_weight)?, true),
            alpha: 1.0,
            beta: 1.0,
            batch: 1,
        })
    })?;
    let mean = total(card, "sum_f32", &nats, tokens, 1.0 / tokens as f32)?;
    let (tape, weight) = (xs.tape.clone(), weight.clone());
    Ok(xs.tape.loss(mean, xs, move |sink| {
        if let Some(d_weight) = d_weight {
            sink.give(tape.card(), &weight, d_weight)?;
        }
        Ok(d_xs)
    }))
}
