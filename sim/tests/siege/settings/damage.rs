//! Settings that are not what they should be: what is believed, and what it leads to.

use super::*;

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
        a_message_arrives(&mut rig);
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

/// Our patch was taken and the answer lost; it comes back damaged, and then sound, as the beginning of a log. What a log
/// begins with, nothing, does not say that the patch is not there: it is neither made again nor announced twice.
#[test]
fn a_patch_of_ours_comes_back_damaged_and_then_in_a_log_that_begins_anew() {
    let (mut rig, cloud) = online(6);
    cloud.borrow_mut().lose = 1;
    change(&mut rig, vec![mute(1, 9_000)]);
    assert_eq!(cloud.borrow().log(Collection::RegularHigh).ours.len(), 1);
    let sound = cloud.borrow().log(Collection::RegularHigh).patches.clone();
    let mut damaged = sound.clone();
    damaged.last_mut().expect("ours").patch_mac = Some(vec![0; 32]);
    let mut answers = [damaged, sound].into_iter();
    cloud.borrow_mut().bend = Some(Box::new(move |collection, node| {
        if collection != Collection::RegularHigh {
            return node;
        }
        let Some(patches) = answers.next() else {
            return node;
        };
        let patches = patches
            .iter()
            .map(|patch| Node::new("patch").bytes(patch.encode_to_vec()));
        Node::new("collection")
            .attr("name", collection.as_str())
            .attr("version", 2)
            .child(Node::new("patches").children(patches.collect::<Vec<_>>()))
    }));
    rig.hang_up();
    rig.pass(5 * SECOND);
    converged(&mut rig, &cloud);
    let stats = rig.engine.stats().sync.clone();
    assert_eq!((stats.resyncs, stats.changes_out), (1, 1), "{stats:?}");
    assert_eq!(cloud.borrow().log(Collection::RegularHigh).ours.len(), 1);
    let mut announced = settings_of(&rig.said.events);
    announced.retain(|(_, own)| *own);
    assert_eq!(announced, [(mute(1, 9_000), true)]);
}

/// Another device has lost its way: its patch is well signed, and what it says of the collection as a whole is wrong.
/// The service cannot tell, and puts it into its snapshot. Somebody else's next patch is sound again, or else the phone
/// tells what there is. Messages come and go meanwhile.
#[test]
fn a_foreign_patch_that_vouches_for_another_collection() {
    for another_is_sound in [true, false] {
        let (mut rig, cloud) = online(24);
        let phone = own_phone(&mut rig);
        remote(&mut rig, &cloud, &[mute(1, 5_000), mute(2, 6_000)]);
        converged(&mut rig, &cloud);
        let collection = cloud.borrow_mut().remote_astray(&[mute(2, 7_000)]);
        let sound = collection_row(&rig, collection);
        if another_is_sound {
            // Before we look.
            remote(&mut rig, &cloud, &[mute(3, 8_000)]);
        } else {
            notify(&mut rig, collection, 3);
        }
        let stats = rig.engine.stats().sync.clone();
        assert_eq!(stats.bad_patch_macs, 0, "{stats:?}");
        assert!(stats.bad_snapshot_macs > 0, "{stats:?}");
        a_message_arrives(&mut rig);
        if !another_is_sound {
            rig.pass(20 * SECOND);
            // Nothing of it was believed.
            let row = collection_row(&rig, collection);
            assert_eq!((row.version, row.hash), (sound.version, sound.hash));
            assert_eq!(row.evidence[0].version, Some(2));
            assert_eq!(questions(&rig).len(), 1, "{:?}", rig.engine.stats().sync);
            let recovery = cloud.borrow().recovery(collection);
            tell(&mut rig, phone, "told", &recovery);
            assert_eq!(rig.engine.stats().sync.recoveries, 1);
        }
        converged(&mut rig, &cloud);
        assert_eq!(rig.engine.stats().sync.given_up, 0);
        change(&mut rig, vec![mute(1, 9_000)]);
        remote(&mut rig, &cloud, &[mute(2, 0), contact(1, Some("on"))]);
        converged(&mut rig, &cloud);
    }
}

/// A snapshot that is wrong as well: after a few tries the collection is given up, until the next login; the others go
/// on, and so do messages.
#[test]
fn a_collection_that_cannot_be_mended_is_given_up() {
    let (mut rig, cloud) = online(9);
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
    a_message_arrives(&mut rig);
    // The next login tries again; the service is itself again.
    cloud.borrow_mut().bend = None;
    rig.hang_up();
    rig.pass(30 * SECOND);
    converged(&mut rig, &cloud);
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
        a_message_arrives(&mut rig);
        converged(&mut rig, &cloud);
    }
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
        a_message_arrives(&mut rig);
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
    a_message_arrives(&mut rig);
    assert!(rig.said.fetches.len() <= 5);
}

/// The row has lost the patch that was on its way, or what it has is none: the changes are announced all the same, once.
#[test]
fn a_row_that_has_lost_the_patch_of_ours_is_mended() {
    for lost in [None, Some(vec![0xff; 9])] {
        let (mut rig, cloud) = with_cloud(14);
        rig.go_online();
        cloud.borrow_mut().lose = 1;
        change(&mut rig, vec![mute(1, 5_000)]);
        let collection = Collection::RegularHigh;
        // It never came to the service either.
        cloud
            .borrow_mut()
            .logs
            .insert(collection, Default::default());
        let mut row = collection_row(&rig, collection);
        let flight = row.in_flight.as_mut().expect("its answer was lost");
        flight.patch = lost;
        let (store, account) = (rig.store.clone(), rig.account.clone());
        let key = Key::AppStateVersion(collection.as_str().into());
        crate::rig::bury(&store);
        Rig::write(&store, &account, key, codec::encode(&row));
        cloud
            .borrow_mut()
            .logs
            .insert(collection, Default::default());
        let mut next = engine(store, account, 15, &cloud);
        next.go_online();
        next.pass(30 * SECOND);
        let asked = cloud.borrow().asked.len();
        assert!(asked < 40, "{asked} questions");
        assert_eq!(cloud.borrow().log(collection).ours, [mute(1, 5_000)]);
    }
}

/// A service that always has more, and never anything new, is not asked for ever.
#[test]
fn a_service_that_always_has_more_is_given_up() {
    let (mut rig, cloud) = online(16);
    cloud.borrow_mut().bend = Some(Box::new(|_, node| node.attr("has_more_patches", "true")));
    let before = cloud.borrow().asked.len();
    notify(&mut rig, Collection::RegularHigh, 7);
    let at_once = cloud.borrow().asked.len() - before;
    assert!((2..=20).contains(&at_once), "{at_once} questions at once");
    rig.pass(600 * SECOND);
    let asked = cloud.borrow().asked.len() - before;
    assert!(asked <= 100, "{asked} questions");
    let stats = rig.engine.stats().sync.clone();
    assert_eq!((stats.failed_asks, stats.given_up), (5, 1), "{stats:?}");
    a_message_arrives(&mut rig);
    cloud.borrow_mut().bend = None;
    cloud.borrow_mut().remote(&[mute(1, 5_000)]);
    rig.hang_up();
    rig.pass(30 * SECOND);
    converged(&mut rig, &cloud);
}
