//! Messages between companions and phones: who gets what, in which order, until when.

mod support;

use baton_core::jid::Jid;
use baton_core::signal::DecryptError;
use baton_core::state::Micros;
use baton_core::wire::node::Node;
use sim::service::books::Violation;
use sim::service::faults::Fault;
use sim::service::{DeviceId, Service};
use support::{Client, World, key_node, read_bundle};

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

fn pair_of(world: &mut World) -> (Client, Client) {
    (
        Client::online(world, 1, ALICE),
        Client::online(world, 2, BOB),
    )
}

/// Delivered and answered, as an ordinary client does it.
fn take(world: &mut World, client: &mut Client) -> (Node, String) {
    let message = client.expect(world, "message");
    let text = client.open(&message).expect("readable");
    client.receipt(world, &message, None);
    (message, text)
}

#[test]
fn a_text_reaches_the_companion_and_both_phones() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let ack = alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
    assert!(ack.get_u64("t").is_some() && ack.get("phash").is_none());

    let (message, text) = take(&mut world, &mut bob);
    assert_eq!(text, "hello");
    assert_eq!(message.get_jid("from"), alice.jid);
    assert_eq!(message.get_jid("sender_lid"), Some(alice.lid_user()));
    assert_eq!(message.get_str("notify"), Some("Phone 15550000001"));
    assert!(message.get("recipient").is_none() && message.get("offline").is_none());
    assert!(message.find("participants").is_none());
    assert_eq!(
        message.find("device-identity").and_then(Node::data),
        Some(&*alice.proof)
    );

    // The phones have read it as well, and Bob's was the first to say so.
    let books = world.service.books();
    let texts: Vec<_> = books
        .texts()
        .iter()
        .map(|t| (t.phone.to_string(), t.text.as_deref()))
        .collect();
    assert_eq!(
        texts,
        [
            (BOB.to_owned(), Some("hello")),
            (ALICE.to_owned(), Some("hello"))
        ]
    );
    assert_eq!(
        books.texts()[1].destination.as_deref(),
        Some("15550000002@s.whatsapp.net")
    );
    let receipts = alice.all(&mut world, "receipt");
    assert_eq!(receipts.len(), 2);
    assert!(
        receipts
            .iter()
            .all(|receipt| receipt.get_jid("from") == Some(bob.user()))
    );
    assert_eq!(world.service.books().anomalies(), []);
    assert_eq!(world.service.books().violations(), []);
}

#[test]
fn either_name_will_do_and_decides_how_the_sender_is_named() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    alice.text(&mut world, &bob.lid_user(), "3EB0A1", "by lid");
    let (message, text) = take(&mut world, &mut bob);
    assert_eq!(text, "by lid");
    assert_eq!(message.get_jid("from"), alice.lid);
    assert_eq!(message.get_jid("sender_pn"), Some(alice.user()));
    // The answer finds its way back under the same name.
    let receipts = alice.all(&mut world, "receipt");
    assert!(
        receipts
            .iter()
            .all(|receipt| receipt.get_jid("from") == Some(bob.lid_user()))
    );
    alice.text(&mut world, &bob.user(), "3EB0A2", "by number");
    assert_eq!(take(&mut world, &mut bob).1, "by number");
}

#[test]
fn own_devices_get_copies_that_name_the_chat() {
    let mut world = World::new();
    let (mut alice, bob) = pair_of(&mut world);
    let mut tablet = Client::online(&mut world, 3, ALICE);
    alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
    let copy = tablet.expect(&mut world, "message");
    assert_eq!(tablet.open(&copy).expect("readable"), "hello");
    assert_eq!(copy.get_jid("from"), alice.jid);
    assert_eq!(copy.get_jid("recipient"), Some(bob.user()));
    // The other address is the chat's: a client files the pair as two names of one account.
    assert_eq!(copy.get_jid("peer_recipient_lid"), Some(bob.lid_user()));
    assert!(copy.get("sender_lid").is_none() && copy.get("sender_pn").is_none());
    tablet.receipt(&mut world, &copy, Some("sender"));
    // It ends the copy and is nobody else's business.
    alice.all(&mut world, "receipt");
    tablet.hang_up(&mut world);
    assert_eq!(
        tablet.relogin(&mut world).len(),
        1,
        "a receipt of Bob's phone, and no message"
    );
    assert!(alice.all(&mut world, "receipt").is_empty());
}

