#!/bin/sh
# Packs all that a machine with a card but without Rust needs: `sh benches/gpu/prepare.sh OUT` makes the folder
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
(cd "$root" && env -u CARGO_TARGET_DIR cargo build --release --locked --example overnight)
strip -o "$out/overnight" "$root/target/release/examples/overnight"

# A study of three trials: sources, their libraries by hash, and something to read.
mkdir -p "$out/libraries" "$out/replay" "$out/text"
for name in 4x128 4x128x256 4x128-slow; do
    cp "$out/$name.so" "$out/libraries/$(sha256sum <"$out/$name.rs" | cut -c1-64).so"
done
cp "$out/4x128x256.rs" "$out/replay/1.rs"
cp "$out/4x128-slow.rs" "$out/replay/2.rs"
cargo metadata --format-version=1 --offline --locked --manifest-path "$template" \
    --filter-platform x86_64-unknown-linux-gnu >"$out/metadata.json"
python3 - "$out" <<'END'
import json, pathlib, shutil, sys

out, total = pathlib.Path(sys.argv[1]), 0
for package in json.loads((out / "metadata.json").read_text())["packages"]:
    for source in sorted(pathlib.Path(package["manifest_path"]).parent.glob("src/*.rs")):
        if total < 6_000_000 and package["source"]:
            shutil.copy(source, out / "text" / f"{package['name']}-{source.stem}.txt")
            total += source.stat().st_size
END
cp -r "$root/benches/gpu/carried" "$root/benches/gpu/all.sh" "$root/program.md" "$out"
mkdir -p "$out/benches"
cp -r "$root/benches/gpu" "$root/benches/pytorch" "$out/benches"
# Libraries of one trainer differ little: a dictionary that holds two of them makes one of all.
tar -C "$(dirname "$out")" -c "$(basename "$out")" | xz -T0 -3 --lzma2=preset=3,dict=400MiB >"$out.tar.xz"
ls -l "$out.tar.xz"
