//! Tables and their columns: how a [`Key`] becomes the columns of a row and comes back.

use baton_core::{
    jid::{Jid, Server},
    state::{EventSeq, Key, MessageId, Table},
};
use bytes::Bytes;
use rusqlite::{Row, Statement};
use std::sync::LazyLock;

/// The statements of one table. Parameters 1 and 2 are always business and device.
pub(crate) struct Statements {
    /// The record under a key (from 3). Columns: record.
    pub(crate) get: String,
    /// Writes a row: record 3, time 4, key from 5.
    pub(crate) put: String,
    /// Deletes the row of a key (from 3).
    pub(crate) delete: String,
    /// All rows. Columns: record, key.
    pub(crate) scan: String,
    /// All rows from a key on, by its ordered columns (from 3). Columns: record, key.
    pub(crate) scan_from: String,
    /// Deletes at most limit 4 rows written before 3, oldest first.
    pub(crate) retain: String,
}

/// The statements of `table`, made once per process; a connection prepares those it uses and keeps them.
pub(crate) fn statements(table: Table) -> &'static Statements {
    static ALL: LazyLock<Vec<Statements>> =
        LazyLock::new(|| Table::ALL.iter().map(|&table| make(table)).collect());
    // `Table::ALL` lists the variants in the order of their discriminants, so this is the table's own entry.
    &ALL[table as usize]
}

/// The columns of a key, in the order of the primary key, and how many of them, from the left, are in the order of
/// [`Key`] as SQL sorts them. Behind the user part of a JID that order ends: servers sort by name here and by meaning
/// there.
fn columns(table: Table) -> (&'static [&'static str], usize) {
    const PEER: &[&str] = &["peer_user", "peer_server", "peer_device", "peer_integrator"];
    match table {
        Table::Device | Table::Counters => (&[], 0),
        Table::Identity
        | Table::Session
        | Table::Contact
        | Table::RedactedPhone
        | Table::PrivacyToken
        | Table::DeviceList => (PEER, 1),
        Table::PreKey => (&["pre_key_id"], 1),
        Table::SenderKey => (
            &[
                "group_user",
                "group_server",
                "group_device",
                "group_integrator",
                "sender_user",
                "sender_server",
                "sender_device",
                "sender_integrator",
            ],
            1,
        ),
        Table::AppStateSyncKey => (&["key_id"], 1),
        Table::AppStateVersion => (&["collection"], 1),
        Table::AppStateMutationMac => (&["collection", "index_mac"], 2),
        Table::ChatSettings => (
            &["chat_user", "chat_server", "chat_device", "chat_integrator"],
            1,
        ),
        Table::MessageSecret => (
            &[
                "chat_user",
                "chat_server",
                "chat_device",
                "chat_integrator",
                "sender_user",
                "sender_server",
                "sender_device",
                "sender_integrator",
                "message_id",
            ],
            1,
        ),
        Table::LidMap => (&["user_part"], 1),
        Table::Inbox => (&["seq"], 1),
        Table::Seen => (&["hash"], 1),
        Table::Outbox | Table::Sent | Table::Mailbox => (&["message_id"], 1),
    }
}

