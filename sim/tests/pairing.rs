//! A device becomes part of an account, comes back, and leaves.

mod support;

use baton_core::crypto::{KeyPair, PublicKey, sha1};
use baton_core::state::Micros;
use baton_core::wire::node::{Node, Value};
use sim::service::{DeviceId, ScanError};
use support::{Client, World};

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

#[test]
fn a_device_pairs_and_logs_in() {
    let mut world = World::new();
    for (seed, phone) in [(1, ALICE), (2, BOB)] {
        // One leaves the account's key out of its answer and one does not.
        let client = Client::online(&mut world, seed, phone);
        assert_eq!(
            client.jid.expect("paired").to_string(),
            format!("{phone}:1@s.whatsapp.net")
        );
    }
    assert_eq!(world.service.books().anomalies(), []);
    let log = world
        .service
        .books()
        .device(&DeviceId::new(ALICE, 1))
        .expect("known");
    assert_eq!(log.connections.len(), 1);
    assert_eq!(
        log.connections[0].handshake, "IK",
        "the identity learnt when pairing is used for the login"
    );
}

#[test]
fn a_code_is_accepted_in_every_reference_and_once() {
    let mut world = World::new();
    let mut client = Client::new(1);
    let codes = client.show_codes(&mut world);
    assert_eq!(codes.len(), 6);
    assert_eq!(
        world.service.scan("nonsense", None, world.now),
        Err(ScanError::NotACode)
    );
    let stranger = Client::new(2);
    let other = codes[0].replace(
        &base64(client.identity.public),
        &base64(stranger.identity.public),
    );
    assert_eq!(
        world.service.scan(&other, None, world.now),
        Err(ScanError::OtherKeys)
    );
    let scanned = world
        .service
        .scan(&codes[5], None, world.now)
        .expect("the last reference is as good as the first");
    assert_eq!(scanned.jid.device(), 1);
    assert_eq!(
        world.service.scan(&codes[0], None, world.now),
        Err(ScanError::ScannedAlready)
    );
    client.hang_up(&mut world);
    assert_eq!(
        world.service.scan(&codes[0], None, world.now),
        Err(ScanError::NobodyWaits)
    );
}

#[test]
fn a_wrong_device_signature_is_refused() {
    let mut world = World::new();
    let mut client = Client::new(1);
    let code = client.show_codes(&mut world).remove(0);
    world
        .service
        .scan(&code, Some(ALICE), world.now)
        .expect("scanned");
    world.pump();
    let offer = client.expect(&mut world, "iq");
    client.identity = KeyPair::generate(&mut client.rng);
    // Signed by another identity than the one that was registered: the offer's own check would fail, so sign blindly.
    let answer = blind_signature(&mut client, &offer);
    client.send(&mut world, &answer);
    assert_eq!(
        client.expect(&mut world, "failure").get_str("reason"),
        Some("400")
    );
    assert_eq!(world.service.books().anomalies().len(), 1);
    // Nothing became of it: the account has only its phone.
    let mut bob = Client::online(&mut world, 2, BOB);
    let devices = bob.devices_of(
        &mut world,
        &["15550000001@s.whatsapp.net".parse().expect("jid")],
    );
    assert_eq!(devices.len(), 1);
}

#[test]
fn stanzas_of_the_service_are_addressed_by_jid() {
    let mut world = World::new();
    let mut client = Client::new(1);
    client.server = None;
    let payload = client.registration();
    client.connect(&mut world, &payload);
    let iq = client.expect(&mut world, "iq");
    assert!(matches!(iq.get("from"), Some(Value::Jid(jid)) if jid.is_service()));
    assert_eq!(iq.nodes().len(), 1, "one client wants exactly one child");
}

#[test]
fn unknown_devices_and_wrong_keys_are_refused_with_401() {
    let mut world = World::new();
    let mut client = Client::online(&mut world, 1, ALICE);
    client.hang_up(&mut world);
    let mut imposter = Client::new(9);
    for (device, noise) in [(1, imposter.noise.clone()), (2, client.noise.clone())] {
        imposter.noise = noise;
        let payload = baton_core::proto::payload::ClientPayload {
            device: Some(device),
            ..client.login_payload()
        };
        imposter.server = None;
        imposter.connect(&mut world, &payload);
        assert_eq!(
            imposter.expect(&mut world, "failure").get_str("reason"),
            Some("401")
        );
        let conn = imposter.conn.take().expect("connected");
        world.pass(Micros::from_secs(1));
        assert!(world.closed.contains(&conn));
    }
    client.relogin(&mut world);
}

