//! Studies on a card, as far as they can be seen without one: which card it is, what its driver needs of a
//! worker's sandbox, and what is said where something is missing.

use crate::{
    surviving,
    tiny::{self, Sources},
};
use overnight::{Config, Error, Ledger, Sandbox, Study, data::DataSpec};
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
    process::Output,
};

/// A driver that knows one card, of which every process has 123 MiB.
fn driver(folder: &Path, card: &str) {
    let path = folder.join("nvidia-smi");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*compute-apps*) for p in /proc/[0-9]*; do \
         echo \"${{p#/proc/}}, 123\"; done ;;\n*) echo '{card}' ;;\nesac\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn on_a_card(place: &Path, driver: &Path) -> Output {
    let path = std::env::var("PATH").unwrap();
    let mut victim = surviving::victim(place);
    victim.env(surviving::CARD, "0").env(surviving::TRIALS, "0");
    victim.env("PATH", format!("{}:{path}", driver.display()));
    victim.env_remove("CUDA_VISIBLE_DEVICES").stderr(std::process::Stdio::piped());
    victim.output().unwrap()
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

    driver(bin.path(), "Another card, GPU-2, 9.0");
    let output = on_a_card(place.path(), bin.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Another card"), "{said}");
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
