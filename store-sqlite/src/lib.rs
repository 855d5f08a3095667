//! Fenced, group-committed SQLite store for `baton-core`.
