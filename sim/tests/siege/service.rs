//! What a service can do wrong on purpose, one by one.

use crate::malice::{OUTPUTS, SLACK, honest_again, stranger, unlinked, within_limits};
use crate::rig::{Rig, SECOND, ready};
use crate::{cases, rest, texts};
use baton_core::crypto::Rng;
use baton_core::engine::{Input, Output, StopReason};
use baton_core::flow::{Command, CommandError, Content, Event, Limits, Notice, Reply, SendRequest};
use baton_core::jid::{Jid, Server};
use baton_core::proto::e2e;
use baton_core::signal;
use baton_core::signal::SenderKeyRecord;
use baton_core::state::{Key, Micros, Record, Store};
use baton_core::wire::node::{Content as NodeContent, Node};
use prost::Message as _;
use sim::world::{Options, Step, World, judge};
use std::num::NonZeroU32;

/// Damages a node somewhere inside it.
pub(crate) fn damage(node: &mut Node, rng: &mut Rng) {
    let choice = rng.below(4);
    match &mut node.content {
        NodeContent::Nodes(nodes) if !nodes.is_empty() && choice > 0 => {
            let at = rng.below(nodes.len() as u64) as usize;
            match rng.below(8) {
                0 => drop(nodes.remove(at)),
                1 => nodes.push(nodes[at].clone()),
                _ => damage(&mut nodes[at], rng),
            }
        }
        NodeContent::Bytes(bytes) if !bytes.is_empty() && choice > 0 => {
            let mut damaged = bytes.to_vec();
            match rng.below(3) {
                0 => damaged.truncate(rng.below(damaged.len() as u64) as usize),
                _ => {
                    let at = rng.below(damaged.len() as u64) as usize;
                    damaged[at] ^= 1 << rng.below(8);
                }
            }
            *bytes = damaged.into();
        }
        _ if !node.attrs.is_empty() => {
            let at = rng.below(node.attrs.len() as u64) as usize;
            node.attrs.remove(at);
        }
        _ => node.tag = "damaged".into(),
    }
}

/// Everything a real service says, rewritten at random for a minute: pieces missing, doubled, flipped, cut off. Nobody
/// panics, no key is used twice, no bound is broken; and when the service says again what it means, everybody talks.
#[test]
fn a_service_that_garbles_what_it_says() {
    for seed in 0..u64::from(cases(8).cases) {
        let mut world = World::new(Options {
            seed: 500 + seed,
            ..Options::default()
        });
        world.link_all();
        texts(&mut world, 10, 20 * SECOND);
        let mut rng = Rng::from_seed([seed as u8; 32]);
        world.tamper(Some(Box::new(move |_, mut node| match rng.below(12) {
            0 => Vec::new(),
            1 => vec![node.clone(), node],
            // What ends an account for good has its own tests.
            2..=5 if node.find("conflict").is_none() && node.tag() != "failure" => {
                damage(&mut node, &mut rng);
                vec![node]
            }
            _ => vec![node],
        })));
        world.run(world.now().mono.0 + 60 * SECOND);
        world.tamper(None);
        for account in 0..2 {
            world.plan(0, Step::Cut { account });
        }
        // An empty device list is believed for five minutes.
        rest(&mut world);
        rest(&mut world);
        let after =
            [(0, 1), (1, 0)].map(|(from, to)| world.plan_text(SECOND, from, to, "still there?"));
        rest(&mut world);
        let missing = world.missing();
        for id in after {
            assert!(
                !missing.iter().any(|(_, _, other)| *other == id),
                "seed {seed}: {missing:?}"
            );
        }
        let verdict = judge(&world);
        assert_eq!(
            (verdict.duplicated, verdict.violations),
            (0, 0),
            "seed {seed}: {verdict:?}"
        );
        for account in world.accounts() {
            assert_eq!(account.stops, [], "seed {seed}");
            let (outputs, bytes) = account.most;
            assert!(
                outputs < OUTPUTS && bytes < Limits::gateway().cache_bytes.get() as usize + SLACK
            );
        }
    }
}

