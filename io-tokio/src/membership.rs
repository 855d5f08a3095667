//! A host's place in the fleet: joined once, renewed once a second however many accounts it holds.
//!
//! A lease is counted from *before* the call that got it was sent, on our own monotonic clock, so it ends here before
//! it ends anywhere else. An answer is one of three: renewed, declared dead, or no answer at all. Only the second says
//! that our accounts are somebody else's to take; the third says nothing, and the lease runs towards its end. Who was
//! declared dead never comes back: it joins again as somebody new, who holds nothing.

use crate::Env;
use crate::watch;
use baton_core::{
    engine::Grant,
    state::{
        AccountId, Beat, Beaten, Change, Claim, Epoch, HostInfo, Incarnation, Lease, Micros,
        Outcome, Store, StoreError, View,
    },
};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};
use tracing::{debug, info, warn};

/// How a host lives.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// What it says about itself.
    pub info: HostInfo,
    /// How long its lease holds unless renewed. Nothing is let out in the last part of it (see
    /// [`Timing::grant_margin`](baton_core::flow::Timing)).
    pub ttl: Micros,
    /// How often it is renewed; a sixth of `ttl` or less.
    pub every: Micros,
    /// After so long a renewal that has not been answered counts as failed, and another is tried.
    pub deadline: Micros,
}

impl Default for MemberOptions {
    fn default() -> Self {
        Self {
            info: HostInfo::named("baton"),
            ttl: Micros::from_secs(6),
            every: Micros::from_secs(1),
            deadline: Micros::from_millis(800),
        }
    }
}

/// What is known of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Life {
    /// Nothing yet.
    Joining,
    /// In the roster, until then on our clock.
    Until(Incarnation, Micros),
    /// The store does not let it in.
    Refused(StoreError),
}

/// One host in the roster of a store. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Membership<S, E> {
    store: S,
    env: E,
    options: MemberOptions,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    life: watch::Sender<Life>,
    /// Goes up whenever it may be worth while to claim again.
    news: watch::Sender<u64>,
    view: watch::Sender<View>,
    /// Leases that were lost while the host lived: their accounts and epochs.
    lost: Mutex<BTreeSet<(AccountId, Epoch)>>,
    lost_news: watch::Sender<u64>,
    accounts: AtomicU32,
}

/// What is known of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ours until then, on our clock.
    Until(Micros),
    /// Not ours any more.
    Lost,
}

/// The answer to [`Membership::claim`].
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "an answer is taken apart where it arrives; none are kept"
)]
pub enum Claimed<S: Store, E: Env> {
    /// Ours.
    Ours(AccountLease<S, E>),
    /// A live host has it, or somebody is just taking it.
    Held {
        /// Who, if that is known.
        by: Option<Incarnation>,
    },
    /// It was moved to another database.
    Retired,
}

impl<S: Store, E: Env> Membership<S, E> {
    /// A host that has not joined yet; [`run`](Self::run) does that.
    pub fn new(store: S, env: E, options: MemberOptions) -> Self {
        let shared = Shared {
            life: watch::Sender::new(Life::Joining),
            news: watch::Sender::new(0),
            view: watch::Sender::new(View::default()),
            lost: Mutex::default(),
            lost_news: watch::Sender::new(0),
            accounts: AtomicU32::new(0),
        };
        Self {
            store,
            env,
            options,
            shared: Arc::new(shared),
        }
    }

    /// Under which name it lives, if it does.
    #[must_use]
    pub fn who(&self) -> Option<Incarnation> {
        match *self.shared.life.borrow() {
            Life::Until(who, _) => Some(who),
            _ => None,
        }
    }

    /// The fleet as the last renewal has shown it.
    #[must_use]
    pub fn view(&self) -> View {
        self.shared.view.borrow().clone()
    }

    /// News that may make a claim worth while. May be dropped at any time.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    /// Joins, renews, joins again if declared dead, for ever. Poll it beside the accounts, once per host.
    pub async fn run(&self) -> Infallible {
        loop {
            let who = self.join().await;
            tokio::select! { biased;
                () = self.live(who) => {}
                never = self.watch(who) => match never {},
            }
            // Nothing cached of this life counts in the next.
            self.shared.life.send_replace(Life::Joining);
        }
    }

