//! The card that a study computes on: which one it is, and where its compiler and its libraries are.

use crate::{
    error::{Error, Result},
    process::Group,
};
use serde::{Deserialize, Serialize};
use std::{
    env,
    ffi::OsString,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A CUDA card, as a study knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Card {
    /// By which the study's user names it.
    pub ordinal: usize,
    /// `None` where nobody tells: `nvidia-smi` is not there.
    pub identity: Option<Identity>,
    /// Where its compiler is; not needed for crates that compile nothing for it.
    pub toolkit: Option<Toolkit>,
}

/// What its driver calls a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The product, as in `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Of this very piece.
    pub uuid: String,
    /// As in `9.0`.
    pub capability: String,
}

/// NVIDIA's compiler and the libraries that come with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolkit {
    pub nvcc: PathBuf,
    pub home: PathBuf,
}

/// Where installers put it.
const USUAL_HOMES: &[&str] = &["/usr/local/cuda", "/opt/cuda"];

/// Where drivers are, beside the system's own folders: in machines that are given one from outside, and
/// under Windows.
const DRIVERS: &[&str] = &["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib"];

/// Where the system has libraries.
const SYSTEM: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/run/opengl-driver/lib",
];

impl Card {
    /// The card with this ordinal among those that `CUDA_VISIBLE_DEVICES` leaves, for a trainer that
    /// is compiled for cards, or for one that is not.
    ///
    /// # Errors
    /// There is no such card, or nothing to compile for it with.
    pub fn open(ordinal: usize, compiles: bool) -> Result<Self> {
        load_modules(Path::new("/dev"));
        let identity =
            identify(&named(ordinal, env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())?)?;
        let toolkit = if compiles { Some(Toolkit::find()?) } else { None };
        let card = Self { ordinal, identity, toolkit };
        // Compiling takes minutes the first time: whether it is worth it should be known before.
        if compiles && card.identity.is_none() && !card.has_driver() {
            return Err(no_card(
                "there is no NVIDIA driver: neither nvidia-smi nor libcuda.so.1 is to be found",
            ));
        }
        Ok(card)
    }

    /// Its ordinal among the cards that a worker sees.
    pub fn ordinal_in_worker(&self) -> usize {
        if self.identity.is_some() { 0 } else { self.ordinal }
    }

    /// Folders with libraries that a trainer may load: the toolkit's, the driver's, the user's.
    pub fn libraries(&self) -> Vec<PathBuf> {
        let listed = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let toolkit = self.toolkit.iter().map(Toolkit::libraries);
        let mut folders: Vec<_> = env::split_paths(&listed)
            .chain(toolkit)
            .chain(DRIVERS.iter().map(PathBuf::from))
            .filter(|folder| folder.is_absolute() && folder.is_dir())
            // A worker's view has the link, and not where it leads.
            .filter_map(|folder| folder.canonicalize().ok())
            .collect();
        let mut known = std::collections::HashSet::new();
        folders.retain(|folder| known.insert(folder.clone()));
        folders
    }

    /// Whether the driver's library lies where a worker would look for it.
    fn has_driver(&self) -> bool {
        let mut folders = SYSTEM.iter().map(PathBuf::from).chain(self.libraries());
        folders.any(|folder| folder.join("libcuda.so.1").exists())
    }

