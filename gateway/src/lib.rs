//! The gateway: WhatsApp accounts from the command line, and the demonstration that they survive `kill -9`.
//!
//! | file | subject |
//! |---|---|
//! | [`cli`] | flags, verbs, exit codes |
//! | [`setup`] | from flags to a store, an account, a configuration |
//! | `link`, `send`, `tail` | one verb each |
//! | [`host`] | many accounts in one process, driven by JSON lines |
//! | [`report`] | events as JSON and as lines for people; QR codes |
//! | [`stage`] | a service, host processes, a consumer that keeps books, and a judge |
//! | `demo` | the stage with one scenario, told as a timeline |
#![warn(missing_docs)]

pub mod cli;
mod demo;
pub mod host;
mod link;
pub mod report;
mod send;
pub mod setup;
pub mod stage;
mod tail;

pub use cli::main;
