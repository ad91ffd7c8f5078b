//! What a night gained, measured anew and without the luck that its trials were kept by.

use super::{Study, measure::optional, tell::Entry};
use crate::{
    error::Result,
    event::Event,
    halt::Halt,
    hash::number_of_parts,
    laboratory::Attempt,
    proposer::Proposal,
    record::{Outcome, Status},
    statistics::Estimate,
};
use std::collections::HashMap;

/// The night's gain under fresh seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// The trial that was compared with the baseline.
    pub best: usize,
    /// Seeds under which both were measured.
    pub pairs: usize,
    /// By how much the best is better than the baseline, with Student's interval of 95 % over the
    /// pairs.
    pub gain: Estimate,
    /// Kept changes that the evidence for was weak, tried without.
    pub ablations: Vec<Ablation>,
}

/// The best without one of its changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ablation {
    /// The trial that made the change.
    pub of: usize,
    /// The trial of the ledger in which it was left out.
    pub trial: usize,
    /// By how much the best is worse without it, over the same seeds. `None`: it came to nothing.
    pub loss: Option<Estimate>,
    /// Whether it is gone: nothing is lost without it.
    pub dropped: bool,
}

/// A change is weakly supported if it truly helps with a smaller probability than this.
const STRONG: f64 = 0.9;

/// Costs under the certificate's seeds, by source.
#[derive(Default)]
struct Costs(HashMap<String, Vec<f64>>);

impl Study {
    /// Measures baseline and best again, under `pairs` fresh seeds that they have in common. Before
    /// that, each kept change with weak evidence is left out of the best in turn, the newest first,
    /// and measured under the same seeds; where nothing is lost without it, it is gone for good.
    /// These ablations stand in the ledger as trials, of the proposer `certify`.
    ///
    /// `None`: nothing better than the baseline was kept, a measurement came to nothing, or the study
    /// was stopped.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn certify(&mut self, pairs: usize) -> Result<Option<Certificate>> {
        optional(self.certified(pairs)).map(Option::flatten)
    }

    fn certified(&mut self, pairs: usize) -> Result<Option<Certificate>, Halt> {
        let best = self.best_trial().map_or(0, |trial| trial.trial);
        if best == 0 || pairs == 0 {
            return Ok(None);
        }
        let mut costs = Costs::default();
        let mut ablations = Vec::new();
        let is_weak = |trial: &&crate::record::Trial| {
            trial.is_kept() && trial.evidence.is_some_and(|evidence| evidence.improves < STRONG)
        };
        let weak: Vec<_> = self.trials().iter().filter(is_weak).map(|trial| trial.trial).collect();
        for of in weak.into_iter().rev() {
            let Some(source) = self.best_without(of)? else { continue };
            let Some(ablation) = self.ablate(of, &source, pairs, &mut costs)? else {
                return Ok(None);
            };
            ablations.push(ablation);
        }
        let best = self.best_trial().map_or(0, |trial| trial.trial);
        let (first, last) = (self.source_of(0)?, self.source_of(best)?);
        let Some(baseline) = self.costs(&first, pairs, &mut costs)? else { return Ok(None) };
        let Some(best_costs) = self.costs(&last, pairs, &mut costs)? else { return Ok(None) };
        let gain = difference(&baseline, &best_costs);
        Ok(Some(Certificate { best, pairs, gain, ablations }))
    }

    /// The best source without what a trial changed. `None`: later changes build on it.
    fn best_without(&self, trial: usize) -> Result<Option<String>> {
        let best = self.best_trial().map_or(0, |best| best.trial);
        let parent = self.ledger.trial(trial).and_then(|trial| trial.parent);
        let Some(parent) = parent else { return Ok(None) };
        let (best, with) = (self.source_of(best)?, self.source_of(trial)?);
        let merged = self.workspace.merge(&best, &with, &self.source_of(parent)?)?;
        Ok(merged.filter(|merged| *merged != best))
    }

    /// Measures the best without a change, records it, and leaves it at that where nothing is lost.
    /// `None`: the best came to nothing.
    fn ablate(
        &mut self,
        of: usize,
        source: &str,
        pairs: usize,
        costs: &mut Costs,
    ) -> Result<Option<Ablation>, Halt> {
        let best = self.best_trial().map_or(0, |best| best.trial);
        let text = self.source_of(best)?;
        let Some(with) = self.costs(&text, pairs, costs)? else { return Ok(None) };

        let number = self.next_number();
        let changed =
            self.ledger.trial(of).map_or(String::new(), |trial| trial.description.clone());
        let proposal = Proposal::new(source, format!("without trial {of}: {changed}"));
        let mut entry = Entry { parent: Some(best), ..Entry::new("certify", proposal) };
        let mut attempt = Attempt::new(number, self.seed_of_pair(0), self.trial_folder(number)?);
        self.tell_observers(Event::Building {
            trial: number,
            proposer: entry.proposer.clone(),
            description: entry.proposal.description.clone(),
        });
        let mut loss = None;
        match self.run(&mut attempt, source, None) {
            Ok(()) => {
                costs.0.entry(source.to_owned()).or_default().extend(attempt.measurement.cost());
                // Where it does not work under another seed, something is lost.
                loss = self.costs(source, pairs, costs)?.map(|costs| difference(&costs, &with));
                let nothing = loss.is_some_and(|loss| loss.mean <= 0.0);
                let status = if nothing { Status::Keep } else { Status::Discard };
                let said = loss.map_or("it fails under another seed".to_owned(), |loss| {
                    format!("worse by {loss} over {pairs} fresh seeds")
                });
                entry.decide(status, said);
            }
            Err(Halt::Ended { outcome, reason }) => {
                (entry.outcome, entry.reason) = (outcome, Some(reason));
            }
            Err(halt) => return Err(halt),
        }
        let trial = self.conclude(attempt, entry)?;
        self.judge.remember(&trial);
        let dropped = trial.is_kept();
        debug_assert!(!dropped || trial.outcome == Outcome::Measured);
        Ok(Some(Ablation { of, trial: number, loss, dropped }))
    }

    /// What a source costs under each of the seeds; what is known is not measured again. `None`: it
    /// came to nothing.
    fn costs(
        &mut self,
        source: &str,
        pairs: usize,
        costs: &mut Costs,
    ) -> Result<Option<Vec<f64>>, Halt> {
        let mut known = costs.0.remove(source).unwrap_or_default();
        while known.len() < pairs {
            let seed = self.seed_of_pair(known.len());
            let again = self.measure_again(source, seed)?;
            let Some(cost) = again.measurement.cost() else { return Ok(None) };
            known.push(cost);
        }
        costs.0.insert(source.to_owned(), known.clone());
        Ok(Some(known))
    }

    fn seed_of_pair(&self, pair: usize) -> u64 {
        let (seed, number) = (self.config.seed.to_le_bytes(), pair.to_le_bytes());
        number_of_parts([b"certify".as_slice(), &seed, &number])
    }
}

/// By how much the first cost more than the second.
fn difference(first: &[f64], second: &[f64]) -> Estimate {
    let differences: Vec<_> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    Estimate::over_repetitions(&differences, 0.95)
}
