//! Commits, leases and clocks: what may leave when.

use crate::cases;
use crate::malice::{honest_again, stranger};
use crate::rig::{Rig, SECOND};
use baton_core::engine::{Grant, Input, StopReason};
use baton_core::flow::{Command, Content, Event, Reply, SendRequest, Timing};
use baton_core::jid::Jid;
use baton_core::proto::record;
use baton_core::state::{Epoch, EventSeq, Key, Micros, Row, UnixMillis, codec};
use baton_core::wire::node::Node;
use proptest::collection::vec;
use proptest::prelude::*;

/// Nothing that depends on a batch leaves before the batch is durable; then everything leaves, in order. What depends
/// on nothing leaves all the while.
#[test]
fn nothing_is_visible_before_it_is_durable() {
    let mut rig = Rig::online(20);
    let peer = rig.peer("800000000000006");
    rig.hold = true;
    for n in 0..3 {
        let text = rig.text(peer, &format!("in-{n}"), "text");
        rig.say(&text);
    }
    let request = SendRequest {
        id: Some("out".into()),
        to: rig.peers[peer].jid.clone(),
        content: Content::Text("text".into()),
    };
    let command = rig.command(Command::Send(request));
    rig.say(
        &Node::new("notification")
            .attr("id", "n")
            .attr("type", "devices")
            .attr("from", stranger()),
    );
    let said = rig.look();
    assert!(said.is_silent(), "{said:?}");
    assert!(!rig.held.is_empty());

    // A slow database costs neither the connection nor the service's own question.
    rig.say(
        &Node::new("iq")
            .attr("type", "get")
            .attr("id", "p")
            .attr("xmlns", "urn:xmpp:ping")
            .attr("from", Jid::service()),
    );
    rig.pass(31 * SECOND);
    let said = rig.look();
    assert!(said.is_mute(), "{said:?}");
    assert_eq!(said.nodes.len(), 2, "{:?}", said.nodes);
    assert_eq!(said.nodes[0].get_str("id"), Some("p"));
    assert_eq!(said.nodes[1].get_str("xmlns"), Some("w:p"));

    // A commit under another epoch is somebody else's.
    let last = rig.held.back().map(|batch| batch.seq).expect("held");
    let epoch = rig.grant.lease.term.epoch;
    for other in [epoch.0 - 1, epoch.0 + 1] {
        rig.give(Input::Committed {
            epoch: Epoch(other),
            upto: last,
        });
    }
    assert!(rig.look().is_silent());

    // One after the other, and never ahead of the commit.
    let mut receipts = 0;
    while !rig.held.is_empty() {
        rig.commit(1);
        let said = rig.look();
        receipts += said
            .nodes
            .iter()
            .filter(|node| node.tag() == "receipt")
            .count();
        assert_eq!(
            said.events
                .iter()
                .filter(|(_, event)| matches!(event, Event::Message(_)))
                .count(),
            said.nodes
                .iter()
                .filter(|node| node.tag() == "receipt")
                .count()
        );
        if said.replies.iter().any(|(id, _)| *id == command) {
            assert_eq!(receipts, 3, "the reply stands behind the receipts");
        }
    }
    assert_eq!(receipts, 3);
}

