//! A trial's folder, and what its source is called there.

use std::path::{Path, PathBuf};

/// Source, checkpoint and logs of a trial of the study in this folder.
pub(crate) fn folder_of(study: &Path, trial: usize) -> PathBuf {
    study.join("trials").join(format!("{trial:04}"))
}

/// A file name with the extension of the edited file.
pub(crate) fn name_of_source(edited: &str, stem: &str) -> String {
    match Path::new(edited).extension() {
        Some(extension) => format!("{stem}.{}", extension.to_string_lossy()),
        None => stem.to_owned(),
    }
}

/// A trained model's weights, in a trial's folder.
pub(crate) const CHECKPOINT: &str = "model.safetensors";

/// A trial's library, in its folder.
pub(crate) fn library_name() -> String {
    format!("trainer{}", std::env::consts::DLL_SUFFIX)
}

/// What a trial that was asked for is, until it is told.
pub(crate) const ASKED: &str = "asked.json";

/// Its line of the ledger, readable.
pub(crate) const OUTCOME: &str = "outcome.json";
