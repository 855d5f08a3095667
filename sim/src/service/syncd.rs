//! The cryptography of settings as the phone checks it: chapter 08.2 to 08.6, each rule in its plainest form.
//!
//! The engine has its own implementation, which is fast. This one shares no line with it, so that a mistake there is not
//! believed here. It holds whole collections in maps and computes each hash lane by lane.

use super::ciphers::{cbc_open, cbc_seal, hkdf, hmac256, hmac512};
use baton_core::proto::sync::{SyncActionData, SyncdMutation, SyncdPatch, SyncdRecord};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// What a 32-byte key of the phone becomes.
#[derive(Clone)]
pub(super) struct Keys {
    index: [u8; 32],
    value_encryption: [u8; 32],
    value_mac: [u8; 32],
    snapshot_mac: [u8; 32],
    patch_mac: [u8; 32],
}

/// Sixty-four numbers that wrap.
pub(super) type Hash = [u16; 64];

/// A collection: where it stands, and the MAC of each value by the MAC of its name.
#[derive(Clone)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) hash: Hash,
    pub(super) macs: BTreeMap<[u8; 32], [u8; 32]>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: 0,
            hash: [0; 64],
            macs: BTreeMap::new(),
        }
    }
}

/// One mutation in clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clear {
    pub(super) removed: bool,
    pub(super) index: Vec<u8>,
    /// The serialized `SyncActionData`.
    pub(super) data: Vec<u8>,
    /// It removes something that was not there.
    pub(super) missing: bool,
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

impl Keys {
    pub(super) fn expand(data: &[u8; 32]) -> Self {
        let okm: [u8; 160] = hkdf(data, b"WhatsApp Mutation Keys");
        Self {
            index: part(&okm, 0),
            value_encryption: part(&okm, 32),
            value_mac: part(&okm, 64),
            snapshot_mac: part(&okm, 96),
            patch_mac: part(&okm, 128),
        }
    }

    pub(super) fn index_mac(&self, index: &[u8]) -> [u8; 32] {
        hmac256(&self.index, &[index])
    }

    /// `operation` is 1 for SET, 2 for REMOVE; `content` is the initialisation vector and the ciphertext.
    fn value_mac(&self, operation: u8, key_id: &[u8], content: &[u8]) -> [u8; 32] {
        let length = (key_id.len() as u64 + 1).to_be_bytes();
        hmac512(&self.value_mac, &[&[operation], key_id, content, &length])
    }

    pub(super) fn snapshot_mac(&self, hash: &Hash, version: u64, collection: &str) -> [u8; 32] {
        let name = collection.as_bytes();
        hmac256(
            &self.snapshot_mac,
            &[&to_bytes(hash), &version.to_be_bytes(), name],
        )
    }

    pub(super) fn patch_mac(
        &self,
        snapshot_mac: &[u8],
        value_macs: &[[u8; 32]],
        version: u64,
        collection: &str,
    ) -> [u8; 32] {
        let macs = value_macs.concat();
        let version = version.to_be_bytes();
        hmac256(
            &self.patch_mac,
            &[snapshot_mac, &macs, &version, collection.as_bytes()],
        )
    }

    /// A mutation as it goes into a patch.
    pub(super) fn seal(
        &self,
        key_id: &[u8],
        removed: bool,
        data: &SyncActionData,
        iv: [u8; 16],
    ) -> SyncdMutation {
        use baton_core::proto::sync::{KeyId, SyncdIndex, SyncdValue};
        let plain = data.encode_to_vec();
        let sealed = cbc_seal(&self.value_encryption, &iv, &plain);
        let mut content = iv.to_vec();
        content.extend(sealed);
        let mac = self.value_mac(if removed { 2 } else { 1 }, key_id, &content);
        content.extend(mac);
        let index = data.index.as_deref().unwrap_or_default();
        SyncdMutation {
            operation: Some(i32::from(removed)),
            record: Some(SyncdRecord {
                index: Some(SyncdIndex {
                    blob: Some(self.index_mac(index).to_vec().into()),
                }),
                value: Some(SyncdValue {
                    blob: Some(content.into()),
                }),
                key_id: Some(KeyId {
                    id: Some(key_id.to_vec().into()),
                }),
            }),
        }
    }
}

/// As the wire has it: each number in two bytes, the low one first.
pub(super) fn to_bytes(hash: &Hash) -> [u8; 128] {
    std::array::from_fn(|n| hash[n / 2].to_le_bytes()[n % 2])
}

fn expand(value_mac: &[u8; 32]) -> Hash {
    let okm: [u8; 128] = hkdf(value_mac, b"WhatsApp Patch Integrity");
    std::array::from_fn(|n| u16::from_le_bytes([okm[2 * n], okm[2 * n + 1]]))
}