proptest! {
    #![proptest_config(cases(32))]

    /// The same for any interleaving: at each moment what has left depends only on batches that are durable. A receipt
    /// for a message leaves after the batch with its event, a sealed message after the batch with its row.
    #[test]
    fn effects_wait_for_their_batches(seed in any::<u8>(), steps in vec((0..4u8, 0..3usize), 5..40)) {
        let mut rig = Rig::online(seed);
        let peer = rig.peer("800000000000006");
        let to = rig.peers[peer].jid.clone();
        rig.hold = true;
        for (n, (what, commits)) in steps.into_iter().enumerate() {
            match what {
                0 | 1 => {
                    let text = rig.text(peer, &format!("in-{n}"), "text");
                    rig.say(&text);
                }
                2 => {
                    let request = SendRequest { id: Some(format!("out-{n}").into()), to: to.clone(), content: Content::Text("x".into()) };
                    rig.command(Command::Send(request));
                }
                _ => rig.pass(SECOND),
            }
            rig.commit(commits);
            let said = rig.look();
            for node in said.nodes {
                let id = node.get_string("id").unwrap_or_default();
                match node.tag() {
                    "message" => prop_assert!(matches!(rig.row(Key::Outbox(id.clone().into())), Row::Present(_))
                        || matches!(rig.row(Key::Sent(id.into())), Row::Present(_))),
                    "receipt" => {
                        let found = (1..200).any(|seq| match rig.row(Key::Inbox(EventSeq(seq))) {
                            Row::Present(row) => codec::decode::<record::Event>(&row)
                                .is_ok_and(|event| event.received.is_some_and(|received| received.id.as_deref() == Some(&id))),
                            _ => false,
                        });
                        prop_assert!(found, "{} was acknowledged and is not kept", id);
                    }
                    _ => {}
                }
            }
            for (seq, _) in said.events {
                prop_assert!(matches!(rig.row(Key::Inbox(seq)), Row::Present(_)));
            }
            for (_, reply) in said.replies {
                if let Ok(Reply::Accepted { id }) = reply {
                    prop_assert!(matches!(rig.row(Key::Outbox(id.clone())), Row::Present(_))
                        || matches!(rig.row(Key::Sent(id)), Row::Present(_)));
                }
            }
        }
    }

    /// Whenever a lease runs out: from its last moments on nothing leaves any more but pings, and when the connection was
    /// kept for as long as it may be, the engine is over.
    #[test]
    fn nothing_leaves_after_the_lease(seed in any::<u8>(), at in 0..60 * SECOND, early in 0..600_000u64) {
        let mut rig = Rig::online(seed);
        let peer = rig.peer("800000000000006");
        let until = rig.grant.until;
        let margin = Micros::from_millis(250);
        rig.hold = true;
        // Some work, some of it durable, some not.
        for n in 0..4 {
            let text = rig.text(peer, &format!("in-{n}"), "text");
            rig.say(&text);
        }
        // Keep the connection alive up to the last minute, then stop answering anything.
        rig.now.mono = Micros(until.0 - 61 * SECOND + at.min(60 * SECOND));
        rig.give(Input::Tick);
        rig.look();
        rig.now.mono = Micros(until.0.saturating_sub(early)).max(rig.now.mono);
        let silent = rig.now.mono.plus(margin) >= until;
        rig.commit(usize::MAX);
        let text = rig.text(peer, "late", "text");
        rig.say(&text);
        rig.commit(usize::MAX);
        let said = rig.look();
        if silent {
            prop_assert!(said.is_silent(), "{:?}", said);
        }
        // A grant of somebody else is no grant.
        let mut lease = rig.grant.lease;
        lease.term.epoch.0 += 1;
        rig.give(Input::Granted(Grant { lease, until: until.plus(Micros(SECOND)) }));
        let hold = Timing::default().hold;
        let last = Micros(until.plus(hold).0 - 1);
        while rig.now.mono.plus(Micros(at)) < last {
            rig.now.mono = rig.now.mono.plus(Micros(5 * SECOND)).max(until).min(last);
            rig.give(Input::Tick);
            rig.commit(usize::MAX);
            prop_assert_eq!(&rig.stopped, &None);
            let said = rig.look();
            prop_assert!(said.is_silent(), "{:?}", said);
        }
        rig.now.mono = until.plus(hold);
        rig.give(Input::Tick);
        prop_assert_eq!(&rig.stopped, &Some(StopReason::LeaseExpired));
        prop_assert!(rig.look().is_silent());
    }

    /// The database was away for longer than the lease: the connection was kept, and what was decided meanwhile leaves
    /// when the same term is granted again.
    #[test]
    fn a_lease_that_comes_back_goes_on(seed in any::<u8>(), away in 0..300u64, texts in 1..20usize) {
        let mut rig = Rig::online(seed);
        let peer = rig.peer("800000000000006");
        rig.look();
        let until = rig.grant.until;
        // Time passes with a living service, up to the end of the grant and beyond it.
        while rig.now.mono < until {
            rig.pass((5 * SECOND).min(until.0 - rig.now.mono.0));
        }
        prop_assert_eq!(rig.look().opens, 0);
        rig.hold = true;
        let mut pings = 0;
        for n in 0..texts {
            let text = rig.text(peer, &format!("in-{n}"), "text");
            rig.say(&text);
            rig.commit(usize::MAX);
            for _ in 0..away / 5 / texts as u64 {
                rig.pass(5 * SECOND);
                rig.commit(usize::MAX);
            }
            let said = rig.look();
            prop_assert!(said.is_silent(), "{:?}", said);
            pings += said.pings;
        }
        let gone = rig.now.mono.since(until).0;
        prop_assert!(pings as u64 >= gone / (40 * SECOND), "{} pings in {} µs", pings, gone);
        prop_assert_eq!(&rig.stopped, &None);
        let again = Grant { until: rig.now.mono.plus(Micros::from_secs(10)), ..rig.grant };
        rig.give(Input::Granted(again));
        rig.commit(usize::MAX);
        let said = rig.look();
        let heard: Vec<_> = said
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Message(_)))
            .collect();
        prop_assert_eq!(heard.len(), texts);
        prop_assert_eq!(said.opens + said.closes, 0, "it stayed connected");
        prop_assert_eq!(rig.stopped, None);
    }
}

