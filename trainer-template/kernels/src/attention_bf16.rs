//! Attention whose products are those of [`pairs`](crate::pairs).
//!
//! Queries, keys, values and weights are multiplied in `bf16`; scores, their exponentials and all
//! sums are `f32`. Weights of up to [`QUERIES`] queries are held at a time on the way back, because
//! the gradients of keys and values are sums over queries, and long sums are what a tile is good at.

use crate::{
    attention::{Heads, Inputs, Outputs, parts, scatter},
    element::{Element, vectorized},
    math::{dot, exp, max, sum},
    pairs::{self, Add, COLUMNS, Left, Panels, ROWS, Store},
};
use half::bf16;
use std::ops::Range;

/// Queries whose weights are held at a time.
const QUERIES: usize = 256;
/// Queries whose scores are computed together.
const BLOCK: usize = 32;

/// Whether the products can read heads as they lie in memory: in pairs.
pub fn fits(heads: Heads) -> bool {
    heads.channels.is_multiple_of(2)
}

/// The keys that queries see, from the start of a panel on.
fn keys(heads: Heads, queries: &Range<usize>) -> Range<usize> {
    let seen = heads.keys(queries);
    seen.start / COLUMNS * COLUMNS..seen.end
}

/// One head's channels in rows of their own.
fn gather(xs: &[bf16], channels: usize, head: Range<usize>, rows: &mut Vec<bf16>) {
    rows.clear();
    for x in xs.chunks_exact(channels) {
        rows.extend_from_slice(&x[head.clone()]);
    }
}

pub fn forward(inputs: Inputs<'_, bf16>, heads: Heads, ys: &mut [bf16], log_totals: &mut [f32]) {
    let Inputs { q, k, v, channels } = inputs;
    let Heads { time, channels: width, .. } = heads;
    let (mut rows, mut scores, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    let step = time * channels;
    let mut log_totals = log_totals.chunks_exact_mut(time);
    for (sequence, ys) in ys.chunks_exact_mut(step).enumerate() {
        let [q, k, v] = [q, k, v].map(|xs| &xs[sequence * step..][..step]);
        for first in (0..channels).step_by(width) {
            let log_totals = log_totals.next().expect("one list for each head");
            let head = first..first + width;
            gather(k, channels, head.clone(), &mut rows);
            let keys_by_channel = Panels::<COLUMNS>::of_columns(&rows, width);
            gather(v, channels, head.clone(), &mut rows);
            let values = Panels::<COLUMNS>::of_rows(&rows, width);
            for queries in parts(0..time, BLOCK) {
                let seen = keys(heads, &queries);
                let stride = seen.len().next_multiple_of(2);
                scores.resize(BLOCK * stride, 0.0);
                weights.resize(BLOCK * stride, bf16::ZERO);
                let left = Left::Rows {
                    elements: &q[queries.start * channels + first..],
                    stride: channels,
                };
                let right = keys_by_channel.part(0..width, seen.clone());
                let mut sums = Store { elements: &mut scores[..], stride };
                pairs::product(queries.len(), &left, &right, &mut sums);
                softmax(&mut scores, &mut weights, log_totals, heads, queries.clone(), stride);
                let left = Left::Rows { elements: &weights, stride };
                let right = values.part(seen.start..seen.start + stride, 0..width);
                let elements = &mut ys[queries.start * channels + first..];
                let mut sums = Store { elements, stride: channels };
                pairs::product(queries.len(), &left, &right, &mut sums);
            }
        }
    }
}

vectorized! {
    /// Weights from scores, which are written over, and the logarithm of each query's total.
    fn softmax(
        scores: &mut [f32],
        weights: &mut [bf16],
        log_totals: &mut [f32],
        heads: Heads,
        queries: Range<usize>,
        stride: usize,
    ) {
        let first = keys(heads, &queries).start;
        let scale = heads.scale();
        let rows = scores.chunks_exact_mut(stride).zip(weights.chunks_exact_mut(stride));
        for (query, (scores, weights)) in queries.zip(rows) {
            let visible = query.saturating_sub(heads.window) - first..query + 1 - first;
            weights[..visible.start].fill(bf16::ZERO);
            weights[visible.end..].fill(bf16::ZERO);
            let scores = &mut scores[visible.clone()];
            let highest = max(scores) * scale;
            for score in scores.iter_mut() {
                *score = exp(*score * scale - highest);
            }
            let total = sum(scores);
            let share = 1.0 / total;
            for (weight, score) in weights[visible].iter_mut().zip(scores) {
                *weight = Element::store(*score * share);
            }
            log_totals[query] = highest + total.ln();
        }
    }
}

/// See [`attention`](crate::attention) for the formulas.
pub fn backward(
    inputs: Inputs<'_, bf16>,
    outputs: Outputs<'_, bf16>,
    heads: Heads,
    gradients: [&mut [bf16]; 3],
) {
    let Inputs { q, k, v, channels } = inputs;
    let Outputs { ys, d_ys, log_totals } = outputs;
    let [all_d_q, all_d_k, all_d_v] = gradients;
    let Heads { time, channels: width, .. } = heads;
    let new = || vec![0.0; time * width];
    let (mut d_k, mut d_v) = (new(), new());
    let mut rows = Vec::new();
    let (mut scores, mut d_weights) = (Vec::new(), Vec::new());
    let (mut weights, mut d_scores) = (Vec::new(), Vec::new());
    let step = time * channels;
    let mut log_totals = log_totals.chunks_exact(time);
    for sequence in 0..q.len() / step {
        let here = sequence * step..(sequence + 1) * step;
        let [q, k, v, ys, d_ys] = [q, k, v, ys, d_ys].map(|xs| &xs[here.clone()]);
        for first in (0..channels).step_by(width) {
            let log_totals = log_totals.next().expect("one list for each head");
            let head = first..first + width;
            gather(k, channels, head.clone(), &mut rows);
            let keys_by_channel = Panels::<COLUMNS>::of_columns(&rows, width);
            let keys_by_key = Panels::<COLUMNS>::of_rows(&rows, width);
            gather(v, channels, head.clone(), &mut rows);
            let values_by_channel = Panels::<COLUMNS>::of_columns(&rows, width);
            d_k.fill(0.0);
            d_v.fill(0.0);
            for group in parts(0..time, QUERIES) {
                let seen = keys(heads, &group);
                let stride = seen.len().next_multiple_of(2);
                weights.clear();
                weights.resize(group.len() * stride, bf16::ZERO);
                d_scores.clear();
                d_scores.resize(group.len() * stride, bf16::ZERO);
                for queries in parts(group.clone(), BLOCK) {
                    let seen_here = keys(heads, &queries);
                    let at = queries.start * channels + first;
                    let len = BLOCK * seen_here.len();
                    scores.resize(scores.len().max(len), 0.0);
                    d_weights.resize(d_weights.len().max(len), 0.0);
                    for (rows, right, sums) in [
                        (q, &keys_by_channel, &mut scores),
                        (d_ys, &values_by_channel, &mut d_weights),
                    ] {
                        let left = Left::Rows { elements: &rows[at..], stride: channels };
                        let right = right.part(0..width, seen_here.clone());
                        let mut sums = Store { elements: &mut sums[..], stride: seen_here.len() };
                        pairs::product(queries.len(), &left, &right, &mut sums);
                    }
                    let from = (queries.start - group.start) * stride;
                    d_softmax(
                        Scores { scores: &scores, d_weights: &d_weights, log_totals },
                        Outputs { ys: &ys[first..], d_ys: &d_ys[first..], log_totals },
                        heads,
                        (queries.clone(), channels),
                        [&mut weights[from..], &mut d_scores[from..]],
                        (stride, seen_here.start - seen.start),
                    );
                    let from = from + seen_here.start - seen.start;
                    let left = Left::Rows { elements: &d_scores[from..], stride };
                    let even = seen_here.len().next_multiple_of(2);
                    let rows = seen_here.start..seen_here.start + even;
                    let right = keys_by_key.part(rows, 0..width);
                    let mut sums =
                        Store { elements: &mut all_d_q[here.start + at..], stride: channels };
                    pairs::product(queries.len(), &left, &right, &mut sums);
                }
                let at = group.start * channels..group.end * channels;
                for (matrix, rows_of, sums) in
                    [(&weights, d_ys, &mut d_v), (&d_scores, q, &mut d_k)]
                {
                    let by_query = Panels::<ROWS>::of_rows(matrix, stride);
                    gather(&rows_of[at.clone()], channels, head.clone(), &mut rows);
                    let right = Panels::<COLUMNS>::of_rows(&rows, width);
                    for keys in parts(seen.clone(), COLUMNS) {
                        // The queries that see any of these keys.
                        let from = keys.start.max(group.start) - group.start;
                        let last = (keys.end - 1 + heads.window).min(group.end - 1);
                        if last < group.start + from {
                            continue;
                        }
                        let seeing = from / 2 * 2..(last + 1 - group.start).next_multiple_of(2);
                        let local = keys.start - seen.start..keys.end - seen.start;
                        let left = Left::Panels(by_query.part(seeing.clone(), local));
                        let elements = &mut sums[keys.start * width..];
                        let mut sums = Add { elements, stride: width };
                        let right = right.part(seeing, 0..width);
                        pairs::product(keys.len(), &left, &right, &mut sums);
                    }
                }
            }
            scatter(&d_k, &mut all_d_k[here.clone()], (channels, first), width);
            scatter(&d_v, &mut all_d_v[here.clone()], (channels, first), width);
        }
    }
}

struct Scores<'a> {
    scores: &'a [f32],
    d_weights: &'a [f32],
    log_totals: &'a [f32],
}

