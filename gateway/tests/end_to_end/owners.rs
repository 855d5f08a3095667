//! One account, several processes: who owns it, and what becomes of the others. Processes are hosts here, on one
//! store in memory, so that freezing one is a matter of not polling it.

use crate::support::{Owner, config, options, request, service};
use baton_core::{
    flow::{Command, Event, Notice, Reply, StopReason},
    state::{AccountId, Micros, Store as _, memory::MemoryStore},
};
use baton_tokio::{End, Host, Item, Options, Ownership, SystemEnv, TcpConnector, account_named};
use std::time::{Duration, Instant};

fn memory() -> MemoryStore {
    let origin = Instant::now();
    MemoryStore::new(move || Micros(u64::try_from(origin.elapsed().as_micros()).unwrap()))
}

async fn account(store: &MemoryStore, name: &str) -> AccountId {
    account_named(store, name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_handed_over_without_a_pause() {
    let server = service().await;
    let store = memory();
    let id = account(&store, "a").await;
    let mut first = Owner::start(&store, &id, config(&server));
    first.link(&server, "15550000001").await;
    let mut second = Owner::start(&store, &id, config(&server));
    second
        .until(|item| matches!(item, Item::Ownership(Ownership::Waiting { .. })).then_some(()))
        .await;
    let begin = Instant::now();
    assert_eq!(first.end().await, End::Shutdown);
    second.online().await;
    println!("handed over in {:?}", begin.elapsed());
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "no lease was waited for: {:?}",
        begin.elapsed()
    );
    // Events that the first never acknowledged are the second's now.
    assert!(matches!(second.seen.first(), Some((seq, Event::Linked { .. })) if seq.0 == 1));
    assert_eq!(second.end().await, End::Shutdown);
    let service = server.service();
    assert!(
        service
            .lock()
            .unwrap()
            .books()
            .devices()
            .all(|(_, device)| device.live_twice.is_empty())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_owner_is_replaced_when_its_lease_has_run_out() {
    let server = service().await;
    let store = memory();
    let id = account(&store, "a").await;
    // An owner that soon renews no lease, which is how a process looks whose database does not answer.
    let host = Host::new(
        store.clone(),
        TcpConnector::new(),
        SystemEnv::new(),
        options(),
    );
    let (handle, inbox, serve) = host.account(id.clone(), config(&server));
    let task = tokio::spawn(serve);
    let running = tokio::spawn(async move { match host.run().await {} });
    let mut frozen = Owner {
        account: handle,
        inbox,
        task,
        seen: Vec::new(),
    };
    frozen.owns().await;
    running.abort();
    let mut second = Owner::start(&store, &id, config(&server));
    let first_epoch = 1;
    let epoch = second.owns().await;
    assert!(epoch > first_epoch);
    // The first noticed by its own clock, stopped, and waits in line.
    let why = frozen
        .until(|item| match item {
            Item::Ownership(Ownership::Stopped(why)) => Some(why.clone()),
            _ => None,
        })
        .await;
    assert_eq!(why, StopReason::LeaseExpired);
    frozen
        .until(|item| matches!(item, Item::Ownership(Ownership::Waiting { .. })).then_some(()))
        .await;
    frozen.kill();
    second.link(&server, "15550000001").await;
    assert_eq!(second.end().await, End::Shutdown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_owner_loses_nothing() {
    let server = service().await;
    let store = memory();
    let (a, b) = (account(&store, "a").await, account(&store, "b").await);
    let mut alice = Owner::start(&store, &a, config(&server));
    let mut bob = Owner::start(&store, &b, config(&server));
    alice.link(&server, "15550000001").await;
    bob.link(&server, "15550000002").await;
    for round in 0..5 {
        for n in 0..8 {
            alice
                .send(
                    &format!("{round}-{n}"),
                    "15550000002",
                    &format!("{round} {n}"),
                )
                .await;
        }
        // Accepted is promised, whatever of it has left already.
        alice.kill();
        alice = Owner::start(&store, &a, config(&server));
        for n in 0..8 {
            assert_eq!(bob.message().await.text, Some(format!("{round} {n}")));
        }
        alice.online().await;
    }
    assert_eq!(alice.end().await, End::Shutdown);
    assert_eq!(bob.end().await, End::Shutdown);
    let service = server.service();
    assert_eq!(service.lock().unwrap().books().violations(), []);
}

/// Killed at any moment of linking, an account is linked or it is not; what follows is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_link_is_whole_or_not_there() {
    let server = service().await;
    let store = memory();
    for (n, millis) in [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50]
        .into_iter()
        .enumerate()
    {
        let id = account(&store, &format!("a{n}")).await;
        let number = format!("1555000{n:04}");
        let mut owner = Owner::start(&store, &id, config(&server));
        let linking = owner.account.post(Command::Link).await;
        let qr = owner
            .until(|item| match item {
                Item::Notice(Notice::Qr { text, .. }) => Some(text.clone()),
                _ => None,
            })
            .await;
        server
            .with(|service, now| service.scan(&qr, Some(&number), now))
            .unwrap();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        owner.kill();
        let promised = matches!(linking.await, Ok(Reply::Linked { .. }));

        let mut owner = Owner::start(&store, &id, config(&server));
        if promised {
            owner.online().await;
        } else {
            owner.link(&server, &number).await;
        }
        server
            .with(|service, now| service.phone_send(&number, &number, "to myself", now))
            .unwrap();
        let note = owner.message().await;
        assert_eq!(
            (note.text.as_deref(), note.from_me),
            (Some("to myself"), true)
        );
        assert_eq!(owner.end().await, End::Shutdown);
    }
    let service = server.service();
    assert_eq!(service.lock().unwrap().books().violations(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_an_account_do_not_fight() {
    let server = service().await;
    let store = memory();
    let id = account(&store, "a").await;
    let mut owner = Owner::start(&store, &id, config(&server));
    owner.link(&server, "15550000001").await;
    assert_eq!(owner.end().await, End::Shutdown);
    // A database that was copied: two stores, each of which gives the lease to its own process.
    let origin = Instant::now();
    let copy = store
        .copy(move || Micros(u64::try_from(origin.elapsed().as_micros()).unwrap() + 1_000_000_000));
    let patient = Options {
        replaced_most: 2,
        ..options()
    };
    let mut one = Owner::with(&store, &id, config(&server), patient.clone());
    one.online().await;
    let two = Owner::with(&copy, &id, config(&server), patient);
    // Each connection of one ends that of the other; after a few times one of them has had enough.
    let ends = tokio::time::timeout(Duration::from_secs(20), async {
        let (mut one, mut two) = (one.task, two.task);
        tokio::select! { end = &mut one => { two.abort(); end } end = &mut two => { one.abort(); end } }
    });
    assert_eq!(ends.await.expect("in time").unwrap(), End::Contested);
    let service = server.service();
    let service = service.lock().unwrap();
    let logins: usize = service
        .books()
        .devices()
        .map(|(_, device)| device.connections.len())
        .sum();
    assert!(logins < 12, "{logins} logins are a fight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_gone_ends() {
    let server = service().await;
    let store = memory();
    let nobody = AccountId {
        business: Default::default(),
        device: 99,
    };
    let owner = Owner::start(&store, &nobody, config(&server));
    assert_eq!(
        owner.task.await.unwrap(),
        End::Store(baton_core::state::StoreError::NoAccount)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlinking_at_the_phone_ends_and_a_command_links_again() {
    let server = service().await;
    let store = memory();
    let id = account(&store, "a").await;
    let mut owner = Owner::start(&store, &id, config(&server));
    owner.link(&server, "15550000001").await;
    assert!(server.with(|service, now| service.unlink("15550000001", 1, now)));
    let end = tokio::time::timeout(Duration::from_secs(20), &mut owner.task)
        .await
        .expect("in time")
        .unwrap();
    assert!(
        matches!(end, End::Stopped(StopReason::LoggedOut(_))),
        "{end:?}"
    );
    assert!(
        owner
            .account
            .send(request("X", "15550000001", "too late"))
            .await
            .is_err()
    );
    // The lease was given back and the keys are kept. Nobody serves an account that is logged out ...
    let owner = Owner::start(&store, &id, config(&server));
    let end = owner.task.await.unwrap();
    assert!(
        matches!(end, End::Stopped(StopReason::LoggedOut(_))),
        "{end:?}"
    );
    // ... unless somebody wants to link it again.
    let host = Host::new(
        store.clone(),
        TcpConnector::new(),
        SystemEnv::new(),
        Options::default(),
    );
    let (account, inbox, serve) = host.account(id.clone(), config(&server));
    drop(account.post(Command::Link).await);
    let mut owner = Owner {
        account,
        inbox,
        task: tokio::spawn(async move {
            tokio::select! { biased;
                end = serve => end,
                never = host.run() => match never {},
            }
        }),
        seen: Vec::new(),
    };
    let (jid, _) = owner.link(&server, "15550000001").await;
    assert_eq!(jid.to_string(), "15550000001:2@s.whatsapp.net");
    assert_eq!(owner.end().await, End::Shutdown);
    assert!(
        store.accounts(&id.business).await.unwrap()[0]
            .holder
            .is_none()
    );
}
