//! A bigram model that learns in milliseconds, and misbehaves on demand.

#[forbid(unsafe_code)]
mod train;

overnight_plugin_api::export_trainer!(train::Bigram);