    /// Goes properly: what is still held is free at once, nobody has to wait for the lease.
    pub async fn leave(&self) -> Result<(), StoreError> {
        match self.who() {
            Some(who) => {
                self.shared.life.send_replace(Life::Joining);
                self.store.leave(who).await
            }
            None => Ok(()),
        }
    }

    async fn join(&self) -> Incarnation {
        loop {
            let [a, b, c, d, e, f, g, h, ..] = self.env.entropy();
            // The upper bit stays clear: databases count in signed numbers. Never 0, which stands for nobody.
            let who = Incarnation((u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 1).max(1));
            let asked = self.env.now().mono;
            let joined = self
                .store
                .join(who, self.options.info.clone(), self.options.ttl);
            match self.in_time(asked, joined).await {
                Ok(slot) => {
                    let until = asked.plus(self.options.ttl);
                    info!(slot, host = who.0, "joined");
                    self.shared.life.send_replace(Life::Until(who, until));
                    self.tell();
                    return who;
                }
                Err(error) => {
                    warn!(%error, "cannot join");
                    if !error.is_retryable() {
                        self.shared.life.send_replace(Life::Refused(error));
                    }
                    self.pause().await;
                }
            }
        }
    }

    /// Renews until declared dead.
    async fn live(&self, who: Incarnation) {
        loop {
            let asked = self.env.now().mono;
            let beat = Beat {
                draining: false,
                accounts: self.shared.accounts.load(Ordering::Relaxed),
                live: 0,
                ttl: self.options.ttl,
            };
            match self.in_time(asked, self.store.beat(who, beat)).await {
                Ok(Beaten::Renewed(view)) => {
                    let until = asked.plus(self.options.ttl);
                    self.shared.life.send_replace(Life::Until(who, until));
                    let (dead, gifts) = (!view.newly_dead.is_empty(), view.gifts);
                    let before = self.shared.view.send_replace(view);
                    if dead || gifts != before.gifts {
                        self.tell();
                    }
                    self.env.sleep_until(asked.plus(self.options.every)).await;
                }
                Ok(Beaten::Dead) => {
                    warn!(host = who.0, "declared dead: all accounts are lost");
                    return;
                }
                Err(error) => {
                    warn!(%error, "lease not renewed; it runs on until its end");
                    self.pause().await;
                }
            }
        }
    }

    /// Hears what need not wait for the next renewal.
    async fn watch(&self, who: Incarnation) -> Infallible {
        loop {
            match self.store.watch(who).await {
                Ok(change) => {
                    if let Change::Gone(host) = change {
                        info!(host = host.0, "a host is gone");
                    }
                    self.tell();
                }
                Err(error) => {
                    debug!(%error, "no news from the store");
                    self.pause().await;
                }
            }
        }
    }

    fn tell(&self) {
        self.shared.news.send_modify(|n| *n += 1);
    }

    /// Not together with everybody else who lost the database.
    async fn pause(&self) {
        let short = Micros(self.options.every.0 / 4);
        let pause = short.plus(self.env.jitter(short));
        self.env.sleep_until(self.env.now().mono.plus(pause)).await;
    }

    async fn in_time<T>(
        &self,
        asked: Micros,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::select! { biased;
            answer = call => answer,
            () = self.env.sleep_until(asked.plus(self.options.deadline)) =>
                Err(StoreError::Unavailable("no answer".into())),
        }
    }

