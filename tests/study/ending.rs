//! All that a study has started ends with it, however that comes about; and an end that is asked for is a good one.

use crate::{
    compiling::{MARK, marked, wait_for},
    surviving, tiny,
};
use overnight::Ledger;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(200);

fn trials(place: &Path) -> usize {
    Ledger::read(&place.join("study")).map_or(0, |trials| trials.len())
}

/// A study whose agent leaves `alive` and goes on for ever, as does a daemon of its.
fn with_an_agent(place: &Path, mark: &str) -> Command {
    let script = format!(
        "trap '' HUP INT TERM; setsid sleep 1000 & touch '{}'; sleep 1000",
        place.join("alive").display()
    );
    let path = place.join("agent.sh");
    fs::write(&path, script).unwrap();
    let mut victim = surviving::victim(place);
    victim.env(surviving::AGENT, format!("sh '{}'", path.display())).env(MARK, mark);
    victim
}

/// A study with a trial that trains for ever, and has begun to.
fn training(place: &Path, mark: &str, with: &[&str]) -> Child {
    let source = place.join("source.rs");
    fs::write(&source, tiny::doing("Hang")).unwrap();
    let mut victim = surviving::victim(place);
    victim.env(surviving::SOURCE, source).env(MARK, mark);
    for name in with {
        victim.env(name, "1");
    }
    let child = victim.spawn().unwrap();
    wait_for("the baseline", LONG, || trials(place) == 1);
    child
}

pub fn an_agent_and_its_daemons_die_with_their_study() {
    for (signal, ends_well) in [
        (Signal::KILL, false),
        (Signal::TERM, false),
        (Signal::HUP, false),
        (Signal::TERM, true),
        (Signal::HUP, true),
    ] {
        let place = surviving::place();
        let mark = format!("agent-{}-{}", std::process::id(), signal.as_raw());
        let mut victim = with_an_agent(place.path(), &mark);
        if ends_well {
            victim.env(surviving::ENDS_WELL, "1");
        }
        let mut victim = victim.spawn().unwrap();
        wait_for("the agent", LONG, || place.path().join("alive").exists());
        wait_for("its daemon", LONG, || {
            let sleeps = |line: &&String| line.starts_with("sleep 1000");
            marked(&mark).iter().filter(sleeps).count() == 2
        });
        kill_process(Pid::from_child(&victim), signal).unwrap();
        let status = victim.wait().unwrap();
        assert_eq!(status.success(), ends_well, "{signal:?}: {status}");
        wait_for("the agent's end", Duration::from_secs(10), || marked(&mark).is_empty());
    }
}

pub fn a_study_that_is_asked_to_end_does_so_well() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let place = surviving::place();
        let mark = format!("asked-{}-{}", std::process::id(), signal.as_raw());
        let mut victim = training(place.path(), &mark, &[surviving::ENDS_WELL]);
        kill_process(Pid::from_child(&victim), signal).unwrap();
        let status = victim.wait().unwrap();
        assert!(status.success(), "{signal:?}: {status}");
        wait_for("the end of all", Duration::from_secs(10), || marked(&mark).is_empty());
    }
}

pub fn a_study_under_nohup_takes_no_notice_of_a_hangup() {
    let place = surviving::place();
    let mark = format!("nohup-{}", std::process::id());
    let with = [surviving::ENDS_WELL, surviving::NO_HANGUP];
    let mut victim = training(place.path(), &mark, &with);
    kill_process(Pid::from_child(&victim), Signal::HUP).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(victim.try_wait().unwrap().is_none(), "the hangup ended it");
    kill_process(Pid::from_child(&victim), Signal::TERM).unwrap();
    assert!(victim.wait().unwrap().success());
}
