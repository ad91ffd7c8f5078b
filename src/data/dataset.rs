//! A corpus made ready to train on: tokenizer and token files, prepared once and kept.

use super::{
    DataSpec, TokenFile,
    corpus::{Corpus, Source},
    tokenizer::{LARGEST_VOCABULARY, SMALLEST_VOCABULARY, Tokenizer},
};
use crate::{
    error::{Error, Result},
    foreign,
    hash::{sha256_of_file, sha256_of_parts},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
};

/// How a corpus is prepared.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Distinct tokens, BOS included.
    pub vocab_size: usize,
    /// Where prepared data is kept, for all studies.
    pub cache_dir: PathBuf,
}

/// A prepared corpus.
#[derive(Debug, Clone)]
pub struct Dataset {
    dir: PathBuf,
    name: String,
    facts: Facts,
}

/// A part of a corpus. No text is in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What trainers learn from.
    Train,
    /// What every trial is scored on.
    Validation,
    /// What kept trials are scored on as well, for the morning: no decision knows it.
    Test,
}

/// How far preparation has come: `done` of `total` units of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preparing {
    /// What is being done.
    pub stage: Stage,
    /// How much of it is done, in the stage's units.
    pub done: u64,
    /// How much there is to do.
    pub total: u64,
}

/// A stage of preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Fetching, where needed, and reading the texts.
    Reading,
    /// Training the tokenizer.
    Training,
    /// Turning the texts into tokens.
    Encoding,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reading => "reading the corpus",
            Self::Training => "training the tokenizer",
            Self::Encoding => "encoding the corpus",
        })
    }
}

/// `dataset.json`, written last: a folder that has it is whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Facts {
    fingerprint: String,
    vocab_size: usize,
    bos: u32,
    token_bytes: Vec<u32>,
    /// Tokens in each split.
    train_tokens: usize,
    validation_tokens: usize,
    test_tokens: usize,
    /// Bytes of text in the training split.
    train_bytes: usize,
}

/// Of the files' format and of the rules by which texts become tokens.
const VERSION: &str = "2";

/// The tokenizer learns from a sample: what pairs of tokens are frequent shows early.
const TOKENIZER_BYTES: usize = 8 << 20;

/// Documents encoded at a time, which bounds memory.
const CHUNK: usize = 1024;

impl Dataset {
    /// Prepares the corpus, or finds it prepared. `progress` hears of it while it takes time.
    ///
    /// # Errors
    /// The corpus cannot be found, read, or split, or the disk is full.
    pub fn prepare(
        spec: &DataSpec,
        options: &PrepareOptions,
        mut progress: impl FnMut(Preparing) + Send,
    ) -> Result<Self> {
        if !(SMALLEST_VOCABULARY..=LARGEST_VOCABULARY).contains(&options.vocab_size) {
            return Err(Error::Data {
                what: format!("a vocabulary of {} tokens", options.vocab_size),
                problem: format!(
                    "it must have {SMALLEST_VOCABULARY} (every byte, and BOS) to \
                     {LARGEST_VOCABULARY}"
                ),
            });
        }
        let source = Source::find(spec)?;
        let vocab_size = options.vocab_size.to_string();
        let parts = [VERSION, source.fingerprint(), &vocab_size].map(str::as_bytes);
        let dir = options.cache_dir.join(&sha256_of_parts(parts)[..16]);
        let mut name = spec.to_string();
        if let Some(left_out) = source.left_out() {
            name += &format!(" ({left_out})");
        }
        if let Some(facts) = read_facts(&dir).filter(|facts| is_whole(&dir, facts)) {
            return Ok(Self { dir, name, facts });
        }
        // A disk that was full, or a power cut. Who has it open goes on with what he has.
        foreign::remove(&dir).map_err(Error::io("remove", &dir))?;
        fs::create_dir_all(&options.cache_dir).map_err(Error::io("create", &options.cache_dir))?;
        let corpus = source.read(&options.cache_dir, |done, total| {
            progress(Preparing { stage: Stage::Reading, done, total });
        })?;
        // Under another name until it is whole, so that a preparation that is cut off leaves
        // nothing that looks finished.
        let draft = tempfile::Builder::new().prefix("preparing-").tempdir_in(&options.cache_dir);
        let draft = draft.map_err(Error::io("write in", &options.cache_dir))?;
        let facts = write(&corpus, options.vocab_size, draft.path(), &mut progress)?;
        if let Err(error) = fs::rename(draft.path(), &dir) {
            // Another process may have been faster, with the same result.
            return match read_facts(&dir) {
                Some(facts) => Ok(Self { dir, name, facts }),
                None => Err(Error::io("create", dir)(error)),
            };
        }
        Ok(Self { dir, name, facts })
    }

