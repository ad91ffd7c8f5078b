//! The stable mirror of the trait: what really crosses between host and library.
//!
//! Not part of the author's interface. Both sides compile this file; `abi_stable` compares the
//! layouts at loading.

// The derive and trait macros of abi_stable 0.11 write impls inside constants and type names of
// their own convention.
#![allow(non_local_definitions, non_camel_case_types, missing_docs)]

use crate::{Device, Error, Session, Setup, Trainer, Windows};
use abi_stable::{
    StableAbi,
    library::{__call_root_module_loader, RootModule},
    package_version_strings,
    prefix_type::PrefixTypeTrait,
    sabi_trait,
    sabi_types::{RMut, VersionStrings},
    std_types::{RBox, RErr, ROk, RResult, RSlice, RSliceMut, RStr, RString},
    type_level::downcasting::TD_Opaque,
};
use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Once,
};

/// The host's side of a [`Session`].
#[sabi_trait]
pub trait Host {
    /// Whether such a batch can be asked for at all.
    fn check_shape(&self, batch_size: usize, seq_len: usize) -> RResult<(), RString>;
    /// Fills both slices, of `batch_size * seq_len` tokens each; `false` when the budget is spent.
    fn next_batch(
        &mut self,
        batch_size: usize,
        seq_len: usize,
        inputs: RSliceMut<'_, u32>,
        targets: RSliceMut<'_, u32>,
    ) -> bool;
    fn progress(&self) -> f64;
    #[sabi(last_prefix_field)]
    fn report(&mut self, loss: f64);
}

/// What [`export_trainer!`](crate::export_trainer) writes into a library, under [`SYMBOL`].
pub use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};

/// The name of the static that holds a library's [`LibHeader`].
pub const SYMBOL: &str = "OVERNIGHT_TRAINER";

/// [`Setup`], as it crosses.
#[repr(C)]
#[derive(StableAbi, Debug, Clone, Copy)]
pub struct RawSetup {
    pub vocab_size: usize,
    pub max_seq_len: usize,
    pub seed: u64,
    pub threads: usize,
    /// -1 for the CPU, otherwise the CUDA ordinal.
    pub cuda_device: i64,
}

impl From<&Setup> for RawSetup {
    fn from(setup: &Setup) -> Self {
        Self {
            vocab_size: setup.vocab_size,
            max_seq_len: setup.max_seq_len,
            seed: setup.seed,
            threads: setup.threads,
            cuda_device: match setup.device {
                Device::Cpu => -1,
                Device::Cuda(ordinal) => ordinal as i64,
            },
        }
    }
}

impl From<&RawSetup> for Setup {
    fn from(raw: &RawSetup) -> Self {
        Self {
            vocab_size: raw.vocab_size,
            max_seq_len: raw.max_seq_len,
            seed: raw.seed,
            threads: raw.threads,
            device: usize::try_from(raw.cuda_device).map_or(Device::Cpu, Device::Cuda),
        }
    }
}

/// Why a trainer's method did not return what it should.
#[repr(C)]
#[derive(StableAbi, Debug, Clone)]
pub struct Failure {
    /// A panic, rather than an error that the trainer returned.
    pub panicked: bool,
    /// One line or more; for a panic it starts with the location.
    pub message: RString,
}

pub type Answer<T> = RResult<T, Failure>;

