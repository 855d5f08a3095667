//! The right to act: claimed per account, renewed for all accounts of a process in one call.
//!
//! A lease is counted from *before* the call that got it was sent, on our own monotonic clock, so it ends here before
//! it ends anywhere else. An answer is one of three: renewed, lost, or no answer at all. Only the second says that
//! somebody else owns the account; the third says nothing, and the lease simply runs towards its end.

use crate::Env;
use baton_core::{
    engine::Grant,
    state::{AccountId, Claim, Epoch, Incarnation, Micros, Renewal, Seq, Store, StoreError},
};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;
use tracing::{debug, warn};

/// How long a lease holds unless told otherwise.
pub(crate) const TTL: Micros = Micros::from_secs(6);

/// Claims accounts and renews all leases it has handed out. Clones share them.
#[derive(Clone, Debug)]
pub struct LeaseKeeper<S, E> {
    store: S,
    env: E,
    who: Incarnation,
    ttl: Micros,
    held: Arc<Mutex<BTreeMap<AccountId, Held>>>,
}

#[derive(Debug)]
struct Held {
    epoch: Epoch,
    standing: watch::Sender<Standing>,
}

/// What is known of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ours until then, on our clock.
    Until(Micros),
    /// Somebody else's, under this epoch.
    Lost {
        /// The epoch in force.
        by: Epoch,
    },
}

/// The answer to [`LeaseKeeper::claim`].
#[derive(Debug)]
pub enum Claimed<S: Store, E: Env> {
    /// Ours.
    Ours(AccountLease<S, E>),
    /// Somebody else's lease has not run out.
    Held {
        /// Who.
        by: Incarnation,
        /// Until it runs out, if they do not renew it.
        remaining: Micros,
    },
}

impl<S: Store, E: Env> LeaseKeeper<S, E> {
    /// A keeper under a new random incarnation, with leases of `ttl`.
    pub fn new(store: S, env: E, ttl: Micros) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = env.entropy();
        // The upper bit stays clear: databases count in signed numbers.
        let who = Incarnation(u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 1);
        Self {
            store,
            env,
            who,
            ttl,
            held: Arc::default(),
        }
    }

    /// Under which name it claims.
    #[must_use]
    pub const fn who(&self) -> Incarnation {
        self.who
    }

    /// Takes the account if it is free. One lease per account and keeper: a second claim ends the first.
    pub async fn claim(&self, account: &AccountId) -> Result<Claimed<S, E>, StoreError> {
        let asked = self.env.now().mono;
        let lease = match self.store.claim(account, self.who, self.ttl).await? {
            Claim::Granted(lease) => lease,
            Claim::Held { by, remaining } => return Ok(Claimed::Held { by, remaining }),
        };
        let until = asked.plus(lease.ttl);
        let (standing, watch) = watch::channel(Standing::Until(until));
        self.held().insert(
            account.clone(),
            Held {
                epoch: lease.epoch,
                standing,
            },
        );
        Ok(Claimed::Ours(AccountLease {
            keeper: self.clone(),
            account: account.clone(),
            epoch: lease.epoch,
            applied: lease.applied,
            watch,
        }))
    }

    /// Renews what is held, three times within each lease, for ever. Poll it beside the drivers, once per keeper.
    pub async fn run(&self) -> Infallible {
        let mut next = self.env.now().mono;
        loop {
            self.env.sleep_until(next).await;
            next = self.round().await;
        }
    }

    /// Renews everything now; returns when to do so again.
    async fn round(&self) -> Micros {
        let asked = self.env.now().mono;
        let third = Micros(self.ttl.0 / 3);
        let leases: Vec<_> = self
            .held()
            .iter()
            .map(|(account, held)| (account.clone(), held.epoch))
            .collect();
        if leases.is_empty() {
            return asked.plus(third);
        }
        let answers = tokio::select! { biased;
            answers = self.store.renew(self.who, leases.clone(), self.ttl) => answers,
            () = self.env.sleep_until(asked.plus(third)) => Err(StoreError::Unavailable("no answer".into())),
        };
        match answers {
            Ok(answers) => {
                for ((account, epoch), answer) in leases.into_iter().zip(answers) {
                    self.settle(&account, epoch, answer, asked.plus(self.ttl));
                }
                asked.plus(third)
            }
            Err(error) => {
                warn!(%error, "leases not renewed; they run on until their end");
                // Sooner than usual, and not together with everybody else who lost the database.
                self.env
                    .now()
                    .mono
                    .plus(Micros(third.0 / 8))
                    .plus(self.env.jitter(Micros(third.0 / 8)))
            }
        }
    }

    fn settle(&self, account: &AccountId, epoch: Epoch, answer: Renewal, until: Micros) {
        let mut held = self.held();
        // Claimed anew or given up while the call was under way: the answer is about the past.
        let Some(current) = held.get(account).filter(|held| held.epoch == epoch) else {
            return;
        };
        match answer {
            Renewal::Renewed => {
                current.standing.send_replace(Standing::Until(until));
            }
            Renewal::Lost { by } => {
                debug!(%account, epoch = epoch.0, by = by.0, "lease lost");
                current.standing.send_replace(Standing::Lost { by });
                held.remove(account);
            }
        }
    }

    /// Every use is one short section that leaves the map whole, so a poisoned lock is still good.
    fn held(&self) -> MutexGuard<'_, BTreeMap<AccountId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, account: &AccountId, epoch: Epoch) {
        let mut held = self.held();
        if held.get(account).is_some_and(|held| held.epoch == epoch) {
            held.remove(account);
        }
    }
}

