//! Tables and their columns: how a [`Key`] becomes the columns of a row and comes back.

use baton_core::{
    jid::{Jid, Server},
    state::{AccountId, EventSeq, Key, MessageId, Table},
};
use bytes::Bytes;
use sqlx::{Postgres, Row as _, postgres::PgArguments, postgres::PgRow, query::Query};
use std::sync::LazyLock;

/// The statements of one table. Keys travel as one array per column, so that any number of rows is one statement.
pub(crate) struct Statements {
    /// Records of one account (1, 2) under keys (arrays from 3). Columns: position of the key from 1, record.
    pub(crate) get: String,
    /// Writes rows of many accounts: businesses 1, devices 2, records 3, times 4, keys from 5, all arrays.
    pub(crate) put: String,
    /// Deletes rows of many accounts: businesses 1, devices 2, keys from 3, all arrays.
    pub(crate) delete: String,
    /// At most limit 3 rows of one account (1, 2). Columns: key, record.
    pub(crate) scan: String,
    /// The same from behind a key (single values from 4).
    pub(crate) scan_after: String,
    /// [`scan`](Self::scan) without the record, for tables in which a record cannot be read.
    pub(crate) keys: String,
    /// [`scan_after`](Self::scan_after) without the record.
    pub(crate) keys_after: String,
    /// Deletes at most limit 4 rows of one account (1, 2) written before 3, oldest first.
    pub(crate) retain: String,
}

/// The statements of `table`, made once per process; a connection prepares those it uses and keeps them.
pub(crate) fn statements(table: Table) -> &'static Statements {
    static ALL: LazyLock<Vec<Statements>> =
        LazyLock::new(|| Table::ALL.iter().map(|&table| make(table)).collect());
    // `Table::ALL` lists the variants in the order of their discriminants, so this is the table's own entry.
    &ALL[table as usize]
}

/// One value of a key, as SQL knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Number(i64),
    Bytes(&'a [u8]),
}

/// Hands the values of `key` to `take`, in the order of its table's columns.
pub(crate) fn values<'a>(key: &'a Key, mut take: impl FnMut(Value<'a>)) {
    let mut jid = |jid: &'a Jid| {
        take(Value::Text(jid.user()));
        take(Value::Text(jid.server().as_str()));
        take(Value::Number(jid.device().into()));
        take(Value::Number(jid.integrator().into()));
    };
    match key {
        Key::Device | Key::Counters => {}
        Key::Identity(peer)
        | Key::Session(peer)
        | Key::Contact(peer)
        | Key::RedactedPhone(peer)
        | Key::ChatSettings(peer)
        | Key::PrivacyToken(peer)
        | Key::DeviceList(peer) => jid(peer),
        Key::SenderKey { group, sender } => {
            jid(group);
            jid(sender);
        }
        Key::MessageSecret { chat, sender, id } => {
            jid(chat);
            jid(sender);
            take(Value::Text(id));
        }
        Key::PreKey(id) => take(Value::Number((*id).into())),
        Key::AppStateSyncKey(id) => take(Value::Bytes(id)),
        Key::AppStateVersion(text)
        | Key::LidMap(text)
        | Key::Outbox(text)
        | Key::Sent(text)
        | Key::Mailbox(text) => take(Value::Text(text)),
        Key::AppStateMutationMac {
            collection,
            index_mac,
        } => {
            take(Value::Text(collection));
            take(Value::Bytes(index_mac));
        }
        Key::Inbox(seq) => take(Value::Number(number(seq.0))),
        Key::Seen(hash) => take(Value::Bytes(hash)),
    }
}

/// The keys of several rows of one table, column by column.
#[derive(Debug)]
pub(crate) struct Keys<'a>(Vec<Column<'a>>);

