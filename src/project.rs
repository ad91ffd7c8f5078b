//! A folder of files, one of which proposers edit.

use crate::{
    error::{Error, Result},
    foreign,
    hash::sha256_of_parts,
};
use std::{
    collections::{BTreeMap, BTreeSet},
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
    /// Links that lead out of the folder, and where to.
    pub links: BTreeMap<String, PathBuf>,
    /// Files that may be run.
    pub programs: BTreeSet<String>,
    /// Folders with nothing in them.
    pub empty: Vec<String>,
    /// The text of the edited file.
    pub source: String,
}

/// A project is source code: more than this is a mistake, such as a folder of data.
const LARGEST: u64 = 64 << 20;

impl Project {
    /// Reads a folder. Hidden files and what tools leave behind (`target`, `__pycache__`,
    /// `node_modules`) are no part of it.
    pub(crate) fn open(folder: &Path, edited: &str) -> Result<Self> {
        let folder = folder.canonicalize().map_err(Error::io("open", folder))?;
        let mut project = Self {
            folder: folder.clone(),
            edited: edited.to_owned(),
            fixed: BTreeMap::new(),
            links: BTreeMap::new(),
            programs: BTreeSet::new(),
            empty: Vec::new(),
            source: String::new(),
        };
        Reading { root: &folder, project: &mut project, size: 0, above: Vec::new() }
            .folder(&folder)?;
        let refuse = |problem| Error::Project { folder: folder.clone(), problem };
        let source = project
            .fixed
            .remove(edited)
            .ok_or_else(|| refuse(format!("there is no {edited}, the file that a study edits")))?;
        project.source =
            String::from_utf8(source).map_err(|_| refuse(format!("{edited} is not UTF-8 text")))?;
        Ok(project)
    }

    /// SHA-256 over the fixed files and the folder's place, in hexadecimal. The place as well: the
    /// same files elsewhere may find others by their path.
    pub(crate) fn fingerprint(&self) -> String {
        let place = [self.folder.as_os_str().as_encoded_bytes(), self.edited.as_bytes()];
        let files = self.fixed.iter().flat_map(|(name, contents)| [name.as_bytes(), contents]);
        let links = self.links.iter();
        let links =
            links.flat_map(|(name, to)| [name.as_bytes(), to.as_os_str().as_encoded_bytes()]);
        sha256_of_parts(place.into_iter().chain(files).chain(links))
    }

    /// Writes the fixed files to `folder`, and the edited one where there is none yet.
    pub(crate) fn lay_out(&self, folder: &Path) -> Result<()> {
        for (name, contents) in &self.fixed {
            write_if_changed(&folder.join(name), contents)?;
        }
        for name in &self.empty {
            let place = folder.join(name);
            fs::create_dir_all(&place).map_err(Error::io("create", place))?;
        }
        let edited = folder.join(&self.edited);
        if !edited.exists() {
            write_if_changed(&edited, self.source.as_bytes())?;
        }
        #[cfg(unix)]
        self.lay_out_links_and_modes(folder)?;
        Ok(())
    }

    #[cfg(unix)]
    fn lay_out_links_and_modes(&self, folder: &Path) -> Result<()> {
        use std::os::unix::fs::{PermissionsExt, symlink};
        for name in &self.programs {
            let place = folder.join(name);
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&place, mode).map_err(Error::io("make a program of", place))?;
        }
        for (name, target) in &self.links {
            let place = folder.join(name);
            if fs::read_link(&place).ok().as_ref() == Some(target) {
                continue;
            }
            foreign::remove(&place).map_err(Error::io("remove", &place))?;
            let parent = place.parent().unwrap_or(folder);
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            symlink(target, &place).map_err(Error::io("link", place))?;
        }
        Ok(())
    }
}

/// What is read of a folder, and how much it is so far.
struct Reading<'a> {
    root: &'a Path,
    project: &'a mut Project,
    size: u64,
    /// The folders on the way here, as they really are: a link may lead back to one of them.
    above: Vec<PathBuf>,
}

