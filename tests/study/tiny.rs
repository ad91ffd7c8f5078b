//! The tiny trainer, its language, and studies over both.

use crate::language::Language;
use overnight::{
    Budget, Error, Sandbox, Study, StudyBuilder,
    data::DataSpec,
    proposer::{Brief, Proposal, ProposeError, Proposer},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const VOCAB_SIZE: usize = 257;

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trainers/tiny")
}

pub fn source() -> String {
    fs::read_to_string(folder().join("src/train.rs")).unwrap()
}

/// The tiny trainer, doing a deed of its list.
pub fn doing(deed: &str) -> String {
    replaced(&source(), "Deed = Deed::Honest;", &format!("Deed = Deed::{deed};"))
}

/// The tiny trainer with another smoothing: less is better, down to almost nothing.
pub fn smoothing(value: &str) -> String {
    replaced(&source(), "SMOOTHING: f64 = 30.0;", &format!("SMOOTHING: f64 = {value};"))
}

/// With one place that must be there replaced.
pub fn replaced(source: &str, from: &str, to: &str) -> String {
    assert_eq!(source.matches(from).count(), 1, "{from}");
    source.replace(from, to)
}

/// The tiny trainer's crate with another source, at another place.
pub fn copy(to: &Path, source: &str) {
    copy_with(to, source, &Path::new(env!("CARGO_MANIFEST_DIR")).join("plugin-api"));
}

pub fn copy_with(to: &Path, source: &str, api: &Path) {
    fs::create_dir_all(to.join("src")).unwrap();
    for name in ["Cargo.lock", "src/lib.rs"] {
        fs::copy(folder().join(name), to.join(name)).unwrap();
    }
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    let manifest = manifest.replace("../../../plugin-api", api.to_str().unwrap());
    fs::write(to.join("Cargo.toml"), manifest).unwrap();
    fs::write(to.join("src/train.rs"), source).unwrap();
}

/// A folder with a text of the test language.
pub fn corpus() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Language::new().write_corpus(folder.path(), 200);
    folder
}

/// A study in `dir` over `corpus`: a few steps of the tiny trainer, a small exam, no control runs.
pub fn study(dir: &Path, corpus: &Path) -> StudyBuilder {
    Study::builder(dir)
        .trainer(folder())
        .data(DataSpec::Text(corpus.to_owned()))
        .vocab_size(VOCAB_SIZE)
        .max_seq_len(64)
        .exam_windows(64)
        .exam_comparisons(64)
        .threads(1)
        .controls(0)
        // Tests run beside each other.
        .shared_machine()
        .budget(Budget::Steps(30))
}

/// Whether trainers and compilers can be confined here at all.
pub fn can_confine() -> bool {
    let (corpus, dir) = (corpus(), tempfile::tempdir().unwrap());
    let opened = study(dir.path(), corpus.path()).sandbox(Sandbox::Strict).open();
    match opened {
        Ok(_) => true,
        Err(Error::Sandbox { missing }) => {
            // Where everything is checked, nothing is skipped.
            assert!(std::env::var_os("CI").is_none(), "there is no {missing}");
            println!("there is no {missing}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Proposes these sources, one after the other.
pub struct Sources(pub Vec<(&'static str, String)>);

impl Proposer for Sources {
    fn name(&self) -> &str {
        "sources"
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        let (description, source) =
            self.0.get(brief.trial - 1).cloned().ok_or(ProposeError::Exhausted)?;
        Ok(Proposal::new(source, description))
    }
}