#[test]
fn a_stale_server_key_falls_back_and_a_known_one_resumes() {
    let (mut world, mut other) = (World::new(), World::new());
    let mut client = Client::online(&mut world, 1, ALICE);
    client.hang_up(&mut world);
    client.relogin(&mut world);
    assert!(client.resumed);
    client.hang_up(&mut world);
    // An identity learnt from a service that had other keys.
    other.service = sim::service::Service::new(Default::default(), [8; 32], other.now);
    let mut elsewhere = Client::online(&mut other, 2, BOB);
    client.server = elsewhere.server.take();
    client.relogin(&mut world);
    assert!(!client.resumed);
    let log = world.service.books().device(&client.id()).expect("known");
    let handshakes: Vec<_> = log.connections.iter().map(|c| c.handshake).collect();
    assert_eq!(handshakes, ["IK", "IK", "XXfallback"]);
}

#[test]
fn the_newer_connection_replaces_the_older_and_survives_its_end() {
    let mut world = World::new();
    let mut client = Client::online(&mut world, 1, ALICE);
    let old = client.conn.expect("connected");
    let mut twin = Client::new(1);
    std::mem::swap(&mut twin.noise, &mut client.noise);
    twin.jid = client.jid.clone();
    twin.lid = client.lid.clone();
    twin.relogin(&mut world);
    let error = client.expect(&mut world, "stream:error");
    assert_eq!(
        error.find("conflict").and_then(|c| c.get_str("type")),
        Some("replaced")
    );
    world.pass(Micros::from_secs(1));
    assert!(world.closed.contains(&old));
    world.service.disconnect(old, world.now);
    let pong = twin.iq(&mut world, "get", "w:p", []);
    assert_eq!(pong.get_str("type"), Some("result"));
    let log = world.service.books().device(&twin.id()).expect("known");
    assert_eq!(log.live_twice.len(), 1);
    assert_eq!(
        log.connections[0].closed.map(|(_, why)| why),
        Some("replaced")
    );
    assert_eq!(log.connections[1].closed, None);
}

#[test]
fn a_silent_connection_is_dropped_and_a_pinging_one_is_not() {
    let mut world = World::new();
    let mut quiet = Client::online(&mut world, 1, ALICE);
    let mut lively = Client::online(&mut world, 2, BOB);
    for _ in 0..4 {
        world.pass(Micros::from_secs(30));
        lively.iq(&mut world, "get", "w:p", []);
    }
    assert!(
        world
            .closed
            .contains(&quiet.conn.take().expect("was connected"))
    );
    assert!(!world.closed.contains(&lively.conn.expect("connected")));
}

#[test]
fn a_companion_that_leaves_is_gone_for_everybody() {
    let mut world = World::new();
    let mut alice = Client::online(&mut world, 1, ALICE);
    let mut second = Client::online(&mut world, 3, ALICE);
    let mut bob = Client::online(&mut world, 2, BOB);
    assert_eq!(
        alice.expect(&mut world, "notification").get_str("type"),
        Some("account_sync")
    );
    assert_eq!(bob.devices_of(&mut world, &[alice.user()]).len(), 3);

    let jid = second.jid.clone().expect("paired");
    let remove = Node::new("remove-companion-device")
        .attr("jid", jid)
        .attr("reason", "user_initiated");
    let answer = second.iq(&mut world, "set", "md", [remove]);
    assert_eq!(answer.get_str("type"), Some("result"));
    let error = second.expect(&mut world, "stream:error");
    assert_eq!(
        error.find("conflict").and_then(|c| c.get_str("type")),
        Some("device_removed")
    );

    let told = bob.expect(&mut world, "notification");
    assert_eq!(told.get_str("type"), Some("devices"));
    let gone = told
        .path(&["remove", "device"])
        .and_then(|device| device.get_jid("jid"));
    assert_eq!(gone, second.jid);
    assert_eq!(
        alice.expect(&mut world, "notification").get_str("type"),
        Some("account_sync")
    );
    assert_eq!(bob.devices_of(&mut world, &[alice.user()]).len(), 2);

    let payload = second.login_payload();
    second.connect(&mut world, &payload);
    assert_eq!(
        second.expect(&mut world, "failure").get_str("reason"),
        Some("401")
    );
}

#[test]
fn the_digest_covers_what_is_still_in_the_vault() {
    let mut world = World::new();
    let mut alice = Client::online(&mut world, 1, ALICE);
    let mut bob = Client::online(&mut world, 2, BOB);
    let taken = bob
        .bundle(&mut world, &alice.jid.clone().expect("paired"))
        .pre_key
        .expect("a key");
    assert_eq!(taken.0, 1, "oldest first");
    let answer = alice.iq(&mut world, "get", "encrypt", [Node::new("digest")]);
    let digest = answer.find("digest").expect("digest");
    let ids: Vec<u32> = digest
        .find("list")
        .expect("list")
        .find_all("id")
        .map(|id| {
            id.data()
                .expect("bytes")
                .iter()
                .fold(0, |n, byte| n << 8 | u32::from(*byte))
        })
        .collect();
    assert_eq!(ids, (2..=20).collect::<Vec<_>>());
    let (_, signed, signature) = &alice.signed;
    let mut parts: Vec<&[u8]> = vec![
        alice.identity.public.as_bytes(),
        signed.public.as_bytes(),
        signature.as_bytes(),
    ];
    parts.extend(
        ids.iter()
            .map(|id| alice.one_time[id].public.as_bytes().as_slice()),
    );
    assert_eq!(
        digest.find("hash").and_then(Node::data),
        Some(&sha1(&parts)[..])
    );
}

