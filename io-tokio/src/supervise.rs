//! One account for as long as this process wants it: wait for the lease, build an engine, drive it, and decide what it
//! means that it stopped.

use crate::{
    Account, AccountLease, Claimed, CommitOptions, Commits, Connector, DriveOptions, Env, Inbox,
    Journals, Link, MemberOptions, Membership, Recorded, Standing, SystemEnv, TcpConnector,
    account::{Desk, ends},
    drive,
};
use baton_core::{
    flow::{Config, StopReason},
    journal::{Birth, Seed},
    state::{
        AccountId, BusinessId, Epoch, Incarnation, Micros, Store, StoreError, Table, UnixMillis,
    },
};
use std::{collections::VecDeque, convert::Infallible, future::Future};
use tracing::{info, warn};

/// Serves one account in this process: on the system's clock, over TCP, with a lease of its own. Poll the future, for
/// instance in a task; it ends when the account does or when it is told to shut down.
pub fn open<S: Store>(
    store: S,
    account: AccountId,
    config: Config,
) -> (Account, Inbox, impl Future<Output = End> + Send + 'static) {
    let host = Host::new(
        store,
        TcpConnector::new(),
        SystemEnv::new(),
        Options::default(),
    );
    let (handle, inbox, serve) = host.account(account, config);
    let run = async move {
        tokio::select! { biased;
            end = async {
                let end = serve.await;
                host.leave().await;
                end
            } => end,
            never = host.run() => match never {},
        }
    };
    (handle, inbox, run)
}

/// The account of that name in the default business; made if there is none.
pub async fn account_named<S: Store>(store: &S, name: &str) -> Result<AccountId, StoreError> {
    let business = BusinessId::default();
    match store.create_account(&business, name).await {
        Err(StoreError::Exists) => {
            let accounts = store.accounts(&business).await?;
            accounts
                .into_iter()
                .find(|account| account.name == name)
                .map(|account| account.id)
                .ok_or(StoreError::NoAccount)
        }
        made => made,
    }
}

/// What the accounts of one process share.
#[derive(Clone, Debug)]
pub struct Host<S, C, E> {
    connector: C,
    env: E,
    membership: Membership<S, E>,
    commits: Commits<S, E>,
    options: Options,
}

/// When to do what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its place in the fleet.
    pub member: MemberOptions,
    /// How commits of its accounts are collected.
    pub commits: CommitOptions,
    /// How often to ask for an account that somebody else holds.
    pub claim_every: Micros,
    /// How long to stay away after the service said that another connection replaced ours although the lease is ours:
    /// somebody uses a copy of the keys, and two that fight evict each other for ever.
    pub replaced_pause: Micros,
    /// Give up when that happened so often ...
    pub replaced_most: usize,
    /// ... within this time.
    pub replaced_window: Micros,
    /// What the driver does.
    pub drive: DriveOptions,
    /// When old rows leave.
    pub retention: Retention,
    /// Journals of what happens to engines, if any are kept.
    pub journals: Option<Journals>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            member: MemberOptions::default(),
            commits: CommitOptions::default(),
            claim_every: Micros::from_millis(250),
            replaced_pause: Micros::from_secs(30),
            replaced_most: 3,
            replaced_window: Micros::from_secs(600),
            drive: DriveOptions::default(),
            retention: Retention::default(),
            journals: None,
        }
    }
}

/// How old rows become that are of use for a while only.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// How often to look.
    pub every: Micros,
    /// Marks of messages decrypted once. The service keeps messages for 30 days and may deliver one again as late.
    pub seen: Micros,
    /// Sent messages, kept to answer those who could not decrypt them.
    pub sent: Micros,
    /// Secrets of messages that votes and edits refer to.
    pub message_secrets: Micros,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Self {
            every: Micros::from_secs(600),
            seen: Micros::from_secs(45 * DAY),
            sent: Micros::from_secs(30 * DAY),
            message_secrets: Micros::from_secs(180 * DAY),
        }
    }
}

/// Who owns an account, as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ownership {
    /// Another process; we wait.
    Waiting {
        /// Which, if that is known.
        by: Option<Incarnation>,
    },
    /// We.
    Ours {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// Our engine stopped; what follows depends on why.
    Stopped(StopReason),
}

