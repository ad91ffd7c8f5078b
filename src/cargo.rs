//! From an edited source to a loadable library, or to the compiler's errors.
//!
//! All studies of a machine build in one cache: candle is compiled once per toolchain, and a
//! trainer's fixed files lie at a path that stays the same, which is what cargo's freshness and the
//! compiler's incremental state go by. Only `src/train.rs` is written for a trial.

use crate::{
    artifacts::Artifacts,
    card::{self, Card},
    environment::{cargo, cargo_at, fetch, last_lines},
    error::{Error, Result},
    foreign,
    hash::sha256,
    lifeline,
    macros::{Dependency, UnsafeMacros},
    process::Group,
    project::write_if_changed,
    settings, source,
    stop::StopHandle,
    trainer_crate::{EDITED, TrainerCrate, normalised},
    worker::{self, sandbox::Confinement},
};
use cargo_metadata::{Message, PackageId, diagnostic::DiagnosticLevel};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

/// Builds the trials of one trainer crate.
#[derive(Debug, Clone)]
pub struct Cargo {
    /// The crate's copy in the cache, where every trial's source is put in turn.
    folder: PathBuf,
    /// All of it but the edited file.
    fixed: Vec<PathBuf>,
    target: PathBuf,
    toolchain: String,
    /// How many a build from nothing compiles on this system.
    crates: u64,
    /// What the edited file may not name.
    macros: UnsafeMacros,
    limit: Duration,
    /// What the compiler of the trainer's own crates is confined to.
    sandbox: Option<Confinement>,
    /// A home for cargo without the user's settings, if those must not be known, and the toolchain as it is called
    /// without a setting's help.
    home: Option<PathBuf>,
    sysroot: Option<PathBuf>,
    stop: StopHandle,
    /// What it is built for, if that is not the processor.
    card: Option<Card>,
}

/// How long the compiler may be silent: it tells of every crate when that is done.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_mins(10);

/// What came of a build.
#[derive(Debug)]
pub enum Build {
    /// The library was copied to where it was asked for.
    Built,
    /// The source does not compile.
    Refused {
        /// The first error, one line.
        reason: String,
        /// All that the compiler said, as a terminal would show it.
        rendered: String,
    },
    /// The study was asked to stop.
    Interrupted,
}

impl Cargo {
    /// Lays out `trainer` in `cache` and makes sure that its dependencies are on this machine.
    ///
    /// # Errors
    /// No cargo, no write access to the cache, or dependencies that are neither on the machine nor
    /// to be had.
    pub fn open(trainer: &TrainerCrate, cache: &Path, stop: StopHandle) -> Result<Self> {
        Self::open_for(None, trainer, cache, stop)
    }

    /// The same, for a trainer that is to compute on a card: with the crate's feature for that, and
    /// in a target folder of its own, since a dependency with another feature is compiled anew.
    pub(crate) fn open_for(
        card: Option<Card>,
        trainer: &TrainerCrate,
        cache: &Path,
        stop: StopHandle,
    ) -> Result<Self> {
        let card = card.filter(|card| card.toolkit.is_some());
        let folder = cache.join("crates").join(&trainer.fingerprint()[..16]);
        {
            let _lock = lock_at(&cache.join("crates/.overnight-lock"))?;
            trainer.project().lay_out(&folder)?;
        }
        // Of where builds happen: a file or a setting above the user's folder may name another one.
        let toolchain = toolchain(&folder)?;
        let purpose = if card.is_some() { "target-cuda" } else { "target" };
        let target = cache.join(format!("{purpose}-{}", &sha256(toolchain.as_bytes())[..12]));
        fs::create_dir_all(&target).map_err(Error::io("create", &target))?;
        let fixed = trainer.project().fixed.keys().map(|name| folder.join(name)).collect();
        let mut cargo = Self {
            folder,
            fixed,
            target,
            toolchain,
            crates: 0,
            macros: UnsafeMacros::default(),
            limit: BUILD_LIMIT,
            sandbox: None,
            home: None,
            sysroot: None,
            stop,
            card,
        };
        let _lock = cargo.lock()?;
        cargo.home = settings::home_for(&cargo.folder, &cargo.target.join(".overnight-cargo"))?;
        if cargo.home.is_some() {
            cargo.sysroot = Some(sysroot(&cargo.folder)?);
        }
        fetch(&cargo.folder)?;
        let dependencies = cargo.dependencies()?;
        cargo.crates = dependencies.len() as u64 + 1;
        if trainer.forbids_unsafe() {
            cargo.macros = UnsafeMacros::of(&dependencies);
        }
        Ok(cargo)
    }

