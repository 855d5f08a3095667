//! Keys as columns: what a row is called in a database of typed tables.
//!
//! One table of columns for every store that keeps keys in columns, ours or anybody else's, so that all of them agree
//! on names, order and meaning. [`columns`] names them, [`values`] takes a [`Key`] apart, [`key`] puts it together.
//! A database that has no columns, only bytes, takes [`encode`] and [`decode`].
//!
//! In front of these columns every primary key has the business and the number of the account; behind them a row has
//! its record and the time of the batch that wrote it.
//!
//! Sorting by the columns from left to right, text and bytes compared byte by byte, is the order of [`Key`], with one
//! exception: [`Kind::Server`] sorts by [`Server`], not by name. [`sortable`] says how far the
//! order of bytes goes.

use super::{EventSeq, Key, MessageId, Table};
use crate::jid::{Jid, Server};
use bytes::Bytes;
use std::ops::Deref;

/// One column of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name in SQL.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text of at most 255 bytes, without NUL.
    Text,
    /// The server of an address: text from a short list, but sorted by meaning.
    Server,
    /// A number from 0 up that fits a signed integer of 64 bits.
    Number,
    /// At most 64 bytes.
    Bytes,
}

/// What one column of one key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Of [`Kind::Text`] and [`Kind::Server`].
    Text(&'a str),
    /// Of [`Kind::Number`].
    Number(i64),
    /// Of [`Kind::Bytes`].
    Bytes(&'a [u8]),
}

/// No key has more columns.
pub const MAX_COLUMNS: usize = 9;

/// The values of a key, in the order of its table's columns: a slice.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    values: [Value<'a>; MAX_COLUMNS],
    len: usize,
}

impl<'a> Deref for Values<'a> {
    type Target = [Value<'a>];

    fn deref(&self) -> &Self::Target {
        self.values.get(..self.len).unwrap_or_default()
    }
}

/// The columns of a key, in the order of the primary key behind business and account.
#[must_use]
pub const fn columns(table: Table) -> &'static [Column] {
    const PEER: &[Column] =
        &address(["peer_user", "peer_server", "peer_device", "peer_integrator"]);
    const CHAT: &[Column] =
        &address(["chat_user", "chat_server", "chat_device", "chat_integrator"]);
    const GROUP: [Column; 4] = address([
        "group_user",
        "group_server",
        "group_device",
        "group_integrator",
    ]);
    const SENDER: [Column; 4] = address([
        "sender_user",
        "sender_server",
        "sender_device",
        "sender_integrator",
    ]);
    const SENDER_KEY: &[Column] = &[
        GROUP[0], GROUP[1], GROUP[2], GROUP[3], SENDER[0], SENDER[1], SENDER[2], SENDER[3],
    ];
    const SECRET: &[Column] = &[
        CHAT[0],
        CHAT[1],
        CHAT[2],
        CHAT[3],
        SENDER[0],
        SENDER[1],
        SENDER[2],
        SENDER[3],
        Column::new("message_id", Kind::Text),
    ];
    const MAC: &[Column] = &[
        Column::new("collection", Kind::Text),
        Column::new("index_mac", Kind::Bytes),
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
        Table::PreKey => const { &[Column::new("pre_key_id", Kind::Number)] },
        Table::SenderKey => SENDER_KEY,
        Table::AppStateSyncKey => const { &[Column::new("key_id", Kind::Bytes)] },
        Table::AppStateVersion => const { &[Column::new("collection", Kind::Text)] },
        Table::AppStateMutationMac => MAC,
        Table::MessageSecret => SECRET,
        Table::LidMap => const { &[Column::new("user_part", Kind::Text)] },
        Table::Inbox => const { &[Column::new("seq", Kind::Number)] },
        Table::Seen => const { &[Column::new("hash", Kind::Bytes)] },
        Table::Outbox | Table::Sent | Table::Mailbox => {
            const { &[Column::new("message_id", Kind::Text)] }
        }
    }
}

