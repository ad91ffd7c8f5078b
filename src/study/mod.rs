//! The loop itself: propose, measure, judge, record.

mod ask;
mod builder;
mod certify;
mod doubt;
mod measure;
mod optimize;
mod prefetch;
mod recall;
mod repair;
mod rerun;
mod tell;
#[cfg(feature = "trainer")]
mod training;

pub use ask::Asked;
pub use builder::StudyBuilder;
pub use certify::{Ablation, Certificate};
pub use optimize::{Ended, Until};
pub use rerun::Rerun;
pub use tell::Measured;
#[cfg(feature = "trainer")]
pub use training::cache_dir;

use crate::{
    error::{Error, Result},
    event::Event,
    hash::number_of_parts,
    judge::{Claim, Judge},
    laboratory::Laboratory,
    observers::Observers,
    proposer::{Ahead, Proposal},
    record::{Config, Ledger, Outcome, Trial},
    source::identity,
    stop::StopHandle,
    workspace::Workspace,
};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// A search for a better trainer: a folder, a git branch, a ledger.
///
/// The primary type of this crate. [`Study::builder`] describes one and opens or resumes it,
/// [`optimize`](Self::optimize) runs it.
pub struct Study {
    pub(crate) dir: PathBuf,
    /// Held as long as the study is open.
    pub(crate) _lock: File,
    pub(crate) config: Config,
    pub(crate) program: String,
    pub(crate) references: Vec<(String, String)>,
    pub(crate) proposers: Ahead,
    /// Whether proposers may think about the next trial while one trains.
    pub(crate) thinks_ahead: bool,
    /// Whether there is to be a proposal after the trial that runs.
    pub(crate) goes_on: bool,
    /// The source of trial 0.
    pub(crate) baseline: String,
    pub(crate) laboratory: Box<dyn Laboratory>,
    pub(crate) ledger: Ledger,
    pub(crate) workspace: Workspace,
    pub(crate) observers: Observers,
    pub(crate) stop: StopHandle,
    /// How often a proposal may be repaired before it counts.
    pub(crate) repairs: usize,
    /// How long to wait for a quiet machine.
    pub(crate) patience: Duration,
    /// Control runs after the baseline.
    pub(crate) controls: usize,
    /// Trials from one control run of the incumbent to the next.
    pub(crate) control_every: Option<usize>,
    /// Proposals in line before the proposers.
    pub(crate) queue: VecDeque<Proposal>,
    /// Trials that were begun and are to be taken up again.
    pub(crate) begun: BTreeSet<usize>,
    /// Trials that were asked for and not told yet.
    pub(crate) open: BTreeSet<usize>,
    /// Which trial first tried a program, by its identity.
    pub(crate) tried: HashMap<String, usize>,
    pub(crate) judge: Judge,
}

/// Less than this is too little for a trial's files.
#[cfg(unix)]
const LEAST_FREE_BYTES: u64 = 256 << 20;

impl Study {
    /// Describes a study in the folder `dir`, to be created or resumed.
    pub fn builder(dir: impl Into<PathBuf>) -> StudyBuilder {
        StudyBuilder::new(dir.into())
    }

    /// What stops the study, or has it pause, from another thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Where the study lives.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the study froze when it began.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every finished trial, oldest first.
    pub fn trials(&self) -> &[Trial] {
        self.ledger.trials()
    }

    /// The best trial kept so far.
    pub fn best_trial(&self) -> Option<&Trial> {
        self.ledger.incumbent()
    }

    /// By how much the best trial is truly better than the baseline, as far as all measurements tell;
    /// `None` before the baseline is measured.
    pub fn claim(&self) -> Option<Claim> {
        self.judge.claim()
    }

    /// Source, checkpoint and logs of a trial.
    pub fn folder_of(&self, trial: usize) -> PathBuf {
        crate::record::folder_of(&self.dir, trial)
    }

    /// The stored source of a trial.
    pub(crate) fn source_of(&self, trial: usize) -> Result<String> {
        let path = self.folder_of(trial).join(self.name_of_source());
        fs::read_to_string(&path).map_err(Error::io("read", path))
    }

    /// By how much a trial that was kept is better than the one before.
    fn gain(&self, trial: &Trial) -> Option<f64> {
        let before = self.ledger.trial(trial.parent?)?.cost()?;
        trial.cost().filter(|_| trial.is_kept()).map(|cost| before - cost)
    }

    /// Replays the ledger to the proposers, and to the study's own memory.
    pub(crate) fn remember(&mut self) -> Result<()> {
        let trials = self.ledger.trials().to_vec();
        let (dir, rule) = (self.dir.clone(), self.config.judge);
        std::thread::scope(|scope| {
            // Neither needs anything of the other, and each takes its time.
            let judge = scope.spawn(|| recall::judge(&dir, rule, &trials));
            trials.iter().try_for_each(|trial| self.remember_one(trial))?;
            self.judge = judge.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(())
        })
    }

    fn remember_one(&mut self, trial: &Trial) -> Result<()> {
        self.laboratory.remember(trial);
        let path = self.folder_of(trial.trial).join(self.name_of_source());
        match fs::read_to_string(&path) {
            Ok(source) => self.note(trial, &source, self.gain(trial)),
            // Old folders may be deleted to make room; what they held is then forgotten, but for its name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(program) = trial.program_sha256.clone() {
                    self.note_program(trial, program);
                }
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        Ok(())
    }

    fn note(&mut self, trial: &Trial, source: &str, gain: Option<f64>) {
        let known = trial.program_sha256.clone();
        let program = known.unwrap_or_else(|| identity(self.workspace.edited(), source));
        self.note_program(trial, program);
        self.proposers.observe(trial, source, gain);
    }

    /// What was not measured may be tried again.
    fn note_program(&mut self, trial: &Trial, program: String) {
        if trial.outcome != Outcome::Disturbed {
            self.tried.entry(program).or_insert(trial.trial);
        }
    }

    fn check_space(&self) -> Result<()> {
        #[cfg(unix)]
        if let Ok(space) = rustix::fs::statvfs(&self.dir) {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            if free < LEAST_FREE_BYTES {
                return Err(Error::DiskFull { folder: self.dir.clone(), free_mb: free >> 20 });
            }
        }
        Ok(())
    }

    /// What a trial's source is called in its folder.
    pub(crate) fn name_of_source(&self) -> String {
        crate::record::name_of_source(self.workspace.edited(), "source")
    }

    pub(crate) fn tell_observers(&self, event: Event) {
        self.observers.tell(event);
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, text).map_err(Error::io("write", path))
}

/// Puts a file in place as a whole, and on the disk itself.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        file.as_file().sync_data()?;
        // Readable by whoever may read the folder, as all else there.
        #[cfg(unix)]
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(file.persist(path)?)
    });
    written.map(drop).map_err(Error::io("write", path))
}

/// A seed for one purpose in one trial: independent of what was drawn before in this process.
pub(crate) fn derived_seed(purpose: &str, seed: u64, trial: usize) -> u64 {
    let (seed, trial) = (seed.to_le_bytes(), (trial as u64).to_le_bytes());
    number_of_parts([purpose.as_bytes(), &seed, &trial])
}
