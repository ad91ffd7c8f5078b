#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod artifacts;
mod budget;
mod bundle;
mod card;
mod cargo;
mod child;
pub mod comparison;
mod conditions;
mod config;
mod conversation;
pub mod data;
mod effort;
mod environment;
mod error;
mod event;
pub mod exam;
mod foreign;
mod git;
mod hash;
pub mod judge;
mod laboratory;
mod ledger;
mod lifeline;
mod log;
mod macros;
pub mod mcp;
mod observers;
pub mod plugin;
mod process;
mod project;
pub mod proposer;
pub mod race;
pub mod report;
mod runner;
mod settings;
mod source;
mod stop;
mod study;
mod supply;
mod trainer_crate;
mod trial;
pub mod worker;
mod workspace;

pub use budget::Budget;
pub use cargo::{Build, Cargo};
pub use conditions::Conditions;
pub use config::{CommandConfig, Config, Objective, TrainerConfig};
pub use effort::Effort;
pub use error::{Error, Result};
pub use event::Event;
pub use judge::{Claim, Evidence, JudgeRule};
pub use laboratory::CommandObjective;
pub use ledger::Ledger;
pub use observers::events;
pub use runner::Sandbox;
pub use stop::StopHandle;
pub use study::{
    Ablation, Asked, Certificate, Ended, Measured, Rerun, Study, StudyBuilder, Until, cache_dir,
};
pub use trainer_crate::TrainerCrate;
pub use trial::{Measurement, Metric, Outcome, Repetition, Status, Trial};
