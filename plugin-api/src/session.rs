//! The trainer's view of its run: batches until the budget is over, and a place to report.

use crate::raw::{Host, Host_TO};
use abi_stable::{sabi_types::RMut, std_types::RSliceMut, type_level::downcasting::TD_Opaque};

/// A run in progress. It owns time: when the budget is spent there are no more batches.
pub struct Session<'a> {
    host: Host_TO<'a, RMut<'a, ()>>,
}

/// Tokens to learn from: `batch_size` rows of `seq_len` inputs, each with the token that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Shape `[batch_size, seq_len]`, row major. Every row starts with the BOS token; documents
    /// are packed without padding, each behind a BOS of its own.
    pub inputs: Vec<u32>,
    /// `targets[b, i]` is the token after `inputs[b, i]`, same shape.
    pub targets: Vec<u32>,
    pub batch_size: usize,
    pub seq_len: usize,
}

impl<'a> Session<'a> {
    /// A session over a host in the same process, for testing a trainer without the loop.
    pub fn new(host: &'a mut impl Host) -> Self {
        Self::from_raw(Host_TO::from_ptr(RMut::new(host), TD_Opaque))
    }

    pub(crate) fn from_raw(host: Host_TO<'a, RMut<'a, ()>>) -> Self {
        Self { host }
    }

    /// The next training batch, or `None` once the budget is spent.
    ///
    /// Batch and sequence shape are the trainer's choice and may change from call to call. The next
    /// batch of the same shape is packed on another thread meanwhile, so keeping one shape is
    /// fastest.
    ///
    /// # Panics
    /// If `batch_size` is 0 or `seq_len` is not between 1 and
    /// [`Setup::max_seq_len`](crate::Setup::max_seq_len).
    pub fn next_batch(&mut self, batch_size: usize, seq_len: usize) -> Option<Batch> {
        if let Err(refusal) = self.host.check_shape(batch_size, seq_len).into_result() {
            panic!("next_batch({batch_size}, {seq_len}): {refusal}");
        }
        let mut batch = Batch {
            inputs: vec![0; batch_size * seq_len],
            targets: vec![0; batch_size * seq_len],
            batch_size,
            seq_len,
        };
        let more = self.host.next_batch(
            batch_size,
            seq_len,
            RSliceMut::from_mut_slice(&mut batch.inputs),
            RSliceMut::from_mut_slice(&mut batch.targets),
        );
        more.then_some(batch)
    }

    /// How much of the budget is spent, from 0 to 1. Schedules go by this and never by a step
    /// count, so that they fit every machine.
    pub fn progress(&self) -> f64 {
        self.host.progress()
    }

    /// Reports the mean training loss of one optimiser step, in nats a token. It feeds the live
    /// view and the loss curve, and never speaks for a trial; where it makes a win improbable, the
    /// trial may be stopped.
    pub fn report(&mut self, loss: f64) {
        self.host.report(loss);
    }
}
