//! Why a study cannot go on; what becomes of a single trial is an [`Outcome`](crate::Outcome) instead.

use std::{io, path::PathBuf};

/// The library's one error: each says what failed, where, and what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message says what each field is")]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot *write*".
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// A program that the loop needs is not there.
    #[error("cannot run {program}: {source}; is it installed and on the PATH?")]
    Program { program: &'static str, source: io::Error },

    /// A program that the loop needs did not do its work.
    #[error("`{command}` failed in {}:\n{complaint}", folder.display())]
    Command { command: String, folder: PathBuf, complaint: String },

    /// There is no card to compute on, or nothing to compile for it with.
    #[error("cannot train on a card: {problem}")]
    Card { problem: String },

    /// Nothing was said of what to measure, and there is no trainer to fall back on.
    #[error(
        "there is nothing to measure: give the study an objective, or build with the feature `trainer`"
    )]
    NoObjective,

    /// The text is no budget.
    #[error("invalid budget {text:?}: {problem} (examples: 90s, 5m, 1h30m, 200steps)")]
    Budget { text: String, problem: &'static str },

    /// There is nothing to learn from.
    #[error("cannot learn from {what}: {problem}")]
    Data { what: String, problem: String },

    /// The folder is not what a study can edit and run.
    #[error("{} cannot be studied: {problem}", folder.display())]
    Project { folder: PathBuf, problem: String },

    /// The study was begun under other conditions, and its numbers would not compare.
    #[error(
        "{} belongs to another configuration: {differences}; continue it as it was begun, or \
         choose another folder",
        folder.display()
    )]
    OtherConfiguration { folder: PathBuf, differences: String },

    /// What worked before works no more, though nobody has changed it.
    #[error(
        "this machine has a fault: the source of trial {trial}, which was measured before, fails now \
         ({problem}), also after all was compiled anew; nothing is lost, mend the machine and start again"
    )]
    Machine { trial: usize, problem: String },

    /// Nobody knows what the trials in a ledger were measured under.
    #[error(
        "{} has trials and no study.json, which says what they were measured under: put it back, or \
         choose another folder",
        folder.display()
    )]
    NoConfiguration { folder: PathBuf },

    /// Another process has the study open.
    #[error("{} is open in another process; a study runs in one at a time", folder.display())]
    Locked { folder: PathBuf },

    /// The ledger is damaged in the middle, where no crash can have torn it.
    #[error("{} is damaged at line {line}: {problem}; mend or remove that line", path.display())]
    Ledger { path: PathBuf, line: usize, problem: String },

    /// The ledger has no trial of this number.
    #[error("there is no trial {trial}: the ledger has {trials}, from 0 on")]
    NoTrial { trial: usize, trials: usize },

    /// A trial was told to have been measured, and has no score of the study's kind, or one that is no number.
    #[error("trial {trial} was told without a finite score of the kind that this study compares")]
    NoScore { trial: usize },

    /// Somebody asks for proposals before there is anything to compare them with.
    #[error(
        "the baseline is not measured yet: tell what it came to before you ask for another trial"
    )]
    BaselineIsOpen,

    /// There is nothing to improve on.
    #[error("the unchanged trainer failed: {reason}; see {}", folder.display())]
    Baseline { reason: String, folder: PathBuf },

    /// The text names no proposer, or one that has nothing to propose.
    #[error(
        "invalid proposer {text:?}: {problem} (examples: tuner, replay:DIR, command:claude, chat:MODEL)"
    )]
    ProposerSpec {
        /// As written on the command line.
        text: String,
        problem: String,
    },

    /// The text names no rule of the judge's.
    #[error("invalid judge {text:?}: choose posterior, greedy or significant")]
    JudgeRule { text: String },

    /// The text is no allowance.
    #[error("invalid spending limit {text:?} (examples: 5usd, 2000000tokens)")]
    Allowance { text: String },

    /// The text is no price of tokens.
    #[error(
        "invalid price {text:?}: give dollars for a million tokens read and written, as in 3/15"
    )]
    Price { text: String },

    /// The proposer gave up.
    #[error("the proposer {proposer} cannot go on: {source}")]
    Proposer { proposer: String, source: ProposeError },

    /// Too little space for another trial.
    #[error(
        "the disk of {} is full: {free_mb} MiB are left; nothing is lost, make room and start again",
        folder.display()
    )]
    DiskFull { folder: PathBuf, free_mb: u64 },

    /// A study was started by a worker: the program forgot to become one.
    #[error(
        "this process is a worker and cannot open a study: call \
         `overnight::worker::run_if_worker()` first thing in `main`"
    )]
    InsideWorker,

    /// The program does not become a worker when it is run as one.
    #[error(
        "{} does not answer as a worker ({problem}): its `main` must call \
         `overnight::worker::run_if_worker()` first thing",
        program.display()
    )]
    NoWorker { program: PathBuf, problem: String },

    /// The system cannot confine workers as a strict sandbox wants.
    #[error("this system cannot confine a trainer: it lacks {missing}")]
    Sandbox { missing: String },

    /// Ctrl-C and its like are handled by somebody else.
    #[error("cannot handle Ctrl-C and SIGTERM: {0}")]
    Signals(#[source] io::Error),

    /// The system names no folder for caches.
    #[error("no folder for caches: set OVERNIGHT_CACHE to one")]
    NoCacheFolder,

    /// The system has no randomness to give.
    #[error("cannot draw random numbers: {0}")]
    Randomness(String),
}

/// The result of everything that can end a study.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err` beside a file operation.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A program could not be started.
    pub(crate) fn missing(program: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Program { program, source }
    }
}

/// Why there is no proposal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// There is nothing left to try. Where no other proposer is left, the study ends well.
    #[error("nothing is left to propose")]
    Exhausted,
    /// Not this time: the proposer is asked again after a pause.
    #[error("{0}")]
    Failed(String),
    /// Never: where no other proposer is left, the study ends with this as its error.
    #[error("{0}")]
    Unable(String),
    /// The study was asked to stop.
    #[error("interrupted")]
    Interrupted,
}
