//! What the fuzz targets do, as plain functions: libFuzzer drives them (`scripts/fuzz`), and ordinary tests replay the
//! corpus through them (`tests/corpus.rs`).
//!
//! A target takes bytes and panics if something does not hold that has to hold for all bytes. None of them is content
//! with "it did not panic": each module says what it checks. Where a MAC or a signature guards what lies behind, the
//! bytes are read as a list of edits of something genuine ([`input`]), so that the fuzzer gets past the guard.

pub mod input;

pub mod appstate_patch;
pub mod appstate_snapshot;
pub mod certificate;
pub mod engine_inputs;
pub mod frame;
pub mod history_chunk;
pub mod jid;
pub mod media_decrypt;
pub mod node_decode;
pub mod node_differential;
pub mod node_roundtrip;
pub mod noise_initiator;
pub mod noise_responder;
pub mod prekey_message;
pub mod protobuf_message;
pub mod sender_key_message;
pub mod service_inputs;
pub mod session_record;
pub mod signal_message;
pub mod store_rows;

mod handshakes;
mod peers;
mod settings;
mod words;

// The rig of the siege, the client of the service's tests and the words of both, as they stand there.
#[path = "../../../sim/tests/siege/cloud.rs"]
#[allow(dead_code, reason = "targets use their own part")]
mod cloud;
#[path = "../../../sim/tests/siege/rig.rs"]
#[allow(dead_code, reason = "targets use their own part")]
mod rig;
#[path = "../../../sim/tests/support/mod.rs"]
mod support;
#[path = "../../../sim/tests/support/words.rs"]
mod vocabulary;

/// One target.
pub struct Target {
    /// Its name: of its module, its binary and its corpus.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with, from vectors and from traffic of the simulation.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Words of the protocols, for mutators to put in.
#[must_use]
pub fn dictionary() -> Vec<Vec<u8>> {
    words::dictionary()
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// All of them.
        pub const ALL: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $name::target,
            seeds: $name::seeds,
        },)*];
    };
}

targets! {
    frame node_decode node_roundtrip node_differential noise_initiator noise_responder certificate protobuf_message
    signal_message prekey_message sender_key_message session_record appstate_patch appstate_snapshot history_chunk jid
    media_decrypt engine_inputs service_inputs store_rows
}