#[test]
fn a_receipt_with_thousands_of_ids_is_taken_in_pieces() {
    let mut rig = Rig::online(1);
    let items = (0..5000).map(|n| Node::new("item").attr("id", format!("3EB0{n}")));
    let receipt = Node::new("receipt")
        .attr("id", "3EB0")
        .attr("from", stranger())
        .child(Node::new("list").children(items));
    rig.say(&receipt);
    within_limits(&rig);
    let acks: Vec<_> = rig.look().nodes;
    assert_eq!(acks.len(), 1, "answered once");
    honest_again(&mut rig);
}

/// One stanza's children make neither thousands of questions nor thousands of writes.
#[test]
fn thousands_of_children_are_not_thousands_of_effects() {
    let mut rig = Rig::online(2);
    let many = |tag: &'static str| {
        (0..5000u64).map(move |n| Node::new(tag).attr("type", "groups").attr("count", n + 1))
    };
    for tag in ["dirty", "offline_preview", "edge_routing", "nothing"] {
        rig.say(&Node::new("ib").children(many(tag)));
        assert!(rig.outputs < 300, "{tag}: {} outputs", rig.outputs);
    }
    let devices = (0..5000u64).map(|n| {
        let lid = Jid::lid(&format!("{}", 700_000_000_000_000 + n)).expect("digits");
        Node::new("device").attr("lid", lid)
    });
    rig.look();
    rig.say(
        &Node::new("notification")
            .attr("type", "devices")
            .attr("id", "1")
            .attr("from", stranger())
            .child(Node::new("update").children(devices)),
    );
    let rows: usize = rig
        .look()
        .batches
        .iter()
        .map(|batch| batch.rows.len())
        .sum();
    assert!(rows < 300, "{rows} rows written");
    within_limits(&rig);
    honest_again(&mut rig);
}

/// A device list that names one device ten thousand times is a list of one device.
#[test]
fn a_device_listed_often_is_written_to_once() {
    let mut rig = Rig::online(3);
    let peer = rig.peer("800000000000003");
    rig.honest = false;
    let to = rig.peers[peer].jid.clone();
    let request = SendRequest {
        id: Some("once".into()),
        to: to.clone(),
        content: Content::Text("once".into()),
    };
    rig.command(Command::Send(request));
    for _ in 0..4 {
        let Some(id) = rig.unanswered.pop() else {
            break;
        };
        let list = (0..5000).map(|_| Node::new("device").attr("id", 0u64));
        let devices = Node::new("devices").child(Node::new("device-list").children(list));
        let phone: Jid = rig
            .device()
            .lid
            .expect("a LID")
            .parse()
            .expect("an address");
        let own = Node::new("device-list").child(Node::new("device").attr("id", 0u64));
        let own = Node::new("user")
            .attr("jid", phone.bare())
            .child(Node::new("devices").child(own));
        let user = Node::new("user").attr("jid", &to).child(devices);
        let usync = Node::new("usync").child(Node::new("list").children([user, own]));
        let bundle = Node::new("user")
            .attr("jid", &to)
            .children(rig.peers[peer].bundle());
        rig.say(
            &Node::new("iq")
                .attr("type", "result")
                .attr("id", id)
                .children([usync, Node::new("list").child(bundle)]),
        );
        within_limits(&rig);
    }
    let said = rig.look();
    let notices = format!("{:?}", said.notices);
    assert!(notices.contains("more entries than are looked at"));
    let message = said
        .nodes
        .iter()
        .find(|node| node.tag() == "message")
        .expect("it was sent");
    let recipients = message.find("participants").expect("a fan-out").nodes();
    let copies = recipients
        .iter()
        .filter(|to_| to_.get_jid("jid").as_ref() == Some(&to))
        .count();
    assert_eq!(copies, 1);
}

