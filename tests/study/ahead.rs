//! Proposers that think about the next trial while one runs.
//!
//! Most trials here are of a command, which adds two numbers and prints the sum; less is better. It
//! waits as long as there is a file of a certain name, so that what happens is in order, however fast
//! the machine is.

use crate::tiny;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use overnight::{
    CommandObjective, Event, JudgeRule, Ledger, Outcome, Sandbox, Status, StopHandle, Study,
    StudyBuilder, Trial,
    proposer::{Agent, Brief, Fault, Proposal, ProposeError, Proposer, Usage},
};
use std::{
    fs,
    path::{Path, PathBuf},
    thread::{JoinHandle, spawn},
    time::Duration,
};

/// The edited file.
fn source(a: &str, b: &str) -> String {
    format!(
        "const A: f64 = {a};\n\n// Apart,\n// so that changes fit together.\n\nconst B: f64 = {b};\n"
    )
}

fn proposal(a: &str, b: &str) -> Result<Proposal, ProposeError> {
    Ok(Proposal::new(source(a, b), format!("{a} and {b}")))
}

fn asked_in_vain(why: &str) -> Result<Proposal, ProposeError> {
    Err(ProposeError::Failed(why.to_owned()))
}

/// What a proposer was told when it was asked.
struct Asked {
    trial: usize,
    source: String,
    history: String,
    trials: usize,
    /// Number, proposer and description of the trial that runs.
    running: Option<(usize, String, String)>,
}

/// Tells that it was asked, and proposes what somebody answers. Each answer costs a quarter of a
/// dollar.
struct Thinker {
    thinks: bool,
    asked: Sender<Asked>,
    answers: Receiver<Result<Proposal, ProposeError>>,
    /// For repairs, which are proposals and come with where they are to be made.
    repairs: Vec<Proposal>,
    faults: Sender<(usize, Fault, String)>,
    usage: Usage,
}

/// The other ends of a thinker's channels.
struct Ends {
    asked: Receiver<Asked>,
    answers: Sender<Result<Proposal, ProposeError>>,
    faults: Receiver<(usize, Fault, String)>,
}

impl Thinker {
    fn new() -> (Self, Ends) {
        let ((asked_by, asked), (answers, answered)) = (unbounded(), unbounded());
        let (faults_of, faults) = unbounded();
        let thinker = Self {
            thinks: true,
            asked: asked_by,
            answers: answered,
            repairs: Vec::new(),
            faults: faults_of,
            usage: Usage::default(),
        };
        (thinker, Ends { asked, answers, faults })
    }
}

impl Proposer for Thinker {
    fn name(&self) -> &str {
        "thinker"
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        assert_eq!(fs::read_to_string(brief.folder.join(brief.edited)).unwrap(), brief.source);
        let asked = Asked {
            trial: brief.trial,
            source: brief.source.to_owned(),
            history: brief.history_text(),
            trials: brief.history.len(),
            running: brief.running.map(|running| {
                (running.trial, running.proposer.clone(), running.description.clone())
            }),
        };
        let _ = self.asked.send(asked);
        loop {
            if brief.stop.is_stopped() {
                return Err(ProposeError::Interrupted);
            }
            match self.answers.recv_timeout(Duration::from_millis(10)) {
                Ok(answer) => {
                    self.usage += Usage { usd: Some(0.25), tokens: None };
                    return answer;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ProposeError::Exhausted),
            }
        }
    }

    fn repair(
        &mut self,
        brief: &Brief<'_>,
        proposal: &Proposal,
        fault: &Fault,
    ) -> Result<Option<Proposal>, ProposeError> {
        assert_eq!(fs::read_to_string(brief.folder.join(brief.edited)).unwrap(), brief.source);
        assert!(brief.running.is_none());
        let _ = self.faults.send((brief.trial, fault.clone(), proposal.source.clone()));
        self.usage += Usage { usd: Some(0.25), tokens: None };
        Ok((!self.repairs.is_empty()).then(|| self.repairs.remove(0)))
    }

    fn take_usage(&mut self) -> Usage {
        std::mem::take(&mut self.usage)
    }

    fn thinks(&self) -> bool {
        self.thinks
    }
}