/// Why an account is not served any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// As wished.
    #[error("shut down")]
    Shutdown,
    /// The engine stopped and another one would stop as well.
    #[error(transparent)]
    Stopped(StopReason),
    /// Somebody outside of this store uses the account's keys.
    #[error("another client with the same keys keeps replacing our connection")]
    Contested,
    /// The store does not let us claim it.
    #[error(transparent)]
    Store(StoreError),
    /// It was moved to another database and runs there.
    #[error("the account was exported to another database")]
    Retired,
}

impl<S: Store, C: Connector, E: Env> Host<S, C, E> {
    /// A host that joins the fleet of `store` as soon as it is [run](Self::run).
    pub fn new(store: S, connector: C, env: E, options: Options) -> Self {
        let membership = Membership::new(store.clone(), env.clone(), options.member.clone());
        let commits = Commits::new(store, env.clone(), options.commits);
        Self {
            connector,
            env,
            membership,
            commits,
            options,
        }
    }

    /// Joins the fleet, renews the lease, and makes the commits of all its accounts. Poll it beside them, once.
    pub async fn run(&self) -> Infallible {
        tokio::select! { biased;
            never = self.membership.run() => match never {},
            never = self.commits.run() => match never {},
        }
    }

    /// Its place in the fleet.
    #[must_use]
    pub const fn membership(&self) -> &Membership<S, E> {
        &self.membership
    }

    /// Where its commits go.
    #[must_use]
    pub const fn commits(&self) -> &Commits<S, E> {
        &self.commits
    }

    /// Goes properly, when all its accounts have ended: the next host need not wait for the lease to run out.
    pub async fn leave(&self) {
        let patience = self.env.now().mono.plus(Micros::from_secs(2));
        let left = tokio::select! { biased;
            left = self.membership.leave() => left,
            () = self.env.sleep_until(patience) => Err(StoreError::Unavailable("no answer".into())),
        };
        if let Err(error) = left {
            warn!(%error, "left without a word; the lease runs out by itself");
        }
    }

    /// Serves one account: give commands to the first, take events from the second, poll the third.
    ///
    /// An account that is logged out ends at once, unless [`Command::Link`](baton_core::flow::Command::Link) was posted
    /// before the future is polled for the first time.
    pub fn account(
        &self,
        account: AccountId,
        config: Config,
    ) -> (
        Account,
        Inbox,
        impl Future<Output = End> + Send + 'static + use<S, C, E>,
    ) {
        let (handle, inbox, desk) = ends();
        let host = self.clone();
        (handle, inbox, async move {
            host.supervise(account, config, desk).await
        })
    }

    async fn supervise(self, account: AccountId, config: Config, mut desk: Desk) -> End {
        let mut replaced = VecDeque::new();
        loop {
            let mut lease = match self.claim(&account, &mut desk).await {
                Ok(lease) => lease,
                Err(end) => return end,
            };
            info!(%account, epoch = lease.epoch().0, "owner");
            desk.ownership(Ownership::Ours {
                epoch: lease.epoch(),
            });
            let reason = self.serve(&account, &config, &mut lease, &mut desk).await;
            desk.engine_stopped();
            desk.ownership(Ownership::Stopped(reason.clone()));
            match reason {
                // The next claim is polite: it waits for whoever has the account now.
                StopReason::LeaseExpired
                | StopReason::Fenced(_)
                | StopReason::HistoryChanged(_) => {}
                StopReason::Replaced => {
                    if !self.still_ours(&lease).await {
                        continue;
                    }
                    if self.is_too_often(&mut replaced) {
                        self.give_back(lease).await;
                        return End::Contested;
                    }
                    let pause = self
                        .options
                        .replaced_pause
                        .plus(self.env.jitter(Micros::from_secs(5)));
                    warn!(%account, "replaced at the service although the lease is ours: staying away for a while");
                    tokio::select! { biased;
                        () = desk.stopping() => {
                            self.give_back(lease).await;
                            return End::Shutdown;
                        }
                        () = self.env.sleep_until(self.env.now().mono.plus(pause)) => {}
                    }
                }
                StopReason::Shutdown => {
                    self.give_back(lease).await;
                    return End::Shutdown;
                }
                reason => {
                    self.give_back(lease).await;
                    return End::Stopped(reason);
                }
            }
        }
    }

