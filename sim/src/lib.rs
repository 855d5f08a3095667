//! A simulated WhatsApp service: [`service`] is the state machine, [`serve`] puts it on real sockets.

pub mod serve;
pub mod service;
