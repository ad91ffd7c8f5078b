//! What was compiled of a trainer's dependencies, by length and hash.
//!
//! cargo goes by time stamps: a library that a full disk cut short, or a power cut emptied, it takes for whole. Every
//! trial after that would fail, and none of them by its own fault. So what a build left is looked at before a night.

use crate::{
    error::{Error, Result},
    hash::sha256_of_file,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// A file as a compiler left it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Artifact {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    sha256: String,
}

/// The list in a file of its own. One that cannot be read lists nothing.
#[derive(Debug)]
pub(crate) struct Artifacts {
    path: PathBuf,
    known: BTreeMap<PathBuf, Artifact>,
}

impl Artifacts {
    pub(crate) fn open(path: PathBuf) -> Self {
        let text = fs::read(&path).unwrap_or_default();
        Self { known: serde_json::from_slice(&text).unwrap_or_default(), path }
    }

    /// Lists these files as they are, of which those that were not written since are not read again.
    pub(crate) fn learn(&mut self, files: &[PathBuf]) -> Result<()> {
        let mut is_new = false;
        for file in files {
            let (bytes, modified) = stamp(file).map_err(Error::io("look at", file))?;
            let known = self.known.get(file);
            if known.is_some_and(|known| (known.bytes, known.modified) == (bytes, modified)) {
                continue;
            }
            let sha256 = sha256_of_file(file).map_err(Error::io("read", file))?;
            self.known.insert(file.clone(), Artifact { bytes, modified, sha256 });
            is_new = true;
        }
        if !is_new {
            return Ok(());
        }
        let text = serde_json::to_vec(&self.known).unwrap_or_default();
        let folder = self.path.parent().unwrap_or(Path::new("."));
        tempfile::NamedTempFile::new_in(folder)
            .and_then(|fresh| {
                fs::write(&fresh, text)?;
                Ok(fresh.persist(&self.path)?)
            })
            .map_err(Error::io("write", &self.path))?;
        Ok(())
    }

    /// A file that is not what its compiler left. One that is gone is compiled again, without anybody's help. After a
    /// build that `was_cut_off`, one that was written since may be what a compiler made of it.
    pub(crate) fn damaged(&self, was_cut_off: bool) -> Option<&Path> {
        let is_damaged = |(file, known): &(&PathBuf, &Artifact)| match stamp(file) {
            Err(error) => error.kind() != io::ErrorKind::NotFound,
            Ok((_, modified)) if was_cut_off && modified != known.modified => false,
            Ok((bytes, _)) if bytes != known.bytes => true,
            Ok(_) => sha256_of_file(file).ok().as_ref() != Some(&known.sha256),
        };
        self.known.iter().find(is_damaged).map(|(file, _)| file.as_path())
    }
}

fn stamp(file: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(file)?;
    let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), since.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_damaged_when_its_bytes_are_others() {
        let folder = tempfile::tempdir().unwrap();
        let (list, file) = (folder.path().join("list"), folder.path().join("liba.rlib"));
        fs::write(&file, "compiled").unwrap();
        let stamped = fs::metadata(&file).unwrap().modified().unwrap();
        Artifacts::open(list.clone()).learn(std::slice::from_ref(&file)).unwrap();
        let damaged = || Artifacts::open(list.clone()).damaged(false).map(Path::to_owned);
        assert_eq!(damaged(), None);
        for damage in ["compile", "Compiled", ""] {
            fs::write(&file, damage).unwrap();
            // Whatever its time says.
            fs::File::options().write(true).open(&file).unwrap().set_modified(stamped).unwrap();
            assert_eq!(damaged().as_ref(), Some(&file), "{damage:?}");
        }
        // A compiler may have been at it, and been killed.
        let cut_off = || Artifacts::open(list.clone()).damaged(true).map(Path::to_owned);
        assert_eq!(cut_off().as_ref(), Some(&file));
        let later = stamped + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        assert_eq!(cut_off(), None);
        // Compiled anew, it is another one.
        fs::write(&file, "compiled anew").unwrap();
        Artifacts::open(list.clone()).learn(std::slice::from_ref(&file)).unwrap();
        assert_eq!(damaged(), None);
        fs::remove_file(&file).unwrap();
        assert_eq!(damaged(), None);
        fs::write(&list, "{").unwrap();
        assert_eq!(damaged(), None);
    }
}
