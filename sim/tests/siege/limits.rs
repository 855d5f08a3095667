//! What the service and its users can make an engine take in, ask and remember: each limit at itself and beside it, and
//! what becomes of that which is beyond it.

use crate::malice::{stranger, unlinked};
use crate::rig::{Rig, SECOND};
use baton_core::{
    flow::{Command, CommandError, Content, Event, Message, Notice, Reply, SendRequest},
    jid::Jid,
    limits::{
        CIPHERTEXTS, FORWARD_JUMP, FORWARD_JUMP_OWN, MESSAGE_ID, MESSAGE_PARTS, MESSAGE_RECEIVED,
        MESSAGE_SENT, NAME, NOTIFICATION_CHILDREN, OPEN_QUERIES, PAIRING_REFERENCE,
        PAIRING_REFERENCES, RETRIES_WAITING,
    },
    proto::e2e,
    signal::{self, SenderKeyRecord},
    state::{Key, Micros},
    wire::node::Node,
};
use prost::Message as _;

/// The messages that were shown.
fn messages(events: Vec<(baton_core::state::EventSeq, Event)>) -> Vec<Message> {
    let message = |(_, event)| match event {
        Event::Message(message) => Some(*message),
        _ => None,
    };
    events.into_iter().filter_map(message).collect()
}

/// What a stanza was refused with.
fn refusal(nodes: &[Node]) -> Option<u64> {
    let acks: Vec<&Node> = nodes.iter().filter(|node| node.tag() == "ack").collect();
    acks.iter().find_map(|ack| ack.get_u64("error"))
}

fn is_receipt(node: &Node) -> bool {
    node.tag() == "receipt"
}

fn result(id: String) -> Node {
    Node::new("iq").attr("type", "result").attr("id", id)
}

fn send(id: &str, to: &Jid, content: Content) -> Command {
    Command::Send(SendRequest {
        id: Some(id.into()),
        to: to.clone(),
        content,
    })
}

/// A text whose message, as it is encrypted, has so many bytes.
fn text_of(bytes: usize) -> e2e::Message {
    let message = |letters: usize| e2e::Message {
        conversation: Some("x".repeat(letters)),
        ..Default::default()
    };
    let around = message(bytes).encoded_len() - bytes;
    let message = message(bytes - around);
    assert_eq!(message.encoded_len(), bytes);
    message
}

// ---- notifications and questions ------------------------------------------------------------------------------------

fn dirty(count: usize) -> Node {
    let dirty = Node::new("dirty").attr("type", "groups");
    Node::new("ib").children(vec![dirty; count])
}

/// Of what a stanza lists, so much is looked at; and that there was more is said.
#[test]
fn children_of_a_notification_end_at_their_limit() {
    let most = NOTIFICATION_CHILDREN;
    for (count, looked_at, told) in [
        (most - 1, most - 1, 0),
        (most, most, 0),
        (most + 1, most, 1),
    ] {
        let mut rig = Rig::online(60);
        rig.honest = false;
        rig.say(&dirty(count));
        assert_eq!(rig.unanswered.len(), looked_at);
        assert_eq!(rig.engine.stats().protocol_errors, told);

        // The last of the devices that are named.
        let twin = |n: usize| Jid::lid(&format!("{}", 700_000_000_000_000 + n)).expect("digits");
        let devices = (1..=count).map(|n| Node::new("device").attr("lid", twin(n)));
        rig.look();
        rig.say(
            &Node::new("notification")
                .attr("type", "devices")
                .attr("id", "1")
                .attr("from", stranger())
                .child(Node::new("update").children(devices)),
        );
        let batches = rig.look().batches;
        let forgotten = |n: usize| {
            let key = Key::DeviceList(twin(n));
            batches.iter().any(|batch| batch.rows.contains_key(&key))
        };
        assert!(forgotten(looked_at));
        assert_eq!(forgotten(count), told == 0);
        assert_eq!(rig.engine.stats().protocol_errors, 2 * told);

        // Settings that have changed.
        let mut named = vec![Node::new("collection").attr("name", "nothing"); count - 1];
        named.push(
            Node::new("collection")
                .attr("name", "regular_low")
                .attr("version", 1_000_000u64),
        );
        let changed = Node::new("notification")
            .attr("type", "server_sync")
            .attr("id", "2")
            .attr("from", Jid::service())
            .children(named);
        rig.say(&changed);
        let asked = rig.look().nodes;
        let asked = asked
            .iter()
            .filter(|node| node.get_str("xmlns") == Some("w:sync:app:state"));
        assert_eq!(asked.count() as u64, 1 - told, "{count}");
        assert_eq!(rig.engine.stats().protocol_errors, 3 * told);
        assert_eq!(rig.stopped, None);
    }
}

