//! Studies on a machine that does something else. A program of its own, in which one test runs at a time: the others
//! would be that something.

#[allow(dead_code)]
#[path = "study/language.rs"]
mod language;
#[allow(dead_code)]
#[path = "study/tiny.rs"]
mod tiny;

use libtest_mimic::{Arguments, Trial as Test};
use overnight::{
    Budget, CommandObjective, Event, Outcome, Status, Study, StudyBuilder, data::DataSpec,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    panic::catch_unwind,
    path::Path,
    process::{Child, Command},
    thread::available_parallelism,
    time::Duration,
};

fn main() {
    overnight::worker::run_if_worker();
    let test = |name: &str, test: fn()| {
        Test::test(name.to_owned(), move || {
            // Somebody else may begin to compute in the middle of it, which is what it is about, and none of its doing.
            (0..3).find(|_| catch_unwind(test).is_ok()).map(drop).ok_or("failed three times".into())
        })
    };
    let tests = vec![
        test("a_robbed_trial_is_measured_again", a_robbed_trial_is_measured_again),
        test("what_is_robbed_for_good_is_no_evidence", what_is_robbed_for_good_is_no_evidence),
        test("a_stopped_trainer_is_measured_again", a_stopped_trainer_is_measured_again),
        test("a_robbed_command_is_measured_again", a_robbed_command_is_measured_again),
    ];
    let one_at_a_time = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&one_at_a_time, tests).exit();
}

/// Programs that take every core twice over, until this is dropped.
struct Load(Vec<Child>);

