//! The boundary between the `overnight` loop and the trainers that it compiles and loads.
//!
//! An author implements [`Trainer`] in plain Rust and hands the type to [`export_trainer!`]; the
//! crate is then built as a `cdylib`. Tensors never cross the boundary, slices do: this crate knows
//! nothing of candle, of serde, of the data or of how a library is found and opened.
//!
//! ```
//! use overnight_plugin_api::{Result, Session, Setup, Trainer, Windows};
//! use std::path::Path;
//!
//! /// Predicts every token with the same probability, whatever came before.
//! struct Uniform {
//!     vocab_size: usize,
//! }
//!
//! impl Trainer for Uniform {
//!     fn new(setup: &Setup) -> Result<Self> {
//!         Ok(Self { vocab_size: setup.vocab_size })
//!     }
//!     fn train(&mut self, session: &mut Session<'_>) -> Result<()> {
//!         while let Some(_batch) = session.next_batch(4, 32) {
//!             session.report((self.vocab_size as f64).ln());
//!         }
//!         Ok(())
//!     }
//!     fn score(&mut self, _windows: Windows<'_>, nats: &mut [f32]) -> Result<()> {
//!         nats.fill((self.vocab_size as f32).ln());
//!         Ok(())
//!     }
//!     fn logits(&mut self, _prefix: &[u32], logits: &mut [f32]) -> Result<()> {
//!         logits.fill(0.0);
//!         Ok(())
//!     }
//!     fn save(&mut self, checkpoint: &Path) -> Result<()> {
//!         Ok(std::fs::write(checkpoint, [])?)
//!     }
//!     fn load(&mut self, _checkpoint: &Path) -> Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! overnight_plugin_api::export_trainer!(Uniform);
//! # fn main() {}
//! ```

mod error;
#[doc(hidden)]
pub mod raw;
mod session;
mod trainer;

pub use error::{Error, Result};
pub use session::{Batch, Session};
pub use trainer::{Device, Setup, Trainer, Windows};

/// Exports a [`Trainer`] from the `cdylib` that this is called in, once, at the crate's root.
///
/// It writes the library's root module, which carries the layout of every type that crosses, so
/// that a library built against another version of this crate is refused before any of its
/// functions is called. A panic anywhere in the trainer is caught on this side of the boundary and
/// crosses it as a message with its location.
#[macro_export]
macro_rules! export_trainer {
    ($trainer:ty) => {
        // As abi_stable's `export_root_module` would write it, but under names that do not need
        // abi_stable among the trainer's own dependencies.
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub static OVERNIGHT_TRAINER: $crate::raw::LibHeader = {
            extern "C" fn constructor() -> $crate::raw::RootModuleResult {
                $crate::raw::root_module::<$trainer>()
            }
            // SAFETY: `root_module` returns a `TrainerModule_Ref`, erased.
            unsafe {
                $crate::raw::LibHeader::from_constructor::<$crate::raw::TrainerModule_Ref>(
                    constructor,
                    $crate::raw::CheckTypeLayout::Yes,
                )
            }
        };
    };
}
