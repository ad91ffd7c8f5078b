//! Who proposes, as it is written on a command line.

use super::{Proposer, Replay, Tuner};
use crate::{Error, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A proposer that we ship, by name: `tuner` or `replay:DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposerSpec {
    /// The built-in [`Tuner`].
    Tuner,
    /// [`Replay`] of the files of a directory.
    Replay(PathBuf),
}

impl ProposerSpec {
    /// Makes the proposer, for a study with this seed.
    ///
    /// # Errors
    /// There is nothing to replay.
    pub fn build(&self, seed: u64) -> Result<Box<dyn Proposer>> {
        match self {
            Self::Tuner => Ok(Box::new(Tuner::new(seed))),
            Self::Replay(dir) => Ok(Box::new(Replay::open(dir)?)),
        }
    }
}

impl FromStr for ProposerSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |problem: &str| {
            Err(Error::ProposerSpec { text: text.to_owned(), problem: problem.to_owned() })
        };
        match text.split_once(':') {
            None if text == "tuner" => Ok(Self::Tuner),
            Some(("replay", dir)) if Path::new(dir).is_dir() => Ok(Self::Replay(dir.into())),
            Some(("replay", _)) => refuse("there is no such folder"),
            Some(("command", _)) => refuse("coding agents are not supported yet"),
            Some(("chat", _)) => refuse("language models are not supported yet"),
            _ => refuse("there is no such proposer"),
        }
    }
}

impl fmt::Display for ProposerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tuner => f.write_str("tuner"),
            Self::Replay(dir) => write!(f, "replay:{}", dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposers_are_read_and_written_alike() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["tuner".to_owned(), format!("replay:{}", folder.path().display())] {
            assert_eq!(text.parse::<ProposerSpec>().unwrap().to_string(), text);
        }
        assert_eq!(ProposerSpec::Tuner.build(0).unwrap().name(), "tuner");
        // A folder without files is found out before the night, too.
        assert!(ProposerSpec::Replay(folder.path().to_owned()).build(0).is_err());
    }

    #[test]
    fn what_is_not_supported_says_so_and_what_is() {
        for (text, complaint) in [
            ("command:claude -p", "not supported yet"),
            ("chat:a-model", "not supported yet"),
            ("replay:/nowhere/at/all", "no such folder"),
            ("replay", "no such proposer"),
            ("Tuner", "no such proposer"),
            ("", "no such proposer"),
        ] {
            let error = text.parse::<ProposerSpec>().unwrap_err().to_string();
            assert!(error.contains(complaint) && error.contains("tuner, replay:DIR"), "{error}");
        }
    }
}
