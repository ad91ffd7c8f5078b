//! A source measured: the one way to it, whoever wants to know.

use super::{Asked, Measured, Study, ask::Origin, write};
use crate::{
    error::Result,
    event::Event,
    halt::Halt,
    laboratory::{Attempt, Source},
    proposer::{Running, Usage},
    race::{self, Race},
    record::{Measurement, Outcome},
    source::{self, LARGEST_SOURCE, identity},
};
use std::{cell::RefCell, mem::take};

/// `None` where the study was stopped; what ended a trial is told from that by whoever knows of one.
pub(super) fn optional<T>(result: Result<T, Halt>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Halt::Broken(error)) => Err(error),
        Err(Halt::Interrupted | Halt::Ended { .. }) => Ok(None),
    }
}

impl Study {
    /// Carries a trial out here and now: builds, trains and examines its source, or runs its command. What comes to
    /// nothing is sent back to its proposer; what the machine disturbed is measured again.
    ///
    /// `None`: the study was stopped. The trial is taken up again when the study goes on.
    ///
    /// # Errors
    /// What keeps the study from going on. Whatever becomes of the trial is no error.
    pub fn measure(&mut self, asked: &mut Asked) -> Result<Option<Measured>> {
        let carried_out = self.carry_out(asked);
        let measurement = take(&mut asked.attempt.measurement);
        let (outcome, reason) = match carried_out {
            Ok(()) => (Outcome::Measured, None),
            Err(Halt::Ended { outcome, reason }) => (outcome, Some(reason)),
            Err(Halt::Interrupted) => {
                self.put_off(asked);
                return Ok(None);
            }
            Err(Halt::Broken(error)) => return Err(error),
        };
        Ok(Some(Measured { outcome, reason, measurement }))
    }

    /// Measures the present version of a trial's source; what is learned on the way goes into the attempt. As soon as it
    /// trains, others may think about the next proposal.
    pub(super) fn try_once(&mut self, asked: &mut Asked) -> Result<(), Halt> {
        let Asked { attempt, origin, .. } = asked;
        attempt.measurement = Measurement::default();
        let (proposer, proposal, usage) = match &*origin {
            Origin::Baseline(proposal) => ("baseline", proposal, Usage::default()),
            Origin::Control { proposal, .. } => ("control", proposal, Usage::default()),
            Origin::Proposed(turn) => (&*turn.name, &turn.proposal, turn.usage),
        };
        self.tell_observers(Event::Building {
            trial: attempt.number,
            proposer: proposer.to_owned(),
            description: proposal.description.clone(),
        });
        if matches!(origin, Origin::Proposed(_)) {
            self.check(&proposal.source, &attempt.folder)?;
            (attempt.race, attempt.forecast) = (self.race(attempt.number, &proposal.source), None);
        }
        let (proposer, description) = (proposer.to_owned(), proposal.description.clone());
        let running = Running { trial: attempt.number, proposer, description, usage };
        self.run(attempt, &proposal.source, Some(running))
    }

    /// Whether a proposal is worth building.
    fn check(&self, text: &str, folder: &std::path::Path) -> Result<(), Halt> {
        let refused = |reason| Halt::Ended { outcome: Outcome::Refused, reason };
        let edited = self.workspace.edited();
        let checked = source::check(edited, text, self.config.objective.allows_unsafe());
        let repeated = self.tried.get(&identity(edited, text));
        let repeated = repeated.map(|earlier| format!("trial {earlier} was the same program"));
        let Err(reason) = checked.and_then(|()| repeated.map_or(Ok(()), Err)) else {
            return Ok(());
        };
        // For whoever wants to know what was refused, if it is of a size to be looked at.
        if text.len() <= LARGEST_SOURCE {
            write(&folder.join(self.name_of_source()), text)?;
        }
        Err(refused(reason))
    }

    /// Puts a source into the work tree for as long as it is measured, and writes down what it is and changes.
    pub(super) fn run(
        &mut self,
        attempt: &mut Attempt,
        text: &str,
        running: Option<Running>,
    ) -> Result<(), Halt> {
        write(&attempt.folder.join(self.name_of_source()), text)?;
        let placed = self.workspace.place(text)?;
        write(&attempt.folder.join("change.diff"), &self.workspace.diff()?)?;
        let next = running.map(|running| self.next_dossier(running)).transpose()?.flatten();
        let next = RefCell::new(next.map(|dossier| (dossier, self.laboratory.builder())));
        let proposers = RefCell::new(&mut self.proposers);
        let observers = &self.observers;
        let source = Source { text, folder: self.workspace.folder() };
        let measured = self.laboratory.measure(attempt, &source, &|event| {
            observers.tell(event.clone());
            // Before that, a repair may need its author, and the compiler the machine.
            if let Event::Training { .. } | Event::Running { .. } = event
                && let Some((dossier, builder)) = next.take()
            {
                proposers.borrow_mut().think(dossier, builder, observers.clone());
            }
        });
        placed.put_back()?;
        measured
    }

    /// The race that a candidate runs, if there is one.
    fn race(&self, number: usize, source: &str) -> Option<Race> {
        let bar = self
            .judge
            .bar(self.config.seed, self.is_shorter(source))
            .filter(|_| self.config.race)?;
        let mut race = Race::new(self.ledger.trials(), bar)?;
        race.is_spared = race::is_spared(self.config.seed, number);
        Some(race)
    }
}
