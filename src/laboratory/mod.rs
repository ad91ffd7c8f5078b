//! Where a source becomes a measurement.

mod command;
#[cfg(feature = "trainer")]
mod trainer;

pub(crate) use command::CommandLaboratory;
pub use command::CommandObjective;
#[cfg(feature = "trainer")]
pub(crate) use trainer::TrainerLaboratory;

use crate::{
    error::Error,
    event::Event,
    halt::Halt,
    race::Race,
    record::{Forecast, Measurement, Trial},
};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Measures sources, one after the other. What is learned on the way, even of one that comes to
/// nothing, goes into the attempt.
pub(crate) trait Laboratory: Send {
    fn measure(
        &mut self,
        attempt: &mut Attempt,
        source: &Source<'_>,
        tell: &dyn Fn(Event),
    ) -> Result<(), Halt>;

    /// Builds a source that was measured before, and has it train for a moment. What fails now is the
    /// machine's fault.
    fn probe(&mut self, _source: &Source<'_>, _folder: &Path) -> Result<(), Halt> {
        Ok(())
    }

    /// Throws away what was kept on the machine to save work, and may be damaged.
    fn start_afresh(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Hears of every trial that stands in the ledger.
    fn remember(&mut self, _trial: &Trial) {}

    /// Adds what training started from, of a candidate that was measured: the judge wants to know.
    fn examine_start(&mut self, _attempt: &mut Attempt) -> Result<(), Halt> {
        Ok(())
    }

    /// Adds what is worth knowing of a trial that is kept, and has no part in that decision. Returns
    /// what a person should know of it.
    fn examine_kept(&mut self, _attempt: &mut Attempt) -> Result<Vec<String>, Halt> {
        Ok(Vec::new())
    }

    /// What builds a source while another one is measured, where that takes nothing from it.
    fn builder(&self) -> Option<Builder> {
        None
    }
}

/// Builds a source into the folder of a trial that is still to come. `None`: it is left to that trial,
/// which has to tell why.
pub(crate) type Builder = Box<dyn FnOnce(&str, &Path) -> Option<Built> + Send>;

/// A source whose library lies in its trial's folder already.
#[derive(Debug)]
pub(crate) struct Built {
    source: String,
    took: Duration,
}

/// A source in its work tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub text: &'a str,
    /// The whole project, with the text in place.
    pub folder: &'a Path,
}

/// A trial that is under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub number: usize,
    pub seed: u64,
    /// The trial's own.
    pub folder: PathBuf,
    pub measurement: Measurement,
    /// Rows of the first batch, and tokens in each.
    pub first_batch: Option<[u64; 2]>,
    /// A hash of the weights that training began with, where somebody looked.
    pub first_weights: Option<String>,
    /// What was built before it began, if anything was.
    pub built: Option<Built>,
    /// Whom it has to beat, if it may be stopped before its budget is spent.
    pub race: Option<Race>,
    pub forecast: Option<Forecast>,
    /// Whether a measurement counts however the machine was: there may be no better one.
    pub takes_any_conditions: bool,
    pub begun: Instant,
    pub started: jiff::Timestamp,
}

impl Attempt {
    /// One that begins now.
    pub(crate) fn new(number: usize, seed: u64, folder: PathBuf) -> Self {
        Self {
            number,
            seed,
            folder,
            measurement: Measurement::default(),
            first_batch: None,
            first_weights: None,
            built: None,
            race: None,
            forecast: None,
            takes_any_conditions: false,
            begun: Instant::now(),
            started: jiff::Timestamp::now(),
        }
    }
}
