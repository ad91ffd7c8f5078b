//! The smallest trainer: a folder to copy. This file stays as it is; `train.rs` is the one that is edited.

#[forbid(unsafe_code)]
mod train;

overnight_plugin_api::export_trainer!(train::Bigram);
