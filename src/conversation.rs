//! The parent's end of a worker's socket: messages in and out, none of which is waited for without end.

use crate::worker::protocol::{Answer, read_short_frame};
use std::{
    io::{self, ErrorKind, Read, Write},
    time::Duration,
};

/// Workers run on Unix only so far; elsewhere this has to compile and no more.
#[cfg(unix)]
pub(crate) type Socket = std::os::unix::net::UnixStream;
#[cfg(not(unix))]
pub(crate) type Socket = std::net::TcpStream;

/// A worker's socket, and what has arrived of its next message.
pub(crate) struct Conversation {
    socket: Socket,
    received: Vec<u8>,
    /// The most bytes of an answer to what was asked last.
    most: usize,
}

/// What came of listening for a while.
pub(crate) enum Heard {
    Answer(Answer),
    /// No whole message yet.
    Silence,
    /// The other end is closed.
    End,
}

/// No answer that is not numbers has more bytes.
const SHORT: usize = 256 << 10;

/// Bytes taken from the socket at a time.
const CHUNK: usize = 64 << 10;

impl Conversation {
    /// Writing waits for `patience` at most, each time.
    pub(crate) fn new(socket: Socket, patience: Duration) -> io::Result<Self> {
        socket.set_write_timeout(Some(patience))?;
        Ok(Self { socket, received: Vec::new(), most: SHORT })
    }

    /// Expects so many numbers for an answer. What is not numbers is short: read, a message can be many times as
    /// long as it was in the socket.
    pub(crate) fn expect(&mut self, numbers: usize) {
        self.most = SHORT.max(4 * numbers + 64);
    }

    /// Writes a part of `bytes`; how much of it. 0: not now.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.write(bytes) {
            Err(error) if is_silence(&error) => Ok(0),
            written => written,
        }
    }

    /// Listens for `patience` at most.
    ///
    /// # Errors
    /// What arrived is no answer.
    pub(crate) fn hear(&mut self, patience: Duration) -> io::Result<Heard> {
        if let Some(answer) = self.whole()? {
            return Ok(Heard::Answer(answer));
        }
        // No time at all would mean to wait for ever.
        self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let before = self.received.len();
        self.received.resize(before + CHUNK, 0);
        let read = self.socket.read(&mut self.received[before..]);
        self.received.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Ok(Heard::End),
            Ok(_) => Ok(self.whole()?.map_or(Heard::Silence, Heard::Answer)),
            Err(error) if is_silence(&error) => Ok(Heard::Silence),
            Err(_) => Ok(Heard::End),
        }
    }

    /// The next message, if it has arrived.
    fn whole(&mut self) -> io::Result<Option<Answer>> {
        let mut rest = self.received.as_slice();
        let answer = read_short_frame(&mut rest, self.most)?;
        if answer.is_some() {
            let length = self.received.len() - rest.len();
            self.received.drain(..length);
        }
        Ok(answer)
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
