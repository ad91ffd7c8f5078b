//! Proposers at work while a trial trains, and what they came up with until its turn has come.

use super::{Dossier, Roster, Turn};
use crate::{
    error::Result, laboratory::Builder, observers::Observers, record::Trial, stop::StopHandle,
};
use std::{panic::resume_unwind, thread::JoinHandle};

/// A roster that can be at work on a thread of its own.
///
/// Who thinks ahead holds nobody up: trials come to their end and are recorded meanwhile, and the
/// proposers hear of them when they are back.
pub(crate) struct Ahead {
    /// An empty one while the proposers are at work.
    roster: Roster,
    work: Option<Work>,
    thought: Option<Thought>,
    /// What they have yet to hear of.
    unheard: Vec<Heard>,
}

struct Work {
    trial: usize,
    stop: StopHandle,
    thread: JoinHandle<(Roster, Result<Option<Thought>>)>,
}

/// A proposal for a trial that is still to come.
#[derive(Debug)]
pub(crate) struct Thought {
    pub turn: Turn,
    /// What its author was told.
    pub dossier: Dossier,
}

/// What became of a trial, as proposers hear of it.
struct Heard {
    trial: Trial,
    source: String,
    gain: Option<f64>,
}

impl Ahead {
    pub(crate) fn new(roster: Roster) -> Self {
        Self { roster, work: None, thought: None, unheard: Vec::new() }
    }

    /// Whether there is somebody for whom it is worthwhile, and nothing was thought of already.
    pub(crate) fn could_think(&self) -> bool {
        self.work.is_none() && self.thought.is_none() && self.roster.thinks()
    }

    /// Whether a proposal for this trial is there, or being worked on.
    pub(crate) fn is_about(&self, trial: usize) -> bool {
        let worked_on = self.work.as_ref().map(|work| work.trial);
        let there = self.thought.as_ref().map(|thought| thought.dossier.trial);
        worked_on.or(there) == Some(trial)
    }

    /// Begins to think about the trial of the dossier; what comes of it is built where there is a
    /// builder.
    pub(crate) fn think(
        &mut self,
        dossier: Dossier,
        builder: Option<Builder>,
        observers: Observers,
    ) {
        let mut roster = std::mem::take(&mut self.roster);
        let (trial, stop) = (dossier.trial, dossier.stop.clone());
        let thread = std::thread::spawn(move || {
            let tell = |event| observers.tell(event);
            let brief = dossier.brief();
            let mut turn = roster.propose(&brief, &tell);
            if let (Ok(Some(turn)), Some(build)) = (&mut turn, builder) {
                turn.built = build(&turn.proposal.source, &brief.folder_of(brief.trial));
            }
            (roster, turn.map(|turn| turn.map(|turn| Thought { turn, dossier })))
        });
        self.work = Some(Work { trial, stop, thread });
    }

    /// The proposers, when they are through with what they are at.
    ///
    /// # Errors
    /// That came to an end at which the study cannot go on.
    pub(crate) fn roster(&mut self) -> Result<&mut Roster> {
        let Some(work) = self.work.take() else { return Ok(&mut self.roster) };
        let (roster, thought) = work.thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        self.roster = roster;
        for Heard { trial, source, gain } in self.unheard.drain(..) {
            self.roster.observe(&trial, &source, gain);
        }
        self.thought = thought?;
        Ok(&mut self.roster)
    }

    /// What was thought of, if anything was.
    ///
    /// # Errors
    /// As for [`roster`](Self::roster).
    pub(crate) fn thought(&mut self) -> Result<Option<Thought>> {
        self.roster()?;
        Ok(self.thought.take())
    }

    /// Ends what they are at, and forgets what they thought of.
    ///
    /// # Errors
    /// As for [`roster`](Self::roster).
    pub(crate) fn recall(&mut self) -> Result<()> {
        if let Some(work) = &self.work {
            work.stop.stop();
        }
        if let Some(thought) = self.thought()? {
            self.roster.take_back(thought.turn);
        }
        Ok(())
    }

    /// Hears what became of a trial; `gain` is by how much it bettered the incumbent, if it did.
    pub(crate) fn observe(&mut self, trial: &Trial, source: &str, gain: Option<f64>) {
        let trial = &trial.for_proposers();
        if self.work.is_none() {
            self.roster.observe(trial, source, gain);
        } else {
            let (trial, source) = (trial.clone(), source.to_owned());
            self.unheard.push(Heard { trial, source, gain });
        }
    }
}
