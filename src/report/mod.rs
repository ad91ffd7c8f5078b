//! Reports: what a person reads in the morning, from the ledger alone.
//!
//! [`results_row`] writes autoresearch's `results.tsv`, [`write_chart`] its progress chart, and
//! [`summary`] its block of figures. All take finished trials, as [`Study::trials`] and
//! [`Ledger::read`] give them, and need no study.
//!
//! [`Study::trials`]: crate::Study::trials
//! [`Ledger::read`]: crate::Ledger::read

#[cfg(feature = "chart")]
mod chart;
#[cfg(feature = "chart")]
mod labels;
mod results;
mod summary;

#[cfg(feature = "chart")]
pub use chart::write_chart;
pub use results::{RESULTS_HEADER, results_row};
pub use summary::summary;

#[cfg(test)]
pub(crate) mod made_up {
    //! Made-up nights.

    use crate::{Measurement, Outcome, Status, Trial};

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
