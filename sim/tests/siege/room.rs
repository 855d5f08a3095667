//! The limits that the embedder chooses: what an engine does just below, at and just above each of them.

use crate::malice::stranger;
use crate::rig::{Rig, SECOND, ready, store};
use baton_core::{
    crypto::Rng,
    engine::Input,
    flow::{
        Command, CommandError, CommandId, Content, Event, Limits, Reply, SendRequest, Timing,
        mailbox_request,
    },
    jid::Jid,
    limits::ROWS_AHEAD,
    proto::record,
    state::{EventSeq, Key, Row, Scan, Store, Table, UnixMillis, codec},
    wire::node::{self, Node},
};
use std::num::NonZeroU32;

/// An engine within limits of the test's own, online.
fn online(seed: u8, change: impl FnOnce(&mut Limits)) -> Rig {
    let (store, account) = store();
    let mut rig = Rig::with(store, account, seed, |config| change(&mut config.limits));
    rig.go_online();
    rig
}

fn n(limit: usize) -> NonZeroU32 {
    u32::try_from(limit)
        .ok()
        .and_then(NonZeroU32::new)
        .expect("a limit")
}

fn text(id: &str, to: &Jid, letters: usize) -> SendRequest {
    SendRequest {
        id: Some(id.into()),
        to: to.clone(),
        content: Content::Text("x".repeat(letters)),
    }
}

/// Whether each command was accepted; those that were not are told to come again.
fn accepted(replies: Vec<(CommandId, Result<Reply, CommandError>)>) -> Vec<bool> {
    let one = |(_, reply)| match reply {
        Ok(Reply::Accepted { .. }) => true,
        Err(CommandError::Busy) => false,
        other => panic!("{other:?}"),
    };
    replies.into_iter().map(one).collect()
}

fn shown(events: &[(EventSeq, Event)]) -> Vec<String> {
    let id = |(_, event): &(EventSeq, Event)| match event {
        Event::Message(message) => Some(message.id.to_string()),
        _ => None,
    };
    events.iter().filter_map(id).collect()
}

/// Rows that were asked for and not given are given now, and from here on.
fn give_rows(rig: &mut Rig) {
    rig.answers = true;
    while give_some(rig, |_| true) {}
}

/// The answer to what was asked last, if that is to be given. Says whether it was.
fn give_some(rig: &mut Rig, which: impl Fn(Option<Table>) -> bool) -> bool {
    let wanted = |(_, _, scan): &mut (_, _, Option<Scan>)| which(scan.as_ref().map(|it| it.table));
    let Some((id, keys, scan)) = rig.asked.pop_if(wanted) else {
        return false;
    };
    match scan {
        None => {
            let rows = ready(rig.store.load(&rig.account, keys)).expect("rows");
            rig.give(Input::Loaded(id, rows));
        }
        Some(scan) => {
            let rows = ready(rig.store.scan(&rig.account, scan)).expect("rows");
            rig.give(Input::Scanned(id, rows));
        }
    }
    true
}

#[test]
fn stanzas_that_wait_end_at_the_limit() {
    for most in [7, 8, 9] {
        let mut rig = online(80, |limits| limits.work_queued = n(most));
        let peer = rig.peer("800000000000030");
        let texts: Vec<Node> = (0..20)
            .map(|n| rig.text(peer, &format!("t-{n}"), "text"))
            .collect();
        rig.answers = false;
        let before = rig.engine.stats().frames_in;
        for (n, text) in texts.iter().enumerate() {
            assert_eq!(rig.engine.appetite().bytes, n < most, "{n}");
            rig.say(text);
        }
        assert_eq!(rig.engine.stats().frames_in - before, most as u64);
        // Those that no room was for are read when there is, in order.
        give_rows(&mut rig);
        let all: Vec<String> = (0..20).map(|n| format!("t-{n}")).collect();
        assert_eq!(shown(&rig.look().events), all);
    }
}

/// What an engine reckons for a stanza that waits: 100 bytes for each node, 60 for each attribute, and the content.
const STANZA: usize = 2 * 100 + 4 * 60 + 1000;

