//! Thin tokio adapters for `baton-core`.