/// A study of the command, and the other ends of its thinker's channels.
struct Night {
    place: tempfile::TempDir,
    asked: Receiver<Asked>,
    answers: Sender<Result<Proposal, ProposeError>>,
    faults: Receiver<(usize, Fault, String)>,
    events: std::sync::mpsc::Receiver<Event>,
    stop: StopHandle,
    /// Until it is waited for.
    study: Option<JoinHandle<Result<Vec<Trial>, String>>>,
}

impl Night {
    fn new(trials: Option<usize>) -> Self {
        Self::with(trials, |_, _| {}, |study| study)
    }

    /// `prepare` is handed the folder of locks, and the thinker.
    fn with(
        trials: Option<usize>,
        prepare: impl FnOnce(&Path, &mut Thinker),
        describe: impl FnOnce(StudyBuilder) -> StudyBuilder + Send + 'static,
    ) -> Self {
        Self::at(tempfile::tempdir().unwrap(), trials, prepare, describe)
    }

    fn at(
        place: tempfile::TempDir,
        trials: Option<usize>,
        prepare: impl FnOnce(&Path, &mut Thinker),
        describe: impl FnOnce(StudyBuilder) -> StudyBuilder + Send + 'static,
    ) -> Self {
        let (observer, events) = overnight::events();
        let (mut thinker, Ends { asked, answers, faults }) = Thinker::new();
        let [project, locks, dir] =
            ["project", "locks", "study"].map(|name| place.path().join(name));
        for folder in [&project, &locks] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(project.join("value.rs"), source("3.0", "3.0")).unwrap();
        let script = "a=$(sed -n 's/^const A: f64 = \\(.*\\);/\\1/p' value.rs)\n\
                      b=$(sed -n 's/^const B: f64 = \\(.*\\);/\\1/p' value.rs)\n\
                      while [ -e \"LOCKS/$a-$b\" ]; do sleep 0.02; done\n\
                      [ -e \"LOCKS/crash-$a-$b\" ] && exit 3\n\
                      awk \"BEGIN { print \\\"METRIC sum=\\\" $a + $b }\"\n";
        let script = script.replace("LOCKS", locks.to_str().unwrap());
        fs::write(project.join("run.sh"), script).unwrap();
        prepare(&locks, &mut thinker);
        let stop = StopHandle::new();
        let handle = stop.clone();
        let study = spawn(move || {
            let command = CommandObjective::new(project, "value.rs", ["sh", "run.sh"]);
            let study = Study::builder(dir)
                .objective(command.minimize("sum"))
                .judge(JudgeRule::Greedy)
                .controls(0)
                .proposer(thinker)
                .observer(observer)
                .stop_handle(handle);
            let mut study = describe(study).open().map_err(|error| error.to_string())?;
            study.optimize(trials).map_err(|error| error.to_string())?;
            Ok(study.trials().to_vec())
        });
        Self { place, asked, answers, faults, events, stop, study: Some(study) }
    }

    fn dir(&self) -> PathBuf {
        self.place.path().join("study")
    }

    /// Waits until the thinker is asked for this trial.
    fn asked(&self, trial: usize) -> Asked {
        let asked = self.asked.recv().unwrap();
        assert_eq!(asked.trial, trial);
        asked
    }

    fn answer(&self, answer: Result<Proposal, ProposeError>) {
        self.answers.send(answer).unwrap();
    }

    /// Lets the trial of this source go on.
    fn unlock(&self, name: &str) {
        fs::remove_file(self.place.path().join("locks").join(name)).unwrap();
    }

    /// Waits until a trial is over; the events until then.
    fn finished(&self, trial: usize) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.events.recv().unwrap();
            let is_last = matches!(&event, Event::Finished(done) if done.trial == trial);
            events.push(event);
            if is_last {
                return events;
            }
        }
    }

    /// The trials when the study has ended; nobody was asked for anything more.
    fn end(&mut self) -> Vec<Trial> {
        let trials = self.study.take().unwrap().join().unwrap().unwrap();
        assert!(self.asked.try_recv().is_err(), "it was asked once more");
        trials
    }
}

fn lock(locks: &Path, name: &str) {
    fs::write(locks.join(name), "").unwrap();
}

