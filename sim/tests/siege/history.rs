//! Chunks of history: what arrives, when the phone hears of it, and what a bad one leads to.

use crate::rig::{Rig, SECOND};
use baton_core::{
    crypto::{AesGcm, hkdf_sha256, sha256},
    flow::{Command, Event, HistoryKind, Reply},
    jid::Jid,
    media::{self, MediaKind},
    proto::{
        e2e::{self, HistorySyncNotification},
        history::{
            Conversation, HistorySync, HistorySyncMsg, PhoneNumberToLidMapping, Pushname,
            WebMessageInfo,
        },
        record,
    },
    state::{Key, Micros, Row, codec},
    wire::node::Node,
};
use flate2::{Compression, write::ZlibEncoder};
use prost::Message as _;
use std::io::Write as _;

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn user(n: usize) -> String {
    format!("1555000{n:04}@s.whatsapp.net")
}

/// Nothing that deflate could make small.
fn noise(chat: usize, n: usize, bytes: usize) -> Vec<u8> {
    let part = |at: usize| sha256(&[&chat.to_be_bytes(), &n.to_be_bytes(), &at.to_be_bytes()]);
    (0..bytes.div_ceil(32)).flat_map(part).collect()
}

/// So many chats with so many messages of so many bytes.
fn history(chats: usize, messages: usize, bytes: usize) -> HistorySync {
    let message = |chat: usize, n: usize| HistorySyncMsg {
        message: Some(WebMessageInfo {
            key: Some(e2e::MessageKey {
                remote_jid: Some(user(chat)),
                from_me: Some(n.is_multiple_of(2)),
                id: Some(format!("M{chat}-{n}")),
                ..Default::default()
            }),
            message: Some(noise(chat, n, bytes)),
            message_timestamp: Some(1_700_000_000),
            message_secret: Some(vec![7; 32]),
            ..Default::default()
        }),
        msg_order_id: Some(1),
    };
    HistorySync {
        sync_type: Some(3),
        conversations: (0..chats)
            .map(|chat| Conversation {
                id: Some(user(chat)),
                messages: (0..messages).map(|n| message(chat, n)).collect(),
                archived: Some(chat == 1),
                pinned: Some(u32::from(chat == 2)),
                mute_end_time: (chat == 3).then_some(u64::MAX),
                name: Some(format!("chat {chat}")),
                lid_jid: Some(format!("9000{chat:04}@lid")),
                ..Default::default()
            })
            .collect(),
        pushnames: vec![Pushname {
            id: Some(user(0)),
            pushname: Some("Zoë".into()),
        }],
        phone_number_to_lid_mappings: vec![PhoneNumberToLidMapping {
            pn_jid: Some(user(77)),
            lid_jid: Some("123456@lid".into()),
        }],
        ..Default::default()
    }
}

/// The phone offers a file.
fn offer(rig: &Rig, compressed: &[u8]) -> HistorySyncNotification {
    let key = [9; 32];
    let file = media::encrypt(MediaKind::History, &key, compressed);
    let path = format!("/h/{}", rig.files.borrow().len());
    let notification = HistorySyncNotification {
        media_key: Some(key.to_vec()),
        direct_path: Some(path.clone()),
        file_sha256: Some(sha256(&[compressed]).to_vec()),
        file_enc_sha256: Some(sha256(&[&file]).to_vec()),
        file_length: Some(compressed.len() as u64),
        sync_type: Some(3),
        chunk_order: Some(1),
        progress: Some(40),
        ..Default::default()
    };
    rig.files.borrow_mut().insert(path, file);
    notification
}

fn phone(rig: &mut Rig) -> usize {
    let lid = rig
        .device()
        .lid
        .expect("linked")
        .parse::<Jid>()
        .expect("a LID");
    rig.peer(lid.user())
}

fn announce(rig: &mut Rig, phone: usize, notification: &HistorySyncNotification, id: &str) {
    let message = e2e::Message {
        protocol_message: Some(Box::new(e2e::ProtocolMessage {
            r#type: Some(5),
            history_sync_notification: Some(notification.clone()),
            ..Default::default()
        })),
        ..Default::default()
    };
    let mut rng = rig.rng.fork("phone");
    let (kind, bytes) = rig.peers[phone].seal(&message, &mut rng);
    let stanza = rig.peers[phone]
        .stanza(id, kind, bytes)
        .attr("category", "peer");
    rig.say(&stanza);
}

