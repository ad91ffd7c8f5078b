//! A study that is driven from outside: asked, told, and given proposals.

use overnight::{
    CommandObjective, Ended, Error, Ledger, Measured, Measurement, Metric, Outcome, Status,
    StopHandle, Study, StudyBuilder, Until,
    proposer::{Brief, Proposal, ProposeError, Proposer},
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;

/// A folder with one number in a file, which is the loss.
fn project() -> TempDir {
    let project = tempfile::tempdir().unwrap();
    fs::write(project.path().join("idea.txt"), "8\n").unwrap();
    project
}

fn study(dir: &Path, project: &Path) -> StudyBuilder {
    let objective = CommandObjective::new(project, "idea.txt", ["sh", "-c", COMMAND]);
    Study::builder(dir).objective(objective.minimize("loss")).controls(0)
}

const COMMAND: &str = "echo METRIC loss=$(cat idea.txt)";

/// Proposes one less each time.
fn lower(brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
    let next = brief.source.trim().parse::<i64>().unwrap() - 1;
    Ok(Proposal::new(format!("{next}\n"), format!("{next}")))
}

fn loss(value: f64) -> Measured {
    Metric { name: "loss".to_owned(), value, higher_is_better: false }.into()
}

pub fn several_trials_may_be_open_and_end_in_any_order() {
    let (dir, project) = (tempfile::tempdir().unwrap(), project());
    // Whoever proposes does not know what is under way.
    let ideas = |brief: &Brief<'_>| {
        Ok(Proposal::new(format!("{}\n", 7 - brief.trial as i64), format!("idea {}", brief.trial)))
    };
    let mut study = study(dir.path(), project.path()).proposer(ideas).open().unwrap();
    let baseline = study.ask().unwrap().unwrap();
    assert_eq!((baseline.trial(), baseline.parent(), baseline.source()), (0, None, "8\n"));
    // There is nothing to compare with yet.
    assert!(matches!(study.ask(), Err(Error::BaselineIsOpen)));
    study.tell(baseline, loss(8.0)).unwrap();

    let asked: Vec<_> = (0..3).map(|_| study.ask().unwrap().unwrap()).collect();
    for (number, asked) in (1..).zip(&asked) {
        assert_eq!((asked.trial(), asked.parent()), (number, Some(0)));
        assert_eq!(fs::read_to_string(asked.folder().join("source.txt")).unwrap(), asked.source());
        assert!(asked.folder().join("asked.json").is_file());
    }
    let [one, two, three] = asked.try_into().unwrap();
    assert_eq!(study.tell(three, loss(4.0)).unwrap().unwrap().status, Status::Keep);
    let crash = Measured::failed(Outcome::TimedOut, "it hung");
    assert_eq!(study.tell(one, crash).unwrap().unwrap().status, Status::Crash);
    // Better than what it started from, and not than what was kept meanwhile.
    assert_eq!(study.tell(two, loss(6.0)).unwrap().unwrap().status, Status::Discard);
    assert_eq!(study.ask().unwrap().unwrap().parent(), Some(3));
    drop(study);

    let trials = Ledger::read(dir.path()).unwrap();
    let numbers: Vec<_> = trials.iter().map(|trial| trial.trial).collect();
    assert_eq!(numbers, [0, 3, 1, 2]);
    let kept = fs::read_to_string(dir.path().join("workspace/idea.txt")).unwrap();
    assert_eq!(kept, "4\n");
    assert!(!dir.path().join("trials/0003/asked.json").exists());
    // A line that is gone is missed, though others may come in any order.
    let path = dir.path().join("trials.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let cut: Vec<_> = whole.lines().filter(|line| !line.contains("\"trial\":1,")).collect();
    assert_eq!(cut.len(), 3);
    fs::write(&path, cut.join("\n") + "\n").unwrap();
    let opened = self::study(dir.path(), project.path()).proposer(lower).open();
    assert!(matches!(opened, Err(Error::Ledger { .. })));
    fs::write(&path, whole).unwrap();
    // And it opens again, and goes on.
    let mut study = self::study(dir.path(), project.path()).proposer(lower).open().unwrap();
    assert_eq!(study.best_trial().unwrap().trial, 3);
    study.optimize(2).unwrap();
    assert_eq!(study.trials().last().unwrap().trial, 5);
    assert_eq!(study.best_trial().unwrap().score(), Some(2.0));
}

