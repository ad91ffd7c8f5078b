//! The parent's side of training: batches handed out, counted and timed.

use crate::{
    data::Loader,
    effort::Times,
    error::Result,
    record::Budget,
    worker::protocol::{Progress, check_shape, write_tokens},
};
use std::time::{Duration, Instant};

/// The training text of one run, and its budget: what was seen is what was handed out here.
pub(crate) struct Supply {
    loader: Loader,
    max_seq_len: usize,
    budget: Budget,
    begun: Instant,
    steps: u64,
    tokens: u64,
    /// Rows of the first batch, and tokens in each.
    first_batch: Option<[u64; 2]>,
    times: Times,
    /// The batch that was handed out last, as it goes through the socket.
    frame: Vec<u8>,
}

impl Supply {
    /// Starts the clock.
    pub(crate) fn begin(loader: Loader, max_seq_len: usize, budget: Budget) -> Self {
        Self {
            loader,
            max_seq_len,
            budget,
            begun: Instant::now(),
            steps: 0,
            tokens: 0,
            first_batch: None,
            times: Times::default(),
            frame: Vec::new(),
        }
    }

    pub(crate) fn budget(&self) -> Budget {
        self.budget
    }

    /// Since training began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The next batch as a frame for the worker, empty when the budget is spent. The inner error says
    /// why there is no such batch.
    pub(crate) fn next(
        &mut self,
        batch_size: usize,
        seq_len: usize,
    ) -> Result<Result<&[u8], String>> {
        if let Err(refusal) = check_shape(batch_size, seq_len, self.max_seq_len) {
            return Ok(Err(refusal));
        }
        let now = self.elapsed();
        if self.budget.progress(now, self.steps) >= 1.0 {
            write_tokens(&[], &mut self.frame);
            return Ok(Ok(&self.frame));
        }
        write_tokens(self.loader.next_rows(batch_size, seq_len)?, &mut self.frame);
        if self.steps > 0 {
            let step = now - self.times.last_batch;
            self.times.longest_step = self.times.longest_step.max(step);
        }
        self.steps += 1;
        self.tokens += (batch_size * seq_len) as u64;
        self.first_batch.get_or_insert([batch_size as u64, seq_len as u64]);
        self.times.last_batch = self.elapsed();
        Ok(Ok(&self.frame))
    }

    /// What a worker says of its progress, as far as that can be. A loss belongs to the moment that it
    /// was reported at, which may lie a little back; it cannot lie ahead.
    pub(crate) fn believed(&self, claimed: Progress) -> Progress {
        let elapsed = self.elapsed();
        let spent = self.budget.progress(elapsed, self.steps);
        Progress {
            steps: claimed.steps.min(self.steps),
            tokens: claimed.tokens.min(self.tokens),
            // A claim that is no number becomes what is known.
            progress: claimed.progress.max(0.0).min(spent),
            seconds: claimed.seconds.max(0.0).min(elapsed.as_secs_f64()),
            ..claimed
        }
    }

    /// What was really handed out so far.
    pub(crate) fn handed_out(&self) -> HandedOut {
        let Self { steps, tokens, first_batch, .. } = *self;
        HandedOut { steps, tokens, first_batch, elapsed: self.elapsed() }
    }

    /// When things happened, for a run whose checkpoint has just been closed.
    pub(crate) fn closed(&self) -> Times {
        Times { closed: self.elapsed(), ..self.times }
    }
}

/// How far a run has come, by the parent's own count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct HandedOut {
    /// Batches.
    pub steps: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Rows of the first one, and tokens in each.
    pub first_batch: Option<[u64; 2]>,
    /// Since training began.
    pub elapsed: Duration,
}