fn told(rig: &Rig) -> usize {
    let receipt =
        |node: &&Node| node.tag() == "receipt" && node.get_str("type") == Some("hist_sync");
    rig.said.nodes.iter().filter(receipt).count()
}

/// Ids of the messages shown, and how the chunks ended. Shown events are acknowledged: there is a window.
fn shown(rig: &mut Rig) -> (Vec<String>, Vec<Option<String>>) {
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    loop {
        let events = std::mem::take(&mut rig.said.events);
        let Some((last, _)) = events.last() else {
            return (ids, ends);
        };
        let last = *last;
        for (_, event) in events {
            match event {
                Event::History(part) => ids.extend(part.messages.into_iter().map(|message| {
                    let info = WebMessageInfo::decode(message.info).expect("whole");
                    info.key.and_then(|key| key.id).expect("an id")
                })),
                Event::HistoryEnded { why, .. } => ends.push(why),
                _ => {}
            }
        }
        rig.command(Command::Acknowledge(last));
    }
}

fn expected(chats: usize, messages: usize) -> Vec<String> {
    (0..chats)
        .flat_map(|chat| (0..messages).map(move |n| format!("M{chat}-{n}")))
        .collect()
}

#[test]
fn a_chunk_is_taken_in_and_then_the_phone_is_told() {
    for inline in [true, false] {
        let mut rig = Rig::online(1);
        let phone = phone(&mut rig);
        let content = zlib(&history(5, 40, 200).encode_to_vec());
        let mut notification = offer(&rig, &content);
        if inline {
            notification.direct_path = None;
            notification.initial_hist_bootstrap_inline_payload = Some(content);
        }
        announce(&mut rig, phone, &notification, "h1");
        assert_eq!(told(&rig), 1);
        let (ids, ends) = shown(&mut rig);
        assert_eq!(ids, expected(5, 40));
        assert_eq!(ends, [None]);

        // What was learned from it.
        let id = rig.command(Command::Chats {
            after: None,
            limit: 10,
        });
        let chats = rig
            .said
            .replies
            .iter()
            .find_map(|(other, result)| match result {
                Ok(Reply::Chats { chats, .. }) if *other == id => Some(chats.clone()),
                _ => None,
            });
        let chats = chats.expect("a page");
        assert_eq!(chats.len(), 5);
        let seen: Vec<_> = chats
            .iter()
            .map(|c| (c.archived, c.pinned, c.muted.is_some()))
            .collect();
        assert_eq!(
            seen,
            [
                (false, false, false),
                (true, false, false),
                (false, true, false),
                (false, false, true),
                (false, false, false)
            ]
        );
        assert_eq!(chats[4].name.as_deref(), Some("chat 4"));
        let row = |key| match rig.row(key) {
            Row::Present(row) => row,
            other => panic!("{other:?}"),
        };
        let name: record::Contact =
            codec::decode(&row(Key::Contact(user(0).parse().expect("a JID")))).expect("whole");
        assert_eq!(name.push_name.as_deref(), Some("Zoë"));
        for (phone, lid) in [("15550000077", "123456"), ("15550000004", "90000004")] {
            let mapping: record::LidMapping =
                codec::decode(&row(Key::LidMap(phone.into()))).expect("whole");
            assert_eq!(mapping.lid.as_deref(), Some(lid));
        }
        let jid: Jid = user(2).parse().expect("a JID");
        row(Key::MessageSecret {
            chat: jid.clone(),
            sender: jid,
            id: "M2-1".into(),
        });

        // The service confirms it: then nothing is left of the announcement.
        rig.say(
            &Node::new("ack")
                .attr("class", "receipt")
                .attr("id", "h1")
                .attr("type", "hist_sync"),
        );
        assert_eq!(
            rig.row(Key::AppStateVersion("history/h1".into())),
            Row::Absent
        );
        // The same chunk under another announcement: the phone is told, and nothing is shown twice.
        announce(&mut rig, phone, &notification, "h2");
        assert_eq!(told(&rig), 2);
        let (ids, ends) = shown(&mut rig);
        assert_eq!((ids.len(), ends), (0, vec![None]));
        assert_eq!(rig.engine.stats().sync.stale_history, 1);
    }
}

