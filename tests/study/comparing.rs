//! Contenders against each other: in turn, from one baseline, to a verdict.

use crate::tiny::{self, Sources};
use overnight::{
    Ledger, StopHandle, Trial,
    comparison::{Comparison, Contender, Turn},
};
use std::path::{Path, PathBuf};

const REPETITIONS: usize = 2;

fn contender(name: &'static str, smoothings: [&'static str; 2]) -> Contender {
    let hire = move |_seed| {
        let sources = smoothings.map(|value| ("another smoothing", tiny::smoothing(value)));
        Ok(Sources(sources.into()))
    };
    Contender::new(name, hire).program(format!("Be {name}."))
}

/// Good smoothings against useless ones.
fn comparison(dir: &Path, corpus: &Path) -> Comparison {
    let corpus: PathBuf = corpus.to_owned();
    Comparison::new(dir, move |dir| tiny::study(dir, &corpus))
        .repetitions(REPETITIONS)
        .contender(contender("useless", ["60.0", "90.0"]))
        .contender(contender("good", ["3.0", "0.3"]))
}

fn ledger(dir: &Path, repetition: usize, name: &str) -> Vec<Trial> {
    Ledger::read(&dir.join(format!("seed-{repetition}")).join(name)).unwrap()
}

pub fn contenders_take_turns_and_the_better_one_is_named() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut turns = Vec::new();
    // More trials than either has sources for: who has nothing left stays where it is.
    let standings = comparison(dir.path(), corpus.path())
        .run(4, |turn| turns.push((turn.trial.trial, turn.repetition, turn.contender.to_owned())))
        .unwrap()
        .unwrap();

    assert_eq!(turns.len(), 3 * REPETITIONS * 2);
    assert!(turns.is_sorted_by_key(|(trial, repetition, _)| (*trial, *repetition)), "{turns:?}");
    let first: Vec<_> = turns.iter().step_by(2).map(|(.., name)| name.as_str()).collect();
    assert_eq!(first, ["useless", "good", "good", "good", "good", "useless"]);

    for repetition in 0..REPETITIONS {
        let (good, useless) =
            (ledger(dir.path(), repetition, "good"), ledger(dir.path(), repetition, "useless"));
        assert_eq!(good[0].source_sha256, useless[0].source_sha256);
        assert_eq!(good[0].cost(), useless[0].cost());
        assert_eq!(good[0].seed, repetition as u64);
        // In time as well: nobody begins a trial before both have finished the one before.
        for (these, those) in [(&good, &useless), (&useless, &good)] {
            for (earlier, later) in these.iter().zip(&those[1..]) {
                assert!(earlier.started < later.started, "{earlier:#?} {later:#?}");
            }
        }
    }

    assert_eq!(standings.rounds, 2);
    let text = standings.to_string();
    assert_eq!(standings.contenders[0].name, "good", "{text}");
    assert_eq!((standings.contenders[0].kept, standings.contenders[1].kept), (2.0, 0.0), "{text}");
    assert!(standings.leads[0].is_decided(), "{text}");
    assert!(text.contains("good makes faster progress than useless"), "{text}");
}

pub fn a_comparison_that_was_stopped_goes_on() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let run = |trials, on_turn: Box<dyn FnMut(Turn<'_>)>, stop: StopHandle| {
        let comparison = comparison(dir.path(), corpus.path()).repetitions(1).stop_handle(stop);
        comparison.run(trials, on_turn).unwrap()
    };
    // In the middle of the second round of trials.
    let stop = StopHandle::new();
    let pull = stop.clone();
    let stopping = move |turn: Turn<'_>| {
        if turn.trial.trial == 2 {
            pull.stop();
        }
    };
    let partial = run(2, Box::new(stopping), stop).unwrap();
    assert_eq!(partial.rounds, 1);
    let lengths = || ["good", "useless"].map(|name| ledger(dir.path(), 0, name).len());
    assert_eq!(lengths().iter().sum::<usize>(), 5);

    let whole = run(2, Box::new(|_| {}), StopHandle::new()).unwrap();
    assert_eq!(whole.rounds, 2);
    assert_eq!(lengths(), [3, 3]);
    assert!(!whole.leads[0].is_decided(), "one night decides nothing: {whole}");
}