    /// How long a crate may take to compile before the source counts as one that does not.
    pub(crate) fn limited_to(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Confines the compiler of the trainer's own crates to what it needs: their folder, the
    /// toolchain, the target folder. cargo itself and the dependencies are as trusted as the manifest,
    /// which nobody edits.
    ///
    /// `program` must become a worker when it is run as one. Returns what keeps the compiler from
    /// being confined; it goes as it is then.
    pub(crate) fn confine(&mut self, program: &Path) -> Result<Option<String>> {
        let mut readable = vec![self.folder.clone(), self.trial_sandbox(), sysroot(&self.folder)?];
        // What rustup puts in the toolchain's place looks there.
        let homes = [("CARGO_HOME", ".cargo", "bin"), ("RUSTUP_HOME", ".rustup", "")];
        readable.extend(homes.into_iter().filter_map(|(variable, name, part)| {
            let home = std::env::var_os(variable).map(PathBuf::from);
            Some(home.or_else(|| Some(dirs::home_dir()?.join(name)))?.join(part))
        }));
        if let Some(toolkit) = self.card.as_ref().and_then(|card| card.toolkit.as_ref()) {
            // The linker looks there.
            readable.push(toolkit.home.clone());
        }
        let temporary = self.temporary();
        fs::create_dir_all(&temporary).map_err(Error::io("create", &temporary))?;
        let writable = vec![self.target.clone(), PathBuf::from("/dev/null")];
        let confinement =
            Confinement { readable, writable, programs: true, ..Confinement::default() };
        link_compiler(program, &self.compiler())?;
        self.sandbox = Some(confinement);
        let lock = self.lock()?;
        let problem = self.try_sandbox(program)?;
        drop(lock);
        if problem.is_some() {
            self.sandbox = None;
        }
        Ok(problem)
    }

    fn compiler(&self) -> PathBuf {
        self.target.join(".overnight-rustc")
    }

    fn trial_sandbox(&self) -> PathBuf {
        self.target.join(".overnight-sandbox")
    }

    /// Builds a library of nothing in the sandbox, once for each kernel: a linker of the user's own
    /// choice, say, may lie where the sandbox does not reach.
    fn try_sandbox(&self, program: &Path) -> Result<Option<String>> {
        let folder = self.trial_sandbox();
        let proof = folder.join("proof");
        let claim = format!("{program:?}, {:?}, {}", self.sandbox, kernel());
        if fs::read_to_string(&proof).is_ok_and(|proven| proven == claim) {
            return Ok(None);
        }
        for (name, text) in [
            ("Cargo.toml", NOTHING),
            ("src/lib.rs", "#[unsafe(no_mangle)]\npub extern \"C\" fn nothing() {}\n"),
        ] {
            write_if_changed(&folder.join(name), text.as_bytes())?;
        }
        // Not what another sandbox left.
        let _ = fs::remove_dir_all(folder.join("target"));
        let mut command = self.command("build", &folder);
        command.args(["--offline", "--target-dir"]).arg(folder.join("target"));
        let output = lifeline::output(&mut command);
        let output = output.map_err(Error::missing("cargo"))?;
        if !output.status.success() {
            return Ok(Some(last_lines(&String::from_utf8_lossy(&output.stderr))));
        }
        fs::write(&proof, claim).map_err(Error::io("write", proof))?;
        Ok(None)
    }

    /// One build at a time over all studies, until the file is dropped: they share the crate's copy and
    /// the target folder, and two trainers of one name would overwrite each other's library.
    fn lock(&self) -> Result<File> {
        lock_at(&self.target.join(".overnight-lock"))
    }

    /// Where compilers put what they need for a moment.
    fn temporary(&self) -> PathBuf {
        self.target.join(".overnight-tmp")
    }

    /// What `rustc -vV` says: results are comparable only under one toolchain.
    pub fn toolchain(&self) -> &str {
        &self.toolchain
    }

    /// Where build products go. One for all trainers of a toolchain.
    pub fn target_dir(&self) -> &Path {
        &self.target
    }

    /// Compiles `source` and copies the library to `library`.
    ///
    /// `progress` hears how many of how many crates are done, as long as there are dependencies to
    /// compile: once a machine.
    pub fn build(
        &self,
        source: &str,
        library: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Build> {
        let words = source::tokens(EDITED, source).unwrap_or_default();
        if let Some(reason) = self.macros.named_in(words.lines()) {
            return Ok(Build::Refused { rendered: format!("error: {reason}\n"), reason });
        }
        let _lock = self.lock()?;

        // Written even if it is the same: a fresh time stamp is what makes cargo build it, and not
        // take another trainer's library of that name for this one's.
        let edited = self.folder.join(EDITED);
        fs::write(&edited, source).map_err(Error::io("write", &edited))?;
        let last = self.target.join(".overnight-crate");
        let own = self.folder.as_os_str().as_encoded_bytes();
        if fs::read(&last).ok().as_deref() != Some(own) {
            // If this is cut off, nobody knows whose they are.
            let _ = fs::remove_file(&last);
            self.stamp_anew()?;
        }
        self.begin()?;
        let build = self.compile(library, &mut progress)?;
        if let Build::Built = build {
            fs::write(&last, own).map_err(Error::io("write", &last))?;
        }
        Ok(build)
    }

    fn artifacts(&self) -> PathBuf {
        self.target.join(".overnight-artifacts")
    }

    /// Throws away all that was compiled, if any of it is not what the compiler left; which that was.
    pub(crate) fn heal(&self) -> Result<Option<PathBuf>> {
        let damaged = {
            let _lock = self.lock()?;
            let was_cut_off = self.unfinished().exists();
            Artifacts::open(self.artifacts()).damaged(was_cut_off).map(Path::to_owned)
        };
        if damaged.is_some() {
            self.start_afresh()?;
        }
        Ok(damaged)
    }

    /// Throws away all that was compiled: what a full disk or a power cut damaged, cargo takes for whole.
    pub(crate) fn start_afresh(&self) -> Result<()> {
        let _lock = self.lock()?;
        let built = self.target.join("release");
        foreign::remove(&built).map_err(Error::io("remove", built))?;
        let _ = fs::remove_file(self.artifacts());
        Ok(())
    }

    /// There while a compiler is at work, and after one that was killed or broke down.
    fn unfinished(&self) -> PathBuf {
        self.target.join(".overnight-unfinished")
    }

    /// Throws the incremental state away where the last compiler did not come to its end. rustc writes
    /// into files that the state before shares with the new one: what a killed one leaves may not link.
    fn begin(&self) -> Result<()> {
        let (unfinished, state) = (self.unfinished(), self.target.join("release/incremental"));
        // Whoever is being killed may still write there for a moment.
        let mut tries = 20;
        while unfinished.exists()
            && let Err(error) = fs::remove_dir_all(&state)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tries -= 1;
            if tries == 0 {
                return Err(Error::io("remove", &state)(error));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        fs::write(&unfinished, "").map_err(Error::io("write", unfinished))
    }

    /// Makes cargo build the crate's own dependencies, too. It tells those of two crates apart by their
    /// place in the crate, which is the same, and would take the ones that were built later for these.
    fn stamp_anew(&self) -> Result<()> {
        let now = SystemTime::now();
        for path in &self.fixed {
            let file = File::options().write(true).open(path);
            file.and_then(|file| file.set_modified(now)).map_err(Error::io("touch", path))?;
        }
        Ok(())
    }

    fn compile(&self, library: &Path, progress: &mut impl FnMut(u64, u64)) -> Result<Build> {
        let begun = SystemTime::now();
        let mut command = self.command("build", &self.folder);
        command.args(["--release", "--offline", "--locked", "--lib", "--message-format=json"]);
        command.arg("--target-dir").arg(&self.target);
        if self.card.is_some() {
            command.args(["--features", card::FEATURE]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Dropped early, it takes the compiler with it.
        let mut group = Group::spawn(&mut command).map_err(Error::missing("cargo"))?;

        let mut stderr = group.child.stderr.take();
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(stderr) = &mut stderr {
                let _ = stderr.read_to_string(&mut text);
            }
            text
        });
        // The messages are read on a thread so that a stop need not wait for the next.
        let (sender, messages) = crossbeam_channel::unbounded();
        if let Some(stdout) = group.child.stdout.take() {
            std::thread::spawn(move || {
                for message in Message::parse_stream(BufReader::new(stdout)) {
                    if sender.send(message).is_err() {
                        return;
                    }
                }
            });
        }

        let mut done = 0;
        let mut heard = Instant::now();
        let mut artifact = None;
        let mut dependencies = Vec::new();
        let mut is_fresh = false;
        let mut rendered = String::new();
        let mut reason = None;
        loop {
            use crossbeam_channel::RecvTimeoutError::{Disconnected, Timeout};
            let message = messages.recv_timeout(Duration::from_millis(100));
            if message.is_ok() {
                heard = Instant::now();
            }
            match message {
                Ok(Ok(Message::CompilerArtifact(built))) => {
                    let is_trainer =
                        Path::new(built.manifest_path.as_str()) == self.folder.join("Cargo.toml");
                    // A crate with a build script is reported twice.
                    if !built.target.is_custom_build() {
                        done += 1;
                        if !built.fresh && !is_trainer {
                            progress(done.min(self.crates), self.crates);
                        }
                    }
                    if is_trainer {
                        artifact = built
                            .filenames
                            .into_iter()
                            .map(PathBuf::from)
                            .find(|file| is_library(file));
                        is_fresh = built.fresh;
                    } else {
                        dependencies.extend(built.filenames.into_iter().map(PathBuf::from));
                    }
                }
                Ok(Ok(Message::CompilerMessage(message))) => {
                    let diagnostic = message.message;
                    rendered.push_str(diagnostic.rendered.as_deref().unwrap_or_default());
                    if reason.is_none() && diagnostic.level == DiagnosticLevel::Error {
                        reason = Some(summarised(&diagnostic));
                    }
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return Err(Error::io("read the messages of", &self.folder)(error));
                }
                Err(Disconnected) => break,
                Err(Timeout) => {
                    if self.stop.is_stopped() {
                        return Ok(Build::Interrupted);
                    }
                    if heard.elapsed() >= self.limit {
                        let seconds = self.limit.as_secs();
                        let reason = format!("the compiler was not done after {seconds} s");
                        return Ok(Build::Refused { rendered: reason.clone(), reason });
                    }
                }
            }
        }
        let status = group.wait().map_err(Error::io("wait for cargo in", &self.folder))?;
        let complaints = complaints.join().unwrap_or_default();
        // Also where the trainer itself did not compile: they were made all the same.
        Artifacts::open(self.artifacts()).learn(&dependencies)?;
        if status.success() || reason.is_some() {
            let _ = fs::remove_file(self.unfinished());
        }
        match (status.success(), artifact, reason) {
            (true, Some(built), _) => {
                let since = Some(begun).filter(|_| !is_fresh);
                if let Some(reason) = self.reads_elsewhere(&built, since)? {
                    return Ok(Build::Refused { rendered: reason.clone(), reason });
                }
                fs::copy(&built, library).map_err(Error::io("copy the library to", library))?;
                Ok(Build::Built)
            }
            (false, _, Some(reason)) => Ok(Build::Refused { reason, rendered }),
            // The compiler fell over the source: it wanted too much memory, or has a bug.
            (false, ..)
                if complaints.contains(&format!("could not compile `{}`", self.name()?)) =>
            {
                let reason = "the compiler broke down over the source".to_owned();
                Ok(Build::Refused { reason, rendered: rendered + &complaints })
            }
            // No diagnostic names the source: it is cargo, the machine or the fixed files.
            _ => Err(Error::Command {
                command: "cargo build".to_owned(),
                folder: self.folder.clone(),
                complaint: last_lines(&complaints),
            }),
        }
    }

    /// What the build of the trainer read beside the crate's own files: `include_str!` and `env!`
    /// would carry it into the library. The compiler lists it all in `deps/<crate>.d`.
    ///
    /// It lies beside the library that cargo told of; a list from before `since` is of another build.
    fn reads_elsewhere(&self, built: &Path, since: Option<SystemTime>) -> Result<Option<String>> {
        let name = self.manifest_name("lib")?.map_or_else(|| self.name(), Ok)?;
        let folder = built.parent().unwrap_or(&self.target);
        let path = folder.join("deps").join(format!("{}.d", name.replace('-', "_")));
        let listed = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let written = fs::metadata(&path).and_then(|list| list.modified());
        let written = written.map_err(Error::io("look at", &path))?;
        // Some file systems know whole seconds only.
        if since.is_some_and(|since| written + Duration::from_secs(2) < since) {
            let old = std::io::Error::other("it is older than the build that it should list");
            return Err(Error::io("trust", path)(old));
        }
        Ok(foreign_input(&listed, &self.folder))
    }

    /// The package's name.
    fn name(&self) -> Result<String> {
        Ok(self.manifest_name("package")?.unwrap_or_default())
    }

    fn manifest_name(&self, table: &str) -> Result<Option<String>> {
        let manifest = self.folder.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).map_err(Error::io("read", &manifest))?;
        let parsed: toml_edit::DocumentMut = text.parse().unwrap_or_default();
        let name = parsed.get(table).and_then(|table| table.get("name")?.as_str());
        Ok(name.map(str::to_owned))
    }

    /// All crates that the trainer is built with on this system.
    fn dependencies(&self) -> Result<Vec<Dependency>> {
        let host = self.toolchain.lines().find_map(|line| line.strip_prefix("host: "));
        let mut command = self.command("metadata", &self.folder);
        command.args(["--format-version=1", "--offline", "--locked"]);
        if self.card.is_some() {
            command.args(["--features", card::FEATURE]);
        }
        command.args(host.into_iter().flat_map(|host| ["--filter-platform", host]));
        let output = lifeline::output(&mut command).map_err(Error::missing("cargo"))?;
        let metadata =
            cargo_metadata::MetadataCommand::parse(String::from_utf8_lossy(&output.stdout));
        let metadata = metadata.map_err(|_| Error::Command {
            command: "cargo metadata".to_owned(),
            folder: self.folder.clone(),
            complaint: last_lines(&String::from_utf8_lossy(&output.stderr)),
        })?;
        let nodes =
            metadata.resolve.as_ref().map(|resolve| resolve.nodes.clone()).unwrap_or_default();
        let own = self.folder.join("Cargo.toml");
        let is_own = |id: &PackageId| metadata[id].manifest_path.as_std_path() == own;
        let direct: HashSet<_> = nodes
            .iter()
            .filter(|node| is_own(&node.id))
            .flat_map(|node| node.deps.iter().map(|dependency| &dependency.pkg))
            .collect();
        let dependencies = nodes.iter().filter(|node| !is_own(&node.id)).map(|node| {
            let package = &metadata[&node.id];
            Dependency {
                name: package.name.replace('-', "_"),
                folder: package.manifest_path.with_file_name("").into(),
                is_proc_macro: package.targets.iter().any(|target| target.is_proc_macro()),
                is_direct: direct.contains(&node.id),
            }
        });
        Ok(dependencies.collect())
    }

    /// cargo, for the crate in `folder`.
    fn command(&self, verb: &str, folder: &Path) -> Command {
        let mut command = cargo();
        if let (Some(home), Some(sysroot)) = (&self.home, &self.sysroot) {
            let [own, rustc] = ["cargo", "rustc"].map(|name| {
                sysroot.join("bin").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
            });
            if own.is_file() {
                command = cargo_at(&own);
            }
            // The root has no folder above it with a configuration.
            command.env("CARGO_HOME", home).env("RUSTC", rustc).current_dir("/");
            command.arg(verb).arg("--manifest-path").arg(folder.join("Cargo.toml"));
        } else {
            command.arg(verb).current_dir(folder);
        }
        if let Some(card) = &self.card {
            card.tell_build(&mut command);
        }
        if let Some(confinement) = &self.sandbox {
            command.env("RUSTC_WORKSPACE_WRAPPER", self.compiler()).env("TMPDIR", self.temporary());
            command.envs(worker::compiler_variable(confinement));
        }
        command
    }
}

/// A crate that tries a sandbox.
const NOTHING: &str = "[package]\nname = \"nothing\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
                       [lib]\ncrate-type = [\"cdylib\"]\n\n[workspace]\n";

/// Where rustc keeps itself and its libraries.
fn sysroot(folder: &Path) -> Result<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).current_dir(folder).output();
    let output = output.map_err(Error::missing("rustc"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn lock_at(path: &Path) -> Result<File> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let lock = File::create(path).map_err(Error::io("create", path))?;
    lock.lock().map_err(Error::io("lock", path))?;
    Ok(lock)
}

fn kernel() -> String {
    #[cfg(unix)]
    return rustix::system::uname().release().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    return String::new();
}

fn toolchain(folder: &Path) -> Result<String> {
    let output = Command::new("rustc").arg("-vV").current_dir(folder).output();
    let output = output.map_err(Error::missing("rustc"))?;
    if !output.status.success() {
        return Err(Error::Command {
            command: "rustc -vV".to_owned(),
            folder: folder.to_owned(),
            complaint: last_lines(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Gives the program a place that stays the same: cargo builds anew for another.
///
/// Studies may be opened at the same moment: each link is made under a name of its own, and renamed.
#[cfg(unix)]
fn link_compiler(program: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).ok().as_deref() == Some(program) {
        return Ok(());
    }
    let folder = link.parent().unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .make_in(folder, |fresh| std::os::unix::fs::symlink(program, fresh))
        .and_then(|fresh| Ok(fresh.into_temp_path().persist(link)?))
        .map_err(Error::io("link", link))
}

/// Nothing is confined here.
#[cfg(not(unix))]
fn link_compiler(_program: &Path, _link: &Path) -> Result<()> {
    Ok(())
}

fn is_library(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == std::env::consts::DLL_EXTENSION)
}

/// Whether cargo itself sets the variable, from a manifest that nobody edits.
fn is_of_a_crate(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_CRATE_NAME",
            "CARGO_BIN_NAME",
            "CARGO_PRIMARY_PACKAGE",
        ]
        .contains(&name)
}

/// The first file beyond `folder`, or variable that is not cargo's, in a compiler's list of inputs.
fn foreign_input(listed: &str, folder: &Path) -> Option<String> {
    for line in listed.lines() {
        if let Some(variable) = line.strip_prefix("# env-dep:") {
            let name = variable.split('=').next().unwrap_or_default();
            if !is_of_a_crate(name) {
                return Some(format!("the source reads the variable {name} while it is compiled"));
            }
        } else if let Some((_, inputs)) = line.split_once(": ") {
            // Spaces within a path are escaped.
            for input in inputs.replace("\\ ", "\0").split(' ') {
                let input = input.replace('\0', " ");
                let place = normalised(&folder.join(&input));
                if !input.is_empty() && !place.starts_with(folder) {
                    return Some(format!("the source includes {input} while it is compiled"));
                }
            }
        }
    }
    None
}

/// `src/train.rs:12: mismatched types`
fn summarised(diagnostic: &cargo_metadata::diagnostic::Diagnostic) -> String {
    let span = diagnostic.spans.iter().find(|span| span.is_primary);
    let place = span.map(|span| format!("{}:{}: ", span.file_name, span.line_start));
    format!("{}{}", place.unwrap_or_default(), diagnostic.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_read_beyond_its_crate_is_found() {
        let folder = Path::new("/cache/crates/abc");
        let own = "/t/libtrainer.so: src/lib.rs src/train.rs /cache/crates/abc/data.txt\n\n\
                   src/lib.rs:\n# env-dep:CARGO_PKG_NAME=trainer\n";
        assert_eq!(foreign_input(own, folder), None);
        for (listed, named) in [
            ("/t/libtrainer.so: src/lib.rs /etc/passwd\n", "/etc/passwd"),
            ("/t/libtrainer.so: src/lib.rs src/../../other/secret.txt\n", "secret.txt"),
            ("/t/libtrainer.so: src/lib.rs /home/my\\ notes\n", "/home/my notes"),
            ("# env-dep:HOME=/root\n", "the variable HOME"),
            ("# env-dep:CARGO_REGISTRY_TOKEN\n", "the variable CARGO_REGISTRY_TOKEN"),
            ("# env-dep:CARGO_HOME=/home/me/.cargo\n", "the variable CARGO_HOME"),
        ] {
            let found = foreign_input(listed, folder).unwrap();
            assert!(found.contains(named), "{found}");
        }
    }

    #[test]
    fn a_dependencys_macro_that_writes_unsafe_code_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = place.path().join("trainer").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let package = |name: &str| {
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n")
        };
        let dependency = "[lib]\ncrate-type = [\"cdylib\"]\n\n[workspace]\n\n[dependencies]\nraw = { path = \"raw\" }\n";
        write("Cargo.toml", &(package("trainer") + dependency));
        let locked = |name: &str, rest: &str| {
            format!("[[package]]\nname = \"{name}\"\nversion = \"0.1.0\"\n{rest}\n")
        };
        let lock = locked("raw", "") + &locked("trainer", "dependencies = [\"raw\"]\n");
        write("Cargo.lock", &format!("version = 4\n\n{lock}"));
        write("src/lib.rs", "#[forbid(unsafe_code)]\nmod train;\n");
        write("src/train.rs", "");
        write("raw/Cargo.toml", &package("raw"));
        let rules = "#[macro_export]\nmacro_rules! peek { ($at:expr) => { unsafe { *$at } } }\n";
        write("raw/src/lib.rs", rules);

        let trainer = TrainerCrate::open(&place.path().join("trainer")).unwrap();
        let cache = place.path().join("cache");
        let mut cargo = Cargo::open(&trainer, &cache, StopHandle::new()).unwrap();
        let library = place.path().join("library");
        let source = "pub fn f(at: *const u8) -> u8 {\n    raw::peek!(at)\n}\n";
        let Build::Refused { reason, .. } = cargo.build(source, &library, |_, _| {}).unwrap()
        else {
            panic!("it was taken")
        };
        assert!(reason.contains("`peek` of the crate raw"), "{reason}");
        // What the lint alone says to it.
        let known = std::mem::take(&mut cargo.macros);
        assert!(matches!(cargo.build(source, &library, |_, _| {}), Ok(Build::Built)));
        // And nobody looks where unsafe code is allowed.
        let allowed = Cargo::open(&trainer.allow_unsafe().unwrap(), &cache, StopHandle::new());
        assert_eq!(allowed.unwrap().macros, UnsafeMacros::default());
        assert_ne!(known, UnsafeMacros::default());
    }

    #[test]
    fn the_template_names_no_macro_that_writes_unsafe_code() {
        let cache = tempfile::tempdir().unwrap();
        let trainer = TrainerCrate::template(cache.path()).unwrap();
        let cargo = Cargo::open(&trainer, cache.path(), StopHandle::new()).unwrap();
        let named = |source: &str| {
            let words = source::tokens(EDITED, source).unwrap();
            cargo.macros.named_in(words.lines())
        };
        assert_eq!(named(trainer.source()), None);
        let own = "overnight_plugin_api::export_trainer!(Gpt);";
        assert!(named(&format!("{}\n{own}", trainer.source())).is_some());
    }

    #[test]
    fn what_is_built_for_a_card_lies_apart() {
        let cache = tempfile::tempdir().unwrap();
        let trainer = TrainerCrate::template(cache.path()).unwrap();
        let target = |toolkit| {
            let card = Some(Card { toolkit, ..Card::default() });
            let cargo = Cargo::open_for(card, &trainer, cache.path(), StopHandle::new());
            cargo.unwrap().target_dir().to_owned()
        };
        let plain = Cargo::open(&trainer, cache.path(), StopHandle::new()).unwrap();
        let toolkit = card::Toolkit { nvcc: "/cuda/bin/nvcc".into(), home: "/cuda".into() };
        assert_ne!(target(Some(toolkit)), plain.target_dir());
        // Nothing is compiled for it.
        assert_eq!(target(None), plain.target_dir());
    }

    #[test]
    #[cfg(unix)]
    fn studies_that_are_opened_together_do_not_take_each_others_link() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("rustc");
        std::thread::scope(|scope| {
            for program in ["/one", "/two", "/three"] {
                let link = &link;
                scope.spawn(move || {
                    for _ in 0..200 {
                        link_compiler(Path::new(program), link).unwrap();
                    }
                });
            }
        });
        let program = fs::read_link(&link).unwrap();
        assert!(["/one", "/two", "/three"].iter().any(|known| Path::new(known) == program));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
