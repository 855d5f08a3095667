//! The form of an encrypted record.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | `e5`: an encrypted record (records in the clear begin with their version, which is 1) |
//! | 1 | 1 | 1: this form |
//! | 2 | 4 | number of the data key |
//! | 6 | 24 | nonce |
//! | 30 | n + 16 | the record and its tag |
//!
//! Bound to it: `Baton row`, a zero byte, offsets 0 to 5, length (1 byte) and text of the business, the account's number
//! (8 bytes), and [the bytes of the key](crate::state::Key::write_bytes). Numbers are high byte first.

use super::ring::DataKey;
use crate::{
    crypto::XChaCha,
    state::{AccountId, Key, Record, codec},
};

/// First byte of an encrypted record. Far from the versions that records in the clear begin with.
const MARKER: u8 = 0xe5;
/// This form.
const FORMAT: u8 = 1;
const HEADER: usize = 6;
const NONCE_END: usize = HEADER + XChaCha::NONCE;

/// Bytes that encryption adds to a record.
pub(super) const OVERHEAD: usize = NONCE_END + XChaCha::TAG;

const _: () = assert!(Record::MAX_BYTES + OVERHEAD <= Record::MAX_STORED_BYTES);

/// What a stored record is, as far as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// A record in the clear.
    Plain,
    /// Encrypted under the data key of this number.
    Sealed(u32),
    /// Encrypted in a form of a later release.
    Foreign,
    /// Neither.
    Damaged,
}

pub(super) fn form(stored: &Record) -> Form {
    match stored.0.as_ref() {
        [MARKER, FORMAT, a, b, c, d, ..] => Form::Sealed(u32::from_be_bytes([*a, *b, *c, *d])),
        // Three bits of the first byte lie between this and a sealed record: a flipped one makes none of the other.
        [codec::VERSION, ..] => Form::Plain,
        [MARKER, ..] => Form::Foreign,
        _ => Form::Damaged,
    }
}

/// Encrypts `record` for its place.
pub(super) fn seal(
    account: &AccountId,
    key: &Key,
    record: &Record,
    (number, with): (u32, &DataKey),
    nonce: &[u8; XChaCha::NONCE],
) -> Record {
    let mut out = Vec::with_capacity(OVERHEAD + record.0.len());
    out.extend_from_slice(&[MARKER, FORMAT]);
    out.extend_from_slice(&number.to_be_bytes());
    let context = context(account, key, &out);
    out.extend_from_slice(nonce);
    out.extend_from_slice(&record.0);
    with.cipher.seal_from(NONCE_END, nonce, &context, &mut out);
    Record(out.into())
}

/// The record that was sealed for this place; `None` if it was not, or was changed since.
pub(super) fn open(
    account: &AccountId,
    key: &Key,
    stored: &Record,
    with: &DataKey,
) -> Option<Record> {
    let (header, rest) = stored.0.split_at_checked(HEADER)?;
    let (nonce, sealed) = rest.split_first_chunk()?;
    let record = with
        .cipher
        .open(nonce, &context(account, key, header), sealed)
        .ok()?;
    Some(Record(record.into()))
}

fn context(account: &AccountId, key: &Key, header: &[u8]) -> Vec<u8> {
    let name = account.business.as_str().as_bytes();
    let mut context = Vec::with_capacity(192);
    context.extend_from_slice(b"Baton row\0");
    context.extend_from_slice(header);
    // At most 64, by the rules of names.
    context.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    context.extend_from_slice(name);
    context.extend_from_slice(&account.device.to_be_bytes());
    key.write_bytes(&mut context);
    context
}
