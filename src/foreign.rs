//! Folders that another program could write in: read, measured and removed without following links and
//! without trust in what anything there is, how deep it lies and how many there are.
//!
//! Everything is reached from an open folder by one name, so that neither a link on the way nor a path that
//! is too long for the system leads anywhere else.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// More levels than this are not looked at.
const DEEPEST: usize = 64;

/// More entries than this are not looked at.
const MOST_ENTRIES: usize = 100_000;

/// What the files below a folder take of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Bytes(u64),
    /// Deeper, or of more entries, than anybody looks at.
    Endless,
}

/// By what a file is known to be as it was, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    kind: u32,
    length: u64,
    changed: (i64, i64),
    node: u64,
}

/// Removes a folder, or whatever stands there, with all below it. Folders that were made unreadable are
/// made readable; a link is removed, and not what it leads to.
///
/// # Errors
/// Something cannot be removed: it belongs to somebody else, is immutable, or something is mounted there. All else
/// is gone.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.is_dir() => std::fs::remove_file(path),
        Ok(_) => system::remove_folder(path),
    }
}

/// What the files below a folder take of the disk.
pub(crate) fn extent(folder: &Path) -> Extent {
    let mut bytes = 0;
    match system::walk(folder, &mut |_, entry| bytes += entry.bytes) {
        true => Extent::Bytes(bytes),
        false => Extent::Endless,
    }
}

/// What a process holds of files that have lost their names, on the file system of this folder: they take of the
/// disk until it ends, and no folder shows them. Only Linux tells.
pub(crate) fn without_name(process: u32, folder: &Path) -> u64 {
    system::without_name(process, folder)
}

/// What lies below a folder, but what is hidden, by its relative path. `None`: there is no end to it.
pub(crate) fn marks(folder: &Path) -> Option<BTreeMap<PathBuf, Mark>> {
    let mut marks = BTreeMap::new();
    let is_hidden = |path: &Path| {
        path.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
    };
    let is_whole = system::walk(folder, &mut |path, entry| {
        if !entry.is_folder && !is_hidden(path) {
            marks.insert(path.to_owned(), entry.mark.clone());
        }
    });
    is_whole.then_some(marks)
}

/// The contents of a plain file of at most `most` bytes, none of whose folders is a link. `None`: there is nothing.
///
/// # Errors
/// Why it is not read, as in "it is a link".
pub(crate) fn read(folder: &Path, relative: &str, most: u64) -> Result<Option<Vec<u8>>, String> {
    let Some(mut file) = system::open(folder, relative)? else { return Ok(None) };
    let too_long = || format!("it has more than {most} bytes");
    if file.metadata().map_err(|error| error.to_string())?.len() > most {
        return Err(too_long());
    }
    let mut contents = Vec::new();
    // It may have grown.
    file.by_ref().take(most + 1).read_to_end(&mut contents).map_err(|error| error.to_string())?;
    if contents.len() as u64 > most { Err(too_long()) } else { Ok(Some(contents)) }
}

/// What is learned of an entry on the way.
struct Entry {
    is_folder: bool,
    bytes: u64,
    mark: Mark,
}