fn make(table: Table) -> Statements {
    let name = format!("baton_{}", table.name());
    let mine = "business_id = ?1 AND device_id = ?2";
    if table == Table::Device {
        // The account's own row exists before its record does, and outlives it.
        let get = format!("SELECT record FROM {name} WHERE {mine}");
        return Statements {
            put: format!(
                "UPDATE {name} SET record = ?3, written_at = ?4, jid = ?5, lid = ?6 WHERE {mine}"
            ),
            delete: format!(
                "UPDATE {name} SET record = NULL, written_at = NULL, jid = NULL, lid = NULL WHERE {mine}"
            ),
            scan: format!("{get} AND record IS NOT NULL"),
            scan_from: format!("{get} AND record IS NOT NULL"),
            retain: String::new(),
            get,
        };
    }
    let (columns, ordered) = columns(table);
    let numbered = |from: usize| -> Vec<String> {
        (0..columns.len())
            .map(|i| format!("?{}", i + from))
            .collect()
    };
    let this: String = columns
        .iter()
        .zip(numbered(3))
        .map(|(column, parameter)| format!(" AND {column} = {parameter}"))
        .collect();
    let with_key = |first: &str| [&[first], columns].concat().join(", ");
    let parameters = ["?1".to_owned(), "?2".to_owned()]
        .into_iter()
        .chain(numbered(5))
        .collect::<Vec<_>>();
    let order = if ordered == 0 {
        String::new()
    } else {
        format!(" ORDER BY {}", columns[..ordered].join(", "))
    };
    let scan = format!("SELECT {} FROM {name} WHERE {mine}", with_key("record"));
    let from = if ordered == 0 {
        String::new()
    } else {
        format!(
            " AND ({}) >= ({})",
            columns[..ordered].join(", "),
            numbered(3)[..ordered].join(", ")
        )
    };
    let key = columns.join(", ");
    Statements {
        get: format!("SELECT record FROM {name} WHERE {mine}{this}"),
        put: format!(
            "INSERT INTO {name} ({}, record, written_at) VALUES ({}, ?3, ?4) \
             ON CONFLICT DO UPDATE SET record = excluded.record, written_at = excluded.written_at",
            [&["business_id", "device_id"], columns].concat().join(", "),
            parameters.join(", "),
        ),
        delete: format!("DELETE FROM {name} WHERE {mine}{this}"),
        scan_from: format!("{scan}{from}{order}"),
        scan: format!("{scan}{order}"),
        retain: format!(
            "DELETE FROM {name} WHERE {mine} AND ({key}) IN \
             (SELECT {key} FROM {name} WHERE {mine} AND written_at < ?3 ORDER BY written_at LIMIT ?4)"
        ),
    }
}

/// Binds the columns of `key`, the first of them to parameter `at`.
pub(crate) fn bind(statement: &mut Statement<'_>, at: usize, key: &Key) -> rusqlite::Result<()> {
    match key {
        Key::Device | Key::Counters => Ok(()),
        Key::Identity(jid)
        | Key::Session(jid)
        | Key::Contact(jid)
        | Key::RedactedPhone(jid)
        | Key::ChatSettings(jid)
        | Key::PrivacyToken(jid)
        | Key::DeviceList(jid) => bind_jid(statement, at, jid),
        Key::PreKey(id) => statement.raw_bind_parameter(at, id),
        Key::SenderKey { group, sender } => {
            bind_jid(statement, at, group)?;
            bind_jid(statement, at + 4, sender)
        }
        Key::AppStateSyncKey(id) => statement.raw_bind_parameter(at, &id[..]),
        Key::AppStateVersion(text)
        | Key::LidMap(text)
        | Key::Outbox(text)
        | Key::Sent(text)
        | Key::Mailbox(text) => statement.raw_bind_parameter(at, text.as_str()),
        Key::AppStateMutationMac {
            collection,
            index_mac,
        } => {
            statement.raw_bind_parameter(at, collection.as_str())?;
            statement.raw_bind_parameter(at + 1, &index_mac[..])
        }
        Key::MessageSecret { chat, sender, id } => {
            bind_jid(statement, at, chat)?;
            bind_jid(statement, at + 4, sender)?;
            statement.raw_bind_parameter(at + 8, id.as_str())
        }
        Key::Inbox(seq) => statement.raw_bind_parameter(at, number(seq.0)),
        Key::Seen(hash) => statement.raw_bind_parameter(at, &hash[..]),
    }
}

/// Binds the ordered columns of `key` for [`Statements::scan_from`].
pub(crate) fn bind_ordered(
    statement: &mut Statement<'_>,
    at: usize,
    key: &Key,
) -> rusqlite::Result<()> {
    match leading_user(key) {
        Some(user) => statement.raw_bind_parameter(at, user),
        None => bind(statement, at, key),
    }
}

