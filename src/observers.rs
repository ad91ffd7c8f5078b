//! Who hears of a study's events, each on a thread of its own: one that is slow or panics neither slows nor ends the
//! loop.

use crate::event::Event;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// An observer and the receiving end of a channel into which it puts every event. The channel ends with the study.
///
/// ```
/// let (observer, events) = overnight::events();
/// let study = overnight::Study::builder("runs/tonight").observer(observer);
/// # drop(study);
/// assert_eq!(events.iter().count(), 0);
/// ```
pub fn events() -> (impl FnMut(&Event) + Send + 'static, Receiver<Event>) {
    let (sender, events) = channel();
    // One that nobody listens to any more is no reason to end.
    let observer = move |event: &Event| drop(sender.send(event.clone()));
    (observer, events)
}

/// All of a study's observers. When the last of its clones is dropped, they have heard everything, or a while has passed.
#[derive(Clone, Default)]
pub(crate) struct Observers(Arc<Threads>);

#[derive(Default)]
struct Threads {
    senders: Vec<Sender<Arc<Event>>>,
    threads: Vec<JoinHandle<()>>,
}

/// How long an observer may be busy with what it has yet to hear when everything is over.
const LAST_WORDS: Duration = Duration::from_secs(10);

impl Observers {
    /// The same, and one more.
    pub(crate) fn with(mut self, mut observer: impl FnMut(&Event) + Send + 'static) -> Self {
        let (sender, events) = channel::<Arc<Event>>();
        // If it panics, its channel is gone, and nobody else notices.
        let thread = std::thread::spawn(move || events.iter().for_each(|event| observer(&event)));
        match Arc::get_mut(&mut self.0) {
            Some(threads) => {
                threads.senders.push(sender);
                threads.threads.push(thread);
                self
            }
            // Before the study is open nobody has a clone.
            None => Self(Arc::new(Threads { senders: vec![sender], threads: vec![thread] })),
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        let event = Arc::new(event);
        for sender in &self.0.senders {
            let _ = sender.send(event.clone());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.senders.clear();
        let begun = Instant::now();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && begun.elapsed() < LAST_WORDS {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(remark: &str) -> Event {
        Event::Noted { remark: remark.to_owned() }
    }

    #[test]
    fn an_observer_that_is_slow_or_panics_holds_nobody_up() {
        let (observer, events) = events();
        let slow = |_: &Event| std::thread::sleep(Duration::from_millis(100));
        let panics = |_: &Event| panic!("an observer's own fault");
        let observers = Observers::default().with(slow).with(panics).with(observer);
        let begun = Instant::now();
        ["one", "two", "three"].into_iter().for_each(|remark| observers.tell(event(remark)));
        assert!(begun.elapsed() < Duration::from_millis(50));
        // All is heard in the end, the slow one's included.
        drop(observers);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        let heard: Vec<_> = events.iter().collect();
        assert_eq!(heard, ["one", "two", "three"].map(event));
    }
}
