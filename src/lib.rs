#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
// The loop is the same with fewer features, and has more than it needs then.
#![cfg_attr(not(all(feature = "agents", feature = "chat", feature = "trainer")), allow(dead_code))]

#[cfg(feature = "trainer")]
mod artifacts;
mod budget;
#[cfg(feature = "trainer")]
mod bundle;
#[cfg(feature = "trainer")]
mod card;
#[cfg(feature = "trainer")]
mod cargo;
#[cfg(feature = "trainer")]
mod child;
pub mod comparison;
mod conditions;
mod config;
#[cfg(feature = "trainer")]
mod conversation;
#[cfg(feature = "trainer")]
pub mod data;
mod effort;
#[cfg(feature = "trainer")]
mod environment;
mod error;
mod event;
#[cfg(feature = "trainer")]
pub mod exam;
mod foreign;
mod git;
mod hash;
pub mod judge;
mod laboratory;
mod ledger;
mod lifeline;
mod log;
#[cfg(feature = "trainer")]
mod macros;
#[cfg(feature = "mcp")]
pub mod mcp;
mod observers;
#[cfg(feature = "trainer")]
pub mod plugin;
mod process;
mod project;
pub mod proposer;
pub mod race;
pub mod report;
#[cfg(feature = "trainer")]
mod runner;
#[cfg(feature = "trainer")]
mod settings;
mod source;
mod stop;
mod study;
#[cfg(feature = "trainer")]
mod supply;
#[cfg(feature = "trainer")]
mod trainer_crate;
mod trial;
#[cfg(feature = "trainer")]
pub mod worker;
mod workspace;

pub use budget::Budget;
#[cfg(feature = "trainer")]
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
#[cfg(feature = "trainer")]
pub use runner::Sandbox;
pub use stop::StopHandle;
#[cfg(feature = "trainer")]
pub use study::cache_dir;
pub use study::{Ablation, Asked, Certificate, Ended, Measured, Rerun, Study, StudyBuilder, Until};
#[cfg(feature = "trainer")]
pub use trainer_crate::TrainerCrate;
pub use trial::{Measurement, Metric, Outcome, Repetition, Status, Trial};
