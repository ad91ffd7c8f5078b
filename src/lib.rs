#![deny(unsafe_code)]

pub mod data;
mod error;
pub mod proposer;
pub mod report;
mod trial;

pub use error::{Error, Result};
pub use trial::{Measurement, Outcome, Status, Trial};
