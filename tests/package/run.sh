#!/usr/bin/env bash
# Packages both crates, and runs a study in a program that has the packages and nothing else of this
# repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD

rm -f target/package/*.crate
# What cargo would verify of them, the program's build does.
cargo package --workspace --allow-dirty --no-verify --quiet --target-dir "$repository/target"

outside=$(mktemp -d)
trap 'rm -rf "$outside"' EXIT
cp -r tests/package/outside/. "$outside"
mkdir -p "$outside/trainer"
cp -r examples/smallest-trainer/. "$outside/trainer"
# It has the package where the repository has the folder.
sed -i 's|"../../plugin-api"|"../overnight-plugin-api"|' "$outside/trainer/Cargo.toml"
for crate in overnight-plugin-api overnight; do
  package=$(ls "target/package/$crate"-[0-9]*.crate)
  needless=$(tar tzf "$package" |
    grep -vE '^[^/]*/(src/.*|examples/(overnight\.rs|view/.*)|Cargo\.(toml|toml\.orig|lock)|\.cargo_vcs_info\.json|LICENSE-.*|README\.md|program\.md)$' || true)
  test -z "$needless" || { printf 'nobody needs these in %s:\n%s\n' "$crate" "$needless"; exit 1; }
  mkdir "$outside/$crate"
  # With the time of unpacking: all files of a package are years old, and what is older than the last
  # build is not built again.
  tar xzmf "$package" -C "$outside/$crate" --strip-components 1
done
# The versions that the repository is built with, as far as they are needed.
cp Cargo.lock "$outside/Cargo.lock"
# Some text to learn from.
cat "$outside"/overnight/src/*.rs >"$outside/corpus.txt"

cd "$outside"
# All but the packages themselves is compiled already where the repository is.
export CARGO_TARGET_DIR="$repository/target"
OVERNIGHT_CACHE="$outside/cache" cargo run --release --quiet -- corpus.txt trainer study