#[cfg(unix)]
mod system {
    use super::{DEEPEST, Entry, MOST_ENTRIES, Mark};
    use rustix::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        fs::{
            AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, chmodat, fchmod, fstat, openat,
            renameat, statat, unlinkat,
        },
        io::Errno,
        path::Arg,
    };
    use std::{
        ffi::{CString, OsStr},
        fs::File,
        io,
        os::unix::ffi::OsStrExt,
        path::{Path, PathBuf},
    };

    const FOLDER: OFlags =
        OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

    fn kind(stat: &Stat) -> FileType {
        FileType::from_raw_mode(stat.st_mode)
    }

    /// The names in a folder, but its own and its parent's.
    fn names(folder: impl AsFd) -> io::Result<Vec<CString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(folder)? {
            let name = entry?.file_name().to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
            // The others have their turn later, where there is one.
            if names.len() > MOST_ENTRIES {
                break;
            }
        }
        Ok(names)
    }

    /// Opens a folder that is to be emptied, whatever its mode.
    fn open_to_empty(parent: BorrowedFd<'_>, name: impl Arg + Copy) -> io::Result<OwnedFd> {
        let folder = match openat(parent, name, FOLDER, Mode::empty()) {
            Err(Errno::ACCESS) => {
                chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
                openat(parent, name, FOLDER, Mode::empty())?
            }
            folder => folder?,
        };
        if !Mode::from_raw_mode(fstat(&folder)?.st_mode).contains(Mode::RWXU) {
            // Who is not its owner may still be able to.
            let _ = fchmod(&folder, Mode::RWXU);
        }
        Ok(folder)
    }

    /// Folders within folders are moved up to `path` and emptied there, so that neither the stack nor the
    /// table of open files grows with the depth.
    pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
        let root = open_to_empty(CWD, path)?;
        let mut moved = 0;
        loop {
            let (mut gone, mut problem) = (0, None);
            for name in names(&root)? {
                match remove_entry(root.as_fd(), &name, &mut moved) {
                    Ok(()) => gone += 1,
                    Err(error) => problem = problem.or(Some(error)),
                }
            }
            match problem {
                _ if gone > 0 => {}
                Some(problem) => return Err(problem),
                None => return std::fs::remove_dir(path),
            }
        }
    }

    fn remove_entry(root: BorrowedFd<'_>, name: &CString, moved: &mut u64) -> io::Result<()> {
        let is_folder = |at: BorrowedFd<'_>, name: &CString| {
            statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| kind(&stat) == FileType::Directory)
        };
        if !is_folder(root, name) {
            return Ok(unlinkat(root, name, AtFlags::empty())?);
        }
        let folder = open_to_empty(root, name)?;
        loop {
            let names = names(&folder)?;
            if names.is_empty() {
                return Ok(unlinkat(root, name, AtFlags::REMOVEDIR)?);
            }
            for inner in names {
                if !is_folder(folder.as_fd(), &inner) {
                    unlinkat(&folder, &inner, AtFlags::empty())?;
                } else if unlinkat(&folder, &inner, AtFlags::REMOVEDIR).is_err() {
                    // To move a folder is to write in it: it names its parent.
                    drop(open_to_empty(folder.as_fd(), &inner)?);
                    loop {
                        *moved += 1;
                        let place = format!(".moved-{moved}");
                        match renameat(&folder, &inner, root, place.as_str()) {
                            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
                            moved => break moved?,
                        }
                    }
                }
            }
        }
    }

    /// Goes through all below `path`; whether that was all.
    pub(super) fn walk(path: &Path, see: &mut dyn FnMut(&Path, &Entry)) -> bool {
        let Ok(root) = openat(CWD, path, FOLDER, Mode::empty()) else { return true };
        let Ok(first) = names(&root) else { return true };
        let mut seen = 0;
        let mut stack = vec![(root, first, PathBuf::new())];
        while let Some((folder, left, place)) = stack.last_mut() {
            let Some(name) = left.pop() else {
                stack.pop();
                continue;
            };
            seen += 1;
            if seen > MOST_ENTRIES {
                return false;
            }
            // What vanishes meanwhile is nothing.
            let Ok(stat) = statat(&*folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let path = place.join(OsStr::from_bytes(name.as_bytes()));
            let is_folder = kind(&stat) == FileType::Directory;
            see(&path, &entry(&stat, is_folder));
            if is_folder && let Ok(inner) = openat(&*folder, &name, FOLDER, Mode::empty()) {
                if stack.len() > DEEPEST {
                    return false;
                }
                let names = names(&inner).unwrap_or_default();
                stack.push((inner, names, path));
            }
        }
        true
    }

    fn entry(stat: &Stat, is_folder: bool) -> Entry {
        let mark = Mark {
            kind: match kind(stat) {
                FileType::RegularFile => 0,
                FileType::Symlink => 1,
                FileType::Directory => 2,
                _ => 3,
            },
            length: stat.st_size as u64,
            changed: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or_default()),
            node: stat.st_ino,
        };
        Entry { is_folder, bytes: 512 * stat.st_blocks as u64, mark }
    }

    /// By descriptor, and by mapping where the descriptor is closed.
    pub(super) fn without_name(process: u32, folder: &Path) -> u64 {
        let Ok(place) = rustix::fs::stat(folder) else { return 0 };
        let mut nodes = std::collections::HashMap::new();
        for kind in ["fd", "map_files"] {
            let entries = std::fs::read_dir(format!("/proc/{process}/{kind}"));
            for entry in entries.into_iter().flatten().flatten() {
                let Ok(stat) = rustix::fs::stat(entry.path()) else { continue };
                if stat.st_nlink == 0 && stat.st_dev == place.st_dev {
                    nodes.insert(stat.st_ino, 512 * stat.st_blocks as u64);
                }
            }
        }
        nodes.values().sum()
    }

    /// A plain file. Opened without waiting, as a pipe without a writer would have it.
    pub(super) fn open(folder: &Path, relative: &str) -> Result<Option<File>, String> {
        let mut at = match openat(CWD, folder, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(error) => return Err(error.to_string()),
        };
        let (folders, name) = relative.rsplit_once('/').unwrap_or(("", relative));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            at = match openat(&at, part, FOLDER, Mode::empty()) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(format!("{part} is no folder")),
                Err(error) => return Err(error.to_string()),
            };
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match openat(&at, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::MLINK) => return Err("it is a link".to_owned()),
            // A socket.
            Err(Errno::NXIO) => return Err("it is no plain file".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let stat = fstat(&file).map_err(|error| error.to_string())?;
        match kind(&stat) {
            FileType::RegularFile => Ok(Some(file.into())),
            FileType::Directory => Err("it is a folder".to_owned()),
            _ => Err("it is no plain file".to_owned()),
        }
    }
}