/// `count` in a ciphertext is the sender's word: the largest number there is must not overflow ours.
#[test]
fn a_retry_count_at_the_end_of_its_range() {
    let mut rig = Rig::online(4);
    for count in [u64::from(u32::MAX), u64::MAX, 4] {
        let enc = Node::new("enc")
            .attr("type", "msg")
            .attr("v", "2")
            .attr("count", count)
            .bytes(vec![0x33; 50]);
        for _ in 0..3 {
            rig.say(
                &Node::new("message")
                    .attr("id", format!("count-{count}"))
                    .attr("from", stranger())
                    .child(enc.clone()),
            );
        }
    }
    assert_eq!(rig.stopped, None);
    honest_again(&mut rig);
}

/// An address that no table has room for must not reach a batch: the store would refuse it and the account be down.
#[test]
fn an_endless_address_stops_nobody() {
    let mut rig = Rig::online(5);
    let long = "9".repeat(300);
    let node = |from: &str| {
        Node::new("notification")
            .attr("type", "devices")
            .attr("id", "1")
            .attr("from", format!("{from}@lid"))
    };
    rig.say(&node(&long));
    rig.say(&node(&"a".repeat(70_000)));
    let ids = ["", "\0", &"x".repeat(256), "nul\0inside"];
    for id in ids {
        rig.say(&Node::new("receipt").attr("from", stranger()).attr("id", id));
        let retry = Node::new("receipt")
            .attr("from", stranger())
            .attr("id", id)
            .attr("type", "retry");
        rig.say(&retry.child(Node::new("retry").attr("id", id)));
    }
    assert_eq!(rig.stopped, None);
    for (key, _) in rig.look().batches.iter().flat_map(|batch| &batch.rows) {
        assert_eq!(baton_core::state::rules::key(key), Ok(()));
    }
    honest_again(&mut rig);
}

/// Each end of a stream is one close, however often it is said: a driver that is told twice reports twice, and the
/// second report would be taken for the end of the next connection.
#[test]
fn a_connection_is_closed_once() {
    let mut rig = Rig::online(6);
    let end = Node::new("stream:error").attr("code", 503u64);
    rig.say_all([
        &end,
        &end,
        &Node::new("xmlstreamend"),
        &Node::new("failure").attr("reason", 503u64),
    ]);
    assert_eq!(rig.look().closes, 1);
    rig.pass(300 * SECOND);
    let said = rig.look();
    assert_eq!((said.opens, said.closes), (1, 0));
    assert!(rig.is_up());
}

/// A service that sends everybody away at once, every time, is not called again at once every time.
#[test]
fn a_service_that_always_says_515_is_not_hammered() {
    let mut rig = Rig::online(7);
    let mut opens = 0;
    for _ in 0..200 {
        rig.say(&Node::new("stream:error").attr("code", 515u64));
        rig.pass(SECOND / 100);
        opens += rig.look().opens;
    }
    assert!(
        (1..=5).contains(&opens),
        "{opens} connections in two seconds"
    );
    honest_again(&mut rig);
}

/// Stanzas that wait are counted by their bytes as well: a few large ones fill the room.
#[test]
fn a_few_large_stanzas_fill_the_room() {
    let mut rig = Rig::online(25);
    rig.answers = false;
    let large = Node::new("message")
        .attr("id", "large")
        .attr("from", stranger())
        .child(
            Node::new("enc")
                .attr("type", "msg")
                .bytes(vec![0; 300 << 10]),
        );
    rig.say_all(&vec![large; 10]);
    assert!(!rig.engine.appetite().bytes);
    assert!(
        rig.engine.stats().frames_in < 14,
        "{:?}",
        rig.engine.stats()
    );
}

