//! Proposers at work in whole studies: agents, repairs, mixtures, allowances, control runs.

use crate::tiny::{self, Sources};
use overnight::{
    Event, Outcome, Status, StudyBuilder, Trial,
    proposer::{Agent, Brief, Fault, Proposal, ProposeError, Proposer, Usage},
};
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A study of the tiny trainer with a proposer, run to its end or for some trials.
fn night(
    dir: &Path,
    trials: Option<usize>,
    with: impl FnOnce(StudyBuilder) -> StudyBuilder,
) -> Vec<Trial> {
    let corpus = tiny::corpus();
    night_on(corpus.path(), dir, trials, with)
}

fn night_on(
    corpus: &Path,
    dir: &Path,
    trials: Option<usize>,
    with: impl FnOnce(StudyBuilder) -> StudyBuilder,
) -> Vec<Trial> {
    let mut study = with(tiny::study(dir, corpus)).open().unwrap();
    study.optimize(trials).unwrap();
    study.trials().to_vec()
}

/// Proposes one source and mends it to the next on the list, remembering what it was told.
struct Mending {
    versions: Vec<String>,
    faults: Arc<Mutex<Vec<Fault>>>,
    usage: Usage,
}

impl Mending {
    fn new(versions: Vec<String>, faults: Arc<Mutex<Vec<Fault>>>) -> Self {
        Self { versions, faults, usage: Usage::default() }
    }
}

impl Proposer for Mending {
    fn name(&self) -> &str {
        "mending"
    }

    fn propose(&mut self, _: &Brief<'_>) -> Result<Proposal, ProposeError> {
        if self.versions.is_empty() {
            return Err(ProposeError::Exhausted);
        }
        self.usage = Usage { usd: Some(0.25), tokens: Some(500) };
        Ok(Proposal::new(self.versions.remove(0), "an idea"))
    }

    fn repair(
        &mut self,
        brief: &Brief<'_>,
        proposal: &Proposal,
        fault: &Fault,
    ) -> Result<Option<Proposal>, ProposeError> {
        self.faults.lock().unwrap().push(fault.clone());
        assert!(brief.trial > 0 && !proposal.source.is_empty());
        self.usage = Usage { usd: Some(0.25), tokens: Some(500) };
        Ok(Some(Proposal::new(self.versions.remove(0), "the idea, mended")))
    }

    fn take_usage(&mut self) -> Usage {
        std::mem::take(&mut self.usage)
    }
}

pub fn what_does_not_compile_crashes_or_repeats_goes_back_to_its_author() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Mutex::new(Vec::new()));
    let broken = tiny::source().replace("let seq_len =", "let seq_len: String =");
    // The baseline again, but for layout and comments.
    let same = format!("// A new idea!\n\n{}", tiny::source().replace("    ", "  "));
    let versions = vec![same, broken, tiny::doing("PanicInTraining"), tiny::smoothing("3.0")];
    let mending = Mending::new(versions, faults.clone());
    let trials = night(dir.path(), None, |study| study.proposer(mending).repairs(3));

    assert_eq!(trials.len(), 2, "{trials:#?}");
    let trial = &trials[1];
    assert_eq!((trial.status, trial.repairs), (Status::Keep, 3));
    assert_eq!(trial.description, "the idea, mended");
    assert_eq!(trial.measurement.propose_usd, Some(1.0));
    let faults = faults.lock().unwrap();
    assert_eq!(faults[0], Fault::Repeats { trial: 0 });
    assert!(
        matches!(&faults[1], Fault::DoesNotCompile { diagnostics } if diagnostics.contains("expected `String`")),
        "{:?}",
        faults[1]
    );
    assert!(
        matches!(&faults[2], Fault::Crashed { reason, log }
            if reason.contains("a shape does not fit") && log.contains("a shape does not fit")),
        "{:?}",
        faults[2]
    );
    // What failed is kept beside what became of it.
    let folder = dir.path().join("trials/0001");
    assert!(folder.join("version-2/build.log").exists());
    assert!(folder.join("version-3/run.log").exists());
    assert_eq!(fs::read_to_string(folder.join("source.rs")).unwrap(), tiny::smoothing("3.0"));
}

pub fn repairs_end_and_then_the_trial_counts() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Mutex::new(Vec::new()));
    let broken = |n: usize| format!("{}\nconst BROKEN_{n}: String = 1;\n", tiny::source());
    let mending = Mending::new((0..3).map(broken).collect(), faults);
    let trials = night(dir.path(), None, |study| study.proposer(mending).repairs(2));
    assert_eq!((trials[1].outcome.clone(), trials[1].repairs), (Outcome::BuildFailed, 2));
    assert_eq!(trials.len(), 2);
}

pub fn an_agent_edits_the_trainer() {
    let dir = tempfile::tempdir().unwrap();
    // Mends its own mistake when the compiler's words come back, and leaves a stray file.
    let script = dir.path().join("agent.sh");
    fs::write(
        &script,
        "cat > ../task; cp HISTORY.md ../seen\n\
         if grep -q 'does not compile' ../task; then\n\
           sed -i 's/= oops;/= 3.0;/' src/train.rs; echo 'DESCRIPTION: less smoothing'\n\
         else\n\
           grep -q 'next_batch' reference/plugin-api.md || exit 9\n\
           sed -i 's/= 30.0;/= oops;/' src/train.rs; echo stray > notes.txt\n\
         fi\n",
    )
    .unwrap();
    let study = dir.path().join("study");
    let spec = format!("sh {}", script.display()).parse().unwrap();
    let trials = night(&study, Some(1), |study| study.proposer(Agent::new(spec)));
    let trial = &trials[1];
    assert_eq!((trial.status, trial.repairs), (Status::Keep, 1), "{trial:#?}");
    assert_eq!((trial.proposer.as_str(), trial.description.as_str()), ("sh", "less smoothing"));
    assert_eq!(trial.remarks, ["ignored: notes.txt (new)"]);
    assert!(fs::read_to_string(study.join("brief/seen")).unwrap().contains("baseline"));
}

