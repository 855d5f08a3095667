//! The adapters one by one. Whole accounts over real sockets are tested in `gateway/tests`, where the simulated service
//! is at hand.

mod commits;
mod fetch;
mod link;
mod membership;
mod tls;
