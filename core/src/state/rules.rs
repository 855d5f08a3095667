//! What every store refuses, whatever the database: shapes of names, keys and records.
//!
//! The SQL stores repeat these limits as CHECK constraints; here they become a sentence before anything is written.

use super::{AccountId, Batch, Epoch, HostInfo, Key, MessageId, Placement, Record, Table};
use crate::jid::Jid;

/// Pre-key ids are 24-bit on the wire.
pub const MAX_PRE_KEY_ID: u32 = (1 << 24) - 1;
/// Bytes of a message id.
pub const MAX_MESSAGE_ID: usize = crate::limits::MESSAGE_ID;
/// Bytes of the id of an app-state sync key.
pub const MAX_SYNC_KEY_ID: usize = crate::limits::SYNC_KEY_ID;
/// Bytes of any other text in a key: user parts, collection names.
pub const MAX_TEXT: usize = 255;
/// SQL integers are signed: no number in a key or a fence is above this.
pub const MAX_NUMBER: u64 = i64::MAX as u64;

/// Why a call is refused before it reaches the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An account is called something else.
    #[error("an account name has 1 to 64 characters of A-Z a-z 0-9 _ - .")]
    AccountName,
    /// Epochs are granted from 1 on.
    #[error("epoch 0 was never granted")]
    NoEpoch,
    /// Sequence numbers start at 1 and fit a signed 64-bit number.
    #[error("a sequence number is 1 to 2^63 - 1")]
    Seq,
    /// The key does not fit the columns of its table.
    #[error("a key of table {0} is outside its limits")]
    Key(&'static str),
    /// The record is larger than [`Record::MAX_STORED_BYTES`], or [`Record::MAX_BYTES`] where the engine writes.
    #[error("a record of table {0} is larger than 16 MiB")]
    Record(&'static str),
    /// Rows of this table do not lose their value with age.
    #[error("rows of table {0} are not deleted by age")]
    NotAged(&'static str),
    /// A host is called something else.
    #[error("a host name has 1 to 64 characters of A-Z a-z 0-9 _ - .")]
    HostName,
    /// Address, zone or version of a host is too long.
    #[error("address, zone and version of a host have at most 255 bytes")]
    HostInfo,
    /// Keys of tenants have numbers from 1 on.
    #[error("a key of a tenant has a number from 1 to 2^31 - 1 and 1 to 4096 bytes")]
    Vault,
    /// The start of a scan is a key of another table.
    #[error("a scan of table {0} starts behind a key of another table")]
    Cursor(&'static str),
}

/// Names are 1 to 64 characters of `A-Z a-z 0-9 _ - .`.
pub fn account_name(name: &str) -> Result<(), Refusal> {
    if is_name(name) {
        Ok(())
    } else {
        Err(Refusal::AccountName)
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// What a host may say about itself.
pub fn host(info: &HostInfo) -> Result<(), Refusal> {
    if !is_name(&info.name) {
        return Err(Refusal::HostName);
    }
    let texts = [&info.address, &info.zone, &info.version];
    if texts
        .iter()
        .all(|text| text.len() <= MAX_TEXT && !text.contains('\0'))
    {
        Ok(())
    } else {
        Err(Refusal::HostInfo)
    }
}

/// A pin names a host.
pub fn placement(placement: &Placement) -> Result<(), Refusal> {
    match &placement.pin {
        Some(name) if !is_name(name) => Err(Refusal::HostName),
        _ => Ok(()),
    }
}

/// A wrapped key of a tenant.
pub fn vault(number: u32, key: Option<&Record>) -> Result<(), Refusal> {
    let fits = (1..=i32::MAX.cast_unsigned()).contains(&number)
        && key.is_none_or(|key| (1..=4096).contains(&key.0.len()));
    if fits { Ok(()) } else { Err(Refusal::Vault) }
}

/// Everything about a batch that can be judged without knowing its account.
pub fn batch(batch: &Batch) -> Result<(), Refusal> {
    if batch.term.epoch == Epoch(0) {
        return Err(Refusal::NoEpoch);
    }
    if !(1..=MAX_NUMBER).contains(&batch.seq.0) {
        return Err(Refusal::Seq);
    }
    for (key, record) in &batch.rows {
        self::key(key)?;
        if let Some(record) = record {
            self::record(key.table(), record)?;
        }
    }
    Ok(())
}

/// A key that its table has room for.
pub fn key(key: &Key) -> Result<(), Refusal> {
    let fits = match key {
        Key::Device | Key::Counters | Key::Seen(_) => true,
        Key::Identity(jid)
        | Key::Session(jid)
        | Key::Contact(jid)
        | Key::RedactedPhone(jid)
        | Key::ChatSettings(jid)
        | Key::PrivacyToken(jid)
        | Key::DeviceList(jid) => address(jid),
        Key::PreKey(id) => (1..=MAX_PRE_KEY_ID).contains(id),
        Key::SenderKey { group, sender } => address(group) && address(sender),
        Key::AppStateSyncKey(id) => (1..=MAX_SYNC_KEY_ID).contains(&id.len()),
        Key::AppStateVersion(name) | Key::LidMap(name) => text(name),
        Key::AppStateMutationMac { collection, .. } => text(collection),
        Key::MessageSecret { chat, sender, id } => {
            address(chat) && address(sender) && message_id(id)
        }
        Key::Inbox(seq) => (1..=MAX_NUMBER).contains(&seq.0),
        Key::Outbox(id) | Key::Sent(id) | Key::Mailbox(id) => message_id(id),
    };
    if fits {
        Ok(())
    } else {
        Err(Refusal::Key(key.table().name()))
    }
}

/// A record of a size that every store takes.
pub fn record(table: Table, record: &Record) -> Result<(), Refusal> {
    fits(table, record, Record::MAX_STORED_BYTES)
}

/// A record of a size that the engine may write: what an encrypting store adds still fits.
pub fn content(table: Table, record: &Record) -> Result<(), Refusal> {
    fits(table, record, Record::MAX_BYTES)
}

fn fits(table: Table, record: &Record, limit: usize) -> Result<(), Refusal> {
    if record.0.len() <= limit {
        Ok(())
    } else {
        Err(Refusal::Record(table.name()))
    }
}

/// Tables whose rows lose their value with age: the only ones [`Store::retain`](super::Store::retain) touches.
pub fn aged(table: Table) -> Result<(), Refusal> {
    match table {
        Table::Seen | Table::Sent | Table::MessageSecret => Ok(()),
        _ => Err(Refusal::NotAged(table.name())),
    }
}

/// A scan starts behind a key of the table it reads.
pub fn cursor(table: Table, after: Option<&Key>) -> Result<(), Refusal> {
    match after {
        Some(key) if key.table() != table => Err(Refusal::Cursor(table.name())),
        _ => Ok(()),
    }
}

/// Numbers of accounts start at 1 and fit a signed 64-bit number: no other account can exist.
#[must_use]
pub fn possible_account(account: &AccountId) -> bool {
    (1..=MAX_NUMBER).contains(&account.device)
}

/// NUL is the one character that not every database can store in text.
fn text(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && !text.contains('\0')
}

fn message_id(id: &MessageId) -> bool {
    (1..=MAX_MESSAGE_ID).contains(&id.len()) && !id.contains('\0')
}

/// The user part may be empty: `@s.whatsapp.net` is an address.
fn address(jid: &Jid) -> bool {
    jid.user().len() <= MAX_TEXT && !jid.user().contains('\0')
}

impl From<Refusal> for super::StoreError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use bytes::Bytes;

    #[test]
    fn a_row_ends_at_its_limit() {
        let zeros = Bytes::from(vec![0; limits::ROW_STORED + 1]);
        let of = |length: usize| Record(zeros.slice(..length));
        type Judge = fn(Table, &Record) -> Result<(), Refusal>;
        let judges: [(usize, Judge); 2] = [(limits::ROW_STORED, record), (limits::ROW, content)];
        for (limit, judge) in judges {
            for length in [limit - 1, limit] {
                assert_eq!(judge(Table::Session, &of(length)), Ok(()), "{length}");
            }
            assert_eq!(
                judge(Table::Session, &of(limit + 1)),
                Err(Refusal::Record(Table::Session.name()))
            );
        }
    }

    #[test]
    fn names_of_rows_end_at_their_limits() {
        let id = |length: usize| MessageId::from("x".repeat(length));
        let kinds = [Key::Outbox, Key::Sent, Key::Mailbox];
        for of in kinds {
            for length in [1, limits::MESSAGE_ID - 1, limits::MESSAGE_ID] {
                assert_eq!(key(&of(id(length))), Ok(()), "{length}");
            }
            for length in [0, limits::MESSAGE_ID + 1] {
                assert!(key(&of(id(length))).is_err(), "{length}");
            }
        }
        let of = |length: usize| Key::AppStateSyncKey(vec![1; length].into());
        for length in [1, limits::SYNC_KEY_ID - 1, limits::SYNC_KEY_ID] {
            assert_eq!(key(&of(length)), Ok(()), "{length}");
        }
        for length in [0, limits::SYNC_KEY_ID + 1] {
            assert!(key(&of(length)).is_err(), "{length}");
        }
    }
}
