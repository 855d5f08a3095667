//! LTHash: the sum of a collection (fact sheet 08.5).
//!
//! A collection's hash is a vector of 64 numbers of 16 bits. Each value MAC is expanded to such a vector and added lane
//! by lane, with wrap-around; taking a value out subtracts it. Addition commutes, so the hash of a collection does not
//! depend on the order of its history, and a change costs as much as the change is large.

use crate::crypto::{HmacKey, hkdf_sha256};
use std::fmt;
use zeroize::Zeroizing;

/// What a value MAC is expanded for.
const INFO: &[u8] = b"WhatsApp Patch Integrity";

const LANES: usize = 64;

/// The hash of a collection. The default is that of an empty one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LtHash([u16; LANES]);

impl LtHash {
    /// Length of the serialized form.
    pub const BYTES: usize = 2 * LANES;

    /// Reads 128 bytes, little-endian lanes whatever the machine.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut lanes = [0; LANES];
        for (lane, pair) in lanes.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *lane = u16::from_le_bytes(*pair);
        }
        Self(lanes)
    }

    /// The form that MACs go over and that rows keep.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (pair, lane) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = lane.to_le_bytes();
        }
        bytes
    }

    /// Takes a value in.
    pub fn add(&mut self, value_mac: &[u8; 32]) {
        let item = Self::expand(value_mac);
        for (lane, other) in self.0.iter_mut().zip(item.0) {
            *lane = lane.wrapping_add(other);
        }
    }

    /// Takes a value out.
    pub fn remove(&mut self, value_mac: &[u8; 32]) {
        let item = Self::expand(value_mac);
        for (lane, other) in self.0.iter_mut().zip(item.0) {
            *lane = lane.wrapping_sub(other);
        }
    }

    /// Takes values out, then others in. The order does not matter to the result; it is the one that every client uses,
    /// and so the one in which intermediate values can be compared.
    pub fn update<'a>(
        &mut self,
        removed: impl IntoIterator<Item = &'a [u8; 32]>,
        added: impl IntoIterator<Item = &'a [u8; 32]>,
    ) {
        removed.into_iter().for_each(|mac| self.remove(mac));
        added.into_iter().for_each(|mac| self.add(mac));
    }

    fn expand(value_mac: &[u8; 32]) -> Self {
        Self::from_bytes(&hkdf_sha256::<{ Self::BYTES }>(&[], value_mac, INFO))
    }

    /// The MAC of a collection in this state at this version (fact sheet 08.6).
    pub(super) fn snapshot_mac(&self, key: &HmacKey, version: u64, name: &str) -> [u8; 32] {
        let bytes = Zeroizing::new(self.to_bytes());
        key.mac(&[bytes.as_slice(), &version.to_be_bytes(), name.as_bytes()])
    }
}

impl Default for LtHash {
    fn default() -> Self {
        Self([0; LANES])
    }
}

impl fmt::Debug for LtHash {
    /// Enough to tell two apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, ..] = self.0;
        write!(f, "LtHash({a:04x}{b:04x}…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{array, bytes};
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn sums_of_the_vector() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/vectors/appstate.json")).unwrap();
        let case = &vectors["lthash_raw"];
        let items: Vec<[u8; 32]> = case["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(array)
            .collect();
        let is = |hash: &LtHash, name: &str| {
            assert_eq!(hash.to_bytes().as_slice(), bytes(&case[name]), "{name}")
        };
        let mut hash = LtHash::default();
        hash.add(&items[0]);
        is(&hash, "expanded_item_0");
        is(&hash, "add_0");
        hash.update([], &items[1..3]);
        is(&hash, "then_add_1_2");
        hash.remove(&items[1]);
        is(&hash, "then_remove_1");
        let mut hash = LtHash::default();
        hash.remove(&items[0]);
        is(&hash, "zero_remove_0_wraps");
    }

    proptest! {
        /// Any history that leads to the same values leads to the same hash.
        #[test]
        fn order_does_not_matter(
            items in proptest::collection::vec((any::<[u8; 32]>(), any::<bool>()), 0..12),
            swaps in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..12),
        ) {
            let run = |items: &[([u8; 32], bool)]| {
                let mut hash = LtHash::default();
                for (item, add) in items {
                    if *add { hash.add(item) } else { hash.remove(item) }
                }
                hash
            };
            let mut shuffled = items.clone();
            for (a, b) in swaps {
                if !shuffled.is_empty() {
                    let (a, b) = (a.index(shuffled.len()), b.index(shuffled.len()));
                    shuffled.swap(a, b);
                }
            }
            let hash = run(&items);
            prop_assert_eq!(run(&shuffled), hash);
            // What is undone leaves nothing.
            let mut undone = hash;
            for (item, add) in &items {
                if *add { undone.remove(item) } else { undone.add(item) }
            }
            prop_assert_eq!(undone, LtHash::default());
            prop_assert_eq!(LtHash::from_bytes(&hash.to_bytes()), hash);
        }
    }
}
