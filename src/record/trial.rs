//! A trial and what became of it: plain data, and the lines of the ledger.

use crate::{
    conditions::Conditions,
    record::{Curve, Effort, Evidence, Forecast},
};
use serde::{Deserialize, Serialize};

/// One attempt: a proposed source, built, trained, scored, decided. A line of `trials.jsonl`.
///
/// What is not known is `None` (`null` in the ledger), never zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// 0 is the unchanged baseline.
    pub trial: usize,
    /// The kept trial whose source this one started from.
    pub parent: Option<usize>,
    /// The commit of a kept trial on the study's branch, full hash.
    pub commit: Option<String>,
    /// Who proposed it.
    pub proposer: String,
    /// One line: what was tried.
    pub description: String,
    /// What the trial came to in autoresearch's words; follows from `outcome` and the judge.
    pub status: Status,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Why it ended so, for a person: a compiler's first error, a panic's message, the comparison
    /// that rejected the exam, or what the judge says.
    pub reason: Option<String>,
    /// What was measured.
    #[serde(flatten)]
    pub measurement: Measurement,
    /// The seed that the trainer was handed.
    pub seed: u64,
    /// SHA-256 of the source, in hexadecimal.
    pub source_sha256: String,
    /// When the trial began.
    pub started: jiff::Timestamp,
    /// The trial whose source is measured again here, under another seed, to learn the noise of a
    /// measurement. Such a control run is never kept.
    #[serde(default)]
    pub repeats: Option<usize>,
    /// How far the judge could believe the measurement.
    #[serde(default)]
    pub evidence: Option<Evidence>,
    /// What the race foresaw of a trial that it stopped, or would have stopped but let go on to be put
    /// to the test.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// Further measurements under other seeds, where the judge asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repetitions: Vec<Repetition>,
    /// A name for what the source does, by which repetitions are refused: SHA-256 of its tokens. Not in ledgers from
    /// before this was recorded.
    #[serde(default)]
    pub program_sha256: Option<String>,
    /// How often the proposal was repaired before it came to this.
    #[serde(default)]
    pub repairs: usize,
    /// What the human should know of the proposal, such as edits beside the edited file.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// A trial and its incumbent, measured once more under a seed that both have in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Repetition {
    /// The seed of both.
    pub seed: u64,
    /// The trial's score.
    pub score: f64,
    /// The incumbent's.
    pub incumbent: f64,
}

/// What the host measured of a trial. Seconds are wall clock, as the parent process saw them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Validation cost in bits per byte of text, over the study's fixed windows. Lower is better.
    pub val_bpb: Option<f64>,
    /// The same over the test split, of trials that were kept. Measured after the decision, and never
    /// read by one.
    #[serde(default)]
    pub test_bpb: Option<f64>,
    /// Whether the first weights are others under another seed; of trials that were kept.
    #[serde(default)]
    pub depends_on_seed: Option<bool>,
    /// What training starts from: SHA-256 of the first weights' file and the shape of the first batch.
    /// Where it is another one than the incumbent's, seeds mean something else. Decides nothing by
    /// itself.
    #[serde(default)]
    pub start_sha256: Option<String>,
    /// What is measured instead of bits per byte, where the objective is a command's.
    #[serde(default)]
    pub metric: Option<Metric>,
    /// From the first moment the trainer could ask for a batch to its return.
    pub training_seconds: Option<f64>,
    /// What the proposer took, also while the trial before was still training.
    pub propose_seconds: Option<f64>,
    /// What the proposer's model cost, in US dollars.
    #[serde(default)]
    pub propose_usd: Option<f64>,
    /// Tokens that the proposer's model read and wrote.
    #[serde(default)]
    pub propose_tokens: Option<u64>,
    /// From the edited source to a loadable library.
    pub build_seconds: Option<f64>,
    /// From spawning the worker to a built model.
    pub startup_seconds: Option<f64>,
    /// Saving the weights and both rooms of the exam.
    pub eval_seconds: Option<f64>,
    /// What the trial added to the night: from the end of the one before to its own end.
    pub total_seconds: Option<f64>,
    /// Batches that the session handed out.
    pub num_steps: Option<u64>,
    /// Tokens in those batches.
    pub total_tokens: Option<u64>,
    /// Elements of all tensors in the checkpoint.
    pub num_params: Option<u64>,
    /// The training worker's peak resident memory, in MiB.
    pub peak_memory_mb: Option<f64>,
    /// Peak memory on the accelerator, in MiB.
    pub peak_vram_mb: Option<f64>,
    /// What the trainer had of the machine, where the system tells.
    #[serde(default)]
    pub conditions: Option<Conditions>,
    /// What was needed beside the training budget. The baseline's is what others are held to.
    #[serde(default)]
    pub effort: Option<Effort>,
    /// The last loss that the trainer reported, in nats a token. Decides nothing.
    pub train_loss: Option<f64>,
    /// What it reported on the way. Speaks against a trial at most: see [`race`](crate::race).
    #[serde(default, skip_serializing_if = "Curve::is_empty")]
    pub loss_curve: Curve,
}

