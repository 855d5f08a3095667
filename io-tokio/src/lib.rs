//! Thin tokio adapters for `baton-core`: everything an engine wants done, done.
//!
//! ```text
//!  Account, Inbox        supervise: claim, build an engine, drive it, decide what a stop means
//!  (the embedder)  ◀──▶  drive:     poll the engine, carry out, wait for one thing, hand it in
//!                          │  │  │
//!                        Link Commits Membership     both shared by all accounts of a host, over a Store
//! ```
//!
//! Nothing here spawns a task, every `select!` is biased, and everything it selects on can be dropped at any time
//! without losing anything. Time and chance come from an [`Env`] and connections from a [`Connector`], so that a
//! simulation can replace all three. Start at [`open`], or at [`Fleet`] for all accounts of a store on many
//! hosts; [`Host`] serves chosen accounts in one process;
//! `examples/echo_bot.rs` is the shortest complete program.
#![warn(missing_docs)]

mod account;
mod commits;
mod driver;
mod env;
mod fetch;
mod files;
mod fleet;
mod journal;
pub mod keys;
mod membership;
mod stream;
mod supervise;
mod tenure;
mod transport;
mod watch;

pub use account::{Account, Inbox, Item, Posted};
pub use commits::{CommitOptions, CommitStats, Commits};
pub use driver::{App, DriveOptions, Effect, drive};
pub use env::{Env, SystemEnv};
pub use fetch::{Fetches, Step};
pub use files::{ExportFile, ImportFile};
pub use fleet::{
    AccountStatus, Fleet, FleetEnd, FleetEvent, FleetEvents, FleetHandle, FleetOptions, HostStatus,
    Takeover,
};
pub use journal::{Journals, Recorded};
pub use membership::{AccountLease, Claimed, MemberOptions, Membership, Standing};
pub use stream::{ConnectError, Connector, TcpConnector, TcpOrTls};
pub use supervise::{End, Host, Options, Ownership, Retention, account_named, open};
pub use tenure::{Tenure, Word};
pub use transport::{Link, MAX_MESSAGE, Moved, ORIGIN};
