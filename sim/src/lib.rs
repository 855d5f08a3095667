//! A simulated WhatsApp service.
pub mod service;
