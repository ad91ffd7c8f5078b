//! git as a study runs it: without anything of the user's.

use std::{path::Path, process::Command};

/// Takes the caller's `GIT_*` away. They may name a repository, as in a hook or under `git rebase --exec`, and
/// whatever a child did with git would be done to that one.
pub(crate) fn forget_repository(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"GIT_") {
            command.env_remove(name);
        }
    }
}

/// `git`, for the repository in `folder`.
///
/// No identity that may be missing, no hooks and templates, no attributes that hide a diff, no signing key
/// that would ask for its password at 3 a.m., and not the repository that this one lies in. What git would look for in
/// the user's home it looks for in the repository's own folder, where there is none of it: a file such
/// as the null device may have been replaced.
pub(crate) fn git(folder: &Path) -> Command {
    let repository = folder.join(".git");
    let mut command = Command::new("git");
    forget_repository(&mut command);
    command
        .env("HOME", &repository)
        .env("XDG_CONFIG_HOME", &repository)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .args(["-c", "user.name=overnight", "-c", "user.email=overnight@localhost"])
        .args(["-c", "gc.auto=0", "-c", "core.autocrlf=false", "-c", "core.fsync=committed"])
        .arg("-c")
        .arg(format!("core.hooksPath={}", repository.join("no-hooks").display()))
        .arg("--git-dir")
        .arg(&repository)
        .arg("--work-tree")
        .arg(folder)
        .current_dir(folder);
    command
}
