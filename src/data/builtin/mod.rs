//! The built-in corpus: sources of pinned crates, which cargo fetches, checks and keeps.
//!
//! A machine that can build the trainer has most of them already. Nothing is redistributed and no
//! account is needed. The list is explicit and has its own lock file, so that no update of a
//! dependency moves `val_bpb`.

use super::corpus::Corpus;
use crate::{
    environment::{cargo, fetch},
    error::{Error, Result},
    hash::sha256_of_parts,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

const MANIFEST: &str = include_str!("corpus.toml");
const LOCK: &str = include_str!("corpus.lock");

/// Split by crate, so that no crate's names and habits are on both sides. Ordinary code of several
/// authors, none of it a part, a fork or another version of a training crate.
const VALIDATION: &[&str] = &[
    "camino",
    "cargo_metadata",
    "crossbeam-epoch",
    "lock_api",
    "memmap2",
    "parking_lot",
    "postcard",
    "semver",
    "smallvec",
    "tempfile",
    "walkdir",
];
const TEST: &[&str] = &[
    "byteorder",
    "ciborium",
    "console",
    "crc32fast",
    "either",
    "getrandom",
    "once_cell",
    "proc-macro2",
    "quote",
    "ryu",
    "thiserror",
    "thiserror-impl",
];

/// Larger files are generated, nearly always.
const LARGEST_FILE: u64 = 200_000;

/// Names the corpus: the pinned crates, their checksums, and how they are split and filtered.
pub(super) fn fingerprint() -> String {
    let split = [VALIDATION, TEST].map(|names| names.join(" "));
    let rules = format!("{LARGEST_FILE} {MOST_DIGITS} {LONGEST_LINE}");
    let parts = [MANIFEST, LOCK, &split[0], &split[1], &rules];
    sha256_of_parts(parts.map(str::as_bytes))
}

/// Fetches the crates where they are missing, and reads them.
pub(super) fn read(cache: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Corpus> {
    let folder = cache.join("builtin");
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    for (name, text) in [("Cargo.toml", MANIFEST), ("Cargo.lock", LOCK), ("lib.rs", "")] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(Error::io("write", path))?;
    }
    fetch(&folder)?;
    let crates = crates(&folder)?;
    let mut corpus = Corpus::default();
    for (done, (name, folder)) in crates.iter().enumerate() {
        let documents = match name.as_str() {
            name if VALIDATION.contains(&name) => &mut corpus.validation,
            name if TEST.contains(&name) => &mut corpus.test,
            _ => &mut corpus.train,
        };
        for path in source_files(folder)? {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            if let Ok(text) = String::from_utf8(bytes)
                && is_written_by_hand(&text)
            {
                Corpus::add(documents, &text);
            }
        }
        progress(done as u64 + 1, crates.len() as u64);
    }
    Ok(corpus)
}

/// The listed crates, sorted by name, and where cargo keeps them.
fn crates(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo();
    command.current_dir(folder);
    command.args(["metadata", "--format-version=1", "--offline", "--locked"]);
    let fail = |complaint: String| Error::Command {
        command: "cargo metadata".to_owned(),
        folder: folder.to_owned(),
        complaint,
    };
    let output = crate::lifeline::output(&mut command);
    let output = output.map_err(Error::missing("cargo"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let metadata = cargo_metadata::MetadataCommand::parse(&text)
        .map_err(|_| fail(String::from_utf8_lossy(&output.stderr).into_owned()))?;
    let root = metadata.root_package().ok_or_else(|| fail("no root package".to_owned()))?;
    let mut crates = Vec::new();
    for dependency in &root.dependencies {
        // Another version may be there as well, as somebody's dependency.
        let package = metadata.packages.iter().find(|package| {
            package.name.as_str() == dependency.name && dependency.req.matches(&package.version)
        });
        let package = package.ok_or_else(|| fail(format!("{} is not there", dependency.name)))?;
        let license = package.license.as_deref().unwrap_or_default();
        if !["MIT", "Apache-2.0"].iter().any(|free| license.contains(free)) {
            return Err(fail(format!("{} is under {license:?}", dependency.name)));
        }
        let home = package.manifest_path.parent().map(PathBuf::from).unwrap_or_default();
        crates.push((dependency.name.clone(), home));
    }
    crates.sort();
    Ok(crates)
}

/// Rust and Markdown, sorted.
fn source_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let path = entry.path();
        if path.is_dir() {
            files.extend(source_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md")
            && entry.metadata().is_ok_and(|metadata| metadata.len() <= LARGEST_FILE)
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Of a file's bytes: above this it is a table.
const MOST_DIGITS: f64 = 0.15;

/// Mean bytes a line: above this it is generated or data.
const LONGEST_LINE: usize = 120;

fn is_written_by_hand(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let lines = text.lines().count();
    !text.is_empty()
        && (digits as f64) < MOST_DIGITS * text.len() as f64
        && text.len() < LONGEST_LINE * lines.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_held_out_crate_is_on_the_list_and_in_one_split_only() {
        for name in VALIDATION.iter().chain(TEST) {
            assert!(MANIFEST.contains(&format!("\n{name} = ")), "{name}");
        }
        assert!(VALIDATION.iter().all(|name| !TEST.contains(name)));
    }

    #[test]
    fn tables_are_told_from_code() {
        assert!(is_written_by_hand("fn main() {\n    println!(\"hello\");\n}\n"));
        assert!(!is_written_by_hand("const T: [u8; 4] = [12, 34, 56, 78];\n1, 2, 3, 4, 5\n"));
        assert!(!is_written_by_hand(&"x".repeat(4000)));
        assert!(!is_written_by_hand(""));
    }
}