pub fn a_proposer_thinks_while_a_trial_runs_and_is_rebased_where_that_is_kept() {
    let mut night = Night::with(Some(3), |locks, _| lock(locks, "2.0-3.0"), |study| study);
    let first = night.asked(1);
    assert_eq!((first.running, first.trials), (None, 1));
    night.answer(proposal("2.0", "3.0"));
    // As long as this is not unlocked, trial 1 runs.
    let second = night.asked(2);
    assert_eq!(second.running, Some((1, "thinker".to_owned(), "2.0 and 3.0".to_owned())));
    assert_eq!((second.source, second.trials), (source("3.0", "3.0"), 1));
    let told = "Trial 1 is being measured at this moment: 2.0 and 3.0 (by thinker).";
    assert!(second.history.contains(told), "{}", second.history);
    night.unlock("2.0-3.0");
    let events = night.finished(1);
    assert!(events.contains(&Event::Proposing { trial: 2, proposer: "thinker".to_owned() }));
    night.answer(proposal("3.0", "2.0"));
    // Trial 2 is kept, too, and trial 3 worse than what it is added to.
    assert_eq!(night.asked(3).source, source("2.0", "3.0"));
    night.answer(proposal("4.0", "3.0"));
    // Nobody thinks beyond the last trial.
    let trials = night.end();
    let statuses: Vec<_> = trials.iter().map(|trial| trial.status).collect();
    assert_eq!(statuses, [Status::Keep, Status::Keep, Status::Keep, Status::Discard]);
    let parents: Vec<_> = trials.iter().map(|trial| trial.parent).collect();
    assert_eq!(parents, [None, Some(0), Some(1), Some(2)]);
    let source_of = |trial: usize| {
        fs::read_to_string(night.dir().join(format!("trials/{trial:04}/source.rs"))).unwrap()
    };
    assert_eq!(source_of(2), source("2.0", "2.0"));
    assert_eq!(source_of(3), source("4.0", "2.0"));
    assert_eq!(trials[1].remarks, [""; 0]);
    assert_eq!(trials[2].remarks, ["written for trial 0, rebased on trial 1"]);
    assert_eq!(trials[3].remarks, ["written for trial 1, rebased on trial 2"]);
    let usd: Vec<_> = trials.iter().map(|trial| trial.measurement.propose_usd).collect();
    assert_eq!(usd, [None, Some(0.25), Some(0.25), Some(0.25)]);
}

pub fn a_proposal_that_contradicts_the_trial_before_is_asked_for_again() {
    // Another value for the same constant, and the very same source.
    for outdated in ["1.0", "2.0"] {
        let mut night = Night::new(Some(2));
        night.asked(1);
        night.answer(proposal("2.0", "3.0"));
        assert!(night.asked(2).running.is_some());
        night.answer(proposal(outdated, "3.0"));
        let again = night.asked(2);
        assert_eq!((again.running, again.trials), (None, 2));
        assert_eq!(again.source, source("2.0", "3.0"));
        night.answer(proposal("1.5", "3.0"));
        let trials = night.end();
        assert_eq!((trials.len(), trials[2].status), (3, Status::Keep));
        assert_eq!((trials[2].description.as_str(), trials[2].repairs), ("1.5 and 3.0", 0));
        // What was thrown away has cost as much.
        assert_eq!(trials[2].measurement.propose_usd, Some(0.5));
    }
}

pub fn a_trial_is_on_record_while_somebody_still_thinks_about_the_next() {
    let mut night = Night::new(None);
    night.asked(1);
    night.answer(proposal("2.0", "3.0"));
    night.asked(2);
    // It thinks on, and the trial is not held up.
    night.finished(1);
    assert_eq!(Ledger::read(&night.dir()).unwrap().len(), 2);
    night.stop.stop();
    assert_eq!(night.end().len(), 2);

    let mut night = Night::at(night.place, Some(1), |_, _| {}, |study| study);
    let asked = night.asked(2);
    assert_eq!((asked.running, asked.source), (None, source("2.0", "3.0")));
    night.answer(proposal("2.0", "2.0"));
    let trials = night.end();
    assert_eq!((trials.len(), trials[2].status), (3, Status::Keep));
}