impl Load {
    fn new() -> Self {
        let programs = 2 * available_parallelism().unwrap().get();
        let program = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..programs).map(|_| program()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for program in &mut self.0 {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// Two seconds of the tiny trainer, to which it matters what else the machine does.
fn study(dir: &Path, corpus: &Path) -> StudyBuilder {
    Study::builder(dir)
        .trainer(tiny::folder())
        .data(DataSpec::Text(corpus.to_owned()))
        .vocab_size(tiny::VOCAB_SIZE)
        .max_seq_len(64)
        .exam_windows(64)
        .exam_comparisons(64)
        .threads(1)
        .controls(0)
        .budget(Budget::WallClock(Duration::from_secs(2)))
        .wait_for_quiet(Duration::from_secs(20))
}

/// Whether the system tells, and the machine is quiet enough for a baseline. Where it is not, there is nothing
/// to be tested, unless it is the place where everything is.
fn is_quiet() -> bool {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut study = study(dir.path(), corpus.path()).open().unwrap();
    study.optimize(Some(0)).unwrap();
    let baseline = &study.trials()[0];
    let conditions = baseline.measurement.conditions;
    println!("the baseline's conditions: {conditions:?}");
    conditions.is_some_and(|conditions| conditions.disturbance(None).is_none())
}

fn a_robbed_trial_is_measured_again() {
    if !is_quiet() {
        println!("skipped: the machine is never quiet, or does not tell");
        return;
    }
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let (observer, events) = overnight::events();
    // Begins to be busy in the middle of trial 1, and is until that is noticed.
    let machine = std::thread::spawn(move || {
        let (mut load, mut loads, mut reasons) = (None, 0, Vec::new());
        for event in events {
            match event {
                Event::Training { trial: 1, .. } if loads == 0 => {
                    loads += 1;
                    load = Some(Load::new());
                }
                Event::Disturbed { trial: 1, reason } => {
                    reasons.push(reason);
                    load = None;
                }
                _ => {}
            }
        }
        drop(load);
        reasons
    });
    let sources = tiny::Sources(vec![("less smoothing", tiny::smoothing("3.0"))]);
    let mut study =
        study(dir.path(), corpus.path()).proposer(sources).observer(observer).open().unwrap();
    study.optimize(Some(1)).unwrap();
    let trials = study.trials().to_vec();
    drop(study);
    let reasons = machine.join().unwrap();
    assert!(reasons[0].contains("other programs used"), "{reasons:?}");
    assert_eq!(trials[1].outcome, Outcome::Measured, "{:?}", trials[1].reason);
    let steps = |trial: usize| trials[trial].measurement.num_steps.unwrap() as f64;
    // What counts is what it came to on the quiet machine.
    assert!(steps(1) > 0.7 * steps(0), "{} steps after {}", steps(1), steps(0));
    assert_eq!(trials[1].status, Status::Keep, "{:?}", trials[1].reason);
}

fn what_is_robbed_for_good_is_no_evidence() {
    if !is_quiet() {
        println!("skipped: the machine is never quiet, or does not tell");
        return;
    }
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let better = tiny::smoothing("3.0");
    let twice = tiny::Sources(vec![("less smoothing", better.clone()), ("less smoothing", better)]);
    let study = study(dir.path(), corpus.path()).wait_for_quiet(Duration::from_secs(1));
    let mut study = study.proposer(twice).open().unwrap();
    study.optimize(Some(0)).unwrap();
    let load = Load::new();
    study.step().unwrap();
    let robbed = study.trials()[1].clone();
    assert_eq!((&robbed.outcome, robbed.status), (&Outcome::Disturbed, Status::Discard));
    assert_eq!((robbed.score(), robbed.forecast), (None, None));
    assert!(robbed.reason.unwrap().contains("other programs"));
    let conditions = robbed.measurement.conditions.unwrap();
    assert!(conditions.others_seconds > conditions.ran_seconds, "{conditions:?}");
    drop(load);
    // It is no idea that was tried.
    study.step().unwrap();
    let fair = &study.trials()[2];
    assert_eq!((&fair.outcome, fair.status), (&Outcome::Measured, Status::Keep), "{fair:?}");
}

fn a_stopped_trainer_is_measured_again() {
    if !is_quiet() {
        println!("skipped: the machine is never quiet, or does not tell");
        return;
    }
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let (observer, events) = overnight::events();
    let stopper = std::thread::spawn(move || {
        let (mut stops, mut reasons) = (0, Vec::new());
        for event in events {
            match event {
                Event::Training { trial: 1, .. } if stops == 0 => {
                    stops += 1;
                    let worker = worker_of(std::process::id());
                    kill_process(worker, Signal::STOP).unwrap();
                    std::thread::sleep(Duration::from_millis(1700));
                    kill_process(worker, Signal::CONT).unwrap();
                }
                Event::Disturbed { trial: 1, reason } => reasons.push(reason),
                _ => {}
            }
        }
        reasons
    });
    let sources = tiny::Sources(vec![("less smoothing", tiny::smoothing("3.0"))]);
    let mut study =
        study(dir.path(), corpus.path()).proposer(sources).observer(observer).open().unwrap();
    study.optimize(Some(1)).unwrap();
    let trial = study.trials()[1].clone();
    drop(study);
    let reasons = stopper.join().unwrap();
    assert!(reasons[0].contains("stopped"), "{reasons:?}");
    assert_eq!((&trial.outcome, trial.status), (&Outcome::Measured, Status::Keep), "{trial:?}");
}

fn a_robbed_command_is_measured_again() {
    if !is_quiet() {
        println!("skipped: the machine is never quiet, or does not tell");
        return;
    }
    let (job, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // As many turns as three seconds have room for; in a process of a process, as such scripts are.
    let script = "#!/bin/sh\nsh -c 'n=0; end=$(($(date +%s) + 3)); while test $(date +%s) -lt $end; do n=$((n + 1)); \
                  done; echo METRIC turns=$n'\n";
    std::fs::write(job.path().join("job.sh"), script).unwrap();
    std::fs::write(job.path().join("idea.txt"), "1\n").unwrap();
    let (observer, events) = overnight::events();
    let machine = std::thread::spawn(move || {
        let (mut load, mut loads, mut reasons) = (None, 0, Vec::new());
        for event in events {
            match event {
                Event::Running { trial: 1 } if loads == 0 => {
                    loads += 1;
                    load = Some(Load::new());
                }
                Event::Disturbed { trial, reason } => {
                    reasons.push((trial, reason));
                    load = None;
                }
                _ => {}
            }
        }
        drop(load);
        reasons
    });
    let objective =
        CommandObjective::new(job.path(), "idea.txt", ["sh", "job.sh"]).maximize("turns");
    let study = Study::builder(dir.path()).objective(objective).controls(0).observer(observer);
    let idea = tiny::Sources(vec![("another", "2\n".to_owned())]);
    let study = study.wait_for_quiet(Duration::from_secs(20)).proposer(idea);
    let mut study = study.open().unwrap();
    study.optimize(Some(1)).unwrap();
    let trials = study.trials().to_vec();
    drop(study);
    let reasons = machine.join().unwrap();
    let [(1, reason)] = &*reasons else { panic!("{reasons:?}") };
    assert!(reason.contains("other programs used"), "{reason}");
    let turns = |trial: usize| trials[trial].score().unwrap();
    assert!(turns(1) > 0.7 * turns(0), "{} turns after {}", turns(1), turns(0));
    // What it started is its own.
    let conditions = trials[1].measurement.conditions.unwrap();
    assert!(conditions.ran_seconds > 2.0, "{conditions:?}");
}

/// The worker of this process.
fn worker_of(parent: u32) -> Pid {
    let mark = format!("OVERNIGHT_WORKER={parent}");
    let workers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        let is_marked = environment.split(|&byte| byte == 0).any(|it| it == mark.as_bytes());
        Pid::from_raw(pid).filter(|_| is_marked)
    });
    workers.last().unwrap()
}