/// A service can say that somebody has hundreds of devices; a message for all of them fits into no frame and no row.
#[test]
fn a_message_for_too_many_devices_fails_alone() {
    let mut rig = Rig::online(26);
    let peer = rig.peer("800000000000008");
    rig.devices = 90;
    let request = |id: &str, bytes: usize| SendRequest {
        id: Some(id.into()),
        to: Jid::lid("800000000000008").expect("digits"),
        content: Content::Text("x".repeat(bytes)),
    };
    assert_eq!(rig.peers[peer].jid, request("", 0).to);
    rig.command(Command::Send(request("large", 250 << 10)));
    rig.command(Command::Send(request("small", 10)));
    rig.pass(SECOND);
    let said = rig.look();
    let outcome = |id: &str| {
        said.events.iter().find_map(|(_, event)| match event {
            Event::Sent { id: of, .. } if of == id => Some("sent"),
            Event::Failed { id: of, .. } if of == id => Some("failed"),
            _ => None,
        })
    };
    assert_eq!(
        (outcome("large"), outcome("small")),
        (Some("failed"), Some("sent"))
    );
    assert_eq!((rig.stopped.clone(), said.closes), (None, 0));
}

/// Channels are acknowledged like everything that is in order and not for us.
#[test]
fn a_channel_message_is_no_error() {
    let mut rig = Rig::online(27);
    let from: Jid = "120363000000000007@newsletter".parse().expect("a channel");
    rig.say(
        &Node::new("message")
            .attr("id", "c")
            .attr("from", from)
            .child(Node::new("plaintext").bytes(vec![1])),
    );
    let said = rig.look();
    assert_eq!(said.nodes.len(), 1);
    assert_eq!(
        (said.nodes[0].tag(), said.nodes[0].get("error")),
        ("ack", None)
    );
    assert_eq!(said.notices, []);
}

/// The part with the sender key was taken in, the part that needs it was damaged, the answer got lost: when both come
/// again, the second is news.
#[test]
fn a_group_message_whose_key_came_before_is_read() {
    let mut rig = Rig::online(28);
    let peer = rig.peer("800000000000010");
    let group: Jid = "120363000000000009@g.us".parse().expect("a group");
    let mut rng = rig.rng.fork("group");
    let mut key = SenderKeyRecord::create(&mut rng);
    let carrier = e2e::Message {
        sender_key_distribution_message: Some(e2e::SenderKeyDistributionMessage {
            group_id: Some(group.to_string()),
            axolotl_sender_key_distribution_message: key.distribution(),
        }),
        ..Default::default()
    };
    let (kind, carrier) = rig.peers[peer].seal(&carrier, &mut rng);
    let text = e2e::Message {
        conversation: Some("to the group".into()),
        ..Default::default()
    };
    let text = key
        .encrypt(&signal::pad(&text.encode_to_vec(), &mut rng), &mut rng)
        .expect("a chain");
    let mut damaged = text.clone();
    damaged[10] ^= 1;
    let enc = |kind: &'static str, bytes: &[u8]| {
        Node::new("enc")
            .attr("v", "2")
            .attr("type", kind)
            .bytes(bytes.to_vec())
    };
    let stanza = |text: &[u8]| {
        Node::new("message")
            .attr("id", "g")
            .attr("from", &group)
            .attr("participant", Jid::lid("800000000000010").expect("digits"))
            .children([enc(kind, &carrier), enc("skmsg", text)])
    };
    rig.say(&stanza(&damaged));
    let said = rig.look();
    assert!(
        matches!(said.notices[..], [Notice::RetryAsked { .. }]),
        "{:?}",
        said.notices
    );
    rig.say(&stanza(&text));
    let said = rig.look();
    assert!(
        matches!(&said.events[..], [(_, Event::Message(message))] if message.text.as_deref() == Some("to the group")),
        "{said:?}"
    );
}

/// A row that cannot be read is reported when it is read, not each time somebody looks at it.
#[test]
fn a_damaged_row_is_reported_once() {
    let (store, account) = crate::rig::store();
    let mut rig = Rig::with(
        store.copy(|| Micros(1_000_000 * SECOND)),
        account.clone(),
        29,
        |_| {},
    );
    let peer = rig.peer("800000000000011");
    let jid = rig.peers[peer].jid.clone();
    let peers = std::mem::take(&mut rig.peers);
    Rig::write(
        &store,
        &account,
        Key::Session(jid.clone()),
        Record(vec![1, 0xff].into()),
    );
    Rig::write(
        &store,
        &account,
        Key::Identity(jid.clone()),
        Record(vec![3].into()),
    );
    rig = Rig::with(store, account, 29, |_| {});
    rig.peers = peers;
    rig.go_online();
    for n in 0..3 {
        let text = rig.text(0, &format!("m-{n}"), "text");
        rig.say(&text);
    }
    let said = rig.look();
    assert_eq!(
        said.notices,
        [
            Notice::CorruptRow(Key::Session(jid.clone())),
            Notice::CorruptRow(Key::Identity(jid))
        ]
    );
    assert_eq!(said.events.len(), 3);
}

