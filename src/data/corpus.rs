//! Texts, split into training, validation and test documents.

use super::{DataSpec, builtin, passages::passages};
use crate::{
    error::{Error, Result},
    hash::{sha256, sha256_of_parts},
};
use std::{
    collections::HashSet,
    fmt, fs,
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
    Files { place: PathBuf, files: Vec<(String, String)>, left_out: LeftOut, fingerprint: String },
}

/// What of a folder is not read. A text that stood there twice could be in training and in the exam.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Files with a text that another one has, by another name, as a link, or the same folder mounted twice.
    copies: usize,
    /// Links that lead nowhere, and what is no plain file.
    odd: usize,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copies, odd } = self;
        match (copies, odd) {
            (copies, 0) => write!(f, "{copies} copies left out"),
            (0, odd) => write!(f, "{odd} left out that are no files"),
            (copies, odd) => write!(f, "{copies} copies and {odd} that are no files left out"),
        }
    }
}

/// Of texts by file, this share is for validation, and as much for the test.
const HELD_OUT: f64 = 0.05;

/// With fewer files than this, a split by file would be too coarse.
const ENOUGH_FILES: usize = 40;

/// Less text than this cannot be split: a validation of a few hundred bytes measures nothing.
const LEAST_BYTES: usize = 20_000;

/// Bytes of a passage from which on it is a quotation where it stands twice.
const LEAST_QUOTE: usize = 200;

impl Source {
    /// Finds the corpus, and reads it as far as naming it needs.
    pub(super) fn find(spec: &DataSpec) -> Result<Self> {
        match spec {
            DataSpec::Builtin => Ok(Self::Builtin { fingerprint: builtin::fingerprint() }),
            DataSpec::Text(place) => {
                let (files, left_out) = text_files(place)?;
                let parts =
                    files.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]);
                let fingerprint = sha256_of_parts(parts);
                Ok(Self::Files { place: place.clone(), files, left_out, fingerprint })
            }
        }
    }

    pub(super) fn fingerprint(&self) -> &str {
        match self {
            Self::Builtin { fingerprint } | Self::Files { fingerprint, .. } => fingerprint,
        }
    }

    /// What of it is not read, if anything.
    pub(super) fn left_out(&self) -> Option<LeftOut> {
        match self {
            Self::Files { left_out, .. } if *left_out != LeftOut::default() => Some(*left_out),
            _ => None,
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
    /// Takes out of training what stands in the exam's texts, word for word: near copies of a text, or what many
    /// of them quote. Short passages are everybody's.
    fn part(&mut self) {
        let long = |passage: &&String| passage.trim().len() >= LEAST_QUOTE;
        let examined = self.validation.iter().chain(&self.test).filter(long);
        let examined: HashSet<String> = examined.map(|passage| passage.trim().to_owned()).collect();
        self.train.retain(|passage| !examined.contains(passage.trim()));
        // Nor does the test ask what the validation asks.
        let asked: HashSet<&str> =
            self.validation.iter().filter(long).map(|passage| passage.trim()).collect();
        self.test.retain(|passage| !asked.contains(passage.trim()));
    }

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
    corpus.part();
    Ok(corpus)
}

/// The text files at `place`, by their names below it, sorted; each text once.
fn text_files(place: &Path) -> Result<(Vec<(String, String)>, LeftOut)> {
    let mut left_out = LeftOut::default();
    let mut paths = Vec::new();
    if place.is_dir() {
        let mut folders = HashSet::new();
        collect(place, &mut folders, &mut paths, &mut left_out)?;
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
    let mut seen = HashSet::new();
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
        // By its text: a hard link, a mirror and a folder that is mounted twice have other names.
        if seen.insert(sha256(text.trim().as_bytes())) {
            files.push((name, text));
        } else {
            left_out.copies += 1;
        }
    }
    Ok((files, left_out))
}

/// Every folder once, wherever links lead.
fn collect(
    folder: &Path,
    folders: &mut HashSet<PathBuf>,
    paths: &mut Vec<PathBuf>,
    left_out: &mut LeftOut,
) -> Result<()> {
    let place = folder.canonicalize().map_err(Error::io("open", folder))?;
    if !folders.insert(place) {
        left_out.copies += 1;
        return Ok(());
    }
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(Error::io("read", folder))?;
    // Which of two names of a folder counts must not depend on the file system; real ones come before links.
    entries.sort_by_key(|entry| {
        (entry.file_type().is_ok_and(|kind| kind.is_symlink()), entry.file_name())
    });
    for entry in entries {
        let path = entry.path();
        let is_text = path.extension().is_some_and(|extension| extension == "txt");
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => collect(&path, folders, paths, left_out)?,
            Ok(metadata) if metadata.is_file() && is_text => paths.push(path),
            Ok(metadata) if metadata.is_file() => {}
            // A pipe would be waited for without end; a link may lead nowhere.
            _ if is_text => left_out.odd += 1,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(files: usize) -> Vec<(String, String)> {
        (0..files)
            .map(|i| {
                let words = (0..4000 / files).map(|n| format!("text {i} {n} "));
                (format!("{i}.txt"), words.collect())
            })
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

    #[cfg(unix)]
    #[test]
    fn each_text_is_read_once_wherever_links_lead() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        fs::create_dir(place.join("sub")).unwrap();
        fs::write(place.join("sub/a.txt"), "one text\n").unwrap();
        fs::write(place.join("b.txt"), "one text").unwrap();
        fs::write(place.join("c.txt"), "another").unwrap();
        fs::hard_link(place.join("c.txt"), place.join("d.txt")).unwrap();
        symlink(".", place.join("current")).unwrap();
        symlink("../sub", place.join("sub/again")).unwrap();
        symlink("nowhere", place.join("e.txt")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(place.join("f.txt")).status();
        assert!(pipe.unwrap().success());
        let source = Source::find(&DataSpec::Text(place.to_owned())).unwrap();
        assert_eq!(source.left_out(), Some(LeftOut { copies: 4, odd: 2 }));
        let Source::Files { files, .. } = source else { panic!() };
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b.txt", "c.txt"]);
    }

    #[test]
    fn no_passage_of_the_exam_stands_in_the_training_text() {
        // Each file is the same long text, with a line of its own before it.
        let copy = "All of this is quoted, word for word, in every one of the files.\n".repeat(20);
        let file = |i: usize| {
            let own = format!("Text {i} is about the number {i} and nothing else.\n").repeat(30);
            (format!("{i}.txt"), format!("{own}\n\n{copy}\n\n"))
        };
        let files: Vec<_> = (0..60).map(file).collect();
        let corpus = split(Path::new("."), &files).unwrap();
        assert!(corpus.train.len() >= 50 && !corpus.validation.is_empty());
        for passage in corpus.validation.iter().chain(&corpus.test) {
            assert!(!corpus.train.contains(passage), "{passage}");
        }
        assert!(corpus.test.iter().all(|passage| !corpus.validation.contains(passage)));
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
