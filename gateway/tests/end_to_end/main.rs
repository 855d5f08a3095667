//! Accounts end to end: engines, stores, drivers and processes against the simulated service on real sockets.

mod demo;
mod disasters;
mod fleet;
mod kills;
mod locked;
mod owners;
mod trouble;
mod verbs;

mod support;
