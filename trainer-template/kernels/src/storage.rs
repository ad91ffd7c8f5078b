//! Between candle's tensors and slices.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, Var, WithDType, bail};
use std::cell::RefCell;

/// Calls `body` with the elements of tensors on the CPU.
pub fn read<T: WithDType, R, const N: usize>(
    tensors: [&Tensor; N],
    body: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let tensors = tensors.iter().map(|xs| xs.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[T]; N] = [&[]; N];
    for (elements, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a contiguous tensor has no contiguous layout");
        };
        *elements = match &**storage {
            Storage::Cpu(storage) => &storage.as_slice::<T>()?[start..end],
            _ => bail!("a fused operation was given a tensor that is not on the CPU"),
        };
    }
    Ok(body(slices))
}

/// Lets `body` change the elements of a contiguous variable on the CPU.
pub fn write(var: &Var, body: impl FnOnce(&mut [f32])) -> Result<()> {
    struct Write<F>(RefCell<Option<F>>);

    impl<F: FnOnce(&mut [f32])> InplaceOp1 for Write<F> {
        fn name(&self) -> &'static str {
            "write"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (CpuStorage::F32(elements), Some((start, end))) =
                (storage, layout.contiguous_offsets())
            else {
                bail!("a fused step was given a variable that is not contiguous or not f32");
            };
            let body = self.0.take().expect("an operation is applied once");
            body(&mut elements[start..end]);
            Ok(())
        }
    }

    var.inplace_op1(&Write(RefCell::new(Some(body))))
}
