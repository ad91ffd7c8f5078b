//! Fused operations that `train.rs` may call, each with a hand-written gradient.
//!
//! Every function here computes what its namesake in [`composed`] computes from candle's own
//! operations, in one pass over memory and in parallel. On the CPU, in `f32` and `f64`, the fused
//! kernel runs; anywhere else the composed twin does. Reductions run in an order that depends on
//! the shapes alone, so results do not change with the number of threads.
//!
//! Why they exist: candle's own `softmax_last_dim`, `rms_norm` and `rope` have no backward pass at
//! all, and a training step made of elementary operations spends more than half of its time moving
//! intermediate results through memory.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod activation;
mod attention;
pub mod composed;
mod cross_entropy;
mod float;
mod norm;
mod storage;
mod tile;

pub use activation::relu_squared;
pub use attention::attention;
pub use cross_entropy::{cross_entropy, token_nats};
pub use norm::{NORM_EPS, rms_norm, rotary_norm};

/// Limits the fused operations to `threads` threads.
///
/// The pool belongs to the process: the first call, or the first operation, settles it. candle's
/// matrix products split their work by `RAYON_NUM_THREADS`, whoever calls this.
pub fn use_threads(threads: usize) {
    // An error says that the pool exists already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}