/// So many questions, and no more until one of them is answered. What was not asked is said, and comes again.
#[test]
fn open_questions_end_at_their_limit() {
    let mut rig = Rig::online(61);
    rig.honest = false;
    for _ in 1..OPEN_QUERIES / NOTIFICATION_CHILDREN {
        rig.say(&dirty(NOTIFICATION_CHILDREN));
    }
    rig.say(&dirty(NOTIFICATION_CHILDREN - 1));
    assert_eq!(rig.unanswered.len(), OPEN_QUERIES - 1);
    rig.say(&dirty(1));
    assert_eq!(rig.unanswered.len(), OPEN_QUERIES);
    assert_eq!(rig.engine.stats().protocol_errors, 0);
    rig.say(&dirty(1));
    assert_eq!(rig.unanswered.len(), OPEN_QUERIES);
    assert_eq!(rig.engine.stats().protocol_errors, 1);
    let first = rig.unanswered.remove(0);
    rig.say(&result(first));
    rig.say(&dirty(2));
    assert_eq!(rig.unanswered.len(), OPEN_QUERIES);
    assert_eq!(rig.engine.stats().protocol_errors, 2);
}

// ---- messages that come -----------------------------------------------------------------------------------------------

/// A stanza with more ciphertexts than are looked at is refused: what stands behind them would be lost, and nobody would
/// know. No key is used for it.
#[test]
fn ciphertexts_of_a_stanza_end_at_their_limit() {
    let mut rig = Rig::online(62);
    let peer = rig.peer("800000000000020");
    let mut rng = rig.rng.fork("limits");
    let known = rig.text(peer, "known", "known");
    rig.say(&known);
    rig.look();
    let known = known.find("enc").expect("a ciphertext").clone();
    for (count, taken) in [
        (CIPHERTEXTS - 1, true),
        (CIPHERTEXTS, true),
        (CIPHERTEXTS + 1, false),
    ] {
        let (kind, bytes) = rig.peers[peer].ciphertext("the last", &mut rng);
        let stanza = rig.peers[peer].stanza(&format!("c-{count}"), kind, bytes.clone());
        let enc = stanza.find("enc").expect("a ciphertext").clone();
        // What has been read before is passed over.
        let mut parts = vec![known.clone(); count - 1];
        parts.push(enc);
        let mut crowded = stanza.clone();
        crowded.content = baton_core::wire::node::Content::Nodes(parts);
        rig.say(&crowded);
        let said = rig.look();
        assert_eq!(
            refusal(&said.nodes),
            (!taken).then_some(487),
            "{count}: {said:?}"
        );
        assert_eq!(said.nodes.iter().any(is_receipt), taken);
        assert_eq!(messages(said.events).len(), usize::from(taken));
        assert_eq!(rig.engine.stats().protocol_errors, u64::from(!taken));
        if !taken {
            let alone = rig.peers[peer].stanza("alone", kind, bytes);
            rig.say(&alone);
            assert_eq!(messages(rig.look().events).len(), 1, "its key was kept");
        }
    }
}

/// A ciphertext that is none was passed over, and the message acknowledged as if it had been read. It is asked for again,
/// whatever stands beside it, and in the end shown as what could not be read.
#[test]
fn a_ciphertext_without_type_or_content_is_not_acknowledged_unread() {
    let mut rig = Rig::online(64);
    let peer = rig.peer("800000000000022");
    let whole = rig.text(peer, "whole", "text");
    let enc = whole.find("enc").expect("a ciphertext").clone();
    let bytes = enc.data().expect("bytes").to_vec();
    let hollow = [
        Node::new("enc"),
        Node::new("enc").attr("v", "2").attr("type", "msg"),
        Node::new("enc").attr("v", "2").bytes(bytes),
        Node::new("enc").attr("type", "msg").child(enc.clone()),
    ];
    for (n, part) in hollow.iter().enumerate() {
        for beside in [vec![], vec![enc.clone()]] {
            let id = format!("hollow-{n}-{}", beside.len());
            let mut stanza = whole.clone().attr("id", id.as_str());
            let parts = [vec![part.clone()], beside].concat();
            stanza.content = baton_core::wire::node::Content::Nodes(parts);
            for round in 1.. {
                rig.say(&stanza);
                let said = rig.look();
                let receipts = said.nodes.iter().filter(|node| is_receipt(node));
                let kinds: Vec<_> = receipts.map(|node| node.get_str("type")).collect();
                if round > 5 {
                    assert!(kinds.is_empty(), "{stanza}");
                    let events: Vec<&Event> = said.events.iter().map(|(_, event)| event).collect();
                    assert!(
                        matches!(events[..], [Event::Undecryptable { id: of, .. }] if *of == *id),
                        "{stanza}: {events:?}"
                    );
                    break;
                }
                assert_eq!(kinds, [Some("retry")], "{stanza}");
                assert!(said.events.is_empty(), "{stanza}");
            }
        }
    }
    rig.say(&whole);
    assert_eq!(messages(rig.look().events).len(), 1, "its key was kept");
}

