#!/bin/sh
# Builds the template for cards in the shapes that are measured there, and packs what a machine with a
# card but without Rust needs: `sh benches/gpu/shapes.sh OUT`. The CUDA toolchain must be in the
# environment (tools/cuda-toolchain.sh).
set -eu
out=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target/card}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$root/trainer-template" "$root/plugin-api" "$work"
source=$work/trainer-template/src/train.rs

# name, then CONSTANT=value of train.rs
build() {
    name=$1; shift
    cp "$root/trainer-template/src/train.rs" "$source"
    for change in "$@"; do
        constant=${change%%=*}
        grep -q "^const $constant: [a-z0-9]* = " "$source" || { echo "there is no $constant" >&2; exit 1; }
        sed -i "s/^\(const $constant: [a-z0-9]* = \)[^;]*;/\1${change#*=};/" "$source"
    done
    (cd "$work/trainer-template" && CARGO_TARGET_DIR=$target cargo build --release --locked --features cuda)
    strip -o "$out/$name.so" "$target/release/libtrainer.so"
    cp "$source" "$out/$name.rs"
}

build 4x128
build 4x128x256 BATCH_ROWS=256
build 4x128-f32 BF16=false
build 4x128-slow BATCH_ROWS=256 MATRIX_LR=0.02
build 8x512 DEPTH=8 WIDTH=512 HEAD_DIM=128 SEQUENCE_LEN=2048 BATCH_ROWS=128
build 12x768 DEPTH=12 WIDTH=768 HEAD_DIM=128 SEQUENCE_LEN=2048 BATCH_ROWS=64
(cd "$root" && env -u CARGO_TARGET_DIR cargo build --release --locked --example card)
strip -o "$out/card" "$root/target/release/examples/card"
