//! Bytes ↔ nodes: [`frame`] (3-byte length), [`noise`] (handshake and transport), [`node`] (binary XML).
pub mod frame;
pub mod node;
pub mod noise;