#[derive(Debug)]
enum Column<'a> {
    Text(Vec<&'a str>),
    Number(Vec<i64>),
    Bytes(Vec<&'a [u8]>),
}

impl<'a> Keys<'a> {
    pub(crate) fn new(table: Table) -> Self {
        let empty = |column: &(&str, Kind)| match column.1 {
            Kind::Text | Kind::Server => Column::Text(Vec::new()),
            Kind::Number => Column::Number(Vec::new()),
            Kind::Bytes => Column::Bytes(Vec::new()),
        };
        Self(columns(table).iter().map(empty).collect())
    }

    /// Adds a row. `key` has to be of the table that this was made for.
    pub(crate) fn push(&mut self, key: &'a Key) {
        let mut columns = self.0.iter_mut();
        values(key, |value| match (columns.next(), value) {
            (Some(Column::Text(column)), Value::Text(value)) => column.push(value),
            (Some(Column::Number(column)), Value::Number(value)) => column.push(value),
            (Some(Column::Bytes(column)), Value::Bytes(value)) => column.push(value),
            (column, value) => unreachable!("{value:?} for {column:?}: a key of another table"),
        });
    }

    /// Binds one array per column.
    pub(crate) fn bind(self, mut query: SqlQuery) -> SqlQuery {
        for column in self.0 {
            query = match column {
                Column::Text(values) => query.bind(values),
                Column::Number(values) => query.bind(values),
                Column::Bytes(values) => query.bind(values),
            };
        }
        query
    }
}

pub(crate) type SqlQuery = Query<'static, Postgres, PgArguments>;

/// Binds business and device of one account.
pub(crate) fn account_query(sql: &'static str, account: &AccountId) -> SqlQuery {
    sqlx::query(sql)
        .bind(account.business.as_str())
        .bind(number(account.device))
}

/// Binds the values of one key.
pub(crate) fn bind_key(mut query: SqlQuery, key: &Key) -> SqlQuery {
    let mut bound = Vec::new();
    values(key, |value| bound.push(value));
    for value in bound {
        query = match value {
            Value::Text(value) => query.bind(value),
            Value::Number(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
        };
    }
    query
}

/// The key of a scanned row, whose columns begin at 0. `None` if they hold what no key has: a server that this
/// version does not know, or what got past the constraints.
pub(crate) fn read_key(table: Table, row: &PgRow) -> Option<Key> {
    Some(match table {
        Table::Device => Key::Device,
        Table::Counters => Key::Counters,
        Table::Identity => Key::Identity(read_jid(row, 0)?),
        Table::Session => Key::Session(read_jid(row, 0)?),
        Table::PreKey => Key::PreKey(u32::try_from(row.try_get::<i32, _>(0).ok()?).ok()?),
        Table::SenderKey => Key::SenderKey {
            group: read_jid(row, 0)?,
            sender: read_jid(row, 4)?,
        },
        Table::AppStateSyncKey => Key::AppStateSyncKey(Bytes::copy_from_slice(read_bytes(row, 0)?)),
        Table::AppStateVersion => Key::AppStateVersion(read_text(row, 0)?),
        Table::AppStateMutationMac => Key::AppStateMutationMac {
            collection: read_text(row, 0)?,
            index_mac: read_bytes(row, 1)?.try_into().ok()?,
        },
        Table::Contact => Key::Contact(read_jid(row, 0)?),
        Table::RedactedPhone => Key::RedactedPhone(read_jid(row, 0)?),
        Table::ChatSettings => Key::ChatSettings(read_jid(row, 0)?),
        Table::MessageSecret => Key::MessageSecret {
            chat: read_jid(row, 0)?,
            sender: read_jid(row, 4)?,
            id: read_text(row, 8)?,
        },
        Table::PrivacyToken => Key::PrivacyToken(read_jid(row, 0)?),
        Table::LidMap => Key::LidMap(read_text(row, 0)?),
        Table::Inbox => Key::Inbox(EventSeq(
            u64::try_from(row.try_get::<i64, _>(0).ok()?).ok()?,
        )),
        Table::Seen => Key::Seen(read_bytes(row, 0)?.try_into().ok()?),
        Table::Outbox => Key::Outbox(read_text(row, 0)?),
        Table::Sent => Key::Sent(read_text(row, 0)?),
        Table::DeviceList => Key::DeviceList(read_jid(row, 0)?),
        Table::Mailbox => Key::Mailbox(read_text(row, 0)?),
    })
}

/// How many columns a key of `table` has.
pub(crate) fn width(table: Table) -> usize {
    columns(table).len()
}

/// SQL integers are signed. Nothing above is ever stored, so a number that does not fit matches no row as -1.
pub(crate) fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(-1)
}

/// Constraints keep the columns that are read by this at zero or above.
pub(crate) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// The server of a JID: text in the table, but in scans in the order of [`Server`].
    Server,
    Number,
    Bytes,
}

