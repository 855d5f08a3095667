//! Presence: learning within moments that a host has ended, instead of waiting for its lease.
//!
//! A host that has joined keeps a session of its own to the server, outside the pool, and in it the advisory lock of its
//! slot. When its process ends, however it ends, the server ends the session and lets go of the lock. When it is frozen
//! or cut off, it stops pinging, and the server ends the session too (`idle_session_timeout`): the server measures, so
//! nobody has to believe a client's clock. The same session listens for news.
//!
//! In a second session every host waits for the lock of the next host in the ring. Only a lock that this very session
//! has found held before, and that is free now, says anything: one that is free at once may never have been taken,
//! or the server may have been restarted, which ends all sessions. And a host that merely lost its session says so in
//! its roster row before the grace is over, because it can still reach the database; then nobody declares it dead.
//!
//! All of it is an accelerator. Whatever fails here is tried again, and in the meantime there is the lease.

use crate::{
    Options,
    direct::{Direct, broken, execute, truth},
    error::state,
    hosts::{self, Ground, LOCKS, Peer},
    open::OpenError,
    pool::Pool,
    schema::holder,
};
use baton_core::state::{Change, Incarnation};
use sqlx::PgConnection;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// How long a host that has lost its session has to come back or to say that it lives.
const GRACE: Duration = Duration::from_millis(150);
/// Between two attempts to get a session, or a lock that should be held.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether the end of a host is noticed before its lease runs out, for hosts that join through this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Switched off, or the only way to the server is a pooler.
    Off,
    /// No host has joined yet, or what it takes has not been tried out yet.
    Untried,
    /// The way to the server does not keep sessions apart or alive (a pooler, or a database that only pretends to have
    /// advisory locks). Give [`Options::direct_url`].
    Unfit,
    /// On.
    On,
}

/// The hosts that have joined through a store.
pub(crate) struct Seats {
    direct: Option<Arc<Direct>>,
    pool: Arc<Pool>,
    seats: Mutex<BTreeMap<Incarnation, Seat>>,
    arrivals: Notify,
}