    /// Takes the account if it is free. Waits until the host has joined.
    pub async fn claim(&self, account: &AccountId) -> Result<Claimed<S, E>, StoreError> {
        let (who, until) = self.joined().await?;
        // A lease that has run out is good for nothing, and a claim under it would be repeated for ever.
        if self.env.now().mono >= until {
            return Ok(Claimed::Held { by: None });
        }
        let answers = self.store.claim(who, vec![account.clone()]).await;
        let answer = match answers.map(|answers| answers.into_iter().next()) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(StoreError::NoAccount),
            // Declared dead a moment ago: the next life asks again.
            Err(error) if error.is_fenced() => return Ok(Claimed::Held { by: None }),
            Err(error) => return Err(error),
        };
        match answer {
            Claim::Granted(lease) => Ok(Claimed::Ours(self.lease(account.clone(), lease))),
            Claim::Held { by } => Ok(Claimed::Held { by: Some(by) }),
            Claim::Locked => Ok(Claimed::Held { by: None }),
            Claim::Retired => Ok(Claimed::Retired),
            Claim::Missing => Err(StoreError::NoAccount),
        }
    }

    /// A lease that the store has given to this host.
    #[must_use]
    pub fn lease(&self, account: AccountId, lease: Lease) -> AccountLease<S, E> {
        self.shared.accounts.fetch_add(1, Ordering::Relaxed);
        AccountLease {
            host: self.clone(),
            account,
            lease,
            life: self.shared.life.subscribe(),
            lost: self.shared.lost_news.subscribe(),
        }
    }

    async fn joined(&self) -> Result<(Incarnation, Micros), StoreError> {
        let mut life = self.shared.life.subscribe();
        let life = life.wait_for(|life| *life != Life::Joining).await;
        match life.as_deref() {
            Ok(Life::Until(who, until)) => Ok((*who, *until)),
            Ok(Life::Refused(error)) => Err(error.clone()),
            // The sender is in `self`.
            Ok(Life::Joining) | Err(_) => Err(StoreError::Unavailable("not joined".into())),
        }
    }

    /// Every use is one short section that leaves the set whole, so a poisoned lock is still good.
    fn lost(&self) -> MutexGuard<'_, BTreeSet<(AccountId, Epoch)>> {
        self.shared
            .lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lease of one account. It lasts as long as its host's; [`release`](Self::release) gives it back at once.
#[derive(Debug)]
pub struct AccountLease<S: Store, E: Env> {
    host: Membership<S, E>,
    account: AccountId,
    lease: Lease,
    life: watch::Receiver<Life>,
    lost: watch::Receiver<u64>,
}

impl<S: Store, E: Env> AccountLease<S, E> {
    /// Whose.
    #[must_use]
    pub const fn account(&self) -> &AccountId {
        &self.account
    }

    /// Under which right.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.lease.term.epoch
    }

    /// What an engine is built with. A lost lease is one that has run out.
    #[must_use]
    pub fn grant(&self) -> Grant {
        let until = match self.standing() {
            Standing::Until(until) => until,
            Standing::Lost => Micros(0),
        };
        self.grant_until(until)
    }

    pub(crate) const fn grant_until(&self, until: Micros) -> Grant {
        Grant {
            lease: self.lease,
            until,
        }
    }

    /// What is known now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let lost = self
            .host
            .lost()
            .contains(&(self.account.clone(), self.epoch()));
        match *self.life.borrow() {
            Life::Until(who, until) if who == self.lease.term.holder && !lost => {
                Standing::Until(until)
            }
            _ => Standing::Lost,
        }
    }

    /// Waits for news of it. May be dropped at any time.
    pub async fn changed(&mut self) -> Standing {
        let news = tokio::select! { biased;
            news = self.life.changed() => news,
            news = self.lost.changed() => news,
        };
        match news {
            Ok(()) => {
                self.life.mark_unchanged();
                self.lost.mark_unchanged();
                self.standing()
            }
            // The senders are in `self.host`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the store, by a write, whether it is still ours.
    pub async fn check(&self) -> Result<Standing, StoreError> {
        let terms = vec![(self.account.clone(), self.lease.term)];
        match self.host.store.confirm(terms).await?.first() {
            Some(Outcome::Committed) => Ok(self.standing()),
            other => {
                debug!(account = %self.account, epoch = self.epoch().0, ?other, "lease lost");
                let place = (self.account.clone(), self.epoch());
                self.host.lost().insert(place);
                self.host.shared.lost_news.send_modify(|n| *n += 1);
                Ok(Standing::Lost)
            }
        }
    }

    /// Gives the account up, so that the next owner need not wait.
    pub async fn release(self) -> Result<(), StoreError> {
        let mine = vec![(self.account.clone(), self.epoch())];
        self.host.store.release(self.lease.term.holder, mine).await
    }
}

impl<S: Store, E: Env> Drop for AccountLease<S, E> {
    fn drop(&mut self) {
        self.host.shared.accounts.fetch_sub(1, Ordering::Relaxed);
        let place = (self.account.clone(), self.epoch());
        self.host.lost().remove(&place);
    }
}