pub fn what_is_told_has_a_score_or_a_reason() {
    let (dir, project) = (tempfile::tempdir().unwrap(), project());
    let mut study = study(dir.path(), project.path()).proposer(lower).open().unwrap();
    study.optimize(0).unwrap();
    let bits = Measurement { val_bpb: Some(1.0), ..Measurement::default() };
    let more = Metric { name: "loss".to_owned(), value: 1.0, higher_is_better: true };
    let other = Metric { name: "accuracy".to_owned(), value: 1.0, higher_is_better: false };
    for nothing in [
        loss(f64::NAN),
        loss(f64::INFINITY),
        Measured::new(Measurement::default()),
        // Numbers of another kind cannot be compared.
        Measured::new(bits),
        more.into(),
        other.into(),
    ] {
        let asked = study.ask().unwrap().unwrap();
        assert!(matches!(study.tell(asked, nothing), Err(Error::NoScore { .. })));
    }
    assert_eq!(study.trials().len(), 1);
    assert_eq!(*Measured::failed(Outcome::Measured, "").outcome(), Outcome::Failed);
}

/// Proposes a number that nobody else does, once.
struct Once(bool);

impl Proposer for Once {
    fn name(&self) -> &str {
        "once"
    }

    fn propose(&mut self, _: &Brief<'_>) -> Result<Proposal, ProposeError> {
        if std::mem::replace(&mut self.0, true) {
            return Err(ProposeError::Exhausted);
        }
        let mut proposal = Proposal::new("3\n", "a costly idea");
        proposal.remarks.push("it took all night".to_owned());
        Ok(proposal)
    }
}

pub fn a_trial_that_was_begun_is_taken_up_again() {
    let (dir, project) = (tempfile::tempdir().unwrap(), project());
    let open = |used| study(dir.path(), project.path()).proposer(Once(used)).open().unwrap();
    let mut study = open(false);
    study.optimize(0).unwrap();
    let asked = study.ask().unwrap().unwrap();
    assert_eq!((asked.trial(), asked.proposer()), (1, "once"));
    let folder = asked.folder().to_owned();
    fs::write(folder.join("propose.out"), "what an agent said").unwrap();
    fs::write(folder.join("run.log"), "half a run").unwrap();
    // As it is when the program is killed here.
    drop((study, asked));
    let mut study = open(true);
    let again = study.ask().unwrap().unwrap();
    assert!(folder.join("propose.out").exists() && !folder.join("run.log").exists());
    // Stopped, and not killed: that does not count.
    study.stop_handle().stop();
    let mut again = again;
    assert_eq!(study.measure(&mut again).unwrap(), None);
    drop((study, again));
    let mut study = open(true);
    assert_eq!(study.optimize(None).unwrap(), Ended::Exhausted);
    let trial = &study.trials()[1];
    assert_eq!((&*trial.proposer, &*trial.description), ("once", "a costly idea"));
    assert_eq!(
        (trial.score(), &*trial.remarks),
        (Some(3.0), &["it took all night".to_owned()][..])
    );
    assert_eq!(study.trials().len(), 2);
    drop(study);

    // What was begun twice may be what kills it.
    fs::remove_dir_all(dir.path()).unwrap();
    let mut study = open(false);
    study.optimize(0).unwrap();
    drop((study.ask().unwrap().unwrap(), study));
    let mut study = open(true);
    drop((study.ask().unwrap().unwrap(), study));
    let mut study = open(true);
    assert_eq!(study.optimize(None).unwrap(), Ended::Exhausted);
    assert_eq!(study.trials().len(), 1);
}