pub fn a_night_goes_on_when_an_agent_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, events) = overnight::events();
    let useless: overnight::proposer::AgentSpec =
        "sh -c 'echo no credit >&2; exit 1'".parse().unwrap();
    let trials = night(dir.path(), Some(3), |study| {
        let sources = Sources(vec![
            ("less smoothing", tiny::smoothing("3.0")),
            ("even less", tiny::smoothing("1.0")),
            ("hardly any", tiny::smoothing("0.5")),
        ]);
        study.proposer(Agent::new(useless)).proposer(sources).observer(sender)
    });
    assert_eq!(trials.len(), 4);
    assert!(trials[1..].iter().all(|trial| trial.proposer == "sources"), "{trials:#?}");
    // Whether the agent had its turn is chance, and what became of it is told.
    for event in events.try_iter() {
        if let Event::ProposerFailed { proposer, reason, .. } = event {
            assert_eq!(proposer, "sh");
            assert!(reason.contains("no credit"), "{reason}");
        }
    }
}

pub fn a_failing_proposer_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut failures = 5;
    let propose = move |brief: &Brief<'_>| {
        if failures > 0 {
            failures -= 1;
            return Err(ProposeError::Failed("no connection".to_owned()));
        }
        Ok(Proposal::new(brief.source.replace("= 30.0;", "= 3.0;"), "less smoothing"))
    };
    let trials = night(dir.path(), Some(1), |study| {
        study.proposer(propose).first_pause(Duration::from_millis(1))
    });
    assert_eq!(trials[1].status, Status::Keep);
}

pub fn a_spent_allowance_ends_the_study_well() {
    let dir = tempfile::tempdir().unwrap();
    let versions = ["3.0", "2.0", "1.0", "0.5"].map(tiny::smoothing).to_vec();
    let mending = Mending::new(versions, Arc::default());
    let corpus = tiny::corpus();
    let open = |proposer: Mending| {
        night_on(corpus.path(), dir.path(), None, |study| {
            study.proposer(proposer).allowance("0.5usd".parse().unwrap())
        })
    };
    // A quarter of a dollar each.
    let trials = open(mending);
    assert_eq!(trials.len(), 3);
    // What was spent is remembered.
    let versions = vec![tiny::smoothing("0.1")];
    assert_eq!(open(Mending::new(versions, Arc::default())).len(), 3);
}

pub fn control_runs_tell_the_noise() {
    let dir = tempfile::tempdir().unwrap();
    let noise = Arc::new(Mutex::new(None));
    let seen = noise.clone();
    let propose = move |brief: &Brief<'_>| {
        *seen.lock().unwrap() = brief.noise;
        assert!(brief.history_text().contains("standard deviation"), "{}", brief.history_text());
        Ok(Proposal::new(brief.source.replace("= 30.0;", "= 3.0;"), "less smoothing"))
    };
    let trials = night(dir.path(), Some(1), |study| study.proposer(propose).controls(2));
    assert_eq!(trials.len(), 4);
    for control in &trials[1..3] {
        assert_eq!((control.repeats, control.status), (Some(0), Status::Discard));
        assert_ne!(control.seed, trials[0].seed);
        assert_eq!(control.source_sha256, trials[0].source_sha256);
    }
    // Another seed is another order of the data.
    let noise = noise.lock().unwrap().unwrap();
    assert!(noise > 0.0 && noise < 0.1, "{noise}");
    assert_eq!(trials[3].status, Status::Keep);
}

pub fn the_judge_says_what_it_believes_and_remembers_it() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let open = || {
        let propose = |brief: &Brief<'_>| {
            let smoothing = format!("{:.1}", 3.0 + brief.trial as f64);
            Ok(Proposal::new(tiny::smoothing(&smoothing), "another smoothing"))
        };
        let study = tiny::study(dir.path(), corpus.path()).proposer(propose);
        study.controls(1).control_every(Some(3)).open().unwrap()
    };
    let mut study = open();
    study.optimize(Some(4)).unwrap();
    let controls: Vec<_> = study.trials().iter().map(|trial| trial.repeats.is_some()).collect();
    assert_eq!(controls, [false, true, false, false, true, false, false]);
    let evidence = study.trials()[2].evidence.unwrap();
    assert!(evidence.improves > 0.9 && evidence.expected_gain > 1.0, "{evidence:?}");
    assert!(study.trials()[0].evidence.is_none());

    let claim = study.claim().unwrap();
    let (low, high) = claim.interval();
    let measured =
        study.trials()[0].score().unwrap() - study.best_trial().unwrap().score().unwrap();
    assert!(low < measured && measured < high, "{claim:?}, {measured}");
    drop(study);
    assert_eq!(open().claim(), Some(claim));
    assert!(overnight::report::summary(open().trials()).contains("claimed_gain:"));
}
