//! Keys of every shape, chosen where databases go wrong: prefixes, case, signs, code points beyond 16 bits, quotes.

use crate::{
    jid::{Jid, Server},
    state::{EventSeq, Key, MessageId, Table},
};
use bytes::Bytes;
use smol_str::SmolStr;

/// Distinct keys of one table, in no particular order.
#[must_use]
pub fn keys(table: Table) -> Vec<Key> {
    match table {
        Table::Device => vec![Key::Device],
        Table::Counters => vec![Key::Counters],
        Table::Identity => jids().into_iter().map(Key::Identity).collect(),
        Table::Session => jids().into_iter().map(Key::Session).collect(),
        Table::PreKey => [2, 1, 255, 256, 65_536, (1 << 24) - 1, 10]
            .map(Key::PreKey)
            .to_vec(),
        Table::SenderKey => {
            let pair = |(group, sender)| Key::SenderKey { group, sender };
            pairs(groups(), jids()).into_iter().map(pair).collect()
        }
        Table::AppStateSyncKey => blobs().into_iter().map(Key::AppStateSyncKey).collect(),
        Table::AppStateVersion => texts().into_iter().map(Key::AppStateVersion).collect(),
        Table::AppStateMutationMac => texts()
            .into_iter()
            .flat_map(|collection| {
                hashes().into_iter().map(move |index_mac| {
                    let collection = collection.clone();
                    Key::AppStateMutationMac {
                        collection,
                        index_mac,
                    }
                })
            })
            .collect(),
        Table::Contact => jids().into_iter().map(Key::Contact).collect(),
        Table::RedactedPhone => jids().into_iter().map(Key::RedactedPhone).collect(),
        Table::ChatSettings => jids().into_iter().map(Key::ChatSettings).collect(),
        Table::MessageSecret => pairs(groups(), jids())
            .into_iter()
            .zip(message_ids().into_iter().cycle())
            .map(|((chat, sender), id)| Key::MessageSecret { chat, sender, id })
            .collect(),
        Table::PrivacyToken => jids().into_iter().map(Key::PrivacyToken).collect(),
        Table::LidMap => texts().into_iter().map(Key::LidMap).collect(),
        Table::Inbox => [3, 1, 2, 1 << 31, 1 << 32, i64::MAX as u64]
            .map(|seq| Key::Inbox(EventSeq(seq)))
            .to_vec(),
        Table::Seen => hashes().into_iter().map(Key::Seen).collect(),
        Table::Outbox => message_ids().into_iter().map(Key::Outbox).collect(),
        Table::Sent => message_ids().into_iter().map(Key::Sent).collect(),
        Table::DeviceList => jids().into_iter().map(Key::DeviceList).collect(),
        Table::Mailbox => message_ids().into_iter().map(Key::Mailbox).collect(),
    }
}

/// Keys that every store rejects: too long, too short, out of range.
#[must_use]
pub fn bad_keys() -> Vec<Key> {
    let long = SmolStr::from("x".repeat(256));
    let user = jid("1", Server::User);
    vec![
        Key::PreKey(0),
        Key::PreKey(1 << 24),
        Key::AppStateSyncKey(Bytes::new()),
        Key::AppStateSyncKey(Bytes::from(vec![7; 65])),
        Key::Inbox(EventSeq(0)),
        Key::Inbox(EventSeq(1 << 63)),
        Key::Outbox(MessageId::default()),
        Key::Sent(long.clone()),
        Key::Mailbox(SmolStr::new("a\0b")),
        Key::LidMap(SmolStr::default()),
        Key::AppStateVersion(long.clone()),
        Key::AppStateMutationMac {
            collection: SmolStr::default(),
            index_mac: [0; 32],
        },
        Key::MessageSecret {
            chat: user.clone(),
            sender: user,
            id: long,
        },
    ]
}

fn jid(user: &str, server: Server) -> Jid {
    Jid::new(user, server).expect("a user of the suite")
}

fn jids() -> Vec<Jid> {
    let mut jids = vec![
        Jid::service(),
        jid("4915112345678", Server::User),
        jid("4915112345678", Server::User).with_device(1),
        jid("4915112345678", Server::User).with_device(10),
        jid("4915112345678", Server::User).with_device(2),
        jid("4915112345678", Server::User).with_device(u16::MAX),
        jid("4915112345678", Server::Hosted).with_device(99),
        jid("4915112345678", Server::HostedLid).with_device(99),
        jid("4915112345678", Server::Lid),
        jid("491511234567", Server::User),
        jid("49151123456780", Server::User),
        jid("1", Server::Lid).with_device(7),
        jid("10", Server::Lid),
        jid("2", Server::Lid),
        jid("user", Server::Bot),
        jid("User", Server::Bot),
        jid("100004", Server::Messenger),
        jid("5", Server::Interop),
        jid("5", Server::Interop).with_integrator(2).with_device(3),
        jid("5", Server::Interop).with_integrator(11),
        jid("with.dot", Server::Lid).with_device(4),
        jid("o'brien%_\\\"", Server::Lid),
        jid("ключ", Server::Lid),
        jid("\u{ffff}", Server::Lid),
        jid("\u{10000}", Server::Lid),
        jid(&"8".repeat(255), Server::Lid).with_device(65_000),
    ];
    // One user on every server: only the server tells these apart.
    jids.extend(Server::ALL.map(|server| jid("77", server)));
    jids
}

fn groups() -> Vec<Jid> {
    vec![
        jid("120363041234567890", Server::Group),
        jid("4915112345678-1600000000", Server::Group),
        jid("status", Server::Broadcast),
        jid("4915112345678", Server::User),
        jid("4915112345678", Server::Lid),
    ]
}

/// Every left with a few rights, every right with a few lefts.
fn pairs(left: Vec<Jid>, right: Vec<Jid>) -> Vec<(Jid, Jid)> {
    let mut pairs = Vec::new();
    for (i, a) in left.iter().enumerate() {
        for (j, b) in right.iter().enumerate() {
            if i == 0 || j < 6 || i % 5 == j % 5 {
                pairs.push((a.clone(), b.clone()));
            }
        }
    }
    pairs
}

fn texts() -> Vec<SmolStr> {
    let long = "y".repeat(255);
    [
        "b",
        "a",
        "A",
        "ab",
        "a b",
        "10",
        "9",
        "regular_low",
        "'; --",
        "%",
        "é",
        "日本",
        "\u{ffff}",
        "\u{10000}",
        &long,
    ]
    .map(SmolStr::new)
    .to_vec()
}

fn message_ids() -> Vec<MessageId> {
    let long = "F".repeat(255);
    [
        "3EB0C767D26A1D8B5E6F",
        "3eb0c767d26a1d8b5e6f",
        "3EB0",
        "3EB00",
        "a-1",
        "a.1",
        "~",
        "é",
        " ",
        "x\ny",
        &long,
    ]
    .map(MessageId::new)
    .to_vec()
}

fn blobs() -> Vec<Bytes> {
    let mut blobs = vec![
        vec![0],
        vec![0, 0],
        vec![0, 0, 0, 0, 1, 0x7f],
        vec![0, 0, 0, 0, 1, 0x80],
        vec![0x7f],
        vec![0x80],
        vec![0xff],
        b"text".to_vec(),
        vec![0xff; 64],
    ];
    blobs.push(vec![0; 64]);
    blobs.into_iter().map(Bytes::from).collect()
}

fn hashes() -> Vec<[u8; 32]> {
    let mut last = [0; 32];
    last[31] = 1;
    vec![
        [0xff; 32], [0; 32], last, [0x80; 32], [0x7f; 32], [b'a'; 32],
    ]
}
