//! A folder of files, one of which proposers edit.

use crate::{Error, Result, hash::sha256_of_parts};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A folder, read whole: one file to edit, the others fixed.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub folder: PathBuf,
    /// The one file that proposers edit, relative to the folder, with forward slashes.
    pub edited: String,
    /// Every other file, by its path with forward slashes.
    pub fixed: BTreeMap<String, Vec<u8>>,
    /// The text of the edited file.
    pub source: String,
}

/// A project is source code: more than this is a mistake, such as a folder of data.
const LARGEST: usize = 64 << 20;

impl Project {
    /// Reads a folder. Hidden files and what tools leave behind (`target`, `__pycache__`,
    /// `node_modules`) are no part of it.
    pub(crate) fn open(folder: &Path, edited: &str) -> Result<Self> {
        let folder = folder.canonicalize().map_err(Error::io("open", folder))?;
        let mut fixed = BTreeMap::new();
        read_files(&folder, &folder, &mut fixed)?;
        let refuse = |problem| Error::Project { folder: folder.clone(), problem };
        let source = fixed
            .remove(edited)
            .ok_or_else(|| refuse(format!("there is no {edited}, the file that a study edits")))?;
        let source =
            String::from_utf8(source).map_err(|_| refuse(format!("{edited} is not UTF-8 text")))?;
        Ok(Self { edited: edited.to_owned(), fixed, source, folder })
    }

    /// SHA-256 over the fixed files and the folder's place, in hexadecimal. The place as well: the
    /// same files elsewhere may find others by their path.
    pub(crate) fn fingerprint(&self) -> String {
        let place = [self.folder.as_os_str().as_encoded_bytes(), self.edited.as_bytes()];
        let files = self.fixed.iter().flat_map(|(name, contents)| [name.as_bytes(), contents]);
        sha256_of_parts(place.into_iter().chain(files))
    }

    /// Writes the fixed files to `folder`, and the edited one where there is none yet.
    pub(crate) fn lay_out(&self, folder: &Path) -> Result<()> {
        for (name, contents) in &self.fixed {
            write_if_changed(&folder.join(name), contents)?;
        }
        let edited = folder.join(&self.edited);
        if edited.exists() { Ok(()) } else { write_if_changed(&edited, self.source.as_bytes()) }
    }
}

fn read_files(folder: &Path, root: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let path = entry.path();
        let name = entry.file_name();
        let is_left_behind = ["target", "__pycache__", "node_modules"].iter().any(|&n| name == n);
        if is_left_behind || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            read_files(&path, root, files)?;
        } else {
            let contents = fs::read(&path).map_err(Error::io("read", &path))?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            files.insert(name.replace('\\', "/"), contents);
        }
        let size: usize = files.values().map(Vec::len).sum();
        if size > LARGEST {
            let problem = format!("it has more than {} MiB of files", LARGEST >> 20);
            return Err(Error::Project { folder: root.to_owned(), problem });
        }
    }
    Ok(())
}

/// Leaves the time stamp of an unchanged file alone: build tools rebuild what looks newer.
pub(crate) fn write_if_changed(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    fs::write(path, contents).map_err(Error::io("write", path))
}