pub fn failures_ahead_are_told_and_harm_no_trial() {
    let mut night = Night::with(None, |locks, _| lock(locks, "2.0-3.0"), |study| study);
    night.asked(1);
    night.answer(proposal("2.0", "3.0"));
    night.asked(2);
    night.answer(asked_in_vain("no connection"));
    assert!(night.asked(2).running.is_some());
    night.answer(Err(ProposeError::Exhausted));
    // Both are told before the trial is over.
    let told = |event: &Event| match event {
        Event::ProposerFailed { reason, .. } => reason == "no connection",
        Event::ProposerRetired { .. } => true,
        _ => false,
    };
    assert_eq!(night.events.iter().filter(told).take(2).count(), 2);
    night.unlock("2.0-3.0");
    let trials = night.end();
    assert_eq!((trials.len(), trials[1].outcome.clone()), (2, Outcome::Measured));
}

pub fn an_allowance_counts_the_trial_that_runs() {
    let mut night =
        Night::with(None, |_, _| {}, |study| study.allowance("0.5usd".parse().unwrap()));
    night.asked(1);
    night.answer(proposal("2.0", "3.0"));
    night.asked(2);
    night.answer(proposal("3.0", "2.0"));
    assert_eq!(night.end().len(), 3);

    // What was thrown away counts, too, and has a trial to stand by.
    let mut night =
        Night::with(None, |_, _| {}, |study| study.allowance("0.5usd".parse().unwrap()));
    night.asked(1);
    night.answer(proposal("2.0", "3.0"));
    night.asked(2);
    night.answer(proposal("1.0", "3.0"));
    night.asked(2);
    night.answer(proposal("2.0", "2.0"));
    let trials = night.end();
    let usd = trials.iter().filter_map(|trial| trial.measurement.propose_usd);
    assert_eq!((trials.len(), usd.sum::<f64>()), (3, 0.75));
}

pub fn during_a_control_run_the_trial_after_it_is_thought_about() {
    let mut night =
        Night::with(Some(2), |_, _| {}, |study| study.controls(1).control_every(Some(2)));
    let asked = night.asked(2);
    let control = (1, "control".to_owned(), "trial 0 again".to_owned());
    assert_eq!((asked.running, asked.trials), (Some(control), 1));
    night.answer(proposal("2.0", "3.0"));
    // Trial 3 is a control run again.
    let asked = night.asked(4);
    assert_eq!(asked.running.map(|(trial, ..)| trial), Some(2));
    night.answer(proposal("3.0", "2.0"));
    let trials = night.end();
    let controls: Vec<_> = trials.iter().map(|trial| trial.repeats.is_some()).collect();
    assert_eq!(controls, [false, true, false, true, false]);
    assert_eq!(trials[4].remarks, ["written for trial 0, rebased on trial 2"]);

    // Where nothing but control runs is wanted, nobody thinks.
    let mut night = Night::with(Some(0), |_, _| {}, |study| study.controls(2));
    assert_eq!(night.end().len(), 3);
}

pub fn repairs_of_either_trial_go_to_its_author() {
    let crashing = |locks: &Path, thinker: &mut Thinker| {
        // Trial 1, and what becomes of trial 2 when it is rebased.
        lock(locks, "crash-9.0-3.0");
        lock(locks, "crash-2.0-2.0");
        let repair = |a, b| proposal(a, b).unwrap();
        thinker.repairs = vec![repair("2.0", "3.0"), repair("2.0", "2.5")];
    };
    let mut night = Night::with(Some(2), crashing, |study| study);
    night.asked(1);
    night.answer(proposal("9.0", "3.0"));
    night.asked(2);
    night.answer(proposal("3.0", "2.0"));
    let faults = night.faults.clone();
    let trials = night.end();
    let faults: Vec<_> = faults.iter().map(|(trial, _, source)| (trial, source)).collect();
    assert_eq!(faults, [(1, source("9.0", "3.0")), (2, source("2.0", "2.0"))]);
    for trial in &trials[1..] {
        assert_eq!((trial.status, trial.repairs), (Status::Keep, 1), "{trial:#?}");
        assert_eq!(trial.measurement.propose_usd, Some(0.5));
    }
    assert_eq!(trials[2].remarks, ["written for trial 0, rebased on trial 1"]);
}