/// An announcement has two receipts under one id: that it arrived, and later that the chunk is here. When the service
/// confirms the first, the second is not confirmed: it is sent again on the next connection.
#[test]
fn a_confirmed_delivery_is_not_a_confirmed_chunk() {
    let mut rig = Rig::online(1);
    let phone = phone(&mut rig);
    let notification = offer(&rig, &zlib(&history(1, 1, 20).encode_to_vec()));
    announce(&mut rig, phone, &notification, "h1");
    assert_eq!(told(&rig), 1);
    let confirmed = Node::new("ack").attr("class", "receipt").attr("id", "h1");
    rig.say(&confirmed);
    rig.say(&confirmed.clone().attr("type", "peer_msg"));
    rig.hang_up();
    rig.pass(5 * SECOND);
    assert_eq!(told(&rig), 2, "told again");
    rig.say(&confirmed.attr("type", "hist_sync"));
    let row = Key::AppStateVersion("history/h1".into());
    assert_eq!(rig.row(row), Row::Absent);
}

/// As long as the store is slow, the phone hears nothing and the download does not go on.
#[test]
fn the_phone_is_told_when_it_is_durable() {
    let mut rig = Rig::online(2);
    let phone = phone(&mut rig);
    let notification = offer(&rig, &zlib(&history(3, 100, 300).encode_to_vec()));
    rig.hold = true;
    announce(&mut rig, phone, &notification, "h1");
    for _ in 0..1000 {
        if rig.held.is_empty() {
            break;
        }
        assert_eq!(told(&rig), 0);
        rig.commit(1);
    }
    assert_eq!(told(&rig), 1);
    assert_eq!(shown(&mut rig).0, expected(3, 100));
}

/// A crash in the middle: the next owner begins again and shows nothing twice. A file longer than is held is read twice.
#[test]
fn a_crash_in_the_middle_doubles_nothing() {
    let content = zlib(&history(20, 100, 1000).encode_to_vec());
    assert!(content.len() > 1 << 20, "{} bytes", content.len());
    for commits in [1, 3, 8, 20, 40] {
        let mut rig = Rig::online(3);
        rig.chunk = 60_000;
        let phone = phone(&mut rig);
        let notification = offer(&rig, &content);
        rig.hold = true;
        announce(&mut rig, phone, &notification, "h1");
        for _ in 0..commits {
            rig.commit(1);
        }
        let files = rig.files.clone();
        let mut ids = shown(&mut rig).0;
        let (store, account) = (
            rig.store.copy(|| Micros(3_000_000 * SECOND)),
            rig.account.clone(),
        );
        crate::rig::bury(&store);
        // What was shown and not acknowledged (the acknowledgement was lost too) is shown again.
        rig = Rig::with(store, account, 4, |_| {});
        rig.files = files;
        rig.chunk = 60_000;
        rig.give(baton_core::engine::Input::Tick);
        rig.pass(30 * SECOND);
        let again = shown(&mut rig).0;
        assert_eq!(again, expected(20, 100), "after {commits} commits");
        ids.truncate(again.len());
        assert!(again.starts_with(&ids));
        if commits > 8 {
            assert!(
                rig.engine.stats().sync.history_messages < 2000,
                "it began at the beginning"
            );
        }
    }
}