/// The user part that a key begins with, if it begins with a JID: rows that share it come from SQL in an order that
/// is not the order of [`Key`]. `None` where SQL's order is the right one.
pub(crate) fn leading_user(key: &Key) -> Option<&str> {
    match key {
        Key::Identity(jid)
        | Key::Session(jid)
        | Key::Contact(jid)
        | Key::RedactedPhone(jid)
        | Key::ChatSettings(jid)
        | Key::PrivacyToken(jid)
        | Key::DeviceList(jid)
        | Key::SenderKey { group: jid, .. }
        | Key::MessageSecret { chat: jid, .. } => Some(jid.user()),
        Key::Device
        | Key::Counters
        | Key::PreKey(_)
        | Key::AppStateSyncKey(_)
        | Key::AppStateVersion(_)
        | Key::AppStateMutationMac { .. }
        | Key::LidMap(_)
        | Key::Inbox(_)
        | Key::Seen(_)
        | Key::Outbox(_)
        | Key::Sent(_)
        | Key::Mailbox(_) => None,
    }
}

/// The key of a scanned row, whose columns begin at 1. `None` if they hold what no key has: a server that this
/// version does not know, or what got past the constraints.
pub(crate) fn read_key(table: Table, row: &Row<'_>) -> Option<Key> {
    Some(match table {
        Table::Device => Key::Device,
        Table::Counters => Key::Counters,
        Table::Identity => Key::Identity(read_jid(row, 1)?),
        Table::Session => Key::Session(read_jid(row, 1)?),
        Table::PreKey => Key::PreKey(row.get(1).ok()?),
        Table::SenderKey => Key::SenderKey {
            group: read_jid(row, 1)?,
            sender: read_jid(row, 5)?,
        },
        Table::AppStateSyncKey => Key::AppStateSyncKey(Bytes::copy_from_slice(read_blob(row, 1)?)),
        Table::AppStateVersion => Key::AppStateVersion(read_text(row, 1)?),
        Table::AppStateMutationMac => Key::AppStateMutationMac {
            collection: read_text(row, 1)?,
            index_mac: read_blob(row, 2)?.try_into().ok()?,
        },
        Table::Contact => Key::Contact(read_jid(row, 1)?),
        Table::RedactedPhone => Key::RedactedPhone(read_jid(row, 1)?),
        Table::ChatSettings => Key::ChatSettings(read_jid(row, 1)?),
        Table::MessageSecret => Key::MessageSecret {
            chat: read_jid(row, 1)?,
            sender: read_jid(row, 5)?,
            id: read_text(row, 9)?,
        },
        Table::PrivacyToken => Key::PrivacyToken(read_jid(row, 1)?),
        Table::LidMap => Key::LidMap(read_text(row, 1)?),
        Table::Inbox => Key::Inbox(EventSeq(u64::try_from(row.get::<_, i64>(1).ok()?).ok()?)),
        Table::Seen => Key::Seen(read_blob(row, 1)?.try_into().ok()?),
        Table::Outbox => Key::Outbox(read_text(row, 1)?),
        Table::Sent => Key::Sent(read_text(row, 1)?),
        Table::DeviceList => Key::DeviceList(read_jid(row, 1)?),
        Table::Mailbox => Key::Mailbox(read_text(row, 1)?),
    })
}

/// SQL integers are signed. Nothing above is ever stored, so a number that does not fit matches no row as -1.
pub(crate) fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(-1)
}

fn bind_jid(statement: &mut Statement<'_>, at: usize, jid: &Jid) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(at, jid.user())?;
    statement.raw_bind_parameter(at + 1, jid.server().as_str())?;
    statement.raw_bind_parameter(at + 2, jid.device())?;
    statement.raw_bind_parameter(at + 3, jid.integrator())
}

fn read_jid(row: &Row<'_>, at: usize) -> Option<Jid> {
    let server: Server = row.get_ref(at + 1).ok()?.as_str().ok()?.parse().ok()?;
    let jid = Jid::new(row.get_ref(at).ok()?.as_str().ok()?, server).ok()?;
    Some(
        jid.with_device(row.get(at + 2).ok()?)
            .with_integrator(row.get(at + 3).ok()?),
    )
}

fn read_text(row: &Row<'_>, at: usize) -> Option<MessageId> {
    row.get_ref(at).ok()?.as_str().ok().map(MessageId::new)
}

fn read_blob<'a>(row: &'a Row<'_>, at: usize) -> Option<&'a [u8]> {
    row.get_ref(at).ok()?.as_blob().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_filed_under_their_table() {
        for &table in Table::ALL {
            let name = format!("baton_{} ", table.name());
            assert!(
                statements(table).delete.contains(&name),
                "{name}: {}",
                statements(table).delete
            );
        }
    }
}
