//! The user's cargo configuration, as far as a build may know of it.
//!
//! What changes the code that is built changes scores: flags, profiles, wrappers, targets, folders,
//! variables. None of that is the study's, and study.json does not name it. What says where crates come from, or
//! which linker there is, a build needs. Where a user has set the former, builds get a home for cargo of
//! their own, with the latter alone, and begin where no folder above them has a configuration.

use crate::{
    error::{Error, Result},
    foreign,
    project::write_if_changed,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use toml_edit::{DocumentMut, Item, Table};

/// Tables that say where crates come from.
const OF_PLACES: [&str; 6] =
    ["source", "registries", "registry", "net", "http", "credential-alias"];

/// Tables that no build's result depends on.
const HARMLESS: [&str; 7] =
    ["alias", "term", "cargo-new", "install", "cache", "future-incompat-report", "doc"];

/// What a home of cargo's holds beside its configuration.
const OF_A_HOME: [&str; 4] = ["registry", "git", "credentials.toml", "credentials"];

/// The home that builds in `folder` are to use, made in `place`. `None`: the user's own, in which nothing is set
/// that they must not know.
///
/// # Errors
/// A configuration that cannot be read: cargo could not, either.
pub(crate) fn home_for(folder: &Path, place: &Path) -> Result<Option<PathBuf>> {
    let user = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let user = user.or_else(|| Some(dirs::home_dir()?.join(".cargo"))).unwrap_or_default();
    let mut kept = Table::new();
    let mut is_cut = false;
    for file in files(folder, &user) {
        let text = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let parsed: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
            Error::io("read", &file)(std::io::Error::other(error.to_string()))
        })?;
        // Paths in it are relative to the folder that the configuration is for.
        let base = file.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let (table, is_whole) = cut(parsed.as_table(), base);
        is_cut |= !is_whole;
        merge(&mut kept, table);
    }
    if !is_cut {
        return Ok(None);
    }
    fs::create_dir_all(place).map_err(Error::io("create", place))?;
    write_if_changed(&place.join("config.toml"), text_of(kept).as_bytes())?;
    for name in OF_A_HOME {
        let (theirs, ours) = (user.join(name), place.join(name));
        if !theirs.exists() && name != "registry" {
            continue;
        }
        if name == "registry" {
            fs::create_dir_all(&theirs).map_err(Error::io("create", &theirs))?;
        }
        link(&theirs, &ours)?;
    }
    Ok(Some(place.to_owned()))
}

#[cfg(unix)]
fn link(to: &Path, from: &Path) -> Result<()> {
    if fs::read_link(from).ok().as_deref() == Some(to) {
        return Ok(());
    }
    foreign::remove(from).map_err(Error::io("remove", from))?;
    std::os::unix::fs::symlink(to, from).map_err(Error::io("link", from))
}

#[cfg(not(unix))]
fn link(_to: &Path, from: &Path) -> Result<()> {
    let _ = foreign::remove(from);
    Ok(())
}

/// The configurations that cargo reads for a build in `folder`, the one that counts most first (The Cargo Book,
/// "Configuration", "Hierarchical structure").
fn files(folder: &Path, home: &Path) -> Vec<PathBuf> {
    let above = folder.ancestors().map(|folder| folder.join(".cargo"));
    let mut files = Vec::new();
    for place in above.chain([home.to_owned()]) {
        // Where both are there, cargo takes the one without an ending.
        let file = ["config", "config.toml"].map(|name| place.join(name));
        if let Some(file) = file.into_iter().find(|file| file.is_file())
            && !files.contains(&file)
        {
            files.push(file);
        }
    }
    files
}

/// What may be known of a configuration, with absolute paths, and whether that is all that matters of it.
fn cut(table: &Table, base: &Path) -> (Table, bool) {
    let mut kept = Table::new();
    let mut is_whole = true;
    for (name, item) in table {
        if OF_PLACES.contains(&name) {
            let mut item = item.clone();
            if name == "source" {
                make_absolute(&mut item, &["directory", "local-registry"], base);
            }
            kept.insert(name, item);
        } else if name == "target" {
            let (linkers, is_all) = linkers(item, base);
            is_whole &= is_all;
            kept.insert(name, Item::Table(linkers));
        } else if name == "build" {
            let keys = item.as_table_like().into_iter().flat_map(|table| table.iter());
            is_whole &= keys.into_iter().all(|(key, _)| key == "jobs");
        } else {
            is_whole &= HARMLESS.contains(&name);
        }
    }
    (kept, is_whole)
}

/// Of each target the linker, and whether there is nothing else.
fn linkers(targets: &Item, base: &Path) -> (Table, bool) {
    let mut kept = Table::new();
    let mut is_all = true;
    for (triple, item) in targets.as_table_like().into_iter().flat_map(|table| table.iter()) {
        let mut linker = Table::new();
        for (key, value) in item.as_table_like().into_iter().flat_map(|table| table.iter()) {
            if key == "linker" || key == "ar" {
                let mut value = value.clone();
                // A bare name is looked for on the PATH.
                if value.as_str().is_some_and(|name| name.contains('/')) {
                    value = absolute(&value, base);
                }
                linker.insert(key, value);
            } else {
                is_all = false;
            }
        }
        kept.insert(triple, Item::Table(linker));
    }
    (kept, is_all)
}