/// The columns of a key, in the order of the primary key behind business and device, which is the order of [`Key`].
fn columns(table: Table) -> &'static [(&'static str, Kind)] {
    const PEER: &[(&str, Kind)] = &[
        ("peer_user", Kind::Text),
        ("peer_server", Kind::Server),
        ("peer_device", Kind::Number),
        ("peer_integrator", Kind::Number),
    ];
    const CHAT: &[(&str, Kind)] = &[
        ("chat_user", Kind::Text),
        ("chat_server", Kind::Server),
        ("chat_device", Kind::Number),
        ("chat_integrator", Kind::Number),
    ];
    match table {
        Table::Device | Table::Counters => &[],
        Table::Identity
        | Table::Session
        | Table::Contact
        | Table::RedactedPhone
        | Table::PrivacyToken
        | Table::DeviceList => PEER,
        Table::ChatSettings => CHAT,
        Table::PreKey => &[("pre_key_id", Kind::Number)],
        Table::SenderKey => &[
            ("group_user", Kind::Text),
            ("group_server", Kind::Server),
            ("group_device", Kind::Number),
            ("group_integrator", Kind::Number),
            ("sender_user", Kind::Text),
            ("sender_server", Kind::Server),
            ("sender_device", Kind::Number),
            ("sender_integrator", Kind::Number),
        ],
        Table::AppStateSyncKey => &[("key_id", Kind::Bytes)],
        Table::AppStateVersion => &[("collection", Kind::Text)],
        Table::AppStateMutationMac => &[("collection", Kind::Text), ("index_mac", Kind::Bytes)],
        Table::MessageSecret => &[
            ("chat_user", Kind::Text),
            ("chat_server", Kind::Server),
            ("chat_device", Kind::Number),
            ("chat_integrator", Kind::Number),
            ("sender_user", Kind::Text),
            ("sender_server", Kind::Server),
            ("sender_device", Kind::Number),
            ("sender_integrator", Kind::Number),
            ("message_id", Kind::Text),
        ],
        Table::LidMap => &[("user_part", Kind::Text)],
        Table::Inbox => &[("seq", Kind::Number)],
        Table::Seen => &[("hash", Kind::Bytes)],
        Table::Outbox | Table::Sent | Table::Mailbox => &[("message_id", Kind::Text)],
    }
}

fn make(table: Table) -> Statements {
    let name = format!("baton_{}", table.name());
    let columns = columns(table);
    let names: Vec<&str> = columns.iter().map(|column| column.0).collect();
    let key = names.join(", ");
    // `$n::type[], …` for the columns of a key.
    let arrays = |from: usize| {
        join(columns, from, ", ", |_, kind, n| {
            format!("${n}::{}[]", sql_type(kind))
        })
    };
    let same = |left: &str, right: &str| {
        let equal = |name: &&str| format!(" AND {left}.{name} = {right}.{name}");
        names.iter().map(equal).collect::<String>()
    };
    let mine = "t.business_id = $1 AND t.device_id = $2";
    let theirs = "t.business_id = k.business_id AND t.device_id = k.device_id";
    let scans = |content: &str, and: &str| {
        let selected: Vec<String> = names
            .iter()
            .map(|name| format!("t.{name}"))
            .chain((!content.is_empty()).then(|| content.to_owned()))
            .collect();
        // A table without key columns still has to select something.
        let selected = if selected.is_empty() {
            "1".to_owned()
        } else {
            selected.join(", ")
        };
        let order = match columns {
            [] => String::new(),
            _ => format!(
                " ORDER BY {}",
                join(columns, 0, ", ", |name, kind, _| ordered(
                    kind,
                    &format!("t.{name}")
                ))
            ),
        };
        let filter = if table == Table::Device {
            " AND t.record IS NOT NULL"
        } else {
            ""
        };
        format!("SELECT {selected} FROM {name} t WHERE {mine}{filter}{and}{order} LIMIT $3")
    };
    let after = match columns {
        // Nothing is behind the only row.
        [] => " AND false".to_owned(),
        // The first comparison says again what the second implies, in a form that the index understands.
        [(first, kind), ..] => format!(
            " AND t.{first} >= $4::{} AND ({}) > ({})",
            sql_type(*kind),
            join(columns, 0, ", ", |name, kind, _| ordered(
                kind,
                &format!("t.{name}")
            )),
            join(columns, 4, ", ", |_, kind, n| ordered(
                kind,
                &format!("${n}::{}", sql_type(kind))
            )),
        ),
    };
    let (get, put, delete) = match (table, columns) {
        // The account's own row exists before its record does, and outlives it.
        (Table::Device, _) => (
            format!("SELECT 1::bigint, t.record FROM {name} t WHERE {mine}"),
            format!(
                "UPDATE {name} t SET record = k.record, written_at = k.written_at \
                 FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[]) \
                 AS k(business_id, device_id, record, written_at) WHERE {theirs}"
            ),
            format!(
                "UPDATE {name} t SET record = NULL, written_at = NULL \
                 FROM unnest($1::text[], $2::bigint[]) AS k(business_id, device_id) WHERE {theirs}"
            ),
        ),
        (_, columns) => {
            let get = if columns.is_empty() {
                format!("SELECT 1::bigint, t.record FROM {name} t WHERE {mine}")
            } else {
                format!(
                    "SELECT k.n, t.record FROM unnest({}) WITH ORDINALITY AS k({key}, n) \
                     JOIN {name} t ON {mine}{}",
                    arrays(3),
                    same("t", "k")
                )
            };
            let (comma, arrays_put, arrays_delete) = match columns {
                [] => ("", String::new(), String::new()),
                _ => (", ", arrays(5), arrays(3)),
            };
            let put = format!(
                "INSERT INTO {name} (business_id, device_id, record, written_at{comma}{key}) \
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[]{comma}{arrays_put}) \
                 ON CONFLICT (business_id, device_id{comma}{key}) \
                 DO UPDATE SET record = excluded.record, written_at = excluded.written_at"
            );
            let delete = format!(
                "DELETE FROM {name} t USING unnest($1::text[], $2::bigint[]{comma}{arrays_delete}) \
                 AS k(business_id, device_id{comma}{key}) WHERE {theirs}{}",
                same("t", "k")
            );
            (get, put, delete)
        }
    };
    Statements {
        get,
        put,
        delete,
        scan: scans("t.record", ""),
        scan_after: scans("t.record", &after),
        keys: scans("", ""),
        keys_after: scans("", &after),
        // The age is asked again when the row is locked: one that was written in the meantime is young again.
        retain: format!(
            "DELETE FROM {name} t USING \
             (SELECT {key} FROM {name} t WHERE {mine} AND t.written_at < $3 ORDER BY t.written_at LIMIT $4) old \
             WHERE {mine}{} AND t.written_at < $3",
            same("t", "old")
        ),
    }
}

