//! The next trial: which source, under which seed, and all of it on disk before anybody carries it out.

use super::{Study, derived_seed, write_durably};
use crate::{
    error::{Error, Result},
    foreign,
    laboratory::Attempt,
    proposer::{Proposal, Turn, Usage},
    record::{ASKED, folder_of},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A trial that was asked for and not told yet.
///
/// Its folder holds the source, and `asked.json` says the rest: so whoever asked may be killed, and the trial is taken
/// up again when the study is opened.
#[derive(Debug)]
pub struct Asked {
    pub(super) attempt: Attempt,
    pub(super) origin: Origin,
    pub(super) parent: Option<usize>,
    /// How often the proposal was repaired.
    pub(super) repairs: usize,
}

/// Where a trial's source comes from.
#[derive(Debug)]
pub(super) enum Origin {
    Baseline(Proposal),
    /// The incumbent once more, under another seed.
    Control {
        of: usize,
        proposal: Proposal,
    },
    Proposed(Box<Turn>),
}

/// What stands in `asked.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    trial: usize,
    parent: Option<usize>,
    seed: u64,
    proposer: String,
    description: String,
    remarks: Vec<String>,
    /// Whether somebody proposed it: baseline and control runs follow from the ledger.
    is_proposed: bool,
    propose_seconds: f64,
    propose_usd: Option<f64>,
    propose_tokens: Option<u64>,
    /// How often it was begun.
    begun: usize,
}

/// A trial that was begun this often and never came to its end may be what ends the program.
const MOST_BEGINNINGS: usize = 2;

/// The name in the ledger of whoever brings proposals from outside.
const ENQUEUED: &str = "enqueued";

impl Note {
    /// Of a trial that is worth beginning again.
    fn read(folder: &Path) -> Option<Self> {
        let note = fs::read(folder.join(ASKED)).ok()?;
        let note: Self = serde_json::from_slice(&note).ok()?;
        (note.is_proposed && note.begun < MOST_BEGINNINGS).then_some(note)
    }
}

impl Asked {
    /// The number of the trial; 0 is the baseline.
    pub fn trial(&self) -> usize {
        self.attempt.number
    }

    /// The kept trial that the source started from; `None` for the baseline.
    pub fn parent(&self) -> Option<usize> {
        self.parent
    }

    /// The seed that the trial is to be measured under.
    pub fn seed(&self) -> u64 {
        self.attempt.seed
    }

    /// The trial's own folder, for logs and all else that carrying it out leaves behind.
    pub fn folder(&self) -> &Path {
        &self.attempt.folder
    }

    /// The text of the edited file.
    pub fn source(&self) -> &str {
        &self.proposal().source
    }

    /// What is tried, in a line.
    pub fn description(&self) -> &str {
        &self.proposal().description
    }

    /// Who proposed it, by the name in the ledger.
    pub fn proposer(&self) -> &str {
        match &self.origin {
            Origin::Baseline(_) => "baseline",
            Origin::Control { .. } => "control",
            Origin::Proposed(turn) => &turn.name,
        }
    }

    /// The trial that is measured again here, under another seed, if this is a control run.
    pub fn repeats(&self) -> Option<usize> {
        match &self.origin {
            Origin::Control { of, .. } => Some(*of),
            Origin::Baseline(_) | Origin::Proposed(_) => None,
        }
    }

    pub(super) fn proposal(&self) -> &Proposal {
        match &self.origin {
            Origin::Baseline(proposal) | Origin::Control { proposal, .. } => proposal,
            Origin::Proposed(turn) => &turn.proposal,
        }
    }

    fn note(&self, begun: usize) -> Note {
        let (took, usage) = match &self.origin {
            Origin::Proposed(turn) => (turn.took, turn.usage),
            Origin::Baseline(_) | Origin::Control { .. } => Default::default(),
        };
        Note {
            trial: self.trial(),
            parent: self.parent,
            seed: self.seed(),
            proposer: self.proposer().to_owned(),
            description: self.description().to_owned(),
            remarks: self.proposal().remarks.clone(),
            is_proposed: matches!(self.origin, Origin::Proposed(_)),
            propose_seconds: took.as_secs_f64(),
            propose_usd: usage.usd,
            propose_tokens: usage.tokens,
            begun,
        }
    }
}

impl Study {
    /// The next trial: one that was begun and never came to its end, the baseline or a control run if it is time for
    /// that, what was [enqueued](Self::enqueue), or what a proposer comes up with. It is on disk when this returns.
    /// More may be asked for before it is [told](Self::tell).
    ///
    /// `None`: the study was stopped, or there is nothing left to try.
    ///
    /// # Errors
    /// What keeps the study from going on: a full disk, or no proposer that could propose. Before the baseline is told,
    /// there is nothing else to ask for.
    pub fn ask(&mut self) -> Result<Option<Asked>> {
        self.stop.wait_while_paused();
        if self.stop.is_stopped() {
            return Ok(None);
        }
        self.check_space()?;
        if let Some(asked) = self.take_up()? {
            return Ok(Some(asked));
        }
        let number = self.next_number();
        if self.ledger.incumbent().is_none() && !self.open.is_empty() {
            return Err(Error::BaselineIsOpen);
        }
        let folder = match self.proposers.is_about(number) {
            true => self.folder_of(number),
            false => self.trial_folder(number)?,
        };
        let mut attempt = Attempt::new(number, self.config.seed, folder);
        let Some(mut origin) = self.originate(number)? else {
            let _ = foreign::remove(&attempt.folder);
            return Ok(None);
        };
        match &mut origin {
            Origin::Baseline(_) => {}
            Origin::Control { .. } => attempt.seed = self.seed_of_control(),
            Origin::Proposed(turn) => attempt.built = turn.built.take(),
        }
        let parent = self.ledger.incumbent().map(|trial| trial.trial);
        let asked = Asked { attempt, origin, parent, repairs: 0 };
        self.lay(&asked, 1)?;
        self.open.insert(number);
        Ok(Some(asked))
    }

