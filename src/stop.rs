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
pub struct StopHandle {
    pulled: Arc<AtomicBool>,
    /// Pulls this one, too.
    above: Option<Box<Self>>,
}

impl StopHandle {
    /// A handle that has not been pulled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the study to stop.
    pub fn stop(&self) {
        self.pulled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_stopped(&self) -> bool {
        self.pulled.load(Ordering::Relaxed)
            || self.above.as_ref().is_some_and(|above| above.is_stopped())
    }

    /// For a part of the study that ends with it, or alone.
    pub(crate) fn of_a_part(&self) -> Self {
        Self { pulled: Arc::default(), above: Some(Box::new(self.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_alone_or_with_its_study() {
        let study = StopHandle::new();
        let (one, other) = (study.of_a_part(), study.of_a_part());
        one.clone().stop();
        assert!(one.is_stopped() && !other.is_stopped() && !study.is_stopped());
        study.stop();
        assert!(other.is_stopped());
    }
}