/// Every kind of bad chunk: tried a few times, then given up with an event; the phone is not told that we have it, and
/// the next chunk is taken in.
#[test]
fn a_bad_chunk_is_given_up() {
    let sound = history(2, 10, 100).encode_to_vec();
    let good = zlib(&sound);
    let cut = &good[..good.len() - 10];
    type Spoil = fn(&mut Vec<u8>);
    let nothing: Spoil = |_| {};
    let cases: [(&str, Vec<u8>, Spoil); 6] = [
        (
            "not zlib",
            b"this is not what zlib looks like, at all".to_vec(),
            nothing,
        ),
        ("cut", cut.to_vec(), nothing),
        ("not a chunk", zlib(&[0xff; 100]), nothing),
        ("cut inside", zlib(&sound[..sound.len() - 3]), nothing),
        ("changed on the way", good.clone(), |file| file[20] ^= 1),
        ("cut on the way", good.clone(), |file| file.truncate(30)),
    ];
    for (what, content, spoil) in cases {
        let mut rig = Rig::online(5);
        let phone = phone(&mut rig);
        let notification = offer(&rig, &content);
        rig.files.borrow_mut().values_mut().for_each(spoil);
        announce(&mut rig, phone, &notification, "bad");
        rig.pass(60 * SECOND);
        // A file that is not what was announced might be uploaded again; this phone does not.
        let stats = rig.engine.stats().sync.clone();
        let files = u64::from(what.ends_with("on the way"));
        assert_eq!(stats.reupload_requests, files, "{what}");
        if files > 0 {
            assert_eq!(shown(&mut rig).1.len(), 0, "{what}");
            rig.pass(660 * SECOND);
        }
        let (_, ends) = shown(&mut rig);
        assert_eq!(ends.len(), 1, "{what}");
        assert!(ends[0].is_some(), "{what}");
        assert_eq!(
            (told(&rig), rig.engine.stats().sync.bad_history),
            (0, 1),
            "{what}"
        );
        assert_eq!(
            rig.row(Key::AppStateVersion("history/bad".into())),
            Row::Absent
        );
        let notification = offer(&rig, &good);
        announce(&mut rig, phone, &notification, "good");
        assert_eq!(told(&rig), 1, "{what}");
        // What a bad chunk had before it went wrong may have been taken in.
        assert!(shown(&mut rig).0.ends_with(&expected(2, 10)), "{what}");
    }
}

/// What the phone was asked to upload again.
fn asks(rig: &Rig) -> Vec<Node> {
    let is = |node: &&Node| node.tag() == "receipt" && node.get_str("type") == Some("server-error");
    rig.said.nodes.iter().filter(is).cloned().collect()
}

/// The phone's answer to that.
fn uploaded(rig: &Rig, id: &str, path: &str, result: i32) -> Node {
    let key = hkdf_sha256::<32>(&[], &[9; 32], b"WhatsApp Media Retry Notification");
    let told = e2e::MediaRetryNotification {
        stanza_id: Some(id.into()),
        direct_path: Some(path.into()),
        result: Some(result),
        message_secret: None,
    };
    let mut sealed = told.encode_to_vec();
    AesGcm::new(&key).seal(&[3; 12], id.as_bytes(), &mut sealed);
    let phone = rig.device().lid.expect("linked").parse::<Jid>();
    let phone = phone.expect("a LID").bare();
    Node::new("notification")
        .attr("id", id)
        .attr("type", "mediaretry")
        .attr("from", phone.clone())
        .child(Node::new("rmr").attr("jid", phone).attr("from_me", "true"))
        .child(
            Node::new("encrypt")
                .child(Node::new("enc_p").bytes(sealed))
                .child(Node::new("enc_iv").bytes(vec![3; 12])),
        )
}

/// Announces a chunk of which the file is gone; returns the file.
fn announce_what_is_gone(rig: &mut Rig) -> Vec<u8> {
    let phone = phone(rig);
    let notification = offer(rig, &zlib(&history(2, 10, 100).encode_to_vec()));
    let path = notification.direct_path.clone().expect("a path");
    let file = rig.files.borrow_mut().remove(&path).expect("the file");
    announce(rig, phone, &notification, "h1");
    file
}

/// The next host, on what is in the store.
fn next_owner(rig: &Rig, seed: u8) -> Rig {
    let store = rig.store.copy(|| Micros(3_000_000 * SECOND));
    crate::rig::bury(&store);
    let mut next = Rig::with(store, rig.account.clone(), seed, |_| {});
    next.files = rig.files.clone();
    next
}