#[test]
fn bytes_that_wait_end_at_the_limit() {
    let stanza = |n: usize| {
        let enc = Node::new("enc")
            .attr("type", "msg")
            .attr("v", "2")
            .bytes(vec![7; 1000]);
        Node::new("message")
            .attr("id", format!("b-{n}"))
            .attr("from", stranger())
            .child(enc)
    };
    let stanzas: Vec<Node> = (0..8).map(stanza).collect();
    for (most, read) in [
        (1, 1),
        (STANZA - 1, 1),
        (STANZA, 1),
        (STANZA + 1, 2),
        (4 * STANZA - 1, 4),
        (4 * STANZA, 4),
        (4 * STANZA + 1, 5),
    ] {
        let mut rig = online(81, |limits| limits.gate_bytes = n(most));
        rig.answers = false;
        let before = rig.engine.stats().frames_in;
        rig.say_all(&stanzas);
        assert_eq!(rig.engine.stats().frames_in - before, read, "{most}");
        assert!(!rig.engine.appetite().bytes);
        give_rows(&mut rig);
        assert_eq!(rig.engine.stats().frames_in - before, 8, "nothing is lost");
        assert!(rig.engine.appetite().bytes);
    }
}

/// What waits for a commit counts as well, and however small the room is, everything gets through one by one.
#[test]
fn effects_that_wait_take_the_same_room() {
    let mut rig = online(82, |limits| limits.gate_bytes = n(1));
    let peer = rig.peer("800000000000031");
    let texts: Vec<Node> = (0..3)
        .map(|n| rig.text(peer, &format!("e-{n}"), "text"))
        .collect();
    rig.hold = true;
    let before = rig.engine.stats().frames_in;
    rig.say_all(&texts);
    assert_eq!(rig.engine.stats().frames_in - before, 1);
    assert!(rig.look().is_silent() && !rig.engine.appetite().bytes);
    for n in 0..3 {
        rig.commit(1);
        assert_eq!(shown(&rig.look().events), [format!("e-{n}")]);
    }
    assert!(rig.engine.appetite().bytes);
}

/// `Busy` means that it will be otherwise later. A message that is larger than the room for all of them was told so for
/// ever; an empty outbox takes one of any size.
#[test]
fn a_message_larger_than_the_room_is_not_busy_for_ever() {
    let mut rig = online(83, |limits| limits.gate_bytes = n(100));
    let to = stranger();
    rig.honest = false;
    rig.command(Command::Send(text("large", &to, 200_000)));
    rig.command(Command::Send(text("small", &to, 1)));
    assert_eq!(accepted(rig.look().replies), [true, false]);
    // The first is dealt with (nobody is there), and the second has its turn.
    rig.honest = true;
    rig.hang_up();
    rig.pass(60 * SECOND);
    let events = rig.look().events;
    assert!(
        events
            .iter()
            .any(|(_, event)| matches!(event, Event::Failed { id, .. } if id == "large")),
        "{events:?}"
    );
    rig.command(Command::Send(text("small", &to, 1)));
    assert_eq!(accepted(rig.look().replies), [true]);

    // From the mailbox too, where it would have stood in the way of everything behind it.
    for (order, letters) in [200_000, 1, 150_000].into_iter().enumerate() {
        let id = format!("mail-{order}");
        let row = mailbox_request(&text(&id, &to, letters), order as u64);
        let put = rig
            .store
            .enqueue(&rig.account, id.as_str().into(), row, UnixMillis(1));
        ready(put).expect("room in the store");
    }
    for _ in 0..3 {
        rig.command(Command::CheckMailbox);
        rig.pass(SECOND);
    }
    let events = rig.look().events;
    let failed = events.iter().filter_map(|(_, event)| match event {
        Event::Failed { id, .. } => Some(id.to_string()),
        _ => None,
    });
    let failed: Vec<String> = failed.filter(|id| id.starts_with("mail")).collect();
    assert_eq!(failed, ["mail-0", "mail-1", "mail-2"]);
}

#[test]
fn messages_in_the_outbox_end_at_the_limit_of_bytes() {
    let to = stranger();
    let start = |most: usize| {
        let mut rig = online(84, |limits| limits.gate_bytes = n(most));
        rig.honest = false;
        rig.command(Command::Send(text("first", &to, 1000)));
        rig
    };
    let mut rig = start(1 << 20);
    assert_eq!(accepted(rig.look().replies), [true]);
    let Row::Present(row) = rig.row(Key::Outbox("first".into())) else {
        panic!("it was accepted");
    };
    let row: record::Outbound = codec::decode(&row).expect("a row of the outbox");
    let second = 500;
    // Its message has a head of three bytes.
    let both = prost::Message::encoded_len(&row) + second + 3;
    for (most, taken) in [(both - 1, false), (both, true), (both + 1, true)] {
        let mut rig = start(most);
        rig.command(Command::Send(text("second", &to, second)));
        assert_eq!(accepted(rig.look().replies), [true, taken], "{most}");
    }
}

