//! One mutation: a setting with its name, encrypted (fact sheet 08.4).

use super::keys::{KeyId, KeyRing, NoKey, SyncKey};
use crate::{
    crypto::{aes_cbc_decrypt, aes_cbc_encrypt_into, cbc_ciphertext_len, verify_mac},
    proto::sync::{
        self, SyncActionData, SyncActionValue, SyncdIndex, SyncdMutation, SyncdRecord, SyncdValue,
    },
};
use bytes::Bytes;
use prost::Message as _;
use std::fmt;

/// Longest name of a setting. A chat, a message and a participant have less than a tenth of it.
pub const MAX_INDEX_BYTES: usize = crate::limits::SETTING_INDEX;

/// Longest encrypted value. Settings have some hundred bytes; a broadcast list or a set of keywords can have more.
pub const MAX_VALUE_BYTES: usize = crate::limits::SETTING_VALUE;

const IV: usize = 16;
const MAC: usize = 32;
const BLOCK: usize = 16;

/// What a mutation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// The setting has this value from now on.
    Set,
    /// The setting is gone; the value is what it was.
    Remove,
}

impl Operation {
    /// As it stands in MACs.
    const fn byte(self) -> u8 {
        match self {
            Self::Set => 1,
            Self::Remove => 2,
        }
    }

    const fn wire(self) -> i32 {
        self.byte() as i32 - 1
    }

    pub(super) fn from_wire(wire: Option<i32>) -> Option<Self> {
        // Absent is the default value, 0.
        match wire.unwrap_or(0) {
            0 => Some(Self::Set),
            1 => Some(Self::Remove),
            _ => None,
        }
    }
}

/// A decrypted mutation whose MACs hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Mutation {
    /// What it does.
    pub operation: Operation,
    /// What the setting is filed under.
    pub index_mac: [u8; 32],
    /// Stands for the value in the hash.
    pub value_mac: [u8; 32],
    /// Name of the setting: a JSON array of strings, exactly these bytes.
    pub index: Bytes,
    /// The serialized `SyncActionData`, with whatever we do not know.
    pub data: Bytes,
}

/// Names of settings carry addresses.
impl fmt::Debug for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Mutation({:?}, {} bytes)",
            self.operation,
            self.data.len()
        )
    }
}

/// Why a mutation is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MutationError {
    /// Not of the form that mutations have.
    #[error("a mutation is malformed: {0}")]
    Malformed(&'static str),
    /// Ask the phone for this key.
    #[error("the key {0:?} is missing")]
    MissingKey(KeyId),
    /// The value was changed, or belongs to another key or operation.
    #[error("the MAC of a value is wrong")]
    ValueMac,
    /// The value's own name is not the one it is filed under.
    #[error("the MAC of an index is wrong")]
    IndexMac,
}

impl From<NoKey> for MutationError {
    fn from(error: NoKey) -> Self {
        match error {
            NoKey::Malformed => Self::Malformed("the id of its key"),
            NoKey::Missing(id) => Self::MissingKey(id),
        }
    }
}

/// A change of ours, on its way into a patch.
#[derive(Clone, PartialEq)]
pub struct Change {
    /// What it does.
    pub operation: Operation,
    /// Name of the setting: a compact JSON array of strings.
    pub index: Vec<u8>,
    /// Its value; for [`Operation::Remove`] that which is removed.
    pub value: SyncActionValue,
    /// Version of the action, by its kind (fact sheet 08.9).
    pub version: i32,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Change({:?}, {} bytes)",
            self.operation,
            self.index.len()
        )
    }
}

/// The parts of a record that hashing and MACs need, before anything is decrypted.
#[derive(Clone, Copy)]
pub(super) struct Sealed<'a> {
    pub(super) operation: Operation,
    pub(super) index_mac: [u8; 32],
    pub(super) value_mac: [u8; 32],
    key: Option<&'a sync::KeyId>,
    /// iv || ciphertext.
    content: &'a [u8],
}

impl<'a> Sealed<'a> {
    pub(super) fn of_mutation(mutation: &'a SyncdMutation) -> Result<Self, MutationError> {
        let operation = Operation::from_wire(mutation.operation)
            .ok_or(MutationError::Malformed("an unknown operation"))?;
        let record = mutation.record.as_ref();
        Self::of_record(
            operation,
            record.ok_or(MutationError::Malformed("no record"))?,
        )
    }

