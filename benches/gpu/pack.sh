#!/bin/sh
# Packs all that a machine with a card but without Rust needs: `sh benches/gpu/pack.sh OUT` makes the folder
# OUT and OUT.tar.xz. There, `sh OUT/all.sh` runs it. The CUDA toolchain must be in the environment
# (tools/cuda-toolchain.sh).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
target=${CARGO_TARGET_DIR:-$root/target/card}

CARGO_TARGET_DIR=$target sh "$root/benches/gpu/shapes.sh" "$out"
template=$root/trainer-template/Cargo.toml
CARGO_TARGET_DIR=$target cargo test --release --locked --no-run --message-format=json \
    --manifest-path "$template" -p overnight-kernels --features overnight-kernels/cuda >"$out/built"
for name in agreement optimizer; do
    built=$(sed -n "s/.*\"executable\":\"\([^\"]*\/$name-[0-9a-f]*\)\".*/\1/p" "$out/built")
    strip -o "$out/$name" "$built"
done
rm "$out/built"

# A study of three trials.
mkdir -p "$out/replay"
cp "$out/4x128x256.rs" "$out/replay/1.rs"
cp "$out/4x128-slow.rs" "$out/replay/2.rs"
CARGO_TARGET_DIR=$target sh "$root/benches/gpu/prepare.sh" "$out/study" cuda "$out/replay"

cp "$root/benches/gpu/all.sh" "$out"
mkdir -p "$out/benches"
cp -r "$root/benches/gpu" "$root/benches/pytorch" "$out/benches"
# Libraries of one trainer differ little: a dictionary that holds two of them makes one of all.
tar -C "$(dirname "$out")" -c "$(basename "$out")" | xz -T0 -3 --lzma2=preset=3,dict=400MiB >"$out.tar.xz"
ls -l "$out.tar.xz"
