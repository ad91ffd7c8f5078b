//! The only code that loads a library: a path in, a trainer out.
//!
//! Loading runs code of the library (its initialisers) before any check can be made, and what a
//! trainer does to its process cannot be undone, so a study does this in a worker process only.
//! In-process loading is for benches and tests. A library is never unloaded: one that has started
//! threads cannot be, so each load leaks by design.

use abi_stable::{
    library::AbiHeaderRef,
    sabi_types::RMut,
    std_types::{RResult, RSlice, RSliceMut, RStr},
    type_level::downcasting::TD_Opaque,
};
use overnight_plugin_api::{
    Setup, Windows,
    raw::{self, BoxedTrainer, Host, Host_TO, TrainerModule_Ref},
};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

/// A loaded trainer library, whose layout fits this program's.
#[derive(Clone, Copy)]
pub struct Plugin {
    module: TrainerModule_Ref,
}

/// A trainer behind the boundary; the methods are those of
/// [`Trainer`](overnight_plugin_api::Trainer).
pub struct LoadedTrainer {
    trainer: BoxedTrainer,
}

/// The library cannot be used: it is not a trainer, or was built against another plugin-api.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the trainer library: {0}")]
pub struct LoadError(String);

/// A trainer's method failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whether it panicked, rather than returned an error.
    pub panicked: bool,
    /// For a panic, `file:line:column: message`.
    pub message: String,
}

/// A layout mismatch is reported by abi_stable in tens of kilobytes; its beginning says enough.
const LONGEST_MESSAGE: usize = 1500;

impl Plugin {
    /// Loads the library at `path`, which must be absolute, and must not have been loaded before
    /// with other contents: the system's loader knows libraries by their path.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let fail = |message: &dyn fmt::Display| LoadError(shortened(message.to_string()));
        let header = open(path)?;
        let header = header.upgrade().map_err(|error| fail(&error))?;
        let module =
            header.init_root_module::<TrainerModule_Ref>().map_err(|error| fail(&error))?;
        Ok(Self { module })
    }

    /// Builds a trainer.
    pub fn trainer(&self, setup: &Setup) -> Result<LoadedTrainer, Failure> {
        let trainer = answer((self.module.new())(&setup.into()))?;
        Ok(LoadedTrainer { trainer })
    }
}

#[expect(unsafe_code, reason = "this is the one place that loads libraries")]
fn open(path: &Path) -> Result<AbiHeaderRef, LoadError> {
    let fail = |error: libloading::Error| {
        // libloading's own message is only "dlopen failed"; the system's is its source.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        LoadError(shortened(cause.unwrap_or_else(|| error.to_string())))
    };
    #[cfg(unix)]
    let open = || {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: initialisers of the library run here. Nothing can vouch for them but the
        // `forbid(unsafe_code)` that it was built under; that is why this runs in a worker.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(libloading::Library::from)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let open = || unsafe { libloading::Library::new(path) };
    // Never closed: the header, the module and every trainer point into it.
    let library = std::mem::ManuallyDrop::new(open().map_err(fail)?);
    // SAFETY: only `export_trainer!` defines this symbol, always as a `LibHeader`, which an
    // `AbiHeaderRef` points to; `upgrade` checks its magic before anything else is read.
    let symbol = unsafe { library.get::<AbiHeaderRef>(raw::SYMBOL) }.map_err(fail)?;
    Ok(*symbol)
}

/// Loads the system's libraries that the library at `path` needs, and none of its own code: with these in the
/// process it can be loaded where no other library has a name.
///
/// What cannot be found is left to whoever loads the library, and is reported then.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "this is the one place that loads libraries")]
pub(crate) fn load_needed(path: &Path) {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    let bytes = std::fs::read(path).unwrap_or_default();
    for name in needed(&bytes).unwrap_or_default() {
        // SAFETY: the system's own libraries run the initialisers that they run in every program.
        let library = unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_LOCAL) };
        std::mem::forget(library);
    }
}

/// The libraries that an ELF file names as needed. Only bare names: those are looked for among the system's.
#[cfg(target_os = "linux")]
fn needed(bytes: &[u8]) -> Option<Vec<String>> {
    let file = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(bytes).ok()?;
    let names = file.dynamic_symbol_table().ok()??.1;
    let entries = file.dynamic().ok()??.iter();
    let entries = entries.filter(|entry| entry.d_tag == elf::abi::DT_NEEDED);
    let names = entries.filter_map(|entry| names.get(entry.d_val() as usize).ok());
    Some(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
}

impl LoadedTrainer {
    /// Trains until `host` has no more batches.
    pub fn train(&mut self, host: &mut impl Host) -> Result<(), Failure> {
        answer(self.trainer.train(Host_TO::from_ptr(RMut::new(host), TD_Opaque)))
    }

    /// Fills `nats` with the cost of every target of `windows`.
    pub fn score(&mut self, windows: Windows<'_>, nats: &mut [f32]) -> Result<(), Failure> {
        let inputs = RSlice::from_slice(windows.inputs);
        let targets = RSlice::from_slice(windows.targets);
        answer(self.trainer.score(
            inputs,
            targets,
            windows.seq_len,
            RSliceMut::from_mut_slice(nats),
        ))
    }

    /// Fills `logits` with the unnormalised log-probabilities of the token after `prefix`.
    pub fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<(), Failure> {
        answer(self.trainer.logits(RSlice::from_slice(prefix), RSliceMut::from_mut_slice(logits)))
    }

    /// Writes the weights.
    pub fn save(&mut self, checkpoint: &Path) -> Result<(), Failure> {
        answer(self.trainer.save(as_text(checkpoint)?))
    }

    /// Takes the weights from a file.
    pub fn load(&mut self, checkpoint: &Path) -> Result<(), Failure> {
        answer(self.trainer.load(as_text(checkpoint)?))
    }
}

fn as_text(path: &Path) -> Result<RStr<'_>, Failure> {
    path.to_str().map(RStr::from_str).ok_or_else(|| Failure {
        panicked: false,
        message: format!("the path {} is not Unicode", path.display()),
    })
}

fn answer<T>(answer: raw::Answer<T>) -> Result<T, Failure> {
    match answer {
        RResult::ROk(value) => Ok(value),
        RResult::RErr(failure) => Err(Failure {
            panicked: failure.panicked,
            message: shortened(failure.message.into_string()),
        }),
    }
}

pub(crate) fn shortened(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        let end = message.floor_char_boundary(LONGEST_MESSAGE);
        message.truncate(end);
        message.push('…');
    }
    message
}