    pub(super) fn of_record(
        operation: Operation,
        record: &'a SyncdRecord,
    ) -> Result<Self, MutationError> {
        let index = record
            .index
            .as_ref()
            .and_then(|index| index.blob.as_deref());
        let index_mac = index
            .and_then(|index| index.try_into().ok())
            .ok_or(MutationError::Malformed("an index of other than 32 bytes"))?;
        let value = record
            .value
            .as_ref()
            .and_then(|value| value.blob.as_deref());
        let value = value.unwrap_or_default();
        let (content, value_mac) = value
            .split_last_chunk::<MAC>()
            .filter(|(content, _)| content.len() >= IV + BLOCK && content.len() % BLOCK == 0)
            .ok_or(MutationError::Malformed("a value of impossible length"))?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(MutationError::Malformed("a value that is too long"));
        }
        Ok(Self {
            operation,
            index_mac,
            value_mac: *value_mac,
            key: record.key_id.as_ref(),
            content,
        })
    }

    /// Checks the MACs and decrypts.
    pub(super) fn open(&self, ring: &KeyRing) -> Result<Mutation, MutationError> {
        let key = ring.named(self.key)?;
        let mac = value_mac(key, self.operation, self.content);
        if !verify_mac(&mac, &self.value_mac) {
            return Err(MutationError::ValueMac);
        }
        let (iv, ciphertext) = self
            .content
            .split_first_chunk::<IV>()
            .ok_or(MutationError::Malformed("a value without iv"))?;
        let data = aes_cbc_decrypt(&key.value, iv, ciphertext)
            .map_err(|_| MutationError::Malformed("a value whose padding is wrong"))?;
        let data = Bytes::from(data);
        let index = index_of(&data)?;
        if !verify_mac(&key.index_mac(&index), &self.index_mac) {
            return Err(MutationError::IndexMac);
        }
        Ok(Mutation {
            operation: self.operation,
            index_mac: self.index_mac,
            value_mac: self.value_mac,
            index,
            data,
        })
    }
}

/// The name inside a decrypted value. The rest is looked at by whoever wants to know what it means: a kind of value that
/// we do not know must not stop the collection.
pub(super) fn index_of(data: &Bytes) -> Result<Bytes, MutationError> {
    let decoded = SyncActionData::decode(data.clone())
        .map_err(|_| MutationError::Malformed("a value that does not decode"))?;
    let index = decoded.index.unwrap_or_default();
    if index.is_empty() || index.len() > MAX_INDEX_BYTES {
        return Err(MutationError::Malformed("a name of impossible length"));
    }
    Ok(index.into())
}

/// Encrypts a change under `key`.
pub(super) fn seal(key: &SyncKey, change: &Change, iv: [u8; IV]) -> (SyncdMutation, [u8; 32]) {
    let data = SyncActionData {
        index: Some(change.index.clone()),
        value: Some(change.value.clone()),
        padding: Some(Vec::new()),
        version: Some(change.version),
    }
    .encode_to_vec();
    let mut blob = Vec::with_capacity(IV + cbc_ciphertext_len(data.len()) + MAC);
    blob.extend_from_slice(&iv);
    aes_cbc_encrypt_into(&key.value, &iv, &data, &mut blob);
    let mac = value_mac(key, change.operation, &blob);
    blob.extend_from_slice(&mac);
    let record = SyncdRecord {
        index: Some(SyncdIndex {
            blob: Some(Bytes::copy_from_slice(&key.index_mac(&change.index))),
        }),
        value: Some(SyncdValue {
            blob: Some(blob.into()),
        }),
        key_id: Some(key_id(key)),
    };
    let mutation = SyncdMutation {
        operation: Some(change.operation.wire()),
        record: Some(record),
    };
    (mutation, mac)
}

pub(super) fn key_id(key: &SyncKey) -> sync::KeyId {
    sync::KeyId {
        id: Some(key.id.as_bytes().clone()),
    }
}

/// HMAC-SHA512, cut to 32 bytes, over the operation, the key's name, the encrypted value and how long the first two are.
fn value_mac(key: &SyncKey, operation: Operation, content: &[u8]) -> [u8; 32] {
    let id = key.id.as_bytes();
    let length = (id.len() as u64 + 1).to_be_bytes();
    let mac = key
        .value_mac
        .mac(&[&[operation.byte()], id, content, &length]);
    let mut cut = [0; MAC];
    cut.copy_from_slice(&mac[..MAC]);
    cut
}
