//! The brief: all that a proposer is told before it writes.

use super::{Usage, history};
use crate::{record::Trial, stop::StopHandle};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a proposer is told.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Brief<'a> {
    /// The number of the trial to propose, from 1.
    pub trial: usize,
    /// What the proposer that is asked is called in the ledger: its own trials have this for their
    /// [`Trial::proposer`].
    pub proposer: &'a str,
    /// Randomness for this proposal, derived from the study's seed and the trial's number.
    pub seed: u64,
    /// The best trial kept so far.
    pub incumbent: &'a Trial,
    /// The incumbent's source.
    pub source: &'a str,
    /// The one file that may change, such as `src/train.rs`, relative to [`folder`](Self::folder).
    pub edited: &'a str,
    /// The human's instructions, the text of `program.md`.
    pub program: &'a str,
    /// What the source may call, as Markdown: a file name and its text each.
    pub references: &'a [(String, String)],
    /// Every finished trial, oldest first.
    pub history: &'a [Trial],
    /// The trial that is being measured while the proposer thinks, if one is; it is not in the
    /// history yet.
    pub running: Option<&'a Running>,
    /// How much two measurements of one source differ: their standard deviation, in the unit of
    /// the score. `None` as long as none was measured twice.
    pub noise: Option<f64>,
    /// The study's folder. `trials/0007/` in it has a trial's `source.rs` and `change.diff`.
    pub study: &'a Path,
    /// A folder to work in. It holds the incumbent's source under its name, is laid anew for every
    /// proposal and repair, and removed afterwards; [`lay_out`](Self::lay_out) adds the rest. Only
    /// [`Proposal::source`] counts.
    ///
    /// [`Proposal::source`]: super::Proposal::source
    pub folder: &'a Path,
    /// Pulled when the study is to stop: long waits should look at it.
    pub stop: &'a StopHandle,
}

/// A trial whose end is not known yet.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Running {
    /// Its number.
    pub trial: usize,
    /// Whose proposal it is.
    pub proposer: String,
    /// What it tries.
    pub description: String,
    /// What it has cost to propose, so far.
    pub usage: Usage,
}

/// All that a brief tells, owned: whoever is told may be on another thread.
#[derive(Debug)]
pub(crate) struct Dossier {
    pub trial: usize,
    pub seed: u64,
    /// The number of the best trial.
    pub incumbent: usize,
    pub source: String,
    pub edited: String,
    pub program: String,
    pub references: Vec<(String, String)>,
    pub history: Arc<Vec<Trial>>,
    pub running: Option<Running>,
    pub noise: Option<f64>,
    pub study: PathBuf,
    /// Where folders to work in are laid.
    pub folder: PathBuf,
    pub stop: StopHandle,
}

impl Dossier {
    /// Trials stand in the order in which they came to their end, nearly always that of their numbers.
    fn incumbent(&self) -> &Trial {
        let is_it = |trial: &&Trial| trial.trial == self.incumbent;
        let expected = self.history.get(self.incumbent).filter(is_it);
        let found = expected.or_else(|| self.history.iter().find(is_it));
        found.unwrap_or(&self.history[0])
    }

    pub(crate) fn brief(&self) -> Brief<'_> {
        Brief {
            trial: self.trial,
            proposer: "",
            seed: self.seed,
            incumbent: self.incumbent(),
            source: &self.source,
            edited: &self.edited,
            program: &self.program,
            references: &self.references,
            history: &self.history,
            running: self.running.as_ref(),
            noise: self.noise,
            study: &self.study,
            folder: &self.folder,
            stop: &self.stop,
        }
    }
}

/// What to do when nothing has helped for a while. One after the other, for a few trials each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Ideas that each missed by little may do together.
    CombineNearMisses,
    /// What was discarded by less than the noise may have been good.
    RevisitWithinNoise,
    /// The way led into a dead end: go on from an earlier kept trial.
    Restart,
}

/// So many trials without an improvement are a plateau. At the rates that autoresearch's nights
/// had, 22 improvements in 126 trials, chance alone brings such a run once in five.
const PLATEAU: usize = 8;

/// Trials for which one piece of advice stands before the next has its turn.
const TRIALS_PER_ADVICE: usize = 3;

impl<'a> Brief<'a> {
    /// Trials since the last improvement, those that failed included.
    pub fn trials_since_improvement(&self) -> usize {
        self.history.len().saturating_sub(self.incumbent.trial + 1)
    }

    /// Where the study is stuck: how to get off.
    pub fn advice(&self) -> Option<Advice> {
        let beyond = self.trials_since_improvement().checked_sub(PLATEAU)?;
        Some(match beyond / TRIALS_PER_ADVICE % 3 {
            0 => Advice::CombineNearMisses,
            1 => Advice::RevisitWithinNoise,
            _ => Advice::Restart,
        })
    }

