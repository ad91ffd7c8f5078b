//! How long a trial trains: a wall-clock time, or an exact number of steps.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// What a trial may spend on training.
///
/// Written as `5m`, `90s`, `1h`, `500ms` or `200steps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Budget {
    /// Wall-clock time from the first moment that the trainer can ask for a batch.
    WallClock(Duration),
    /// This many batches: exact, the same on every machine, for tests and benches.
    Steps(u64),
}

const NO_TIME: &str = "nothing can be learned in no time";

const LONGEST: Duration = Duration::from_hours(7 * 24);

const TOO_LONG: &str = "it is longer than a week";

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
        match *self {
            Self::Steps(0) | Self::WallClock(Duration::ZERO) => Err(refuse(NO_TIME)),
            Self::WallClock(limit) if limit > LONGEST => Err(refuse(TOO_LONG)),
            Self::WallClock(limit) if limit.subsec_nanos() % 1_000_000 != 0 => {
                Err(refuse("it is no whole number of milliseconds"))
            }
            _ => Ok(()),
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
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refuse("it must start with a number"))?;
        let millis_each = match unit.trim() {
            "steps" | "step" if number > 0 => return Ok(Self::Steps(number)),
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "steps" | "step" => return Err(refuse(NO_TIME)),
            _ => return Err(refuse("its unit is none of ms, s, m, h, steps")),
        };
        if number == 0 {
            return Err(refuse(NO_TIME));
        }
        let millis = number.checked_mul(millis_each).ok_or_else(|| refuse("it is too long"))?;
        let limit = Duration::from_millis(millis);
        if limit > LONGEST { Err(refuse(TOO_LONG)) } else { Ok(Self::WallClock(limit)) }
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
        assert_eq!("60s".parse::<Budget>().unwrap(), "1m".parse().unwrap());
    }

    #[test]
    fn an_empty_unbounded_or_unitless_budget_is_refused() {
        for text in ["", "0s", "0steps", "5", "five minutes", "-3s", "99999999999999999h", "200h"] {
            assert!(text.parse::<Budget>().is_err(), "{text:?} was taken");
        }
    }
}
