#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod budget;
mod builder;
mod bundle;
mod cargo;
pub mod comparison;
mod config;
pub mod data;
mod error;
mod event;
mod exam;
mod hash;
pub mod judge;
mod laboratory;
mod ledger;
mod log;
pub mod mcp;
pub mod plugin;
mod process;
mod project;
pub mod proposer;
pub mod report;
mod rerun;
mod runner;
mod source;
mod stop;
mod study;
mod trainer_crate;
mod trial;
pub mod worker;
mod workspace;

pub use budget::Budget;
pub use builder::{StudyBuilder, cache_dir};
pub use cargo::{Build, Cargo};
pub use config::{CommandConfig, Config, Objective, TrainerConfig};
pub use error::{Error, Result};
pub use event::Event;
pub use judge::{Claim, Evidence, JudgeRule};
pub use laboratory::CommandObjective;
pub use ledger::Ledger;
pub use rerun::{Certificate, Rerun};
pub use runner::Sandbox;
pub use stop::StopHandle;
pub use study::Study;
pub use trainer_crate::TrainerCrate;
pub use trial::{Measurement, Metric, Outcome, Status, Trial};
