//! The language of persistence.
