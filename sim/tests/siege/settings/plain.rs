//! What settings do when nobody lies: both ways, in conflict, in pages, files and snapshots.

use super::*;

#[test]
fn what_another_device_changes_arrives() {
    let (mut rig, cloud) = online(1);
    remote(&mut rig, &cloud, &[mute(1, 7_000), mute(2, 8_000)]);
    remote(&mut rig, &cloud, &[pin(1, true)]);
    remote(&mut rig, &cloud, &[contact(3, Some("Zoë"))]);
    remote(
        &mut rig,
        &cloud,
        &[contact(3, None), contact(4, Some("Åke"))].map(|action| action),
    );
    assert_eq!(
        settings_of(&rig.said.events)
            .into_iter()
            .map(|(action, _)| action)
            .collect::<Vec<_>>()
            .len(),
        6
    );
    assert!(settings_of(&rig.said.events).iter().all(|(_, own)| !own));
    converged(&mut rig, &cloud);
    // A notification of what we have leads to nothing.
    let before = cloud.borrow().asked.len();
    notify(&mut rig, Collection::RegularHigh, 2);
    assert_eq!(cloud.borrow().asked.len(), before);
    assert_eq!(rig.engine.stats().sync.patches, 4);
}

#[test]
fn our_changes_arrive_and_are_told_as_ours() {
    let (mut rig, cloud) = online(2);
    let wanted = vec![mute(1, 7_000), pin(2, true), contact(3, Some("Zoë"))];
    assert_eq!(change(&mut rig, wanted.clone()), Some(Ok(Reply::Done)));
    let seen = settings_of(&rig.said.events);
    assert_eq!(seen.len(), 3);
    assert!(
        wanted
            .iter()
            .all(|action| seen.contains(&(action.clone(), true)))
    );
    converged(&mut rig, &cloud);
    // Removed again; and removed when it is gone already, which is no change.
    change(&mut rig, vec![contact(3, None)]);
    change(&mut rig, vec![contact(3, None)]);
    converged(&mut rig, &cloud);
    assert!(!contacts(&mut rig).contains_key(&chat(3)));
    assert_eq!(rig.engine.stats().sync.changes_refused, 1);
}

/// Another device is faster: its change is taken in first, ours is put on top of it. With and without the missing
/// patches in the answer.
#[test]
fn a_conflict_loses_neither_change() {
    for terse in [false, true] {
        let (mut rig, cloud) = online(3);
        cloud.borrow_mut().terse = terse;
        // Nobody has told us.
        cloud.borrow_mut().remote(&[mute(1, 5_000), mute(2, 5_000)]);
        assert_eq!(
            change(&mut rig, vec![mute(1, 9_000)]),
            Some(Ok(Reply::Done))
        );
        converged(&mut rig, &cloud);
        let have = chats(&mut rig);
        assert_eq!(have[&chat(1)].muted, Some(MuteEnd::At(9_000)));
        assert_eq!(have[&chat(2)].muted, Some(MuteEnd::At(5_000)));
        assert_eq!(rig.engine.stats().sync.conflicts, 1);
        assert_eq!(cloud.borrow().conflicts, 1);
    }
}

/// The service has taken our patch, and its answer gets lost: it is neither lost nor announced twice.
#[test]
fn a_lost_answer_doubles_nothing() {
    for crash in [false, true] {
        let (mut rig, cloud) = online(4);
        cloud.borrow_mut().lose = 1;
        change(&mut rig, vec![mute(1, 9_000)]);
        assert_eq!(cloud.borrow().log(Collection::RegularHigh).ours.len(), 1);
        if crash {
            let (store, account) = (
                rig.store.copy(|| Micros(3_000_000 * SECOND)),
                rig.account.clone(),
            );
            rig = engine(store, account, 5, &cloud);
            rig.go_online();
        } else {
            rig.hang_up();
            rig.pass(5 * SECOND);
        }
        converged(&mut rig, &cloud);
        assert_eq!(cloud.borrow().log(Collection::RegularHigh).ours.len(), 1);
        assert_eq!(rig.engine.stats().sync.changes_out, 1);
    }
}

#[test]
fn long_logs_come_in_pages_and_files() {
    let (mut rig, cloud) = with_cloud(5);
    for n in 0..20 {
        cloud
            .borrow_mut()
            .remote(&[mute(n % 5, 1_000 + i64::from(n))]);
    }
    cloud.borrow_mut().page = 3;
    cloud.borrow_mut().external = true;
    rig.go_online();
    // A collection that is new comes as a snapshot; the rest as patches, three at a time, each in a file.
    converged(&mut rig, &cloud);
    for n in 0..20 {
        cloud
            .borrow_mut()
            .remote(&[mute(n % 5, 2_000 + i64::from(n))]);
    }
    rig.look();
    notify(&mut rig, Collection::RegularHigh, 40);
    converged(&mut rig, &cloud);
    assert_eq!(rig.said.fetches.len(), 20);
    assert!(
        rig.said
            .fetches
            .iter()
            .all(|request| request.path.contains("mms-type=md-app-state"))
    );
}

