//! What the tests of several operations share; none of them uses all of it.

#![allow(dead_code)]

#[cfg(not(feature = "cuda"))]
mod host;

use candle_core::{DType, Device, Tensor};
use overnight_kernels::Compute;

/// Numbers that look random, spread over -1..1, the same at every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f64 {
        // Knuth's MMIX generator; its high bits are good enough here.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Exact in bf16.
    pub fn tensor(&mut self, shape: &[usize], scale: f64) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<f64> =
            (0..n).map(|_| half::bf16::from_f64(self.next() * scale).to_f64()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    pub fn below(&mut self, limit: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * limit as f64) as usize % limit
    }

    pub fn ids(&mut self, count: usize, limit: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(limit) as u32).collect()
    }
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[cfg(not(feature = "cuda"))]
fn host() -> Option<host::Host> {
    host::Host::new(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda"))
}

/// Whether there is something that kernels for cards run on: a card, where the tests are built for one,
/// or a C++ compiler.
pub fn card() -> bool {
    #[cfg(feature = "cuda")]
    return true;
    #[cfg(not(feature = "cuda"))]
    host().is_some()
}

/// Calls `body` with the device that `compute` is for.
pub fn with<R>(compute: Compute, body: impl FnOnce(&Device) -> R) -> R {
    if compute != Compute::Card {
        return body(&Device::Cpu);
    }
    #[cfg(feature = "cuda")]
    {
        thread_local! {
            static CARD: Device = Device::new_cuda(0).expect("the tests were built for a card");
        }
        CARD.with(body)
    }
    #[cfg(not(feature = "cuda"))]
    {
        let host = host().expect("it was there when the ways were listed");
        overnight_kernels::card::emulate(std::rc::Rc::new(host), || body(&Device::Cpu))
    }
}