/// Two commands to log out are two answers; the second does not take the first one's.
#[test]
fn every_command_is_answered() {
    let mut rig = Rig::online(30);
    rig.honest = false;
    let first = rig.command(Command::Logout);
    let second = rig.command(Command::Logout);
    let id = rig.unanswered.pop().expect("the service was asked");
    rig.say(&Node::new("iq").attr("type", "result").attr("id", id));
    assert_eq!(
        rig.look().replies,
        [(second, Err(CommandError::Busy)), (first, Ok(Reply::Done))]
    );
    assert_eq!(rig.stopped, Some(StopReason::LoggedOut(401)));

    let mut rig = unlinked(31);
    let link = rig.command(Command::Link);
    let stop = rig.command(Command::Shutdown);
    assert_eq!(
        rig.look().replies,
        [(stop, Ok(Reply::Done)), (link, Err(CommandError::Unknown))]
    );
}

/// Linking was given up, and is wanted again before the old connection has ended: a new one is made as soon as it has.
#[test]
fn linking_again_while_the_connection_ends() {
    let mut rig = unlinked(32);
    let first = rig.command(Command::Link);
    for round in 0..6 {
        let ask = Node::new("pair-device").child(Node::new("ref").bytes(b"reference".to_vec()));
        rig.say(
            &Node::new("iq")
                .attr("type", "set")
                .attr("id", "1")
                .attr("from", Jid::service())
                .child(ask),
        );
        assert!(rig.is_up(), "round {round}");
        if round < 5 {
            rig.pass(26 * SECOND);
        }
    }
    rig.look();
    // The last code runs out while a slow store keeps the close back.
    rig.hold = true;
    rig.command(Command::Presence {
        available: true,
        name: Some("name".into()),
    });
    rig.pass(21 * SECOND);
    let second = rig.command(Command::Link);
    rig.hold = false;
    rig.commit(usize::MAX);
    rig.pass(SECOND);
    let said = rig.look();
    assert!(
        said.replies
            .contains(&(first, Err(CommandError::LinkExpired))),
        "{said:?}"
    );
    assert!(!said.replies.iter().any(|(id, _)| *id == second));
    assert_eq!((said.opens, said.closes), (1, 1), "{said:?}");
    assert!(rig.is_up());
}

/// An answer that comes within the resolution of the clock is an answer.
#[test]
fn a_prompt_answer_is_no_silence() {
    let mut rig = Rig::online(24);
    rig.pass(600 * SECOND);
    let said = rig.look();
    assert_eq!((said.opens, said.closes), (0, 0), "{:?}", said.notices);
    assert!(
        said.nodes
            .iter()
            .filter(|node| node.get_str("xmlns") == Some("w:p"))
            .count()
            >= 20
    );
}

