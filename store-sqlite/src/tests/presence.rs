//! Hosts that are seen to have died.

use super::*;
use crate::presence::hex;
use baton_core::state::{Change, Placement};
use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

fn lock_files(harness: &OnDisk) -> Vec<String> {
    let locks = std::fs::read_dir(format!("{}.hosts", harness.path().display())).unwrap();
    locks
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_dead_host_is_replaced_at_once() {
    let harness = OnDisk::new();
    let first = harness.open();
    let second = harness.open();
    let id = create(&first, "main");
    owned(&first, ALICE, &id);
    join(&second, BOB, HOUR);
    assert_eq!(claim(&second, BOB, &id), Claim::Held { by: ALICE });
    // The lease has an hour to go, but its holder has let go of its lock.
    drop(first);
    assert_eq!(granted(&second, BOB, &id).term.epoch.0, 2);
    assert_eq!(
        lock_files(&harness),
        [hex(BOB)],
        "the dead leave nothing behind"
    );
}

/// Every call that goes by who lives sees at once who does not.
#[test]
fn a_dead_host_is_dead_for_every_call() {
    let kill = |look: &dyn Fn(&SqliteStore, &AccountId)| {
        let harness = OnDisk::new();
        let first = harness.open();
        let second = harness.open();
        let id = create(&first, "main");
        let run = Placement {
            run: true,
            ..Placement::default()
        };
        block_on(first.place(&id, run)).unwrap();
        owned(&first, ALICE, &id);
        join(&second, BOB, HOUR);
        assert_eq!(block_on(second.orphans(None, 10)), Ok(vec![]));
        drop(first);
        look(&second, &id);
    };
    kill(&|store, id| {
        let orphans = block_on(store.orphans(None, 10)).unwrap();
        assert_eq!((&orphans[0].account, orphans[0].last), (id, Some(ALICE)));
    });
    kill(&|store, _| assert_eq!(beat(store, BOB, HOUR).newly_dead, [ALICE]));
    kill(&|store, id| {
        granted(store, BOB, id);
    });
    kill(&|store, id| assert_eq!(block_on(store.delete_account(id)), Ok(())));
    kill(&|store, _| {
        let listed = block_on(store.accounts(&business())).unwrap();
        assert_eq!(listed[0].holder, None);
    });
    kill(&|store, id| {
        let lease = granted(store, BOB, id);
        let answer = block_on(store.hand_over(BOB, id, lease.term.epoch, ALICE));
        assert_eq!(answer, Ok(baton_core::state::HandOver::Refused));
    });
}

#[test]
fn who_leaves_takes_its_lock_along() {
    let harness = OnDisk::new();
    let store = harness.open();
    join(&store, ALICE, HOUR);
    join(&store, BOB, HOUR);
    block_on(store.leave(ALICE)).unwrap();
    assert_eq!(lock_files(&harness), [hex(BOB)]);
}

#[test]
fn without_presence_the_lease_alone_decides() {
    let harness = OnDisk::new();
    let options = || Options {
        presence: false,
        ..harness.options()
    };
    let first = SqliteStore::open(harness.path(), options()).unwrap();
    let id = create(&first, "main");
    owned(&first, ALICE, &id);
    drop(first);
    // Also for a handle that would look: there never was a lock.
    for options in [options(), harness.options()] {
        let second = SqliteStore::open(harness.path(), options).unwrap();
        let who = Incarnation(harness.clock.fetch_add(1, Ordering::SeqCst) as u64);
        join(&second, who, Micros::from_secs(7200));
        beat(&second, who, Micros::from_secs(7200));
        assert_eq!(claim(&second, who, &id), Claim::Held { by: ALICE });
    }
    let second = SqliteStore::open(harness.path(), options()).unwrap();
    join(&second, BOB, Micros::from_secs(7200));
    harness.advance(HOUR);
    assert_eq!(beat(&second, BOB, HOUR).newly_dead, [ALICE]);
    granted(&second, BOB, &id);
}

/// Waits for news with a limit that only a broken watch reaches.
fn news(store: &SqliteStore, who: Incarnation) -> Change {
    let mut watch = pin!(store.watch(who));
    let begin = Instant::now();
    loop {
        match watch.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(change) => return change.unwrap(),
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "no news");
    }
}

/// Lets the thread take its first look, which is what later ones are compared with.
fn begin_to_watch(store: &SqliteStore, who: Incarnation) {
    let id = create(store, &format!("watched-by-{}", hex(who)));
    let mut watch = pin!(store.watch(who));
    let mut poll = || watch.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    // What happens before the first look is no news: until one is.
    while poll().is_pending() {
        block_on(store.place(&id, Placement::default())).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    while quiet(store, who).is_some() {}
}

/// What is there to tell without waiting for more than a few looks.
fn quiet(store: &SqliteStore, who: Incarnation) -> Option<Change> {
    let mut watch = pin!(store.watch(who));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(100) {
        if let Poll::Ready(change) = watch.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(change.unwrap());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

#[test]
fn who_watches_learns_of_deaths_and_changes() {
    let harness = OnDisk::new();
    let (first, second) = (harness.open(), harness.open());
    join(&second, BOB, HOUR);
    begin_to_watch(&second, BOB);
    let id = create(&first, "main");
    let term = owned(&first, ALICE, &id);
    assert_eq!(quiet(&second, BOB), None, "a claim is nobody's news");

    block_on(first.hand_over(ALICE, &id, term.epoch, BOB)).unwrap();
    assert_eq!(news(&second, BOB), Change::Ownership);
    block_on(second.release(
        BOB,
        vec![(id.clone(), baton_core::state::Epoch(term.epoch.0 + 1))],
    ))
    .unwrap();
    assert_eq!(news(&second, BOB), Change::Ownership);
    assert_eq!(quiet(&second, BOB), None);

    // A watch that is dropped misses nothing: the next one tells.
    drop(first);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(news(&second, BOB), Change::Gone(ALICE));
    let hosts = block_on(second.hosts()).unwrap();
    let state = |who| hosts.iter().find(|host| host.who == who).unwrap().state;
    assert_eq!(
        (state(ALICE), state(BOB)),
        (HostState::Dead, HostState::Active)
    );
    assert_eq!(quiet(&second, BOB), None);

    // Leaving is a change, not a death.
    let third = harness.open();
    let carol = Incarnation(0xca);
    join(&third, carol, HOUR);
    assert_eq!(quiet(&second, BOB), None);
    block_on(third.leave(carol)).unwrap();
    assert_eq!(news(&second, BOB), Change::Ownership);
    assert_eq!(quiet(&second, BOB), None);
}

/// Each of several hosts in one process is told.
#[test]
fn everybody_who_watches_is_told() {
    let harness = OnDisk::new();
    let (first, second) = (harness.open(), harness.open());
    let carol = Incarnation(0xca);
    join(&first, ALICE, HOUR);
    for who in [BOB, carol] {
        join(&second, who, HOUR);
        begin_to_watch(&second, who);
    }
    while quiet(&second, BOB).is_some() {}
    drop(first);
    assert_eq!(news(&second, BOB), Change::Gone(ALICE));
    assert_eq!(news(&second, carol), Change::Gone(ALICE));
}

/// The last handle stops the thread that watches, also while somebody waits for news.
#[test]
fn a_store_that_is_watched_can_be_dropped() {
    let harness = OnDisk::new();
    let store = harness.open();
    join(&store, BOB, HOUR);
    begin_to_watch(&store, BOB);
    drop(store);
    let store = harness.open();
    join(&store, ALICE, HOUR);
    assert_eq!(beat(&store, ALICE, HOUR).newly_dead, [BOB]);
}
