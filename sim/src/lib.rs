//! The simulated WhatsApp service, on its own, on a socket, and in a whole simulated world.

pub mod serve;
pub mod service;
pub mod tier_b;
pub mod world;
