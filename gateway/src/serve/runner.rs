//! Which accounts this process serves, and who serves them: the one file that knows how.

use super::naive;
use crate::setup::{Failure, store_failed};
use baton_core::{
    cluster::{device, host},
    flow::{Command, Config},
    state::{
        AccountId, AccountInfo, BusinessId, Epoch, EventSeq, Incarnation, Outcome, Store, Term,
    },
};
use baton_tokio::{
    Account, Fleet, FleetEvent, FleetEvents, FleetHandle, FleetOptions, Inbox, Item, Options,
    SystemEnv, TcpConnector,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::warn;

/// What there is to tell.
#[derive(Debug)]
pub(crate) enum News {
    /// This host lives under this name.
    Joined(Incarnation),
    /// It is not in the roster any more; it holds nothing.
    Lost(Incarnation),
    /// It hands everything over.
    Draining,
    /// An account is ours, under this epoch.
    Owner(String, Epoch),
    /// From an account.
    Item(String, Item),
    /// An account does not run, though it is ours: in one word why.
    Idle(String, &'static str),
    /// A term of an account was refused by the store: the epoch of ours, and the one in force.
    Fenced(String, Epoch, Epoch),
    /// An account is not ours any more; whom it was given to, if it was.
    Gone(String, Option<Incarnation>),
}

/// By what means accounts are served.
pub(crate) enum Means {
    /// As it should be.
    Fleet(Box<FleetOptions>),
    /// For the demonstration of what fences are for.
    Naive(Box<Options>),
}

/// The accounts of this process.
pub(crate) struct Runner {
    serving: Serving,
    stop: Stop,
    done: JoinHandle<()>,
}

enum Stop {
    Fleet(FleetHandle),
    Naive(JoinHandle<()>),
}

/// By name, while they are ours.
pub(super) type Serving = Arc<Mutex<BTreeMap<String, Account>>>;

impl Runner {
    /// Joins the fleet and serves what it gets of it.
    pub(crate) fn start<S: Store>(
        store: S,
        config: Config,
        means: Means,
    ) -> Result<(Self, mpsc::UnboundedReceiver<News>), Failure> {
        let (news, heard) = mpsc::unbounded_channel();
        let serving = Serving::default();
        let options = match means {
            Means::Fleet(options) => *options,
            Means::Naive(options) => {
                let run = naive::run(store, config, *options, Arc::clone(&serving), news);
                let runner = Self {
                    serving,
                    stop: Stop::Naive(tokio::spawn(run)),
                    done: tokio::spawn(async {}),
                };
                return Ok((runner, heard));
            }
        };
        let env = SystemEnv::new();
        let started = Fleet::new(
            store.clone(),
            TcpConnector::new(),
            env,
            options,
            move |_account: &AccountId| config.clone(),
        );
        let (fleet, handle, events) = started
            .map_err(|error| Failure::setup(format!("durations do not fit together: {error}")))?;
        let pump = Pump {
            store,
            handle: handle.clone(),
            serving: Arc::clone(&serving),
            news,
            names: BTreeMap::new(),
            terms: BTreeMap::new(),
            host: None,
        };
        let done = tokio::spawn(async move {
            let fleet = tokio::spawn(fleet.run());
            pump.run(events).await;
            let _ = fleet.await;
        });
        let runner = Self {
            serving,
            stop: Stop::Fleet(handle),
            done,
        };
        Ok((runner, heard))
    }

    /// Events of the account up to this one are dealt with.
    pub(crate) async fn acknowledge(&self, account: &str, seq: EventSeq) {
        let account = lock(&self.serving).get(account).cloned();
        if let Some(account) = account {
            // If the answer is lost the event is shown again, to the next owner's consumer.
            drop(account.post(Command::Acknowledge(seq)).await);
        }
    }

    /// Finishes, gives everything to others, leaves the fleet.
    pub(crate) async fn stop(self) {
        match self.stop {
            Stop::Fleet(handle) => handle.shutdown(),
            Stop::Naive(running) => running.abort(),
        }
        let _ = self.done.await;
    }
}

/// Between the fleet and whoever prints.
struct Pump<S> {
    store: S,
    handle: FleetHandle,
    serving: Serving,
    news: mpsc::UnboundedSender<News>,
    names: BTreeMap<AccountId, String>,
    /// Under which right accounts are ours.
    terms: BTreeMap<AccountId, Term>,
    /// The life that was told of last, if it lasts.
    host: Option<Incarnation>,
}

impl<S: Store> Pump<S> {
    async fn run(mut self, mut events: FleetEvents) {
        while let Some(event) = events.next().await {
            match event {
                FleetEvent::Host(status) => self.host(status.state, status.who),
                FleetEvent::Gained {
                    status,
                    handle,
                    inbox,
                } => {
                    let name = self.name(&status.account).await;
                    lock(&self.serving).insert(name.clone(), handle);
                    self.owner(&status.account, &name, status.epoch);
                    tokio::spawn(pass(name, inbox, self.news.clone()));
                }
                FleetEvent::Account(status) => {
                    let name = self.name(&status.account).await;
                    let known = self.terms.get(&status.account).map(|term| term.epoch);
                    if known.is_some_and(|known| status.epoch > known) {
                        self.owner(&status.account, &name, status.epoch);
                    }
                    let why = match status.state {
                        device::State::LoggedOut => "logged_out",
                        device::State::Error => "failing",
                        _ => continue,
                    };
                    self.tell(News::Idle(name, why));
                }
                FleetEvent::Contested { account, times } => {
                    let name = self.name(&account).await;
                    warn!(%name, times, "somebody outside of the fleet uses the keys of this account");
                    self.tell(News::Idle(name, "contested"));
                }
                FleetEvent::Lost { account, to, .. } => {
                    let name = self.name(&account).await;
                    lock(&self.serving).remove(&name);
                    let term = self.terms.remove(&account);
                    if let (true, None, Some(term)) = (self.is_too_late(term), to, term) {
                        let (store, news) = (self.store.clone(), self.news.clone());
                        tokio::spawn(ask(store, account, name.clone(), term, news));
                    }
                    self.tell(News::Gone(name, to));
                }
                _ => {}
            }
        }
    }

    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }

    fn host(&mut self, state: host::State, who: Incarnation) {
        match state {
            host::State::Active if self.host != Some(who) => {
                self.host = Some(who);
                self.tell(News::Joined(who));
            }
            host::State::Fenced => {
                if let Some(was) = self.host.take() {
                    self.tell(News::Lost(was));
                }
            }
            host::State::Draining => self.tell(News::Draining),
            _ => {}
        }
    }

    /// Whether the account was not given up by us: the host itself has lost what it had.
    fn is_too_late(&self, term: Option<Term>) -> bool {
        let host = self.handle.status();
        let is_out = matches!(
            host.state,
            host::State::Suspect
                | host::State::Quiesced
                | host::State::Fenced
                | host::State::Joining
        );
        is_out || term.is_some_and(|term| term.holder != host.who)
    }

    fn owner(&mut self, account: &AccountId, name: &str, epoch: Epoch) {
        let term = Term {
            epoch,
            holder: self.handle.status().who,
            history: self.handle.view().history,
        };
        self.terms.insert(account.clone(), term);
        self.tell(News::Owner(name.to_owned(), epoch));
    }

    /// What the account is called outside. Its number, if the store does not say.
    async fn name(&mut self, account: &AccountId) -> String {
        if !self.names.contains_key(account) {
            match all_accounts(&self.store).await {
                Ok(all) => self
                    .names
                    .extend(all.into_iter().map(|(info, name)| (info.id, name))),
                Err(error) => warn!(%error, "the names of accounts are not known"),
            }
        }
        let known = self.names.get(account).cloned();
        known.unwrap_or_else(|| format!("#{}", account.device))
    }
}

async fn pass(name: String, mut inbox: Inbox, news: mpsc::UnboundedSender<News>) {
    while let Some(item) = inbox.next().await {
        let _ = news.send(News::Item(name.clone(), item));
    }
}

/// Asks by a write whether a term that was lost is still in force, until there is an answer.
async fn ask<S: Store>(
    store: S,
    id: AccountId,
    name: String,
    term: Term,
    news: mpsc::UnboundedSender<News>,
) {
    // Not longer than the host is there to hear it.
    let weak = news.downgrade();
    drop(news);
    loop {
        let answer = store.confirm(vec![(id.clone(), term)]).await;
        let Some(news) = weak.upgrade() else { return };
        match answer.as_deref() {
            Ok([Outcome::Fenced { by }, ..]) => {
                let _ = news.send(News::Fenced(name, term.epoch, *by));
                return;
            }
            Ok(_) => return,
            Err(_) => {
                drop(news);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// All accounts of all businesses, each with what it is called outside.
pub(crate) async fn all_accounts<S: Store>(
    store: &S,
) -> Result<Vec<(AccountInfo, String)>, Failure> {
    let mut all = Vec::new();
    for business in store.tenants().await.map_err(store_failed)? {
        for info in store.accounts(&business).await.map_err(store_failed)? {
            let name = outside_name(&business, &info.name);
            all.push((info, name));
        }
    }
    Ok(all)
}

fn outside_name(business: &BusinessId, name: &str) -> String {
    if *business == BusinessId::default() {
        name.to_owned()
    } else {
        format!("{business}/{name}")
    }
}

/// Every use is one short section that leaves the map whole, so a poisoned lock is still good.
pub(super) fn lock(serving: &Serving) -> MutexGuard<'_, BTreeMap<String, Account>> {
    serving.lock().unwrap_or_else(PoisonError::into_inner)
}
