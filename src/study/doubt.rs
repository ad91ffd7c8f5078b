//! Whether a source failed, or the machine did.
//!
//! A damaged library in the cache, a full disk, a limit of the shell: each looks like the fault of whatever source
//! comes next, and of all that come after it. The incumbent's source tells: that one works.

use crate::{
    error::{Error, Result},
    event::Event,
    foreign,
    halt::Halt,
    laboratory::Source,
    record::{Outcome, Status},
    study::Study,
};
use std::fs;

/// So many failures in a row are doubted, whatever they are.
const IN_A_ROW: usize = 3;

/// What came of a doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The incumbent works, so the source failed.
    Dispelled,
    /// It failed, and works again: what failed may be tried once more.
    Mended,
}

impl Study {
    /// Whether a failure could be the machine's.
    pub(crate) fn is_doubtful(&self, outcome: &Outcome, reason: &str) -> bool {
        let of_the_machine =
            ["os error", "No space left", "can't find crate", "metadata", "linking with"];
        let is_suspect = match outcome {
            Outcome::LoadFailed | Outcome::Signalled { .. } | Outcome::Exited { .. } => true,
            Outcome::BuildFailed | Outcome::Failed | Outcome::OutOfSpace => {
                of_the_machine.iter().any(|word| reason.contains(word))
                    || reason.contains("broke down")
            }
            Outcome::Measured
            | Outcome::Refused
            | Outcome::Pruned
            | Outcome::Disturbed
            | Outcome::Rejected
            | Outcome::Overran => return false,
            Outcome::Panicked | Outcome::TimedOut => false,
        };
        let failed = |trial: &&crate::record::Trial| {
            trial.status == Status::Crash && trial.outcome != Outcome::Refused
        };
        let before = self.ledger.trials().iter().rev().take_while(failed).count();
        is_suspect || (before + 1).is_multiple_of(IN_A_ROW)
    }

    /// Builds and runs the incumbent, and mends what can be mended where that fails.
    ///
    /// # Errors
    /// It fails for good: the study cannot go on here.
    pub(crate) fn doubt(&mut self) -> Result<Doubt, Halt> {
        let Some(incumbent) = self.ledger.incumbent().map(|trial| trial.trial) else {
            return Ok(Doubt::Dispelled);
        };
        // Its source may have been deleted to make room; then nothing can be told.
        let Ok(source) = self.source_of(incumbent) else { return Ok(Doubt::Dispelled) };
        let problem = match self.probe(&source)? {
            Ok(()) => return Ok(Doubt::Dispelled),
            Err(problem) => problem,
        };
        let remark = format!(
            "trial {incumbent}, which was measured before, fails as well ({problem}): all is compiled anew"
        );
        self.tell_observers(Event::Noted { remark });
        self.laboratory.start_afresh()?;
        match self.probe(&source)? {
            Ok(()) => Ok(Doubt::Mended),
            Err(problem) => Err(Error::Machine { trial: incumbent, problem }.into()),
        }
    }

    /// The inner error says how it failed.
    fn probe(&mut self, text: &str) -> Result<Result<(), String>, Halt> {
        let folder = self.dir.join("probe");
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let source = Source { text, folder: self.workspace.folder() };
        let probed = self.laboratory.probe(&source, &folder);
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        match probed {
            Ok(()) => Ok(Ok(())),
            Err(Halt::Ended { reason, .. }) => Ok(Err(reason)),
            Err(Halt::Interrupted) => Err(Halt::Interrupted),
            Err(Halt::Broken(error)) => Ok(Err(error.to_string())),
        }
    }
}
