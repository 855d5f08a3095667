//! News for hosts that watch: who has died, and that accounts may have changed hands.
//!
//! One thread per store, which sleeps while nobody watches. While somebody does it looks every [`PERIOD`]: at one number
//! that SQLite keeps in shared memory (has anybody committed?) and at the lock file of each host that lives. What it
//! finds is kept for each host that has watched before, so that a watch which is dropped and asked for anew, as in a
//! `select!`, misses nothing in between.

use crate::{
    database::Database,
    presence::Observer,
    store::{WriteQueue, submit},
};
use baton_core::state::{Change, HostState, Incarnation, Roster, StoreError};
use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// From one look to the next. Finding a death takes this, a commit, and the time of two thread switches.
const PERIOD: Duration = Duration::from_millis(20);

/// Shared by the thread that looks and the futures that wait.
#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
    /// Rings when the first one comes to watch, and to stop.
    bell: Condvar,
}

#[derive(Default)]
struct State {
    /// Of each host that watches or has watched.
    news: BTreeMap<Incarnation, News>,
    /// Futures there are, and the number of the next one.
    watching: usize,
    next: u64,
    stopping: bool,
}

#[derive(Default)]
struct News {
    gone: VecDeque<Incarnation>,
    ownership: bool,
    wakers: BTreeMap<u64, Waker>,
}

impl Watch {
    /// A future that waits for news for `who`.
    pub(crate) fn watch(self: &Arc<Self>, who: Incarnation) -> Watching {
        let mut state = self.lock();
        state.news.entry(who).or_default();
        state.watching += 1;
        state.next += 1;
        let id = state.next;
        drop(state);
        self.bell.notify_all();
        Watching {
            watch: Arc::clone(self),
            who,
            id,
        }
    }

    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.bell.notify_all();
    }

    /// The body of the thread. `database` is a connection of its own.
    pub(crate) fn run(
        &self,
        database: &Database,
        observer: Option<&Observer>,
        writes: &WriteQueue,
    ) {
        let mut look = Look {
            database,
            observer,
            writes,
            version: None,
            known: None,
        };
        loop {
            let state = self.lock();
            let state = self
                .bell
                .wait_while(state, |state| state.watching == 0 && !state.stopping)
                .unwrap_or_else(PoisonError::into_inner);
            if state.stopping {
                return;
            }
            drop(state);
            match look.take() {
                Ok(found) => self.tell(&found),
                // What cannot be seen now is seen later, and by the next beat at the latest.
                Err(error) => tracing::debug!(%error, "cannot look for news"),
            }
            let state = self.lock();
            let rest = self
                .bell
                .wait_timeout_while(state, PERIOD, |state| !state.stopping);
            drop(rest);
        }
    }

    fn tell(&self, found: &Found) {
        if !found.ownership && found.gone.is_empty() && found.ended.is_empty() {
            return;
        }
        let mut state = self.lock();
        // Of the ended only those are kept that somebody still asks for.
        state
            .news
            .retain(|who, news| !news.wakers.is_empty() || !found.ended.contains(who));
        let mut wakers = Vec::new();
        for (who, news) in &mut state.news {
            news.ownership |= found.ownership;
            for gone in found.gone.iter().filter(|gone| *gone != who) {
                news.gone.push_back(*gone);
                // More than a roster holds: nobody reads them.
                if news.gone.len() > usize::from(Roster::SLOTS) {
                    news.gone.pop_front();
                }
            }
            if news.ownership || !news.gone.is_empty() {
                wakers.extend(std::mem::take(&mut news.wakers).into_values());
            }
        }
        drop(state);
        // Outside the lock: a waker may run whatever it likes.
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was found since the look before.
#[derive(Default)]
struct Found {
    /// Died.
    gone: Vec<Incarnation>,
    /// Died or left.
    ended: Vec<Incarnation>,
    ownership: bool,
}

/// How things were at the last look.
struct Look<'a> {
    database: &'a Database,
    observer: Option<&'a Observer>,
    writes: &'a WriteQueue,
    version: Option<i64>,
    known: Option<Known>,
}

struct Known {
    changes: u64,
    /// Who lived, and whether that can be seen by a lock.
    living: BTreeMap<Incarnation, bool>,
}

impl Look<'_> {
    fn take(&mut self) -> Result<Found, StoreError> {
        let mut found = Found::default();
        self.read(&mut found)?;
        let provably_dead = |(who, locked): (&Incarnation, &bool)| {
            let dead = *locked && self.observer.is_some_and(|observer| observer.is_dead(*who));
            dead.then_some(*who)
        };
        let living = self.known.iter().flat_map(|known| &known.living);
        let dead: Vec<_> = living.filter_map(provably_dead).collect();
        if !dead.is_empty() {
            let bury = submit(self.writes, move |transaction| {
                for &who in &dead {
                    transaction.bury(who)?;
                }
                Ok(())
            });
            bury.wait()?;
            self.read(&mut found)?;
        }
        Ok(found)
    }

    /// Adds to `found` what has changed, if anybody has committed at all.
    fn read(&mut self, found: &mut Found) -> Result<(), StoreError> {
        let version = self.database.pulse()?;
        if self.version == Some(version) {
            return Ok(());
        }
        let (changes, hosts) = self.database.fleet()?;
        self.version = Some(version);
        let is_live = |state: &HostState| state.is_live();
        let living = hosts.iter().filter(|(_, state, _)| is_live(state));
        let now = Known {
            changes,
            living: living.map(|(who, _, locked)| (*who, *locked)).collect(),
        };
        if let Some(before) = &self.known {
            found.ownership |= before.changes != now.changes;
            for who in before.living.keys() {
                if now.living.contains_key(who) {
                    continue;
                }
                found.ended.push(*who);
                let died = |(other, state, _): &(Incarnation, HostState, bool)| {
                    other == who && *state == HostState::Dead
                };
                if hosts.iter().any(died) {
                    found.gone.push(*who);
                } else {
                    // It has left, or died and lost its place in the roster already.
                    found.ownership = true;
                }
            }
        }
        self.known = Some(now);
        Ok(())
    }
}

/// Waits for news. Dropping it loses none.
pub(crate) struct Watching {
    watch: Arc<Watch>,
    who: Incarnation,
    id: u64,
}

impl Future for Watching {
    type Output = Result<Change, StoreError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.watch.lock();
        let news = state.news.entry(self.who).or_default();
        if let Some(gone) = news.gone.pop_front() {
            return Poll::Ready(Ok(Change::Gone(gone)));
        }
        if std::mem::take(&mut news.ownership) {
            return Poll::Ready(Ok(Change::Ownership));
        }
        news.wakers.insert(self.id, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut state = self.watch.lock();
        state.watching -= 1;
        let waker = state
            .news
            .get_mut(&self.who)
            .and_then(|news| news.wakers.remove(&self.id));
        drop(state);
        drop(waker);
    }
}