    /// What a worker is told of it.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![
            // Ordinals as nvidia-smi has them.
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()),
            // What a driver has compiled for one worker, another could find.
            ("CUDA_CACHE_DISABLE", "1".into()),
        ];
        if let Some(identity) = &self.identity {
            environment.push(("CUDA_VISIBLE_DEVICES", identity.uuid.clone().into()));
        }
        if let Ok(path) = env::join_paths(self.libraries()) {
            environment.push(("LD_LIBRARY_PATH", path));
        }
        environment
    }

    /// What this process has of the card's memory, in MiB; `None` where nobody tells.
    ///
    /// In a container it has another number than for the driver, or none. Then it is by how much more is in use
    /// than was `before` it.
    pub fn memory_of(&self, process: u32, before: Option<f64>) -> Option<f64> {
        let listed = self.query("--query-compute-apps=pid,used_memory")?;
        memory_in(&listed, process).or_else(|| Some(self.memory_in_use()? - before?))
    }

    /// In MiB, by all processes.
    pub fn memory_in_use(&self) -> Option<f64> {
        self.query("--query-gpu=memory.used")?.trim().parse().ok()
    }

    fn query(&self, fields: &str) -> Option<String> {
        let uuid = &self.identity.as_ref()?.uuid;
        let said = ask_driver(&["-i", uuid, fields, "--format=csv,noheader,nounits"]);
        Some(said.ok()?.text)
    }

    /// What a compiler for it is told.
    pub fn tell_build(&self, command: &mut Command) {
        let Some(toolkit) = &self.toolkit else { return };
        let before = |variable: &str, folders: &[PathBuf]| {
            let listed = env::var_os(variable).unwrap_or_default();
            env::join_paths(folders.iter().cloned().chain(env::split_paths(&listed)))
                .unwrap_or(listed)
        };
        let bin = toolkit.nvcc.parent().unwrap_or(&toolkit.home).to_owned();
        let libraries = toolkit.libraries();
        let stubs = libraries.join("stubs");
        command
            .env("CUDA_HOME", &toolkit.home)
            .env("CUDA_PATH", &toolkit.home)
            .env("NVCC", &toolkit.nvcc)
            .env("PATH", before("PATH", &[bin]))
            .env("LIBRARY_PATH", before("LIBRARY_PATH", &[libraries, stubs]));
        // Otherwise the build asks a card that is not there yet, or another one.
        let capability = self.identity.as_ref().map(|card| card.capability.replace('.', ""));
        if let (Some(capability), None) = (capability, env::var_os("CUDA_COMPUTE_CAP")) {
            command.env("CUDA_COMPUTE_CAP", capability);
        }
    }
}

impl Toolkit {
    fn find() -> Result<Self> {
        let named = env::var_os("NVCC").map(PathBuf::from).filter(|nvcc| nvcc.is_absolute());
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
        let homes = homes.map(PathBuf::from).chain(USUAL_HOMES.iter().map(PathBuf::from));
        let on_path = env::var_os("PATH").unwrap_or_default();
        let on_path: Vec<_> =
            env::split_paths(&on_path).map(|folder| folder.join("nvcc")).collect();
        let mut places =
            named.into_iter().chain(homes.map(|home| home.join("bin/nvcc"))).chain(on_path);
        let found = places.find_map(|nvcc| {
            // A link leads to where the rest is.
            let real = nvcc.is_file().then(|| nvcc.canonicalize().ok())??;
            let home = real.parent()?.parent()?.to_owned();
            Some(Self { nvcc: real, home })
        });
        found.ok_or_else(|| {
            no_card(
                "there is no CUDA compiler: no nvcc in CUDA_HOME, on the PATH or in \
                 /usr/local/cuda; install CUDA 13.0, or make what is needed of it with \
                 `sh tools/cuda-toolchain.sh FOLDER`",
            )
        })
    }

    fn libraries(&self) -> PathBuf {
        self.home.join("lib64")
    }
}

/// What `nvidia-smi` takes for the card with this ordinal of those that are listed as visible.
fn named(ordinal: usize, visible: Option<&str>) -> Result<String> {
    let Some(visible) = visible else { return Ok(ordinal.to_string()) };
    let mut listed = visible.split(',').map(str::trim).filter(|name| !name.is_empty());
    let none = || no_card(&format!("CUDA_VISIBLE_DEVICES={visible} leaves no card {ordinal}"));
    listed.nth(ordinal).map(str::to_owned).ok_or_else(none)
}

/// The card that `nvidia-smi` knows by this name.
fn identify(name: &str) -> Result<Option<Identity>> {
    // It tells of whole cards only. Their parts are for the driver to find.
    if name.starts_with("MIG-") {
        return Ok(None);
    }
    let fields = "--query-gpu=name,uuid,compute_cap";
    let said = match ask_driver(&["-i", name, fields, "--format=csv,noheader"]) {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(no_card(&format!("nvidia-smi: {error}"))),
    };
    if !said.is_success {
        let said = said.text.lines().chain(["nvidia-smi failed"]).next().unwrap_or_default().trim();
        return Err(no_card(&format!("card {name} cannot be used: {said}")));
    }
    match parse(&said.text) {
        Some(identity) => Ok(Some(identity)),
        None => Err(no_card(&format!("nvidia-smi says of card {name}: {}", said.text.trim()))),
    }
}

