//! Causal attention over a sliding window, without the matrix of all scores.
//!
//! FlashAttention's idea at a CPU's sizes (Dao et al. 2022, arXiv 2205.14135): the scores of a
//! block of queries live in the cache, only those inside the band are computed, and the backward
//! pass computes them again from the logarithm of each row's total.

use crate::{
    attention_bf16, card, composed,
    element::{Element, vectorized},
    math::{dot, exp, max, sum},
    pass::{Activations, Fused, dispatch},
    product::Number,
    tape::Node,
    tile::{Accumulator, COLUMNS, Matrix, product},
};
use candle_core::{Result, bail};
use std::ops::Range;

/// How attention is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Tokens of a sequence; queries see no other sequence.
    pub time: usize,
    /// Channels of a head.
    pub channels: usize,
    /// The query at `i` sees the keys from `i - window` to `i`.
    pub window: usize,
}

/// `softmax(q·k / sqrt(channels))·v` for every head.
///
/// All three are `[token, head * channel]`, as a projection leaves them, and so is the result.
pub fn attention(
    q: &Activations,
    k: &Activations,
    v: &Activations,
    heads: Heads,
) -> Result<Activations> {
    let (tokens, channels) = q.dims()?;
    let Heads { time, channels: width, .. } = heads;
    let whole = time > 0 && width > 0 && tokens % time == 0 && channels % width == 0;
    if !whole || k.dims()? != (tokens, channels) || v.dims()? != (tokens, channels) {
        let (k, v) = (k.dims()?, v.dims()?);
        bail!("attention: {heads:?} for queries of {tokens} x {channels}, {k:?} and {v:?}");
    }
    dispatch!([q, k, v], fused(q, k, v, heads), card::attention(q, k, v, heads), {
        composed::attention(q, k, v, heads).map(Activations::Composed)
    })
}

/// Queries whose scores are held at a time.
const QUERIES: usize = 32;

fn fused<E: Fused>(q: &Node<E>, k: &Node<E>, v: &Node<E>, heads: Heads) -> Result<Activations> {
    let mut ys = vec![E::default(); q.values().len()];
    // `ln Σ exp(score)` of every query, `[sequence, head, time]`.
    let mut log_totals = vec![0.0; q.values().len() / heads.channels];
    let inputs = Inputs { q: q.values(), k: k.values(), v: v.values(), channels: q.channels };
    forward(&inputs, heads, &mut ys, &mut log_totals);
    let [q, k, v] = [q, k, v].map(Node::clone);
    // The result is needed again on the way back, and is a node only after it is recorded.
    let channels = q.channels;
    let tape = q.tape.clone();
    let kept = if tape.share().is_some() { ys.clone() } else { Vec::new() };
    let node = tape.record(ys, channels, move |flow, d_ys: Vec<E>| {
        let new = || vec![E::default(); d_ys.len()];
        let (mut d_q, mut d_k, mut d_v) = (new(), new(), new());
        let inputs = Inputs { q: q.values(), k: k.values(), v: v.values(), channels };
        let outputs = Outputs { ys: &kept, d_ys: &d_ys, log_totals: &log_totals };
        backward(&inputs, &outputs, heads, [&mut d_q, &mut d_k, &mut d_v]);
        flow.give(v.at, d_v);
        flow.give(k.at, d_k);
        flow.give(q.at, d_q);
        Ok(())
    });
    Ok(E::activations(node))
}

#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a, E> {
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    /// Of all heads.
    pub channels: usize,
}

#[derive(Clone, Copy)]
pub(crate) struct Outputs<'a, E> {
    pub ys: &'a [E],
    pub d_ys: &'a [E],
    pub log_totals: &'a [f32],
}

impl Heads {
    /// From one row of transposed keys to the next: any window of keys, rounded up to whole
    /// registers, stays inside.
    fn padded_time(&self) -> usize {
        self.time.next_multiple_of(COLUMNS) + COLUMNS
    }

    /// The keys that consecutive queries see.
    pub(crate) fn keys(&self, queries: &Range<usize>) -> Range<usize> {
        queries.start.saturating_sub(self.window)..queries.end
    }

    pub(crate) fn scale(&self) -> f32 {
        (self.channels as f64).powf(-0.5) as f32
    }
}

/// In parts of this size, but for the last.
pub(crate) fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
}

fn forward<E: Number>(inputs: &Inputs<'_, E>, heads: Heads, ys: &mut [E], log_totals: &mut [f32]) {
    let Inputs { q, k, v, channels } = *inputs;
    if attention_bf16::fits(heads)
        && let [Some(q), Some(k), Some(v)] = [q, k, v].map(E::as_bf16)
        && let Some(ys) = E::as_bf16_mut(ys)
    {
        attention_bf16::forward(Inputs { q, k, v, channels }, heads, ys, log_totals);
    } else {
        forward_f32(inputs, heads, ys, log_totals);
    }
}

