//! A worker's own view of the file system: what its task needs, under its usual names, and no more.
//!
//! Landlock says what may be opened. It does not say what may be looked at or marked: sizes, times,
//! modes and the existence of files pass it by, and through them one room of the exam could talk to
//! the other. Here nothing else has a name. What is left is read-only, and of a file on a mount
//! that is read-only the kernel changes no access time either.

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
        mount_change, move_mount, open_tree, unmount,
    },
    process::{getgid, getuid, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// What a place in the room is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
    /// Device files, which elsewhere are dead.
    Device,
}

/// Leaves this process, which must have a single thread, with nothing but these places and an empty
/// folder in place of the present one, if that is none of them.
///
/// # Errors
/// What the kernel did not allow. Everything is under its usual name then.
///
/// `parts_network` gives it a network of its own, too, with nobody in it: sockets with a name of the system's
/// could otherwise be seen by others.
pub(super) fn enter(places: &[(PathBuf, Use)], parts_network: bool) -> Result<(), String> {
    let said = |step: &'static str| move |error: io::Error| format!("{step}: {error}");
    let here = std::env::current_dir().map_err(said("the present folder"))?;
    own_namespace(parts_network).map_err(said("a mount namespace"))?;
    // Before anything is hidden. A place below another one comes behind it.
    let mut sources = Vec::new();
    for (path, purpose) in places {
        sources.extend(Source::open(path, *purpose).map_err(said("a place"))?);
    }
    sources.sort_by_key(|source| source.path().components().count());
    // Any folder will do to stand on.
    mount("tmpfs", &here, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"size=1m,mode=755")
        .map_err(|error| said("an empty root")(error.into()))?;
    let furnished = sources
        .iter()
        .try_for_each(|source| source.appear_in(&here))
        .and_then(|()| fs::create_dir_all(below(&here, &here)));
    if let Err(error) = furnished {
        // What it hides is needed.
        let _ = unmount(&here, UnmountFlags::DETACH);
        return Err(said("a place")(error));
    }
    change_root(&here).map_err(said("the new root"))?;
    std::env::set_current_dir(&here).map_err(said("the present folder"))
}

/// Mounts of this process's own; as an ordinary user, by way of a user namespace of its own.
fn own_namespace(parts_network: bool) -> io::Result<()> {
    let network = if parts_network { UnshareFlags::NEWNET } else { UnshareFlags::empty() };
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    #[expect(unsafe_code, reason = "a process of several threads could be left in two halves")]
    // SAFETY: there is one thread, and no descriptor table is parted.
    let unshare = |flags| unsafe { unshare_unsafe(flags) };
    match unshare(UnshareFlags::NEWNS | network) {
        Err(Errno::PERM) => {
            unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | network)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
        }
        other => other?,
    }
    // What is mounted here appears nowhere else.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Something of the old root that is to be in the new one.
enum Source {
    Tree { path: PathBuf, tree: OwnedFd, is_folder: bool, purpose: Use },
    Link { path: PathBuf, to: PathBuf },
}

impl Source {
    /// `None` where there is no such place.
    fn open(path: &Path, purpose: Use) -> io::Result<Option<Self>> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = path.to_owned();
        if metadata.is_symlink() {
            let to = fs::read_link(&path)?;
            return Ok(Some(Self::Link { path, to }));
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, &path, flags)?;
        Ok(Some(Self::Tree { path, tree, is_folder: metadata.is_dir(), purpose }))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Tree { path, .. } | Self::Link { path, .. } => path,
        }
    }

    fn appear_in(&self, root: &Path) -> io::Result<()> {
        let place = below(root, self.path());
        // It may lie in a place that is there already.
        let exists = fs::symlink_metadata(&place).is_ok();
        if let Some(parent) = place.parent().filter(|_| !exists) {
            fs::create_dir_all(parent)?;
        }
        match self {
            Self::Link { .. } if exists => Ok(()),
            Self::Link { to, .. } => std::os::unix::fs::symlink(to, place),
            Self::Tree { tree, is_folder, purpose, .. } => {
                match is_folder {
                    _ if exists => {}
                    true => fs::create_dir(&place)?,
                    false => drop(File::create(&place)?),
                }
                restrict(tree, *purpose)?;
                move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                Ok(())
            }
        }
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What a mount allows, by `mount_setattr(2)`.
fn restrict(tree: &OwnedFd, purpose: Use) -> io::Result<()> {
    let mut most = libc::MOUNT_ATTR_NOSUID;
    most |= if purpose == Use::Write { 0 } else { libc::MOUNT_ATTR_RDONLY };
    most |= if purpose == Use::Device { 0 } else { libc::MOUNT_ATTR_NODEV };
    let wanted = libc::mount_attr { attr_set: most, attr_clr: 0, propagation: 0, userns_fd: 0 };
    mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &wanted)
}

#[expect(unsafe_code, reason = "no library has this call")]
fn mount_setattr(
    folder: i32,
    path: &std::ffi::CStr,
    flags: i32,
    wanted: &libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: the path ends with a zero byte, and the structure is as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            folder,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(wanted),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the folder the root, and forgets the old one; pivot_root(2), "pivot_root(".", ".")".
fn change_root(new: &Path) -> io::Result<()> {
    std::env::set_current_dir(new)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    let wanted = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    mount_setattr(libc::AT_FDCWD, c"/", 0, &wanted)
}