    /// Puts a proposal in line: it is tried before any proposer is asked. In the ledger its proposer is `enqueued`.
    pub fn enqueue(&mut self, proposal: Proposal) {
        self.queue.push_back(proposal);
    }

    /// The source of a trial, and what else there is to know, where it survives a power cut.
    fn lay(&self, asked: &Asked, begun: usize) -> Result<()> {
        let note = serde_json::to_vec_pretty(&asked.note(begun)).unwrap_or_default();
        write_durably(&asked.folder().join(self.name_of_source()), asked.source().as_bytes())?;
        write_durably(&asked.folder().join(ASKED), &note)
    }

    /// A trial that was begun, and is not to be told now, is taken up later.
    pub(super) fn put_off(&mut self, asked: &Asked) {
        self.open.remove(&asked.trial());
        self.begun.insert(asked.trial());
        // It was stopped, and has ended nothing. If this cannot be written, it counts as one that did.
        let _ = self.lay(asked, 0);
    }

    /// From here on a trial is in the ledger.
    pub(super) fn close(&mut self, number: usize, folder: &Path) {
        self.open.remove(&number);
        let _ = fs::remove_file(folder.join(ASKED));
    }

    pub(super) fn next_number(&self) -> usize {
        let last = self.ledger.trials().iter().map(|trial| trial.trial).max();
        let others = self.open.last().into_iter().chain(self.begun.last());
        last.into_iter().chain(others.copied()).max().map_or(0, |last| last + 1)
    }

    /// The next source; `None` where there is nothing left to try.
    fn originate(&mut self, number: usize) -> Result<Option<Origin>> {
        let Some(incumbent) = self.ledger.incumbent() else {
            let mut proposal = Proposal::new(&self.baseline, "baseline");
            if self.config.objective.allows_unsafe() {
                proposal.remarks.push("this study allows unsafe code".to_owned());
            }
            return Ok(Some(Origin::Baseline(proposal)));
        };
        if self.is_control(number) {
            let of = incumbent.trial;
            let proposal = Proposal::new(self.workspace.kept()?, format!("trial {of} again"));
            return Ok(Some(Origin::Control { of, proposal }));
        }
        if let Some(proposal) = self.queue.pop_front() {
            return Ok(Some(Origin::Proposed(Box::new(Turn::of_nobody(ENQUEUED, proposal)))));
        }
        Ok(self.propose(number)?.map(|turn| Origin::Proposed(Box::new(turn))))
    }

    /// A trial of this study that was begun before.
    fn take_up(&mut self) -> Result<Option<Asked>> {
        while let Some(number) = self.begun.pop_first() {
            let folder = self.folder_of(number);
            let source = fs::read_to_string(folder.join(self.name_of_source())).ok();
            // Without either, its folder is laid anew for whatever comes next.
            let Some((note, source)) = Note::read(&folder).zip(source) else { continue };
            self.clear_for_another_go(&folder)?;
            let mut proposal = Proposal::new(source, note.description);
            proposal.remarks = note.remarks;
            let usage = Usage { usd: note.propose_usd, tokens: note.propose_tokens };
            let took = Duration::try_from_secs_f64(note.propose_seconds).unwrap_or_default();
            let mut turn = Turn::of_nobody(&note.proposer, proposal);
            (turn.usage, turn.took) = (usage, took);
            let turn = self.proposers.roster()?.recognise(turn);
            let asked = Asked {
                attempt: Attempt::new(number, note.seed, folder),
                origin: Origin::Proposed(Box::new(turn)),
                parent: note.parent,
                repairs: 0,
            };
            self.lay(&asked, note.begun + 1)?;
            self.open.insert(number);
            return Ok(Some(asked));
        }
        Ok(None)
    }

    /// Removes what carrying a trial out left behind, and neither what was proposed nor what its proposer said: a kill
    /// may come at any moment.
    fn clear_for_another_go(&self, folder: &Path) -> Result<()> {
        let source = self.name_of_source();
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name != ASKED && *name != *source && !name.starts_with("propose.") {
                foreign::remove(&entry.path()).map_err(Error::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// A fresh folder for a trial. A trial that was cut off left its own behind.
    pub(crate) fn trial_folder(&self, number: usize) -> Result<PathBuf> {
        let folder = self.folder_of(number);
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(folder)
    }

    /// Whether nothing is proposed for this trial: it is the baseline, or the incumbent once more.
    pub(crate) fn is_control(&self, number: usize) -> bool {
        let beyond = number.saturating_sub(self.controls);
        number <= self.controls
            || self.control_every.is_some_and(|every| beyond.is_multiple_of(every.max(2)))
    }

    /// The first control runs' seeds by turns: so later ones of the incumbent have something to be
    /// compared with.
    fn seed_of_control(&self) -> u64 {
        let runs = self.ledger.trials().iter().filter(|trial| trial.repeats.is_some()).count();
        derived_seed("control", self.config.seed, 1 + runs % self.controls.max(1))
    }
}

/// The trials in a study's folder that were begun, and are not among those that came to their end.
pub(super) fn begun(dir: &Path, is_over: impl Fn(usize) -> bool) -> BTreeSet<usize> {
    let folders = fs::read_dir(dir.join("trials")).into_iter().flatten().flatten();
    folders
        .filter_map(|folder| folder.file_name().to_str()?.parse().ok())
        .filter(|&number| !is_over(number))
        .filter(|number| {
            let note = Note::read(&folder_of(dir, *number));
            note.is_some_and(|note| note.trial == *number)
        })
        .collect()
}