    /// Where the prepared files are, `tokenizer.json` among them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// SHA-256 of what trainers and exams depend on: tokenizer, and tokens of each split.
    pub fn fingerprint(&self) -> &str {
        &self.facts.fingerprint
    }

    /// Distinct tokens, BOS included: fewer than asked for where the corpus is small.
    pub fn vocab_size(&self) -> usize {
        self.facts.vocab_size
    }

    /// The token that begins every row and every document.
    pub fn bos(&self) -> u32 {
        self.facts.bos
    }

    /// Bytes of text in each token; 0 for BOS.
    pub fn token_bytes(&self) -> &[u32] {
        &self.facts.token_bytes
    }

    /// The token file of a split.
    pub fn path(&self, split: Split) -> PathBuf {
        self.dir.join(file_name(split))
    }

    /// Maps the tokens of a split.
    pub fn open(&self, split: Split) -> Result<TokenFile> {
        TokenFile::open(&self.path(split))
    }

    /// One line for a person.
    pub fn describe(&self) -> String {
        let millions = |tokens: usize| tokens as f64 / 1e6;
        let Facts { vocab_size, train_tokens, validation_tokens, test_tokens, .. } = self.facts;
        format!(
            "{}: {:.2}M train, {:.2}M validation, {:.2}M test tokens; vocabulary {}, {:.2} bytes \
             a token",
            self.name,
            millions(train_tokens),
            millions(validation_tokens),
            millions(test_tokens),
            vocab_size,
            self.facts.train_bytes as f64 / train_tokens.max(1) as f64,
        )
    }
}

fn file_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train.tokens",
        Split::Validation => "validation.tokens",
        Split::Test => "test.tokens",
    }
}

/// `None`: there are none, or none that can be read.
fn read_facts(dir: &Path) -> Option<Facts> {
    serde_json::from_slice(&fs::read(dir.join("dataset.json")).ok()?).ok()
}

/// Whether the files are those that were written: a night on others would measure something else.
fn is_whole(dir: &Path, facts: &Facts) -> bool {
    fingerprint(dir).is_ok_and(|fingerprint| fingerprint == facts.fingerprint)
}

/// SHA-256 over those of the tokenizer and the token files.
fn fingerprint(dir: &Path) -> Result<String> {
    let files = [Split::Train, Split::Validation, Split::Test].map(file_name);
    let mut hashes = Vec::new();
    for name in std::iter::once("tokenizer.json").chain(files) {
        let path = dir.join(name);
        hashes.push(sha256_of_file(&path).map_err(Error::io("read", &path))?);
    }
    Ok(sha256_of_parts(hashes.iter().map(String::as_bytes)))
}

fn write(
    corpus: &Corpus,
    vocab_size: usize,
    dir: &Path,
    progress: &mut (impl FnMut(Preparing) + Send),
) -> Result<Facts> {
    let tokenizer = {
        let sample = sample(&corpus.train);
        let total = sample.len() as u64;
        let mut done = 0;
        let texts = sample.into_iter().inspect(|_| {
            done += 1;
            if done % CHUNK as u64 == 0 || done == total {
                progress(Preparing { stage: Stage::Training, done, total });
            }
        });
        Tokenizer::train(texts, vocab_size)?
    };
    tokenizer.save(&dir.join("tokenizer.json"))?;

    let splits = [
        (Split::Train, &corpus.train),
        (Split::Validation, &corpus.validation),
        (Split::Test, &corpus.test),
    ];
    let total = splits.iter().map(|(_, texts)| texts.len() as u64).sum();
    let mut done = 0;
    let mut tokens = [0; 3];
    for ((split, texts), count) in splits.iter().zip(&mut tokens) {
        let mut documents = Vec::with_capacity(texts.len());
        for texts in texts.chunks(CHUNK) {
            documents.extend(tokenizer.encode(texts)?);
            done += texts.len() as u64;
            progress(Preparing { stage: Stage::Encoding, done, total });
        }
        *count = documents.iter().map(Vec::len).sum();
        TokenFile::write(&dir.join(file_name(*split)), &documents)?;
    }

    let facts = Facts {
        fingerprint: fingerprint(dir)?,
        vocab_size: tokenizer.vocab_size(),
        bos: tokenizer.bos()?,
        token_bytes: tokenizer.token_bytes(),
        train_tokens: tokens[0],
        validation_tokens: tokens[1],
        test_tokens: tokens[2],
        train_bytes: corpus.train.iter().map(String::len).sum(),
    };
    let path = dir.join("dataset.json");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    serde_json::to_writer(&file, &facts)
        .map_err(std::io::Error::from)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", path))?;
    Ok(facts)
}