/// A number that a command printed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// As the command prints it.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Whether more of it is better.
    pub higher_is_better: bool,
}

/// autoresearch's three words for a finished trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Measured, and now the incumbent.
    Keep,
    /// Not better, as it was measured or as the race foresaw.
    Discard,
    /// Never came to a measurement that counts.
    Crash,
}

/// How a trial ended: a fact, before any judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant says what its field is")]
pub enum Outcome {
    /// Trained, sat the exam, and the two rooms agreed.
    Measured,
    /// The proposed source may not be tried: the reason says why.
    Refused,
    /// The compiler refused the source; its errors are in `build.log`.
    BuildFailed,
    /// The library compiled, but does not fit the boundary or cannot be loaded.
    LoadFailed,
    /// A method of the trainer returned an error.
    Failed,
    /// A method of the trainer panicked.
    Panicked,
    /// The worker ended by itself with this status.
    Exited { exit_code: i32 },
    /// The worker was ended by this signal, which was not ours.
    Signalled { signal: i32 },
    /// The worker went on past its time and was killed.
    TimedOut,
    /// It took more time outside of its budget than the baseline's needs explain, so that the score
    /// would not be one of this budget.
    Overran,
    /// It was stopped before its budget was spent, because its loss made a win improbable.
    Pruned,
    /// The machine did something else meanwhile, so that what was measured says nothing about the source.
    Disturbed,
    /// The worker filled its scratch folder beyond the limit and was killed.
    OutOfSpace,
    /// The exam's answers contradict each other or are no answers.
    Rejected,
}

impl Outcome {
    /// Whether the trial has a `val_bpb` that counts.
    pub fn is_measured(&self) -> bool {
        matches!(self, Self::Measured)
    }
}

impl Trial {
    /// Without what whoever proposes must not aim at: the test split is for the morning.
    pub(crate) fn for_proposers(&self) -> Self {
        let mut trial = self.clone();
        trial.measurement.test_bpb = None;
        trial
    }

    /// Whether this trial became the incumbent.
    pub fn is_kept(&self) -> bool {
        self.status == Status::Keep
    }

    /// What was measured: `val_bpb`, or the objective's own metric.
    pub fn score(&self) -> Option<f64> {
        self.measurement.score()
    }

    /// The score as the loop compares it: lower is better, whatever the objective.
    pub fn cost(&self) -> Option<f64> {
        self.measurement.cost()
    }
}

impl Measurement {
    /// What was measured: `val_bpb`, or the objective's own metric.
    pub fn score(&self) -> Option<f64> {
        self.val_bpb.or(self.metric.as_ref().map(|metric| metric.value))
    }

    /// The score as the loop compares it: lower is better, whatever the objective.
    pub fn cost(&self) -> Option<f64> {
        let sign = if self.higher_is_better() { -1.0 } else { 1.0 };
        self.score().map(|score| sign * score)
    }

    /// What the score is called.
    pub fn name_of_score(&self) -> &str {
        self.metric.as_ref().map_or("val_bpb", |metric| &metric.name)
    }

    /// Whether more of the score is better.
    pub fn higher_is_better(&self) -> bool {
        self.metric.as_ref().is_some_and(|metric| metric.higher_is_better)
    }
}
