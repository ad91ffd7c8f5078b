//! What is closed to a worker, and by what: for people, and for the table in docs/guarantees.md.

use std::fmt;

/// Something that a trainer might try, and what stands in its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// What is tried.
    pub what: &'static str,
    /// What stops it, the strongest first.
    pub by: &'static str,
    /// Where.
    pub on: &'static str,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.by)
    }
}

const LINUX: &str = "Linux";
const UNIX: &str = "Unix";

/// All that a worker's sandbox closes where the system has every part of it.
pub const CLOSED: &[Closed] = &[
    closed("reading the study, the user's files", "mount namespace, Landlock", LINUX),
    closed("sizes, times, modes, existence of other files", "mount namespace", LINUX),
    closed("modes, owners, times, attributes, links", "seccomp, read-only mounts", LINUX),
    closed("access times as a message", "read-only mounts", LINUX),
    closed("locks, leases, hints, asking what is in memory of a file", "seccomp", LINUX),
    closed("finding out what is in memory of a file", "copies for each room, faulted in", LINUX),
    closed(
        "the system's libraries, as a place for messages",
        "not in its view, but on a card",
        LINUX,
    ),
    closed("message queues, shared memory, semaphores", "seccomp", LINUX),
    closed("writing anywhere but its scratch folder", "read-only mounts, Landlock", LINUX),
    closed("its own descriptors and memory through `/proc`", "no `/proc` in its view", LINUX),
    closed("descriptors that the caller left open", "closed before the library is loaded", LINUX),
    closed("opening its channel or its log a second time", "a socket pair; no `/proc`", LINUX),
    closed("the network, local sockets", "seccomp, Landlock", LINUX),
    closed("other programs, child processes, signals", "seccomp, Landlock", LINUX),
    closed("other processes' memory, limits, priorities, processors", "seccomp", LINUX),
    closed("capabilities, new namespaces, mounts", "given up; seccomp", LINUX),
    closed("outliving its study", "parent-death signal, which seccomp keeps", LINUX),
    closed("all of the memory", "a limit of nine tenths; no memory beside it", LINUX),
    closed("going on past its budget, ignoring signals", "SIGKILL to the process group", UNIX),
];

const fn closed(what: &'static str, by: &'static str, on: &'static str) -> Closed {
    Closed { what, by, on }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guarantees_say_what_the_code_says() {
        let text = include_str!("../../docs/guarantees.md");
        for Closed { what, by, on } in CLOSED {
            let row = format!("| {what} | {by} | {on} |");
            assert!(text.contains(&row), "docs/guarantees.md lacks the row\n{row}");
        }
    }
}
