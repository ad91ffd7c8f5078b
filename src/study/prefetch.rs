//! Who is told what, and when: the next proposal, and the one after it.

use crate::{
    error::Result,
    proposer::{Dossier, Running, Thought, Turn},
    source::identity,
    study::{Study, derived_seed},
};

impl Study {
    /// The proposal for a trial that is about to begin. `None`: there is nothing left to try, or the
    /// study was stopped.
    pub(crate) fn propose(&mut self, number: usize) -> Result<Option<Turn>> {
        let mut outdated = None;
        if let Some(mut thought) = self.proposers.thought()? {
            if thought.dossier.trial != number {
                // It was built into another trial's folder.
                thought.turn.built = None;
            }
            if self.rebase(&mut thought)? {
                return Ok(Some(thought.turn));
            }
            outdated = Some(thought.turn);
        }
        let dossier = self.dossier(number)?;
        let roster = self.proposers.roster()?;
        let observers = &self.observers;
        let tell = |event| observers.tell(event);
        match outdated {
            Some(turn) => roster.propose_again(turn, &dossier.brief(), &tell),
            None => roster.propose(&dossier.brief(), &tell),
        }
    }

    /// Carries a proposal over to the incumbent, where that is another one by now. `false`: the two
    /// contradict each other, or nothing new comes of them.
    fn rebase(&self, Thought { turn, dossier }: &mut Thought) -> Result<bool> {
        let incumbent = self.incumbent();
        if incumbent == dossier.incumbent {
            return Ok(true);
        }
        let (now, proposed) = (self.workspace.kept()?, &turn.proposal.source);
        let merged = self.workspace.merge(&now, &dossier.source, proposed)?;
        let is_new =
            |text: &String| !self.tried.contains_key(&identity(self.workspace.edited(), text));
        let Some(merged) = merged.filter(is_new) else { return Ok(false) };
        turn.proposal.source = merged;
        let before = dossier.incumbent;
        turn.remarks.push(format!("written for trial {before}, rebased on trial {incumbent}"));
        Ok(true)
    }

    /// What a proposer is told of a trial that nothing else happens before.
    pub(crate) fn dossier(&self, number: usize) -> Result<Dossier> {
        Ok(Dossier {
            trial: number,
            seed: derived_seed("proposal", self.config.seed, number),
            incumbent: self.incumbent(),
            source: self.workspace.kept()?,
            edited: self.workspace.edited().to_owned(),
            program: self.program.clone(),
            references: self.references.clone(),
            history: self.ledger.told(),
            running: None,
            noise: self.judge.noise(),
            study: self.dir.clone(),
            folder: self.dir.join("brief"),
            stop: self.stop.clone(),
        })
    }

    /// What to tell those who think about the next proposal while a trial runs, if somebody is to.
    pub(crate) fn next_dossier(&self, running: Running) -> Result<Option<Dossier>> {
        // Nothing can be said before the baseline is measured.
        let is_early = running.trial == 0;
        if is_early || !self.thinks_ahead || !self.goes_on || !self.proposers.could_think() {
            return Ok(None);
        }
        let next = self.next_number();
        let proposed = (next..).find(|&number| !self.is_control(number));
        let dossier = self.dossier(proposed.unwrap_or(next))?;
        // What a study left behind that was cut off at this trial.
        self.trial_folder(dossier.trial)?;
        let stop = self.stop.of_a_part();
        Ok(Some(Dossier { running: Some(running), stop, ..dossier }))
    }

    fn incumbent(&self) -> usize {
        self.ledger.incumbent().map_or(0, |trial| trial.trial)
    }
}