#[test]
fn a_pool_runs_low_and_then_dry() {
    let mut world = World::new();
    let mut alice = Client::online(&mut world, 1, ALICE);
    let mut bob = Client::online(&mut world, 2, BOB);
    let jid = alice.lid.clone().expect("paired");
    for _ in 0..20 {
        assert!(bob.bundle(&mut world, &jid).pre_key.is_some());
    }
    assert!(
        bob.bundle(&mut world, &jid).pre_key.is_none(),
        "an empty pool is no error"
    );
    let counts: Vec<_> = alice
        .all(&mut world, "notification")
        .iter()
        .map(|n| {
            n.find("count")
                .and_then(|count| count.get_u64("value"))
                .expect("count")
        })
        .collect();
    assert_eq!(counts, (0..10).rev().collect::<Vec<_>>());
    alice.upload(&mut world, 21..=25);
    let answer = alice.iq(&mut world, "get", "encrypt", [Node::new("count")]);
    let count = answer
        .find("count")
        .and_then(|count| count.get_u64("value"));
    assert_eq!(
        count,
        Some(5),
        "what was given out before does not come back by being uploaded again"
    );
}

#[test]
fn unsigned_pre_keys_are_refused() {
    let mut world = World::new();
    let mut alice = Client::online(&mut world, 1, ALICE);
    let stranger = Client::new(9);
    alice.signed.1 = stranger.signed.1.clone();
    let nodes = alice.upload_nodes();
    let answer = alice.iq(&mut world, "set", "encrypt", nodes.clone());
    assert_eq!(
        answer.find("error").and_then(|error| error.get_str("code")),
        Some("406")
    );
    let rotate = Node::new("rotate").child(nodes[4].clone());
    let answer = alice.iq(&mut world, "set", "encrypt", [rotate]);
    assert_eq!(
        answer.find("error").and_then(|error| error.get_str("code")),
        Some("406")
    );
}

#[test]
fn every_iq_is_answered() {
    let mut world = World::new();
    let mut alice = Client::online(&mut world, 1, ALICE);
    for (kind, xmlns, child) in [
        ("get", "abt", Some(Node::new("props").attr("protocol", "1"))),
        ("get", "blocklist", None),
        ("get", "privacy", Some(Node::new("privacy"))),
        ("set", "privacy", Some(Node::new("tokens"))),
        ("set", "w:m", Some(Node::new("media_conn"))),
        (
            "set",
            "urn:xmpp:whatsapp:dirty",
            Some(Node::new("clean").attr("type", "account_sync")),
        ),
        ("get", "w:p", None),
        ("set", "passive", Some(Node::new("passive"))),
    ] {
        let answer = alice.iq(&mut world, kind, xmlns, child);
        assert_eq!(answer.get_str("type"), Some("result"), "{xmlns}");
    }
    for xmlns in ["w:g2", "w:mex", "nonsense"] {
        let answer = alice.iq(&mut world, "get", xmlns, []);
        assert_eq!(
            answer.find("error").and_then(|error| error.get_str("code")),
            Some("501"),
            "{xmlns}"
        );
    }
}

fn base64(key: PublicKey) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(key.as_bytes())
}

/// Signs an offer without checking it.
fn blind_signature(client: &mut Client, offer: &Node) -> Node {
    use baton_core::proto::adv;
    use prost::Message as _;
    let container = offer
        .path(&["pair-success", "device-identity"])
        .and_then(Node::data)
        .expect("identity");
    let container = adv::AdvSignedDeviceIdentityHmac::decode(container).expect("protobuf");
    let mut identity = adv::AdvSignedDeviceIdentity::decode(&*container.details.expect("details"))
        .expect("protobuf");
    let (d, a) = (
        identity.details.clone().expect("details"),
        identity.account_signature_key.clone().expect("key"),
    );
    let parts: [&[u8]; 4] = [b"\x06\x01", &d, client.identity.public.as_bytes(), &a];
    identity.device_signature = Some(
        client
            .identity
            .private
            .sign(&parts, &mut client.rng)
            .as_bytes()
            .to_vec(),
    );
    let identity = Node::new("device-identity").bytes(identity.encode_to_vec());
    Node::new("iq")
        .attr("type", "result")
        .attr("id", offer.get_str("id").expect("id"))
        .child(Node::new("pair-device-sign").child(identity))
}
