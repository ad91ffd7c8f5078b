#!/bin/sh
# Makes what building a trainer for NVIDIA cards needs of CUDA 13.0, from the Python package index:
#
#     sh tools/cuda-toolchain.sh FOLDER && . FOLDER/env
#
# It needs python3 with pip, a C compiler, and the crates of the trainer (`cargo fetch`); no card, no driver and
# no root. 1.2 GB, of 0.7 GB that are downloaded. A second call finds everything done.
set -eu

fail() { echo "cuda-toolchain: $1" >&2; exit 1; }
[ $# -eq 1 ] || fail "one argument: the folder to make it in"
for program in python3 cc cargo; do
    command -v $program >/dev/null || fail "there is no $program on the PATH"
done
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip (python3 -m pip)"

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
# Compiler and headers of one release: what a newer one compiles, a driver of that release may refuse.
packages='nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-culibos==13.0.85 nvidia-cublas==13.0.2.14
nvidia-curand==10.4.0.35'
made="$folder/.made"
if [ "$(cat "$made" 2>/dev/null)" = "$packages" ]; then
    echo "it is there already; . $folder/env"
    exit 0
fi

work=$(mktemp -d "$folder/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work/wheels" $packages ||
    fail "pip could not fetch the packages"
for wheel in "$work"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/files" || fail "cannot unpack $wheel"
done
cuda="$work/files/nvidia/cu13"
[ -f "$cuda/bin/nvcc" ] || fail "the packages hold no nvidia/cu13/bin/nvcc"
# An archive in this format keeps no modes.
chmod -R u+x "$cuda/bin" "$cuda/nvvm/bin"
ln -s lib "$cuda/lib64"
for library in "$cuda"/lib/*.so.*; do
    name=$(basename "$library")
    ln -sf "$name" "$cuda/lib/${name%%.so.*}.so"
done

# The driver's library comes with a driver. To link, names are enough: those that cudarc calls.
cargo fetch --quiet --locked --manifest-path "$root/trainer-template/Cargo.toml" || fail "cargo fetch failed"
cudarc=$(cargo metadata --format-version=1 --offline --locked --all-features \
    --manifest-path "$root/trainer-template/Cargo.toml" |
    python3 -c 'import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "cudarc":
        print(os.path.dirname(package["manifest_path"]))')
names="$cudarc/src/driver/sys/mod.rs"
[ -f "$names" ] || fail "there is no $names"
mkdir "$cuda/lib/stubs"
sed -n 's/^pub unsafe fn \(cu[A-Za-z0-9_]*\)(.*/void \1(void) {}/p' "$names" | sort -u >"$work/stub.c"
[ -s "$work/stub.c" ] || fail "no names of the driver's functions in $names"
cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$cuda/lib/stubs/libcuda.so" "$work/stub.c" || fail "cc failed"

rm -rf "$folder/cuda"
mv "$cuda" "$folder/cuda"
cat >"$folder/env" <<END
export CUDA_HOME='$folder/cuda'
export PATH="\$CUDA_HOME/bin:\$PATH"
export LIBRARY_PATH="\$CUDA_HOME/lib:\$CUDA_HOME/lib/stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
END
"$folder/cuda/bin/nvcc" --version >/dev/null || fail "the nvcc that was made does not run"
printf '%s' "$packages" >"$made"
echo "made; . $folder/env"
