//! A third way to compute: on a card, with activations in `bf16` and sums in `f32`.
//!
//! Kernels stand in `cuda/`. [`Card`] carries them out: a CUDA device ([`cuda`]), or in tests the same
//! files compiled for the processor. Everything is queued on one stream, and a batch goes through in
//! parts of some 65,536 tokens, whose gradients are added: as many rows as one likes, in the memory
//! of one part. No kernel adds atomically, so that the same step gives the same bits.

mod attention;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "kernels get addresses")]
mod cuda;
mod elementwise;
mod embedding;
mod head;
mod linear;
mod norm;
mod optimizer;
mod pass;
mod tape;

pub(crate) use attention::attention;
pub(crate) use elementwise::{apply, first_channels, gated_add, mean, mix, relu_squared};
pub(crate) use embedding::embedding;
pub(crate) use head::{cross_entropy, last_logits, token_nats};
pub(crate) use linear::linear;
pub(crate) use norm::{rms_norm, rotary_norm};
pub(crate) use optimizer::{Averages, Moments};
pub(crate) use pass::{gradients, infer};
pub(crate) use tape::Sink;
pub use tape::{Node, Tape};

use candle_core::{Device, Result, Tensor};
use std::{any::Any, cell::RefCell, rc::Rc};

/// Where something stands in a card's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub u64);

impl Address {
    /// For an argument that is left out.
    pub const NULL: Self = Self(0);

    fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// A part of a card's memory, which is given back when this is dropped: after everything that was
/// queued before.
pub struct Memory {
    /// The first byte.
    pub address: Address,
    /// Length in bytes.
    pub bytes: usize,
    /// Whose end gives it back.
    pub owner: Box<dyn Any>,
}

/// An argument of a kernel: its bits, the low ones first.
#[derive(Debug, Clone, Copy)]
pub struct Argument(pub u64);

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self(address.0)
    }
}

impl From<&Memory> for Argument {
    fn from(memory: &Memory) -> Self {
        Self(memory.address.0)
    }
}

impl From<bool> for Argument {
    fn from(x: bool) -> Self {
        Self(x.into())
    }
}

impl From<usize> for Argument {
    /// For `int` and `long long` alike: the low half of a small number is the same number.
    fn from(x: usize) -> Self {
        Self(x as u64)
    }
}

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self(x.to_bits().into())
    }
}

/// How many threads a kernel gets.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks, in two dimensions.
    pub grid: [usize; 2],
    /// Threads of a block.
    pub threads: usize,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: usize,
}

/// `c = alpha * a b + beta * c` for each of `batch` dense matrices that follow each other: `a` is
/// `[rows, inner]` and `b` is `[inner, columns]`, in `bf16`; transposed, they stand the other way
/// round. `c` is `[rows, columns]`. Sums are in `f32`.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `b` and `c`.
    pub columns: usize,
    /// What is summed over.
    pub inner: usize,
    /// The left matrix, and whether it is transposed.
    pub a: (Address, bool),
    /// The right matrix, and whether it is transposed.
    pub b: (Address, bool),
    /// The result, and whether it is `f32`.
    pub c: (Address, bool),
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what stands in `c`.
    pub beta: f32,
    /// How many such products.
    pub batch: usize,
}

/// What carries out kernels, one after another. Nobody waits for them but [`download`](Self::download).
pub trait Card {
    /// Memory with nothing in it that may be read.
    fn allocate(&self, bytes: usize) -> Result<Memory>;
    /// Copies to the start of `to`.
    fn upload(&self, bytes: &[u8], to: &Memory) -> Result<()>;
    /// Copies from the start of `from`, once all that was queued is done.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()>;
    /// Copies `bytes` bytes.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()>;
    /// Sets every byte to zero.
    fn clear(&self, memory: &Memory) -> Result<()>;
    /// Runs a kernel.
    fn launch(&self, launch: Launch, arguments: &[Argument]) -> Result<()>;
    /// Multiplies matrices.
    fn product(&self, product: Product) -> Result<()>;
    /// Where the elements of a contiguous tensor of 32-bit numbers stand.
    fn address(&self, tensor: &Tensor) -> Result<Address>;
}

thread_local! {
    /// The card that takes the processor's tensors on this thread.
    static EMULATED: RefCell<Option<Rc<dyn Card>>> = const { RefCell::new(None) };
}

/// Computes on `card` what this thread computes with tensors on the CPU, for the time of `body`.
pub fn emulate<R>(card: Rc<dyn Card>, body: impl FnOnce() -> R) -> R {
    struct Reset(Option<Rc<dyn Card>>);
    impl Drop for Reset {
        fn drop(&mut self) {
            EMULATED.set(self.0.take());
        }
    }
    let _reset = Reset(EMULATED.replace(Some(card)));
    body()
}

/// Whether tensors of this device can be computed with here.
pub(crate) fn takes(device: &Device) -> bool {
    match device {
        Device::Cpu => EMULATED.with_borrow(Option::is_some),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::takes(device),
        _ => false,
    }
}

/// What computes with tensors of this device.
fn of(device: &Device) -> Result<Rc<dyn Card>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::of(device),
        _ => match EMULATED.with_borrow(Clone::clone) {
            Some(card) => Ok(card),
            None => candle_core::bail!("there is no card for tensors of {device:?}"),
        },
    }
}

/// Size of an activation and of everything else.
const BF16: usize = 2;
const F32: usize = 4;

/// Threads of a block, where nothing speaks for another number.
const THREADS: usize = 256;
/// Enough blocks to fill any card; each then goes over several parts.
const BLOCKS: usize = 2048;

/// A kernel that goes over `n` numbers in chunks of eight.
fn each(kernel: &'static str, n: usize) -> Launch {
    let blocks = n.div_ceil(8 * THREADS).clamp(1, BLOCKS);
    Launch { kernel, grid: [blocks, 1], threads: THREADS, shared: 0 }
}

/// A kernel with one warp for each of `rows` rows.
fn warps(kernel: &'static str, rows: usize) -> Launch {
    Launch { kernel, grid: [rows.div_ceil(THREADS / 32), 1], threads: THREADS, shared: 0 }
}

/// A copy of these in the card's memory.
fn upload_ids(card: &dyn Card, ids: &[u32]) -> Result<Memory> {
    let memory = card.allocate(ids.len() * F32)?;
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
    card.upload(&bytes, &memory)?;
    Ok(memory)
}

/// The first `count` numbers from there.
fn download_f32(card: &dyn Card, from: Address, count: usize) -> Result<Vec<f32>> {
    let mut bytes = vec![0; count * F32];
    card.download(from, &mut bytes)?;
    let number = |x: &[u8]| f32::from_ne_bytes(x.try_into().expect("chunks of four"));
    Ok(bytes.chunks_exact(F32).map(number).collect())
}

macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$($crate::card::Argument::from($argument)),*] };
}
use arguments;
