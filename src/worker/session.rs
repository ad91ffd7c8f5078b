//! The session of a running trainer: batches while there are any, progress to whoever listens.

use super::protocol::{Progress, check_shape};
use crate::{
    data::Loader,
    error::Result,
    record::{Budget, part},
};
use abi_stable::std_types::{RErr, ROk, RResult, RSliceMut, RString};
use overnight_plugin_api::raw::Host;
use std::time::{Duration, Instant};

/// How often the parent hears of progress, at most: often enough for a live view and a loss curve,
/// rarely enough to cost nothing.
const BETWEEN_REPORTS: Duration = Duration::from_millis(100);

/// Whoever has the batches: the parent, at the other end of the socket, or this very process.
pub(super) trait Supplier {
    /// Fills both slices with a batch of this shape; `false` when there is none any more.
    fn batch(
        &mut self,
        shape: (usize, usize),
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<bool>;

    /// Hears of progress, now and then.
    fn hear(&mut self, progress: Progress);
}

/// Batches from this process, until a budget is spent by this process's clock.
pub(super) struct Local {
    pub loader: Loader,
    pub budget: Budget,
    pub begun: Instant,
    pub steps: u64,
}

impl Supplier for Local {
    fn batch(
        &mut self,
        (batch_size, seq_len): (usize, usize),
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<bool> {
        if self.budget.progress(self.begun.elapsed(), self.steps) >= 1.0 {
            return Ok(false);
        }
        self.steps += 1;
        self.loader.next(batch_size, seq_len, inputs, targets).map(|()| true)
    }

    fn hear(&mut self, _progress: Progress) {}
}

/// A session that is ready, its clock not yet started.
pub(super) struct Run {
    pub supplier: Box<dyn Supplier>,
    pub max_seq_len: usize,
}

/// A session in progress.
pub(super) struct Running {
    run: Run,
    budget: Budget,
    begun: Instant,
    last_report: Instant,
    steps: u64,
    tokens: u64,
    first_batch: Option<[u64; 2]>,
    loss: Option<f64>,
    /// How far training was at the last report, if the parent has not heard of it.
    unsent: Option<Progress>,
    /// Reports that were numbers, and their sum, of which the parent has not heard.
    reports: u64,
    sum: f64,
}

impl Run {
    /// Starts the clock.
    pub(super) fn begin(self, budget: Budget) -> Running {
        let now = Instant::now();
        Running {
            run: self,
            budget,
            begun: now,
            last_report: now,
            steps: 0,
            tokens: 0,
            first_batch: None,
            loss: None,
            unsent: None,
            reports: 0,
            sum: 0.0,
        }
    }
}

impl Running {
    pub(super) fn progress(&self) -> Progress {
        Progress {
            steps: self.steps,
            tokens: self.tokens,
            first_batch: self.first_batch,
            progress: Host::progress(self),
            seconds: self.begun.elapsed().as_secs_f64(),
            loss: self.loss,
            reports: self.reports,
            mean_loss: (self.reports > 0).then(|| self.sum / self.reports as f64),
        }
    }

    /// Sends what is left to send, and says how far training came.
    pub(super) fn finish(mut self) -> Progress {
        self.send();
        self.progress()
    }

    fn send(&mut self) {
        if let Some(progress) = self.unsent.take() {
            (self.reports, self.sum) = (0, 0.0);
            self.run.supplier.hear(progress);
        }
    }
}

impl Host for Running {
    fn check_shape(&self, batch_size: usize, seq_len: usize) -> RResult<(), RString> {
        match check_shape(batch_size, seq_len, self.run.max_seq_len) {
            Ok(()) => ROk(()),
            Err(refusal) => RErr(refusal.into()),
        }
    }

    fn next_batch(
        &mut self,
        batch_size: usize,
        seq_len: usize,
        mut inputs: RSliceMut<'_, u32>,
        mut targets: RSliceMut<'_, u32>,
    ) -> bool {
        let (inputs, targets) = (inputs.as_mut_slice(), targets.as_mut_slice());
        match self.run.supplier.batch((batch_size, seq_len), inputs, targets) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                // Nothing of an honest trainer's doing leads here, and a budget that ends early
                // would look like a result.
                eprintln!("worker: {error}");
                std::process::exit(1);
            }
        }
        self.steps += 1;
        self.tokens += inputs.len() as u64;
        self.first_batch.get_or_insert([batch_size as u64, seq_len as u64]);
        true
    }

    fn progress(&self) -> f64 {
        self.budget.progress(self.begun.elapsed(), self.steps)
    }

    fn report(&mut self, loss: f64) {
        // What belongs to one part of the budget is sent before the next part begins: so the means
        // of the parts do not depend on when something is sent.
        let open = part(Host::progress(self));
        if self.unsent.is_some_and(|unsent| part(unsent.progress) != open) {
            self.send();
        }
        self.loss = Some(loss);
        if loss.is_finite() {
            self.reports += 1;
            self.sum += loss;
        }
        self.unsent = Some(self.progress());
        if self.last_report.elapsed() >= BETWEEN_REPORTS {
            self.last_report = Instant::now();
            self.send();
        }
    }
}
