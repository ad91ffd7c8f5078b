//! Why a study cannot go on; what becomes of a single trial is an [`Outcome`](crate::Outcome) instead.

use std::{io, path::PathBuf};

/// The library's one error: each says what failed, where, and what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot *write*".
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The result of everything that can end a study.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err` beside a file operation.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