/// A new account: everything comes from snapshots, and what is not understood is kept and can be asked for.
#[test]
fn the_first_sync_is_a_snapshot() {
    let (mut rig, cloud) = with_cloud(6);
    let label = Action::Label {
        id: "3".into(),
        label: Some(Default::default()),
    };
    cloud
        .borrow_mut()
        .remote(&[contact(1, Some("A")), contact(2, Some("B"))]);
    cloud.borrow_mut().remote(&[contact(1, Some("C"))]);
    cloud.borrow_mut().remote(std::slice::from_ref(&label));
    cloud
        .borrow_mut()
        .remote(&[Action::PushName("Ourselves".into())]);
    cloud.borrow_mut().compact(Collection::CriticalUnblockLow);
    rig.go_online();
    converged(&mut rig, &cloud);
    assert_eq!(rig.device().push_name.as_deref(), Some("Ourselves"));
    let id = rig.command(Command::Settings {
        collection: Collection::Regular,
        after: None,
        limit: 10,
    });
    match reply(&rig, id) {
        Some(Ok(Reply::Settings {
            settings,
            next: None,
        })) => {
            assert_eq!(
                settings.into_iter().map(|it| it.action).collect::<Vec<_>>(),
                [label]
            );
        }
        other => panic!("{other:?}"),
    }
    // Three files, and two collections that begin with nothing.
    assert_eq!(
        (
            rig.engine.stats().sync.snapshots,
            rig.engine.stats().sync.fetches
        ),
        (5, 3)
    );
}

/// Fifty thousand contacts in one snapshot: taken in at once, in one batch with version and hash.
#[test]
fn a_snapshot_of_fifty_thousand() {
    let (mut rig, cloud) = with_cloud(7);
    for portion in 0..5 {
        let all: Vec<Action> = (0..10_000)
            .map(|n| Action::Contact {
                user: Jid::pn(&format!("1555{:07}", portion * 10_000 + n)).expect("digits"),
                card: Some(ContactCard {
                    full_name: Some(format!("Number {n}")),
                    ..Default::default()
                }),
            })
            .collect();
        cloud.borrow_mut().remote(&all);
    }
    rig.chunk = 60_000;
    rig.give(Input::Tick);
    let row = collection_row(&rig, Collection::CriticalUnblockLow);
    assert_eq!(
        row.version,
        Some(5),
        "{:?} {:?}",
        rig.said.notices,
        rig.engine.stats().sync
    );
    let scan = Scan {
        table: Table::Contact,
        after: None,
        limit: 100_000,
    };
    assert_eq!(
        ready(rig.store.scan(&rig.account, scan))
            .expect("rows")
            .len(),
        50_000
    );
    // Nothing of it stays in memory.
    assert!(
        rig.engine.cached_bytes() < 512 << 10,
        "{}",
        rig.engine.cached_bytes()
    );
}

#[test]
fn commands_are_judged_before_they_are_taken() {
    let (mut rig, _cloud) = online(14);
    let unknown = Action::Unknown {
        index: b"[]".to_vec().into(),
        data: Vec::new().into(),
        removed: false,
    };
    let invalid = |result| matches!(result, Some(Err(CommandError::Invalid(_))));
    assert!(invalid(change(&mut rig, vec![])));
    assert!(invalid(change(&mut rig, vec![unknown])));
    assert!(invalid(change(&mut rig, vec![mute(1, 5); 1025])));
    assert!(invalid(change(
        &mut rig,
        vec![Action::Mute {
            chat: chat(1),
            until: Some(MuteEnd::At(-7))
        }]
    )));
    assert!(invalid(change(
        &mut rig,
        vec![Action::PushName("x".repeat(2 << 20))]
    )));
    assert_eq!(
        change(&mut rig, vec![mute(1, 5), mute(1, 6)]),
        Some(Ok(Reply::Done))
    );
    assert_eq!(chats(&mut rig)[&chat(1)].muted, Some(MuteEnd::At(6)));
}

/// Found by tier A (seed 688): between the close of a connection and the news that it is gone, a collection that is wanted
/// was asked for, could not be, and was asked for again, for ever, inside one input.
#[test]
fn a_collection_that_is_wanted_between_close_and_closed_waits() {
    let (mut rig, cloud) = online(77);
    let end = Node::new("stream:error").attr("code", 503u64);
    let end = rig.seal(&end).unwrap();
    rig.engine.handle(Input::Received(&end), rig.now);
    let mut wire = Vec::new();
    let outputs = std::iter::repeat_with(|| rig.engine.poll(&mut wire)).take(100);
    assert!(outputs.into_iter().any(|output| output == Output::Close));
    let sync = Input::Command(CommandId(9_000), Command::Sync(None));
    rig.engine.handle(sync, rig.now);
    rig.hang_up();
    rig.pass(60_000_000);
    rig.go_online();
    remote(&mut rig, &cloud, &[mute(1, 7_000)]);
    converged(&mut rig, &cloud);
}