    /// Asks until the account is ours. `Err` if that will not be.
    async fn claim(&self, account: &AccountId, desk: &mut Desk) -> Result<AccountLease<S, E>, End> {
        let mut told = None;
        let mut news = self.membership.news();
        loop {
            news.mark_unchanged();
            let claimed = tokio::select! { biased;
                () = desk.stopping() => return Err(End::Shutdown),
                claimed = self.membership.claim(account) => claimed,
            };
            let every = self.options.claim_every;
            let pause = match claimed {
                Ok(Claimed::Ours(lease)) => return Ok(lease),
                Ok(Claimed::Retired) => return Err(End::Retired),
                Ok(Claimed::Held { by }) => {
                    if told != Some(by) {
                        info!(%account, "held by another host: waiting");
                        desk.ownership(Ownership::Waiting { by });
                        told = Some(by);
                    }
                    every
                }
                Err(error) if error.is_retryable() => {
                    warn!(%account, %error, "cannot claim");
                    every.plus(self.env.jitter(every))
                }
                Err(error) => return Err(End::Store(error)),
            };
            tokio::select! { biased;
                () = desk.stopping() => return Err(End::Shutdown),
                // The holder may give it back, or be found dead, long before its lease ends.
                _news = news.changed() => {}
                () = self.env.sleep_until(self.env.now().mono.plus(pause)) => {}
            }
        }
    }

    async fn serve(
        &self,
        account: &AccountId,
        config: &Config,
        lease: &mut AccountLease<S, E>,
        desk: &mut Desk,
    ) -> StopReason {
        let (seed, now) = (self.env.entropy(), self.env.now());
        let birth = Birth {
            account: account.clone(),
            config: config.clone(),
            grant: lease.grant(),
            seed: Seed(seed),
            now,
        };
        let engine = Recorded::new(birth, self.options.journals.as_ref());
        let mut link = Link::new(self.connector.clone(), self.env.clone());
        tokio::select! { biased;
            reason = drive(engine, &self.env, &self.commits, lease, &mut link, desk, self.options.drive) => reason,
            never = self.retain(account) => match never {},
        }
    }

    /// Lets old rows leave, a few at a time.
    async fn retain(&self, account: &AccountId) -> Infallible {
        /// Rows per call: a short transaction.
        const STEP: u32 = 500;
        let retention = self.options.retention;
        let tables = [
            (Table::Seen, retention.seen),
            (Table::Sent, retention.sent),
            (Table::MessageSecret, retention.message_secrets),
        ];
        loop {
            let pause = Micros(retention.every.0 / 2).plus(self.env.jitter(retention.every));
            self.env.sleep_until(self.env.now().mono.plus(pause)).await;
            for (table, age) in tables {
                let age = i64::try_from(age.0 / 1000).unwrap_or(i64::MAX);
                let before = UnixMillis(self.env.now().unix.0.saturating_sub(age));
                // Stops at an error too: the next round is soon enough.
                while self
                    .commits
                    .store()
                    .retain(account, table, before, STEP)
                    .await
                    == Ok(STEP)
                {}
            }
        }
    }

    /// Whether the lease is ours, as far as the store can be asked. If it cannot, the account is claimed anew.
    async fn still_ours(&self, lease: &AccountLease<S, E>) -> bool {
        let patience = self
            .env
            .now()
            .mono
            .plus(Micros(self.options.member.ttl.0 / 3));
        tokio::select! { biased;
            answer = lease.check() => matches!(answer, Ok(Standing::Until(_))),
            () = self.env.sleep_until(patience) => false,
        }
    }

    fn is_too_often(&self, replaced: &mut VecDeque<Micros>) -> bool {
        let now = self.env.now().mono;
        replaced.push_back(now);
        while replaced
            .front()
            .is_some_and(|at| now.since(*at) > self.options.replaced_window)
        {
            replaced.pop_front();
        }
        replaced.len() > self.options.replaced_most
    }

    /// A courtesy to the next owner, who would have to wait for the end of the lease otherwise.
    async fn give_back(&self, lease: AccountLease<S, E>) {
        let account = lease.account().clone();
        let patience = self.env.now().mono.plus(Micros::from_secs(2));
        let released = tokio::select! { biased;
            released = lease.release() => released,
            () = self.env.sleep_until(patience) => Err(StoreError::Unavailable("no answer".into())),
        };
        if let Err(error) = released {
            warn!(%account, %error, "the lease was not given back; it runs out by itself");
        }
    }
}