fn make_absolute(tables: &mut Item, keys: &[&str], base: &Path) {
    for (_, table) in tables.as_table_like_mut().into_iter().flat_map(|table| table.iter_mut()) {
        for (key, value) in table.as_table_like_mut().into_iter().flat_map(|table| table.iter_mut())
        {
            if keys.contains(&key.get()) {
                *value = absolute(value, base);
            }
        }
    }
}

fn absolute(path: &Item, base: &Path) -> Item {
    let path = base.join(path.as_str().unwrap_or_default());
    toml_edit::value(path.to_string_lossy().into_owned())
}

/// A table by itself is written without the tables in it.
fn text_of(table: Table) -> String {
    let mut document = DocumentMut::new();
    *document.as_table_mut() = table;
    document.to_string()
}

/// Adds what is not there yet.
fn merge(into: &mut Table, from: Table) {
    for (name, item) in from {
        match (into.get_mut(&name), item) {
            (None, item) => drop(into.insert(&name, item)),
            (Some(Item::Table(there)), Item::Table(more)) => merge(there, more),
            (Some(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_text(text: &str) -> (String, bool) {
        let parsed: DocumentMut = text.parse().unwrap();
        let (table, is_whole) = cut(parsed.as_table(), Path::new("/base"));
        (text_of(table), is_whole)
    }

    #[test]
    fn where_crates_come_from_is_known_and_how_they_are_compiled_is_not() {
        for harmless in [
            "",
            "[term]\ncolor = \"always\"\n[alias]\nb = \"build\"\n",
            "[build]\njobs = 2\n",
            "[source.crates-io]\nreplace-with = \"mirror\"\n[source.mirror]\nregistry = \"sparse+https://m/\"\n",
            "[target.x86_64-unknown-linux-gnu]\nlinker = \"clang\"\n",
            "[net]\ngit-fetch-with-cli = true\n",
        ] {
            assert!(cut_text(harmless).1, "{harmless}");
        }
        for harmful in [
            "[build]\ntarget = \"x86_64-unknown-linux-gnu\"\n",
            "[build]\nrustflags = [\"-Copt-level=0\"]\n",
            "[build]\ntarget-dir = \"/elsewhere\"\nbuild-dir = \"/elsewhere\"\n",
            "[build]\nrustc-wrapper = \"sccache\"\nincremental = false\n",
            "[profile.release]\nopt-level = 0\n",
            "[profile.release.package.\"*\"]\nopt-level = 0\n",
            "[target.x86_64-unknown-linux-gnu]\nrustflags = [\"-g\"]\n",
            "[target.'cfg(all())']\nrunner = \"x\"\n",
            "[env]\nRUSTFLAGS = \"-g\"\n",
            "[unstable]\nbuild-std = []\n",
            "paths = [\"/elsewhere\"]\n",
            "[patch.crates-io]\nserde = { path = \"/elsewhere\" }\n",
            "include = \"more.toml\"\n",
        ] {
            let (kept, is_whole) = cut_text(harmful);
            assert!(!is_whole, "{harmful}");
            let forbidden = ["rustflags", "profile", "wrapper", "-dir", "env", "runner", "patch"];
            assert!(forbidden.iter().all(|word| !kept.contains(word)), "{kept}");
        }
    }

    #[test]
    fn paths_stay_what_they_were() {
        let text = "[source.vendored]\ndirectory = \"vendor\"\n[target.a]\nlinker = \"tools/ld\"\n\
                    [target.b]\nlinker = \"clang\"\n";
        let (kept, _) = cut_text(text);
        assert!(kept.contains("\"/base/vendor\"") && kept.contains("\"/base/tools/ld\""), "{kept}");
        assert!(kept.contains("\"clang\""), "{kept}");
    }

    #[test]
    fn the_nearest_configuration_counts_and_a_harmless_one_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        fs::create_dir_all(root.path().join("a/.cargo")).unwrap();
        fs::create_dir_all(root.path().join(".cargo")).unwrap();
        fs::create_dir_all(&folder).unwrap();
        let (near, far) =
            (root.path().join("a/.cargo/config.toml"), root.path().join(".cargo/config"));
        fs::write(&near, "[net]\nretry = 1\n").unwrap();
        fs::write(&far, "[net]\nretry = 2\noffline = true\n").unwrap();
        let found = files(&folder, &root.path().join("home"));
        assert!(found.starts_with(&[near.clone(), far]), "{found:?}");
        fs::write(&near, "[net]\nretry = 1\n[build]\ntarget = \"x\"\n").unwrap();
        let place = root.path().join("own");
        assert_eq!(home_for(&folder, &place).unwrap(), Some(place.clone()));
        let text = fs::read_to_string(place.join("config.toml")).unwrap();
        assert!(text.contains("retry = 1") && text.contains("offline = true"), "{text}");
        assert!(!text.contains("target"), "{text}");
        assert!(place.join("registry").is_dir());
    }
}
