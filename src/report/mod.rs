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
mod summary;

pub use crate::record::{RESULTS_HEADER, results_row};
#[cfg(feature = "chart")]
pub use chart::write_chart;
pub use summary::summary;