impl Reading<'_> {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        let here = folder.canonicalize().map_err(Error::io("open", folder))?;
        if self.above.contains(&here) {
            return Ok(());
        }
        self.above.push(here);
        let mut is_empty = true;
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let entry = entry.map_err(Error::io("read", folder))?;
            let name = entry.file_name();
            let is_left_behind =
                ["target", "__pycache__", "node_modules"].iter().any(|&n| name == n);
            if is_left_behind || name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            is_empty = false;
            self.entry(&entry.path())?;
        }
        if is_empty && folder != self.root {
            self.project.empty.push(self.name(folder));
        }
        self.above.pop();
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let is_link = path.symlink_metadata().map_err(Error::io("read", path))?.is_symlink();
        // Where it leads stays where it is: data, most likely, and more than a copy is for.
        if is_link && let Some(target) = self.outside(path) {
            self.project.links.insert(self.name(path), target);
            return Ok(());
        }
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A link that leads nowhere yet.
            Err(error) if is_link && error.kind() == std::io::ErrorKind::NotFound => {
                let target = fs::read_link(path).map_err(Error::io("read", path))?;
                self.project.links.insert(self.name(path), target);
                return Ok(());
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        if metadata.is_dir() {
            return self.folder(path);
        }
        // A pipe would be waited for, and a socket cannot be read.
        if !metadata.is_file() {
            return Ok(());
        }
        self.size += metadata.len();
        if self.size > LARGEST {
            let problem = format!(
                "it has more than {} MiB of files; put data elsewhere, and a link to it here",
                LARGEST >> 20
            );
            return Err(Error::Project { folder: self.root.to_owned(), problem });
        }
        let contents = fs::read(path).map_err(Error::io("read", path))?;
        let name = self.name(path);
        #[cfg(unix)]
        if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0 {
            self.project.programs.insert(name.clone());
        }
        self.project.fixed.insert(name, contents);
        Ok(())
    }

    /// Where a link leads, if that is not in the project.
    fn outside(&self, link: &Path) -> Option<PathBuf> {
        let target = link.canonicalize().ok()?;
        (!target.starts_with(self.root)).then_some(target)
    }

    fn name(&self, path: &Path) -> String {
        let name = path.strip_prefix(self.root).unwrap_or(path).to_string_lossy();
        name.replace('\\', "/")
    }
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        process::Command,
    };

    #[test]
    fn a_copy_has_what_the_folder_has() {
        let [folder, data, copy] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let place = folder.path();
        fs::write(place.join("opt.py"), "X = 1\n").unwrap();
        fs::write(place.join("job.sh"), "#!/bin/sh\necho ran\n").unwrap();
        fs::set_permissions(place.join("job.sh"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir_all(place.join("out/empty")).unwrap();
        fs::File::create(data.path().join("large")).unwrap().set_len(10 << 30).unwrap();
        symlink(data.path(), place.join("data")).unwrap();
        symlink(".", place.join("out/again")).unwrap();
        symlink("nowhere", place.join("later")).unwrap();
        symlink("job.sh", place.join("run")).unwrap();
        assert!(Command::new("mkfifo").arg(place.join("pipe")).status().unwrap().success());

        let project = Project::open(place, "opt.py").unwrap();
        project.lay_out(copy.path()).unwrap();
        project.lay_out(copy.path()).unwrap();
        for program in ["job.sh", "run"] {
            let output = Command::new(copy.path().join(program)).output().unwrap();
            assert_eq!(output.stdout, b"ran\n");
        }
        assert!(copy.path().join("data/large").is_file() && copy.path().join("out/empty").is_dir());
        assert_eq!(fs::read_link(copy.path().join("later")).unwrap(), Path::new("nowhere"));
        assert!(!copy.path().join("pipe").exists());
    }

    #[test]
    fn too_much_is_told_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("opt.py"), "X = 1\n").unwrap();
        fs::File::create(folder.path().join("data")).unwrap().set_len(100 << 30).unwrap();
        let error = Project::open(folder.path(), "opt.py").unwrap_err().to_string();
        assert!(error.contains("more than 64 MiB") && error.contains("a link to it"), "{error}");
    }
}
