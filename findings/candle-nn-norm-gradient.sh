#!/usr/bin/env bash
# Whether a gradient passes candle-nn's RmsNorm and LayerNorm depends on how the input lies in memory.
#
# A good guess: a layer either has a backward pass, or `backward()` fails. Here (candle-core and candle-nn 0.11.1, on a CPU)
# the same layer, on the same numbers, passes a gradient on where its input is a transposed view, and ends it without a word
# where the input is contiguous, which it nearly always is. `forward` takes a fused kernel without a backward pass for
# contiguous inputs, and composed operations for others.
#
# Hurt: whoever trains a model with these layers. All parameters before the last norm keep their first values; the loss
# still goes down a little, by what lies behind it, and nothing is reported.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
candle-core = "=0.11.1"
candle-nn = "=0.11.1"
TOML
cat > src/main.rs <<'RUST'
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{LayerNorm, Module, RmsNorm};

/// Whether the gradient of the sum of squares reaches a variable through a layer.
fn reaches(layer: &dyn Module, transposed: bool) -> Result<bool> {
    let x = Var::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 5.]], &Device::Cpu)?)?;
    // The same numbers; transposed twice, they lie in memory column by column.
    let input = if transposed { x.t()?.contiguous()?.t()? } else { x.contiguous()? };
    let grads = layer.forward(&input)?.sqr()?.sum_all()?.backward()?;
    Ok(grads.get(&x).is_some())
}

fn main() -> Result<()> {
    let ones = Tensor::ones(2, candle_core::DType::F32, &Device::Cpu)?;
    let zeros = ones.zeros_like()?;
    let rms = RmsNorm::new(ones.clone(), 1e-5);
    let layer = LayerNorm::new(ones, zeros, 1e-5);
    for (name, norm) in [("RmsNorm", &rms as &dyn Module), ("LayerNorm", &layer)] {
        println!("{name}: contiguous {}, transposed {}", reaches(norm, false)?, reaches(norm, true)?);
    }
    Ok(())
}
RUST
seen=$(cargo run --quiet)
echo "$seen"
test "$seen" = "RmsNorm: contiguous false, transposed true
LayerNorm: contiguous false, transposed true"