/// What fits into a row is taken in and kept; what does not is refused, because kept back it would come again for ever.
#[test]
fn a_message_that_comes_ends_at_its_limit() {
    let mut rig = Rig::online(63);
    let peer = rig.peer("800000000000021");
    let mut rng = rig.rng.fork("limits");
    for (bytes, taken) in [
        (MESSAGE_RECEIVED - 1, true),
        (MESSAGE_RECEIVED, true),
        (MESSAGE_RECEIVED + 1, false),
    ] {
        let (kind, sealed) = rig.peers[peer].seal(&text_of(bytes), &mut rng);
        let stanza = rig.peers[peer].stanza(&format!("m-{bytes}"), kind, sealed);
        rig.say(&stanza);
        let said = rig.look();
        let sizes: Vec<usize> = messages(said.events)
            .iter()
            .map(|message| message.content.len())
            .collect();
        assert_eq!(sizes, if taken { vec![bytes] } else { vec![] });
        assert_eq!(refusal(&said.nodes), (!taken).then_some(491));
        assert_eq!(rig.engine.stats().protocol_errors, u64::from(!taken));
        assert_eq!(rig.stopped, None, "the row was written");
    }
}

#[test]
fn parts_of_a_message_end_at_their_limit() {
    let mut rig = Rig::online(64);
    let peer = rig.peer("800000000000022");
    let mut rng = rig.rng.fork("limits");
    for (parts, taken) in [
        (MESSAGE_PARTS - 1, true),
        (MESSAGE_PARTS, true),
        (MESSAGE_PARTS + 1, false),
    ] {
        // An empty text, again and again.
        let content = [0x0a, 0].repeat(parts);
        let (kind, sealed) = rig.peers[peer].seal_bytes(&content, &mut rng);
        let stanza = rig.peers[peer].stanza(&format!("p-{parts}"), kind, sealed);
        rig.say(&stanza);
        let said = rig.look();
        assert_eq!(messages(said.events).len(), usize::from(taken), "{parts}");
        assert_eq!(refusal(&said.nodes), (!taken).then_some(491));
    }
}

/// A message is more than its author's name and is shown without it; one without a usable id is refused.
#[test]
fn names_and_ids_of_messages_end_at_their_limits() {
    let mut rig = Rig::online(65);
    let peer = rig.peer("800000000000023");
    for (letters, kept) in [(NAME - 1, true), (NAME, true), (NAME + 1, false)] {
        let name = "n".repeat(letters);
        let text = rig.text(peer, &format!("n-{letters}"), "text");
        rig.say(&text.attr("notify", name.as_str()));
        let shown = messages(rig.look().events);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].push_name, kept.then_some(name));
        assert_eq!(rig.engine.stats().protocol_errors, u64::from(!kept));
    }
    for (letters, taken) in [
        (MESSAGE_ID - 1, true),
        (MESSAGE_ID, true),
        (MESSAGE_ID + 1, false),
    ] {
        let text = rig.text(peer, &"i".repeat(letters), "text");
        rig.say(&text);
        let said = rig.look();
        assert_eq!(messages(said.events).len(), usize::from(taken), "{letters}");
        assert_eq!(refusal(&said.nodes), (!taken).then_some(487));
    }
}

