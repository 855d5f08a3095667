//! The bottom floor: key types, X25519, XEdDSA, HKDF, AES; names and lengths in types.
//!
//! A WhatsApp client speaks one small dialect of cryptography everywhere. Identities, ratchets, pairing and the
//! Noise handshake all use Curve25519 keys in Montgomery form; those same keys sign (XEdDSA); everything secret is
//! stretched by HKDF-SHA256; messages are AES-256-CBC with a MAC, transport and companion payloads AES-256-GCM.
//! What is ours alone (rows at rest, export files) is XChaCha20-Poly1305, its keys kept by an operator or stretched from
//! a passphrase by Argon2id.
//! The floors above never touch a cipher crate: what they may do is what this module offers.
//!
//! Simulated worlds may ask for stand-ins that keep the laws of all this and cost next to nothing; what they are behind
//! is a feature that no product has: [`HAS_STAND_INS`].
//!
//! Three promises hold for everything here:
//!
//! - A secret redacts its `Debug` and is wiped when dropped.
//! - Nothing draws randomness by itself. Whoever needs some is handed an [`Rng`], a seeded stream, so that a run of
//!   the engine can be repeated byte for byte.
//! - Bytes from outside can make an operation fail, never panic.

mod aead;
mod cipher;
mod kdf;
mod keys;
mod rng;
mod secret;
#[cfg(feature = "stand-in-crypto")]
pub mod stand_in;
mod xeddsa;

pub use aead::XChaCha;
pub use cipher::{
    AesGcm, CipherError, aes_cbc_decrypt, aes_cbc_encrypt, aes_cbc_encrypt_into, cbc_ciphertext_len,
};
pub(crate) use cipher::{CbcStream, padding};
pub(crate) use kdf::{HmacKey, HmacSha512Key, HmacStream, Sha256Stream};
pub use kdf::{hkdf_sha256, hmac_sha256, md5, sha1, sha256, verify_mac};
pub use keys::{KeyError, KeyPair, PrivateKey, PublicKey, SharedSecret};
pub use rng::Rng;
pub use secret::{PassphraseCost, SecretKey, SecretKeyError, UnusableCost};
pub use xeddsa::{BadSignature, Signature};

/// Whether this build has the stand-ins of the feature `stand-in-crypto`. A product refuses to be built with them.
pub const HAS_STAND_INS: bool = cfg!(feature = "stand-in-crypto");

/// What tests of several floors need to read vectors.
#[cfg(test)]
pub(crate) mod testing {
    use super::{KeyPair, PrivateKey, PublicKey};
    use serde_json::Value;

    /// Bytes of a lower-case hex string.
    pub(crate) fn hex(text: &str) -> Vec<u8> {
        assert!(text.len().is_multiple_of(2), "odd hex string");
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// Bytes of a vector field holding hex.
    pub(crate) fn bytes(value: &Value) -> Vec<u8> {
        hex(value.as_str().expect("a hex string"))
    }

    /// As [`bytes`], with a length the test knows.
    pub(crate) fn array<const N: usize>(value: &Value) -> [u8; N] {
        bytes(value).try_into().expect("length")
    }

    /// A `{private, public}` object; also checks that the two belong together.
    pub(crate) fn key_pair(value: &Value) -> KeyPair {
        let pair = KeyPair::from_private(PrivateKey::from_bytes(array(&value["private"])));
        assert_eq!(pair.public, PublicKey::from_bytes(array(&value["public"])));
        pair
    }
}
