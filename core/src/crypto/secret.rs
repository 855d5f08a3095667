//! Keys that people keep: 32 random bytes in a file, an environment variable or a safe, or what is stretched from a
//! passphrase.

use super::Rng;
use argon2::{Algorithm, Argon2, Params, Version};
use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// 32 secret bytes. Wiped on drop, never printed.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<[u8; 32]>);

/// Why a text is no [`SecretKey`]. Says nothing of the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretKeyError {
    /// Nothing but white space.
    #[error("the key is empty")]
    Empty,
    /// Neither of the two forms.
    #[error("a key is 32 bytes, as 64 hex digits or as base64")]
    Form,
    /// All bytes are the same: a placeholder that somebody forgot to replace.
    #[error("the key is a placeholder, not a random key")]
    Placeholder,
}

impl SecretKey {
    /// A key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new key.
    #[must_use]
    pub fn generate(rng: &mut Rng) -> Self {
        Self::from_bytes(rng.bytes())
    }

    /// Reads 64 hex digits, or 32 bytes in base64 of either alphabet, padded or not; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, SecretKeyError> {
        let text = text.trim();
        let mut key = Zeroizing::new([0; 32]);
        match text.len() {
            0 => return Err(SecretKeyError::Empty),
            64 => from_hex(text.as_bytes(), &mut key).ok_or(SecretKeyError::Form)?,
            _ => from_base64(text, &mut key).ok_or(SecretKeyError::Form)?,
        }
        if key.iter().all(|&byte| byte == key[0]) {
            return Err(SecretKeyError::Placeholder);
        }
        Ok(Self(key))
    }

    /// 64 hex digits, for the place where it is kept.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in self.0.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(DIGITS[usize::from(digit)]));
            }
        }
        text
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of a passphrase: Argon2id 1.3 (RFC 9106).
    pub fn from_passphrase(
        passphrase: &[u8],
        salt: &[u8; 16],
        cost: PassphraseCost,
    ) -> Result<Self, UnusableCost> {
        let params =
            Params::new(cost.kib, cost.passes, cost.lanes, Some(32)).map_err(|_| UnusableCost)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut key = Zeroizing::new([0; 32]);
        argon2
            .hash_password_into(passphrase, salt, key.as_mut_slice())
            .map_err(|_| UnusableCost)?;
        Ok(Self(key))
    }
}

fn from_hex(text: &[u8], key: &mut [u8; 32]) -> Option<()> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    for (pair, byte) in text.chunks_exact(2).zip(key) {
        let &[high, low] = pair else { return None };
        *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
    }
    Some(())
}

fn from_base64(text: &str, key: &mut [u8; 32]) -> Option<()> {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    [STANDARD, URL_SAFE].iter().find_map(|alphabet| {
        let mut bytes = GeneralPurpose::new(alphabet, config).decode(text).ok()?;
        let fits = bytes.len() == key.len();
        if fits {
            key.copy_from_slice(&bytes);
        }
        bytes.zeroize();
        fits.then_some(())
    })
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What guessing one passphrase costs.
///
/// Argon2id because it is the one such function that is a standard, is hard on memory (a graphics card with thousands
/// of cores has no use for them) and does not tell the passphrase by which memory it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassphraseCost {
    /// Memory in KiB.
    pub kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes; they are worked on one after the other here.
    pub lanes: u32,
}

impl PassphraseCost {
    /// The second choice that RFC 9106 recommends, for machines that cannot spare 2 GiB: 64 MiB, three passes, four
    /// lanes.
    pub const RECOMMENDED: Self = Self {
        kib: 64 << 10,
        passes: 3,
        lanes: 4,
    };
    /// More is not believed of a file: this is memory and time that whoever opens it has to find.
    pub const MAX: Self = Self {
        kib: 512 << 10,
        passes: 16,
        lanes: 16,
    };

    /// Whether it is within [`MAX`](Self::MAX).
    #[must_use]
    pub const fn is_bearable(self) -> bool {
        self.kib <= Self::MAX.kib
            && self.passes <= Self::MAX.passes
            && self.lanes <= Self::MAX.lanes
    }
}

/// Argon2 has no such parameters, or there is not the memory for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cost of the passphrase cannot be paid")]
pub struct UnusableCost;

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;

    #[test]
    fn keys_are_read_in_every_form() {
        let key = SecretKey::generate(&mut Rng::from_seed([3; 32]));
        let forms = [
            key.to_hex().to_string(),
            key.to_hex().to_uppercase(),
            format!("  {}\r\n", *key.to_hex()),
            base64::prelude::BASE64_STANDARD.encode(key.as_bytes()),
            base64::prelude::BASE64_STANDARD_NO_PAD.encode(key.as_bytes()),
            base64::prelude::BASE64_URL_SAFE.encode(key.as_bytes()),
            base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(key.as_bytes()),
        ];
        for form in forms {
            let read = SecretKey::parse(&form).expect(&form);
            assert_eq!(read.as_bytes(), key.as_bytes(), "{form}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let short = "ab".repeat(31);
        let long = "ab".repeat(33);
        let odd = format!("{}g", "a1".repeat(31) + "b");
        for text in [&*short, &long, &odd, "secret", "äää", &"ä".repeat(32)] {
            assert_eq!(
                SecretKey::parse(text).err(),
                Some(SecretKeyError::Form),
                "{text}"
            );
        }
        assert_eq!(SecretKey::parse(" \n").err(), Some(SecretKeyError::Empty));
        for text in ["0".repeat(64), "A".repeat(43)] {
            assert_eq!(
                SecretKey::parse(&text).err(),
                Some(SecretKeyError::Placeholder)
            );
        }
        assert_eq!(
            format!("{:?}", SecretKey::from_bytes([7; 32])),
            "SecretKey(..)"
        );
    }

    /// The expected value is OpenSSL's, through pyca/cryptography:
    /// `Argon2id(salt=b'somesaltsomesalt', length=32, iterations=2, lanes=2, memory_cost=256).derive(b'password')`.
    #[test]
    fn passphrases_are_stretched_by_argon2id() {
        let cost = PassphraseCost {
            kib: 256,
            passes: 2,
            lanes: 2,
        };
        let key = SecretKey::from_passphrase(b"password", b"somesaltsomesalt", cost).unwrap();
        assert_eq!(key.as_bytes().as_slice(), hex(ARGON2ID));
        let none = PassphraseCost { lanes: 0, ..cost };
        assert!(SecretKey::from_passphrase(b"password", &[0; 16], none).is_err());
        assert!(PassphraseCost::RECOMMENDED.is_bearable());
    }

    const ARGON2ID: &str = "c112d2ee6b9d514413f806243187952186e8f19cacab80f20a823d549f111d2c";
}