/// How many columns, from the left, are in the order of [`Key`] as bytes sort. Behind them it takes a look at the
/// whole key.
#[must_use]
pub fn sortable(table: Table) -> usize {
    columns(table)
        .iter()
        .take_while(|column| column.kind != Kind::Server)
        .count()
}

/// The values of `key`, one per column of its table.
#[must_use]
pub fn values(key: &Key) -> Values<'_> {
    let mut values = Values {
        values: [Value::Number(0); MAX_COLUMNS],
        len: 0,
    };
    match key {
        Key::Device | Key::Counters => {}
        Key::Identity(jid)
        | Key::Session(jid)
        | Key::Contact(jid)
        | Key::RedactedPhone(jid)
        | Key::ChatSettings(jid)
        | Key::PrivacyToken(jid)
        | Key::DeviceList(jid) => values.push_address(jid),
        Key::SenderKey { group, sender } => {
            values.push_address(group);
            values.push_address(sender);
        }
        Key::MessageSecret { chat, sender, id } => {
            values.push_address(chat);
            values.push_address(sender);
            values.push(Value::Text(id));
        }
        Key::PreKey(id) => values.push(Value::Number((*id).into())),
        Key::AppStateSyncKey(id) => values.push(Value::Bytes(id)),
        Key::AppStateVersion(text)
        | Key::LidMap(text)
        | Key::Outbox(text)
        | Key::Sent(text)
        | Key::Mailbox(text) => values.push(Value::Text(text)),
        Key::AppStateMutationMac {
            collection,
            index_mac,
        } => {
            values.push(Value::Text(collection));
            values.push(Value::Bytes(index_mac));
        }
        Key::Inbox(seq) => values.push(Value::Number(number(seq.0))),
        Key::Seen(hash) => values.push(Value::Bytes(hash)),
    }
    values
}

/// The key of a row with these columns. `None` if they hold what no key has: a server that this release does not
/// know, a number out of range, a value of another kind, too few or too many of them.
#[must_use]
pub fn key<'a>(table: Table, values: impl IntoIterator<Item = Value<'a>>) -> Option<Key> {
    let mut row = Reader(values.into_iter());
    let key = match table {
        Table::Device => Key::Device,
        Table::Counters => Key::Counters,
        Table::Identity => Key::Identity(row.address()?),
        Table::Session => Key::Session(row.address()?),
        Table::PreKey => Key::PreKey(row.number()?),
        Table::SenderKey => Key::SenderKey {
            group: row.address()?,
            sender: row.address()?,
        },
        Table::AppStateSyncKey => Key::AppStateSyncKey(Bytes::copy_from_slice(row.bytes()?)),
        Table::AppStateVersion => Key::AppStateVersion(row.text()?),
        Table::AppStateMutationMac => Key::AppStateMutationMac {
            collection: row.text()?,
            index_mac: row.bytes()?.try_into().ok()?,
        },
        Table::Contact => Key::Contact(row.address()?),
        Table::RedactedPhone => Key::RedactedPhone(row.address()?),
        Table::ChatSettings => Key::ChatSettings(row.address()?),
        Table::MessageSecret => Key::MessageSecret {
            chat: row.address()?,
            sender: row.address()?,
            id: row.text()?,
        },
        Table::PrivacyToken => Key::PrivacyToken(row.address()?),
        Table::LidMap => Key::LidMap(row.text()?),
        Table::Inbox => Key::Inbox(EventSeq(row.number()?)),
        Table::Seen => Key::Seen(row.bytes()?.try_into().ok()?),
        Table::Outbox => Key::Outbox(row.text()?),
        Table::Sent => Key::Sent(row.text()?),
        Table::DeviceList => Key::DeviceList(row.address()?),
        Table::Mailbox => Key::Mailbox(row.text()?),
    };
    row.0.next().is_none().then_some(key)
}

