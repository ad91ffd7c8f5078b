//! What the race foresaw of a trial.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a candidate's loss so far says about how it will come in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The share of the budget that was spent.
    pub progress: f64,
    /// The kept trial that it has the best chance beside.
    pub rival: usize,
    /// By how much its loss was above the rival's at that share, in nats a token.
    pub behind: f64,
    /// The cost that can be expected of it.
    pub cost: f64,
    /// The probability that it would be kept.
    pub win_probability: f64,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { progress, rival, behind, win_probability, .. } = self;
        write!(
            f,
            "at {:.0} % of the budget its loss was {behind:.4} above trial {rival}'s; a win had a \
             probability of {:.2} %",
            100.0 * progress,
            100.0 * win_probability,
        )
    }
}
