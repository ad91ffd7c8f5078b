//! Between candle's tensors and slices.

use candle_core::{
    CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};

/// The elements of a contiguous argument of a custom operation.
pub fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fused operation was given an argument that is not contiguous");
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Calls `body` with the elements of tensors on the CPU.
pub fn read<T: WithDType, R, const N: usize>(
    tensors: [&Tensor; N],
    body: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let tensors = tensors.iter().map(|xs| xs.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[T]; N] = [&[]; N];
    for (elements, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *elements = match &**storage {
            Storage::Cpu(storage) => slice(storage, layout)?,
            _ => bail!("a fused operation was given a tensor that is not on the CPU"),
        };
    }
    Ok(body(slices))
}

/// What a custom operation returns.
pub fn output<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(values), shape.into())
}

/// A gradient of the same shape as `like`.
pub fn gradient<T: WithDType>(values: Vec<T>, like: &Tensor) -> Result<Option<Tensor>> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu).map(Some)
}

/// The element type in which the fused kernel can take `tensor`, if it can.
pub enum Fused {
    F32,
    F64,
}

pub fn fused(tensor: &Tensor) -> Option<Fused> {
    match (tensor.device(), tensor.dtype()) {
        (Device::Cpu, DType::F32) => Some(Fused::F32),
        (Device::Cpu, DType::F64) => Some(Fused::F64),
        _ => None,
    }
}