fn backward<E: Number>(
    inputs: &Inputs<'_, E>,
    outputs: &Outputs<'_, E>,
    heads: Heads,
    gradients: [&mut [E]; 3],
) {
    let (Inputs { q, k, v, channels }, Outputs { ys, d_ys, log_totals }) = (*inputs, *outputs);
    if !attention_bf16::fits(heads) || E::as_bf16(q).is_none() {
        return backward_f32(inputs, outputs, heads, gradients);
    }
    let [q, k, v, ys, d_ys] =
        [q, k, v, ys, d_ys].map(|xs| E::as_bf16(xs).expect("the type was just looked at"));
    let gradients = gradients.map(|xs| E::as_bf16_mut(xs).expect("the type was just looked at"));
    let inputs = Inputs { q, k, v, channels };
    attention_bf16::backward(inputs, Outputs { ys, d_ys, log_totals }, heads, gradients);
}

vectorized! {
    fn forward_f32<E>(
        inputs: &Inputs<'_, E>,
        heads: Heads,
        ys: &mut [E],
        log_totals: &mut [f32],
    ) {
        let Inputs { q, k, v, channels } = *inputs;
        let Heads { time, channels: width, .. } = heads;
        let new = || vec![0.0; time * width];
        let (mut queries, mut keys, mut values, mut out) = (new(), new(), new(), new());
        let (mut turned_keys, mut scores, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        let step = time * channels;
        let mut log_totals = log_totals.chunks_exact_mut(time);
        for (sequence, ys) in ys.chunks_exact_mut(step).enumerate() {
            let [q, k, v] = [q, k, v].map(|xs| &xs[sequence * step..][..step]);
            for first in (0..channels).step_by(width) {
                let log_totals = log_totals.next().expect("one of each head");
                gather(q, (channels, first), &mut queries, width);
                gather(k, (channels, first), &mut keys, width);
                gather(v, (channels, first), &mut values, width);
                transpose(&keys, heads, &mut turned_keys);
                out.fill(0.0);
                for block in parts(0..time, QUERIES) {
                    let Range { start: from, end: to } = heads.keys(&block);
                    let rows = Matrix::rows(&queries[block.start * width..], width);
                    let row =
                        raw_scores::<FMA>(heads, &block, rows, &turned_keys, &mut scores, &mut packed);
                    for (i, scores) in block.clone().zip(scores.chunks_exact_mut(row)) {
                        log_totals[i] = softmax(visible(heads, i, from, scores), heads.scale());
                    }
                    let mut c =
                        Accumulator { elements: &mut out[block.start * width..], stride: width };
                    let shape = (block.len(), to - from, width);
                    let values = Matrix::rows(&values[from * width..], width);
                    product::<FMA>(shape, Matrix::rows(&scores, row), values, &mut c, &mut packed);
                }
                scatter(&out, ys, (channels, first), width);
            }
        }
    }
}

vectorized! {
    /// With `P` the weights: `dV = Pᵀ dY`, `dP = dY Vᵀ`, `dS = P ∘ (dP - rowsum(dY ∘ Y))`,
    /// `dQ = dS K` and `dK = dSᵀ Q`, the last two scaled (FlashAttention, appendix B.2).
    fn backward_f32<E>(
        inputs: &Inputs<'_, E>,
        outputs: &Outputs<'_, E>,
        heads: Heads,
        gradients: [&mut [E]; 3],
    ) {
        let Inputs { q, k, v, channels } = *inputs;
        let Outputs { ys, d_ys, log_totals } = *outputs;
        let [all_d_q, all_d_k, all_d_v] = gradients;
        let Heads { time, channels: width, .. } = heads;
        let new = || vec![0.0; time * width];
        let (mut queries, mut keys, mut values, mut out, mut d_out) =
            (new(), new(), new(), new(), new());
        let (mut d_q, mut d_k, mut d_v) = (new(), new(), new());
        let (mut turned_keys, mut turned_values) = (Vec::new(), Vec::new());
        let (mut scores, mut d_scores, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        let scale = heads.scale();
        let step = time * channels;
        let mut log_totals = log_totals.chunks_exact(time);
        for sequence in 0..q.len() / step {
            let here = sequence * step..(sequence + 1) * step;
            let [q, k, v, ys, d_ys] = [q, k, v, ys, d_ys].map(|xs| &xs[here.clone()]);
            for first in (0..channels).step_by(width) {
                let log_totals = log_totals.next().expect("one of each head");
                let place = (channels, first);
                gather(q, place, &mut queries, width);
                gather(k, place, &mut keys, width);
                gather(v, place, &mut values, width);
                gather(ys, place, &mut out, width);
                gather(d_ys, place, &mut d_out, width);
                transpose(&keys, heads, &mut turned_keys);
                transpose(&values, heads, &mut turned_values);
                for gradient in [&mut d_q, &mut d_k, &mut d_v] {
                    gradient.fill(0.0);
                }
                for block in parts(0..time, QUERIES) {
                    let Range { start: from, end: to } = heads.keys(&block);
                    let (here, there) = (block.start * width, from * width);
                    let rows = Matrix::rows(&queries[here..], width);
                    let d_rows = Matrix::rows(&d_out[here..], width);
                    let row =
                        raw_scores::<FMA>(heads, &block, rows, &turned_keys, &mut scores, &mut packed);
                    raw_scores::<FMA>(
                        heads, &block, d_rows, &turned_values, &mut d_scores, &mut packed,
                    );
                    let pairs = scores.chunks_exact_mut(row).zip(d_scores.chunks_exact_mut(row));
                    for (i, (scores, d_scores)) in block.clone().zip(pairs) {
                        let at = i * width..(i + 1) * width;
                        let mean = dot(&d_out[at.clone()], &out[at]);
                        let log_total = log_totals[i];
                        let scores = visible(heads, i, from, scores);
                        let d_scores = visible(heads, i, from, d_scores);
                        for (weight, d_score) in scores.iter_mut().zip(d_scores) {
                            *weight = exp(*weight * scale - log_total);
                            *d_score = *weight * (*d_score - mean) * scale;
                        }
                    }
                    let seen = to - from;
                    let weights = Matrix::rows(&scores, row);
                    let d_scores = Matrix::rows(&d_scores, row);
                    let to_keys = (seen, block.len(), width);
                    let mut c = Accumulator { elements: &mut d_v[there..], stride: width };
                    product::<FMA>(to_keys, weights.transposed(), d_rows, &mut c, &mut packed);
                    let mut c = Accumulator { elements: &mut d_k[there..], stride: width };
                    product::<FMA>(to_keys, d_scores.transposed(), rows, &mut c, &mut packed);
                    let mut c = Accumulator { elements: &mut d_q[here..], stride: width };
                    let keys = Matrix::rows(&keys[there..], width);
                    let to_queries = (block.len(), seen, width);
                    product::<FMA>(to_queries, d_scores, keys, &mut c, &mut packed);
                }
                let at = here.start;
                scatter(&d_q, &mut all_d_q[at..at + step], place, width);
                scatter(&d_k, &mut all_d_k[at..at + step], place, width);
                scatter(&d_v, &mut all_d_v[at..at + step], place, width);
            }
        }
    }
}

/// One head's channels, those of a token `stride` after those of the one before.
#[inline(always)]
fn gather<E: Element>(xs: &[E], (stride, first): (usize, usize), head: &mut [f32], width: usize) {
    for (head, x) in head.chunks_exact_mut(width).zip(xs.chunks_exact(stride)) {
        for (head, x) in head.iter_mut().zip(&x[first..first + width]) {
            *head = x.load();
        }
    }
}

#[inline(always)]
pub(crate) fn scatter<E: Element>(
    head: &[f32],
    xs: &mut [E],
    (stride, first): (usize, usize),
    width: usize,
) {
    for (head, x) in head.chunks_exact(width).zip(xs.chunks_exact_mut(stride)) {
        for (x, &head) in x[first..first + width].iter_mut().zip(head) {
            *x = E::store(head);
        }
    }
}

/// `queries · keys` for one block, rows of the returned width. `keys` is transposed.
#[inline(always)]
fn raw_scores<const FMA: bool>(
    heads: Heads,
    block: &Range<usize>,
    queries: Matrix<'_>,
    keys: &[f32],
    scores: &mut Vec<f32>,
    packed: &mut Vec<f32>,
) -> usize {
    let seen = heads.keys(block);
    let width = seen.len().next_multiple_of(COLUMNS);
    scores.clear();
    scores.resize(block.len() * width, 0.0);
    let mut c = Accumulator { elements: scores, stride: width };
    let keys = Matrix::rows(&keys[seen.start..], heads.padded_time());
    let shape = (block.len(), heads.channels, width);
    product::<FMA>(shape, queries, keys, &mut c, packed);
    width
}

/// The scores that query `i` may see, of a row that starts at key `first`; the others become zero.
#[inline(always)]
fn visible(heads: Heads, i: usize, first: usize, scores: &mut [f32]) -> &mut [f32] {
    let from = i.saturating_sub(heads.window) - first;
    let to = i + 1 - first;
    scores[..from].fill(0.0);
    scores[to..].fill(0.0);
    &mut scores[from..to]
}

/// Turns scores into weights and returns the logarithm of their total.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) -> f32 {
    let highest = max(scores) * scale;
    for score in scores.iter_mut() {
        *score = exp(*score * scale - highest);
    }
    let total = sum(scores);
    let share = 1.0 / total;
    for score in scores.iter_mut() {
        *score *= share;
    }
    highest + total.ln()
}

/// One head's `[time, channel]` to `[channel, padded time]`.
#[inline(always)]
fn transpose(xs: &[f32], heads: Heads, transposed: &mut Vec<f32>) {
    let padded = heads.padded_time();
    transposed.clear();
    transposed.resize(heads.channels * padded, 0.0);
    for (i, x) in xs.chunks_exact(heads.channels).enumerate() {
        for (channel, &x) in x.iter().enumerate() {
            transposed[channel * padded + i] = x;
        }
    }
}
