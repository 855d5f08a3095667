//! Settings: an engine, another device, and a service that is as honest as the test lets it be.
//!
//! Here: what all of these tests stand on.

mod damage;
mod phone;
mod plain;
mod random;

use crate::cases;
use crate::cloud::Cloud;
use crate::rig::{Rig, SECOND, ready};
use baton_core::{
    appstate::{
        Collection, KeyId,
        action::{Action, ContactCard, MuteEnd},
    },
    engine::{Input, Output},
    flow::{Chat, Command, CommandError, CommandId, Contact, Event, Reply},
    jid::Jid,
    proto::{e2e, record, sync::SyncdSnapshotRecovery},
    state::{AccountId, Key, Micros, Row, Scan, Store, Table, codec, memory::MemoryStore},
    wire::node::Node,
};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

type Shared = Rc<RefCell<Cloud>>;

fn chat(n: u8) -> Jid {
    Jid::pn(&format!("1555000{n:04}")).expect("digits")
}

fn mute(n: u8, until: i64) -> Action {
    let until = (until > 0).then_some(MuteEnd::At(until));
    Action::Mute {
        chat: chat(n),
        until,
    }
}

fn pin(n: u8, pinned: bool) -> Action {
    Action::Pin {
        chat: chat(n),
        pinned,
    }
}

fn contact(n: u8, name: Option<&str>) -> Action {
    Action::Contact {
        user: chat(n),
        card: name.map(|name| ContactCard {
            full_name: Some(name.into()),
            ..Default::default()
        }),
    }
}

/// The key that the account's phone shared when it was linked.
fn shared_key(store: &MemoryStore, account: &AccountId) -> (KeyId, [u8; 32]) {
    let scan = Scan {
        table: Table::AppStateSyncKey,
        after: None,
        limit: 10,
    };
    let rows = ready(store.scan(account, scan)).expect("rows");
    let Some((_, Row::Present(row))) = rows.into_iter().next() else {
        panic!("the phone has shared a key");
    };
    let key = e2e::AppStateSyncKey::decode(codec::payload(&row).expect("whole")).expect("a key");
    let id = KeyId::new(key.key_id.and_then(|id| id.key_id).expect("an id")).expect("short");
    (
        id,
        key.key_data
            .and_then(|data| data.key_data)
            .expect("data")
            .try_into()
            .expect("32 bytes"),
    )
}

/// An engine on a store whose hosts are gone, and the cloud it talks to.
fn engine(store: MemoryStore, account: AccountId, seed: u8, cloud: &Shared) -> Rig {
    crate::rig::bury(&store);
    let mut rig = Rig::with(store, account, seed, |_| {});
    rig.files = cloud.borrow().files.clone();
    let shared = cloud.clone();
    rig.cloud = Some(Box::new(move |iq| shared.borrow_mut().answer(iq)));
    rig
}

fn with_cloud(seed: u8) -> (Rig, Shared) {
    let (store, account) = crate::rig::store();
    let key = shared_key(&store, &account);
    // What the phone of the world said when the account was linked is not what this one says.
    let mut rows = BTreeMap::new();
    for table in [
        Table::AppStateVersion,
        Table::AppStateMutationMac,
        Table::Contact,
        Table::ChatSettings,
    ] {
        let scan = Scan {
            table,
            after: None,
            limit: 1000,
        };
        let found = ready(store.scan(&account, scan)).expect("rows");
        rows.extend(found.into_iter().map(|(key, _)| (key, None)));
    }
    Rig::write_all(&store, &account, rows);
    let cloud: Shared = Rc::new(RefCell::new(Cloud::new(key, Default::default())));
    (engine(store, account, seed, &cloud), cloud)
}

/// Every collection has had a first version that says nothing of interest: from nothing on it would be a snapshot.
fn primed(seed: u8) -> (Rig, Shared) {
    let (rig, cloud) = with_cloud(seed);
    let first = [
        Action::Locale("de".into()),
        contact(250, Some("first")),
        Action::StatusMute {
            user: chat(251),
            muted: true,
        },
        Action::NoLinkPreviews(true),
        Action::UnarchiveChats(true),
    ];
    for action in first {
        cloud.borrow_mut().remote(&[action]);
    }
    (rig, cloud)
}

fn online(seed: u8) -> (Rig, Shared) {
    let (mut rig, cloud) = primed(seed);
    rig.go_online();
    (rig, cloud)
}

