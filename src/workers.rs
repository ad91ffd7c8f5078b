//! How workers are started: the program, what it is told, within which limits.

use crate::{card::Card, effort::Bounds, stop::StopHandle, worker::protocol::Setup};
use std::{path::PathBuf, time::Duration};

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    /// The program to run again.
    pub program: PathBuf,
    pub setup: Setup,
    /// What the setup's card is.
    pub card: Option<Card>,
    pub limits: Limits,
    /// What the baseline's needs allow beyond that.
    pub bounds: Bounds,
    pub sandbox: Sandbox,
    pub stop: StopHandle,
}

/// Whether workers are confined to what their task needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sandbox {
    /// As far as the system can; the study says once what it cannot. The default.
    #[default]
    BestEffort,
    /// Entirely, or there is no study.
    Strict,
    /// Not at all: for trainers that start programs, or use the network.
    Off,
}

/// How long a worker may take over what is not training, whatever the baseline needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For loading the library and building the model.
    pub start: Duration,
    /// After the budget: for the step in flight and for returning from `train`.
    pub grace: Duration,
    /// For writing or reading the weights.
    pub checkpoint: Duration,
    /// For the exam: both rooms, from the first worker's start to the last answer.
    pub exam: Duration,
    /// For a training run whose budget is in steps, which no clock ends.
    pub steps: Duration,
    /// Bytes on disk in a trainer's scratch folder, its checkpoint among them.
    pub scratch_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(120),
            grace: Duration::from_secs(30),
            checkpoint: Duration::from_secs(120),
            exam: Duration::from_mins(10),
            steps: Duration::from_hours(24),
            scratch_bytes: 16 << 30,
        }
    }
}
