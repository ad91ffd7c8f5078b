//! What to learn from, as it is written on a command line.

use crate::error::{Error, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where texts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSpec {
    /// The corpus that comes with the library: sources of pinned crates, fetched by cargo.
    Builtin,
    /// A `.txt` file, or a folder with `.txt` files at any depth.
    Text(PathBuf),
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |problem: &str| Error::Data {
            what: text.to_owned(),
            problem: format!(
                "{problem}; give `builtin`, a .txt file, or a folder with .txt files in it"
            ),
        };
        let path = Path::new(text);
        if text == "builtin" {
            Ok(Self::Builtin)
        } else if text.starts_with("hf:") {
            Err(refuse("downloads from a hub are not supported yet"))
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            Err(refuse("parquet files are not supported yet"))
        } else if path.exists() {
            Ok(Self::Text(path.to_owned()))
        } else {
            Err(refuse("there is no such file or folder"))
        }
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Text(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_says_what_is() {
        for spec in ["hf:karpathy/climbmix", "shard.parquet", "/nowhere/at/all", ""] {
            let error = spec.parse::<DataSpec>().unwrap_err().to_string();
            assert!(error.contains("builtin"), "{error}");
        }
        assert_eq!("builtin".parse::<DataSpec>().unwrap(), DataSpec::Builtin);
    }
}