/// More in one breath than there is room for is left where it is until there is room.
#[test]
fn a_flood_stays_within_the_work_queue() {
    let (store, account) = crate::rig::store();
    let few = NonZeroU32::new(8).expect("eight");
    let mut rig = Rig::with(store, account, 8, |config| config.limits.work_queued = few);
    rig.go_online();
    let peer = rig.peer("800000000000004");
    let texts: Vec<Node> = (0..100)
        .map(|n| rig.text(peer, &format!("flood-{n}"), &format!("text {n}")))
        .collect();
    rig.answers = false;
    rig.say_all(&texts);
    assert!(!rig.engine.appetite().bytes);
    let wanted: usize = rig.asked.iter().map(|(_, keys, _)| keys.len()).sum();
    assert!(
        (1..100).contains(&wanted),
        "{wanted} rows are wanted for eight messages"
    );
    rig.answers = true;
    while let Some((id, keys, _)) = rig.asked.pop() {
        let rows = ready(rig.store.load(&rig.account, keys)).expect("rows");
        rig.give(Input::Loaded(id, rows));
    }
    let said = rig.look();
    let ids = said.events.iter().map(|(_, event)| match event {
        Event::Message(message) => message.id.to_string(),
        other => format!("{other:?}"),
    });
    let ids: Vec<_> = ids.collect();
    assert_eq!(
        ids,
        (0..100).map(|n| format!("flood-{n}")).collect::<Vec<_>>()
    );
    assert!(rig.engine.appetite().bytes);
}

/// Commands beyond the limit are told so, at once, also while the engine is still reading.
#[test]
fn a_command_too_many_is_answered_busy() {
    let (store, account) = crate::rig::store();
    let few = NonZeroU32::new(4).expect("four");
    let mut rig = Rig::with(store, account, 9, |config| config.limits.outbox = few);
    rig.answers = false;
    for n in 0..20u64 {
        assert_eq!(
            u64::from(rig.engine.appetite().commands),
            4u64.saturating_sub(n)
        );
        let request = SendRequest {
            id: Some(format!("busy-{n}").into()),
            to: stranger(),
            content: Content::Text("x".into()),
        };
        rig.command(Command::Send(request));
    }
    let said = rig.look();
    assert_eq!(said.replies.len(), 16);
    assert!(
        said.replies
            .iter()
            .all(|(_, reply)| *reply == Err(CommandError::Busy))
    );
    // Those that were taken get their answers when the account is read.
    rig.answers = true;
    for (id, keys, _) in std::mem::take(&mut rig.asked) {
        let rows = ready(rig.store.load(&rig.account, keys)).expect("rows");
        rig.give(Input::Loaded(id, rows));
    }
    assert_eq!(rig.look().replies.len(), 4);
}

/// A message id with a NUL in it is the caller's mistake, not the end of the account.
#[test]
fn a_bad_message_id_is_refused_before_it_is_a_key() {
    let mut rig = Rig::online(10);
    for id in ["", "a\0b", &"x".repeat(256)] {
        let request = SendRequest {
            id: Some(id.into()),
            to: stranger(),
            content: Content::Text("x".into()),
        };
        rig.command(Command::Send(request));
        let said = rig.look();
        assert!(
            matches!(said.replies[..], [(_, Err(CommandError::Invalid(_)))]),
            "{said:?}"
        );
        assert_eq!(said.loads, 0);
    }
    assert_eq!(rig.stopped, None);
}

/// Codes are made of what a service gives; it must not make them endless.
#[test]
fn references_that_make_no_code_are_left_out() {
    let mut rig = unlinked(11);
    let id = rig.command(Command::Link);
    let long = Node::new("ref").bytes(vec![b'x'; 1 << 20]);
    let refs = std::iter::repeat_n(long, 3)
        .chain((0..5000).map(|n| Node::new("ref").bytes(format!("r{n}").into_bytes())));
    let device = Node::new("pair-device").children(refs);
    rig.say(
        &Node::new("iq")
            .attr("type", "set")
            .attr("id", "1")
            .attr("from", Jid::service())
            .child(device),
    );
    let codes = rig.look().notices;
    assert!(
        codes
            .iter()
            .all(|notice| !matches!(notice, Notice::Qr { text, .. } if text.len() > 1000))
    );
    // A second wish to link while the first connection is on its way out is not forgotten.
    rig.say(&Node::new("failure").attr("reason", 403u64));
    assert_eq!(
        rig.stopped,
        Some(StopReason::Refused(403)),
        "there was no link to lose"
    );
    assert_eq!(
        rig.look().replies,
        [(id, Err(CommandError::Unknown))],
        "every command is answered"
    );
}

