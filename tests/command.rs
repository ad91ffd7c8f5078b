//! A study of what a command prints: the part of the library that every choice of features has.

use overnight::{
    CommandObjective, Event, Ledger, Status, Study,
    proposer::{Brief, Proposal, ProposeError},
};
use std::fs;

#[test]
fn a_command_is_studied_with_any_features() {
    let (project, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(project.path().join("print.sh"), "echo METRIC loss=3\n").unwrap();
    let objective =
        CommandObjective::new(project.path(), "print.sh", ["sh", "print.sh"]).minimize("loss");
    let proposer = |brief: &Brief<'_>| {
        let loss = *[2, 4].get(brief.trial - 1).ok_or(ProposeError::Exhausted)?;
        Ok(Proposal::new(format!("echo METRIC loss={loss}\n"), format!("print {loss}")))
    };
    let (observer, events) = overnight::events();
    let study = Study::builder(dir.path()).objective(objective).controls(0);
    let mut study = study.proposer(proposer).observer(observer).open().unwrap();
    study.optimize(None).unwrap();
    drop(study);

    let trials = Ledger::read(dir.path()).unwrap();
    let known: Vec<_> = trials.iter().map(|trial| (trial.score(), trial.status)).collect();
    let expected =
        [(Some(3.0), Status::Keep), (Some(2.0), Status::Keep), (Some(4.0), Status::Discard)];
    assert_eq!(known, expected);
    let finished = events.iter().filter(|event| matches!(event, Event::Finished(_)));
    assert_eq!(finished.count(), trials.len());
}

#[test]
#[cfg(not(feature = "trainer"))]
fn without_trainers_a_study_needs_an_objective() {
    let dir = tempfile::tempdir().unwrap();
    let error = Study::builder(dir.path()).open().err().unwrap();
    assert!(matches!(error, overnight::Error::NoObjective), "{error}");
}
