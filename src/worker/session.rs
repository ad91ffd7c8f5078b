//! The session of a running trainer: batches while the budget lasts, progress to the parent.

use super::protocol::Progress;
use crate::{Budget, data::Loader, race};
use abi_stable::std_types::{RErr, ROk, RResult, RSliceMut, RString};
use overnight_plugin_api::raw::Host;
use std::time::{Duration, Instant};

/// How often the parent hears of progress, at most: often enough for a live view and a loss curve,
/// rarely enough to cost nothing.
const BETWEEN_REPORTS: Duration = Duration::from_millis(100);

/// Hears of progress, now and then.
pub(super) type Listener = Box<dyn FnMut(Progress)>;

/// A session that is ready, its clock not yet started.
pub(super) struct Run {
    pub loader: Loader,
    pub max_seq_len: usize,
    pub listener: Listener,
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
            (self.run.listener)(progress);
        }
    }
}

impl Host for Running {
    fn check_shape(&self, batch_size: usize, seq_len: usize) -> RResult<(), RString> {
        let longest = self.run.max_seq_len;
        if batch_size == 0 {
            RErr("a batch needs at least one row".into())
        } else if seq_len == 0 || seq_len > longest {
            RErr(format!("a row has 1 to {longest} tokens in this study").into())
        } else if batch_size.saturating_mul(seq_len) > 1 << 28 {
            RErr("that is more tokens than a machine can hold".into())
        } else {
            ROk(())
        }
    }

    fn next_batch(
        &mut self,
        batch_size: usize,
        seq_len: usize,
        mut inputs: RSliceMut<'_, u32>,
        mut targets: RSliceMut<'_, u32>,
    ) -> bool {
        if Host::progress(self) >= 1.0 {
            return false;
        }
        let (inputs, targets) = (inputs.as_mut_slice(), targets.as_mut_slice());
        if let Err(error) = self.run.loader.next(batch_size, seq_len, inputs, targets) {
            // The file was whole when it was opened. Nothing of the trainer's doing leads here, and
            // a budget that ends early would look like a result.
            eprintln!("worker: {error}");
            std::process::exit(1);
        }
        self.steps += 1;
        self.tokens += inputs.len() as u64;
        self.first_batch.get_or_insert([batch_size as u64, seq_len as u64]);
        true
    }

    fn progress(&self) -> f64 {
        match self.budget {
            Budget::WallClock(limit) => {
                (self.begun.elapsed().as_secs_f64() / limit.as_secs_f64()).min(1.0)
            }
            Budget::Steps(limit) => self.steps as f64 / limit as f64,
        }
    }

    fn report(&mut self, loss: f64) {
        // What belongs to one part of the budget is sent before the next part begins: so the means
        // of the parts do not depend on when something is sent.
        let part = race::part(Host::progress(self));
        if self.unsent.is_some_and(|unsent| race::part(unsent.progress) != part) {
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
