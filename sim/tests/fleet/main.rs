//! Hosts that share the accounts of a store: killed, drained, frozen, shut down, and what that costs the database.
//! Real time and real sockets; how long something takes decides no test.

mod journal;
mod load;
mod rig;

use baton_core::{
    cluster::host::State,
    state::{Placement, Store as _},
};
use load::Counted;
use rig::{RUN, Rig, memory, until};
use std::{collections::BTreeSet, time::Duration};

const ACCOUNTS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_of_a_killed_host_are_taken_over_and_nothing_is_lost_or_doubled() {
    let rig = Rig::new(memory(), ACCOUNTS).await;
    let (a, b) = (rig.start("a"), rig.start("b"));
    rig.all_live(&[&a, &b]).await;
    let mut sent = rig.write_to_all("before");
    let on_a = a.live();
    let dead = a.who();
    sent.extend(rig.write_to_all("while it dies"));
    let killed = a.kill();
    sent.extend(rig.write_to_all("while nobody has it"));
    rig.all_live(&[&b]).await;
    println!(
        "{} accounts taken over in {:?}",
        on_a.len(),
        killed.elapsed()
    );
    sent.extend(rig.write_to_all("after"));
    rig.shown(&sent).await;
    // What it had stayed where it was.
    rig.book(|book| assert_eq!(book.lost, [], "b lost nothing"));
    for status in b.handle.accounts() {
        let taken = on_a.contains(&status.account);
        assert_eq!(status.takeover.from, taken.then_some(dead), "{status:?}");
        assert_eq!(status.takeover.gone.is_some(), taken);
        assert!(status.takeover.first_message.is_some());
    }
    rig.judge_connections();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_host_gives_everything_to_others_and_stays() {
    let rig = Rig::new(memory(), ACCOUNTS).await;
    let (a, b) = (rig.start("a"), rig.start("b"));
    rig.all_live(&[&a, &b]).await;
    let mut sent = rig.write_to_all("before");
    let (had, who) = (a.live().len(), b.who());
    // From another process, that is.
    assert_eq!(rig.store.drain(a.who(), true).await, Ok(true));
    rig.all_live(&[&b]).await;
    a.is(State::Draining).await;
    until(|| a.handle.accounts().is_empty(), || "a keeps some".into()).await;
    sent.extend(rig.write_to_all("after"));
    rig.shown(&sent).await;
    rig.book(|book| {
        assert_eq!(book.lost.len(), had, "each once");
        for (id, host, to) in &book.lost {
            assert_eq!((*host, *to), ("a", Some(who)), "{id}");
        }
    });
    assert_eq!(rig.store.drain(a.who(), false).await, Ok(true));
    a.is(State::Active).await;
    rig.judge_connections();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shuts_down_names_successors_and_leaves() {
    let rig = Rig::new(memory(), ACCOUNTS).await;
    let (a, b) = (rig.start("a"), rig.start("b"));
    rig.all_live(&[&a, &b]).await;
    let mut sent = rig.write_to_all("before");
    let (had, who) = (a.live().len(), b.who());
    a.handle.shutdown();
    sent.extend(rig.write_to_all("meanwhile"));
    assert!(a.ended().await.left, "the store knows");
    rig.all_live(&[&b]).await;
    sent.extend(rig.write_to_all("after"));
    rig.shown(&sent).await;
    rig.book(|book| {
        let to_b = book.lost.iter().filter(|(_, _, to)| *to == Some(who));
        assert_eq!((book.lost.len(), to_b.count()), (had, had));
    });
    // The last one has nobody to name: it frees what it has.
    b.handle.shutdown();
    assert!(b.ended().await.left);
    let free = rig.store.orphans(None, 100).await.unwrap();
    assert_eq!(free.len(), ACCOUNTS);
    assert!(free.iter().all(|orphan| orphan.last.is_none()), "properly");
    rig.judge_connections();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_host_wakes_up_as_somebody_else_who_has_nothing() {
    let rig = Rig::new(memory(), ACCOUNTS).await;
    let (a, b) = (rig.start("a"), rig.start("b"));
    rig.all_live(&[&a, &b]).await;
    let mut sent = rig.write_to_all("before");
    rig.shown(&sent).await;
    let (was, had) = (a.who(), a.live().len());
    a.freeze();
    sent.extend(rig.write_to_all("while it is frozen"));
    rig.all_live(&[&b]).await;
    sent.extend(rig.write_to_all("after the takeover"));
    a.thaw();
    until(|| a.who() != was, || "it does not notice".into()).await;
    a.is(State::Active).await;
    until(|| a.handle.accounts().is_empty(), || "it keeps some".into()).await;
    sent.extend(rig.write_to_all("after it woke"));
    rig.shown(&sent).await;
    rig.book(|book| {
        assert_eq!(book.lost.len(), had, "{:?}", book.lost);
        assert!(book.lost.iter().all(|(_, host, _)| *host == "a"));
    });
    assert_eq!(b.live().len(), ACCOUNTS);
    // Its connections stood while it slept: the service closed them when others came.
    rig.judge();
}

/// Nobody is declared dead, no account changes hands, no connection is made anew; what came meanwhile is shown after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_for_a_while_costs_no_connection() {
    let store = Counted::new(memory());
    let rig = Rig::new(store.clone(), ACCOUNTS).await;
    let (a, b) = (rig.start("a"), rig.start("b"));
    rig.all_live(&[&a, &b]).await;
    let mut sent = rig.write_to_all("before");
    rig.shown(&sent).await;
    let owners = || {
        let statuses = [&a, &b].map(|host| host.handle.accounts());
        let terms = statuses.into_iter().flatten();
        terms
            .map(|status| (status.account, status.epoch))
            .collect::<BTreeSet<_>>()
    };
    let (terms, logins) = (owners(), rig.logins());
    store.stall(true);
    a.is(State::Quiesced).await;
    b.is(State::Quiesced).await;
    sent.extend(rig.write_to_all("while it is away"));
    // Longer than every lease.
    tokio::time::sleep(Duration::from_secs(5)).await;
    rig.book(|book| {
        let shown: usize = book.texts.values().map(Vec::len).sum();
        assert_eq!(shown, ACCOUNTS, "nothing that is not durable");
    });
    store.stall(false);
    rig.all_live(&[&a, &b]).await;
    sent.extend(rig.write_to_all("after"));
    rig.shown(&sent).await;
    assert_eq!(owners(), terms, "the same owners under the same epochs");
    assert_eq!(rig.logins(), logins, "over the same connections");
    rig.book(|book| assert_eq!(book.lost, []));
    rig.judge_connections();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_goes_where_it_is_wished() {
    let rig = Rig::new(memory(), 4).await;
    let a = rig.start("a");
    rig.all_live(&[&a]).await;
    let b = rig.start("b");
    b.is(State::Active).await;
    let mut sent = rig.write_to_all("before");
    let to_b = Placement {
        pin: Some("b".into()),
        ..RUN
    };
    let moved = &rig.ids[2];
    rig.store.place(moved, to_b).await.unwrap();
    until(|| b.live().contains(moved), || "it does not come".into()).await;
    sent.extend(rig.write_to_all("after"));
    rig.shown(&sent).await;
    rig.book(|book| assert_eq!(book.lost, [(moved.clone(), "a", Some(b.who()))]));
    // And nowhere, if it is not to run.
    rig.store.place(moved, Placement::default()).await.unwrap();
    until(|| b.live().is_empty(), || "it runs on".into()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((a.live().len(), b.live().len()), (3, 0));
    rig.judge_connections();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_left_in_the_mailbox_are_sent_by_whoever_has_the_account() {
    let rig = Rig::new(memory(), 6).await;
    let (a, b) = (rig.start("a"), rig.start("b"));
    rig.all_live(&[&a, &b]).await;
    let pairs = || rig.ids.iter().zip(rig.ids.iter().cycle().skip(1));
    let mut expected = Vec::new();
    for (from, to) in pairs() {
        let (id, text) = (format!("M{}", from.device), format!("from {}", from.device));
        rig.enqueue(from, to, &id, &text).await;
        expected.push((to.clone(), text));
    }
    rig.shown(&expected).await;
    // While nobody has it, and somebody has it later.
    let had = a.live();
    a.kill();
    for (from, to) in pairs().filter(|(from, _)| had.contains(from)) {
        let (id, text) = (
            format!("N{}", from.device),
            format!("late from {}", from.device),
        );
        rig.enqueue(from, to, &id, &text).await;
        expected.push((to.clone(), text));
    }
    rig.shown(&expected).await;
    rig.judge_connections();
}
