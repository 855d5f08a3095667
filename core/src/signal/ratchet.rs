//! The two ratchets as arithmetic (chapter 05.4): chain keys that only move forward, and the root step that mixes a
//! fresh agreement in.

use crate::crypto::{
    HmacKey, KeyError, KeyPair, PrivateKey, PublicKey, Rng, SharedSecret, hkdf_sha256,
};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Where the key pairs of ratchet steps come from. Vectors dictate them; everybody else uses the random stream.
pub(super) trait KeySource {
    fn next_pair(&mut self) -> KeyPair;
}

impl KeySource for Rng {
    fn next_pair(&mut self) -> KeyPair {
        KeyPair::generate(self)
    }
}

/// 32 secret bytes: a root key, a chain key, the seed of one message's keys.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Secret([u8; 32]);

impl Secret {
    pub(super) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A chain at some index: the keys of this message and of all later ones follow from it, of earlier ones none.
#[derive(Clone, Debug)]
pub(super) struct ChainKey {
    pub(super) index: u32,
    pub(super) key: Secret,
}

impl ChainKey {
    pub(super) const fn first(key: Secret) -> Self {
        Self { index: 0, key }
    }

    /// The seed of this index's message keys, and the chain moved on by one. `None` at the end of the numbers.
    pub(super) fn step(&self) -> Option<(Secret, Self)> {
        let index = self.index.checked_add(1)?;
        let hmac = HmacKey::new(self.key.as_bytes());
        let seed = Secret(hmac.mac(&[&[1]]));
        Some((
            seed,
            Self {
                index,
                key: Secret(hmac.mac(&[&[2]])),
            },
        ))
    }

    /// The chain at `index`, forgetting the keys in between. `None` if that is behind.
    pub(super) fn skip_to(&self, index: u32) -> Option<Self> {
        let mut chain = self.clone();
        if index < chain.index {
            return None;
        }
        while chain.index < index {
            let key = Secret(HmacKey::new(chain.key.as_bytes()).mac(&[&[2]]));
            chain = Self {
                index: chain.index + 1,
                key,
            };
        }
        Some(chain)
    }
}

/// What encrypts and authenticates one message.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct MessageKeys {
    pub(super) cipher: [u8; 32],
    pub(super) mac: [u8; 32],
    pub(super) iv: [u8; 16],
}

impl MessageKeys {
    pub(super) fn derive(seed: &Secret) -> Self {
        let bytes = hkdf_sha256::<80>(&[], seed.as_bytes(), b"WhisperMessageKeys");
        let mut keys = Self {
            cipher: [0; 32],
            mac: [0; 32],
            iv: [0; 16],
        };
        keys.cipher.copy_from_slice(&bytes[..32]);
        keys.mac.copy_from_slice(&bytes[32..64]);
        keys.iv.copy_from_slice(&bytes[64..]);
        keys
    }
}

impl fmt::Debug for MessageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageKeys(..)")
    }
}

/// The root step: a new root key and the start of a new chain, from an agreement of ratchet keys.
pub(super) fn root_step(
    root: &Secret,
    ours: &PrivateKey,
    theirs: &PublicKey,
) -> Result<(Secret, ChainKey), KeyError> {
    Ok(root_step_agreed(root, &ours.agree(theirs)?))
}

/// [`root_step`] when the agreement has been made.
pub(super) fn root_step_agreed(root: &Secret, agreed: &SharedSecret) -> (Secret, ChainKey) {
    root_and_chain(&hkdf_sha256(
        root.as_bytes(),
        agreed.as_bytes(),
        b"WhisperRatchet",
    ))
}

/// Halves the output of a derivation into a root key and a chain's start.
pub(super) fn root_and_chain(bytes: &[u8; 64]) -> (Secret, ChainKey) {
    let (mut root, mut chain) = (Secret([0; 32]), Secret([0; 32]));
    root.0.copy_from_slice(&bytes[..32]);
    chain.0.copy_from_slice(&bytes[32..]);
    (root, ChainKey::first(chain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{array, hex, key_pair};
    use serde_json::Value;

    #[test]
    fn chain_step_and_message_keys_equal_the_vector() {
        let misc: Value =
            serde_json::from_str(include_str!("../../tests/vectors/misc.json")).unwrap();
        let case = &misc["chain_key_step"];
        let chain = ChainKey::first(Secret(array(&case["chain_key"])));
        let (seed, next) = chain.step().unwrap();
        assert_eq!(seed.0, array(&case["message_seed"]));
        assert_eq!(
            (next.key.0, next.index),
            (array(&case["next_chain_key"]), 1)
        );
        let keys = MessageKeys::derive(&seed);
        let all: [u8; 80] = array(&case["message_keys_80"]);
        assert_eq!([&keys.cipher[..], &keys.mac, &keys.iv].concat(), all);
    }

    #[test]
    fn the_first_root_step_equals_the_vector() {
        let file: Value = serde_json::from_str(include_str!(
            "../../tests/vectors/signal-session-with-otk.json"
        ))
        .unwrap();
        let step = &file["alice_first_root_step"];
        let ours = key_pair(&file["alice"]["first_ratchet_key"]);
        let theirs = key_pair(&file["bob"]["signed_prekey"]["key"]).public;
        let (root, chain) = root_step(
            &Secret(array(&file["x3dh"]["root_key_0"])),
            &ours.private,
            &theirs,
        )
        .unwrap();
        assert_eq!(root.0, array(&step["root_key_1"]));
        assert_eq!(chain.key.0, array(&step["sending_chain_key_index0"]));
    }

    #[test]
    fn skipping_is_stepping() {
        let start = ChainKey {
            index: 3,
            key: Secret([7; 32]),
        };
        let stepped = (0..5).fold(start.clone(), |chain, _| chain.step().unwrap().1);
        let skipped = start.skip_to(8).unwrap();
        assert_eq!((skipped.index, skipped.key.0), (8, stepped.key.0));
        assert_eq!(start.skip_to(3).unwrap().key.0, start.key.0);
        assert!(start.skip_to(2).is_none());
    }

    #[test]
    fn a_chain_ends_instead_of_starting_over() {
        assert!(
            ChainKey {
                index: u32::MAX,
                key: Secret([7; 32])
            }
            .step()
            .is_none()
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let chain = ChainKey::first(Secret(hex(&"ab".repeat(32)).try_into().unwrap()));
        assert_eq!(
            format!("{chain:?}"),
            "ChainKey { index: 0, key: Secret(..) }"
        );
    }
}
