//! Replay: proposes the files of a directory, one after the other.

use super::{Brief, Proposal, ProposeError, Proposer};
use crate::{
    error::{Error, Result},
    hash::sha256,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Proposes the `.rs` files of a directory in name order: to reproduce a night, to demonstrate one,
/// and for tests.
///
/// `010-wider-mlp.rs` is described as "wider mlp". A study that is reopened goes on behind the last
/// file that stands in its ledger, and after the last file it ends.
#[derive(Debug)]
pub struct Replay {
    files: Vec<Recorded>,
    /// How many files stand in the history, as far as it has been read.
    next: usize,
    /// How much of it that is.
    read: usize,
}

/// A file of the directory, as it was when the replay was opened.
#[derive(Debug)]
struct Recorded {
    description: String,
    source: String,
    sha256: String,
}

const NAME: &str = "replay";

impl Replay {
    /// Reads the directory; later changes to it have no effect.
    ///
    /// # Errors
    /// The directory is missing, has no `.rs` files, or one of them cannot be read.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let files = source_files(dir)?;
        if files.is_empty() {
            return Err(Error::ProposerSpec {
                text: format!("{NAME}:{}", dir.display()),
                problem: "the folder has no .rs files".to_owned(),
            });
        }
        let record = |path: &PathBuf| {
            let source = fs::read_to_string(path).map_err(Error::io("read", path))?;
            Ok(Recorded {
                description: description(path),
                sha256: sha256(source.as_bytes()),
                source,
            })
        };
        Ok(Self { files: files.iter().map(record).collect::<Result<_>>()?, next: 0, read: 0 })
    }
}

impl Proposer for Replay {
    fn name(&self) -> &str {
        NAME
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        // Trial numbers would miscount where another proposer had its turn before, in the same
        // study, or another directory.
        let new = brief.history.get(self.read..).unwrap_or_default();
        for trial in new.iter().filter(|trial| trial.proposer == brief.proposer) {
            let mut left = self.files[self.next..].iter();
            if let Some(skipped) = left.position(|file| file.sha256 == trial.source_sha256) {
                self.next += skipped + 1;
            }
        }
        self.read = brief.history.len();
        let file = self.files.get(self.next).ok_or(ProposeError::Exhausted)?;
        Ok(Proposal::new(&file.source, &file.description))
    }
}

/// In name order, without hidden ones.
fn source_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("open", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if is_rust && !is_hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `010-wider-mlp.rs` → `wider mlp`
fn description(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_separator = |c: char| matches!(c, '-' | '_' | ' ' | '.');
    // The 2 of "2x-mlp" belongs to the name.
    let unnumbered = stem.trim_start_matches(|c: char| c.is_ascii_digit());
    let named = if unnumbered.starts_with(is_separator) { unnumbered } else { &stem };
    let words = named.split(['-', '_', ' ']).map(|word| word.trim_start_matches('.'));
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    if words.is_empty() { stem.into_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proposer::brief::tests::brief,
        record::{Status, Trial, made_up},
        stop::StopHandle,
    };

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in files {
            fs::write(folder.path().join(name), format!("// {name}")).unwrap();
        }
        folder
    }

    fn trial(number: usize, proposer: &str, source: &str) -> Trial {
        Trial {
            proposer: proposer.to_owned(),
            source_sha256: sha256(source.as_bytes()),
            program_sha256: None,
            ..made_up::trial(number, Status::Keep, Some(1.0), "")
        }
    }

    fn next(replay: &mut Replay, history: &[Trial]) -> Result<Proposal, ProposeError> {
        let stop = StopHandle::new();
        replay.propose(&Brief { proposer: NAME, ..brief(history, Path::new(""), &stop) })
    }

    #[test]
    fn files_are_proposed_in_name_order_until_none_is_left() {
        let folder = folder(&["020-b.rs", "010-a.rs", "notes.txt", ".hidden.rs", "100-c.rs"]);
        let mut history = vec![trial(0, "baseline", "")];
        let mut replay = Replay::open(folder.path()).unwrap();
        for expected in ["a", "b", "c"] {
            let proposal = next(&mut replay, &history).unwrap();
            assert_eq!(proposal.description, expected);
            history.push(trial(history.len(), "replay", &proposal.source));
        }
        assert!(matches!(next(&mut replay, &history), Err(ProposeError::Exhausted)));
    }

    #[test]
    fn a_reopened_replay_goes_on_behind_what_it_proposed() {
        let folder = folder(&["1-a.rs", "2-b.rs", "3-c.rs"]);
        let history = [
            trial(0, "baseline", ""),
            trial(1, "tuner", "// 2-b.rs"),
            trial(2, "replay", "// of another directory"),
            trial(3, "replay", "// 1-a.rs"),
        ];
        let proposal = next(&mut Replay::open(folder.path()).unwrap(), &history).unwrap();
        assert_eq!(proposal, Proposal::new("// 2-b.rs", "b"));
    }

    #[test]
    fn file_names_become_descriptions() {
        for (name, expected) in [
            ("010-wider-mlp.rs", "wider mlp"),
            ("7_lower_lr.rs", "lower lr"),
            ("3. more--warmup.rs", "more warmup"),
            ("2x-mlp.rs", "2x mlp"),
            ("lr-0.03.rs", "lr 0.03"),
            ("042.rs", "042"),
        ] {
            assert_eq!(description(Path::new(name)), expected);
        }
    }

    #[test]
    fn a_folder_with_nothing_to_propose_is_refused() {
        let error = Replay::open(folder(&["notes.txt"]).path()).unwrap_err().to_string();
        assert!(error.contains("no .rs files"), "{error}");
        let error = Replay::open("/nowhere/at/all").unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