pub(super) fn add(hash: &mut Hash, value_mac: &[u8; 32]) {
    let item = expand(value_mac);
    (0..64).for_each(|n| hash[n] = hash[n].wrapping_add(item[n]));
}

pub(super) fn subtract(hash: &mut Hash, value_mac: &[u8; 32]) {
    let item = expand(value_mac);
    (0..64).for_each(|n| hash[n] = hash[n].wrapping_sub(item[n]));
}

/// Name MAC, value MAC and key of a record; none if something is missing or too short.
pub(super) fn parts(record: &SyncdRecord) -> Option<([u8; 32], [u8; 32], Vec<u8>)> {
    let index = record.index.as_ref()?.blob.as_deref()?.try_into().ok()?;
    let value = record.value.as_ref()?.blob.as_deref()?;
    // Vector, one block at least, MAC.
    let value = value
        .last_chunk::<32>()
        .filter(|_| value.len() >= 16 + 16 + 32)?;
    Some((index, *value, record.key_id.as_ref()?.id.as_ref()?.to_vec()))
}

/// Takes `state` over a patch whose mutations are in it, checking everything there is to check. Says what is wrong, and
/// then nothing is changed.
pub(super) fn apply(
    collection: &str,
    state: &mut State,
    patch: &SyncdPatch,
    version: u64,
    keys: impl Fn(&[u8]) -> Option<Keys>,
) -> Result<Vec<Clear>, String> {
    if version != state.version + 1 {
        return Err(format!("version {version} after {}", state.version));
    }
    if patch.mutations.is_empty() {
        return Err("no mutations".into());
    }
    let key = patch.key_id.as_ref().and_then(|id| keys(id.id.as_deref()?));
    let key = key.ok_or("the patch names a key that nobody was given")?;
    let mut next = state.clone();
    next.version = version;
    let (mut clear, mut value_macs, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for mutation in &patch.mutations {
        let record = mutation
            .record
            .as_ref()
            .ok_or("a mutation without a record")?;
        let (index_mac, value_mac, _) = parts(record).ok_or("an incomplete record")?;
        if !seen.insert(index_mac) {
            return Err("one setting twice".into());
        }
        let removed = match mutation.operation {
            Some(0) | None => false,
            Some(1) => true,
            Some(other) => return Err(format!("operation {other}")),
        };
        let mut opened = open(record, removed, &keys)?;
        let before = state.macs.get(&index_mac);
        if let Some(before) = before {
            subtract(&mut next.hash, before);
        }
        if removed {
            next.macs.remove(&index_mac);
            opened.missing = before.is_none();
        } else {
            add(&mut next.hash, &value_mac);
            next.macs.insert(index_mac, value_mac);
        }
        value_macs.push(value_mac);
        clear.push(opened);
    }
    let snapshot_mac = key.snapshot_mac(&next.hash, version, collection);
    if patch.snapshot_mac.as_deref() != Some(&snapshot_mac) {
        return Err("the MAC of the collection is wrong".into());
    }
    let patch_mac = key.patch_mac(&snapshot_mac, &value_macs, version, collection);
    if patch.patch_mac.as_deref() != Some(&patch_mac) {
        return Err("the MAC of the patch is wrong".into());
    }
    *state = next;
    Ok(clear)
}

/// Checks both MACs of a record and decrypts it.
pub(super) fn open(
    record: &SyncdRecord,
    removed: bool,
    keys: &impl Fn(&[u8]) -> Option<Keys>,
) -> Result<Clear, String> {
    let (index_mac, value_mac, key_id) = parts(record).ok_or("an incomplete record")?;
    let key = keys(&key_id).ok_or("a record under a key that nobody was given")?;
    let blob = record
        .value
        .as_ref()
        .and_then(|value| value.blob.as_deref());
    let blob = blob.unwrap_or_default();
    let content = &blob[..blob.len() - 32];
    if key.value_mac(if removed { 2 } else { 1 }, &key_id, content) != value_mac {
        return Err("the MAC of a value is wrong".into());
    }
    let (iv, sealed) = (part::<16>(content, 0), &content[16..]);
    let data = cbc_open(&key.value_encryption, &iv, sealed).ok_or("a value does not decrypt")?;
    let decoded = SyncActionData::decode(&*data).map_err(|_| "a value is no setting")?;
    let index = decoded.index.unwrap_or_default();
    if key.index_mac(&index) != index_mac {
        return Err("the MAC of a name is wrong".into());
    }
    Ok(Clear {
        removed,
        index,
        data,
        missing: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::proto::sync::SyncdSnapshot;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/appstate.json")).expect("JSON")
    }

    fn bytes(value: &Value) -> Vec<u8> {
        let text = value.as_str().expect("a text");
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(byte).collect()
    }

    fn ring(vectors: &Value) -> BTreeMap<Vec<u8>, Keys> {
        let keys = vectors["keys"].as_array().expect("a list").iter();
        keys.map(|key| {
            let data: [u8; 32] = bytes(&key["key_data"]).try_into().expect("32 bytes");
            (bytes(&key["key_id"]), Keys::expand(&data))
        })
        .collect()
    }

    #[test]
    fn keys_expand_as_elsewhere() {
        let vectors = vectors();
        let ring = ring(&vectors);
        for case in vectors["keys"].as_array().expect("a list") {
            let keys = &ring[&bytes(&case["key_id"])];
            let parts = [
                ("index_key", keys.index),
                ("value_encryption_key", keys.value_encryption),
                ("value_mac_key", keys.value_mac),
                ("snapshot_mac_key", keys.snapshot_mac),
                ("patch_mac_key", keys.patch_mac),
            ];
            for (name, key) in parts {
                assert_eq!(key.to_vec(), bytes(&case[name]), "{name}");
            }
        }
    }

    #[test]
    fn patches_and_snapshot_of_another_implementation() {
        let vectors = vectors();
        let ring = ring(&vectors);
        let keys = |id: &[u8]| ring.get(id).cloned();
        let name = vectors["collection"].as_str().expect("a name");
        let mut state = State::default();
        for case in vectors["patches"].as_array().expect("a list") {
            assert_eq!(
                to_bytes(&state.hash).to_vec(),
                bytes(&case["lthash_before"])
            );
            let patch =
                SyncdPatch::decode(&*bytes(&case["syncd_patch_as_delivered"])).expect("a patch");
            let version = case["version"].as_u64().expect("a number");
            let clear = apply(name, &mut state, &patch, version, keys).expect("a good patch");
            assert_eq!(to_bytes(&state.hash).to_vec(), bytes(&case["lthash_after"]));
            for (clear, case) in clear
                .iter()
                .zip(case["mutations"].as_array().expect("a list"))
            {
                assert_eq!(clear.data, bytes(&case["sync_action_data"]));
                assert_eq!(clear.removed, case["operation"] == "REMOVE");
                // And made here, it is the same bytes.
                let keys = &ring[&bytes(&case["key_id"])];
                let data = SyncActionData::decode(&*clear.data).expect("a setting");
                let iv = bytes(&case["iv"]).try_into().expect("16 bytes");
                let sealed = keys.seal(&bytes(&case["key_id"]), clear.removed, &data, iv);
                let record = sealed.record.expect("a record");
                assert_eq!(
                    record.value.expect("a value").blob,
                    Some(bytes(&case["value_blob"]).into())
                );
                assert_eq!(
                    record.index.expect("an index").blob,
                    Some(bytes(&case["index_mac"]).into())
                );
            }
        }
        let snapshot = SyncdSnapshot::decode(&*bytes(&vectors["snapshot"]["syncd_snapshot"]))
            .expect("a snapshot");
        let mut hash = [0; 64];
        for record in &snapshot.records {
            open(record, false, &keys).expect("a good record");
            add(&mut hash, &parts(record).expect("complete").1);
        }
        let key = &ring[&bytes(&vectors["snapshot"]["key_id"])];
        assert_eq!(
            key.snapshot_mac(&hash, 3, name).to_vec(),
            bytes(&vectors["snapshot"]["mac"])
        );
    }

    #[test]
    fn whatever_is_changed_is_noticed_and_changes_nothing() {
        let vectors = vectors();
        let ring = ring(&vectors);
        let keys = |id: &[u8]| ring.get(id).cloned();
        let first = &vectors["patches"][0]["syncd_patch_as_delivered"];
        let good = SyncdPatch::decode(&*bytes(first)).expect("a patch");
        let mut state = State::default();
        let mut refused = |change: &dyn Fn(&mut SyncdPatch), version, why: &str| {
            let mut patch = good.clone();
            change(&mut patch);
            let error = apply("regular_low", &mut state, &patch, version, keys).expect_err(why);
            assert!(error.contains(why), "{error}");
            assert_eq!((state.version, state.hash), (0, [0; 64]));
        };
        refused(&|_| {}, 2, "version 2 after 0");
        refused(
            &|p| p.patch_mac.as_mut().expect("one")[0] ^= 1,
            1,
            "MAC of the patch",
        );
        refused(
            &|p| p.snapshot_mac.as_mut().expect("one")[0] ^= 1,
            1,
            "MAC of the collection",
        );
        refused(&|p| p.mutations.push(p.mutations[0].clone()), 1, "twice");
        refused(&|p| p.mutations[0].operation = Some(1), 1, "MAC of a value");
        let index = |p: &mut SyncdPatch, n: u8| {
            let record = p.mutations[0].record.as_mut().expect("a record");
            record.index.as_mut().expect("one").blob = Some(vec![n; 32].into());
        };
        refused(&|p| index(p, 9), 1, "MAC of a name");
    }
}
