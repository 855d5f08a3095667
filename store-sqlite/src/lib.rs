//! Fenced, group-committed SQLite store for `baton-core`.
//!
//! [`SqliteStore`] keeps any number of accounts in one file: WAL, `synchronous=FULL`, one thread that writes. When a
//! commit returns, it survives a power cut; commits that come while the disk is busy share the next sync. Several
//! processes of one machine may open the same file.
//!
//! [`Database`] is the same without threads, for a simulation that runs it in place.
//!
//! Schema, guarantees and what happens under which fault: `docs/stores.md`.
#![warn(missing_docs)]

mod database;
mod fences;
mod mark;
mod migrate;
mod oneshot;
mod presence;
mod queue;
mod roster;
mod rows;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use database::{Database, Failure, Transaction, Work};
pub use migrate::{OpenError, SCHEMA_VERSION};
pub use store::{Options, SqliteStore};
