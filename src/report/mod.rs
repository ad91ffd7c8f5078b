//! Pictures of a study, drawn from its ledger alone.
