//! The gateway: WhatsApp accounts from the command line, and the demonstration that they survive `kill -9`.
//!
//! | file | subject |
//! |---|---|
//! | [`cli`] | flags, verbs, exit codes |
//! | [`store`] | SQLite or PostgreSQL, encrypted or not, behind one type; how it is opened |
//! | [`setup`] | from flags to a store, an account, a configuration |
//! | `link`, `send`, `tail`, `key`, `archive`, `restored` | a verb each, or two |
//! | [`host`] | many accounts in one process, driven by JSON lines |
//! | [`report`] | events as JSON and as lines for people; QR codes |
//! | [`stage`] | a service, host processes, a consumer that keeps books, and a judge |
//! | `demo` | the stage with one scenario, told as a timeline |
#![warn(missing_docs)]

mod archive;
pub mod cli;
mod demo;
pub mod host;
mod key;
mod link;
pub mod report;
mod restored;
mod send;
pub mod setup;
pub mod stage;
pub mod store;
mod tail;

pub use cli::main;