#[test]
fn what_was_not_answered_comes_again_on_the_next_connection() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    bob.hang_up(&mut world);
    for n in 0..3 {
        alice.text(
            &mut world,
            &bob.user(),
            &format!("3EB0A{n}"),
            &format!("text {n}"),
        );
    }
    let queued = bob.relogin(&mut world);
    assert_eq!(
        queued
            .iter()
            .map(|m| bob.open(m).expect("readable"))
            .collect::<Vec<_>>(),
        ["text 0", "text 1", "text 2"]
    );
    assert!(
        bob.all(&mut world, "message").is_empty(),
        "once per connection"
    );
    bob.receipt(&mut world, &queued[1], Some("inactive"));

    bob.hang_up(&mut world);
    let again = bob.relogin(&mut world);
    assert_eq!(
        again
            .iter()
            .filter_map(|m| m.get_str("id"))
            .collect::<Vec<_>>(),
        ["3EB0A0", "3EB0A2"]
    );
    assert_eq!(bob.open(&again[0]), Err(DecryptError::Duplicate));
    let list = Node::new("list").child(Node::new("item").attr("id", "3EB0A2"));
    let receipt = Node::new("receipt")
        .attr("id", "3EB0A0")
        .attr("to", alice.jid.clone().expect("paired"))
        .child(list);
    bob.send(&mut world, &receipt);
    bob.hang_up(&mut world);
    assert_eq!(bob.relogin(&mut world).len(), 0);

    let log = world
        .service
        .books()
        .message(&alice.id(), "3EB0A0")
        .expect("booked");
    let deliveries = &log.recipients[&bob.id()].deliveries;
    assert_eq!(deliveries.len(), 2);
    assert!(deliveries.iter().all(|delivery| delivery.offline));
    assert_ne!(deliveries[0].conn, deliveries[1].conn);
}

#[test]
fn a_repeated_stanza_is_acked_again_and_not_delivered_again() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let stanza = alice.text_stanza(&mut world, &bob.user(), "3EB0A1", "hello");
    alice.send(&mut world, &stanza);
    alice.hang_up(&mut world);
    alice.relogin(&mut world);
    alice.send(&mut world, &stanza);
    assert_eq!(
        alice
            .expect_ack(&mut world, "message", "3EB0A1")
            .get_str("error"),
        None
    );
    assert_eq!(bob.all(&mut world, "message").len(), 1);
    let log = world
        .service
        .books()
        .message(&alice.id(), "3EB0A1")
        .expect("booked");
    assert_eq!((log.accepted.len(), log.repeated), (1, 1));
    assert_eq!(
        world.service.books().violations(),
        [],
        "the same bytes twice are one use of the key"
    );
}

