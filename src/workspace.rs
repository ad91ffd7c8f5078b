//! The study's git repository: one branch, one commit a kept trial.

use crate::{
    error::{Error, Result},
    foreign, git,
    project::Project,
    record::{Ledger, Measurement, Trial, name_of_source},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A git work tree with the project, on branch `overnight/<tag>`.
///
/// Between trials it holds the incumbent, and nothing uncommitted.
#[derive(Debug, Clone)]
pub struct Workspace {
    folder: PathBuf,
    branch: String,
    edited: String,
}

/// A source in the work tree. When it is dropped, what lay there before lies there again, and whatever else a trial
/// changed is undone.
#[must_use]
pub(crate) struct Placed {
    workspace: Option<Workspace>,
    before: String,
}

impl Placed {
    pub(crate) fn put_back(mut self) -> Result<()> {
        self.undo()
    }

    /// It was committed.
    pub(crate) fn stays(mut self) {
        self.workspace = None;
    }

    fn undo(&mut self) -> Result<()> {
        let Some(workspace) = self.workspace.take() else { return Ok(()) };
        // Before the baseline is committed there is nothing to go back to, and git would remove everything.
        if workspace.has_commits() {
            workspace.reset()?;
        }
        match workspace.read() {
            Ok(source) if source == self.before => Ok(()),
            _ => workspace.write(&self.before),
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // Whoever wants to hear of a failure puts it back by hand.
        let _ = self.undo();
    }
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
        workspace.git(&["init", "--quiet", "--template="])?;
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

    /// Puts a trial's source in place for as long as the answer lives.
    pub(crate) fn place(&self, source: &str) -> Result<Placed> {
        let before = self.read()?;
        self.write(source)?;
        Ok(Placed { workspace: Some(self.clone()), before })
    }

    /// What the source in place changes, as a unified diff.
    pub(crate) fn diff(&self) -> Result<String> {
        if self.has_commits() {
            let plain = ["diff", "--no-color", "--no-ext-diff", "--no-textconv", "--text"];
            self.git(&[&plain[..], &["HEAD", "--", &self.edited]].concat())
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

    /// Makes a kept trial's commit the branch's tip, whatever a killed process or a power cut left behind, and
    /// says what that was.
    ///
    /// # Errors
    /// The repository is damaged, or has no such commit.
    pub(crate) fn reset_to(&self, trial: usize, commit: &str) -> Result<Vec<String>> {
        let mut remarks = self.unlock();
        self.git(&["symbolic-ref", "HEAD", &format!("refs/heads/{}", self.branch)])?;
        // A repository that was laid anew has other commits for the same trials.
        let anew = place_of(trial);
        let target = if self.git(&["cat-file", "-e", commit]).is_ok() { commit } else { &anew };
        let reset = || self.git(&["reset", "--quiet", "--hard", target]);
        if reset().is_err() {
            // The index says nothing that the commit does not say.
            let _ = fs::remove_file(self.folder.join(".git/index"));
            reset()?;
            remarks.push("git's index was torn, and was made anew".to_owned());
        }
        // What a power cut left empty is noticed here, and not in the middle of a night.
        self.git(&["fsck", "--no-dangling", "--no-progress"])?;
        Ok(remarks)
    }

    /// Removes the locks that a killed git left behind. Nobody else can hold one: the study is locked.
    fn unlock(&self) -> Vec<String> {
        let repository = self.folder.join(".git");
        let files = foreign::marks(&repository).unwrap_or_default().into_keys();
        let locks = files.filter(|file| file.extension().is_some_and(|end| end == "lock"));
        let removed = locks.filter(|lock| fs::remove_file(repository.join(lock)).is_ok());
        removed.map(|lock| format!("git was killed: its lock {} is gone", lock.display())).collect()
    }

    /// Begins again in `folder` with these kept trials and their sources, oldest first. What was there moves
    /// to `aside`.
    pub(crate) fn lay_anew(
        folder: &Path,
        tag: &str,
        project: &Project,
        kept: &[(&Trial, String)],
        aside: &Path,
    ) -> Result<Self> {
        foreign::remove(aside).map_err(Error::io("remove", aside))?;
        if folder.exists() {
            fs::rename(folder, aside).map_err(Error::io("move", folder))?;
        }
        let workspace = Self::open(folder, tag, project)?;
        for (trial, source) in kept {
            workspace.write(source)?;
            let Trial { trial, description, measurement, proposer, .. } = trial;
            let commit = workspace.commit(&message(*trial, description, measurement, proposer))?;
            workspace.git(&["update-ref", &place_of(*trial), &commit])?;
        }
        Ok(workspace)
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
        let output = git::git(&self.folder).args(arguments).output();
        output.map_err(Error::missing("git"))
    }
}

/// The work tree, holding what the ledger says is the incumbent, and what had to be put in order for that. A
/// commit that no line of the ledger knows belongs to a trial that was killed before it was recorded.
pub(crate) fn resume(
    dir: &Path,
    project: &Project,
    ledger: &Ledger,
) -> Result<(Workspace, Vec<String>)> {
    let folder = dir.join("workspace");
    let tag = dir.file_name().unwrap_or_default().to_string_lossy();
    let Some(incumbent) = ledger.incumbent() else {
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        return Ok((Workspace::open(&folder, &tag, project)?, Vec::new()));
    };
    let commit = incumbent.commit.clone().unwrap_or_default();
    let opened = Workspace::open(&folder, &tag, project);
    let problem = match opened.and_then(|it| Ok((it.reset_to(incumbent.trial, &commit)?, it))) {
        Ok((remarks, workspace)) => return Ok((workspace, remarks)),
        Err(error @ Error::Program { .. }) => return Err(error),
        Err(error) => error,
    };
    let name = name_of_source(&project.edited, "source");
    let mut kept = Vec::new();
    for trial in ledger.trials().iter().filter(|trial| trial.is_kept()) {
        let path = crate::record::folder_of(dir, trial.trial).join(&name);
        match fs::read_to_string(&path) {
            Ok(source) => kept.push((trial, source)),
            Err(error) if trial.trial == incumbent.trial => {
                return Err(Error::io("read", path)(error));
            }
            // Old folders may be deleted to make room.
            Err(_) => {}
        }
    }
    let aside = dir.join("workspace.damaged");
    let workspace = Workspace::lay_anew(&folder, &tag, project, &kept, &aside)?;
    workspace.reset_to(incumbent.trial, &commit)?;
    let remark = format!(
        "the work tree was damaged, and was laid anew from trials/; the old one is in {}: {}",
        aside.display(),
        problem.to_string().lines().last().unwrap_or_default()
    );
    Ok((workspace, vec![remark]))
}

/// What the commit of a kept trial says.
pub(crate) fn message(
    trial: usize,
    description: &str,
    measurement: &Measurement,
    proposer: &str,
) -> String {
    let (name, score) = (measurement.name_of_score(), measurement.score().unwrap_or_default());
    format!("trial {trial}: {description}\n\n{name}: {score:.6}\nproposer: {proposer}")
}

/// Where a repository that was laid anew keeps a trial's commit.
fn place_of(trial: usize) -> String {
    format!("refs/overnight/{trial}")
}

/// Whether git is there at all: asked before anything long begins.
pub(crate) fn check_git() -> Result<()> {
    Command::new("git").arg("--version").output().map_err(Error::missing("git")).map(drop)
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
