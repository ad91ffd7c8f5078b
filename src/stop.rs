//! The way to end a study from outside: a flag that its long waits look at.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Stops the study that it was given to, from any thread or signal handler.
///
/// A trial that is still being built or trained is abandoned and will be proposed anew when the
/// study is reopened; one that has been measured is brought to its end first.
#[derive(Debug, Clone, Default)]
pub struct StopHandle(Arc<AtomicBool>);

impl StopHandle {
    /// A handle that has not been pulled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the study to stop.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
