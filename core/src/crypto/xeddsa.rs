//! XEdDSA: signatures by Curve25519 keys, in the form WhatsApp uses (chapter 05.2).
//!
//! The key pair lives on the Montgomery curve, where a public key does not say which of two Edwards points it is.
//! Published XEdDSA settles that by negating the private scalar; here the sign travels in the signature instead, in
//! the top bit of its last byte, which a scalar below the group order never uses.

use super::keys::exactly;
#[cfg(feature = "stand-in-crypto")]
use super::stand_in;
use super::{KeyError, PrivateKey, PublicKey, Rng};
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use sha2::{Digest, Sha512};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// Where the sign of the signer's Edwards point hides.
const SIGN_BIT: u8 = 0x80;

/// The message was not signed by this key, or was changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not by this key over this message")]
pub struct BadSignature;

/// 64 bytes: `R`, then `S` with the signer's sign bit on top.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// A signature from its 64 bytes; whether it verifies is another question.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// A signature from a slice of exactly 64 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        exactly(bytes).map(Self)
    }

    /// The 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

impl PrivateKey {
    /// Signs the concatenation of the parts of `message`.
    pub fn sign(&self, message: &[&[u8]], rng: &mut Rng) -> Signature {
        let mut random = Zeroizing::new([0; 64]);
        rng.fill(random.as_mut_slice());
        self.sign_with(message, &random)
    }

    /// As [`PrivateKey::sign`] with the 64 random bytes given. They hedge the nonce, which also depends on key and
    /// message, so even repeated ones do not reveal the key; they exist so that a signature can be reproduced.
    pub fn sign_with(&self, message: &[&[u8]], random: &[u8; 64]) -> Signature {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Signature(stand_in::sign(self.clamped(), message, random));
        }
        let public = self.edwards_public();
        let mut label = [0xff; 32];
        label[0] = 0xfe;

        let mut hash = Sha512::new_with_prefix(label);
        hash.update(self.clamped());
        message.iter().for_each(|part| hash.update(part));
        hash.update(random);
        let mut nonce = reduce(hash);
        let point = EdwardsPoint::mul_base(&nonce).compress();

        let challenge = reduce(challenge(&point.0, &public.0, message));
        let mut secret = Scalar::from_bytes_mod_order(*self.clamped());
        let answer = challenge * secret + nonce;
        nonce.zeroize();
        secret.zeroize();

        let mut out = [0; 64];
        out[..32].copy_from_slice(&point.0);
        out[32..].copy_from_slice(answer.as_bytes());
        // `answer` is below the group order, so its top bit is free.
        out[63] |= public.0[31] & SIGN_BIT;
        Signature(out)
    }
}

impl PublicKey {
    /// Checks that `signature` was made by this key over the concatenation of the parts of `message`.
    ///
    /// Strict: `S` must be below the group order (so nobody can make a second signature out of a good one), and a
    /// key of low order, under which one signature fits many messages, verifies nothing.
    pub fn verify(&self, message: &[&[u8]], signature: &Signature) -> Result<(), BadSignature> {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            let good = stand_in::verify(self.as_bytes(), message, &signature.0);
            return if good { Ok(()) } else { Err(BadSignature) };
        }
        let (point, answer) = signature.0.split_at(32);
        let mut answer: [u8; 32] = answer.try_into().map_err(|_| BadSignature)?;
        let sign = answer[31] >> 7;
        answer[31] &= !SIGN_BIT;
        let answer: Option<Scalar> = Scalar::from_canonical_bytes(answer).into();
        let answer = answer.ok_or(BadSignature)?;
        // None: this u-coordinate is on the twist, where nobody can have signed.
        let public = self
            .montgomery()
            .to_edwards(sign)
            .filter(|point| !point.is_small_order())
            .ok_or(BadSignature)?;

