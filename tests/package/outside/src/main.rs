//! A tool that somebody else could have built on the packaged crates: a proposer of its own, a trainer
//! of its own, an observer.

use overnight::{
    Budget, Error, Event, Ledger, Status, Study,
    data::DataSpec,
    proposer::{Brief, Proposal, ProposeError, Proposer},
};
use std::path::Path;

/// Makes the trainer's one constant smaller, then larger.
struct Turner;

impl Proposer for Turner {
    fn name(&self) -> &str {
        "turner"
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        let value = match brief.trial {
            1 => "0.1",
            2 => "1000.0",
            _ => return Err(ProposeError::Exhausted),
        };
        let (before, constant) = brief.source.split_once("SMOOTHING: f64 = ").expect("it is there");
        let (_, after) = constant.split_once(';').expect("a constant ends");
        let source = format!("{before}SMOOTHING: f64 = {value};{after}");
        Ok(Proposal::new(source, format!("smoothing {value}")))
    }
}

fn main() -> Result<(), Error> {
    overnight::worker::run_if_worker();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [corpus, trainer, dir] = &arguments[..] else { panic!("CORPUS TRAINER STUDY") };

    let (observer, events) = overnight::events();
    let mut study = Study::builder(dir)
        .trainer(trainer)
        .data(DataSpec::Text(corpus.into()))
        .vocab_size(512)
        .max_seq_len(64)
        .exam_windows(64)
        .exam_comparisons(64)
        .threads(1)
        .budget(Budget::Steps(200))
        .controls(0)
        // Whatever else runs here: what a trial learns in 200 steps does not depend on it.
        .shared_machine()
        .proposer(Turner)
        .observer(observer)
        .open()?;
    study.optimize(None)?;
    drop(study);

    let heard = events.iter().filter_map(|event| match event {
        Event::Finished(trial) => Some(trial.trial),
        _ => None,
    });
    assert_eq!(heard.collect::<Vec<_>>(), [0, 1, 2]);

    let trials = Ledger::read(Path::new(dir))?;
    for trial in &trials {
        println!("{:?} {:?} {}", trial.score(), trial.status, trial.description);
    }
    let statuses: Vec<_> = trials.iter().map(|trial| trial.status).collect();
    assert_eq!(statuses, [Status::Keep, Status::Keep, Status::Discard]);
    assert!(trials[1].score() < trials[0].score());
    assert_eq!(trials[1].proposer, "turner");
    Ok(())
}
