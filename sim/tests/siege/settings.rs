//! Settings: an engine, another device, and a service that is as honest as the test lets it be.

use crate::cases;
use crate::cloud::Cloud;
use crate::rig::{Rig, SECOND, ready};
use baton_core::{
    appstate::{
        Collection, KeyId,
        action::{Action, ContactCard, MuteEnd},
    },
    engine::Input,
    flow::{Chat, Command, CommandError, Contact, Event, Reply},
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

#[test]
fn what_another_device_changes_arrives() {
    let (mut rig, cloud) = online(1);
    remote(&mut rig, &cloud, &[mute(1, 7_000), mute(2, 8_000)]);
    remote(&mut rig, &cloud, &[pin(1, true)]);
    remote(&mut rig, &cloud, &[contact(3, Some("Zoë"))]);
    remote(
        &mut rig,
        &cloud,
        &[contact(3, None), contact(4, Some("Åke"))].map(|action| action),
    );
    assert_eq!(
        settings_of(&rig.said.events)
            .into_iter()
            .map(|(action, _)| action)
            .collect::<Vec<_>>()
            .len(),
        6
    );
    assert!(settings_of(&rig.said.events).iter().all(|(_, own)| !own));
    converged(&mut rig, &cloud);
    // A notification of what we have leads to nothing.
    let before = cloud.borrow().asked.len();
    notify(&mut rig, Collection::RegularHigh, 2);
    assert_eq!(cloud.borrow().asked.len(), before);
    assert_eq!(rig.engine.stats().sync.patches, 4);
}

#[test]
fn our_changes_arrive_and_are_told_as_ours() {
    let (mut rig, cloud) = online(2);
    let wanted = vec![mute(1, 7_000), pin(2, true), contact(3, Some("Zoë"))];
    assert_eq!(change(&mut rig, wanted.clone()), Some(Ok(Reply::Done)));
    let seen = settings_of(&rig.said.events);
    assert_eq!(seen.len(), 3);
    assert!(
        wanted
            .iter()
            .all(|action| seen.contains(&(action.clone(), true)))
    );
    converged(&mut rig, &cloud);
    // Removed again; and removed when it is gone already, which is no change.
    change(&mut rig, vec![contact(3, None)]);
    change(&mut rig, vec![contact(3, None)]);
    converged(&mut rig, &cloud);
    assert!(!contacts(&mut rig).contains_key(&chat(3)));
    assert_eq!(rig.engine.stats().sync.changes_refused, 1);
}

/// Another device is faster: its change is taken in first, ours is put on top of it. With and without the missing
/// patches in the answer.
#[test]
fn a_conflict_loses_neither_change() {
    for terse in [false, true] {
        let (mut rig, cloud) = online(3);
        cloud.borrow_mut().terse = terse;
        // Nobody has told us.
        cloud.borrow_mut().remote(&[mute(1, 5_000), mute(2, 5_000)]);
        assert_eq!(
            change(&mut rig, vec![mute(1, 9_000)]),
            Some(Ok(Reply::Done))
        );
        converged(&mut rig, &cloud);
        let have = chats(&mut rig);
        assert_eq!(have[&chat(1)].muted, Some(MuteEnd::At(9_000)));
        assert_eq!(have[&chat(2)].muted, Some(MuteEnd::At(5_000)));
        assert_eq!(rig.engine.stats().sync.conflicts, 1);
        assert_eq!(cloud.borrow().conflicts, 1);
    }
}

/// The service has taken our patch, and its answer gets lost: it is neither lost nor announced twice.
#[test]
fn a_lost_answer_doubles_nothing() {
    for crash in [false, true] {
        let (mut rig, cloud) = online(4);
        cloud.borrow_mut().lose = 1;
        change(&mut rig, vec![mute(1, 9_000)]);
        assert_eq!(cloud.borrow().log(Collection::RegularHigh).ours.len(), 1);
        if crash {
            let (store, account) = (
                rig.store.copy(|| Micros(3_000_000 * SECOND)),
                rig.account.clone(),
            );
            rig = engine(store, account, 5, &cloud);
            rig.go_online();
        } else {
            rig.hang_up();
            rig.pass(5 * SECOND);
        }
        converged(&mut rig, &cloud);
        assert_eq!(cloud.borrow().log(Collection::RegularHigh).ours.len(), 1);
        assert_eq!(rig.engine.stats().sync.changes_out, 1);
    }
}

#[test]
fn long_logs_come_in_pages_and_files() {
    let (mut rig, cloud) = with_cloud(5);
    for n in 0..20 {
        cloud
            .borrow_mut()
            .remote(&[mute(n % 5, 1_000 + i64::from(n))]);
    }
    cloud.borrow_mut().page = 3;
    cloud.borrow_mut().external = true;
    rig.go_online();
    // A collection that is new comes as a snapshot; the rest as patches, three at a time, each in a file.
    converged(&mut rig, &cloud);
    for n in 0..20 {
        cloud
            .borrow_mut()
            .remote(&[mute(n % 5, 2_000 + i64::from(n))]);
    }
    rig.look();
    notify(&mut rig, Collection::RegularHigh, 40);
    converged(&mut rig, &cloud);
    assert_eq!(rig.said.fetches.len(), 20);
    assert!(
        rig.said
            .fetches
            .iter()
            .all(|request| request.path.contains("mms-type=md-app-state"))
    );
}

/// A new account: everything comes from snapshots, and what is not understood is kept and can be asked for.
#[test]
fn the_first_sync_is_a_snapshot() {
    let (mut rig, cloud) = with_cloud(6);
    let label = Action::Label {
        id: "3".into(),
        label: Some(Default::default()),
    };
    cloud
        .borrow_mut()
        .remote(&[contact(1, Some("A")), contact(2, Some("B"))]);
    cloud.borrow_mut().remote(&[contact(1, Some("C"))]);
    cloud.borrow_mut().remote(std::slice::from_ref(&label));
    cloud
        .borrow_mut()
        .remote(&[Action::PushName("Ourselves".into())]);
    cloud.borrow_mut().compact(Collection::CriticalUnblockLow);
    rig.go_online();
    converged(&mut rig, &cloud);
    assert_eq!(rig.device().push_name.as_deref(), Some("Ourselves"));
    let id = rig.command(Command::Settings {
        collection: Collection::Regular,
        after: None,
        limit: 10,
    });
    match reply(&rig, id) {
        Some(Ok(Reply::Settings {
            settings,
            next: None,
        })) => {
            assert_eq!(
                settings.into_iter().map(|it| it.action).collect::<Vec<_>>(),
                [label]
            );
        }
        other => panic!("{other:?}"),
    }
    // Three files, and two collections that begin with nothing.
    assert_eq!(
        (
            rig.engine.stats().sync.snapshots,
            rig.engine.stats().sync.fetches
        ),
        (5, 3)
    );
}

/// Fifty thousand contacts in one snapshot: taken in at once, in one batch with version and hash.
#[test]
fn a_snapshot_of_fifty_thousand() {
    let (mut rig, cloud) = with_cloud(7);
    for portion in 0..5 {
        let all: Vec<Action> = (0..10_000)
            .map(|n| Action::Contact {
                user: Jid::pn(&format!("1555{:07}", portion * 10_000 + n)).expect("digits"),
                card: Some(ContactCard {
                    full_name: Some(format!("Number {n}")),
                    ..Default::default()
                }),
            })
            .collect();
        cloud.borrow_mut().remote(&all);
    }
    rig.chunk = 60_000;
    rig.give(Input::Tick);
    let row = collection_row(&rig, Collection::CriticalUnblockLow);
    assert_eq!(
        row.version,
        Some(5),
        "{:?} {:?}",
        rig.said.notices,
        rig.engine.stats().sync
    );
    let scan = Scan {
        table: Table::Contact,
        after: None,
        limit: 100_000,
    };
    assert_eq!(
        ready(rig.store.scan(&rig.account, scan))
            .expect("rows")
            .len(),
        50_000
    );
    // Nothing of it stays in memory.
    assert!(
        rig.engine.cached_bytes() < 512 << 10,
        "{}",
        rig.engine.cached_bytes()
    );
}

/// Damage of every kind, in the second patch of a collection: the evidence is kept, a snapshot replaces the collection,
/// and nothing but that collection is concerned.
#[test]
fn damage_leads_to_a_snapshot() {
    type Damage = (&'static str, fn(&mut baton_core::proto::sync::SyncdPatch));
    let damages: [Damage; 6] = [
        ("patch mac", |patch| patch.patch_mac = Some(vec![0; 32])),
        ("no patch mac", |patch| patch.patch_mac = None),
        ("snapshot mac", |patch| {
            patch.snapshot_mac = Some(vec![0; 32])
        }),
        ("operation", |patch| patch.mutations[0].operation = Some(1)),
        ("unknown operation", |patch| {
            patch.mutations[0].operation = Some(9)
        }),
        ("value", |patch| {
            let value = patch.mutations[0]
                .record
                .as_mut()
                .and_then(|r| r.value.as_mut())
                .expect("there");
            let mut bytes = value.blob.clone().expect("there").to_vec();
            bytes[20] ^= 1;
            value.blob = Some(bytes.into());
        }),
    ];
    for (what, damage) in damages {
        let (mut rig, cloud) = online(8);
        remote(&mut rig, &cloud, &[mute(1, 5_000), mute(2, 6_000)]);
        converged(&mut rig, &cloud);
        cloud.borrow_mut().bend = Some(Box::new(move |collection, node| {
            if collection != Collection::RegularHigh || node.find("patches").is_none() {
                return node;
            }
            let patches = node.find("patches").expect("there").find_all("patch");
            let bent = patches.map(|patch| {
                let mut patch =
                    baton_core::proto::sync::SyncdPatch::decode(patch.data().expect("bytes"))
                        .expect("a patch");
                damage(&mut patch);
                Node::new("patch").bytes(patch.encode_to_vec())
            });
            Node::new("collection")
                .attr("name", collection.as_str())
                .attr("version", node.get_u64("version").unwrap_or(0))
                .child(Node::new("patches").children(bent.collect::<Vec<_>>()))
        }));
        remote(&mut rig, &cloud, &[mute(1, 0), mute(3, 7_000)]);
        let stats = rig.engine.stats().sync.clone();
        assert_eq!(stats.resyncs, 1, "{what}: {stats:?}");
        assert_eq!(stats.snapshots, 6, "{what}: {stats:?}");
        let evidence = collection_row(&rig, Collection::RegularHigh).evidence;
        assert_eq!(
            (evidence.len(), evidence[0].version),
            (1, Some(2)),
            "{what}"
        );
        // The muted chat that the snapshot does not have any more is not muted any more.
        converged(&mut rig, &cloud);
        remote(&mut rig, &cloud, &[contact(1, Some("still works"))]);
        converged(&mut rig, &cloud);
    }
}

/// A snapshot that is wrong as well: after a few tries the collection is given up, until the next login; the others go
/// on, and so do messages.
#[test]
fn a_collection_that_cannot_be_mended_is_given_up() {
    let (mut rig, cloud) = online(9);
    let peer = rig.peer("800000000000006");
    cloud.borrow_mut().bend = Some(Box::new(|collection, node| {
        if collection == Collection::RegularHigh {
            let patch = baton_core::proto::sync::SyncdPatch {
                version: Some(baton_core::proto::sync::SyncdVersion { version: Some(2) }),
                key_id: Some(baton_core::proto::sync::KeyId {
                    id: Some(vec![0, 0, 0, 0, 0, 1].into()),
                }),
                ..Default::default()
            };
            let patches =
                Node::new("patches").child(Node::new("patch").bytes(patch.encode_to_vec()));
            return Node::new("collection")
                .attr("name", collection.as_str())
                .attr("version", 2u64)
                .child(patches);
        }
        node
    }));
    remote(&mut rig, &cloud, &[mute(1, 5_000)]);
    rig.pass(600 * SECOND);
    let given_up = |rig: &Rig| {
        let failed = |(_, event): &&(_, Event)| matches!(event, Event::SyncFailed { .. });
        rig.said.events.iter().filter(failed).count()
    };
    assert_eq!(given_up(&rig), 1, "{:?}", rig.engine.stats().sync);
    let asked = cloud.borrow().asked.len();
    rig.pass(600 * SECOND);
    assert_eq!(asked, cloud.borrow().asked.len(), "it goes on and on");
    // Neither the others nor messages are concerned.
    remote(&mut rig, &cloud, &[contact(1, Some("fine"))]);
    assert!(contacts(&mut rig).contains_key(&chat(1)));
    let text = rig.text(peer, "m", "hello");
    rig.say(&text);
    assert!(
        rig.said
            .events
            .iter()
            .any(|(_, event)| matches!(event, Event::Message(_)))
    );
    // The next login tries again; the service is itself again.
    cloud.borrow_mut().bend = None;
    rig.hang_up();
    rig.pass(30 * SECOND);
    converged(&mut rig, &cloud);
}

/// A collection of which whatever the service says is wrong: patches and snapshots without MACs.
fn spoil(cloud: &Shared, spoilt: Collection) {
    let key_id = Some(baton_core::proto::sync::KeyId {
        id: Some(vec![0, 0, 0, 0, 0, 1].into()),
    });
    let version = Some(baton_core::proto::sync::SyncdVersion { version: Some(99) });
    let snapshot = baton_core::proto::sync::SyncdSnapshot {
        version,
        key_id: key_id.clone(),
        ..Default::default()
    };
    let reference = cloud.borrow_mut().put_file(&snapshot.encode_to_vec());
    cloud.borrow_mut().bend = Some(Box::new(move |collection, node| {
        if collection != spoilt {
            return node;
        }
        let answer = Node::new("collection")
            .attr("name", collection.as_str())
            .attr("version", 99u64);
        if node.find("snapshot").is_some() {
            return answer.child(Node::new("snapshot").bytes(reference.encode_to_vec()));
        }
        let patch = baton_core::proto::sync::SyncdPatch {
            version,
            key_id: key_id.clone(),
            ..Default::default()
        };
        let patch = Node::new("patch").bytes(patch.encode_to_vec());
        answer.child(Node::new("patches").child(patch))
    }));
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

fn tell(rig: &mut Rig, phone: usize, id: &str, recovery: &SyncdSnapshotRecovery) {
    let answer = e2e::PeerDataOperationRequestResponseMessage {
        r#type: Some(8),
        stanza_id: Some("question".into()),
        results: vec![e2e::PeerDataOperationResult {
            syncd_snapshot_fatal_recovery_response: Some(e2e::SyncdSnapshotFatalRecoveryResponse {
                collection_snapshot: Some(recovery.encode_to_vec()),
                is_compressed: None,
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

/// What neither patches nor snapshots mend, the phone does: it is asked, in a session that it can read, and what it tells
/// takes the place of the collection. Nobody sees any of that but as settings.
#[test]
fn the_phone_mends_what_the_service_cannot() {
    let (mut rig, cloud) = online(21);
    let phone = own_phone(&mut rig);
    remote(&mut rig, &cloud, &[mute(1, 5_000), mute(2, 6_000)]);
    converged(&mut rig, &cloud);
    // What nobody asked for changes nothing.
    let uncalled = cloud.borrow().recovery(Collection::RegularHigh);
    cloud.borrow_mut().remote(&[mute(2, 0)]);
    tell(&mut rig, phone, "uncalled", &uncalled);
    assert_eq!(rig.engine.stats().sync.recoveries, 0);

    spoil(&cloud, Collection::RegularHigh);
    remote(&mut rig, &cloud, &[mute(3, 7_000)]);
    rig.pass(20 * SECOND);
    let asked = questions(&rig);
    assert_eq!(asked.len(), 1, "{:?}", rig.engine.stats().sync);
    assert_eq!(asked[0].get_str("push_priority"), Some("high_force"));
    // The phone of before is gone; the one of now cannot read that.
    let id = asked[0].get_string("id").expect("an id");
    let retry = Node::new("receipt")
        .attr("from", &rig.peers[phone].jid)
        .attr("id", id.clone())
        .attr("type", "retry")
        .child(
            Node::new("retry")
                .attr("id", id.clone())
                .attr("count", 1u64),
        )
        .child(Node::new("registration").bytes(7u32.to_be_bytes().to_vec()))
        .child(Node::new("keys").children(rig.peers[phone].bundle()));
    rig.say(&retry);
    let again = questions(&rig);
    assert_eq!(again.len(), 2, "{:?}", rig.engine.stats().sync);
    assert_eq!(again[1].get_string("id"), Some(id));
    let mut rng = rig.rng.fork("open");
    let read = rig.peers[phone]
        .open(&again[1], &mut rng)
        .expect("readable");
    let read = read.protocol_message.expect("a question");
    let operation = e2e::PeerDataOperationRequestMessage::decode(
        read.peer_data_operation_request_message
            .as_deref()
            .expect("one"),
    )
    .expect("whole");
    let name = operation
        .syncd_collection_fatal_recovery_request
        .and_then(|request| request.collection_name);
    assert_eq!(name.as_deref(), Some("regular_high"));

    let messages = |rig: &Rig| {
        let message = |(_, event): &&(_, Event)| matches!(event, Event::Message(_));
        rig.said.events.iter().filter(message).count()
    };
    let before = messages(&rig);
    let recovery = cloud.borrow().recovery(Collection::RegularHigh);
    cloud.borrow_mut().bend = None;
    tell(&mut rig, phone, "told", &recovery);
    converged(&mut rig, &cloud);
    let stats = rig.engine.stats().sync.clone();
    assert_eq!((stats.recoveries, stats.given_up), (1, 0), "{stats:?}");
    assert_eq!(messages(&rig), before, "the answer was shown");
    // Patches go on top of it, ours too.
    change(&mut rig, vec![mute(4, 8_000)]);
    remote(&mut rig, &cloud, &[mute(1, 0)]);
    converged(&mut rig, &cloud);
}

/// The phone tells nonsense, or something that is older, or nothing: given up, and nothing of it is believed.
#[test]
fn a_phone_that_does_not_mend_it() {
    for what in 0..4 {
        let (mut rig, cloud) = online(22);
        let phone = own_phone(&mut rig);
        remote(&mut rig, &cloud, &[mute(1, 5_000)]);
        let old = cloud.borrow().recovery(Collection::RegularHigh);
        remote(&mut rig, &cloud, &[mute(2, 6_000)]);
        let row = collection_row(&rig, Collection::RegularHigh);
        spoil(&cloud, Collection::RegularHigh);
        remote(&mut rig, &cloud, &[mute(3, 7_000)]);
        rig.pass(20 * SECOND);
        assert_eq!(questions(&rig).len(), 1);
        let mut recovery = cloud.borrow().recovery(Collection::RegularHigh);
        match what {
            0 => recovery.collection_lthash = Some(vec![0; 128]),
            1 => recovery = old,
            2 => recovery.mutation_records[0].value = Some(vec![0xff]),
            _ => {}
        }
        if what < 3 {
            tell(&mut rig, phone, "told", &recovery);
        }
        rig.pass(600 * SECOND);
        let stats = rig.engine.stats().sync.clone();
        assert_eq!(stats.recovery_requests, 1, "{what}: {stats:?}");
        assert_eq!(
            (stats.recoveries, stats.given_up),
            (0, 1),
            "{what}: {stats:?}"
        );
        let now = collection_row(&rig, Collection::RegularHigh);
        assert_eq!((now.version, now.hash), (row.version, row.hash), "{what}");
        // Messages and the others go on; the next login tries again.
        remote(&mut rig, &cloud, &[contact(1, Some("fine"))]);
        assert!(contacts(&mut rig).contains_key(&chat(1)));
        cloud.borrow_mut().bend = None;
        rig.hang_up();
        rig.pass(30 * SECOND);
        converged(&mut rig, &cloud);
    }
}

/// The phone changes its key. What is set or removed after that leaves the place that it had under the old one, and is
/// not taken for gone.
#[test]
fn settings_leave_their_place_under_an_older_key() {
    let (mut rig, cloud) = online(23);
    let phone = own_phone(&mut rig);
    remote(&mut rig, &cloud, &[mute(1, 5_000), mute(2, 6_000)]);
    remote(
        &mut rig,
        &cloud,
        &[contact(1, Some("old")), contact(2, Some("gone"))],
    );
    converged(&mut rig, &cloud);
    let new = (KeyId::new(vec![0, 0, 0, 0, 0, 9]).expect("short"), [9; 32]);
    let old = std::mem::replace(&mut cloud.borrow_mut().key, new.clone());
    cloud.borrow_mut().others.push(old);
    share(&mut rig, phone, &new, "k2");
    let settings = |cloud: &Shared| {
        let cloud = cloud.borrow();
        let high = cloud.log(Collection::RegularHigh).macs.len();
        (high, cloud.log(Collection::CriticalUnblockLow).macs.len())
    };
    let before = settings(&cloud);
    rig.said.events.clear();
    let changes = vec![mute(1, 9_000), contact(1, Some("new")), contact(2, None)];
    assert_eq!(change(&mut rig, changes), Some(Ok(Reply::Done)));
    converged(&mut rig, &cloud);
    assert_eq!(settings(&cloud), (before.0, before.1 - 1));
    let shown = settings_of(&rig.said.events);
    assert_eq!(
        shown,
        [
            (contact(2, None), true),
            (contact(1, Some("new")), true),
            (mute(1, 9_000), true),
        ]
    );
    // Another device does not tidy up: both stand, and what was said last counts.
    remote(&mut rig, &cloud, &[mute(2, 7_777)]);
    assert_eq!(settings(&cloud).0, before.0 + 1);
    converged(&mut rig, &cloud);
    // We do, when it is our turn.
    change(&mut rig, vec![mute(2, 8_888)]);
    converged(&mut rig, &cloud);
    assert_eq!(settings(&cloud).0, before.0);
    assert_eq!(rig.engine.stats().sync.resyncs, 0);
}

/// Versions that skip: asked once more, then a snapshot.
#[test]
fn a_gap_in_the_versions_is_asked_about() {
    for always in [false, true] {
        let (mut rig, cloud) = online(10);
        remote(&mut rig, &cloud, &[mute(1, 5_000)]);
        let mut times = if always { 1000 } else { 1 };
        cloud.borrow_mut().bend = Some(Box::new(move |collection, node| {
            let Some(patches) = node.find("patches").filter(|_| times > 0) else {
                return node;
            };
            times -= 1;
            let rest: Vec<Node> = patches.find_all("patch").skip(1).cloned().collect();
            Node::new("collection")
                .attr("name", collection.as_str())
                .attr("version", node.get_u64("version").unwrap_or(0))
                .child(Node::new("patches").children(rest))
        }));
        cloud.borrow_mut().remote(&[mute(1, 6_000)]);
        remote(&mut rig, &cloud, &[mute(1, 7_000)]);
        let stats = rig.engine.stats().sync.clone();
        assert_eq!(stats.resyncs, u64::from(always), "{stats:?}");
        assert_eq!(stats.version_gaps, 1 + u64::from(always), "{stats:?}");
        converged(&mut rig, &cloud);
    }
}

/// A key that we do not have: the phone is asked, once; when it comes, the collection goes on.
#[test]
fn a_missing_key_is_asked_for_and_waited_for() {
    let (mut rig, cloud) = online(11);
    let phone = own_phone(&mut rig);
    let old = cloud.borrow().key.clone();
    let new = (KeyId::new(vec![0, 0, 0, 0, 0, 9]).expect("short"), [9; 32]);
    cloud.borrow_mut().others.push(old);
    cloud.borrow_mut().key = new.clone();
    remote(&mut rig, &cloud, &[mute(1, 5_000)]);
    let asked = |rig: &Rig| questions(rig).len();
    assert_eq!(asked(&rig), 1, "{:?}", rig.said.nodes);
    assert_eq!(rig.engine.stats().sync.missing_keys, 1);
    // Neither a repetition nor a new owner asks again on the same day.
    notify(&mut rig, Collection::RegularHigh, 7);
    rig.hang_up();
    rig.pass(30 * SECOND);
    assert_eq!(asked(&rig), 1);
    // Others go on.
    assert_eq!(
        collection_row(&rig, Collection::RegularHigh).version,
        Some(1)
    );

    share(&mut rig, phone, &new, "k1");
    converged(&mut rig, &cloud);
    // From here on ours are made with the newest key.
    change(&mut rig, vec![pin(1, true)]);
    converged(&mut rig, &cloud);
    let last = cloud
        .borrow()
        .log(Collection::RegularLow)
        .patches
        .last()
        .cloned()
        .expect("ours");
    assert_eq!(
        last.key_id.and_then(|id| id.id),
        Some(new.0.as_bytes().clone())
    );
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

/// Files that are not what was announced, or cannot be had: tried again, never believed.
#[test]
fn a_bad_file_is_not_believed() {
    for what in 0..3 {
        let (mut rig, cloud) = online(12);
        cloud.borrow_mut().external = true;
        let collection = cloud.borrow_mut().remote(&[mute(1, 5_000)]);
        let files = cloud.borrow().files.clone();
        cloud.borrow_mut().bend = Some(Box::new(move |_, node| {
            for file in files.borrow_mut().values_mut() {
                match what {
                    0 => file[3] ^= 1,
                    1 => file.truncate(file.len() - 1),
                    _ => file.extend([0; 16]),
                }
            }
            node
        }));
        notify(&mut rig, collection, 2);
        assert_eq!(rig.engine.stats().sync.bad_files, 1);
        assert_eq!(collection_row(&rig, collection).version, Some(1));
        cloud.borrow_mut().bend = None;
        rig.pass(30 * SECOND);
        converged(&mut rig, &cloud);
    }
    // Nobody has it.
    let (mut rig, cloud) = online(13);
    cloud.borrow_mut().external = true;
    let collection = cloud.borrow_mut().remote(&[mute(1, 5_000)]);
    let files = cloud.borrow().files.clone();
    cloud.borrow_mut().bend = Some(Box::new(move |_, node| {
        files.borrow_mut().clear();
        node
    }));
    notify(&mut rig, collection, 2);
    rig.pass(600 * SECOND);
    assert_eq!(rig.engine.stats().sync.given_up, 1);
    assert!(rig.said.fetches.len() <= 5);
}

#[test]
fn commands_are_judged_before_they_are_taken() {
    let (mut rig, _cloud) = online(14);
    let unknown = Action::Unknown {
        index: b"[]".to_vec().into(),
        data: Vec::new().into(),
        removed: false,
    };
    let invalid = |result| matches!(result, Some(Err(CommandError::Invalid(_))));
    assert!(invalid(change(&mut rig, vec![])));
    assert!(invalid(change(&mut rig, vec![unknown])));
    assert!(invalid(change(&mut rig, vec![mute(1, 5); 1025])));
    assert!(invalid(change(
        &mut rig,
        vec![Action::Mute {
            chat: chat(1),
            until: Some(MuteEnd::At(-7))
        }]
    )));
    assert!(invalid(change(
        &mut rig,
        vec![Action::PushName("x".repeat(2 << 20))]
    )));
    assert_eq!(
        change(&mut rig, vec![mute(1, 5), mute(1, 6)]),
        Some(Ok(Reply::Done))
    );
    assert_eq!(chats(&mut rig)[&chat(1)].muted, Some(MuteEnd::At(6)));
}

#[derive(Clone, Debug)]
enum Op {
    /// Another device changes something; we are told, or not.
    Remote(Vec<(u8, u8, bool)>, bool),
    /// We do.
    Local(Vec<(u8, u8, bool)>),
    Hold,
    Commit(usize),
    Crash,
    HangUp,
    Lose,
    Terse(bool),
    External(bool),
    Page(usize),
    Compact(u8),
    Pass(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let what = || vec((0..3u8, 0..4u8, any::<bool>()), 1..4);
    prop_oneof![
        4 => (what(), any::<bool>()).prop_map(|(what, told)| Op::Remote(what, told)),
        5 => what().prop_map(Op::Local),
        2 => Just(Op::Hold),
        2 => (0..4usize).prop_map(Op::Commit),
        2 => Just(Op::Crash),
        1 => Just(Op::HangUp),
        1 => Just(Op::Lose),
        1 => any::<bool>().prop_map(Op::Terse),
        1 => any::<bool>().prop_map(Op::External),
        1 => (1..5usize).prop_map(Op::Page),
        1 => (0..5u8).prop_map(Op::Compact),
        2 => (1..20u8).prop_map(Op::Pass),
    ]
}

proptest! {
    #![proptest_config(cases(48))]

    /// Whatever happens in whatever order, crashes included: no patch of ours is unsound (the other device verifies each),
    /// every change that was accepted is in the log, and in the end both have the same.
    #[test]
    fn engine_and_model_agree(ops in vec(op(), 1..40), seed in any::<u8>()) {
        let (mut rig, cloud) = primed(seed);
        // Connections that were asked for while commits were held are made and ended in one breath.
        rig.confused = true;
        rig.give(Input::Tick);
        let mut lives = 1u64;
        let mut unique = 10_000i64;
        // Accepted and confirmed changes, by the setting's name, with the last value.
        let mut accepted: BTreeMap<(u8, u8), Action> = BTreeMap::new();
        let mut crash = |rig: &mut Rig| {
            lives += 1;
            let later = lives * 2_000_000;
            let (store, account) = (rig.store.copy(move || Micros(later * SECOND)), rig.account.clone());
            let unix = rig.now.unix;
            *rig = engine(store, account, seed.wrapping_add(lives as u8), &cloud);
            rig.now.unix = unix;
            rig.confused = true;
            rig.give(Input::Tick);
        };
        for op in ops {
            match op {
                Op::Remote(what, told) => {
                    let mut actions: BTreeMap<u8, Action> = BTreeMap::new();
                    let kind = what[0].0;
                    for (_, n, on) in what {
                        unique += 1;
                        let action = action(kind, n, on, unique);
                        let here = cloud.borrow().log(action.collection().expect("known")).values.contains_key(&action.change(0).expect("known").1.index);
                        let removes = matches!(action, Action::Contact { card: None, .. });
                        if here || !removes {
                            actions.insert(n, action);
                        }
                    }
                    let actions: Vec<Action> = actions.into_values().collect();
                    if actions.is_empty() {
                        continue;
                    }
                    let collection = cloud.borrow_mut().remote(&actions);
                    if told && rig.is_up() {
                        let version = cloud.borrow().log(collection).state.version;
                        notify(&mut rig, collection, version);
                    }
                }
                Op::Local(what) => {
                    let mut actions = Vec::new();
                    let mut names = Vec::new();
                    for (kind, n, on) in what {
                        unique += 1;
                        actions.push(action(kind, n, on, unique));
                        names.push((kind, n));
                    }
                    // With held commits the answer comes later, or never: then nothing was promised.
                    let done = change(&mut rig, actions.clone()) == Some(Ok(Reply::Done));
                    for (name, action) in names.into_iter().zip(actions) {
                        if done {
                            accepted.insert(name, action);
                        } else {
                            accepted.remove(&name);
                        }
                    }
                }
                Op::Hold => rig.hold = true,
                Op::Commit(n) => rig.commit(n),
                Op::Crash => crash(&mut rig),
                Op::HangUp => {
                    // A driver says so only of a connection that it has made.
                    if rig.is_up() {
                        rig.hang_up();
                    }
                    rig.pass(5 * SECOND);
                }
                Op::Lose => cloud.borrow_mut().lose = 1,
                Op::Terse(on) => cloud.borrow_mut().terse = on,
                Op::External(on) => cloud.borrow_mut().external = on,
                Op::Page(n) => cloud.borrow_mut().page = n,
                Op::Compact(n) => {
                    // A service forgets only what every device has: ours is at its version already, or asks anew.
                    let collection = Collection::ALL[usize::from(n)];
                    let have = collection_row(&rig, collection).version.unwrap_or(0);
                    if have == cloud.borrow().log(collection).state.version {
                        cloud.borrow_mut().compact(collection);
                    }
                }
                Op::Pass(seconds) => rig.pass(u64::from(seconds) * SECOND),
            }
            prop_assert!(rig.stopped.is_none(), "{:?}", rig.stopped);
        }
        // Everything heals.
        rig.commit(usize::MAX);
        rig.hold = false;
        cloud.borrow_mut().lose = 0;
        rig.pass(200 * SECOND);
        rig.command(Command::Sync(None));
        rig.pass(100 * SECOND);
        converged(&mut rig, &cloud);
        prop_assert_eq!(rig.engine.stats().sync.resyncs, 0);
        prop_assert_eq!(rig.engine.stats().sync.given_up, 0);
        for (name, action) in accepted {
            let removes = matches!(action, Action::Contact { card: None, .. });
            let cloud = cloud.borrow();
            let log = cloud.log(action.collection().expect("known"));
            prop_assert!(removes || log.ours.contains(&action), "{name:?} was accepted and is nowhere");
        }
    }
}

fn action(kind: u8, n: u8, on: bool, unique: i64) -> Action {
    match kind {
        0 => mute(n, if on { unique } else { unique + 1_000_000 }),
        1 => contact(n, on.then(|| format!("name {unique}")).as_deref()),
        _ => Action::Archive {
            chat: chat(n),
            archived: on,
            range: Some(baton_core::appstate::action::MessageRange {
                last: unique,
                ..Default::default()
            }),
        },
    }
}