/// An engine that wants to be woken in the past would keep its driver busy for nothing.
#[test]
fn a_broken_connection_does_not_spin() {
    let mut rig = Rig::online(12);
    // A frame that does not decrypt ends the connection; the driver takes its time to close it.
    rig.engine.handle(
        Input::Received(&[
            0, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
        ]),
        rig.now,
    );
    let mut wire = Vec::new();
    let mut closes = 0;
    loop {
        match rig.engine.poll(&mut wire) {
            Output::Close => closes += 1,
            Output::Idle { .. } => break,
            _ => {}
        }
    }
    assert_eq!(closes, 1);
    for _ in 0..200 {
        rig.now.mono.0 += SECOND;
        rig.engine.handle(Input::Tick, rig.now);
        loop {
            match rig.engine.poll(&mut wire) {
                Output::Idle { wake, .. } => {
                    assert!(
                        wake.is_some_and(|wake| wake > rig.now.mono),
                        "woken at {wake:?}, it is {:?}",
                        rig.now.mono
                    );
                    break;
                }
                Output::Close => panic!("told twice"),
                Output::Stopped(why) => panic!("stopped: {why:?}"),
                _ => {}
            }
        }
    }
}

/// whatsmeow sent two texts under one message key when it took a message in while it sent the second; the second was
/// taken for a copy of the first, and was lost.
#[test]
fn a_key_used_for_two_messages_costs_none_of_them() {
    let mut rig = Rig::online(31);
    let peer = rig.peer("800000000000012");
    let jid = rig.peers[peer].jid.clone();
    let before = rig.text(peer, "m-0", "before");
    rig.say(&before);
    let forgotten = rig.peers[peer].clone();
    let one = rig.text(peer, "m-1", "one");
    rig.peers[peer] = forgotten;
    let two = rig.text(peer, "m-2", "two");
    rig.say(&one);
    rig.look();
    rig.say(&two);
    let said = rig.look();
    let receipts: Vec<_> = said
        .nodes
        .iter()
        .filter(|node| node.tag() == "receipt")
        .map(|node| (node.get_string("id"), node.get_string("type")))
        .collect();
    assert_eq!(receipts, [(Some("m-2".into()), Some("retry".into()))]);
    assert_eq!(said.events, []);

    // A copy of what was read is a copy, under either address of its sender.
    let phone = Jid::new("15550000012", Server::User).unwrap();
    let learned = one.clone().attr("sender_pn", &phone);
    for copy in [&one, &learned] {
        rig.say(copy);
        let said = rig.look();
        assert!(said.events.is_empty() && rig.stopped.is_none());
        assert!(
            !said
                .nodes
                .iter()
                .any(|node| node.get_str("type") == Some("retry"))
        );
    }

    let again = rig.text(peer, "m-2", "two");
    rig.say(&again);
    let said = rig.look();
    let texts: Vec<_> = said
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Message(message) => Some((message.id.as_str().to_owned(), message.text.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(texts, [("m-2".to_owned(), Some("two".to_owned()))]);
    assert_eq!(rig.engine.stats().duplicates, 2, "{jid}");
}

/// The mark of a message stands under the phone number when its author's LID was not known; a copy that tells the LID
/// is a copy all the same.
#[test]
fn a_copy_that_tells_another_address_is_a_copy() {
    let mut rig = Rig::online(32);
    let peer = rig.peer("800000000000013");
    let lid = rig.peers[peer].jid.clone();
    let phone = Jid::new("15550000013", Server::User).unwrap();
    rig.peers[peer].jid = phone.clone();
    let first = rig.text(peer, "m-1", "one");
    rig.say(&first);
    assert_eq!(rig.look().events.len(), 1);
    for copy in [
        first.clone().attr("sender_lid", &lid),
        first.clone().attr("from", &lid).attr("sender_pn", &phone),
    ] {
        rig.say(&copy);
        let said = rig.look();
        assert_eq!(said.events, []);
        assert!(
            !said
                .nodes
                .iter()
                .any(|node| node.get_str("type") == Some("retry")),
            "{said:?}"
        );
    }
}
