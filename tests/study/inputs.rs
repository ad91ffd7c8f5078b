//! Bad input: a clear error before the night begins, and nothing lost.

use crate::tiny;
use overnight::{Budget, Error, data::DataSpec};
use std::fs;

pub fn a_folder_without_the_edited_file_is_no_trainer() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let empty = tempfile::tempdir().unwrap();
    let open = || tiny::study(dir.path(), corpus.path()).trainer(empty.path()).open();
    let error = open().map(drop).unwrap_err();
    assert!(matches!(error, Error::Project { .. }), "{error}");
    assert!(error.to_string().contains("src/train.rs"), "{error}");

    let nowhere = empty.path().join("nowhere");
    let error = tiny::study(dir.path(), corpus.path()).trainer(&nowhere).open().map(drop);
    assert!(error.unwrap_err().to_string().contains("nowhere"));
}

pub fn a_study_of_another_configuration_is_refused() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    tiny::study(dir.path(), corpus.path()).open().map(drop).unwrap();
    let before = fs::read(dir.path().join("study.json")).unwrap();
    let other = tiny::study(dir.path(), corpus.path()).budget(Budget::Steps(31)).seed(5).open();
    let error = other.map(drop).unwrap_err().to_string();
    assert!(error.contains("budget was \"30steps\" and is \"31steps\""), "{error}");
    assert!(error.contains("seed was 0 and is 5"), "{error}");
    assert_eq!(fs::read(dir.path().join("study.json")).unwrap(), before);
}

pub fn a_second_process_on_one_study_is_refused() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).open().unwrap();
    let second = tiny::study(dir.path(), corpus.path()).open().map(drop).unwrap_err();
    assert!(matches!(second, Error::Locked { .. }), "{second}");
    drop(study);
    tiny::study(dir.path(), corpus.path()).open().map(drop).unwrap();
}

pub fn a_program_that_is_no_worker_is_named() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).worker_program("/bin/echo").open();
    let error = study.map(drop).unwrap_err().to_string();
    assert!(error.contains("run_if_worker()"), "{error}");
}

pub fn a_corpus_too_small_to_split_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = tempfile::tempdir().unwrap();
    fs::write(corpus.path().join("a.txt"), "hello").unwrap();
    let study = tiny::study(dir.path(), corpus.path()).open();
    let error = study.map(drop).unwrap_err().to_string();
    assert!(error.contains(corpus.path().to_str().unwrap()), "{error}");

    let nothing = tempfile::tempdir().unwrap();
    let spec = DataSpec::Text(nothing.path().to_owned());
    let error = tiny::study(dir.path(), corpus.path()).data(spec).open().map(drop);
    assert!(error.unwrap_err().to_string().contains(".txt"));
}