/// The lease of one account. Dropping it ends its renewal; [`release`](Self::release) gives it back at once.
#[derive(Debug)]
pub struct AccountLease<S: Store, E: Env> {
    keeper: LeaseKeeper<S, E>,
    account: AccountId,
    epoch: Epoch,
    applied: Seq,
    watch: watch::Receiver<Standing>,
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
        self.epoch
    }

    /// What an engine is built with. A lost lease is one that has run out.
    #[must_use]
    pub fn grant(&self) -> Grant {
        let until = match self.standing() {
            Standing::Until(until) => until,
            Standing::Lost { .. } => Micros(0),
        };
        self.grant_until(until)
    }

    pub(crate) const fn grant_until(&self, until: Micros) -> Grant {
        Grant {
            epoch: self.epoch,
            applied: self.applied,
            until,
        }
    }

    /// What is known now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        *self.watch.borrow()
    }

    /// Waits for news of it. May be dropped at any time.
    pub async fn changed(&mut self) -> Standing {
        match self.watch.changed().await {
            Ok(()) => *self.watch.borrow_and_update(),
            // Lost or claimed anew: the keeper has nothing more to say.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the store whether it is still ours.
    pub async fn check(&self) -> Result<Standing, StoreError> {
        let asked = self.keeper.env.now().mono;
        let leases = vec![(self.account.clone(), self.epoch)];
        let answers = self
            .keeper
            .store
            .renew(self.keeper.who, leases, self.keeper.ttl)
            .await?;
        if let Some(answer) = answers.into_iter().next() {
            self.keeper.settle(
                &self.account,
                self.epoch,
                answer,
                asked.plus(self.keeper.ttl),
            );
        }
        Ok(self.standing())
    }

    /// Gives the account up, so that the next owner need not wait.
    pub async fn release(self) -> Result<(), StoreError> {
        // First of all it must not be renewed any more.
        self.keeper.forget(&self.account, self.epoch);
        self.keeper
            .store
            .release(&self.account, self.keeper.who, self.epoch)
            .await
    }
}

impl<S: Store, E: Env> Drop for AccountLease<S, E> {
    fn drop(&mut self) {
        self.keeper.forget(&self.account, self.epoch);
    }
}