vectorized! {
    /// Weights, and gradients of scores, of a block of queries, from the `offset`th column on of
    /// matrices with rows of `stride`.
    fn d_softmax(
        block: Scores<'_>,
        outputs: Outputs<'_, bf16>,
        heads: Heads,
        queries: (Range<usize>, usize),
        matrices: [&mut [bf16]; 2],
        place: (usize, usize),
    ) {
        let Scores { scores, d_weights, log_totals } = block;
        let ((queries, channels), (stride, offset)) = (queries, place);
        let [weights, d_scores] = matrices;
        let seen = keys(heads, &queries);
        let scale = heads.scale();
        let rows = scores.chunks_exact(seen.len()).zip(d_weights.chunks_exact(seen.len()));
        let targets = weights.chunks_mut(stride).zip(d_scores.chunks_mut(stride));
        for (query, ((scores, d_weights), (weights, d_scores))) in queries.zip(rows.zip(targets)) {
            let at = query * channels;
            let width = heads.channels;
            let mean = dot(&outputs.d_ys[at..at + width], &outputs.ys[at..at + width]);
            let log_total = log_totals[query];
            let visible = query.saturating_sub(heads.window) - seen.start..query + 1 - seen.start;
            let target = offset + visible.start..offset + visible.end;
            let inputs = scores[visible.clone()].iter().zip(&d_weights[visible]);
            let targets = weights[target.clone()].iter_mut().zip(&mut d_scores[target]);
            for ((score, d_weight), (target, d_score)) in inputs.zip(targets) {
                let weight = exp(score * scale - log_total);
                *target = Element::store(weight);
                *d_score = Element::store(weight * (d_weight - mean) * scale);
            }
        }
    }
}
