//! Texts, split into training, validation and test documents.

use super::{DataSpec, builtin, passages::passages};
use crate::{
    Error, Result,
    hash::{sha256, sha256_of_parts},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The documents of each split, in a fixed order.
#[derive(Debug, Default)]
pub(super) struct Corpus {
    pub train: Vec<String>,
    pub validation: Vec<String>,
    pub test: Vec<String>,
}

/// Where a corpus is, and a hash that names its contents.
#[derive(Debug)]
pub(super) enum Source {
    Builtin { fingerprint: String },
    Files { place: PathBuf, files: Vec<(String, String)>, fingerprint: String },
}

/// Of texts by file, this share is for validation, and as much for the test.
const HELD_OUT: f64 = 0.05;

/// With fewer files than this, a split by file would be too coarse.
const ENOUGH_FILES: usize = 40;

/// Less text than this cannot be split: a validation of a few hundred bytes measures nothing.
const LEAST_BYTES: usize = 20_000;

impl Source {
    /// Finds the corpus, and reads it as far as naming it needs.
    pub(super) fn find(spec: &DataSpec) -> Result<Self> {
        match spec {
            DataSpec::Builtin => Ok(Self::Builtin { fingerprint: builtin::fingerprint() }),
            DataSpec::Text(place) => {
                let files = text_files(place)?;
                let parts =
                    files.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]);
                let fingerprint = sha256_of_parts(parts);
                Ok(Self::Files { place: place.clone(), files, fingerprint })
            }
        }
    }

    pub(super) fn fingerprint(&self) -> &str {
        match self {
            Self::Builtin { fingerprint } | Self::Files { fingerprint, .. } => fingerprint,
        }
    }

    /// Reads and splits the texts.
    pub(super) fn read(self, cache: &Path, progress: impl FnMut(u64, u64)) -> Result<Corpus> {
        match self {
            Self::Builtin { .. } => builtin::read(cache, progress),
            Self::Files { place, files, .. } => split(&place, &files),
        }
    }
}

impl Corpus {
    pub(super) fn add(documents: &mut Vec<String>, text: &str) {
        documents.extend(passages(text).map(str::to_owned));
    }
}

fn split(place: &Path, files: &[(String, String)]) -> Result<Corpus> {
    let bytes: usize = files.iter().map(|(_, text)| text.len()).sum();
    if bytes < LEAST_BYTES {
        return Err(Error::Data {
            what: place.display().to_string(),
            problem: format!(
                "{bytes} bytes of text are too little to split into training, validation and \
                 test; at least {LEAST_BYTES} are needed"
            ),
        });
    }
    let mut corpus = Corpus::default();
    if files.len() >= ENOUGH_FILES {
        // By file, so that no text is on both sides; by the name's hash, so that a folder's order,
        // which is often a topic's, decides nothing.
        let mut files: Vec<_> =
            files.iter().map(|(name, text)| (sha256(name.as_bytes()), text)).collect();
        files.sort();
        let held_out = (files.len() as f64 * HELD_OUT).ceil() as usize;
        for (index, (_, text)) in files.into_iter().enumerate() {
            let documents = match index / held_out {
                0 => &mut corpus.validation,
                1 => &mut corpus.test,
                _ => &mut corpus.train,
            };
            Corpus::add(documents, text);
        }
    } else {
        // One long text, say: its end is held out.
        let mut documents = Vec::new();
        for (_, text) in files {
            Corpus::add(&mut documents, text);
        }
        let held_out = (documents.len() as f64 * HELD_OUT).ceil() as usize;
        corpus.test = documents.split_off(documents.len() - held_out);
        corpus.validation = documents.split_off(documents.len() - held_out);
        corpus.train = documents;
    }
    Ok(corpus)
}

/// The text files at `place`, by their names below it, sorted.
fn text_files(place: &Path) -> Result<Vec<(String, String)>> {
    let mut paths = Vec::new();
    if place.is_dir() {
        collect(place, &mut paths)?;
        paths.sort();
    } else {
        paths.push(place.to_owned());
    }
    if paths.is_empty() {
        return Err(Error::Data {
            what: place.display().to_string(),
            problem: "there is no .txt file in this folder or below it".to_owned(),
        });
    }
    let mut files = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let text = String::from_utf8(bytes).map_err(|error| Error::Data {
            what: path.display().to_string(),
            problem: format!(
                "it is not UTF-8 text: byte {} fits no character; convert it or take it out",
                error.utf8_error().valid_up_to()
            ),
        })?;
        let name = path.strip_prefix(place).unwrap_or(&path).to_string_lossy().into_owned();
        files.push((name, text));
    }
    Ok(files)
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(files: usize) -> Vec<(String, String)> {
        (0..files)
            .map(|i| (format!("{i}.txt"), format!("text {i} ").repeat(4000 / files)))
            .collect()
    }

    #[test]
    fn many_files_are_split_by_file_and_few_by_place() {
        for count in [1, 100] {
            let files = numbered(count);
            let corpus = split(Path::new("."), &files).unwrap();
            let parts = [&corpus.train, &corpus.validation, &corpus.test];
            let bytes = parts.map(|part| part.iter().map(String::len).sum::<usize>());
            let total: usize = files.iter().map(|(_, text)| text.len()).sum();
            assert_eq!(bytes.iter().sum::<usize>(), total);
            assert!(bytes[0] > total * 8 / 10 && bytes[1] > 0 && bytes[2] > 0, "{bytes:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("fine.txt"), "text").unwrap();
        fs::write(folder.path().join("latin1.txt"), b"caf\xe9").unwrap();
        let spec = DataSpec::Text(folder.path().to_owned());
        let error = Source::find(&spec).unwrap_err().to_string();
        assert!(error.contains("latin1.txt") && error.contains("byte 3"), "{error}");
    }
}
