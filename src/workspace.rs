//! The study's git repository: one branch, one commit a kept trial.

use crate::{Error, Result, cargo::missing, project::Project};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A git work tree with the project, on branch `overnight/<tag>`.
///
/// Between trials it holds the incumbent, and nothing uncommitted.
#[derive(Debug)]
pub struct Workspace {
    folder: PathBuf,
    branch: String,
    edited: String,
}

impl Workspace {
    /// Opens the work tree in `folder`, or makes it with `project` to be its first commit.
    pub(crate) fn open(folder: &Path, tag: &str, project: &Project) -> Result<Self> {
        let branch = format!("overnight/{}", ref_name(tag));
        let edited = project.edited.clone();
        let workspace = Self { folder: folder.to_owned(), branch, edited };
        if workspace.has_commits() {
            return Ok(workspace);
        }
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        workspace.git(&["init", "--quiet"])?;
        workspace.git(&["symbolic-ref", "HEAD", &format!("refs/heads/{}", workspace.branch)])?;
        project.lay_out(folder)?;
        workspace.write(&project.source)?;
        workspace.git(&["add", "--all", "--force"])?;
        Ok(workspace)
    }

    /// The branch that kept trials are committed on.
    pub fn branch(&self) -> &str {
        &self.branch
    }

    /// Where the work tree is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The edited file's path in the work tree.
    pub(crate) fn edited(&self) -> &str {
        &self.edited
    }

    /// The source in place.
    pub(crate) fn read(&self) -> Result<String> {
        let path = self.folder.join(&self.edited);
        fs::read_to_string(&path).map_err(Error::io("read", path))
    }

    /// The incumbent's source, whatever lies in place.
    pub(crate) fn kept(&self) -> Result<String> {
        self.git(&["show", &format!("HEAD:{}", self.edited)])
    }

    /// Puts a trial's source in place, uncommitted.
    pub(crate) fn write(&self, source: &str) -> Result<()> {
        let path = self.folder.join(&self.edited);
        fs::write(&path, source).map_err(Error::io("write", path))
    }

    /// What the source in place changes, as a unified diff.
    pub(crate) fn diff(&self) -> Result<String> {
        if self.has_commits() {
            self.git(&["diff", "--no-color", "HEAD", "--", &self.edited])
        } else {
            Ok(String::new())
        }
    }

    /// What leads from `from` to `to`, done to `text` (a merge with three sides). `None`: they
    /// contradict each other.
    pub(crate) fn merge(&self, text: &str, from: &str, to: &str) -> Result<Option<String>> {
        let place = tempfile::tempdir().map_err(Error::io("create", "a temporary folder"))?;
        let mut paths = Vec::new();
        for (name, side) in [("text", text), ("from", from), ("to", to)] {
            let path = place.path().join(name);
            fs::write(&path, side).map_err(Error::io("write", &path))?;
            paths.push(path.to_string_lossy().into_owned());
        }
        let [text, from, to] = [&paths[0], &paths[1], &paths[2]];
        let output = self.run(&["merge-file", "-p", "-q", text, from, to])?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Commits the source in place; the full hash.
    pub(crate) fn commit(&self, message: &str) -> Result<String> {
        self.git(&["add", "--force", "--", &self.edited])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--no-verify", "-m", message])?;
        // Whatever else a trial changed is no part of it.
        self.reset()?;
        self.head()
    }

    /// Puts the incumbent's source back.
    pub(crate) fn reset(&self) -> Result<()> {
        self.git(&["reset", "--quiet", "--hard"]).map(drop)
    }

    /// Makes `commit` the branch's tip, whatever a killed process left.
    pub(crate) fn reset_to(&self, commit: &str) -> Result<()> {
        // Nobody but a killed git of this study's can hold it: the study is locked.
        let _ = fs::remove_file(self.folder.join(".git/index.lock"));
        self.git(&["symbolic-ref", "HEAD", &format!("refs/heads/{}", self.branch)])?;
        self.git(&["reset", "--quiet", "--hard", commit]).map(drop)
    }

    fn head(&self) -> Result<String> {
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    fn has_commits(&self) -> bool {
        self.folder.join(".git").is_dir() && self.head().is_ok()
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            command: format!("git {}", arguments.join(" ")),
            folder: self.folder.clone(),
            complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("git");
        // Nothing of the user's: no identity that may be missing, no hooks, no signing key that
        // would ask for its password at 3 a.m., and not the repository that this one lies in.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"GIT_") {
                command.env_remove(name);
            }
        }
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .args(["-c", "user.name=overnight", "-c", "user.email=overnight@localhost"])
            .args(["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0"])
            .args(["-c", "core.autocrlf=false"])
            .arg("--git-dir")
            .arg(self.folder.join(".git"))
            .arg("--work-tree")
            .arg(&self.folder)
            .args(arguments)
            .current_dir(&self.folder);
        command.output().map_err(|error| missing("git", error))
    }
}

/// Whether git is there at all: asked before anything long begins.
pub(crate) fn check_git() -> Result<()> {
    Command::new("git").arg("--version").output().map_err(|error| missing("git", error)).map(drop)
}

/// What git takes as part of a branch's name.
fn ref_name(tag: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
    let name: String = tag.chars().map(plain).collect();
    if name.is_empty() { "study".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_tag_makes_a_branch_name() {
        assert_eq!(ref_name("nov24"), "nov24");
        assert_eq!(ref_name("a b..c~d"), "a-b--c-d");
        assert_eq!(ref_name(""), "study");
    }
}