#[test]
fn a_retry_goes_to_the_sending_device_and_the_resend_to_the_asking_one() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let mut tablet = Client::online(&mut world, 3, ALICE);
    alice.expect(&mut world, "notification");
    world.service.fault(
        Fault::Corrupt {
            device: bob.id(),
            count: 1,
        },
        world.now,
    );
    alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
    let broken = bob.expect(&mut world, "message");
    assert_eq!(bob.open(&broken), Err(DecryptError::BadMac));

    // As the clients do it: a retry receipt with keys, then an ack with an error.
    let fresh = baton_core::crypto::KeyPair::generate(&mut bob.rng);
    let keys = bob.upload_nodes();
    let keys = Node::new("keys")
        .child(keys[1].clone())
        .child(keys[2].clone())
        .child(key_node("key", 77, &fresh.public))
        .child(keys[4].clone());
    bob.one_time.insert(77, fresh);
    let retry = Node::new("receipt")
        .attr("id", "3EB0A1")
        .attr("to", alice.jid.clone().expect("paired"))
        .attr("type", "retry")
        .child(
            Node::new("retry")
                .attr("v", "1")
                .attr("count", "1")
                .attr("id", "3EB0A1"),
        )
        .child(Node::new("registration").bytes(bob.registration.to_be_bytes().to_vec()))
        .child(keys);
    bob.send(&mut world, &retry);

    assert!(
        tablet
            .all(&mut world, "receipt")
            .iter()
            .all(|r| r.get_str("type") != Some("retry"))
    );
    let asked: Vec<_> = alice.all(&mut world, "receipt");
    let asked = asked
        .iter()
        .find(|r| r.get_str("type") == Some("retry"))
        .expect("forwarded");
    assert_eq!(
        asked.get_jid("from"),
        bob.jid,
        "the device, not the account"
    );
    assert_eq!(asked.nodes(), retry.nodes(), "children untouched");
    let bundle = read_bundle(
        asked.find("keys").expect("keys"),
        asked.find("registration").expect("registration"),
    );
    let address = alice.address(bob.jid.as_ref().expect("paired"));
    alice.start(&address, &bundle);
    let message = baton_core::proto::e2e::Message {
        conversation: Some("hello".into()),
        ..Default::default()
    };
    let enc = alice
        .seal(&address, &prost::Message::encode_to_vec(&message))
        .attr("count", "1");
    let resend = Node::new("message")
        .attr("to", bob.jid.clone().expect("paired"))
        .attr("id", "3EB0A1")
        .attr("type", "text")
        .attr("device_fanout", "false")
        .child(enc);
    alice.send(&mut world, &resend);

    // The ack for the first copy is late, and must not end the second.
    let ack = Node::new("ack")
        .attr("class", "message")
        .attr("id", "3EB0A1")
        .attr("to", alice.jid.clone().expect("paired"))
        .attr("error", "500");
    bob.send(&mut world, &ack);
    let second = bob.expect(&mut world, "message");
    assert_eq!(bob.open(&second).expect("readable"), "hello");
    bob.hang_up(&mut world);
    assert_eq!(bob.relogin(&mut world).len(), 1, "not receipted yet");
    bob.receipt(&mut world, &second, None);
    bob.hang_up(&mut world);
    assert_eq!(bob.relogin(&mut world).len(), 0);
    assert!(
        tablet.all(&mut world, "message").len() == 1,
        "only its own copy"
    );

    let log = world
        .service
        .books()
        .message(&alice.id(), "3EB0A1")
        .expect("booked");
    assert_eq!(
        log.accepted.iter().map(|a| a.resend).collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(log.recipients[&bob.id()].retries, 1);
    assert_eq!(world.service.books().violations(), []);
    assert_eq!(world.service.books().anomalies(), []);
}

#[test]
fn a_phone_that_cannot_read_asks_again_and_then_reads() {
    let mut world = World::new();
    let (mut alice, bob) = pair_of(&mut world);
    let phone = "15550000002@s.whatsapp.net".parse::<Jid>().expect("jid");
    let mut stanza = alice.text_stanza(&mut world, &bob.user(), "3EB0A1", "hello");
    // The first ciphertext is damaged by the sender itself: the service never corrupts what goes to a phone.
    damage(&mut stanza, &phone);
    alice.send(&mut world, &stanza);
    let receipts = alice.all(&mut world, "receipt");
    let asked = receipts
        .iter()
        .find(|r| r.get_str("type") == Some("retry"))
        .expect("asked again");
    assert_eq!(asked.get_jid("from"), Some(phone.clone()));
    let bundle = read_bundle(
        asked.find("keys").expect("keys"),
        asked.find("registration").expect("registration"),
    );
    let address = alice.address(&phone);
    alice.start(&address, &bundle);
    let message = baton_core::proto::e2e::Message {
        conversation: Some("hello".into()),
        ..Default::default()
    };
    let enc = alice
        .seal(&address, &prost::Message::encode_to_vec(&message))
        .attr("count", "1");
    let resend = Node::new("message")
        .attr("to", phone)
        .attr("id", "3EB0A1")
        .attr("type", "text")
        .child(enc);
    alice.send(&mut world, &resend);
    let read: Vec<_> = world
        .service
        .books()
        .texts()
        .iter()
        .filter(|t| t.phone.phone == BOB)
        .collect();
    assert_eq!(
        read.iter().map(|t| t.text.as_deref()).collect::<Vec<_>>(),
        [Some("hello")]
    );
    assert!(bob.conn.is_some());
}

