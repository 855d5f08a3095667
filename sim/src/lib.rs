//! The simulated WhatsApp service, on its own, on a socket, and in a whole simulated world.

pub mod batch;
#[cfg(feature = "serve")]
pub mod kit;
#[cfg(feature = "serve")]
pub mod serve;
pub mod service;
#[cfg(feature = "tier-b")]
pub mod tier_b;
pub mod timeline;
pub mod world;
