//! The way to end a study from outside: a flag that its long waits look at.

use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Stops the study that it was given to, or has it pause, from any thread or signal handler.
///
/// A trial that is still being built or trained is put off, and taken up again when the study goes on; one that has
/// been measured is brought to its end first.
#[derive(Debug, Clone, Default)]
pub struct StopHandle {
    pulled: Arc<AtomicBool>,
    pause: Arc<Pause>,
    /// Pulls this one, too.
    above: Option<Box<Self>>,
}

#[derive(Debug, Default)]
struct Pause {
    is_on: Mutex<bool>,
    changed: Condvar,
}

/// How often a paused study looks whether it may go on.
const TICK: Duration = Duration::from_millis(50);

impl StopHandle {
    /// A handle that has not been pulled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that the first Ctrl-C, SIGTERM or SIGHUP pulls. A second one does not wait, and ends the
    /// program with status 130.
    ///
    /// Who started the program under `nohup` had SIGHUP ignored, and that stays so.
    ///
    /// # Errors
    /// When the program handles these signals already, by this function or by another crate.
    pub fn on_interrupt() -> Result<Self> {
        let handle = Self::new();
        let pulled = handle.clone();
        let ignored = hangup_is_ignored();
        ctrlc::set_handler(move || {
            if pulled.is_stopped() {
                std::process::exit(130);
            }
            pulled.stop();
            // With the terminal gone there is nobody to tell, and that is no reason to panic.
            let _ = writeln!(io::stderr(), "\nstopping; once more to end at once");
        })
        .map_err(|error| Error::Signals(io::Error::other(error)))?;
        if ignored {
            ignore_hangup();
        }
        Ok(handle)
    }

    /// Asks the study to stop.
    pub fn stop(&self) {
        self.pulled.store(true, Ordering::Relaxed);
    }

    /// Lets the trial that is under way come to its end, and has the study begin no other until it may
    /// [go on](Self::resume).
    pub fn pause(&self) {
        *self.pause.is_on.lock() = true;
    }

    /// Ends a pause.
    pub fn resume(&self) {
        *self.pause.is_on.lock() = false;
        self.pause.changed.notify_all();
    }

    /// Whether the study is to begin no other trial for now.
    pub fn is_paused(&self) -> bool {
        *self.pause.is_on.lock() || self.above.as_ref().is_some_and(|above| above.is_paused())
    }

    pub(crate) fn wait_while_paused(&self) {
        while self.is_paused() && !self.is_stopped() {
            // Not without end: it may be a handle above this one that is stopped, or resumed.
            self.pause.changed.wait_for(&mut self.pause.is_on.lock(), TICK);
        }
    }

    /// Whether it was asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.pulled.load(Ordering::Relaxed)
            || self.above.as_ref().is_some_and(|above| above.is_stopped())
    }

    /// For a part of the study that ends with it, or alone.
    pub(crate) fn of_a_part(&self) -> Self {
        Self { pulled: Arc::default(), pause: Arc::default(), above: Some(Box::new(self.clone())) }
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no library asks or sets this")]
fn hangup_is_ignored() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: it only writes what is to be read, into a place made for it; zeros are an action, too.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no library asks or sets this")]
fn ignore_hangup() {
    // SAFETY: to ignore a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
}

#[cfg(not(target_os = "linux"))]
fn hangup_is_ignored() -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn ignore_hangup() {}

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