#[cfg(not(unix))]
mod system {
    use super::{Entry, MOST_ENTRIES, Mark};
    use std::{
        fs::{self, File},
        io,
        path::Path,
    };

    pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    pub(super) fn without_name(_process: u32, _folder: &Path) -> u64 {
        0
    }

    pub(super) fn walk(root: &Path, see: &mut dyn FnMut(&Path, &Entry)) -> bool {
        let mut folders = vec![root.to_owned()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                seen += 1;
                if seen > MOST_ENTRIES {
                    return false;
                }
                let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
                let since = metadata
                    .modified()
                    .ok()
                    .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
                let since = since.unwrap_or_default();
                let mark = Mark {
                    kind: u32::from(metadata.is_file()),
                    length: metadata.len(),
                    changed: (since.as_secs() as i64, i64::from(since.subsec_nanos())),
                    node: 0,
                };
                let is_folder = metadata.is_dir();
                if is_folder {
                    folders.push(path.clone());
                }
                if let Ok(relative) = path.strip_prefix(root) {
                    see(relative, &Entry { is_folder, bytes: metadata.len(), mark });
                }
            }
        }
        true
    }

    pub(super) fn open(folder: &Path, relative: &str) -> Result<Option<File>, String> {
        let path = folder.join(relative);
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
            Ok(metadata) if !metadata.is_file() => Err("it is no plain file".to_owned()),
            Ok(_) => File::open(path).map(Some).map_err(|error| error.to_string()),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::{ffi::OsStrExt, fs::PermissionsExt, fs::symlink, net::UnixListener},
        process::Command,
    };

    fn sh(folder: &Path, script: &str) {
        let status = Command::new("sh").args(["-c", script]).current_dir(folder).status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn everything_of_a_folder_goes_and_nothing_that_it_leads_to() {
        let (outside, inside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("precious"), "all of it").unwrap();
        let folder = inside.path().join("folder");
        fs::create_dir(&folder).unwrap();
        symlink(outside.path(), folder.join("link")).unwrap();
        sh(
            &folder,
            "mkdir -p a/b/c d && echo x > a/b/f && mkfifo a/p && chmod 500 a/b && chmod 0 a d",
        );
        remove(&folder).unwrap();
        assert!(!folder.exists() && outside.path().join("precious").exists());
        remove(&folder).unwrap();
        symlink(outside.path(), &folder).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists() && outside.path().join("precious").exists());
    }

    #[test]
    fn no_depth_is_too_much_to_remove_and_all_of_it_is_measured_or_called_endless() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("folder");
        fs::create_dir(&folder).unwrap();
        // A path of 30,000 bytes is seven times what the system takes.
        let name = "d".repeat(100);
        let mut at = std::os::fd::OwnedFd::from(fs::File::open(&folder).unwrap());
        for _ in 0..300 {
            use rustix::fs::{Mode, OFlags, mkdirat, openat};
            mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        }
        assert_eq!(extent(&folder), Extent::Endless);
        assert_eq!(marks(&folder), None);
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn what_somebody_else_holds_stays_and_all_else_goes() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can make a file immutable");
            return;
        }
        let place = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = place.path().join("folder");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/stays"), "x").unwrap();
        fs::write(folder.join("goes"), "x").unwrap();
        let chattr = |how: &str, name: &str| {
            Command::new("chattr")
                .args([how, name])
                .current_dir(&folder)
                .status()
                .is_ok_and(|s| s.success())
        };
        if !chattr("+i", "a/b/stays") {
            println!("skipped: this file system has no such attribute");
            return;
        }
        assert!(remove(&folder).is_err());
        assert!(!folder.join("goes").exists());
        let mut left = walkable(&folder);
        left.retain(|path| path.ends_with("stays"));
        assert_eq!(left.len(), 1);
        let name = left[0].to_str().unwrap().to_owned();
        assert!(chattr("-i", &name));
        remove(&folder).unwrap();
    }

    fn walkable(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        super::system::walk(folder, &mut |path, _| found.push(path.to_owned()));
        found
    }

    #[test]
    fn sizes_are_those_of_files_and_not_of_what_links_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/one"), vec![1; 100_000]).unwrap();
        symlink("/usr", folder.path().join("usr")).unwrap();
        let Extent::Bytes(bytes) = extent(folder.path()) else { panic!("no end") };
        assert!((100_000..300_000).contains(&bytes), "{bytes}");
        // A hole takes nothing.
        fs::File::create(folder.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(extent(folder.path()), Extent::Bytes(bytes) if bytes < 300_000));
    }

    #[test]
    fn only_plain_files_are_read_whatever_stands_in_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        fs::create_dir(place.join("src")).unwrap();
        fs::write(place.join("src/train.rs"), "text").unwrap();
        assert_eq!(read(place, "src/train.rs", 4).unwrap().unwrap(), b"text");
        assert!(read(place, "src/train.rs", 3).unwrap_err().contains("more than 3 bytes"));
        assert_eq!(read(place, "src/none.rs", 3).unwrap(), None);
        assert_eq!(read(place, "none/train.rs", 3).unwrap(), None);
        symlink("src", place.join("linked")).unwrap();
        assert_eq!(read(place, "linked/train.rs", 9).unwrap_err(), "linked is no folder");
        symlink("src/train.rs", place.join("link")).unwrap();
        assert_eq!(read(place, "link", 9).unwrap_err(), "it is a link");
        assert_eq!(read(place, "src", 9).unwrap_err(), "it is a folder");
        sh(place, "mkfifo pipe");
        assert_eq!(read(place, "pipe", 9).unwrap_err(), "it is no plain file");
        let _socket = UnixListener::bind(place.join("socket")).unwrap();
        assert_eq!(read(place, "socket", 9).unwrap_err(), "it is no plain file");
        fs::File::create(place.join("hole")).unwrap().set_len(10 << 30).unwrap();
        assert!(read(place, "hole", 9).is_err());
        let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
        fs::write(place.join(odd), "x").unwrap();
        fs::set_permissions(place.join(odd), PermissionsExt::from_mode(0o000)).unwrap();
        assert!(marks(place).unwrap().contains_key(Path::new(odd)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn files_without_a_name_are_found_open_or_mapped() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (open, mapped) = (folder.path().join("open"), folder.path().join("mapped"));
        fs::write(&open, vec![1; 1 << 20]).unwrap();
        fs::write(&mapped, vec![1; 1 << 20]).unwrap();
        let before = without_name(std::process::id(), folder.path());
        let _file = fs::File::open(&open).unwrap();
        // SAFETY: nobody else knows of the file.
        #[expect(unsafe_code, reason = "a mapping is a promise about other processes")]
        let _map = unsafe { memmap2::Mmap::map(&fs::File::open(&mapped).unwrap()).unwrap() };
        assert_eq!(without_name(std::process::id(), folder.path()), before);
        fs::remove_file(&open).unwrap();
        fs::remove_file(&mapped).unwrap();
        let found = without_name(std::process::id(), folder.path()) - before;
        // Mappings are shown to root alone.
        let least = if rustix::process::geteuid().is_root() { 2 << 20 } else { 1 << 20 };
        assert!((least..3 << 20).contains(&found), "{found}");
    }

    #[test]
    fn a_mark_tells_what_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["same", "other", "replaced", ".hidden"] {
            fs::write(folder.path().join(name), "1").unwrap();
        }
        let before = marks(folder.path()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(folder.path().join("other"), "2").unwrap();
        fs::remove_file(folder.path().join("replaced")).unwrap();
        symlink("same", folder.path().join("replaced")).unwrap();
        let after = marks(folder.path()).unwrap();
        let changed: Vec<_> = after.iter().filter(|(name, mark)| before[*name] != **mark).collect();
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert_eq!(after.len(), 3);
    }
}
