//! The adapters one by one. Whole accounts over real sockets are tested in `gateway/tests`, where the simulated service
//! is at hand.

mod lease;
mod link;
mod tls;