/// The service says how many devices somebody has, and so how large a message becomes. Messages that fit the outbox as
/// they are wait with their encryption, or their stanzas would take hundreds of times the room.
#[test]
fn sealed_stanzas_take_the_room_once() {
    const MOST: usize = 40_000;
    let mut rig = online(87, |limits| limits.gate_bytes = n(MOST));
    let peer = rig.peer("800000000000033");
    let to = rig.peers[peer].jid.clone();
    rig.devices = 40;
    // Sessions with all of them: from here on nothing has to be asked.
    rig.command(Command::Send(text("first", &to, 10)));
    assert_eq!(sent(&mut rig).len(), 1);

    // Accepted while there is no connection.
    rig.honest = false;
    rig.hang_up();
    for _ in 0..30 {
        rig.command(Command::Send(SendRequest {
            id: None,
            ..text("", &to, 300)
        }));
    }
    assert_eq!(accepted(rig.look().replies), [true; 30]);

    rig.honest = true;
    rig.hold = true;
    let mut left = Vec::new();
    let mut most = 0;
    for _ in 0..500 {
        rig.commit(1);
        if rig.held.is_empty() {
            rig.pass(SECOND);
        }
        // What has left is taken at once.
        left.extend(sent(&mut rig));
        most = most.max(rig.engine.stats().messages_out as usize - 1 - left.len());
    }
    let one = left[0].1;
    assert!(one > 40 * 300, "{one} bytes for forty devices");
    assert_eq!(most, MOST.div_ceil(one), "sealed and not taken at once");
    assert_eq!(left.len(), 30);
}

/// Messages that have left since the last look, by id, and the bytes of their stanzas.
fn sent(rig: &mut Rig) -> Vec<(String, usize)> {
    let size = |node: &Node| {
        let mut bytes = Vec::new();
        node::encode(node, &mut bytes).expect("it was sent");
        bytes.len()
    };
    let nodes = rig.look().nodes.into_iter();
    nodes
        .filter(|node| node.tag() == "message")
        .map(|node| (node.get_string("id").expect("an id"), size(&node)))
        .collect()
}

/// While the store does not answer, a message that has not left is not queued again each time it is overdue.
#[test]
fn what_waits_at_the_gate_is_not_put_there_again() {
    let mut rig = online(88, |limits| limits.gate_bytes = n(1000));
    let peer = rig.peer("800000000000034");
    let to = rig.peers[peer].jid.clone();
    rig.command(Command::Send(text("first", &to, 10)));
    assert_eq!(sent(&mut rig).len(), 1);
    rig.hold = true;
    rig.command(Command::Send(SendRequest {
        id: None,
        ..text("", &to, 2000)
    }));
    assert!(rig.is_up() && sent(&mut rig).is_empty());
    // Long enough to be overdue twenty times; pings are answered meanwhile.
    rig.pass(20 * Timing::default().query.0);
    assert!(rig.is_up() && sent(&mut rig).is_empty());
    rig.commit(usize::MAX);
    assert_eq!(sent(&mut rig).len(), 1);
}

#[test]
fn messages_in_the_outbox_end_at_the_limit() {
    let to = stranger();
    for most in [2, 3, 4] {
        let mut rig = online(85, |limits| limits.outbox = n(most));
        rig.honest = false;
        let commands = |rig: &mut Rig, round: usize| {
            for n in 0..4 {
                rig.command(Command::Send(text(&format!("o-{round}-{n}"), &to, 10)));
            }
            accepted(rig.look().replies)
        };
        let expected: Vec<bool> = (0..4).map(|n| n < most).collect();
        assert_eq!(rig.engine.appetite().commands as usize, most);
        assert_eq!(commands(&mut rig, 0), expected);
        assert_eq!(
            rig.engine.appetite().commands as usize,
            most.saturating_sub(4)
        );
        // Those are dealt with on the next connection, and there is room again.
        rig.honest = true;
        rig.hang_up();
        rig.pass(60 * SECOND);
        assert_eq!(rig.engine.appetite().commands as usize, most);
        rig.honest = false;
        rig.look();
        assert_eq!(commands(&mut rig, 1), expected);
    }
}