fn notify(rig: &mut Rig, collection: Collection, version: u64) {
    let child = Node::new("collection")
        .attr("name", collection.as_str())
        .attr("version", version);
    let notification = Node::new("notification")
        .attr("id", format!("n{version}"))
        .attr("type", "server_sync")
        .attr("from", Jid::service())
        .child(child);
    rig.say(&notification);
}

fn remote(rig: &mut Rig, cloud: &Shared, actions: &[Action]) -> Collection {
    let collection = cloud.borrow_mut().remote(actions);
    let version = cloud.borrow().log(collection).state.version;
    notify(rig, collection, version);
    collection
}

fn change(rig: &mut Rig, actions: Vec<Action>) -> Option<Result<Reply, CommandError>> {
    let id = rig.command(Command::Change(actions));
    reply(rig, id)
}

fn reply(rig: &Rig, id: baton_core::flow::CommandId) -> Option<Result<Reply, CommandError>> {
    let found = rig.said.replies.iter().find(|(other, _)| *other == id);
    found.map(|(_, result)| result.clone())
}

fn chats(rig: &mut Rig) -> BTreeMap<Jid, Chat> {
    let mut all = BTreeMap::new();
    let mut after = None;
    loop {
        let id = rig.command(Command::Chats { after, limit: 3 });
        let Some(Ok(Reply::Chats { chats, next })) = reply(rig, id) else {
            panic!("{:?}", rig.said.replies);
        };
        all.extend(chats.into_iter().map(|chat| (chat.chat.clone(), chat)));
        after = next;
        if after.is_none() {
            return all;
        }
    }
}