#[test]
fn a_phone_writes_and_answers_retries() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let id = world
        .service
        .phone_send(ALICE, BOB, "from the phone", world.now)
        .expect("sent");
    world.pump();
    let copy = alice.expect(&mut world, "message");
    assert_eq!(alice.open(&copy).expect("readable"), "from the phone");
    assert_eq!(copy.get_jid("recipient"), Some(bob.user()));
    alice.receipt(&mut world, &copy, Some("sender"));

    let message = bob.expect(&mut world, "message");
    assert_eq!(message.get_str("id"), Some(&*id));
    // Bob lost the session before he could read it.
    let bare = Node::new("receipt")
        .attr("id", id.as_str())
        .attr("to", message.get_jid("from").expect("from"))
        .attr("type", "retry")
        .child(
            Node::new("retry")
                .attr("v", "1")
                .attr("count", "1")
                .attr("id", id.as_str()),
        )
        .child(Node::new("registration").bytes(bob.registration.to_be_bytes().to_vec()));
    bob.send(&mut world, &bare);
    let again = bob.expect(&mut world, "message");
    assert_eq!(
        again.find("enc").and_then(|enc| enc.get_str("count")),
        Some("1")
    );
    assert_eq!(bob.open(&again).expect("readable"), "from the phone");
    // And the conversation goes on both ways.
    bob.receipt(&mut world, &again, None);
    bob.text(&mut world, &alice.user(), "3EB0B1", "to the phone");
    let texts = world.service.books().texts();
    assert!(
        texts
            .iter()
            .any(|t| t.phone.phone == ALICE && t.text.as_deref() == Some("to the phone"))
    );
    assert_eq!(world.service.books().violations(), []);
    assert_eq!(world.service.books().anomalies(), []);
}

#[test]
fn a_key_used_twice_is_found_out() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
    take(&mut world, &mut bob);
    let before = alice
        .sessions
        .iter()
        .map(|(address, record)| (address.clone(), record.encode()))
        .collect::<Vec<_>>();
    alice.text(&mut world, &bob.user(), "3EB0A2", "one thing");
    assert_eq!(world.service.books().keys_used_twice().count(), 0);
    // A backup is restored, and the client goes on from there.
    for (address, record) in before {
        alice.sessions.insert(
            address,
            baton_core::signal::SessionRecord::decode(&record).expect("decoded"),
        );
    }
    alice.text(&mut world, &bob.user(), "3EB0A3", "another thing");
    let found: Vec<_> = world.service.books().keys_used_twice().collect();
    assert_eq!(found.len(), 3, "both phones and the companion");
    assert!(
        found
            .iter()
            .all(|v| matches!(v, Violation::KeyUsedTwice { id, .. } if id == "3EB0A3"))
    );
}

#[test]
fn an_id_bound_to_two_keys_is_found_out() {
    let mut world = World::new();
    let mut alice = Client::online(&mut world, 1, ALICE);
    alice.upload(&mut world, []);
    assert_eq!(
        world.service.books().violations(),
        [],
        "the same keys again are fine"
    );
    alice.upload(&mut world, [5]);
    assert!(matches!(
        world.service.books().violations(),
        [Violation::PreKeyRebound { id: 5, .. }]
    ));
}

