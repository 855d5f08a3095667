//! Fenced, group-committed PostgreSQL store for `baton-core`.
//!
//! [`PgStore`] keeps the accounts of many tenants in one database that many hosts share. Commits that come while the
//! database is busy travel in one transaction, whoever's they are; row-level security keeps tenants apart even where a
//! query is wrong; the fence of each account lets only its holder write. Works through PgBouncer in transaction mode.
//!
//! Schema, guarantees and what happens under which fault: `docs/stores.md`.
#![warn(missing_docs)]

mod accounts;
mod commit;
mod direct;
mod error;
mod fenced;
mod hosts;
mod migrate;
mod open;
mod ownership;
mod pool;
mod presence;
mod rows;
mod schema;
mod store;

pub use migrate::SCHEMA_VERSION;
pub use open::{Durability, OpenError};
pub use presence::Presence;
pub use store::{Options, PgStore, Stats};