/// In a group, too, our own devices may be further ahead than anybody else.
#[test]
fn an_own_device_may_be_far_ahead_in_a_group() {
    let group: Jid = "120363000000000010@g.us".parse().expect("a group");
    for (own, ahead, read) in [
        (false, FORWARD_JUMP, true),
        (false, FORWARD_JUMP + 1, false),
        (true, FORWARD_JUMP + 1, true),
        (true, FORWARD_JUMP_OWN, true),
        (true, FORWARD_JUMP_OWN + 1, false),
    ] {
        let mut rig = Rig::online(66);
        let me: Jid = rig.device().lid.expect("a LID").parse().expect("a LID");
        let author = if own { me.user() } else { "800000000000024" };
        let peer = rig.peer(author);
        let mut rng = rig.rng.fork("limits");
        let mut key = SenderKeyRecord::create(&mut rng);
        let carrier = e2e::Message {
            sender_key_distribution_message: Some(e2e::SenderKeyDistributionMessage {
                group_id: Some(group.to_string()),
                axolotl_sender_key_distribution_message: key.distribution(),
            }),
            ..Default::default()
        };
        let (kind, carrier) = rig.peers[peer].seal(&carrier, &mut rng);
        // A lease of counters moves the chain on without a message for each; two of them, because one may not reach so
        // far.
        for ceiling in [1, ahead] {
            let mut bytes = key.encode();
            bytes.extend_from_slice(&[0xa0, 0x06]);
            prost::encoding::encode_varint(ceiling.into(), &mut bytes);
            key = SenderKeyRecord::decode(&bytes).expect("a lease");
        }
        let padded = signal::pad(&text_of(10).encode_to_vec(), &mut rng);
        let text = key.encrypt(&padded, &mut rng).expect("a chain");
        let enc = |kind: &'static str, bytes: Vec<u8>| {
            Node::new("enc")
                .attr("v", "2")
                .attr("type", kind)
                .bytes(bytes)
        };
        let stanza = Node::new("message")
            .attr("id", "g")
            .attr("from", &group)
            .attr("participant", &rig.peers[peer].jid)
            .children([enc(kind, carrier), enc("skmsg", text)]);
        rig.say(&stanza);
        let said = rig.look();
        let count = messages(said.events).len();
        assert_eq!(count, usize::from(read), "own {own}, {ahead} ahead");
        let asked = said
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::RetryAsked { .. }));
        assert_eq!(asked, !read, "what is not read is asked for again");
    }
}

// ---- messages that go -----------------------------------------------------------------------------------------------

#[test]
fn a_message_that_is_sent_ends_at_its_limit() {
    let mut rig = Rig::online(67);
    let peer = rig.peer("800000000000025");
    let to = rig.peers[peer].jid.clone();
    for (bytes, taken) in [
        (MESSAGE_SENT - 1, true),
        (MESSAGE_SENT, true),
        (MESSAGE_SENT + 1, false),
    ] {
        let message = text_of(bytes);
        let letters = message.conversation.clone().expect("a text");
        let contents = [
            Content::Message(message.encode_to_vec().into()),
            Content::Text(letters),
        ];
        for (n, content) in contents.into_iter().enumerate() {
            let id = format!("s-{bytes}-{n}");
            let command = rig.command(send(&id, &to, content));
            let said = rig.look();
            let expected = if taken {
                Ok(Reply::Accepted {
                    id: id.as_str().into(),
                })
            } else {
                Err(CommandError::Invalid("the message is too large"))
            };
            assert_eq!(said.replies, [(command, expected)]);
            let sent = said
                .events
                .iter()
                .any(|(_, event)| matches!(event, Event::Sent { .. }));
            assert_eq!(sent, taken);
        }
    }
}

fn retry(device: &Jid) -> Node {
    let asked = Node::new("retry")
        .attr("v", "1")
        .attr("id", "out")
        .attr("count", 1u64);
    Node::new("receipt")
        .attr("id", "out")
        .attr("type", "retry")
        .attr("from", device)
        .child(asked)
}

/// One device more than may wait for its keys has to come again; it is not acknowledged, so the service sees to that.
#[test]
fn requests_that_wait_for_keys_end_at_their_limit() {
    let mut rig = Rig::online(68);
    let peer = rig.peer("800000000000026");
    let to = rig.peers[peer].jid.clone();
    rig.command(send("out", &to, Content::Text("text".into())));
    let said = rig.look();
    assert!(
        said.events
            .iter()
            .any(|(_, event)| matches!(event, Event::Sent { .. }))
    );
    rig.honest = false;
    for n in 1..=RETRIES_WAITING + 1 {
        let device = to.clone().with_device(n as u16);
        rig.say(&retry(&device));
        assert_eq!(rig.unanswered.len(), n.min(RETRIES_WAITING));
    }
    assert!(rig.look().nodes.iter().all(|node| node.tag() == "iq"));
    // One of them is answered: there are no keys. That deals with it, and makes room for the last.
    let first = rig.unanswered.remove(0);
    rig.say(&result(first));
    let acks = rig.look().nodes;
    assert_eq!(
        acks.iter().map(Node::tag).collect::<Vec<_>>(),
        ["ack"],
        "{acks:?}"
    );
    let last = to.with_device(RETRIES_WAITING as u16 + 1);
    rig.say(&retry(&last));
    assert_eq!(rig.unanswered.len(), RETRIES_WAITING);
}

