//! What is written down: a study's configuration, its trials, the ledger, the table. It imports nothing above it.

mod budget;
mod config;
mod curve;
mod effort;
mod folder;
mod forecast;
mod ledger;
mod results;
mod trial;
mod verdict;

pub use budget::Budget;
pub use config::{CommandConfig, Config, Objective, TrainerConfig};
pub use curve::{Curve, PARTS};
#[cfg(feature = "trainer")]
pub(crate) use curve::{Recorder, part};
pub use effort::Effort;
pub(crate) use folder::{ASKED, CHECKPOINT, OUTCOME, folder_of, library_name, name_of_source};
pub use forecast::Forecast;
pub use ledger::Ledger;
pub(crate) use results::short;
pub use results::{RESULTS_HEADER, results_row};
pub use trial::{Measurement, Metric, Outcome, Repetition, Status, Trial};
pub use verdict::{Evidence, JudgeRule};

#[cfg(test)]
pub(crate) mod made_up {
    //! Made-up nights.

    use super::{Measurement, Outcome, Status, Trial};

    /// A trial that measured `val_bpb`, or crashed.
    pub fn trial(number: usize, status: Status, val_bpb: Option<f64>, description: &str) -> Trial {
        Trial {
            trial: number,
            parent: number.checked_sub(1),
            commit: (status == Status::Keep).then(|| format!("{number:07x}").repeat(6)),
            proposer: "tuner".to_owned(),
            description: description.to_owned(),
            status,
            outcome: if val_bpb.is_some() { Outcome::Measured } else { Outcome::TimedOut },
            reason: None,
            measurement: Measurement { val_bpb, ..Measurement::default() },
            seed: 0,
            source_sha256: String::new(),
            program_sha256: None,
            started: jiff::Timestamp::UNIX_EPOCH,
            repeats: None,
            evidence: None,
            forecast: None,
            repetitions: Vec::new(),
            repairs: 0,
            remarks: Vec::new(),
        }
    }
}
