//! Studies on a card, as far as they can be seen without one: which card it is, what its driver needs of a
//! worker's sandbox, and what is said where something is missing.

use crate::{
    surviving,
    tiny::{self, Sources},
};
use overnight::{Config, Error, Ledger, Outcome, Sandbox, Study, data::DataSpec};
use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    process::{Command, Output},
};

/// A program of this name in a folder.
fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A driver that knows one card, of which every process has 123 MiB.
fn driver(folder: &Path, card: &str) {
    let script = format!(
        "case \"$*\" in\n*compute-apps*) for p in /proc/[0-9]*; do \
         echo \"${{p#/proc/}}, 123\"; done ;;\n*memory.used*) echo 900 ;;\n*) echo '{card}' ;;\nesac"
    );
    program(folder, "nvidia-smi", &script);
}

/// A study with its baseline alone, for which these programs are there.
fn victim(place: &Path, bin: &Path) -> Command {
    let path = std::env::var("PATH").unwrap();
    let mut victim = surviving::victim(place);
    victim.env(surviving::CARD, "0").env(surviving::TRIALS, "0");
    victim.env("PATH", format!("{}:{path}", bin.display()));
    victim.env_remove("CUDA_VISIBLE_DEVICES").stderr(std::process::Stdio::piped());
    victim
}

fn on_a_card(place: &Path, driver: &Path) -> Output {
    victim(place, driver).output().unwrap()
}

