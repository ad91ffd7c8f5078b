//! The metric, against languages whose cost is known.

use crate::{
    language::{ENTROPY, LETTERS, Language},
    tiny,
};
use overnight::data::{DataSpec, Dataset, PrepareOptions};
use std::{fmt::Write, fs, path::Path};

/// `val_bpb` of a source over the test language.
fn score(corpus: &Path, source: &str) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let mut study = tiny::study(dir.path(), corpus)
        .max_seq_len(500)
        .exam_windows(400)
        .proposer(tiny::Sources(vec![("the subject", source.to_owned())]))
        .open()
        .unwrap();
    study.optimize(Some(1)).unwrap();
    let trial = &study.trials()[1];
    trial.measurement.val_bpb.unwrap_or_else(|| panic!("{trial:?}"))
}

/// The tiny trainer, told the truth about the language in the tokens of `corpus`.
fn oracle(corpus: &Path) -> String {
    let cache = tempfile::tempdir().unwrap();
    let options =
        PrepareOptions { vocab_size: tiny::VOCAB_SIZE, cache_dir: cache.path().to_owned() };
    let spec = DataSpec::Text(corpus.to_owned());
    let dataset = Dataset::prepare(&spec, &options, |_| {}).unwrap();
    let tokenizer = fs::read_to_string(dataset.dir().join("tokenizer.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let token = |letter: usize| {
        let letter = (LETTERS[letter] as char).to_string();
        tokenizer["model"]["vocab"][&letter].as_u64().unwrap()
    };
    let mut truth = String::new();
    for letter in 0..LETTERS.len() {
        let successors = Language::successors(letter).map(token);
        let _ = write!(truth, "({}, {successors:?}), ", token(letter));
    }
    let _ = write!(truth, "({}, {:?})", dataset.bos(), Language::beginnings().map(token));
    let source = tiny::source();
    let nothing = "const TRUTH: &[(u32, [u32; 4])] = &[];";
    assert!(source.contains(nothing));
    source.replace(nothing, &nothing.replace("&[];", &format!("&[{truth}];")))
}

pub fn an_oracle_scores_the_entropy_rate_of_its_language() {
    let corpus = tempfile::tempdir().unwrap();
    Language::new().write_corpus(corpus.path(), 1000);
    let val_bpb = score(corpus.path(), &oracle(corpus.path()));
    assert!((val_bpb / ENTROPY - 1.0).abs() < 0.01, "{val_bpb} bits, not {ENTROPY}");
}

pub fn a_uniform_trainer_scores_the_logarithm_of_the_vocabulary() {
    let corpus = tiny::corpus();
    let val_bpb = score(corpus.path(), &tiny::doing("Uniform"));
    // Without merges every token but BOS is one byte.
    let expected = (tiny::VOCAB_SIZE as f64).log2();
    assert!((val_bpb - expected).abs() < 1e-5, "{val_bpb} bits, not {expected}");
}