/// A key as bytes that sort as [`Key`] does, for databases that have nothing but bytes: the place of its table in
/// [`Table::ALL`], then its columns, each in a form that neither runs into the next nor disturbs the order.
#[must_use]
pub fn encode(key: &Key) -> Vec<u8> {
    let mut bytes = vec![prefix(key.table())];
    for (column, value) in columns(key.table()).iter().zip(values(key).iter()) {
        match (column.kind, value) {
            (Kind::Server, Value::Text(name)) => bytes.push(server_number(name)),
            // No text has a NUL in it, so a text sorts before those that it begins.
            (_, Value::Text(text)) => {
                bytes.extend_from_slice(text.as_bytes());
                bytes.push(0);
            }
            (_, Value::Number(number)) => bytes.extend_from_slice(&number.to_be_bytes()),
            // Of one length, or the end of the key.
            (_, Value::Bytes(value)) => bytes.extend_from_slice(value),
        }
    }
    bytes
}

/// The key that [`encode`] made these bytes of; `None` if they are none.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Key> {
    let (&place, mut rest) = bytes.split_first()?;
    let table = *Table::ALL.get(usize::from(place))?;
    let mut values = Vec::with_capacity(MAX_COLUMNS);
    for column in columns(table) {
        let (value, behind) = match column.kind {
            Kind::Server => {
                let (&number, behind) = rest.split_first()?;
                let server = servers().nth(usize::from(number))?;
                (Value::Text(server.as_str()), behind)
            }
            Kind::Text => {
                let end = rest.iter().position(|&byte| byte == 0)?;
                let (text, behind) = rest.split_at_checked(end)?;
                let text = std::str::from_utf8(text).ok()?;
                (Value::Text(text), behind.get(1..)?)
            }
            Kind::Number => {
                let (number, behind) = rest.split_first_chunk()?;
                (Value::Number(i64::from_be_bytes(*number)), behind)
            }
            Kind::Bytes => (Value::Bytes(rest), &[][..]),
        };
        values.push(value);
        rest = behind;
    }
    key(table, values).filter(|_| rest.is_empty())
}

/// The first byte of all encoded keys of a table.
#[must_use]
pub fn prefix(table: Table) -> u8 {
    let place = Table::ALL.iter().position(|&other| other == table);
    // There are some twenty tables.
    place.map_or(u8::MAX, |place| u8::try_from(place).unwrap_or(u8::MAX))
}

/// In their own order, which is not the order of their names.
fn servers() -> impl Iterator<Item = Server> {
    let mut servers = Server::ALL;
    servers.sort();
    servers.into_iter()
}

fn server_number(name: &str) -> u8 {
    let place = servers().position(|server| server.as_str() == name);
    place.map_or(u8::MAX, |place| u8::try_from(place).unwrap_or(u8::MAX))
}

/// SQL integers are signed. [`rules`](super::rules) keep what is stored below that, so a number that does not fit is
/// one that matches no row: -1.
#[must_use]
pub fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(-1)
}

impl Column {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind }
    }
}