pub fn a_card_is_known_by_its_driver_and_another_one_is_refused() {
    let (place, bin) = (surviving::place(), tempfile::tempdir().unwrap());
    driver(bin.path(), "A card, GPU-1, 9.0");
    let output = on_a_card(place.path(), bin.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let study = place.path().join("study");
    let trials = Ledger::read(&study).unwrap();
    assert_eq!(trials[0].measurement.peak_vram_mb, Some(123.0));
    assert!(Config::read(&study).is_ok());
    let frozen = fs::read_to_string(study.join("study.json")).unwrap();
    assert!(frozen.contains("\"card\": \"A card\""), "{frozen}");
    assert!(frozen.contains("\"card_uuid\": \"GPU-1\""), "{frozen}");

    // One like it is as good.
    driver(bin.path(), "A card, GPU-2, 9.0");
    let output = on_a_card(place.path(), bin.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    driver(bin.path(), "Another card, GPU-3, 9.0");
    let output = on_a_card(place.path(), bin.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Another card"), "{said}");
}

/// As in a container: its processes have other numbers outside, and are not listed.
pub fn where_a_driver_lists_no_processes_the_memory_in_use_tells() {
    let (place, bin) = (surviving::place(), tempfile::tempdir().unwrap());
    let asked = bin.path().join("asked");
    let script = format!(
        "case \"$*\" in\n*compute-apps*) ;;\n*memory.used*) if [ -e '{0}' ]; then echo 350; else \
         touch '{0}'; echo 100; fi ;;\n*) echo 'A card, GPU-1, 9.0' ;;\nesac",
        asked.display()
    );
    program(bin.path(), "nvidia-smi", &script);
    let output = on_a_card(place.path(), bin.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trials = Ledger::read(&place.path().join("study")).unwrap();
    assert_eq!(trials[0].measurement.peak_vram_mb, Some(250.0));
}

/// The trainer does not compile but for a card, by a build that was told of compiler and card, in a folder
/// where trainers for the processor are not.
pub fn a_trainer_is_compiled_for_a_card_apart_from_others() {
    let (place, bin) = (surviving::place(), tempfile::tempdir().unwrap());
    driver(bin.path(), "A card, GPU-1, 9.0");
    let (toolkit, trainer) = (place.path().join("a toolkit"), place.path().join("trainer"));
    fs::create_dir_all(toolkit.join("bin")).unwrap();
    fs::create_dir_all(toolkit.join("lib64")).unwrap();
    program(&toolkit.join("bin"), "nvcc", "echo \"$CUDA_COMPUTE_CAP $CUDA_HOME $LIBRARY_PATH\"");
    let toolkit = toolkit.canonicalize().unwrap();
    let needs = "#[cfg(not(all(feature = \"cuda\", told)))]\ncompile_error!(\"not for cards\");\n";
    tiny::copy(&trainer, &(tiny::source() + needs));
    let manifest = trainer.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap() + "\n[features]\ncuda = []\n";
    fs::write(&manifest, text).unwrap();
    let (home, libraries) = (toolkit.display(), toolkit.join("lib64"));
    let told = format!("90 {home} {}:{}/stubs", libraries.display(), libraries.display());
    let script = format!(
        "fn main() {{\n\
         println!(\"cargo::rustc-check-cfg=cfg(told)\");\n\
         let Some(nvcc) = std::env::var_os(\"NVCC\") else {{ return }};\n\
         let said = std::process::Command::new(nvcc).output().unwrap().stdout;\n\
         if String::from_utf8_lossy(&said).starts_with({told:?}) {{ \
         println!(\"cargo::rustc-cfg=told\"); }}\n}}\n"
    );
    fs::write(trainer.join("build.rs"), script).unwrap();

    let mut victim = victim(place.path(), bin.path());
    victim.env(surviving::TRAINER, &trainer).env("CUDA_HOME", &toolkit);
    victim.env_remove("NVCC").env_remove("CUDA_COMPUTE_CAP");
    let output = victim.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // The processor's, which is not for it.
    let (mut other, study) = (surviving::victim(place.path()), place.path().join("study"));
    fs::rename(&study, place.path().join("on-a-card")).unwrap();
    other.env(surviving::TRAINER, &trainer).env(surviving::TRIALS, "0");
    let output = other.stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("not for cards"), "{said}");
}

pub fn what_a_driver_says_goes_back_in_words() {
    let said = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: <unknown>\n";
    let fail = format!(
        "if session.progress() > 0.2 {{ return Err(Error::msg({said:?})); }}\n\
         match DEED {{\n                Deed::PanicInTraining =>"
    );
    let (source, place) =
        (tiny::smoothing("60.0"), "match DEED {\n                Deed::PanicInTraining =>");
    let source = tiny::replaced(&source, place, &fail);
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut study = tiny::study(&dir.path().join("study"), corpus.path())
        .cuda_device(0)
        .repairs(0)
        .proposer(Sources(vec![("too much", source)]))
        .open()
        .unwrap();
    study.optimize(Some(1)).unwrap();
    let trial = &study.trials()[1];
    assert_eq!(trial.outcome, Outcome::Failed, "{:?}", trial.reason);
    let reason = trial.reason.as_deref().unwrap();
    assert!(reason.starts_with("train: the card has not enough memory"), "{reason}");
    assert!(
        reason.ends_with("(DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\"))"),
        "{reason}"
    );
}

pub fn a_card_that_cannot_be_used_is_named() {
    let (place, bin) = (surviving::place(), tempfile::tempdir().unwrap());
    driver(bin.path(), "No devices were found");
    let output = on_a_card(place.path(), bin.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("cannot train on a card") && said.contains("No devices"), "{said}");
}

pub fn what_is_missing_to_compile_for_a_card_is_said_before_anything_is_prepared() {
    let usual = ["/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc"];
    let on_path = std::env::var("PATH").unwrap();
    let here = on_path.split(':').map(|folder| format!("{folder}/nvcc"));
    let mut places = usual.map(str::to_owned).into_iter().chain(here);
    if places.any(|place| Path::new(&place).exists()) || std::env::var_os("CUDA_HOME").is_some() {
        println!("there is a CUDA compiler");
        return;
    }
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = Study::builder(dir.path().join("study"))
        .data(DataSpec::Text(corpus.path().to_owned()))
        .cache_dir(dir.path().join("cache"))
        .cuda_device(0);
    let Err(error) = study.open() else { panic!("it has opened") };
    assert!(matches!(error, Error::Card { .. }), "{error}");
    assert!(error.to_string().contains("tools/cuda-toolchain.sh"), "{error}");
    assert!(!dir.path().join("cache/data").exists());
}

/// A driver opens a socket with a name that all processes of a network see. By a name that is taken, one room
/// could tell another.
pub fn names_of_sockets_are_a_workers_own() {
    if !tiny::can_confine() {
        return;
    }
    let name = format!("overnight-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _taken = UnixListener::bind_addr(&address).unwrap();
    let bind = format!(
        "use std::os::linux::net::SocketAddrExt;\n\
         let name = std::os::unix::net::SocketAddr::from_abstract_name({name:?}).unwrap();\n\
         let listener = std::os::unix::net::UnixListener::bind_addr(&name);\n\
         assert!(listener.is_ok(), \"{{listener:?}}\");\n\
         let other = std::net::TcpListener::bind(\"127.0.0.1:0\");\n\
         assert!(other.is_err(), \"it has a network\");\n\
         match DEED {{\n                Deed::PanicInTraining =>"
    );
    let source = tiny::smoothing("60.0");
    let source =
        tiny::replaced(&source, "match DEED {\n                Deed::PanicInTraining =>", &bind);
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut study = tiny::study(&dir.path().join("study"), corpus.path())
        .sandbox(Sandbox::Strict)
        .cuda_device(0)
        .repairs(0)
        .proposer(Sources(vec![("a name", source)]))
        .open()
        .unwrap();
    study.optimize(Some(1)).unwrap();
    let trial = &study.trials()[1];
    assert!(trial.outcome.is_measured(), "{:?}", trial.reason);
}