    /// The folder of a finished trial.
    pub fn folder_of(&self, trial: usize) -> PathBuf {
        crate::record::folder_of(self.study, trial)
    }

    /// A file name with the edited file's extension, as for copies of it.
    pub(crate) fn name_of_source(&self, stem: &str) -> String {
        crate::record::name_of_source(self.edited, stem)
    }

    /// The history as Markdown: kept changes with their diffs, discarded and failed ideas a line
    /// each, and the noise to compare them with. Bounded, however long the night was.
    pub fn history_text(&self) -> String {
        history::markdown(self)
    }

    /// Fills [`folder`](Self::folder) for somebody who works with files: `program.md`,
    /// `HISTORY.md`, `results.tsv`, `reference/` with what the source may call, and on a plateau
    /// the sources of earlier kept trials in `kept/`.
    pub fn lay_out(&self) -> io::Result<()> {
        let write = |name: &str, text: &str| {
            let path = self.folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(self.folder))?;
            fs::write(path, text)
        };
        write("program.md", self.program)?;
        write("HISTORY.md", &self.history_text())?;
        let rows = self.history.iter().map(crate::record::results_row);
        let table: String =
            [crate::record::RESULTS_HEADER.to_owned()].into_iter().chain(rows).collect();
        write("results.tsv", &table)?;
        for (name, text) in self.references {
            write(&format!("reference/{name}"), text)?;
        }
        if self.advice().is_some() {
            for trial in self.earlier_kept() {
                let name = self.name_of_source("source");
                let source = fs::read_to_string(self.folder_of(trial.trial).join(name));
                if let Ok(source) = source {
                    let number = format!("{:04}", trial.trial);
                    write(&format!("kept/{}", self.name_of_source(&number)), &source)?;
                }
            }
        }
        Ok(())
    }

    /// Kept trials before the incumbent, the latest first: where one can start again from.
    pub(super) fn earlier_kept(&self) -> impl Iterator<Item = &'a Trial> {
        let incumbent = self.incumbent.trial;
        let kept = self.history.iter().rev();
        kept.filter(move |trial| trial.is_kept() && trial.trial != incumbent).take(5)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::record::{Status, made_up::trial};

    /// A study of these trials, for tests of proposers.
    pub(crate) fn brief<'a>(
        history: &'a [Trial],
        folder: &'a Path,
        stop: &'a StopHandle,
    ) -> Brief<'a> {
        let incumbent = history.iter().rev().find(|trial| trial.is_kept());
        Brief {
            trial: history.len(),
            proposer: "",
            seed: 0,
            incumbent: incumbent.unwrap_or(&history[0]),
            source: "fn main() {}\n",
            edited: "src/train.rs",
            program: "Lower it.",
            references: &[],
            history,
            running: None,
            noise: None,
            study: folder,
            folder,
            stop,
        }
    }

    fn night(statuses: &[Status]) -> Vec<Trial> {
        let trials = statuses.iter().enumerate();
        trials.map(|(n, &status)| trial(n, status, Some(1.0), "an idea")).collect()
    }

    #[test]
    fn advice_comes_after_a_plateau_and_changes() {
        let stop = StopHandle::new();
        let mut statuses = vec![Status::Keep];
        let mut seen = Vec::new();
        for _ in 0..20 {
            let history = night(&statuses);
            seen.push(brief(&history, Path::new(""), &stop).advice());
            statuses.push(Status::Discard);
        }
        assert!(seen[..PLATEAU].iter().all(Option::is_none), "{seen:?}");
        assert_eq!(seen[PLATEAU], Some(Advice::CombineNearMisses));
        assert_eq!(seen[PLATEAU + TRIALS_PER_ADVICE], Some(Advice::RevisitWithinNoise));
        assert_eq!(seen[PLATEAU + 2 * TRIALS_PER_ADVICE], Some(Advice::Restart));
        assert_eq!(seen[PLATEAU + 3 * TRIALS_PER_ADVICE], Some(Advice::CombineNearMisses));
        statuses.push(Status::Keep);
        assert_eq!(brief(&night(&statuses), Path::new(""), &stop).advice(), None);
    }

    #[test]
    fn the_folder_holds_what_an_agent_needs() {
        let folder = tempfile::tempdir().unwrap();
        let stop = StopHandle::new();
        let history = night(&[Status::Keep, Status::Discard]);
        let references = [("kernels.md".to_owned(), "# kernels".to_owned())];
        let brief = Brief { references: &references, ..brief(&history, folder.path(), &stop) };
        brief.lay_out().unwrap();
        for (name, text) in [
            ("program.md", "Lower it."),
            ("HISTORY.md", "an idea"),
            ("results.tsv", "discard\tan idea"),
            ("reference/kernels.md", "# kernels"),
        ] {
            let found = fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(found.contains(text), "{name}: {found}");
        }
    }
}
