//! What a compiler learns from its study, and that it and a worker end with it.

use crate::{outcomes, surviving, tiny};
use overnight::Ledger;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

/// Something in the environment that all compilers of a study inherit, and nobody else has.
pub const MARK: &str = "USER";

/// The command lines of the living processes with this mark.
pub fn marked(mark: &str) -> Vec<String> {
    with(&format!("{MARK}={mark}"))
}

/// The command lines of the living processes with this in their environment.
pub fn with(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        // A zombie has neither.
        let read = |name| fs::read(process.path().join(name)).unwrap_or_default();
        if read("environ").split(|&byte| byte == 0).any(|entry| entry == mark.as_bytes()) {
            found.push(String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
        }
    }
    found
}

pub fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A study that runs until it has proposed `source`.
fn start(place: &Path, source: &str, mark: &str) -> Child {
    fs::write(place.join("source.rs"), source).unwrap();
    let mut victim = surviving::victim(place);
    victim.env(surviving::SOURCE, place.join("source.rs")).env(MARK, mark);
    victim.env("CARGO_REGISTRY_TOKEN", "secret-one").env("CARGO_REGISTRIES_X_TOKEN", "secret-two");
    victim.spawn().unwrap()
}

pub fn a_compiler_dies_with_its_study() {
    let long = Duration::from_secs(200);
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP] {
        let place = surviving::place();
        let mark = format!("{}-{}", std::process::id(), signal.as_raw());
        let mut victim = start(place.path(), &outcomes::endless(), &mark);
        wait_for("the baseline", long, || {
            Ledger::read(&place.path().join("study")).is_ok_and(|trials| trials.len() == 1)
        });
        let compiles = |line: &String| line.contains("--crate-name") && line.contains("lib.rs");
        wait_for("the compiler", long, || marked(&mark).iter().any(compiles));
        kill_process(Pid::from_child(&victim), signal).unwrap();
        victim.wait().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) && !marked(&mark).is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = marked(&mark);
        println!("{signal:?}: {} left after {:?}", left.len(), begun.elapsed());
        assert!(left.is_empty(), "{left:#?}");

        // And its locks are gone, too. What it was at would be taken up again, and compile without end.
        let _ = fs::remove_file(place.path().join("study/trials/0001/asked.json"));
        let mut next = start(place.path(), &tiny::smoothing("9.0"), &mark);
        wait_for("the next study", long, || next.try_wait().unwrap().is_some());
        assert_eq!(Ledger::read(&place.path().join("study")).unwrap().len(), 2);
    }
}

pub fn a_worker_dies_with_its_study() {
    let place = surviving::place();
    // It hangs, and would for ever.
    let mut victim = start(place.path(), &tiny::doing("Hang"), "somebody");
    let long = Duration::from_secs(200);
    wait_for("the baseline", long, || {
        Ledger::read(&place.path().join("study")).is_ok_and(|trials| trials.len() == 1)
    });
    let worker = format!("OVERNIGHT_WORKER={}", victim.id());
    let mut since = Instant::now();
    // No other lives as long.
    wait_for("the worker", long, || {
        if with(&worker).is_empty() {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_secs(3)
    });
    kill_process(Pid::from_child(&victim), Signal::KILL).unwrap();
    victim.wait().unwrap();
    wait_for("the worker's end", Duration::from_secs(5), || with(&worker).is_empty());
}

pub fn no_secret_of_the_environment_reaches_a_compiler() {
    let told = "compile_error!(concat!(\"it is \", env!(\"CARGO_REGISTRY_TOKEN\")));";
    let carried = "pub const STOLEN: Option<&str> = option_env!(\"CARGO_REGISTRIES_X_TOKEN\");";
    // The compiler's own words are kept, and so what a constant panics with.
    let shouted = "const _: () = match option_env!(\"CARGO_REGISTRY_TOKEN\") {\n    Some(secret) \
                   => panic!(\"{}\", secret),\n    None => panic!(\"nothing there\"),\n};";
    for (theft, reason) in [
        (told, "CARGO_REGISTRY_TOKEN"),
        (carried, "reads the variable CARGO_REGISTRIES_X_TOKEN"),
        (shouted, "nothing there"),
    ] {
        let place = surviving::place();
        let source = format!("{}\n{theft}\n", tiny::source());
        assert!(start(place.path(), &source, "somebody").wait().unwrap().success());
        let study = place.path().join("study");
        let trials = Ledger::read(&study).unwrap();
        let said = trials[1].reason.as_deref().unwrap_or_default();
        assert!(said.contains(reason), "{theft}: {said}");
        let log = fs::read_to_string(study.join("trials/0001/build.log")).unwrap();
        let ledger = fs::read_to_string(study.join("trials.jsonl")).unwrap();
        assert!(!log.contains("secret-") && !ledger.contains("secret-"), "{log}");
    }
}