pub fn a_proposal_from_outside_is_evaluated_or_waits_in_line() {
    let (dir, project) = (tempfile::tempdir().unwrap(), project());
    let mut study = study(dir.path(), project.path()).controls(1).proposer(lower).open().unwrap();
    let own = |number: i64| Proposal::new(format!("{number}\n"), format!("my {number}"));
    // The baseline and its control run come first.
    let trial = study.evaluate(own(6)).unwrap().unwrap();
    assert_eq!((trial.trial, &*trial.proposer, trial.status), (2, "enqueued", Status::Keep));
    assert_eq!((trial.score(), &*trial.description), (Some(6.0), "my 6"));
    study.enqueue(own(5));
    study.enqueue(own(9));
    study.optimize(3).unwrap();
    let proposers: Vec<_> = study.trials()[3..].iter().map(|trial| &*trial.proposer).collect();
    assert_eq!(proposers, ["enqueued", "enqueued", "closure"]);
    // One that was tried before is refused, as any other.
    let again = study.evaluate(own(9)).unwrap().unwrap();
    assert_eq!(again.outcome, Outcome::Refused);
    study.stop_handle().stop();
    assert_eq!(study.evaluate(own(1)).unwrap(), None);
}

pub fn a_night_ends_for_a_reason() {
    let (dir, project) = (tempfile::tempdir().unwrap(), project());
    let mut study = study(dir.path(), project.path()).proposer(lower).open().unwrap();
    assert_eq!(study.optimize(0).unwrap(), Ended::Trials);
    assert_eq!(study.trials().len(), 1);
    assert_eq!(study.optimize(Until::default().score(6.0).trials(9)).unwrap(), Ended::Score);
    assert_eq!(study.best_trial().unwrap().score(), Some(6.0));
    assert_eq!(study.trials().len(), 3);
    let over = Until::default().time(SystemTime::now() - Duration::from_secs(1));
    assert_eq!(study.optimize(over).unwrap(), Ended::Time);
    assert_eq!(study.optimize(Until::default().elapsed(Duration::ZERO)).unwrap(), Ended::Time);
    assert_eq!(study.trials().len(), 3);
    drop(study);

    let worse = |brief: &Brief<'_>| Ok(Proposal::new(format!("{}\n", 20 + brief.trial), "worse"));
    let mut study = self::study(dir.path(), project.path()).proposer(worse).open().unwrap();
    let until = Until::default().without_improvement(4);
    assert_eq!(study.optimize(until).unwrap(), Ended::WithoutImprovement);
    assert_eq!(study.trials().len(), 7);
    study.stop_handle().stop();
    assert_eq!(study.optimize(None).unwrap(), Ended::Stopped);
}

pub fn a_paused_study_begins_nothing_until_it_may_go_on() {
    let (dir, project) = (tempfile::tempdir().unwrap(), project());
    let stop = StopHandle::new();
    let study = study(dir.path(), project.path()).proposer(lower).stop_handle(stop.clone());
    let mut study = study.open().unwrap();
    study.optimize(1).unwrap();
    study.stop_handle().pause();
    assert!(stop.is_paused());
    let (sender, resumed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        sender.send(Instant::now()).unwrap();
        stop.resume();
    });
    study.optimize(1).unwrap();
    assert!(resumed.try_recv().is_ok_and(|moment| moment <= Instant::now()));
    assert_eq!(study.trials().len(), 3);
    // And a pause does not keep it from being stopped.
    let handle = study.stop_handle();
    handle.pause();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        handle.stop();
    });
    assert_eq!(study.optimize(None).unwrap(), Ended::Stopped);
    assert_eq!(study.trials().len(), 3);
}
