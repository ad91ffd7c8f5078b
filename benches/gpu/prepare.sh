#!/bin/sh
# Packs what a study of given sources needs on a machine with a card but without Rust:
#
#     sh benches/gpu/prepare.sh OUT cuda SOURCES [--vocab 8192 ...]
#
# SOURCES is a folder of versions of the template's src/train.rs, as for `--proposer replay:`; the template's own
# is the baseline. `cpu` in place of `cuda` tries it here. The rest is what the study will be told of its data.
# For `cuda` the toolchain must be in the environment (tools/cuda-toolchain.sh). Then, there:
#
#     sh OUT/run --device cuda --dir runs/first [--vocab 8192 ...]
set -eu
fail() { echo "prepare: $1" >&2; exit 1; }
[ $# -ge 3 ] || fail "three arguments: a folder to write, cpu or cuda, a folder of sources"
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd -P) device=$2 sources=$(cd "$3" && pwd)
shift 3
case $device in
    cpu) features= ;;
    cuda)
        features='--features cuda'
        command -v nvcc >/dev/null || fail "no nvcc on the PATH: sh tools/cuda-toolchain.sh FOLDER && . FOLDER/env"
        ;;
    *) fail "$device is neither cpu nor cuda" ;;
esac
[ -n "$(ls "$sources"/*.rs 2>/dev/null)" ] || fail "there is no .rs file in $sources"
target=${CARGO_TARGET_DIR:-$root/target}

work=$target/carried
mkdir -p "$work" "$out/bin" "$out/lib64" "$out/spare" "$out/libraries/$device" "$out/sources"
(cd "$root" && CARGO_TARGET_DIR=$target cargo build --release --locked --example overnight)
strip -o "$out/overnight" "$target/release/examples/overnight"

# Data and template are as the program prepares them, in a study that gets no further than its first build.
rm -rf "$out/cache/template" "$work/study" "$work/bin"
mkdir -p "$work/bin"
printf '#!/bin/sh\n[ "$1" != build ] || exit 1\nexec "%s" "$@"\n' "$(command -v cargo)" >"$work/bin/cargo"
chmod +x "$work/bin/cargo"
PATH=$work/bin:$PATH OVERNIGHT_CACHE=$out/cache "$out/overnight" --dir "$work/study" --trials 0 \
    --program "$root/program.md" "$@" >"$work/said" 2>&1 || true
[ -n "$(ls "$out"/cache/data/*/dataset.json 2>/dev/null)" ] || { cat "$work/said" >&2; fail "no data were prepared"; }

# The template as the program carries it, at a place that stays the same, by which cargo knows what it has built.
crate=$work/template/trainer-template
rm -rf "$work/template"
cp -rp "$out"/cache/template/* "$work/template"

cp "$root"/benches/gpu/carried/cargo "$root"/benches/gpu/carried/rustc "$root"/benches/gpu/carried/nvcc "$out/bin"
cp "$root/benches/gpu/carried/run" "$root/program.md" "$out"
rm -f "$out"/sources/*.rs
cp "$sources"/*.rs "$out/sources"
rustc -vV >"$out/toolchain"
echo trainer >"$out/name"
(cd "$crate" && "$out/bin/cargo" fixed) >"$out/fixed"

own=$work/own.rs
cp "$crate/src/train.rs" "$own"
for source in "$own" "$sources"/*.rs; do
    library=$out/libraries/$device/$(sha256sum <"$source" | cut -d' ' -f1).so
    # Not as it was copied: cargo goes by the time.
    cat "$source" >"$crate/src/train.rs"
    # shellcheck disable=SC2086
    if (cd "$crate" && CARGO_TARGET_DIR=$work/$device \
        cargo build --release --locked --lib $features); then
        strip -o "$library" "$work/$device/release/libtrainer.so"
    else
        echo "prepare: $source does not compile, and will count as such" >&2
    fi
done

# In case that there is no git. It must have this name.
mkdir -p "$out/spare/itself"
cp -L "$(command -v git)" "$out/spare/itself/git"
ldd "$out/spare/itself/git" | awk '$3 ~ /pcre|libz/ { print $3 }' | while read -r needed; do
    cp -L "$needed" "$out/spare/itself"
done
cat >"$out/spare/git" <<'GIT'
#!/bin/sh
here=$(cd "$(dirname "$0")/itself" && pwd -P)
LD_LIBRARY_PATH=$here GIT_EXEC_PATH=$here exec "$here/git" "$@"
GIT
chmod +x "$out/spare/git"

if [ "$device" = cuda ]; then
    echo "prepared; what the libraries need of CUDA, in LD_LIBRARY_PATH or $out/lib64 there:"
    for library in "$out/libraries/$device"/*.so; do
        readelf -d "$library" | sed -n 's/.*NEEDED.*\[\(lib\(cu\|nv\)[^]]*\)\].*/  \1/p'
    done | sort -u
else
    echo "prepared: sh $out/run --dir runs/first $*"
fi