#[test]
fn a_wrong_device_set_is_delivered_and_told_by_hash() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let mut stanza = alice.text_stanza(&mut world, &bob.user(), "3EB0A1", "hello");
    let late = Client::online(&mut world, 4, BOB);
    bob.all(&mut world, "notification");
    let told = alice.expect(&mut world, "notification");
    assert_eq!(
        told.path(&["add", "device"])
            .and_then(|device| device.get_jid("jid")),
        late.jid
    );
    alice.send(&mut world, &stanza);
    let ack = alice.expect(&mut world, "ack");
    assert!(
        ack.get_str("phash")
            .is_some_and(|hash| hash.starts_with("2:")),
        "{ack:?}"
    );
    assert_eq!(bob.all(&mut world, "message").len(), 1);
    // A stanza for somebody who does not exist is refused.
    stanza = Node::new("message").attr("id", "3EB0A2").attr(
        "to",
        "19990000000@s.whatsapp.net".parse::<Jid>().expect("jid"),
    );
    alice.send(&mut world, &stanza);
    assert_eq!(
        alice.expect(&mut world, "ack").get_str("error"),
        Some("404")
    );
}

#[test]
fn nobody_can_be_written_to_behind_the_recipients_back() {
    let mut world = World::new();
    let (mut alice, bob) = pair_of(&mut world);
    let mut carol = Client::online(&mut world, 5, "15550000003");
    let enc = alice.encrypt(&mut world, &carol.jid.clone().expect("paired"), b"x");
    let to = Node::new("to")
        .attr("jid", carol.jid.clone().expect("paired"))
        .child(enc);
    let stanza = Node::new("message")
        .attr("to", bob.user())
        .attr("id", "3EB0A1")
        .child(Node::new("participants").child(to));
    alice.send(&mut world, &stanza);
    assert!(carol.all(&mut world, "message").is_empty());
    assert_eq!(world.service.books().anomalies().len(), 1);
}

#[test]
fn read_receipts_reach_the_author_and_the_readers_other_devices() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let mut tablet = Client::online(&mut world, 4, BOB);
    bob.all(&mut world, "notification");
    alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
    let (message, _) = take(&mut world, &mut bob);
    alice.all(&mut world, "receipt");
    bob.receipt(&mut world, &message, Some("read"));
    let read = alice.expect(&mut world, "receipt");
    assert_eq!(
        (read.get_str("type"), read.get_jid("from")),
        (Some("read"), Some(bob.user()))
    );
    let own = tablet.expect(&mut world, "receipt");
    assert_eq!(
        (own.get_jid("from"), own.get_jid("recipient")),
        (bob.jid.clone(), Some(alice.user()))
    );
    // Queued until acked.
    alice.ack(&mut world, &read);
    bob.receipt(&mut world, &message, Some("read-self"));
    assert!(alice.all(&mut world, "receipt").is_empty());
}

#[test]
fn presence_and_typing_reach_those_who_are_there() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let subscribe = Node::new("presence")
        .attr("type", "subscribe")
        .attr("to", alice.user());
    bob.send(&mut world, &subscribe);
    assert_eq!(
        bob.expect(&mut world, "presence").get_str("type"),
        Some("unavailable")
    );
    alice.send(
        &mut world,
        &Node::new("presence")
            .attr("type", "available")
            .attr("name", "Alice"),
    );
    let there = bob.expect(&mut world, "presence");
    assert_eq!(
        (there.get_jid("from"), there.get("type")),
        (Some(alice.user()), None)
    );
    alice.send(
        &mut world,
        &Node::new("chatstate")
            .attr("to", bob.user())
            .child(Node::new("composing")),
    );
    assert!(
        bob.expect(&mut world, "chatstate")
            .find("composing")
            .is_some()
    );
    alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
    assert_eq!(
        bob.expect(&mut world, "message").get_str("notify"),
        Some("Alice")
    );
    alice.hang_up(&mut world);
    assert_eq!(
        bob.expect(&mut world, "presence").get_str("type"),
        Some("unavailable")
    );
}

