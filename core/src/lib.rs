//! # baton-core
//!
//! One WhatsApp account as a pure state machine. No I/O, no clock, no threads, no randomness of its own:
//! inputs go in through [`engine::Engine::handle`], effects come out of [`engine::Engine::poll`], and
//! persistence is one of the effects.
//!
//! The floors, from the ground up; a floor uses only floors below it:
//!
//! | floor | module | job |
//! |---|---|---|
//! | 1 | [`crypto`] | key types, X25519, XEdDSA, HKDF, AES |
//! | 1 | [`proto`] | protobuf messages, the fields we use |
//! | 1 | [`jid`] | addresses as types |
//! | 1 | [`limits`] | how much may be asked of any of the others |
//! | 2 | [`wire`] | bytes ↔ nodes: frames, Noise, binary XML |
//! | 2 | [`signal`] | X3DH, Double Ratchet, sender keys |
//! | 2 | [`media`] | files outside the protocol: decrypted in pieces |
//! | 2 | [`appstate`] | LTHash, patches and snapshots of settings |
//! | 2 | [`history`] | the phone's past, in chunks |
//! | 3 | [`state`] | the language of persistence: keys, records, batches, the store trait |
//! | 4 | [`flow`] | one small machine per protocol flow |
//! | 5 | [`archive`] | one account out of a store and into another, as an encrypted file |
//! | 5 | [`cluster`] | which host keeps which account, through crashes, freezes and rolling updates |
//! | 5 | [`engine`] | one account: routes inputs, collects effects, holds the durability gate |
//! | 6 | [`journal`] | what happened to an engine, to be done again elsewhere |
#![warn(missing_docs)]
// Bytes from outside end in an error. Tests may do as they like.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

pub mod appstate;
pub mod archive;
pub mod cluster;
pub mod crypto;
pub mod engine;
pub mod flow;
pub mod history;
pub mod jid;
pub mod journal;
pub mod limits;
pub mod media;
pub mod proto;
pub mod signal;
pub mod state;
pub mod wire;
