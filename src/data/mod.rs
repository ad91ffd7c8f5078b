//! What autoresearch's `prepare.py` is: corpus, tokenizer, token files, packing.
//!
//! Nothing outside this module knows a corpus format.

mod builtin;
mod corpus;
mod dataset;
mod loader;
mod packer;
mod passages;
mod spec;
mod tokenizer;
mod tokens;

pub use dataset::{Dataset, PrepareOptions, Preparing, Split, Stage};
pub use loader::Loader;
pub use packer::{Packer, Windows};
pub use spec::DataSpec;
pub use tokens::TokenFile;