#[test]
fn faults_strike_and_heal() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    let to = bob.user();
    let order = |world: &mut World, fault| world.service.fault(fault, world.now);

    order(
        &mut world,
        Fault::Drop {
            device: bob.id(),
            count: 1,
        },
    );
    alice.text(&mut world, &to, "LOST", "lost once");
    assert!(bob.all(&mut world, "message").is_empty());
    bob.hang_up(&mut world);
    let queued = bob.relogin(&mut world);
    assert_eq!(
        queued
            .iter()
            .map(|m| bob.open(m).expect("readable"))
            .collect::<Vec<_>>(),
        ["lost once"]
    );
    bob.receipt(&mut world, &queued[0], None);

    order(
        &mut world,
        Fault::Reorder {
            device: bob.id(),
            count: 1,
        },
    );
    alice.text(&mut world, &to, "SECOND", "a");
    alice.text(&mut world, &to, "FIRST", "b");
    let ids: Vec<_> = bob
        .all(&mut world, "message")
        .iter()
        .filter_map(|m| m.get_string("id"))
        .collect();
    assert_eq!(ids, ["FIRST", "SECOND"]);

    order(
        &mut world,
        Fault::Duplicate {
            device: bob.id(),
            count: 1,
        },
    );
    alice.text(&mut world, &to, "TWICE", "c");
    assert_eq!(bob.all(&mut world, "message").len(), 2);

    order(
        &mut world,
        Fault::Refuse {
            device: alice.id(),
            count: 1,
            error: 479,
        },
    );
    let stanza = alice.text_stanza(&mut world, &to, "REFUSED", "d");
    alice.send(&mut world, &stanza);
    assert_eq!(
        alice.expect(&mut world, "ack").get_str("error"),
        Some("479")
    );
    assert!(bob.all(&mut world, "message").is_empty());

    order(
        &mut world,
        Fault::WithholdAck {
            device: alice.id(),
            count: 1,
        },
    );
    let stanza = alice.text_stanza(&mut world, &to, "UNACKED", "e");
    alice.send(&mut world, &stanza);
    assert!(alice.all(&mut world, "ack").is_empty());
    assert_eq!(bob.all(&mut world, "message").len(), 1);

    order(
        &mut world,
        Fault::DelayAck {
            device: alice.id(),
            count: 1,
            micros: 5_000_000,
        },
    );
    let stanza = alice.text_stanza(&mut world, &to, "LATE", "f");
    alice.send(&mut world, &stanza);
    assert!(alice.all(&mut world, "ack").is_empty());
    world.pass(Micros::from_secs(6));
    assert_eq!(alice.expect(&mut world, "ack").get_str("id"), Some("LATE"));

    order(
        &mut world,
        Fault::ExpirePreKeys {
            device: bob.id(),
            keep: 1,
        },
    );
    let count = bob.iq(&mut world, "get", "encrypt", [Node::new("count")]);
    assert_eq!(
        count.find("count").and_then(|c| c.get_u64("value")),
        Some(1)
    );

    order(
        &mut world,
        Fault::StreamError {
            device: bob.id(),
            code: Some(503),
            conflict: None,
        },
    );
    world.pump();
    assert_eq!(
        bob.expect(&mut world, "stream:error").get_str("code"),
        Some("503")
    );
    order(
        &mut world,
        Fault::FailLogin {
            device: bob.id(),
            count: 1,
            reason: 503,
        },
    );
    let payload = bob.login_payload();
    bob.connect(&mut world, &payload);
    assert_eq!(
        bob.expect(&mut world, "failure").get_str("reason"),
        Some("503")
    );

    order(&mut world, Fault::Close { device: alice.id() });
    world.pump();
    assert!(world.closed.contains(&alice.conn.expect("was connected")));

    order(
        &mut world,
        Fault::FailLogin {
            device: bob.id(),
            count: 9,
            reason: 503,
        },
    );
    world.service.heal();
    bob.relogin(&mut world);
    assert_eq!(world.service.faults().acted().len(), 10);
}

