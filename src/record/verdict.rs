//! What is recorded of the judge: its rule, and how far it believed a measurement.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// By which rule a candidate is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JudgeRule {
    /// Keeps what can be expected to be better, given all measurements so far and what is known of
    /// their noise. The default.
    #[default]
    Posterior,
    /// autoresearch's: keeps what measured better, luck included.
    Greedy,
    /// Measures what looks better up to twice again, under seeds that it shares with the incumbent,
    /// and keeps what is better beyond the noise.
    Significant,
}

impl fmt::Display for JudgeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Posterior => "posterior",
            Self::Greedy => "greedy",
            Self::Significant => "significant",
        })
    }
}

impl FromStr for JudgeRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "posterior" => Ok(Self::Posterior),
            "greedy" => Ok(Self::Greedy),
            "significant" => Ok(Self::Significant),
            _ => Err(Error::JudgeRule { text: text.to_owned() }),
        }
    }
}

/// How far a measurement can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The probability that the candidate is truly better than the incumbent.
    pub improves: f64,
    /// By how much it can be expected to be better, in the unit of the score.
    pub expected_gain: f64,
    /// The standard deviation of a measurement under one seed, as far as was known.
    pub noise: f64,
}