/// [`Trainer`], as it crosses: panics caught, errors as text.
#[sabi_trait]
pub trait RawTrainer {
    fn train<'a>(&mut self, session: Host_TO<'a, RMut<'a, ()>>) -> Answer<()>;
    fn score(
        &mut self,
        inputs: RSlice<'_, u32>,
        targets: RSlice<'_, u32>,
        seq_len: usize,
        nats: RSliceMut<'_, f32>,
    ) -> Answer<()>;
    fn logits(&mut self, prefix: RSlice<'_, u32>, logits: RSliceMut<'_, f32>) -> Answer<()>;
    fn save(&mut self, checkpoint: RStr<'_>) -> Answer<()>;
    #[sabi(last_prefix_field)]
    fn load(&mut self, checkpoint: RStr<'_>) -> Answer<()>;
}

pub type BoxedTrainer = RawTrainer_TO<'static, RBox<()>>;

/// The root module of a trainer library.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = TrainerModule_Ref)))]
pub struct TrainerModule {
    #[sabi(last_prefix_field)]
    pub new: extern "C" fn(&RawSetup) -> Answer<BoxedTrainer>,
}

impl RootModule for TrainerModule_Ref {
    abi_stable::declare_root_module_statics! {TrainerModule_Ref}
    const BASE_NAME: &'static str = "overnight_trainer";
    const NAME: &'static str = "overnight_trainer";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// The root module for trainers of type `T`, type erased.
pub fn root_module<T: Trainer + 'static>() -> RootModuleResult {
    fn module<T: Trainer + 'static>() -> TrainerModule_Ref {
        TrainerModule { new: new::<T> }.leak_into_prefix()
    }
    __call_root_module_loader(module::<T>)
}

extern "C" fn new<T: Trainer + 'static>(setup: &RawSetup) -> Answer<BoxedTrainer> {
    remember_panics();
    guarded(|| T::new(&Setup::from(setup)))
        .map(|trainer| RawTrainer_TO::from_value(Guarded(trainer), TD_Opaque))
}

/// A trainer whose panics stay on this side.
struct Guarded<T>(T);

impl<T: Trainer> RawTrainer for Guarded<T> {
    fn train<'a>(&mut self, session: Host_TO<'a, RMut<'a, ()>>) -> Answer<()> {
        guarded(|| self.0.train(&mut Session::from_raw(session)))
    }

    fn score(
        &mut self,
        inputs: RSlice<'_, u32>,
        targets: RSlice<'_, u32>,
        seq_len: usize,
        mut nats: RSliceMut<'_, f32>,
    ) -> Answer<()> {
        let windows = Windows {
            inputs: inputs.as_slice(),
            targets: targets.as_slice(),
            batch_size: inputs.len() / seq_len,
            seq_len,
        };
        guarded(|| self.0.score(windows, nats.as_mut_slice()))
    }

    fn logits(&mut self, prefix: RSlice<'_, u32>, mut logits: RSliceMut<'_, f32>) -> Answer<()> {
        guarded(|| self.0.logits(prefix.as_slice(), logits.as_mut_slice()))
    }

    fn save(&mut self, checkpoint: RStr<'_>) -> Answer<()> {
        guarded(|| self.0.save(Path::new(checkpoint.as_str())))
    }

    fn load(&mut self, checkpoint: RStr<'_>) -> Answer<()> {
        guarded(|| self.0.load(Path::new(checkpoint.as_str())))
    }
}

thread_local! {
    /// Location and message of this thread's latest panic, which the payload alone does not tell.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Hooks the library's own copy of std (the host's hook never fires for it): the usual report
/// goes to stderr, and the message with its place is kept for [`guarded`].
fn remember_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map_or_else(String::new, |at| {
                format!("{}:{}:{}: ", at.file(), at.line(), at.column())
            });
            let message = info.payload_as_str().unwrap_or("panicked with a value that is not text");
            LAST_PANIC.set(Some(format!("{place}{message}")));
            report(info);
        }));
    });
}

fn guarded<R>(call: impl FnOnce() -> Result<R, Error>) -> Answer<R> {
    LAST_PANIC.set(None);
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => ROk(value),
        Ok(Err(error)) => RErr(Failure { panicked: false, message: error.to_string().into() }),
        Err(payload) => {
            // A panic that was carried over from another thread left its place there.
            let message = LAST_PANIC.take().unwrap_or_else(|| {
                let text = payload.downcast_ref::<&str>().map(ToString::to_string);
                text.or_else(|| payload.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "panicked with a value that is not text".to_owned())
            });
            // Dropping a hostile payload may panic again, here outside the guard.
            std::mem::forget(payload);
            RErr(Failure { panicked: true, message: message.into() })
        }
    }
}
