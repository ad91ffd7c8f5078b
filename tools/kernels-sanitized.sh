#!/bin/sh
# Runs the kernels for cards under sanitizers, on the processor: what is read or written past the end of
# memory (AddressSanitizer, all tests), and what two threads of a block do to one place at a time
# (ThreadSanitizer, a thread of the system for each, so a few tests only). Three minutes on two cores.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
compiler=${CXX:-c++}
target=${CARGO_TARGET_DIR:-$root/target/kernels-sanitized}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# library, flags: whether a program with it runs here
works() {
    [ -f "$("$compiler" -print-file-name="$1")" ] || return 1
    echo 'int main() {}' >"$work/probe.cpp"
    "$compiler" "$2" -o "$work/probe" "$work/probe.cpp" 2>/dev/null && "$work/probe" 2>/dev/null
}

# The tests that cargo has built, by the library of a sanitizer.
run() {
    library=$("$compiler" -print-file-name="$1")
    shift
    (cd "$root/trainer-template/kernels" && LD_PRELOAD=$library timeout 900 "$@")
}

CARGO_TARGET_DIR=$target cargo test --release --locked --no-run --message-format=json \
    --manifest-path "$root/trainer-template/Cargo.toml" -p overnight-kernels >"$work/built"
test_of() {
    sed -n "s/.*\"executable\":\"\([^\"]*\/$1-[0-9a-f]*\)\".*/\1/p" "$work/built"
}

if works libasan.so -fsanitize=address; then
    export OVERNIGHT_KERNEL_FLAGS='-g -fsanitize=address,undefined -fsanitize-sections=host_shared'
    export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1
    run libasan.so "$(test_of agreement)"
    run libasan.so "$(test_of optimizer)"
else
    echo "there is no AddressSanitizer for $compiler: skipped"
fi
if works libtsan.so -fsanitize=thread; then
    export OVERNIGHT_KERNEL_FLAGS='-g -DHOST_THREADS -fsanitize=thread'
    # The tests themselves are not built for it: what their own threads do looks like races.
    printf 'race:agreement-\nthread:*\nmutex:*\n' >"$work/suppressions"
    export TSAN_OPTIONS="halt_on_error=1 suppressions=$work/suppressions"
    run libtsan.so "$(test_of agreement)" --test-threads 1 prefix attention_with cross_entropy
else
    echo "there is no ThreadSanitizer for $compiler: skipped"
fi
