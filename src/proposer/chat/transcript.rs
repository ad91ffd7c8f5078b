//! The transcript: what was said to the model and by it, for the human, in `propose.log`.

use super::key::Key;
use crate::text::head;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

/// Where to write down what is said about one trial.
#[derive(Debug)]
pub(super) struct Transcript {
    path: PathBuf,
    key: Option<Key>,
}

/// Nothing is added to a longer transcript.
const LONGEST: u64 = 4 << 20;

/// The longest message that stands in it whole.
const LONGEST_MESSAGE: usize = 512 << 10;

impl Transcript {
    pub(super) fn new(folder: PathBuf, key: Option<Key>) -> Self {
        Self { path: folder.join("propose.log"), key }
    }

    /// Adds something under a heading. Where that fails the trial goes on: a full disk is found
    /// out by those who must write.
    pub(super) fn add(&self, heading: &str, text: &str) {
        let _ = self.try_to_add(heading, text);
    }

    fn try_to_add(&self, heading: &str, text: &str) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        if file.metadata()?.len() > LONGEST {
            return Ok(());
        }
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text));
        let text = head(&text, LONGEST_MESSAGE);
        // It is read in a terminal, and a model may have written it.
        let text: String =
            text.chars().filter(|&c| c == '\n' || c == '\t' || !c.is_control()).collect();
        file.write_all(format!("===== {heading} =====\n{}\n\n", text.trim_end()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_grows_up_to_its_limit_and_shows_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::new("sk-0123456789abcdef");
        let transcript = Transcript::new(folder.path().join("trials/0001"), key);
        transcript.add("model", "my key is sk-0123456789abcdef\u{1b}[2J");
        let path = folder.path().join("trials/0001/propose.log");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "===== model =====\nmy key is [key][2J\n\n");
        let long = "long ".repeat(200_000);
        for _ in 0..20 {
            transcript.add("model", &long);
        }
        let size = fs::metadata(&path).unwrap().len();
        assert!(size < LONGEST + (1 << 20), "{size}");
    }
}