/// Has the system load what a context needs. The driver's library does so itself where it may start programs, which
/// it may not in a worker; `nvidia-modprobe(1)`.
fn load_modules(devices: &Path) {
    if devices.join("nvidiactl").exists() && !devices.join("nvidia-uvm").exists() {
        let _ = hear(Command::new("nvidia-modprobe").args(["-u", "-c=0"]), PATIENCE);
    }
}

/// How long a driver may take to answer: it begins anew for each question where nothing keeps it awake, and
/// hangs where a card has broken down.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `nvidia-smi` said.
struct Said {
    is_success: bool,
    text: String,
}

fn ask_driver(arguments: &[&str]) -> io::Result<Said> {
    hear(Command::new("nvidia-smi").args(arguments), PATIENCE)
}

/// What a program says, which is killed if it takes longer.
fn hear(command: &mut Command, patience: Duration) -> io::Result<Said> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut group = Group::spawn(command)?;
    let (sender, heard) = crossbeam_channel::bounded(1);
    if let Some(mut stdout) = group.child.stdout.take() {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    let begun = Instant::now();
    let text = heard.recv_timeout(patience);
    let text = text.map_err(|_| {
        let problem = format!("no answer within {} s", patience.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, problem)
    })?;
    while !group.has_ended() && begun.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Said { is_success: group.kill()?.success(), text })
}

/// `NVIDIA H100 80GB HBM3, GPU-6f2c…, 9.0`
fn parse(line: &str) -> Option<Identity> {
    let mut fields = line.lines().next()?.split(',').map(str::trim);
    let (name, uuid, capability) = (fields.next()?, fields.next()?, fields.next()?);
    let known = uuid.starts_with("GPU-") || uuid.starts_with("MIG-");
    known.then(|| Identity {
        name: name.to_owned(),
        uuid: uuid.to_owned(),
        capability: capability.to_owned(),
    })
}

/// `1234, 1129`
fn memory_in(listed: &str, process: u32) -> Option<f64> {
    listed.lines().find_map(|line| {
        let (pid, memory) = line.split_once(',')?;
        (pid.trim().parse() == Ok(process)).then(|| memory.trim().parse().ok())?
    })
}

/// What a person may want to know of a failure on a card, whose driver says it in names of constants.
///
/// The names are those of `CUresult` and `cublasStatus_t`, in CUDA's reference, and what the C library's loader says.
pub(crate) fn explained(failure: &str) -> Option<&'static str> {
    let is_lost = |library: &str| {
        failure.contains(library) && failure.contains("cannot open shared object file")
    };
    let says = |names: &[&str]| names.iter().any(|name| failure.contains(name));
    let explanation = if is_lost("libcuda.so") {
        "there is no NVIDIA driver here: its library lies neither with the system's nor in \
         LD_LIBRARY_PATH"
    } else if ["libcublas", "libcurand", "libcudart", "libnvrtc", "libcudnn"]
        .into_iter()
        .any(is_lost)
    {
        "a library of CUDA is missing here: name its folder in LD_LIBRARY_PATH"
    } else if says(&[
        "CUDA_ERROR_OUT_OF_MEMORY",
        "_STATUS_ALLOC_FAILED",
        "_STATUS_ALLOCATION_FAILED",
    ]) {
        "the card has not enough memory for this: take fewer rows a batch, or a smaller model"
    } else if says(&["CUDA_ERROR_INVALID_DEVICE", "CUDA_ERROR_NO_DEVICE"]) {
        "there is no card with this number; nvidia-smi lists them"
    } else if says(&[
        "CUDA_ERROR_INSUFFICIENT_DRIVER",
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    ]) {
        "the driver is older than the CUDA that this was compiled with; nvidia-smi says which one it knows"
    } else if says(&["CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_PTX"]) {
        "it was compiled for another kind of card; CUDA_COMPUTE_CAP says for which, as in 90"
    } else if says(&["CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_MISALIGNED_ADDRESS"]) {
        "something on the card read or wrote where it has no memory"
    } else if says(&["CUDA_ERROR_OPERATING_SYSTEM", "CUDA_ERROR_NOT_PERMITTED"]) {
        "the system, or the sandbox, has denied the driver something"
    } else {
        return None;
    };
    Some(explanation)
}

fn no_card(problem: &str) -> Error {
    Error::Card { problem: problem.to_owned() }
}

/// Whether the crate with this manifest has something to compile for cards.
pub(crate) fn compiles_for_cards(folder: &Path) -> bool {
    let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let manifest: toml_edit::DocumentMut = text.parse().unwrap_or_default();
    manifest.get("features").and_then(|features| features.get(FEATURE)).is_some()
}

