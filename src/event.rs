//! What a study tells its observers while it works.

use crate::record::Trial;
use serde::Serialize;
use std::path::PathBuf;

/// Something happened. With `--json`, a line each.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant says what its fields are")]
pub enum Event {
    /// Data is being prepared: `done` of `total` units of a stage such as "training the tokenizer".
    Preparing { stage: String, done: u64, total: u64 },
    /// The trainer's dependencies are being compiled, once a machine: `done` of `total` crates.
    Compiling { done: u64, total: u64 },
    /// Workers are less confined than they should be: the system has none of these.
    Unconfined { missing: Vec<String> },
    /// Something that the human should know, such as what a crash had left in disorder.
    Noted { remark: String },
    /// The study is open. `finished` trials stand in its ledger already, the baseline included.
    Opened { dir: PathBuf, branch: String, data: String, finished: usize },
    /// A proposer is asked for the next source.
    Proposing { trial: usize, proposer: String },
    /// A proposer could not do its work. It is asked again, after a pause if it failed repeatedly.
    ProposerFailed { proposer: String, reason: String, pause_seconds: f64 },
    /// A proposer is asked no more.
    ProposerRetired { proposer: String, reason: String },
    /// A proposal came to nothing by `reason`, and its author is repairing it.
    Repairing { trial: usize, proposer: String, reason: String },
    /// The machine did something else while a trial trained: what was measured says nothing about its source. It is
    /// measured again when the machine is quiet, or after a while.
    Disturbed { trial: usize, reason: String },
    /// There is a source, and it is being compiled.
    Building { trial: usize, proposer: String, description: String },
    /// The command runs, where the objective is a command's.
    Running { trial: usize },
    /// The trainer trains.
    Training {
        trial: usize,
        /// Share of the budget spent, 0 to 1.
        progress: f64,
        elapsed_seconds: f64,
        steps: u64,
        tokens: u64,
        /// The latest loss that the trainer reported, in nats a token.
        loss: Option<f64>,
    },
    /// The weights sit the exam: `done` of `total` questions.
    Exam { trial: usize, done: u64, total: u64 },
    /// A trial is over and in the ledger.
    Finished(Box<Trial>),
}