/// Documents from all over the corpus, evenly, of `TOKENIZER_BYTES` together.
fn sample(documents: &[String]) -> Vec<&str> {
    let bytes: usize = documents.iter().map(String::len).sum();
    let stride = bytes.div_ceil(TOKENIZER_BYTES).max(1);
    documents.iter().step_by(stride).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_is_prepared_once_and_comes_back_the_same() {
        let texts = tempfile::tempdir().unwrap();
        for i in 0..60 {
            let text = format!("file {i} says: {}", "some words, some numbers 42.\n".repeat(20));
            fs::write(texts.path().join(format!("{i}.txt")), text).unwrap();
        }
        let cache = tempfile::tempdir().unwrap();
        let options =
            PrepareOptions { vocab_size: 280, cache_dir: cache.path().join("not there yet") };
        let spec = DataSpec::Text(texts.path().to_owned());
        let mut stages = Vec::new();
        let first = Dataset::prepare(&spec, &options, |now| stages.push(now.stage)).unwrap();
        stages.dedup();
        assert_eq!(stages, [Stage::Training, Stage::Encoding]);
        let again = Dataset::prepare(&spec, &options, |now| panic!("{now:?}")).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.dir(), again.dir());

        // All bytes of all texts are in one split or another.
        let mut bytes = 0;
        for split in [Split::Train, Split::Validation, Split::Test] {
            let tokens = first.open(split).unwrap();
            assert!(tokens.documents() > 0);
            for document in 0..tokens.documents() {
                let sizes = tokens.document(document).map(|t| first.token_bytes()[t as usize]);
                bytes += sizes.sum::<u32>() as u64;
            }
        }
        let files = fs::read_dir(texts.path()).unwrap();
        let expected: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(bytes, expected);

        fs::write(texts.path().join("61.txt"), "one more").unwrap();
        let other = Dataset::prepare(&spec, &options, |_| {}).unwrap();
        assert_ne!(first.fingerprint(), other.fingerprint());
        let leftovers = fs::read_dir(&options.cache_dir).unwrap().count();
        assert_eq!(leftovers, 2, "drafts are left behind");
    }

    #[test]
    fn what_was_damaged_is_prepared_anew() {
        let texts = tempfile::tempdir().unwrap();
        let words = (0..8000).map(|n| format!("word {n} "));
        fs::write(texts.path().join("a.txt"), words.collect::<String>()).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let options = PrepareOptions { vocab_size: 300, cache_dir: cache.path().to_owned() };
        let spec = DataSpec::Text(texts.path().to_owned());
        let prepare = || Dataset::prepare(&spec, &options, |_| {}).unwrap();
        let whole = prepare();
        let path = whole.path(Split::Train);
        let bytes = fs::read(&path).unwrap();
        for damage in ["cut", "changed", "gone", "facts"] {
            match damage {
                "cut" => fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
                "changed" => {
                    let mut other = bytes.clone();
                    *other.last_mut().unwrap() ^= 1;
                    fs::write(&path, other).unwrap();
                }
                "gone" => fs::remove_file(&path).unwrap(),
                _ => fs::write(whole.dir().join("dataset.json"), "{").unwrap(),
            }
            assert_eq!(prepare().fingerprint(), whole.fingerprint(), "{damage}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "{damage}");
        }
    }

    #[test]
    fn a_vocabulary_that_cannot_hold_every_byte_is_refused() {
        for vocab_size in [0, 256, 70_000] {
            let options = PrepareOptions { vocab_size, cache_dir: "/nowhere".into() };
            let error = Dataset::prepare(&DataSpec::Builtin, &options, |_| {}).unwrap_err();
            assert!(error.to_string().contains("257"), "{error}");
        }
    }
}