/// The same for those who ask by a LID for what was sent to a phone number, while the service is asked who that is.
#[test]
fn requests_that_wait_for_an_address_end_at_the_same_limit() {
    let mut rig = Rig::online(69);
    let peer = rig.peer("800000000000027");
    let to = Jid::pn("15550000027").expect("digits");
    rig.peers[peer].jid = to.clone();
    rig.command(send("out", &to, Content::Text("text".into())));
    let said = rig.look();
    assert!(
        said.events
            .iter()
            .any(|(_, event)| matches!(event, Event::Sent { .. }))
    );
    rig.honest = false;
    let lid = Jid::lid("800000000000027").expect("digits");
    for n in 1..=RETRIES_WAITING + 1 {
        rig.say(&retry(&lid.clone().with_device(n as u16)));
    }
    assert_eq!(rig.unanswered.len(), 1, "asked once for all");
    assert!(rig.look().nodes.iter().all(|node| node.tag() == "iq"));
    let list = Node::new("device-list").child(Node::new("device").attr("id", 0u64));
    let user = Node::new("user")
        .attr("jid", &to)
        .child(Node::new("devices").child(list));
    let usync = Node::new("usync").child(Node::new("list").child(user));
    let id = rig.unanswered.remove(0);
    rig.say(&result(id).child(usync));
    let acks = rig.look().nodes;
    assert_eq!(acks.len(), RETRIES_WAITING, "the last one comes again");
    assert!(acks.iter().all(|node| node.tag() == "ack"));
}

// ---- linking --------------------------------------------------------------------------------------------------------

fn offer(references: impl IntoIterator<Item = String>) -> Node {
    let references = references.into_iter();
    let references = references.map(|reference| Node::new("ref").bytes(reference.into_bytes()));
    Node::new("iq")
        .attr("type", "set")
        .attr("id", "1")
        .attr("from", Jid::service())
        .child(Node::new("pair-device").children(references))
}

/// How long each code is shown.
fn codes(notices: &[Notice]) -> Vec<Micros> {
    let code = |notice: &Notice| match notice {
        Notice::Qr { valid, .. } => Some(*valid),
        _ => None,
    };
    notices.iter().filter_map(code).collect()
}

#[test]
fn codes_end_at_their_limit() {
    for count in [
        PAIRING_REFERENCES - 1,
        PAIRING_REFERENCES,
        PAIRING_REFERENCES + 1,
    ] {
        let mut rig = unlinked(70);
        rig.command(Command::Link);
        rig.say(&offer((0..count).map(|n| format!("r{n}"))));
        rig.pass(250 * SECOND);
        let shown = codes(&rig.look().notices);
        assert_eq!(shown.len(), count.min(PAIRING_REFERENCES));
        // The first of all is shown for longer.
        let first = if count < PAIRING_REFERENCES { 20 } else { 60 };
        assert_eq!(shown[0], Micros(first * SECOND));
        assert!(shown[1..].iter().all(|valid| *valid == Micros(20 * SECOND)));
        assert_eq!(rig.engine.stats().protocol_errors, 0);
    }
}

#[test]
fn a_reference_ends_at_its_limit() {
    for (length, shown) in [
        (PAIRING_REFERENCE - 1, true),
        (PAIRING_REFERENCE, true),
        (PAIRING_REFERENCE + 1, false),
    ] {
        let mut rig = unlinked(71);
        rig.command(Command::Link);
        rig.say(&offer(["r".repeat(length)]));
        let codes = codes(&rig.look().notices);
        assert_eq!(codes.len(), usize::from(shown), "{length}");
        assert_eq!(rig.engine.stats().protocol_errors, u64::from(!shown));
    }
}

// ---- the table ------------------------------------------------------------------------------------------------------

/// Every Rust source below a directory.
fn sources(directory: &std::path::Path, out: &mut String) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// Which test tries which limit stands in `docs/security.md`. A test that is named there is there.
#[test]
fn the_table_of_limits_names_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = String::new();
    for directory in ["core/src", "core/tests", "sim/tests/siege"] {
        sources(&root.join(directory), &mut all);
    }
    let table = include_str!("../../../docs/security.md");
    let rows = table
        .lines()
        .skip_while(|line| !line.starts_with("| limit "));
    let mut found = 0;
    for row in rows.take_while(|line| line.starts_with('|')) {
        let tests = row.split('|').nth(2).unwrap_or_default();
        let quoted = tests.split('`').skip(1).step_by(2);
        // Names of modules are short.
        for test in quoted.filter(|name| name.matches('_').count() > 2) {
            assert!(all.contains(&format!("fn {test}(")), "{test}: {row}");
            found += 1;
        }
    }
    assert!(found > 50, "{found} tests");
}
