//! How long a trial trains: a wall-clock time, or an exact number of steps.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// What a trial may spend on training.
///
/// Written as `5m`, `90s`, `1h30m`, `500ms` or `200steps`; spaces do no harm, as in `5 min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Budget {
    /// Wall-clock time from the first moment that the trainer can ask for a batch.
    WallClock(Duration),
    /// This many batches: exact, the same on every machine, for tests and benches.
    Steps(u64),
}

const LONGEST: Duration = Duration::from_hours(7 * 24);

const TOO_LONG: &str = "a week is the longest";
const NO_NUMBER: &str = "start with a number";
const NOT_BOTH: &str = "give one time, or one number of steps";

impl Budget {
    /// The wall clock's limit, if it is one.
    pub fn duration(&self) -> Option<Duration> {
        match *self {
            Self::WallClock(duration) => Some(duration),
            Self::Steps(_) => None,
        }
    }

    /// That it can be written down and read back: others than those can be made in code.
    ///
    /// # Errors
    /// No time, no steps, a fraction of a millisecond, more than a week.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |problem| Error::Budget { text: format!("{self:?}"), problem };
        self.problem().map_or(Ok(()), |problem| Err(refuse(problem)))
    }

    fn problem(&self) -> Option<&'static str> {
        match *self {
            Self::Steps(0) | Self::WallClock(Duration::ZERO) => {
                Some("it must be greater than zero")
            }
            Self::WallClock(limit) if limit > LONGEST => Some(TOO_LONG),
            Self::WallClock(limit) if limit.subsec_nanos() % 1_000_000 != 0 => {
                Some("it must be a whole number of milliseconds")
            }
            _ => None,
        }
    }

    /// The share that is spent after so much time and so many batches, from 0 to 1.
    pub(crate) fn progress(&self, since: Duration, steps: u64) -> f64 {
        match *self {
            Self::WallClock(limit) => (since.as_secs_f64() / limit.as_secs_f64()).min(1.0),
            Self::Steps(limit) => (steps as f64 / limit as f64).min(1.0),
        }
    }
}

impl Default for Budget {
    /// Five minutes, as in autoresearch.
    fn default() -> Self {
        Self::WallClock(Duration::from_mins(5))
    }
}

impl FromStr for Budget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |problem| Error::Budget { text: text.to_owned(), problem };
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(refuse(NO_NUMBER));
        }
        let (mut steps, mut millis) = (None, None::<u64>);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, behind) = rest.split_at(digits);
            let behind = behind.trim_start();
            let letters = behind.find(|c: char| !c.is_alphabetic()).unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(letters);
            rest = behind.trim_start();
            if number.is_empty() {
                return Err(refuse(NO_NUMBER));
            }
            let number: u64 = number.parse().map_err(|_| refuse(TOO_LONG))?;
            let millis_each = match unit {
                "steps" | "step" if steps.or(millis).is_some() => return Err(refuse(NOT_BOTH)),
                "steps" | "step" => {
                    steps = Some(number);
                    continue;
                }
                "ms" => 1,
                "s" | "sec" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "" => return Err(refuse("add a unit")),
                _ => return Err(refuse("the units are ms, s, m, h and steps")),
            };
            let more = number.checked_mul(millis_each);
            let sum = more.and_then(|more| millis.unwrap_or(0).checked_add(more));
            millis = Some(sum.ok_or_else(|| refuse(TOO_LONG))?);
        }
        let budget = match (steps, millis) {
            (Some(steps), None) => Self::Steps(steps),
            (None, Some(millis)) => Self::WallClock(Duration::from_millis(millis)),
            _ => return Err(refuse(NOT_BOTH)),
        };
        budget.problem().map_or(Ok(budget), |problem| Err(refuse(problem)))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Steps(steps) => write!(f, "{steps}steps"),
            Self::WallClock(duration) => match duration.as_millis() {
                millis if millis % 60_000 == 0 => write!(f, "{}m", millis / 60_000),
                millis if millis % 1_000 == 0 => write!(f, "{}s", millis / 1_000),
                millis => write!(f, "{millis}ms"),
            },
        }
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

impl TryFrom<String> for Budget {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        for budget in [
            Budget::WallClock(Duration::from_micros(300)),
            Budget::WallClock(Duration::from_micros(1_500)),
            Budget::WallClock(Duration::from_hours(8 * 24)),
            Budget::WallClock(Duration::ZERO),
            Budget::Steps(0),
        ] {
            assert!(budget.check().is_err(), "{budget:?}");
        }
        for budget in [Budget::default(), Budget::Steps(1), Budget::WallClock(LONGEST)] {
            budget.check().unwrap();
            assert_eq!(budget.to_string().parse::<Budget>().unwrap(), budget);
        }
    }

    #[test]
    fn budgets_are_read_and_written_alike() {
        for text in ["5m", "90s", "500ms", "200steps", "1m"] {
            let budget: Budget = text.parse().unwrap();
            assert_eq!(budget.to_string(), text);
        }
        for (text, same) in [
            ("60s", "1m"),
            ("1h30m", "90m"),
            ("2h", "120m"),
            ("5 min", "5m"),
            (" 1 h 30 s ", "3630s"),
            ("200 steps", "200steps"),
        ] {
            let (budget, other): (Budget, Budget) = (text.parse().unwrap(), same.parse().unwrap());
            assert_eq!(budget, other, "{text}");
        }
    }

    #[test]
    fn an_empty_unbounded_or_unitless_budget_is_refused() {
        for (text, said) in [
            ("", NO_NUMBER),
            ("0s", "greater than zero"),
            ("0steps", "greater than zero"),
            ("5", "add a unit"),
            ("1h30", "add a unit"),
            ("five minutes", NO_NUMBER),
            ("-3s", NO_NUMBER),
            ("5 parsecs", "the units are"),
            ("5m 20steps", NOT_BOTH),
            ("20steps 5m", NOT_BOTH),
            ("20steps 20steps", NOT_BOTH),
            ("99999999999999999h", TOO_LONG),
            ("999999999999999999999s", TOO_LONG),
            ("200h", TOO_LONG),
        ] {
            let error = text.parse::<Budget>().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let error = "5".parse::<Budget>().unwrap_err().to_string();
        assert_eq!(error, "invalid budget \"5\": add a unit (examples: 90s, 5m, 1h30m, 200steps)");
    }
}