#[test]
fn events_on_their_way_end_at_the_limit() {
    for most in [2, 3, 4] {
        let mut rig = online(86, |limits| limits.events_in_flight = n(most));
        let peer = rig.peer("800000000000032");
        for n in 0..6 {
            let text = rig.text(peer, &format!("v-{n}"), "text");
            rig.say(&text);
        }
        let mut all = shown(&rig.look().events);
        assert_eq!(all.len(), most);
        // One that is acknowledged makes room for one.
        let first = match rig.row(Key::Counters) {
            Row::Present(row) => {
                codec::decode::<record::Counters>(&row)
                    .expect("the counters")
                    .next_event
                    .expect("some")
                    - 6
            }
            other => panic!("{other:?}"),
        };
        for n in 0..6 {
            rig.command(Command::Acknowledge(EventSeq(first + n)));
            let more = shown(&rig.look().events);
            assert_eq!(more.len(), usize::from(most + (n as usize) < 6));
            all.extend(more);
        }
        let order: Vec<String> = (0..6).map(|n| format!("v-{n}")).collect();
        assert_eq!(all, order);
    }
}

#[test]
fn batches_on_their_way_end_at_the_limit() {
    for most in [1, 2, 3] {
        let mut rig = online(87, |limits| limits.batches_in_flight = n(most));
        let peer = rig.peer("800000000000033");
        rig.hold = true;
        for n in 0..5 {
            let text = rig.text(peer, &format!("h-{n}"), "text");
            rig.say(&text);
            assert_eq!(rig.held.len(), most.min(n + 1));
        }
        assert!(rig.look().is_silent());
        // What came meanwhile is one batch more, when there is room for it.
        rig.commit(1);
        assert_eq!(rig.held.len(), most);
        assert_eq!(shown(&rig.look().events), ["h-0"]);
        rig.commit(usize::MAX);
        let order: Vec<String> = (1..5).map(|n| format!("h-{n}")).collect();
        assert_eq!(shown(&rig.look().events), order);
    }
}

/// Rows that are not needed and not on their way to the store take no more than they may.
#[test]
fn rows_in_memory_end_at_the_limit() {
    let kept = |most: usize| {
        let mut rig = online(88, |limits| limits.cache_bytes = n(most));
        for peer in 0..5 {
            let peer = rig.peer(&format!("{}", 800_000_000_000_040u64 + peer));
            let text = rig.text(peer, "c", "text");
            rig.say(&text);
        }
        assert_eq!(rig.look().events.len(), 5);
        // The last batch is durable: what it wrote can go.
        rig.say(&Node::new("presence"));
        rig.pass(SECOND);
        let bytes = rig.engine.cached_bytes();
        assert!(bytes <= most, "{bytes} of {most}");
        bytes
    };
    let all = kept(1 << 20);
    assert_eq!(kept(all + 1), all);
    assert_eq!(kept(all), all);
    assert!(kept(all - 1) < all);
    kept(1);
}

/// However many stanzas come at once, rows are asked for ahead of need up to a number; the others when it is their turn.
#[test]
fn rows_asked_for_ahead_end_at_their_limit() {
    let texts: Vec<Node> = (0..ROWS_AHEAD + 50)
        .map(|n| {
            // Of somebody under a phone number one row is needed first: which LID it is.
            let from = Jid::pn(&format!("{}", 15_550_100_000u64 + n as u64)).expect("digits");
            let enc = Node::new("enc").attr("type", "msg").bytes(vec![7; 10]);
            Node::new("message")
                .attr("id", "a")
                .attr("from", from)
                .child(enc)
        })
        .collect();
    for (count, asked) in [
        (ROWS_AHEAD - 1, ROWS_AHEAD - 1),
        (ROWS_AHEAD, ROWS_AHEAD),
        (ROWS_AHEAD + 1, ROWS_AHEAD),
        (texts.len(), ROWS_AHEAD),
    ] {
        let mut rig = online(89, |_| {});
        rig.answers = false;
        rig.say_all(&texts[..count]);
        let rows: usize = rig.asked.iter().map(|(_, keys, _)| keys.len()).sum();
        assert_eq!(rows, asked, "{count}");
        // Nobody is forgotten: each of them is asked to send it again.
        give_rows(&mut rig);
        let retries = rig.engine.stats().retries_asked;
        assert_eq!(retries, count as u64);
    }
}

