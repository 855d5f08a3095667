//! A store that fails, and a service that goes away, under accounts that write to each other.

use crate::support::{Owner, config, service};
use baton_core::{
    flow::{Config, StopReason},
    state::{Micros, Store, StoreError, memory::MemoryStore},
};
use baton_tokio::{End, Item, Ownership, account_named};
use sim::serve::SimServer;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// A store with a bad line: calls fail before they are made, or after they took effect.
#[derive(Clone)]
struct BadLine {
    inner: MemoryStore,
    /// Of 1000 calls, so many fail.
    failing: Arc<AtomicU32>,
    calls: Arc<AtomicU32>,
}

impl BadLine {
    fn new() -> Self {
        let origin = Instant::now();
        let inner =
            MemoryStore::new(move || Micros(u64::try_from(origin.elapsed().as_micros()).unwrap()));
        Self {
            inner,
            failing: Arc::default(),
            calls: Arc::default(),
        }
    }

    fn fail(&self, per_mille: u32) {
        self.failing.store(per_mille, Ordering::SeqCst);
    }

    /// Whether this call fails, and whether it takes effect all the same.
    fn luck(&self) -> (bool, bool) {
        let n = self
            .calls
            .fetch_add(1, Ordering::SeqCst)
            .wrapping_mul(2_654_435_761)
            >> 8;
        (n % 1000 < self.failing.load(Ordering::SeqCst), n & 1 == 0)
    }

    async fn call<T: Send>(
        &self,
        _name: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let (fails, takes_effect) = self.luck();
        if !fails {
            return call.await;
        }
        if takes_effect {
            let _lost = call.await;
        }
        Err(StoreError::Unavailable("a bad line".into()))
    }
}

impl Store for BadLine {
    baton_core::delegate_store!(inner through call: load scan commit confirm claim join beat release enqueue);
    baton_core::delegate_store!(inner: create_account delete_account accounts tenants retain hosts drain declare_dead leave hand_over held orphans misplaced mail place retire history renew_history watch vault swap_vault swap_records);
}

async fn two(
    server: &SimServer,
    store: &BadLine,
    configure: impl Fn(&mut Config),
) -> (Owner, Owner) {
    let mut config = config(server);
    configure(&mut config);
    let a = account_named(store, "a").await.unwrap();
    let b = account_named(store, "b").await.unwrap();
    let mut alice = Owner::start(store, &a, config.clone());
    let mut bob = Owner::start(store, &b, config);
    alice.link(server, "15550000001").await;
    bob.link(server, "15550000002").await;
    (alice, bob)
}

/// Logins of all devices so far.
fn logins(server: &SimServer) -> usize {
    let service = server.service();
    let service = service.lock().unwrap();
    service
        .books()
        .devices()
        .map(|(_, device)| device.connections.len())
        .sum()
}

fn assert_clean(server: &SimServer) {
    let service = server.service();
    let service = service.lock().unwrap();
    assert_eq!(service.books().violations(), []);
    assert!(
        service
            .books()
            .devices()
            .all(|(_, device)| device.live_twice.is_empty())
    );
}

/// Every second call fails, half of those after having taken effect: slower, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_half_the_time_only_costs_time() {
    let server = service().await;
    let store = BadLine::new();
    let (alice, mut bob) = two(&server, &store, |_| {}).await;
    store.fail(500);
    for n in 0..40 {
        alice
            .send(&format!("M{n}"), "15550000002", &format!("{n}"))
            .await;
        if n % 2 == 0 {
            bob.send(&format!("R{n}"), "15550000001", "meanwhile").await;
        }
    }
    for n in 0..40 {
        assert_eq!(bob.message().await.text, Some(n.to_string()));
    }
    store.fail(0);
    assert_eq!(alice.end().await, End::Shutdown);
    assert_eq!(bob.end().await, End::Shutdown);
    assert_clean(&server);
}

/// Shorter than a lease: nobody notices but those who wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_of_the_store_does_not_cost_the_connection() {
    outage(Duration::from_millis(400)).await;
}

/// Several times a lease: the connections stay, in silence, and everything goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_a_lease_does_not_cost_the_connection() {
    outage(Duration::from_millis(3500)).await;
}

async fn outage(lasts: Duration) {
    let server = service().await;
    let store = BadLine::new();
    let (alice, mut bob) = two(&server, &store, |_| {}).await;
    let before = logins(&server);
    store.fail(1000);
    let sending = tokio::spawn({
        let account = alice.account.clone();
        async move {
            account
                .send(crate::support::request("LATE", "15550000002", "hello"))
                .await
        }
    });
    server
        .with(|service, now| {
            service.phone_send("15550000001", "15550000002", "while you were out", now)
        })
        .unwrap();
    tokio::time::sleep(lasts).await;
    assert!(
        !sending.is_finished(),
        "what is not durable is not promised"
    );
    store.fail(0);
    assert_eq!(sending.await.unwrap().unwrap(), "LATE");
    let mut texts = vec![bob.message().await.text, bob.message().await.text];
    texts.sort();
    assert_eq!(
        texts,
        [Some("hello".to_owned()), Some("while you were out".into())]
    );
    assert_eq!(logins(&server), before);
    assert_eq!(alice.end().await, End::Shutdown);
    assert_eq!(bob.end().await, End::Shutdown);
    assert_clean(&server);
}

/// Longer than connections are kept: owners stop by their own clock and come back by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_outage_of_the_store_stops_owners_until_it_is_over() {
    let server = service().await;
    let store = BadLine::new();
    let brief = |config: &mut Config| config.timing.hold = Micros::from_millis(500);
    let (mut alice, mut bob) = two(&server, &store, brief).await;
    store.fail(1000);
    for owner in [&mut alice, &mut bob] {
        let why = owner
            .until(|item| match item {
                Item::Ownership(Ownership::Stopped(why)) => Some(why.clone()),
                _ => None,
            })
            .await;
        assert_eq!(why, StopReason::LeaseExpired);
    }
    // The service queues what the phones write meanwhile.
    server
        .with(|service, now| {
            service.phone_send("15550000001", "15550000002", "while you were out", now)
        })
        .unwrap();
    store.fail(0);
    assert_eq!(
        bob.message().await.text.as_deref(),
        Some("while you were out")
    );
    alice.send("BACK", "15550000002", "back again").await;
    assert_eq!(bob.message().await.text.as_deref(), Some("back again"));
    assert_clean(&server);
}

/// The connection is cut again and again in the middle of traffic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_lose_nothing() {
    use sim::service::{DeviceId, faults::Fault};
    let server = service().await;
    let store = BadLine::new();
    let (alice, mut bob) = two(&server, &store, |_| {}).await;
    for n in 0..60 {
        alice
            .send(&format!("M{n}"), "15550000002", &n.to_string())
            .await;
        if n % 6 == 5 {
            let device = DeviceId::new(
                if n % 12 == 5 {
                    "15550000001"
                } else {
                    "15550000002"
                },
                1,
            );
            server.with(|service, now| service.fault(Fault::Close { device }, now));
        }
    }
    for n in 0..60 {
        assert_eq!(bob.message().await.text, Some(n.to_string()));
    }
    assert_eq!(alice.end().await, End::Shutdown);
    assert_eq!(bob.end().await, End::Shutdown);
    assert_clean(&server);
}
