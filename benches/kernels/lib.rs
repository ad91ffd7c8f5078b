//! Nothing but benches; see `benches/operations.rs`.
