//! Curve25519 keys and their agreement (chapter 05.1).
//!
//! A public key has two written forms and mixing them up is the classic mistake of this field: 32 raw bytes in
//! stanzas, 33 bytes (type byte `0x05` first) inside ciphertexts and under signatures. [`PublicKey`] holds the 32
//! bytes and makes the caller name the form: `as_bytes`/`from_slice` or `serialize`/`deserialize`.

use super::Rng;
#[cfg(feature = "stand-in-crypto")]
use super::stand_in;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::scalar::clamp_integer;
use std::fmt;
use std::sync::OnceLock;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The type byte before a public key inside ciphertexts; no other exists.
const TYPE_CURVE25519: u8 = 0x05;

/// Why bytes are not a key, or a key cannot be agreed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither a key nor a signature has this many bytes.
    #[error("{expected} bytes expected, got {got}")]
    Length {
        /// How many bytes this form has.
        expected: usize,
        /// How many there were.
        got: usize,
    },
    /// The first of 33 bytes is not `0x05`.
    #[error("unknown key type {0:#04x}")]
    Type(u8),
    /// The agreement gives all zeroes: the peer's key is one of the few points that force a known secret.
    #[error("the public key has low order")]
    LowOrder,
}

/// A Curve25519 public key: the 32-byte Montgomery u-coordinate, without the `0x05` type byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// A key from its 32 raw bytes. Any 32 bytes are a u-coordinate.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A key from a slice of exactly 32 raw bytes, the form of stanzas.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        exactly(bytes).map(Self)
    }

    /// The 32 raw bytes, the form of stanzas.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `0x05` and the 32 bytes, the form inside ciphertexts and under signatures.
    pub fn serialize(&self) -> [u8; 33] {
        let mut out = [TYPE_CURVE25519; 33];
        out[1..].copy_from_slice(&self.0);
        out
    }

    /// A key from its 33-byte form.
    pub fn deserialize(bytes: &[u8]) -> Result<Self, KeyError> {
        let all: [u8; 33] = exactly(bytes)?;
        let [kind, key @ ..] = all;
        if kind == TYPE_CURVE25519 {
            Ok(Self(key))
        } else {
            Err(KeyError::Type(kind))
        }
    }

    pub(super) fn montgomery(&self) -> MontgomeryPoint {
        MontgomeryPoint(self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// A Curve25519 private key, clamped when it is made, wiped when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    bytes: [u8; 32],
    /// The Edwards form of the public half, which every signature needs. Kept from the first signature on: the
    /// multiplication behind it costs as much as the rest of signing.
    edwards: OnceLock<CompressedEdwardsY>,
}

impl PrivateKey {
    /// A key from 32 bytes, which are clamped.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let bytes = clamp_integer(bytes);
        Self {
            bytes,
            edwards: OnceLock::new(),
        }
    }

    /// A key from a slice of exactly 32 bytes, which are clamped.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        exactly(bytes).map(Self::from_bytes)
    }

    /// A fresh key.
    pub fn generate(rng: &mut Rng) -> Self {
        Self::from_bytes(rng.bytes())
    }

    /// The public half. A multiplication each time: keep the result, or a [`KeyPair`].
    pub fn public_key(&self) -> PublicKey {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return PublicKey(stand_in::public_key(&self.bytes));
        }
        PublicKey(MontgomeryPoint::mul_base_clamped(self.bytes).0)
    }

    /// X25519: the secret shared with the owner of `theirs`.
    ///
    /// A peer's key of low order is refused ([`KeyError::LowOrder`]); accepting it would let the peer choose the
    /// secret for both.
    pub fn agree(&self, theirs: &PublicKey) -> Result<SharedSecret, KeyError> {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return match stand_in::is_low_order(&theirs.0) {
                true => Err(KeyError::LowOrder),
                false => Ok(SharedSecret(stand_in::agree(
                    &stand_in::public_key(&self.bytes),
                    &theirs.0,
                ))),
            };
        }
        let secret = SharedSecret(theirs.montgomery().mul_clamped(self.bytes).0);
        // The accumulated OR looks at every byte, so the time taken says nothing about a good secret.
        if secret.0.iter().fold(0, |seen, byte| seen | byte) == 0 {
            return Err(KeyError::LowOrder);
        }
        Ok(secret)
    }

    /// The 32 clamped bytes, for storage.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.bytes)
    }

    pub(super) fn clamped(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(super) fn edwards_public(&self) -> &CompressedEdwardsY {
        self.edwards
            .get_or_init(|| EdwardsPoint::mul_base_clamped(self.bytes).compress())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl ZeroizeOnDrop for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Both halves, so that the public one is computed once.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The secret half.
    pub private: PrivateKey,
    /// What the secret half multiplies the base point to.
    pub public: PublicKey,
}

impl KeyPair {
    /// A fresh pair.
    pub fn generate(rng: &mut Rng) -> Self {
        Self::from_private(PrivateKey::generate(rng))
    }

    /// The pair of a private key. The public half is always computed, never believed: a pair whose halves do not
    /// belong together leaks the private key through signatures.
    pub fn from_private(private: PrivateKey) -> Self {
        let public = private.public_key();
        Self { private, public }
    }
}

/// The 32 bytes two parties agreed on; wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret([u8; 32]);

impl SharedSecret {
    /// The bytes, as input of a key derivation.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

pub(super) fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], KeyError> {
    bytes.try_into().map_err(|_| KeyError::Length {
        expected: N,
        got: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{array, key_pair};
    use super::*;
    use serde_json::Value;

    #[test]
    fn agreements_equal_the_vectors_from_both_sides() {
        let cases: Value =
            serde_json::from_str(include_str!("../../tests/vectors/x25519.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let (a, b) = (key_pair(&case["a"]), key_pair(&case["b"]));
            let shared: [u8; 32] = array(&case["shared"]);
            assert_eq!(a.private.agree(&b.public).unwrap().as_bytes(), &shared);
            assert_eq!(b.private.agree(&a.public).unwrap().as_bytes(), &shared);
        }
    }

    /// Agreements run on a precomputed table of the Edwards curve where a key is used often; the crate that everybody
    /// uses for X25519 says what must come out.
    #[test]
    fn agreements_equal_x25519_dalek() {
        let mut rng = crate::crypto::Rng::from_seed([42; 32]);
        for _ in 0..64 {
            let (a, b) = (rng.bytes::<32>(), rng.bytes::<32>());
            let theirs = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(b));
            let expected = x25519_dalek::StaticSecret::from(a).diffie_hellman(&theirs);
            let shared = PrivateKey::from_bytes(a)
                .agree(&PublicKey::from_bytes(theirs.to_bytes()))
                .unwrap();
            assert_eq!(shared.as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn low_order_points_are_refused() {
        let private = PrivateKey::from_bytes([7; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        // u = p - 1, of order 4 on the twist's side.
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        for u in [[0; 32], one, minus_one] {
            assert_eq!(
                private.agree(&PublicKey::from_bytes(u)).unwrap_err(),
                KeyError::LowOrder
            );
        }
    }

    #[test]
    fn the_two_written_forms_are_not_interchangeable() {
        let key = KeyPair::generate(&mut Rng::from_seed([1; 32])).public;
        assert_eq!(PublicKey::deserialize(&key.serialize()), Ok(key));
        assert_eq!(PublicKey::from_slice(key.as_bytes()), Ok(key));
        assert_eq!(
            PublicKey::from_slice(&key.serialize()),
            Err(KeyError::Length {
                expected: 32,
                got: 33
            })
        );
        assert_eq!(
            PublicKey::deserialize(key.as_bytes()),
            Err(KeyError::Length {
                expected: 33,
                got: 32
            })
        );
        let mut other = key.serialize();
        other[0] = 6;
        assert_eq!(PublicKey::deserialize(&other), Err(KeyError::Type(6)));
    }

    #[test]
    fn private_keys_are_clamped_and_not_printed() {
        let private = PrivateKey::from_bytes([0xff; 32]);
        let bytes = private.to_bytes();
        assert_eq!((bytes[0], bytes[31]), (0xf8, 0x7f));
        let pair = KeyPair::from_private(private);
        assert!(format!("{pair:?}").contains("PrivateKey(..)"));
    }
}