pub fn who_does_not_think_is_asked_when_all_is_known() {
    for thinks in [true, false] {
        let mut night = Night::with(
            Some(2),
            |_, thinker| thinker.thinks = thinks,
            move |study| if thinks { study.without_thinking_ahead() } else { study },
        );
        for (trial, a) in [(1, "2.0"), (2, "1.0")] {
            let asked = night.asked(trial);
            assert_eq!((asked.running, asked.trials), (None, trial));
            night.answer(proposal(a, "3.0"));
        }
        assert_eq!(night.end().len(), 3);
    }
}

pub fn an_agent_thinks_ahead_of_a_trainer() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let script = dir.path().join("agent.sh");
    fs::write(
        &script,
        "if grep -q 'being measured' HISTORY.md; then\n\
           cp HISTORY.md ../../..\n\
           sed -i 's/{ 100_000 } else { 32 }/{ 100_000 } else { 48 }/' src/train.rs\n\
           echo 'DESCRIPTION: longer rows'\n\
         else\n\
           sed -i 's/= 30.0;/= 3.0;/' src/train.rs; echo 'DESCRIPTION: less smoothing'\n\
         fi\n",
    )
    .unwrap();
    let study = dir.path().join("study");
    let spec = format!("sh {}", script.display()).parse().unwrap();
    let study = tiny::study(&study, corpus.path()).proposer(Agent::new(spec));
    let mut study = study.open().unwrap();
    study.optimize(Some(2)).unwrap();
    let trials = study.trials();
    assert_eq!(trials.len(), 3);
    assert_eq!(trials[2].description, "longer rows");
    assert_eq!(trials[2].remarks, ["written for trial 0, rebased on trial 1"]);
    let told = fs::read_to_string(dir.path().join("HISTORY.md")).unwrap();
    assert!(told.contains("Trial 1 is being measured at this moment: less smoothing (by sh)"));
    // What it said lies with the trial that it is about.
    assert!(study.folder_of(2).join("propose.out").exists());
    let source = fs::read_to_string(study.folder_of(2).join("source.rs")).unwrap();
    assert!(source.contains("= 3.0;") && source.contains("else { 48 }"), "{source}");
}

pub fn beside_a_trial_on_a_card_the_next_one_is_built() {
    for has_card in [true, false] {
        let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
        // Where there is this file, trial 1 trains on. It may look, since nothing is confined.
        let lock = dir.path().join("lock");
        fs::write(&lock, "").unwrap();
        let wait = format!(
            "while session.progress() > 0.5 && Path::new({lock:?}).exists() {{ \
             std::thread::sleep(std::time::Duration::from_millis(20)); }}\n\
             match DEED {{ Deed::PanicInTraining =>"
        );
        let slow = tiny::smoothing("60.0")
            .replace("match DEED {\n                Deed::PanicInTraining =>", &wait);
        assert!(slow.contains("session.progress() > 0.5 && Path"));

        let (thinker, Ends { asked, answers, .. }) = Thinker::new();
        let mut study = tiny::study(&dir.path().join("study"), corpus.path())
            .sandbox(Sandbox::Off)
            .proposer(thinker);
        if has_card {
            // The tiny trainer does not touch it.
            study = study.cuda_device(0);
        }
        let mut study = study.open().unwrap();
        let library = |trial: usize| {
            let name = format!("trainer{}", std::env::consts::DLL_SUFFIX);
            dir.path().join(format!("study/trials/{trial:04}")).join(name)
        };
        let night = spawn(move || {
            study.optimize(Some(2)).unwrap();
            study.trials().to_vec()
        });
        let propose = |trial, source| {
            assert_eq!(asked.recv().unwrap().trial, trial);
            answers.send(Ok(Proposal::new(source, "an idea"))).unwrap();
        };
        propose(1, slow);
        propose(2, tiny::smoothing("3.0"));
        if has_card {
            while !library(2).exists() {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Whoever builds it in its turn will not find out that it became the baseline's.
            let other = dir.path().join("other");
            fs::copy(library(0), &other).unwrap();
            fs::rename(&other, library(2)).unwrap();
        }
        assert_eq!(library(2).exists(), has_card, "trial 1 still trains");
        fs::remove_file(&lock).unwrap();
        let trials = night.join().unwrap();
        let score = |trial: usize| trials[trial].score().unwrap();
        assert_eq!(trials[1].status, Status::Discard, "{trials:#?}");
        assert_eq!(score(2) == score(0), has_card, "{trials:#?}");
        assert!(trials[2].measurement.build_seconds.is_some());
    }
}
