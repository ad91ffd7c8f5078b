//! What a trial needed beside its training budget, as it is recorded.

use serde::{Deserialize, Serialize};

/// What a trial needed outside of its training budget.
///
/// All but the first is processor time of all threads of a worker, or wall-clock time where the
/// trainer computes on a card, whose time no processor tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Wall clock, from handing out the last batch to the closed checkpoint: the step in flight, and
    /// saving.
    pub closing_seconds: f64,
    /// `new`, in the worker that trained.
    pub new_seconds: f64,
    /// `load`, in the room that needed more.
    pub load_seconds: f64,
    /// All answers of the fast room.
    pub score_seconds: f64,
    /// All answers of the honest room.
    pub logits_seconds: f64,
}
