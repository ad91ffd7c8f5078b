//! From measurements to a decision: pure.

use crate::Trial;

/// What the judge says of a measured trial.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub keep: bool,
    /// For the ledger.
    pub reason: String,
}

/// autoresearch's rule: keep what costs less than the incumbent. Of any objective, lower costs are
/// better.
pub(crate) fn greedy(cost: f64, incumbent: Option<&Trial>) -> Decision {
    let Some(best) = incumbent.and_then(Trial::cost) else {
        return Decision { keep: true, reason: "the baseline".to_owned() };
    };
    let change = cost - best;
    let worse = if change > 0.0 { "worse" } else { "better" };
    let reason = if change == 0.0 {
        "no change".to_owned()
    } else {
        format!("{worse} by {:.6}", change.abs())
    };
    Decision { keep: change < 0.0, reason }
}
