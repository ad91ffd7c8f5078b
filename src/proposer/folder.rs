//! A folder to work in, for one call of a proposer.

use super::Brief;
use crate::foreign;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Holds the incumbent's source under its name, and is gone with this value. Whatever somebody made of it,
/// the next call has another folder, with another name: who is still at work here changes nothing there.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Lays one in the folder of the brief, and removes what is left of earlier ones.
    pub(super) fn lay(brief: &Brief<'_>) -> io::Result<Self> {
        let above = brief.folder;
        if above.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
            foreign::remove(above)?;
        }
        fs::create_dir_all(above)?;
        for entry in fs::read_dir(above)?.flatten() {
            if is_ours(&entry.file_name().to_string_lossy()) {
                // What cannot be removed lies there and harms nobody.
                let _ = foreign::remove(&entry.path());
            }
        }
        let prefix = format!("{:04}-", brief.trial);
        let path = tempfile::Builder::new().prefix(&prefix).tempdir_in(above)?.keep();
        let folder = Self { path };
        let edited = folder.path.join(brief.edited);
        fs::create_dir_all(edited.parent().unwrap_or(&folder.path))?;
        fs::write(edited, brief.source)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = foreign::remove(&self.path);
    }
}

/// `0007-Xa3dfE`
fn is_ours(name: &str) -> bool {
    let number = name.split_once('-').map_or("", |(number, _)| number);
    number.len() >= 4 && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proposer::brief::tests::brief,
        record::{Status, made_up::trial},
        stop::StopHandle,
    };

    #[test]
    fn each_call_has_a_fresh_folder_whatever_became_of_the_one_before() {
        let study = tempfile::tempdir().unwrap();
        let history = [trial(0, Status::Keep, Some(1.0), "baseline")];
        let stop = StopHandle::new();
        let above = study.path().join("brief");
        let brief = Brief { folder: &above, ..brief(&history, study.path(), &stop) };
        let first = Folder::lay(&brief).unwrap();
        let text =
            |folder: &Folder| fs::read_to_string(folder.path().join("src/train.rs")).unwrap();
        assert_eq!(text(&first), brief.source);
        // A study that was killed does not come to drop it.
        let left = std::mem::ManuallyDrop::new(first);
        fs::remove_dir_all(left.path().join("src")).unwrap();
        fs::create_dir(left.path().join("more")).unwrap();
        fs::write(above.join("notes"), "mine").unwrap();
        let second = Folder::lay(&brief).unwrap();
        assert_eq!(text(&second), brief.source);
        assert!(second.path() != left.path() && !left.path().exists());
        drop(second);
        let names = fs::read_dir(&above).unwrap().flatten().map(|entry| entry.file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["notes"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_its_place_leads_nowhere() {
        let (study, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let history = [trial(0, Status::Keep, Some(1.0), "baseline")];
        let stop = StopHandle::new();
        let above = study.path().join("brief");
        std::os::unix::fs::symlink(outside.path(), &above).unwrap();
        let folder = Folder::lay(&Brief { folder: &above, ..brief(&history, study.path(), &stop) });
        assert!(folder.unwrap().path().starts_with(&above));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
