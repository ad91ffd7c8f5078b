//! What a trainer fails with: a message, made from any error by `?`.

use std::fmt;

/// A trainer's failure, as the text that ends up in the ledger.
///
/// Every `std::error::Error` converts into it, with its chain of sources written out, so `?` works
/// on candle's, std's and anyone's errors. It therefore cannot implement `std::error::Error` itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(String);

/// The result of everything in a [`Trainer`](crate::Trainer).
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error that says `message`.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Many errors already print their source; saying it twice helps nobody.
            if !message.ends_with(&cause_text) {
                message.push_str(": ");
                message.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self(message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
