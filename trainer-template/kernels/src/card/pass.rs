//! A batch on its way through the model on a card, in parts.

use super::{
    download_f32,
    tape::{Sink, Tape, Weights},
};
use crate::{
    gradients::{Gradients, Loss},
    pass::Pass,
};
use candle_core::Error;
use std::{ops::Range, rc::Rc};

type Result<T, E = Error> = std::result::Result<T, E>;

/// Tokens of a part, if its rows are no longer: enough for any card to be busy, few enough for the
/// activations of a model that learns something in minutes to fit in its memory.
const PART_TOKENS: usize = 65_536;

/// Rows of a part, however short they are: a grid has room for so many, times 31 heads.
const PART_ROWS: usize = 2048;

/// The rows of each part.
fn parts(rows: usize, seq_len: usize) -> impl Iterator<Item = Range<usize>> {
    let size = (PART_TOKENS / seq_len.max(1)).clamp(1, PART_ROWS);
    (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
}

/// See [`gradients`](crate::gradients).
pub(crate) fn gradients<Failure: From<Error>>(
    (rows, seq_len): (usize, usize),
    loss: impl Fn(&Pass, Range<usize>) -> Result<Loss, Failure>,
) -> Result<(f64, Gradients), Failure> {
    let weights = Rc::new(Weights::default());
    let mut sink = Sink::default();
    let mut means = Vec::new();
    for part in parts(rows, seq_len) {
        let share = part.len() as f64 / rows as f64;
        let tape = Rc::new(Tape::new(weights.clone(), Some(share)));
        let mean = loss(&Pass::Card(tape.clone()), part)?.card_backward(&mut sink)?;
        means.push((share, mean, tape));
    }
    // The first of these waits for everything.
    let mut loss = 0.0;
    for (share, mean, tape) in means {
        loss += share * f64::from(download_f32(tape.card(), mean.address, 1)?[0]);
    }
    Ok((loss, Gradients::of_weights(sink.into_sums())?))
}

/// See [`infer`](crate::infer).
pub(crate) fn infer<Failure: From<Error>>(
    (rows, seq_len): (usize, usize),
    answer: impl Fn(&Pass, Range<usize>) -> Result<Vec<f32>, Failure>,
) -> Result<Vec<f32>, Failure> {
    let weights = Rc::new(Weights::default());
    let pass = || Pass::Card(Rc::new(Tape::new(weights.clone(), None)));
    let answers = parts(rows, seq_len).map(|part| answer(&pass(), part));
    Ok(answers.collect::<Result<Vec<_>, _>>()?.concat())
}
