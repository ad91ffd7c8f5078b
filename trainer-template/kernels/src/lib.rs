//! Fused operations that `train.rs` may call, each with a hand-written gradient.
//!
//! A pass through a model begins with [`gradients`] or [`infer`], which say what to compute with,
//! and goes from [`Activations`] to [`Activations`]. On the CPU every function here is one fused
//! kernel, in `bf16` or `f32`; on a CUDA card it is a few kernels of [`card`], in `bf16`; anywhere
//! else it is its namesake in [`composed`], from candle's own operations. [`apply`] takes in any expression of candle's between them.
//!
//! Why they exist: candle's own `softmax_last_dim`, `rms_norm` and `rope` have no backward pass at
//! all, and a training step made of elementary operations spends more than half of its time moving
//! intermediate results through memory.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod activation;
mod adamw;
mod attention;
mod attention_bf16;
pub mod card;
pub mod composed;
mod element;
mod embedding;
mod gradients;
mod head;
mod linear;
mod math;
mod muon;
mod norm;
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "instructions of one processor"))]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "no product reads panels there")
)]
mod pairs;
mod pass;
mod processor;
#[expect(unsafe_code, reason = "the interface of the gemm crate")]
mod product;
mod storage;
mod stream;
mod tape;
mod tile;

pub use activation::relu_squared;
pub use adamw::{AdamW, AdamWStep};
pub use attention::{Heads, attention};
pub use gradients::{Gradients, Loss};
pub use head::{cross_entropy, last_logits, token_nats};
pub use linear::{linear, linear_add};
pub use muon::{Muon, MuonStep};
pub use norm::{NORM_EPS, rms_norm, rotary_norm};
pub use pass::{Activations, Compute, Pass, apply, gradients, infer};
pub use processor::multiplies_bf16;
pub use stream::{first_channels, gated_add, mix};

/// Limits the fused operations to `threads` threads.
///
/// The pool belongs to the process: the first call, or the first operation, settles it. candle's
/// matrix products split their work by `RAYON_NUM_THREADS`, whoever calls this.
pub fn use_threads(threads: usize) {
    // An error says that the pool exists already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}