fn contacts(rig: &mut Rig) -> BTreeMap<Jid, Contact> {
    let id = rig.command(Command::Contacts {
        after: None,
        limit: 1000,
    });
    match reply(rig, id) {
        Some(Ok(Reply::Contacts {
            contacts,
            next: None,
        })) => contacts
            .into_iter()
            .map(|contact| (contact.user.clone(), contact))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn settings_of(events: &[(baton_core::state::EventSeq, Event)]) -> Vec<(Action, bool)> {
    let of = |event: &Event| match event {
        Event::Setting(setting) => Some((setting.action.clone(), setting.own)),
        _ => None,
    };
    events.iter().filter_map(|(_, event)| of(event)).collect()
}

fn collection_row(rig: &Rig, collection: Collection) -> record::Collection {
    match rig.row(Key::AppStateVersion(collection.as_str().into())) {
        Row::Present(row) => codec::decode(&row).expect("whole"),
        _ => record::Collection::default(),
    }
}

/// What the engine has of every collection is what the other device has: version, hash, value MACs, and what the rows
/// say about chats and contacts.
fn converged(rig: &mut Rig, cloud: &Shared) {
    for collection in Collection::ALL {
        let row = collection_row(rig, collection);
        let cloud = cloud.borrow();
        let log = cloud.log(collection);
        assert_eq!(
            row.version.unwrap_or(0),
            log.state.version,
            "{collection}: {row:?} {:?}",
            rig.engine.stats()
        );
        if log.state.version > 0 {
            assert_eq!(
                row.hash.as_deref(),
                Some(log.state.hash.to_bytes().as_slice()),
                "{collection}"
            );
        }
        assert!(
            row.pending.is_empty() && row.in_flight.is_none(),
            "{collection}"
        );
        let scan = Scan {
            table: Table::AppStateMutationMac,
            after: None,
            limit: 100_000,
        };
        let rows = ready(rig.store.scan(&rig.account, scan)).expect("rows");
        let macs: BTreeMap<[u8; 32], [u8; 32]> = rows
            .into_iter()
            .filter_map(|(key, row)| match (key, row) {
                (
                    Key::AppStateMutationMac {
                        collection: name,
                        index_mac,
                    },
                    Row::Present(row),
                ) if name == collection.as_str() => {
                    let row: record::Setting = codec::decode(&row).expect("whole");
                    Some((index_mac, row.value_mac?.try_into().ok()?))
                }
                _ => None,
            })
            .collect();
        assert_eq!(macs, log.macs, "{collection}");
    }
    let (have, people) = (chats(rig), contacts(rig));
    let cloud = cloud.borrow();
    let values = cloud.logs.values().flat_map(|log| log.values.values());
    let (mut muted, mut pinned, mut named) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for value in values {
        match value {
            Action::Mute {
                chat,
                until: Some(until),
            } => {
                muted.insert(chat.clone(), *until);
            }
            Action::Pin { chat, pinned: true } => {
                pinned.insert(chat.clone(), ());
            }
            Action::Contact {
                user,
                card: Some(card),
            } => {
                named.insert(user.clone(), card.clone());
            }
            _ => {}
        }
    }
    let ours = have
        .iter()
        .filter_map(|(jid, chat)| Some((jid.clone(), chat.muted?)));
    assert_eq!(ours.collect::<BTreeMap<_, _>>(), muted);
    let ours = have
        .iter()
        .filter(|(_, chat)| chat.pinned)
        .map(|(jid, _)| (jid.clone(), ()));
    assert_eq!(ours.collect::<BTreeMap<_, _>>(), pinned);
    let ours = people
        .iter()
        .filter_map(|(jid, contact)| Some((jid.clone(), contact.card.clone()?)));
    assert_eq!(ours.collect::<BTreeMap<_, _>>(), named);
}

fn own_phone(rig: &mut Rig) -> usize {
    let lid = rig.device().lid.expect("linked");
    let lid = lid.parse::<Jid>().expect("a LID");
    rig.peer(lid.user())
}

/// Questions to the phone that have left, newest last.
fn questions(rig: &Rig) -> Vec<Node> {
    let peer = |node: &&Node| node.tag() == "message" && node.get_str("category") == Some("peer");
    rig.said.nodes.iter().filter(peer).cloned().collect()
}

/// The phone says something that is not for people.
fn phone_says(rig: &mut Rig, phone: usize, id: &str, content: e2e::ProtocolMessage) {
    let message = e2e::Message {
        protocol_message: Some(Box::new(content)),
        ..Default::default()
    };
    let mut rng = rig.rng.fork("phone");
    let (kind, bytes) = rig.peers[phone].seal(&message, &mut rng);
    let stanza = rig.peers[phone]
        .stanza(id, kind, bytes)
        .attr("category", "peer");
    rig.say(&stanza);
}

/// Somebody new writes, and it is shown: whatever becomes of settings, messages come.
fn a_message_arrives(rig: &mut Rig) {
    let peer = rig.peer(&format!("8000000000{:05}", rig.peers.len()));
    let id = format!("text {peer}");
    let text = rig.text(peer, &id, "hello");
    rig.say(&text);
    let mut events = rig.said.events.iter();
    let shown =
        events.any(|(_, event)| matches!(event, Event::Message(message) if message.id == id));
    assert!(shown, "{:?}", rig.said.notices);
}

fn tell(rig: &mut Rig, phone: usize, id: &str, recovery: &SyncdSnapshotRecovery) {
    tell_bytes(rig, phone, id, recovery.encode_to_vec(), None);
}

fn tell_bytes(rig: &mut Rig, phone: usize, id: &str, bytes: Vec<u8>, compressed: Option<bool>) {
    let answer = e2e::PeerDataOperationRequestResponseMessage {
        r#type: Some(8),
        stanza_id: Some("question".into()),
        results: vec![e2e::PeerDataOperationResult {
            syncd_snapshot_fatal_recovery_response: Some(e2e::SyncdSnapshotFatalRecoveryResponse {
                collection_snapshot: Some(bytes),
                is_compressed: compressed,
            }),
        }],
    };
    let content = e2e::ProtocolMessage {
        r#type: Some(17),
        peer_data_operation_request_response_message: Some(answer.encode_to_vec()),
        ..Default::default()
    };
    phone_says(rig, phone, id, content);
}

/// The phone shares a key.
fn share(rig: &mut Rig, phone: usize, key: &(KeyId, [u8; 32]), id: &str) {
    let share = e2e::AppStateSyncKeyShare {
        keys: vec![e2e::AppStateSyncKey {
            key_id: Some(e2e::AppStateSyncKeyId {
                key_id: Some(key.0.as_bytes().to_vec()),
            }),
            key_data: Some(e2e::AppStateSyncKeyData {
                key_data: Some(key.1.to_vec()),
                timestamp: Some(i64::MAX),
                ..Default::default()
            }),
        }],
    };
    let content = e2e::ProtocolMessage {
        r#type: Some(6),
        app_state_sync_key_share: Some(share),
        ..Default::default()
    };
    phone_says(rig, phone, id, content);
}