/// The feature by which a trainer crate is built for cards.
pub(crate) const FEATURE: &str = "cuda";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinal_counts_among_the_visible_cards() {
        assert_eq!(named(1, None).unwrap(), "1");
        assert_eq!(named(1, Some("3, GPU-a")).unwrap(), "GPU-a");
        let error = named(2, Some("3,GPU-a")).unwrap_err().to_string();
        assert!(error.contains("leaves no card 2"), "{error}");
        assert!(named(0, Some("")).is_err());
    }

    #[test]
    fn a_card_is_known_by_its_line() {
        let card = parse("NVIDIA H100 80GB HBM3, GPU-6f2c, 9.0\n").unwrap();
        assert_eq!((card.name.as_str(), card.uuid.as_str()), ("NVIDIA H100 80GB HBM3", "GPU-6f2c"));
        assert_eq!(card.capability, "9.0");
        assert_eq!(parse("No devices were found"), None);
    }

    #[test]
    fn a_process_has_what_is_listed_of_it() {
        let listed = "12, 700\n1234, 1129\n99, [N/A]\n";
        assert_eq!(memory_in(listed, 1234), Some(1129.0));
        assert_eq!(memory_in(listed, 99), None);
        assert_eq!(memory_in(listed, 7), None);
    }

    #[test]
    fn what_a_driver_says_is_said_in_words() {
        for (failure, word) in [
            ("train: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "memory"),
            ("CublasError(CUBLAS_STATUS_ALLOC_FAILED)", "memory"),
            ("new: DriverError(CUDA_ERROR_INVALID_DEVICE, \"invalid device ordinal\")", "number"),
            ("libcuda.so.1: cannot open shared object file: No such file or directory", "driver"),
            ("libcublas.so.13: cannot open shared object file: No such file", "LD_LIBRARY_PATH"),
            ("DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"..\")", "older"),
            ("DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, \"..\") when loading x", "another kind"),
        ] {
            let explanation = explained(failure).unwrap_or_default();
            assert!(explanation.contains(word), "{failure}: {explanation}");
        }
        assert_eq!(explained("train: the loss is not a number at step 3"), None);
        assert_eq!(explained("libm.so.6: cannot open shared object file"), None);
    }

    #[test]
    #[cfg(unix)]
    fn libraries_are_looked_for_where_they_really_are() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("lib")).unwrap();
        std::os::unix::fs::symlink("lib", home.join("lib64")).unwrap();
        let toolkit = Some(Toolkit { nvcc: home.join("bin/nvcc"), home: home.clone() });
        let card = Card { toolkit, ..Card::default() };
        assert!(card.libraries().contains(&home.join("lib")), "{:?}", card.libraries());
        let environment = card.environment();
        let (_, path) = environment.iter().find(|(name, _)| *name == "LD_LIBRARY_PATH").unwrap();
        assert!(env::split_paths(path).any(|folder| folder == home.join("lib")), "{path:?}");
    }

    #[test]
    #[cfg(unix)]
    fn a_driver_that_hangs_is_not_waited_for() {
        let said = hear(Command::new("sh").args(["-c", "echo 1; exit 3"]), PATIENCE).unwrap();
        assert_eq!((said.text.as_str(), said.is_success), ("1\n", false));
        let begun = Instant::now();
        let mut hangs = Command::new("sh");
        let hangs = hangs.args(["-c", "echo 1; sleep 600"]);
        let error = hear(hangs, Duration::from_millis(100)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn parts_of_cards_are_left_to_the_driver() {
        assert_eq!(identify("MIG-1").unwrap(), None);
    }

    #[test]
    fn the_template_is_compiled_for_cards_and_says_so() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(compiles_for_cards(&root.join("trainer-template")));
        assert!(!compiles_for_cards(&root.join("plugin-api")));
    }

    #[test]
    fn a_worker_sees_one_card_by_its_name() {
        let identity = parse("a card, GPU-1, 8.0");
        let card = Card { ordinal: 3, identity, toolkit: None };
        assert_eq!(card.ordinal_in_worker(), 0);
        assert!(card.environment().contains(&("CUDA_VISIBLE_DEVICES", "GPU-1".into())));
        let unknown = Card { ordinal: 3, ..Card::default() };
        assert_eq!(unknown.ordinal_in_worker(), 3);
    }
}
