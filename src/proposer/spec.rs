//! Who proposes, and for how much, as it is written on a command line.

#[cfg(feature = "agents")]
use super::{Agent, AgentSpec};
#[cfg(feature = "chat")]
use super::{Chat, ChatOptions};
use super::{Proposer, Replay, Tuner, Usage};
use crate::error::{Error, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A proposer that we ship, by name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ProposerSpec {
    /// `tuner`: the built-in [`Tuner`].
    Tuner,
    /// `replay:DIR`: a [`Replay`] of the files of a directory.
    Replay(PathBuf),
    /// `command:claude`, or any other command line: an [`Agent`].
    #[cfg(feature = "agents")]
    Command(AgentSpec),
    /// `chat:MODEL` or `chat:MODEL@URL`: a [`Chat`].
    #[cfg(feature = "chat")]
    Chat(ChatOptions),
}

impl ProposerSpec {
    /// Makes the proposer, for a study with this seed.
    ///
    /// # Errors
    /// There is nothing to replay, or no key for the model.
    pub fn build(&self, seed: u64) -> Result<Box<dyn Proposer>> {
        match self {
            Self::Tuner => Ok(Box::new(Tuner::new(seed))),
            Self::Replay(dir) => Ok(Box::new(Replay::open(dir)?)),
            #[cfg(feature = "agents")]
            Self::Command(spec) => Ok(Box::new(Agent::new(spec.clone()))),
            #[cfg(feature = "chat")]
            Self::Chat(options) => Ok(Box::new(Chat::new(options.clone())?)),
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
            #[cfg(feature = "agents")]
            Some(("command", command)) => Ok(Self::Command(command.parse()?)),
            #[cfg(feature = "chat")]
            Some(("chat", model)) => Ok(Self::Chat(model.parse()?)),
            _ => refuse("there is no such proposer"),
        }
    }
}

impl fmt::Display for ProposerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tuner => f.write_str("tuner"),
            Self::Replay(dir) => write!(f, "replay:{}", dir.display()),
            #[cfg(feature = "agents")]
            Self::Command(spec) => write!(f, "command:{spec}"),
            #[cfg(feature = "chat")]
            Self::Chat(options) => write!(f, "chat:{options}"),
        }
    }
}

/// What a study's proposers may use up in all: `5usd` or `2000000tokens`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allowance {
    /// Dollars.
    Usd(f64),
    /// Tokens, read and written together.
    Tokens(u64),
}

impl Allowance {
    pub(super) fn is_money(self) -> bool {
        matches!(self, Self::Usd(_))
    }

    /// Whether nothing is left of it. What nobody has counted counts as nothing.
    pub fn is_spent(self, used: Usage) -> bool {
        match self {
            Self::Usd(limit) => used.usd.unwrap_or_default() >= limit,
            Self::Tokens(limit) => used.tokens.unwrap_or_default() >= limit,
        }
    }
}

impl FromStr for Allowance {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let usd = text.strip_suffix("usd").and_then(|number| number.trim().parse().ok());
        let usd = usd.filter(|usd: &f64| usd.is_finite() && *usd > 0.0).map(Self::Usd);
        let tokens = text.strip_suffix("tokens").and_then(|number| number.trim().parse().ok());
        let tokens = tokens.filter(|&tokens| tokens > 0).map(Self::Tokens);
        usd.or(tokens).ok_or_else(|| Error::Allowance { text: text.to_owned() })
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usd(usd) => write!(f, "{usd}usd"),
            Self::Tokens(tokens) => write!(f, "{tokens}tokens"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(feature = "agents", feature = "chat"))]
    fn proposers_are_read_and_written_alike() {
        let folder = tempfile::tempdir().unwrap();
        let command = "command:mine --file {file}".to_owned();
        for text in ["tuner".to_owned(), command, format!("replay:{}", folder.path().display())] {
            assert_eq!(text.parse::<ProposerSpec>().unwrap().to_string(), text);
        }
        assert_eq!(ProposerSpec::Tuner.build(0).unwrap().name(), "tuner");
        // A folder without files is found out before the night, too.
        assert!(ProposerSpec::Replay(folder.path().to_owned()).build(0).is_err());
    }

    #[test]
    #[cfg(all(feature = "agents", feature = "chat"))]
    fn what_is_not_supported_says_so_and_what_is() {
        for (text, complaint) in [
            ("command:", "there is no command"),
            ("chat:", ""),
            ("replay:/nowhere/at/all", "no such folder"),
            ("replay", "no such proposer"),
            ("Tuner", "no such proposer"),
            ("", "no such proposer"),
        ] {
            let error = text.parse::<ProposerSpec>().unwrap_err().to_string();
            assert!(error.contains(complaint) && error.contains("tuner, replay:DIR"), "{error}");
        }
    }

    #[test]
    fn an_allowance_is_money_or_tokens() {
        for text in ["5usd", "0.25usd", "2000000tokens"] {
            assert_eq!(text.parse::<Allowance>().unwrap().to_string(), text);
        }
        for text in ["5", "usd", "-1usd", "0tokens", "NaNusd", "infusd", "1.5tokens"] {
            assert!(text.parse::<Allowance>().is_err(), "{text:?} was taken");
        }
        let used = Usage { usd: Some(1.0), tokens: None };
        assert!(Allowance::Usd(1.0).is_spent(used) && !Allowance::Usd(1.1).is_spent(used));
        assert!(!Allowance::Tokens(1).is_spent(used));
    }
}
