//! What a study freezes when it begins: `study.json`.

use crate::{
    error::{Error, Result},
    record::{Budget, JudgeRule},
};
use serde::{Deserialize, Serialize};
use std::{fs, io::Write, path::Path};

/// All that a study's numbers depend on, beside the trials themselves. Results are comparable only
/// where every field is equal, so a study that is reopened must find the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Of this file's format and of the loop's rules.
    pub version: u32,
    /// Every seed of the study derives from it.
    pub seed: u64,
    /// The rule by which candidates are kept.
    pub judge: JudgeRule,
    /// Whether trials are stopped whose loss makes a win improbable. Absent from studies that are
    /// older than the race, which may go on either way.
    #[serde(default)]
    pub race: bool,
    /// What is measured, and how.
    #[serde(flatten)]
    pub objective: Objective,
}

/// What a study measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "objective", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Objective {
    /// A trainer's bits per byte.
    Trainer(TrainerConfig),
    /// The number that a command prints.
    Command(CommandConfig),
}

impl Objective {
    pub(crate) fn allows_unsafe(&self) -> bool {
        matches!(self, Self::Trainer(TrainerConfig { allows_unsafe: true, .. }))
    }
}

/// What a trainer's numbers depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerConfig {
    /// What each trial may spend on training.
    pub budget: Budget,
    /// The data as it was asked for.
    pub data: String,
    /// What the data came to: a hash of texts, tokenizer and split.
    pub data_fingerprint: String,
    /// Tokens of the tokenizer.
    pub vocab_size: usize,
    /// Tokens in the longest window, and in every window of the exam.
    pub max_seq_len: usize,
    /// Validation windows in the exam.
    pub exam_windows: usize,
    /// Answers compared between the two rooms.
    pub exam_comparisons: usize,
    /// Hash of the trainer's fixed files, its lock file among them.
    pub trainer_fingerprint: String,
    /// Whether the edited file may contain `unsafe`.
    #[serde(default)]
    pub allows_unsafe: bool,
    /// `rustc -vV`.
    pub toolchain: String,
    /// Threads that a trainer computes on.
    pub threads: usize,
    /// CUDA ordinal; null is the CPU.
    pub cuda_device: Option<usize>,
    /// The card's name; null is the CPU, or a card that nobody knew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// Which of these cards it was when the study began. For a reader only: another one of the same name is as good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_uuid: Option<String>,
}

/// What a command's numbers depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandConfig {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The file that is edited.
    pub edited: String,
    /// Hash of the other files.
    pub project_fingerprint: String,
    /// The name of the number that the command prints.
    pub metric: String,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// Wall-clock seconds after which a trial is killed.
    pub limit_seconds: f64,
}

impl Config {
    /// The current [`version`](Self::version).
    pub(crate) const VERSION: u32 = 2;

    /// The configuration of the study in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("study.json");
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|error| Error::io("read", path)(error.into()))
    }

    /// Writes the configuration of a new study, or compares it with the one that `folder` has.
    pub(crate) fn freeze(&self, folder: &Path) -> Result<()> {
        let path = folder.join("study.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let ledger = fs::metadata(folder.join("trials.jsonl"));
                if ledger.is_ok_and(|ledger| ledger.len() > 0) {
                    return Err(Error::NoConfiguration { folder: folder.to_owned() });
                }
                return self.write(folder, &path);
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text);
        let unreadable = |error: serde_json::Error| Error::io("read", &path)(error.into());
        let theirs = json(&text).map_err(unreadable)?;
        let ours = serde_json::to_value(self).map_err(unreadable)?;
        let differences: Vec<String> = ours
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, value)| theirs.get(name) != Some(value))
            .filter(|(name, _)| *name != "card_uuid")
            .filter(|(name, _)| *name != "race" || theirs.get(name).is_some())
            .map(|(name, value)| {
                let was = theirs.get(name).unwrap_or(&serde_json::Value::Null);
                format!("{name} was {was} and is {value}")
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::OtherConfiguration {
            folder: folder.to_owned(),
            differences: differences.join("; "),
        })
    }

    fn write(&self, folder: &Path, path: &Path) -> Result<()> {
        // By way of another name, so that no half of it is ever found.
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(Error::io("write", path))
    }
}