/// A file that cannot be had: the phone is asked to upload it again, and says where it is then. It is asked once.
#[test]
fn a_file_that_is_gone_is_uploaded_again() {
    for (n, answer) in [Some(1), Some(2), None].into_iter().enumerate() {
        let mut rig = Rig::online(8);
        let phone = phone(&mut rig);
        let content = zlib(&history(2, 10, 100).encode_to_vec());
        let notification = offer(&rig, &content);
        let path = notification.direct_path.clone().expect("a path");
        let file = rig.files.borrow_mut().remove(&path).expect("the file");
        announce(&mut rig, phone, &notification, "h1");
        rig.pass(60 * SECOND);
        let asked = asks(&rig);
        assert_eq!(asked.len(), 1, "{:?}", rig.engine.stats().sync);
        assert_eq!(asked[0].get_str("category"), Some("peer"));
        assert_eq!(asked[0].get_str("id"), Some("h1"));
        let rmr = asked[0].find("rmr").expect("what it is about");
        assert_eq!(rmr.get_str("from_me"), Some("true"));
        let key = hkdf_sha256::<32>(&[], &[9; 32], b"WhatsApp Media Retry Notification");
        let cipher = AesGcm::new(&key);
        let part = |name| asked[0].path(&["encrypt", name]).and_then(Node::data);
        let mut said = part("enc_p").expect("sealed").to_vec();
        let nonce: [u8; 12] = part("enc_iv").expect("a nonce").try_into().expect("12");
        cipher
            .open_in_place(&nonce, b"h1", &mut said)
            .expect("ours");
        let said = e2e::ServerErrorReceipt::decode(said.as_slice()).expect("whole");
        assert_eq!(said.stanza_id.as_deref(), Some("h1"));
        // Others need not wait.
        let second = offer(&rig, &zlib(&history(1, 3, 10).encode_to_vec()));
        announce(&mut rig, phone, &second, "h2");
        assert_eq!(told(&rig), 1);
        assert_eq!(shown(&mut rig).0, expected(1, 3));

        // It may have been lost with the connection.
        rig.hang_up();
        rig.pass(20 * SECOND);
        assert_eq!(asks(&rig).len(), 2);
        if let Some(result) = answer {
            rig.files.borrow_mut().insert("/again".into(), file);
            let notification = uploaded(&rig, "h1", "/again", result);
            rig.say(&notification);
        }
        rig.pass(660 * SECOND);
        let (ids, ends) = shown(&mut rig);
        let heard = rig.said.nodes.iter().any(|node| {
            node.get_str("type") == Some("hist_sync") && node.get_str("id") == Some("h1")
        });
        assert_eq!(heard, n == 0, "{answer:?}");
        if n == 0 {
            assert_eq!((ids, ends), (expected(2, 10), vec![None]));
        } else {
            assert!(ids.is_empty(), "{answer:?}");
            let why = ends[0].as_deref().expect("a reason");
            assert!(why.contains("upload"), "{why}");
        }
        assert_eq!(asks(&rig).len(), 2);
    }
}

/// Files come from other hosts than stanzas: that one is gone may become known while there is no connection on which the
/// phone could be asked. It is asked on the next one, however late that is. Found by tier A (seed 65793 and eight others):
/// the chunk was given up for good.
#[test]
fn a_file_that_is_found_to_be_gone_without_a_connection_is_asked_for_on_the_next() {
    for (n, away) in [60, 1_200].into_iter().enumerate() {
        let mut rig = Rig::online(20);
        let file = announce_what_is_gone(&mut rig);
        rig.honest = false;
        rig.hang_up();
        rig.pass(away * SECOND);
        assert_eq!(asks(&rig).len(), 0, "nobody is there");
        assert_eq!(shown(&mut rig), (vec![], vec![]), "given up");
        rig.honest = true;
        rig.pass(400 * SECOND);
        assert_eq!(asks(&rig).len(), 1);
        // Nor is it the phone's fault if the answer cannot come for long.
        rig.honest = false;
        rig.hang_up();
        rig.pass(1_200 * SECOND);
        assert_eq!(shown(&mut rig), (vec![], vec![]), "given up");
        rig.honest = true;
        rig.pass(400 * SECOND);
        rig.files.borrow_mut().insert("/again".into(), file);
        let answer = uploaded(&rig, "h1", "/again", 1);
        rig.say(&answer);
        rig.pass(SECOND);
        assert_eq!(shown(&mut rig), (expected(2, 10), vec![None]), "{n}");
    }
}

