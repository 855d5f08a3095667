//! The service behind a lock, and the way of its effects to the connections they are for.

use crate::service::{ConnId, Effect, Now, Service};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// What all tasks of a served service share, on sockets as in a simulation.
pub(crate) struct Hub {
    service: Arc<Mutex<Service>>,
    outlets: Mutex<BTreeMap<ConnId, mpsc::UnboundedSender<Outgoing>>>,
    last_conn: AtomicU64,
    clock: Box<dyn Fn() -> Now + Send + Sync>,
    observer: Box<dyn Fn(Seen<'_>) + Send + Sync>,
}

/// What a connection's task is told.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Frame(Bytes),
    Close,
}

/// What an observer is shown, in the order in which it happens.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "tier-b"),
    expect(dead_code, reason = "only worlds look")
)]
pub(crate) enum Seen<'a> {
    Opened(ConnId),
    Received(ConnId, &'a [u8]),
    Sent(ConnId, &'a [u8]),
    Closed(ConnId),
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(service: Service, clock: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self::observed(service, clock, |_| {})
    }

    pub(crate) fn observed(
        service: Service,
        clock: impl Fn() -> Now + Send + Sync + 'static,
        observer: impl Fn(Seen<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            service: Arc::new(Mutex::new(service)),
            outlets: Mutex::default(),
            last_conn: AtomicU64::new(0),
            clock: Box::new(clock),
            observer: Box::new(observer),
        }
    }

    pub(crate) fn service(&self) -> Arc<Mutex<Service>> {
        Arc::clone(&self.service)
    }

    /// One input to the service, and its effects to the tasks they are for.
    pub(crate) fn act<T>(&self, act: impl FnOnce(&mut Service, Now) -> T) -> T {
        let mut service = self.lock();
        let result = act(&mut service, (self.clock)());
        let mut outlets = self.outlets();
        while let Some(effect) = service.poll() {
            // A task that is gone has said so by `disconnect`, or is about to.
            match effect {
                Effect::Send(conn, frame) => {
                    (self.observer)(Seen::Sent(conn, &frame));
                    if let Some(outlet) = outlets.get(&conn) {
                        let _ = outlet.send(Outgoing::Frame(frame));
                    }
                }
                Effect::Close(conn) => {
                    (self.observer)(Seen::Closed(conn));
                    if let Some(outlet) = outlets.remove(&conn) {
                        let _ = outlet.send(Outgoing::Close);
                    }
                }
            }
        }
        result
    }

    pub(crate) fn open(&self) -> (ConnId, mpsc::UnboundedReceiver<Outgoing>) {
        let conn = ConnId(self.last_conn.fetch_add(1, Ordering::Relaxed) + 1);
        let (outlet, outgoing) = mpsc::unbounded_channel();
        self.outlets().insert(conn, outlet);
        (self.observer)(Seen::Opened(conn));
        self.act(|service, now| service.connect(conn, now));
        (conn, outgoing)
    }

    pub(crate) fn received(&self, conn: ConnId, bytes: &[u8]) {
        (self.observer)(Seen::Received(conn, bytes));
        self.act(|service, now| service.receive(conn, bytes, now));
    }

    pub(crate) fn closed(&self, conn: ConnId) {
        if self.outlets().remove(&conn).is_some() {
            (self.observer)(Seen::Closed(conn));
        }
        self.act(|service, now| service.disconnect(conn, now));
    }

    /// The process behind the sockets was replaced by another: all connections it had are gone.
    #[cfg(feature = "tier-b")]
    pub(crate) fn restarted(&self) {
        let conns: Vec<ConnId> = self.outlets().keys().copied().collect();
        for conn in conns {
            self.closed(conn);
        }
    }

    /// What clients are told to be the media host.
    pub(crate) fn media_host(&self) -> String {
        self.lock().media_host().unwrap_or_default().to_owned()
    }

    // A panic under the lock is a bug of the service; the books are still evidence, so the others go on.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Service> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outlets(&self) -> MutexGuard<'_, BTreeMap<ConnId, mpsc::UnboundedSender<Outgoing>>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
