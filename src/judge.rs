//! From measurements to a decision: pure.

use crate::Trial;

/// What the judge says of a measured trial.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub keep: bool,
    /// For the ledger.
    pub reason: String,
}

/// autoresearch's rule: keep what scores lower than the incumbent.
pub(crate) fn greedy(val_bpb: f64, incumbent: Option<&Trial>) -> Decision {
    let Some(best) = incumbent.and_then(|trial| trial.measurement.val_bpb) else {
        return Decision { keep: true, reason: "the baseline".to_owned() };
    };
    let change = val_bpb - best;
    Decision { keep: change < 0.0, reason: format!("{change:+.6} bits per byte") }
}
