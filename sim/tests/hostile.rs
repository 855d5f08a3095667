//! Whatever a client sends, the service goes on, and so do the others.

mod support;
#[path = "support/words.rs"]
mod words;

use baton_core::jid::Jid;
use baton_core::wire::frame;
use baton_core::wire::node::{Node, Value};
use proptest::prelude::*;
use support::{Client, Net as _, World};
use words::{NAMES, TAGS, VALUES};

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_before_any_handshake(pieces in proptest::collection::vec(any::<Vec<u8>>(), 1..6), header in any::<bool>()) {
        let mut world = World::new();
        let mut bob = Client::online(&mut world, 2, BOB);
        let conn = world.open();
        let mut bytes = Vec::new();
        if header {
            frame::connection_header(None, &mut bytes);
        }
        for piece in pieces {
            frame::write_frame(&piece, &mut bytes).expect("short");
            bytes.extend(piece);
            if !world.closed.contains(&conn) {
                world.give(conn, &bytes);
            }
            bytes.clear();
        }
        goes_on(&mut world, &mut bob);
    }

    #[test]
    fn bytes_after_the_login(plain in any::<Vec<u8>>()) {
        let mut world = World::new();
        let mut alice = Client::online(&mut world, 1, ALICE);
        let mut bob = Client::online(&mut world, 2, BOB);
        alice.send_plain(&mut world, &plain);
        goes_on(&mut world, &mut bob);
        // Whatever it was, the device may come back.
        alice.hang_up(&mut world);
        alice.relogin(&mut world);
    }

    #[test]
    fn frames_that_do_not_open(frame in any::<Vec<u8>>()) {
        let mut world = World::new();
        let alice = Client::online(&mut world, 1, ALICE);
        let mut bob = Client::online(&mut world, 2, BOB);
        let mut bytes = Vec::new();
        frame::write_frame(&frame, &mut bytes).expect("short");
        let conn = alice.conn.expect("connected");
        world.give(conn, &bytes);
        prop_assert!(world.closed.contains(&conn), "nothing behind it can be read");
        goes_on(&mut world, &mut bob);
    }

    #[test]
    fn stanzas_of_any_shape(stanzas in proptest::collection::vec(stanza(), 1..12)) {
        let mut world = World::new();
        let mut alice = Client::online(&mut world, 1, ALICE);
        let mut bob = Client::online(&mut world, 2, BOB);
        for stanza in &stanzas {
            alice.send(&mut world, stanza);
        }
        goes_on(&mut world, &mut bob);
        prop_assert!(!world.closed.contains(&bob.conn.expect("connected")));
        // What was queued for Bob by all that can be delivered and saved.
        bob.hang_up(&mut world);
        bob.relogin(&mut world);
        let saved = world.service.save();
        prop_assert!(sim::service::Service::restore(Default::default(), [1; 32], &saved).is_ok());
    }

    #[test]
    fn stanzas_before_the_pairing(stanzas in proptest::collection::vec(stanza(), 1..8)) {
        let mut world = World::new();
        let mut bob = Client::online(&mut world, 2, BOB);
        let mut stranger = Client::new(9);
        let code = stranger.show_codes(&mut world).remove(0);
        for (n, stanza) in stanzas.iter().enumerate() {
            if n == 1 {
                world.service.scan(&code, Some(ALICE), world.now).expect("scanned");
                world.pump();
            }
            stranger.send(&mut world, stanza);
        }
        goes_on(&mut world, &mut bob);
        prop_assert_eq!(bob.devices_of(&mut world, &["15550000001@s.whatsapp.net".parse().expect("jid")]).len() < 2, true);
    }

    #[test]
    fn texts_that_are_no_codes(text in "\\PC*") {
        let mut world = World::new();
        prop_assert!(world.service.scan(&text, None, world.now).is_err());
        prop_assert!(world.service.phone_send(&text, &text, &text, world.now).is_err());
    }
}

fn goes_on(world: &mut World, other: &mut Client) {
    let pong = other.iq(world, "get", "w:p", []);
    assert_eq!(pong.get_str("type"), Some("result"));
}

/// Nodes made of the words of the protocol, in no order: far deeper into the service than random bytes get.
fn stanza() -> impl Strategy<Value = Node> {
    let tag = proptest::sample::select(vec![
        "message",
        "receipt",
        "ack",
        "iq",
        "presence",
        "chatstate",
        "call",
        "ib",
    ]);
    (tag, attrs(), proptest::collection::vec(child(), 0..4))
        .prop_map(|(tag, attrs, children)| node(tag, attrs).children(children))
}

fn child() -> impl Strategy<Value = Node> {
    let leaf = (proptest::sample::select(TAGS), attrs(), content())
        .prop_map(|(tag, attrs, content)| node(tag, attrs).bytes(content));
    leaf.prop_recursive(3, 24, 4, |inner| {
        (
            proptest::sample::select(TAGS),
            attrs(),
            proptest::collection::vec(inner, 0..4),
        )
            .prop_map(|(tag, attrs, children)| node(tag, attrs).children(children))
    })
}

fn attrs() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let key = proptest::sample::select(NAMES);
    proptest::collection::vec((key, value()), 0..6)
}

fn value() -> impl Strategy<Value = Value> {
    let words = [VALUES, &["unsubscribe", "18446744073709551616"]].concat();
    let jids = [
        "15550000001@s.whatsapp.net",
        "15550000001:1@s.whatsapp.net",
        "15550000002@s.whatsapp.net",
        "15550000002:1@s.whatsapp.net",
        "15550000002:7@s.whatsapp.net",
        "100000000000001@lid",
        "100000000000001:1@lid",
        "100000000000002@lid",
        "100000000000002:1@lid",
        "19990000000@s.whatsapp.net",
        "123-456@g.us",
        "status@broadcast",
        "s.whatsapp.net",
    ];
    let jids = jids
        .map(|text| text.parse::<Jid>().expect("a JID"))
        .to_vec();
    prop_oneof![
        proptest::sample::select(words).prop_map(Value::from),
        proptest::sample::select(jids).prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::sample::select(vec![0usize, 1, 3, 4, 32, 64])
            .prop_flat_map(|n| proptest::collection::vec(any::<u8>(), n)),
        Just(vec![5]),
        any::<Vec<u8>>(),
    ]
}

fn node(tag: &str, attrs: Vec<(&'static str, Value)>) -> Node {
    let mut seen = std::collections::BTreeSet::new();
    attrs
        .into_iter()
        .filter(|(key, _)| seen.insert(*key))
        .fold(Node::new(tag), |node, (key, value)| node.attr(key, value))
}