#[test]
fn a_restarted_service_goes_on_where_it_stopped() {
    let mut world = World::new();
    let (mut alice, mut bob) = pair_of(&mut world);
    alice.text(&mut world, &bob.user(), "3EB0A1", "answered");
    take(&mut world, &mut bob);
    alice.text(&mut world, &bob.user(), "3EB0A2", "delivered, not answered");
    bob.expect(&mut world, "message");
    bob.hang_up(&mut world);
    let stanza = alice.text_stanza(&mut world, &bob.user(), "3EB0A3", "queued");
    alice.send(&mut world, &stanza);
    let saved = world.service.save();
    assert!(Service::restore(Default::default(), [0; 32], &saved[1..]).is_err());

    let restored = Service::restore(Default::default(), [99; 32], &saved).expect("restored");
    let mut world = World::of(restored, world.now);
    let queued = bob.relogin(&mut world);
    assert!(bob.resumed, "the server key is the same");
    let texts: Vec<_> = queued
        .iter()
        .filter(|n| n.tag() == "message")
        .map(|m| bob.open(m).expect("readable"))
        .collect();
    assert_eq!(texts, ["delivered, not answered", "queued"]);
    // Alice repeats what she had no ack for; it is known.
    alice.relogin(&mut world);
    alice.send(&mut world, &stanza);
    assert_eq!(
        alice.expect(&mut world, "ack").get_str("id"),
        Some("3EB0A3")
    );
    assert!(bob.all(&mut world, "message").is_empty());
    // The phones have kept their sessions: what goes on needs no new ones.
    alice.text(&mut world, &bob.user(), "3EB0A4", "and on");
    let texts = world.service.books().texts();
    assert!(
        texts
            .iter()
            .any(|t| t.phone.phone == BOB && t.text.as_deref() == Some("and on"))
    );
    assert_eq!(world.service.books().anomalies(), []);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let run = || {
        let mut world = World::new();
        let (mut alice, mut bob) = pair_of(&mut world);
        alice.text(&mut world, &bob.user(), "3EB0A1", "hello");
        take(&mut world, &mut bob);
        world
            .service
            .phone_send(BOB, ALICE, "hi", world.now)
            .expect("sent");
        world.pump();
        (alice.expect(&mut world, "message"), world.service.save())
    };
    assert!(run() == run());
}

#[test]
fn a_new_companion_gets_its_app_state_key_if_phones_are_told_to() {
    let mut world = World::with(sim::service::Options::default());
    let mut alice = Client::new(1);
    alice.pair(&mut world, ALICE);
    alice.login(&mut world);
    alice.upload(&mut world, 1..=20);
    alice.activate(&mut world);
    let messages = alice.all(&mut world, "message");
    assert_eq!(messages.len(), 2);
    for message in &messages {
        assert_eq!(message.get_str("category"), Some("peer"));
        assert_eq!(message.get_jid("from"), Some(alice.lid_user()));
        assert!(message.get("recipient").is_none());
        alice.open(message).expect("readable");
        alice.receipt(&mut world, message, Some("peer_msg"));
    }
    alice.hang_up(&mut world);
    assert!(alice.relogin(&mut world).is_empty(), "once");
    assert_eq!(
        world
            .service
            .books()
            .device(&DeviceId::new(ALICE, 1))
            .map(|d| d.uploads.len()),
        Some(1)
    );
}

/// Flips a bit in the ciphertext for one participant.
fn damage(stanza: &mut Node, to: &Jid) {
    use baton_core::wire::node::Content;
    let Content::Nodes(children) = &mut stanza.content else {
        panic!("children")
    };
    let participants = children
        .iter_mut()
        .find(|child| child.tag == "participants")
        .expect("participants");
    let Content::Nodes(participants) = &mut participants.content else {
        panic!("children")
    };
    let one = participants
        .iter_mut()
        .find(|p| p.get_jid("jid").as_ref() == Some(to))
        .expect("participant");
    let Content::Nodes(enc) = &mut one.content else {
        panic!("children")
    };
    let mut bytes = enc[0].data().expect("bytes").to_vec();
    *bytes.last_mut().expect("not empty") ^= 1;
    enc[0].content = Content::Bytes(bytes.into());
}