/// After a loss an engine shows events before it has read its mailbox. They are acknowledged although its queue is full:
/// refused, that would be what the next event waits for. Found by tier A (seed 77878).
#[test]
fn what_is_shown_while_an_engine_starts_is_acknowledged_at_once() {
    let mut rig = online(93, |_| {});
    let peer = rig.peer("800000000000033");
    for id in ["s-0", "s-1"] {
        let text = rig.text(peer, id, "text");
        rig.say(&text);
    }
    let (store, account) = (rig.store.clone(), rig.account.clone());
    let now = rig.now.mono;
    crate::rig::bury(&store);
    store.restore(&store.copy(move || now));

    let mut next = Rig::with(store, account, 94, |config| {
        config.limits.outbox = n(1);
        config.limits.events_in_flight = n(1);
    });
    next.answers = false;
    next.give(Input::Tick);
    while give_some(&mut next, |table| table != Some(Table::Mailbox)) {}
    assert_eq!(next.said.opens, 0, "it has not begun");
    let first = next.look().events;
    assert_eq!(shown(&first), ["s-0"]);
    let to = rig.peers[peer].jid.clone();
    next.command(Command::Send(text("waits", &to, 1)));
    let refused = next.command(Command::Send(text("no-room", &to, 1)));
    let taken = next.command(Command::Acknowledge(first[0].0));
    assert_eq!(
        next.look().replies,
        [(refused, Err(CommandError::Busy)), (taken, Ok(Reply::Done))]
    );
    // The next one, once it is read.
    give_rows(&mut next);
    assert_eq!(shown(&next.look().events), ["s-1"]);
}

/// A database forgets that a message was sent: the request is in the mailbox again, and waits there for room. Whoever
/// asks for the message meanwhile gets it: the service would take the message, sent as if for the first time, for a
/// repetition, and nobody asks twice for what is on its way. Found by tier A (seed 104778).
#[test]
fn a_message_that_waits_in_the_mailbox_is_sent_to_whom_asks_for_it_again() {
    let mut rig = online(86, |limits| limits.outbox = n(1));
    let [peer, other] = ["100000000000777", "100000000000778"].map(|lid| rig.peer(lid));
    let [to, stranger] = [peer, other].map(|peer| rig.peers[peer].jid.clone());
    rig.honest = false;
    rig.command(Command::Send(text("first", &to, 1)));
    let row = mailbox_request(&text("mail", &to, 3), 1);
    let put = rig
        .store
        .enqueue(&rig.account, "mail".into(), row, UnixMillis(1));
    ready(put).expect("room in the store");
    rig.command(Command::CheckMailbox);
    rig.pass(SECOND);
    assert!(matches!(
        rig.row(Key::Mailbox("mail".into())),
        Row::Present(_)
    ));
    rig.look();

    rig.honest = true;
    let asks = |who: &Jid| {
        let retry = Node::new("retry").attr("count", 1u64).attr("id", "mail");
        Node::new("receipt")
            .attr("id", "mail")
            .attr("from", who)
            .attr("type", "retry")
            .child(retry)
    };
    let copies = |rig: &mut Rig| -> Vec<Node> {
        let nodes = rig.look().nodes.into_iter();
        nodes.filter(|node| node.tag() == "message").collect()
    };
    rig.say(&asks(&stranger));
    assert_eq!(copies(&mut rig), [], "it was not for them");
    rig.say(&asks(&to));
    let sent = copies(&mut rig);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].get_str("id"), Some("mail"));
    let mut rng = Rng::from_seed([1; 32]);
    let message = rig.peers[peer].open(&sent[0], &mut rng);
    assert_eq!(
        message.and_then(|it| it.conversation).as_deref(),
        Some("xxx")
    );
    // When there is room it takes its usual way.
    rig.hang_up();
    rig.pass(60 * SECOND);
    rig.command(Command::CheckMailbox);
    rig.pass(SECOND);
    assert_eq!(rig.row(Key::Mailbox("mail".into())), Row::Absent);
    let events = rig.look().events;
    assert!(
        events
            .iter()
            .any(|(_, event)| matches!(event, Event::Sent { id, .. } if id == "mail")),
        "{events:?}"
    );
}
