//! A trainer as an author writes it who has plugin-api's documentation and nothing else.

#[forbid(unsafe_code)]
mod train;

overnight_plugin_api::export_trainer!(train::Bigram);