        let challenge = reduce(challenge(point, &public.compress().0, message));
        let expected =
            EdwardsPoint::vartime_double_scalar_mul_basepoint(&challenge, &-public, &answer);
        // Both are public values: an ordinary comparison leaks nothing.
        if expected.compress().0 == point {
            Ok(())
        } else {
            Err(BadSignature)
        }
    }
}

fn challenge(point: &[u8], public: &[u8; 32], message: &[&[u8]]) -> Sha512 {
    let mut hash = Sha512::new_with_prefix(point);
    hash.update(public);
    message.iter().for_each(|part| hash.update(part));
    hash
}

fn reduce(hash: Sha512) -> Scalar {
    let wide: Zeroizing<[u8; 64]> = Zeroizing::new(hash.finalize().into());
    Scalar::from_bytes_mod_order_wide(&wide)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{array, bytes, key_pair};
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/xeddsa.json")).unwrap()
    }

    #[test]
    fn signatures_equal_the_vectors_and_verify() {
        for case in vectors()["sign_and_verify"].as_array().unwrap() {
            let pair = key_pair(case);
            let message = bytes(&case["message"]);
            let signature = pair
                .private
                .sign_with(&[&message], &array(&case["random_64"]));
            assert_eq!(signature.as_bytes().as_slice(), bytes(&case["signature"]));
            assert_eq!(
                u64::from(signature.0[63] >> 7),
                case["edwards_sign_bit"].as_u64().unwrap()
            );
            assert_eq!(pair.public.verify(&[&message], &signature), Ok(()));
        }
    }

    #[test]
    fn forged_and_sloppy_signatures_are_refused() {
        for case in vectors()["negative"].as_array().unwrap() {
            let key = PublicKey::from_bytes(array(&case["public"]));
            let signature = Signature::from_bytes(array(&case["signature"]));
            let verdict = key.verify(&[&bytes(&case["message"])], &signature);
            assert_eq!(verdict, Err(BadSignature), "{}", case["case"]);
        }
    }

    /// S + L is the same scalar, and below 2^253 for small S: only a strict comparison notices.
    #[test]
    fn a_second_spelling_of_the_same_scalar_is_refused() {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut rng = Rng::from_seed([3; 32]);
        let private = PrivateKey::generate(&mut rng);
        let signature = private.sign(&[b"message"], &mut rng);
        assert_eq!(
            private.public_key().verify(&[b"message"], &signature),
            Ok(())
        );
        let mut twisted = signature.0;
        let mut carry = 0;
        for (byte, order) in twisted[32..].iter_mut().zip(ORDER) {
            carry += u16::from(*byte) + u16::from(order);
            *byte = carry as u8;
            carry >>= 8;
        }
        assert_ne!(twisted, signature.0);
        assert_eq!(
            private
                .public_key()
                .verify(&[b"message"], &Signature(twisted)),
            Err(BadSignature)
        );
    }

    #[test]
    fn parts_are_concatenated() {
        let mut rng = Rng::from_seed([4; 32]);
        let private = PrivateKey::generate(&mut rng);
        let signature = private.sign(&[b"ab", b"", b"c"], &mut rng);
        assert_eq!(
            private.public_key().verify(&[b"a", b"bc"], &signature),
            Ok(())
        );
        assert_eq!(
            private.public_key().verify(&[b"a", b"cb"], &signature),
            Err(BadSignature)
        );
    }

    #[test]
    fn a_key_of_low_order_signs_nothing() {
        // R = B times S and any A with h·A = 0 would satisfy the equation for every message.
        let answer = Scalar::from(5u64);
        let mut forged = [0; 64];
        forged[..32].copy_from_slice(&EdwardsPoint::mul_base(&answer).compress().0);
        forged[32..].copy_from_slice(answer.as_bytes());
        for message in 0..16u8 {
            let verdict = PublicKey::from_bytes([0; 32]).verify(&[&[message]], &Signature(forged));
            assert_eq!(verdict, Err(BadSignature));
        }
    }
}
