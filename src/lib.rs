//! Research while you sleep: a loop that has one source file edited, measures each version, and keeps what is
//! better, with everything on disk and nothing taken on trust.
//!
//! [`Study`] is the primary type: a folder, a git branch, a ledger. Its objective is a trainer in Rust, compiled and
//! loaded as a plugin in a confined process and scored in bits per byte, or any command that prints a number. Its
//! [`Proposer`](proposer::Proposer)s write the versions: a closure, the built-in tuner, a coding agent, a language model.
//!
//! # Example
//!
//! A study that needs no compiler. Its objective prints the number in the edited file, and its proposer writes a lower
//! one each time.
//!
//! ```
//! use overnight::{CommandObjective, Ended, Study, proposer::{Brief, Proposal}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let place = tempfile::tempdir()?;
//! # let (project, dir) = (place.path().join("project"), place.path().join("study"));
//! # std::fs::create_dir(&project)?;
//! std::fs::write(project.join("idea.txt"), "8")?;
//! let objective = CommandObjective::new(&project, "idea.txt", ["sh", "-c", "echo METRIC loss=$(cat idea.txt)"]);
//! let lower = |brief: &Brief<'_>| {
//!     let number = brief.source.parse::<i64>().unwrap() - 1;
//!     Ok(Proposal::new(number.to_string(), format!("down to {number}")))
//! };
//!
//! let mut study = Study::builder(&dir).objective(objective.minimize("loss")).proposer(lower).open()?;
//! assert_eq!(study.optimize(3)?, Ended::Trials);
//! assert_eq!(study.best_trial().unwrap().score(), Some(5.0));
//!
//! // The loop is three calls, for whoever wants to make them: on another machine, say, or with several trials open.
//! let mut trial = study.ask()?.expect("the proposer has always something");
//! assert_eq!(trial.source(), "4");
//! let measured = study.measure(&mut trial)?.expect("nobody stops it");
//! study.tell(trial, measured)?;
//!
//! // And a proposal of your own has its turn at once.
//! let trial = study.evaluate(Proposal::new("2", "my own idea"))?.expect("nobody stops it");
//! assert!(trial.is_kept());
//! # Ok(())
//! # }
//! ```
//!
//! With a trainer, a program begins with [`worker::run_if_worker`]: it is run again for every trial. The
//! [README](https://docs.rs/crate/overnight/latest) tells what there is to see then.
//!
//! # Where to go next
//!
//! | | |
//! |---|---|
//! | [`StudyBuilder`] | all that can be said of a study: budget, data, trainer, proposers, judge, sandbox |
//! | [`Until`], [`Ended`] | when to stop, and why it did |
//! | [`Event`], [`events`] | what happens, for a closure or over a channel |
//! | [`Trial`], [`Ledger`] | what stands on disk, and how to read it |
//! | [`proposer`] | the trait, and the proposers that come along |
//! | [`judge`], [`race`] | which trial is kept, and which need not go on; both are pure |
//! | [`report`] | table, chart and summary, from the ledger alone |
//! | [`data`], [`exam`], [`plugin`], [`worker`] | text and tokens, bits per byte, loading a trainer, the process that does |
//! | [`comparison`] | two programs or proposers against each other |
//! | [`mcp`] | a study that an interactive agent drives |
//!
//! # Testing what you build on it
//!
//! A [`CommandObjective`] makes a study of milliseconds, as above. With a trainer, a budget in steps gives the same score
//! on every run of one machine: `"20steps".parse()`. [`StudyBuilder::cache_dir`] keeps tests apart from your cache, and
//! [`StudyBuilder::shared_machine`] takes every measurement as it is, whatever runs beside it.
#![deny(unsafe_code)]
#![warn(missing_docs)]
// The loop is the same with fewer features, and has more than it needs then.
#![cfg_attr(not(all(feature = "agents", feature = "chat", feature = "trainer")), allow(dead_code))]

#[cfg(feature = "trainer")]
mod artifacts;
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
mod halt;
mod hash;
pub mod judge;
mod laboratory;
mod lifeline;
mod log;
#[cfg(feature = "trainer")]
mod macros;
#[cfg(feature = "mcp")]
pub mod mcp;
mod observers;
#[cfg(feature = "trainer")]
mod outline;
#[cfg(feature = "trainer")]
pub mod plugin;
mod process;
mod project;
pub mod proposer;
pub mod race;
mod record;
pub mod report;
#[cfg(feature = "trainer")]
mod runner;
#[cfg(feature = "trainer")]
mod settings;
mod source;
mod statistics;
mod stop;
mod study;
#[cfg(feature = "trainer")]
mod supply;
mod text;
#[cfg(feature = "trainer")]
mod trainer_crate;
#[cfg(feature = "trainer")]
pub mod worker;
#[cfg(feature = "trainer")]
mod workers;
mod workspace;

#[cfg(feature = "trainer")]
pub use cargo::{Build, Cargo};
pub use conditions::Conditions;
pub use error::{Error, Result};
pub use event::Event;
pub use judge::Claim;
pub use laboratory::CommandObjective;
pub use observers::events;
pub use record::{
    Budget, CommandConfig, Config, Effort, Evidence, JudgeRule, Ledger, Measurement, Metric,
    Objective, Outcome, Repetition, Status, TrainerConfig, Trial,
};
pub use stop::StopHandle;
#[cfg(feature = "trainer")]
pub use study::cache_dir;
pub use study::{Ablation, Asked, Certificate, Ended, Measured, Rerun, Study, StudyBuilder, Until};
#[cfg(feature = "trainer")]
pub use trainer_crate::TrainerCrate;
#[cfg(feature = "trainer")]
pub use workers::Sandbox;

/// What the README says of the library compiles.
#[cfg(all(doctest, feature = "trainer"))]
#[doc = include_str!("../README.md")]
struct Readme;