/// The host dies between question and answer: what the phone has answered may have gone with it. The next owner asks
/// again; it does not try the old path, which would be gone still, and give the chunk up.
#[test]
fn the_next_owner_asks_again_for_a_file_that_was_not_uploaded_yet() {
    let mut rig = Rig::online(21);
    let file = announce_what_is_gone(&mut rig);
    rig.pass(60 * SECOND);
    assert_eq!(asks(&rig).len(), 1);
    let mut next = next_owner(&rig, 22);
    next.give(baton_core::engine::Input::Tick);
    next.pass(100 * SECOND);
    assert_eq!(asks(&next).len(), 1);
    assert_eq!(next.engine.stats().sync.failed_fetches, 0);
    next.files.borrow_mut().insert("/again".into(), file);
    let answer = uploaded(&next, "h1", "/again", 1);
    next.hold = true;
    next.say(&answer);
    next.commit(1);
    assert_eq!(shown(&mut next).1, [], "not taken in yet");
    // It has answered: whoever comes then finds the new path.
    let mut third = next_owner(&next, 23);
    third.give(baton_core::engine::Input::Tick);
    third.pass(100 * SECOND);
    next.hold = false;
    next.commit(100);
    assert_eq!(asks(&third).len(), 0);
    for rig in [&mut next, &mut third] {
        let (ids, ends) = shown(rig);
        assert_eq!((ids, ends), (expected(2, 10), vec![None]));
    }
}

/// A service that ends the connection whenever the phone is asked is not asked without end.
#[test]
fn a_service_that_hangs_up_on_every_request_for_a_file_is_not_asked_for_ever() {
    let mut rig = Rig::online(24);
    announce_what_is_gone(&mut rig);
    let mut asked = 0;
    for _ in 0..300 {
        rig.pass(SECOND * 10);
        let now = asks(&rig).len();
        if now > asked {
            asked = now;
            rig.hang_up();
        }
    }
    assert_eq!(asked, 8);
    let (ids, ends) = shown(&mut rig);
    assert!(ids.is_empty());
    assert!(
        matches!(&ends[..], [Some(why)] if why.contains("upload")),
        "{ends:?}"
    );
    assert_eq!(
        rig.row(Key::AppStateVersion("history/h1".into())),
        Row::Absent
    );
}

/// A chunk that inflates beyond every measure: given up, with what the limit costs and no more.
#[test]
fn a_chunk_that_inflates_too_far_is_given_up() {
    let mut rig = Rig::online(6);
    let phone = phone(&mut rig);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    // A field that nobody knows, of more than a gibibyte.
    let mut head = Vec::new();
    prost::encoding::encode_key(99, prost::encoding::WireType::LengthDelimited, &mut head);
    prost::encoding::encode_varint(1200 << 20, &mut head);
    encoder.write_all(&head).expect("memory");
    let zeros = vec![0; 1 << 20];
    for _ in 0..1200 {
        encoder.write_all(&zeros).expect("memory");
    }
    let notification = offer(&rig, &encoder.finish().expect("memory"));
    rig.chunk = 60_000;
    announce(&mut rig, phone, &notification, "bomb");
    let (ids, ends) = shown(&mut rig);
    assert_eq!(ids.len(), 0);
    assert!(
        ends[0]
            .as_deref()
            .is_some_and(|why| why.contains("too far")),
        "{ends:?}"
    );
    assert_eq!(told(&rig), 0);
}

#[test]
fn kinds_without_content_are_only_confirmed() {
    let mut rig = Rig::online(7);
    let phone = phone(&mut rig);
    let none = HistorySyncNotification {
        sync_type: Some(7),
        ..Default::default()
    };
    announce(&mut rig, phone, &none, "none");
    assert_eq!(told(&rig), 1);
    let kinds: Vec<HistoryKind> = rig
        .said
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::HistoryEnded { kind, .. } => Some(*kind),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [HistoryKind::Other(7)]);
    // Somebody who is not the phone announces nothing.
    let stranger = rig.peer("800000000000006");
    announce(&mut rig, stranger, &none, "strange");
    assert_eq!(told(&rig), 1);
}