/// A connection that breaks while nobody may act leaves nothing to wait for.
#[test]
fn no_connection_is_made_without_a_lease() {
    let mut rig = Rig::online(24);
    let until = rig.grant.until;
    while rig.now.mono < until {
        rig.pass((5 * SECOND).min(until.0 - rig.now.mono.0));
    }
    rig.pass(SECOND);
    assert_eq!(rig.stopped, None);
    rig.look();
    rig.hang_up();
    rig.pass(1);
    assert_eq!(rig.stopped, Some(StopReason::LeaseExpired));
    assert!(rig.look().is_silent());
}

/// A lease that is renewed in time, even in its last moment, goes on.
#[test]
fn a_renewal_in_the_last_moment_counts() {
    let mut rig = Rig::online(21);
    let until = rig.grant.until;
    rig.now.mono = Micros(until.0 - 1);
    let grant = Grant {
        until: until.plus(Micros::from_secs(10)),
        ..rig.grant
    };
    rig.give(Input::Granted(grant));
    rig.now.mono = until;
    rig.give(Input::Tick);
    assert_eq!(rig.stopped, None);
    // A renewal that comes in after the end finds its own grant in the input.
    rig.now.mono = until.plus(Micros::from_secs(11));
    let again = Grant {
        until: rig.now.mono.plus(Micros::from_secs(10)),
        ..rig.grant
    };
    rig.give(Input::Granted(again));
    assert_eq!(rig.stopped, None);
}

/// Ten years forth and ten years back: certificates do not fit for a while, nothing else happens, and it heals.
#[test]
fn the_wall_clock_may_jump() {
    const DECADE: i64 = 10 * 365 * 86_400_000;
    for jump in [DECADE + 86_400_000, -DECADE] {
        let mut rig = Rig::online(22);
        let right = rig.now.unix;
        rig.now.unix = UnixMillis(right.0 + jump);
        let peer = rig.peer("800000000000007");
        let text = rig.text(peer, "jumped", "text");
        rig.say(&text);
        assert!(
            rig.look()
                .events
                .iter()
                .any(|(_, event)| matches!(event, Event::Message(_)))
        );
        rig.hang_up();
        rig.pass(60 * SECOND);
        assert!(!rig.is_up(), "its certificate does not hold then");
        rig.now.unix = right;
        honest_again(&mut rig);
    }
}

/// Inputs that make no sense where the engine is change nothing.
#[test]
fn inputs_out_of_place_change_nothing() {
    let mut rig = Rig::online(23);
    let before = rig.engine.stats().clone();
    rig.give(Input::Opened);
    rig.give(Input::Opened);
    let said = rig.look();
    assert!(said.is_silent() && said.batches.is_empty(), "{said:?}");
    rig.honest = false;
    rig.hang_up();
    rig.look();
    rig.give(Input::Closed);
    rig.give(Input::Received(b"\0\0\x01x"));
    rig.give(Input::Received(&[0xff; 100]));
    rig.give(Input::Closed);
    let said = rig.look();
    assert!(said.is_silent() && said.batches.is_empty(), "{said:?}");
    assert_eq!(rig.engine.stats().frames_in, before.frames_in);
    // While it is opening: bytes before the word that it stands, the word twice, an end before it.
    rig.pass(10 * SECOND);
    rig.look();
    rig.give(Input::Received(&[1; 50]));
    rig.give(Input::Closed);
    rig.give(Input::Closed);
    honest_again(&mut rig);
}