fn join(
    columns: &[(&str, Kind)],
    from: usize,
    separator: &str,
    write: impl Fn(&str, Kind, usize) -> String,
) -> String {
    let parts = columns.iter().zip(from..);
    let parts: Vec<_> = parts
        .map(|((name, kind), n)| write(name, *kind, n))
        .collect();
    parts.join(separator)
}

const fn sql_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Server => "text",
        Kind::Number => "bigint",
        Kind::Bytes => "bytea",
    }
}

/// An expression by which SQL sorts as [`Key`] does. A server that this version does not know comes last.
fn ordered(kind: Kind, expression: &str) -> String {
    if kind != Kind::Server {
        return expression.to_owned();
    }
    let mut servers = Server::ALL;
    servers.sort();
    let names: Vec<&str> = servers.iter().map(|server| server.as_str()).collect();
    format!(
        "coalesce(array_position('{{{}}}'::text[], {expression}), 99)",
        names.join(",")
    )
}

fn read_jid(row: &PgRow, at: usize) -> Option<Jid> {
    let server: Server = row.try_get::<&str, _>(at + 1).ok()?.parse().ok()?;
    let jid = Jid::new(row.try_get(at).ok()?, server).ok()?;
    let small = |at: usize| u16::try_from(row.try_get::<i32, _>(at).ok()?).ok();
    Some(
        jid.with_device(small(at + 2)?)
            .with_integrator(small(at + 3)?),
    )
}

fn read_text(row: &PgRow, at: usize) -> Option<MessageId> {
    row.try_get::<&str, _>(at).ok().map(MessageId::new)
}

fn read_bytes(row: &PgRow, at: usize) -> Option<&[u8]> {
    row.try_get(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::conformance::samples;

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

    #[test]
    fn every_sample_key_fills_the_columns_of_its_table() {
        for &table in Table::ALL {
            let samples = samples::keys(table);
            let mut keys = Keys::new(table);
            samples.iter().for_each(|key| keys.push(key));
            for column in &keys.0 {
                let rows = match column {
                    Column::Text(rows) => rows.len(),
                    Column::Number(rows) => rows.len(),
                    Column::Bytes(rows) => rows.len(),
                };
                assert_eq!(rows, samples.len(), "{}", table.name());
            }
        }
    }
}
