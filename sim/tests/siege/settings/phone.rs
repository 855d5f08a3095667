//! The phone behind the settings: it mends what the service cannot, and has the keys.

use super::*;

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
    for what in 0..5 {
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
        let before = rig.engine.stats().sync.malformed;
        match what {
            0..3 => tell(&mut rig, phone, "told", &recovery),
            3 => tell_bytes(&mut rig, phone, "told", vec![7; 40], Some(true)),
            _ => {}
        }
        let malformed = rig.engine.stats().sync.malformed - before;
        assert!(what != 3 || malformed == 1, "{malformed}");
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
        a_message_arrives(&mut rig);
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
    // Others go on, and so do messages.
    a_message_arrives(&mut rig);
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

/// A change that is asked for before the phone has shared any key waits for the first, without a word to the service
/// meanwhile. A service that has nothing under that name was asked again and again, as fast as it answered.
#[test]
fn a_change_without_any_key_waits_for_the_first() {
    let (rig, cloud) = with_cloud(17);
    let key = cloud.borrow().key.clone();
    let (store, account) = (rig.store.clone(), rig.account.clone());
    drop(rig);
    crate::rig::bury(&store);
    let row = Key::AppStateSyncKey(key.0.as_bytes().clone());
    Rig::write_all(&store, &account, [(row, None)].into());
    let mut rig = engine(store, account, 17, &cloud);
    rig.go_online();
    let phone = own_phone(&mut rig);
    // So long the phone has to share one by itself; then the service is asked all the same.
    rig.pass(90 * SECOND);
    let before = cloud.borrow().asked.len();
    assert_eq!(before, 5, "each collection once");
    change(&mut rig, vec![mute(1, 5_000)]);
    rig.pass(600 * SECOND);
    let asked = cloud.borrow().asked.len() - before;
    assert!((1..=3).contains(&asked), "{asked} questions");
    a_message_arrives(&mut rig);

    share(&mut rig, phone, &key, "k1");
    assert_eq!(
        cloud.borrow().log(Collection::RegularHigh).ours,
        [mute(1, 5_000)]
    );
    converged(&mut rig, &cloud);
}
