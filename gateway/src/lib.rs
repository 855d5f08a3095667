//! The gateway: WhatsApp accounts from the command line, and the demonstration that they survive `kill -9`.
//!
//! | file | subject |
//! |---|---|
//! | [`cli`] | flags, verbs, exit codes |
//! | [`store`] | SQLite or PostgreSQL, encrypted or not, behind one type; how it is opened |
//! | [`setup`] | from flags to a store, an account, a configuration |
//! | `link`, `send`, `tail`, `people`, `key`, `archive`, `restored` | a verb each, or two |
//! | `serve` | every account whose lease this host wins |
//! | `signals` | what asks a process to end |
//! | `hosts` | the fleet: who is in it, draining, moving |
//! | `host` | `serve` with the switches of the demonstration |
//! | [`report`] | events as JSON and as lines for people; QR codes |
//! | [`stage`] | a service, host processes, a consumer that keeps books, and a judge |
//! | `demo` | the stage with one scenario, told as a timeline |
#![warn(missing_docs)]

mod archive;
pub mod cli;
mod demo;
mod host;
mod hosts;
mod key;
mod link;
mod people;
pub mod report;
mod restored;
mod send;
mod serve;
pub mod setup;
mod signals;
pub mod stage;
pub mod store;
mod tail;

pub use cli::main;
