//! The trainer that the loop edits: `train.rs` holds all of it, and this file stays as it is.

#[cfg(test)]
mod tests;
#[forbid(unsafe_code)]
mod train;

overnight_plugin_api::export_trainer!(train::Gpt);
