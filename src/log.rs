//! What a program prints, kept in a file of bounded size.

use crate::error::{Error, Result};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

/// The output of a program: its beginning and its end, whatever lies between.
pub(crate) struct Log {
    file: File,
}

impl Log {
    /// Kept of the beginning, and again of the end.
    const KEPT: u64 = 512 << 10;

    /// Opens the file, to go on behind what it holds.
    pub fn append(path: &Path) -> Result<Self> {
        let open = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: open.map_err(Error::io("write", path))? })
    }

    /// Copies until the pipe closes. The pipe is emptied even when the disk is full, so that a
    /// program never blocks on its own output.
    pub fn copy(mut self, mut from: impl Read) {
        let mut chunk = vec![0; 64 << 10];
        let mut written = 0u64;
        let mut tail = std::collections::VecDeque::new();
        let mut dropped = 0u64;
        loop {
            let length = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let head = length.min(Self::KEPT.saturating_sub(written) as usize);
            let _ = self.file.write_all(&chunk[..head]);
            written += head as u64;
            tail.extend(&chunk[head..length]);
            let excess = tail.len().saturating_sub(Self::KEPT as usize);
            dropped += excess as u64;
            tail.drain(..excess);
        }
        if dropped > 0 {
            let _ = writeln!(self.file, "\n[overnight: {dropped} bytes of output left out]");
        }
        let (front, back) = tail.as_slices();
        let _ = self.file.write_all(front).and_then(|()| self.file.write_all(back));
    }
}