/// A host's place: what is known there, and who keeps it up. Ends with it.
struct Seat {
    chair: Arc<Chair>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Seat {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What the tasks of a host and its watchers share.
struct Chair {
    who: Incarnation,
    slot: u16,
    peers: watch::Sender<Vec<Peer>>,
    news: Mutex<News>,
    arrived: Notify,
    /// Its session is up, and the roster was told.
    shown: AtomicBool,
}

#[derive(Default)]
struct News {
    ownership: bool,
    gone: VecDeque<Incarnation>,
}

impl Seats {
    pub(crate) fn new(url: &str, options: &Options, pool: &Arc<Pool>) -> Result<Self, OpenError> {
        let url = match &options.direct_url {
            Some(direct) => Some(direct.as_str()),
            None => (!options.pooler).then_some(url),
        };
        let direct = match url.filter(|_| options.presence) {
            Some(url) => Some(Arc::new(Direct::new(url, options)?)),
            None => None,
        };
        Ok(Self {
            direct,
            pool: Arc::clone(pool),
            seats: Mutex::default(),
            arrivals: Notify::new(),
        })
    }

    pub(crate) fn presence(&self) -> Presence {
        match &self.direct {
            None => Presence::Off,
            Some(direct) => match direct.fit.get() {
                None => Presence::Untried,
                Some(false) => Presence::Unfit,
                Some(true) => Presence::On,
            },
        }
    }

    /// `who` has joined. Has to be called in a runtime.
    pub(crate) fn sit(&self, who: Incarnation, slot: u16) {
        let Some(direct) = &self.direct else { return };
        let mut seats = self.seats();
        if seats.contains_key(&who) {
            return;
        }
        let chair = Arc::new(Chair {
            who,
            slot,
            peers: watch::Sender::new(Vec::new()),
            news: Mutex::default(),
            arrived: Notify::new(),
            shown: AtomicBool::new(false),
        });
        let task = || {
            (
                Arc::clone(direct),
                Arc::clone(&self.pool),
                Arc::clone(&chair),
            )
        };
        let (hold, look) = (task(), task());
        let tasks = [
            tokio::spawn(async move { show(&hold.0, &hold.1, &hold.2).await }),
            tokio::spawn(async move { look_after(&look.0, &look.1, &look.2).await }),
        ];
        seats.insert(who, Seat { chair, tasks });
        drop(seats);
        self.arrivals.notify_waiters();
    }

    /// What the last beat of `who` showed.
    pub(crate) fn look(&self, who: Incarnation, peers: Vec<Peer>) {
        if let Some(seat) = self.seats().get(&who) {
            seat.chair.peers.send_replace(peers);
        }
    }

    /// `who` has left or was declared dead.
    pub(crate) fn leave(&self, who: Incarnation) {
        self.seats().remove(&who);
    }

    /// See [`Store::watch`](baton_core::state::Store::watch). News wait until they are fetched, so nothing is lost with a
    /// future that is dropped.
    pub(crate) async fn watch(&self, who: Incarnation) -> Change {
        loop {
            let arrival = self.arrivals.notified();
            let chair = self.seats().get(&who).map(|seat| Arc::clone(&seat.chair));
            match chair {
                Some(chair) => return chair.next().await,
                None => arrival.await,
            }
        }
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<Incarnation, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chair {
    async fn next(&self) -> Change {
        loop {
            let arrived = self.arrived.notified();
            if let Some(change) = self.news().take() {
                return change;
            }
            arrived.await;
        }
    }

    fn ownership(&self) {
        self.news().ownership = true;
        self.arrived.notify_one();
    }

    fn gone(&self, who: Incarnation) {
        let mut news = self.news();
        if !news.gone.contains(&who) {
            news.gone.push_back(who);
        }
        drop(news);
        self.arrived.notify_one();
    }

    /// A notification. What is not understood is of a later version, or of somebody else.
    fn hear(&self, text: &str) {
        let mut words = text.split(' ');
        let kind = words.next();
        let mut host = || words.next()?.parse::<i64>().ok();
        let me = holder(self.who);
        match (kind, host(), host()) {
            (Some("own"), None, _) => self.ownership(),
            (Some("own"), Some(to), _) if to == me => self.ownership(),
            // Who declares knows already.
            (Some("gone"), Some(dead), Some(by)) if by != me => {
                self.gone(Incarnation(dead.cast_unsigned()));
            }
            _ => {}
        }
    }

    /// The next host in the ring that shows itself.
    fn neighbour(&self) -> Option<Peer> {
        let peers = self.peers.borrow();
        let others = || {
            let mut peers: Vec<&Peer> = peers
                .iter()
                .filter(|peer| peer.present && peer.who != self.who)
                .collect();
            peers.sort_by_key(|peer| peer.slot);
            peers
        };
        let others = others();
        let next = others.iter().find(|peer| peer.slot > self.slot);
        next.or(others.first()).map(|peer| **peer)
    }

    /// The last beat says that it does not show itself, and it does.
    fn is_overlooked(&self) -> bool {
        let peers = self.peers.borrow();
        self.shown.load(Ordering::SeqCst)
            && peers
                .iter()
                .any(|peer| peer.who == self.who && !peer.present)
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    fn take(&mut self) -> Option<Change> {
        if let Some(who) = self.gone.pop_front() {
            return Some(Change::Gone(who));
        }
        std::mem::take(&mut self.ownership).then_some(Change::Ownership)
    }
}

/// Holds the host's lock and listens, for as long as the host lives.
async fn show(direct: &Direct, pool: &Arc<Pool>, chair: &Chair) {
    if !direct.is_fit().await {
        return;
    }
    loop {
        let why = match hold(direct, pool, chair).await {
            Ok(()) => return,
            Err(why) => why,
        };
        tracing::warn!(host = chair.slot, %why, "the session that shows this host has ended; opening another");
        if chair.shown.swap(false, Ordering::SeqCst) {
            // Quickly: whoever waits for our lock has got it, and believes us dead unless we say so within the grace.
            let hide = hosts::show(pool, chair.who, false);
            if let Ok(Ok(false)) = timeout(PAUSE, hide).await {
                return;
            }
        } else {
            sleep(PAUSE).await;
        }
    }
}

/// Until the session ends (why), or the host is found not to live.
async fn hold(direct: &Direct, pool: &Arc<Pool>, chair: &Chair) -> Result<(), sqlx::Error> {
    let mut listener = direct.listen().await?;
    let lock = format!("SELECT pg_advisory_lock({LOCKS}, {})", chair.slot);
    // Whoever had the slot before may still have a session; it ends when the server has noticed.
    while let Err(error) = execute(&mut listener, &lock).await {
        if state(&error) != "55P03" {
            return Err(error);
        }
    }
    let shown = |present| async move {
        let shown = timeout(direct.idle, hosts::show(pool, chair.who, present)).await;
        match shown {
            Ok(Ok(lives)) => Ok(lives),
            _ => Err(broken("the roster cannot be reached")),
        }
    };
    // Not before it is true: see `look`.
    if !shown(true).await? {
        return Ok(());
    }
    chair.shown.store(true, Ordering::SeqCst);
    // What there was to hear while nobody listened.
    chair.ownership();
    let mut next_ping = Instant::now() + direct.idle / 6;
    loop {
        match timeout_at(next_ping, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => chair.hear(notification.payload()),
            Ok(Ok(None)) => return Err(broken("the server has closed it")),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let ping = timeout(direct.idle / 2, execute(&mut listener, "SELECT 1")).await;
                ping.map_err(|_| broken("no answer to a ping"))??;
                next_ping = Instant::now() + direct.idle / 6;
                if chair.is_overlooked() && !shown(true).await? {
                    return Ok(());
                }
            }
        }
    }
}

/// Waits for the neighbour to end, whoever that is at the time.
async fn look_after(direct: &Direct, pool: &Arc<Pool>, chair: &Chair) {
    if !direct.is_fit().await {
        return;
    }
    let mut peers = chair.peers.subscribe();
    let mut watching: Option<Watching> = None;
    // Proved, and not declared yet.
    let mut ended: Option<Peer> = None;
    loop {
        if let Some(peer) = ended {
            if bury(direct, pool, chair, peer).await {
                ended = None;
            } else {
                sleep(PAUSE).await;
            }
            continue;
        }
        peers.mark_unchanged();
        let Some(peer) = chair.neighbour() else {
            watching = None;
            let _ = peers.changed().await;
            continue;
        };
        let session = match &mut watching {
            Some(session) => session,
            none => match direct.connect().await {
                Ok(connection) => none.insert(Watching {
                    connection,
                    held: None,
                }),
                Err(_) => {
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        match session.look(peer).await {
            Ok(Look::Held) => {}
            Ok(Look::Free) => {
                let _ = timeout(PAUSE, peers.changed()).await;
            }
            Ok(Look::Ended) => {
                ended = Some(peer);
                // Declaring can take longer than a session may be silent.
                watching = None;
            }
            Err(error) => {
                tracing::debug!(%error, "a session that watches a neighbour has ended");
                watching = None;
                sleep(PAUSE).await;
            }
        }
    }
}

/// Declares dead whose session has ended. `false` if that could not be said: a host that froze in the middle of a beat
/// has its row locked until the server gives it up. It is said again for as long as the host has not come back.
async fn bury(direct: &Direct, pool: &Arc<Pool>, chair: &Chair, peer: Peer) -> bool {
    let declared = hosts::declare_dead(pool, chair.who, peer.who, Ground::Presence);
    if let Ok(Ok(declared)) = timeout(direct.connect, declared).await {
        if declared {
            tracing::warn!(host = peer.slot, "a host has ended: its session is gone");
            chair.gone(peer.who);
        }
        return true;
    }
    let look = async {
        let connection = direct.connect().await?;
        let held = None;
        Watching { connection, held }.is_free(peer).await
    };
    matches!(look.await, Ok(false))
}

/// A session that waits for a neighbour's lock.
struct Watching {
    connection: PgConnection,
    /// Whose lock this session has found held. A host is shown as present only while it holds the lock itself, so what
    /// was held was held by this incarnation.
    held: Option<Peer>,
}

enum Look {
    /// It is there.
    Held,
    /// It holds no lock, and perhaps never did.
    Free,
    /// It was there, and is not any more.
    Ended,
}

impl Watching {
    async fn look(&mut self, peer: Peer) -> Result<Look, sqlx::Error> {
        if self.held != Some(peer) {
            self.held = None;
        }
        if self.is_free(peer).await? {
            if self.held.is_none() {
                return Ok(Look::Free);
            }
        } else {
            self.held = Some(peer);
            let wait = format!("SELECT pg_advisory_lock_shared({LOCKS}, {})", peer.slot);
            match execute(&mut self.connection, &wait).await {
                Ok(()) => self.unlock(peer).await?,
                Err(error) if state(&error) == "55P03" => return Ok(Look::Held),
                Err(error) => return Err(error),
            }
        }
        sleep(GRACE).await;
        Ok(if self.is_free(peer).await? {
            Look::Ended
        } else {
            Look::Held
        })
    }

    async fn is_free(&mut self, peer: Peer) -> Result<bool, sqlx::Error> {
        let slot = peer.slot;
        let free = truth(
            &mut self.connection,
            &format!("SELECT pg_try_advisory_lock_shared({LOCKS}, {slot})"),
        )
        .await?;
        if free {
            self.unlock(peer).await?;
        }
        Ok(free)
    }

    async fn unlock(&mut self, peer: Peer) -> Result<(), sqlx::Error> {
        let unlock = format!("SELECT pg_advisory_unlock_shared({LOCKS}, {})", peer.slot);
        execute(&mut self.connection, &unlock).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chair(who: u64, slot: u16) -> Chair {
        Chair {
            who: Incarnation(who),
            slot,
            peers: watch::Sender::new(Vec::new()),
            news: Mutex::default(),
            arrived: Notify::new(),
            shown: AtomicBool::new(false),
        }
    }

    fn peer(slot: u16, present: bool) -> Peer {
        Peer {
            slot,
            who: Incarnation(u64::from(slot)),
            present,
        }
    }

    #[test]
    fn every_present_host_is_looked_after_by_the_one_before() {
        let peers: Vec<Peer> = [(2, true), (5, false), (7, true), (9, true)]
            .map(|(slot, present)| peer(slot, present))
            .into();
        let next = |slot: u16| {
            let chair = chair(slot.into(), slot);
            chair.peers.send_replace(peers.clone());
            chair.neighbour().map(|peer| peer.slot)
        };
        assert_eq!(
            [next(2), next(5), next(7), next(9)],
            [Some(7), Some(7), Some(9), Some(2)]
        );
        let alone = chair(2, 2);
        alone.peers.send_replace(vec![peer(2, true)]);
        assert_eq!(alone.neighbour(), None);
    }

    #[test]
    fn news_are_heard_by_whom_they_concern() {
        let me = chair(u64::MAX, 1);
        let heard = |text: &str| {
            me.hear(text);
            me.news().take()
        };
        assert_eq!(heard("own"), Some(Change::Ownership));
        assert_eq!(heard("own -1"), Some(Change::Ownership));
        assert_eq!(heard("own 7"), None);
        assert_eq!(heard("gone 7 8"), Some(Change::Gone(Incarnation(7))));
        assert_eq!(heard("gone 7 -1"), None, "its own word");
        for other in ["", "gone", "gone x y", "what 1 2", "own  "] {
            let _ = heard(other);
        }
        // The dead first, each once.
        me.hear("own");
        me.hear("gone -3 8");
        me.hear("gone -3 9");
        let all: Vec<_> = std::iter::from_fn(|| me.news().take()).collect();
        let dead = Incarnation((-3_i64).cast_unsigned());
        assert_eq!(all, [Change::Gone(dead), Change::Ownership]);
    }
}