const fn address(names: [&'static str; 4]) -> [Column; 4] {
    [
        Column::new(names[0], Kind::Text),
        Column::new(names[1], Kind::Server),
        Column::new(names[2], Kind::Number),
        Column::new(names[3], Kind::Number),
    ]
}

impl<'a> Values<'a> {
    fn push(&mut self, value: Value<'a>) {
        if let Some(place) = self.values.get_mut(self.len) {
            *place = value;
            self.len += 1;
        }
    }

    fn push_address(&mut self, jid: &'a Jid) {
        self.push(Value::Text(jid.user()));
        self.push(Value::Text(jid.server().as_str()));
        self.push(Value::Number(jid.device().into()));
        self.push(Value::Number(jid.integrator().into()));
    }
}

/// Takes values of the kind that is expected, or nothing.
struct Reader<I>(I);

impl<'a, I: Iterator<Item = Value<'a>>> Reader<I> {
    fn str(&mut self) -> Option<&'a str> {
        match self.0.next()? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<MessageId> {
        self.str().map(MessageId::new)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        match self.0.next()? {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn number<N: TryFrom<i64>>(&mut self) -> Option<N> {
        match self.0.next()? {
            Value::Number(number) => number.try_into().ok(),
            _ => None,
        }
    }

    fn address(&mut self) -> Option<Jid> {
        let user = self.str()?;
        let server: Server = self.str()?.parse().ok()?;
        let (device, integrator) = (self.number()?, self.number()?);
        let jid = Jid::new(user, server).ok()?;
        Some(jid.with_device(device).with_integrator(integrator))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::conformance::samples;

    fn every_key() -> impl Iterator<Item = Key> {
        Table::ALL.iter().flat_map(|&table| samples::keys(table))
    }

    #[test]
    fn keys_come_back_from_their_columns() {
        for sample in every_key() {
            let table = sample.table();
            let taken_apart = values(&sample);
            for (column, value) in columns(table).iter().zip(taken_apart.iter()) {
                let fits = matches!(
                    (column.kind, value),
                    (Kind::Text | Kind::Server, Value::Text(_))
                        | (Kind::Number, Value::Number(0..))
                        | (Kind::Bytes, Value::Bytes(_))
                );
                assert!(fits, "{value:?} in {column:?}");
            }
            assert_eq!(columns(table).len(), taken_apart.len(), "{sample:?}");
            assert_eq!(key(table, taken_apart.iter().copied()), Some(sample));
        }
    }

    /// The order that a database of typed columns keeps, up to the first server.
    #[test]
    fn columns_sort_as_keys_do() {
        let order = |key: &Key| -> Vec<Vec<u8>> {
            let sortable = sortable(key.table());
            let bytes = |value: &Value<'_>| match value {
                Value::Text(text) => text.as_bytes().to_vec(),
                Value::Number(number) => number.to_be_bytes().to_vec(),
                Value::Bytes(bytes) => bytes.to_vec(),
            };
            values(key).iter().take(sortable).map(bytes).collect()
        };
        for &table in Table::ALL {
            let mut keys: Vec<Key> = samples::keys(table).into_iter().collect();
            keys.sort();
            assert!(keys.is_sorted_by_key(order), "{table:?}");
        }
    }

    #[test]
    fn encoded_keys_come_back_and_sort_as_keys_do() {
        let mut keys: Vec<Key> = every_key().collect();
        keys.sort();
        keys.dedup();
        let encoded: Vec<Vec<u8>> = keys.iter().map(encode).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(bytes[0], prefix(key.table()));
            assert_eq!(decode(bytes).as_ref(), Some(key));
            let short = &bytes[..bytes.len() - 1];
            assert_ne!(decode(short).as_ref(), Some(key));
            assert_ne!(decode(&[&bytes[..], b"x"].concat()).as_ref(), Some(key));
        }
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[99]), None);
    }

    #[test]
    fn columns_that_are_no_key_give_none() {
        for sample in every_key() {
            let table = sample.table();
            let whole: Vec<Value<'_>> = values(&sample).to_vec();
            if let Some((_, short)) = whole.split_last() {
                assert_eq!(key(table, short.iter().copied()), None, "too short");
            }
            let long = [&whole[..], &[Value::Number(0)]].concat();
            assert_eq!(key(table, long), None, "too long");
            for at in 0..whole.len() {
                let mut wrong = whole.clone();
                wrong[at] = match (columns(table)[at].kind, wrong[at]) {
                    (Kind::Server, _) => Value::Text("example.com"),
                    (_, Value::Number(_)) => Value::Number(-1),
                    (_, Value::Text(_)) => Value::Bytes(b"x"),
                    (_, Value::Bytes(_)) => Value::Text("x"),
                };
                assert_eq!(key(table, wrong), None, "column {at}");
            }
        }
        assert_eq!(key(Table::Seen, [Value::Bytes(&[0; 31])]), None);
        assert_eq!(key(Table::PreKey, [Value::Number(1 << 40)]), None);
    }
}
