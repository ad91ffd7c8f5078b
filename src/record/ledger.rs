//! The append-only record of a study, `trials.jsonl`, and its readable twin, `results.tsv`.

use super::{ASKED, OUTCOME, RESULTS_HEADER, folder_of, results_row};
use crate::{
    error::{Error, Result},
    record::Trial,
};
use serde_json::error::Category;
use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A study's finished trials: in memory, and durably on disk.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    results: PathBuf,
    trials: Vec<Trial>,
    /// As proposers are told of them.
    told: Arc<Vec<Trial>>,
    /// The number of the last trial that was kept.
    incumbent: Option<usize>,
    /// How much of the file is whole lines.
    length: u64,
}

impl Ledger {
    /// Opens the ledger in `folder`, or begins one.
    ///
    /// A last line that was torn by a crash or a full disk is cut off: that trial was never
    /// recorded. One that lacks nothing but its end is given that. `results.tsv` is written anew from the ledger.
    ///
    /// # Errors
    /// A damaged line that is not the last: nothing is thrown away then.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("trials.jsonl");
        let open = OpenOptions::new().create(true).read(true).append(true).open(&path);
        let mut file = open.map_err(Error::io("open", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        let (trials, length) = read_lines(&bytes, &path)?;
        check_whole(folder, &path, &trials)?;
        if length < bytes.len() as u64 {
            file.set_len(length).map_err(Error::io("repair", &path))?;
            file.sync_all().map_err(Error::io("repair", &path))?;
        }
        let mut length = length;
        if length > 0 && bytes[length as usize - 1] != b'\n' {
            let ended = file.write_all(b"\n").and_then(|()| file.sync_all());
            ended.map_err(Error::io("repair", &path))?;
            length += 1;
        }
        // The name of a new file is durable only once its folder is.
        let directory = File::open(folder).map_err(Error::io("open", folder))?;
        directory.sync_all().map_err(Error::io("write", folder))?;
        let results = folder.join("results.tsv");
        let incumbent = trials.iter().rposition(Trial::is_kept);
        let told = Arc::new(trials.iter().map(Trial::for_proposers).collect());
        let ledger = Self { path, file, results, trials, told, incumbent, length };
        ledger.rewrite_results()?;
        Ok(ledger)
    }

    /// Reads the trials of a study in `folder`, changing nothing: also while it runs.
    pub fn read(folder: &Path) -> Result<Vec<Trial>> {
        let path = folder.join("trials.jsonl");
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        Ok(read_lines(&bytes, &path)?.0)
    }

    /// Every finished trial, oldest first.
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// The trial of this number. Trials stand in the order in which they came to their end.
    pub fn trial(&self, number: usize) -> Option<&Trial> {
        let is_it = |trial: &&Trial| trial.trial == number;
        // Nearly always they are in their numbers' order, too.
        let expected = self.trials.get(number).filter(is_it);
        expected.or_else(|| self.trials.iter().find(is_it))
    }

    /// Every finished trial, as proposers are told of them now, for whoever reads them while more are appended.
    pub(crate) fn told(&self) -> Arc<Vec<Trial>> {
        Arc::clone(&self.told)
    }

    /// The best trial kept so far.
    pub fn incumbent(&self) -> Option<&Trial> {
        self.trials.get(self.incumbent?)
    }

    /// Records a finished trial, durably: when this returns, a power cut cannot take it back.
    ///
    /// # Errors
    /// The disk is full, say. What was recorded before is whole then, and so is the file.
    pub fn append(&mut self, trial: Trial) -> Result<()> {
        let mut line = serde_json::to_vec(&trial).map_err(|error| Error::Io {
            action: "write",
            path: self.path.clone(),
            source: error.into(),
        })?;
        line.push(b'\n');
        // One write, then fsync before anything else happens: the next trial is proposed from what
        // stands here.
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            let _ = self.file.set_len(self.length);
            return Err(Error::Io { action: "append to", path: self.path.clone(), source });
        }
        self.length += line.len() as u64;
        let row = results_row(&trial);
        if trial.is_kept() {
            self.incumbent = Some(self.trials.len());
        }
        // Copied only where somebody still holds a snapshot: a proposer that thinks, for minutes.
        Arc::make_mut(&mut self.told).push(trial.for_proposers());
        self.trials.push(trial);
        let open = OpenOptions::new().append(true).open(&self.results);
        open.and_then(|mut file| file.write_all(row.as_bytes()))
            .map_err(Error::io("append to", &self.results))
    }

    fn rewrite_results(&self) -> Result<()> {
        let rows = self.trials.iter().map(results_row);
        let text: String = std::iter::once(RESULTS_HEADER.to_owned()).chain(rows).collect();
        fs::write(&self.results, text).map_err(Error::io("write", &self.results))
    }
}

/// That no line is gone. A number may be missing whose trial is still open; one that came to its end is not.
fn check_whole(folder: &Path, path: &Path, trials: &[Trial]) -> Result<()> {
    let known: HashSet<usize> = trials.iter().map(|trial| trial.trial).collect();
    let last = known.iter().max().copied().unwrap_or_default();
    for number in (0..last).filter(|number| !known.contains(number)) {
        let trial = folder_of(folder, number);
        if trial.join(OUTCOME).is_file() && !trial.join(ASKED).is_file() {
            let problem = format!("the line of trial {number} is missing, which came to its end");
            return Err(Error::Ledger { path: path.to_owned(), line: number + 1, problem });
        }
    }
    Ok(())
}

/// The trials, and the length of the lines that hold them.
fn read_lines(bytes: &[u8], path: &Path) -> Result<(Vec<Trial>, u64)> {
    let mut trials = Vec::new();
    let mut known = HashSet::new();
    let mut length = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let is_last = length + line.len() == bytes.len();
        match serde_json::from_slice::<Trial>(line) {
            // Of the last line nothing but its end may be missing: then all of it is there.
            // Several may be open at once, and end in another order than they began.
            Ok(trial) if known.insert(trial.trial) => {
                trials.push(trial);
                length += line.len();
            }
            // A line without its end was being written when the power went.
            _ if is_last && !line.ends_with(b"\n") => break,
            // So was one that ends too early but in a page that reached the disk; zeros are what
            // some file systems leave of it.
            Err(error) if is_last && error.classify() != Category::Data => break,
            Ok(trial) => {
                let problem = format!("trial {} is there already", trial.trial);
                return Err(Error::Ledger {
                    path: path.to_owned(),
                    line: trials.len() + 1,
                    problem,
                });
            }
            Err(error) => {
                let (line, problem) = (trials.len() + 1, error.to_string());
                return Err(Error::Ledger { path: path.to_owned(), line, problem });
            }
        }
    }
    Ok((trials, length as u64))
}
