//! The database host: takes calls from the network, one at a time, and keeps books of them.

use super::{
    backend::{Backend, StoreClock},
    bugs::{Bug, IGNORED, Memory},
    clock,
    judge::Ledger,
    net::{Network, SimStream},
    remote::{Answer, Ask, DATABASE, Mail, Request},
    trace::Trace,
};
use baton_core::{
    crypto::Rng,
    state::{AccountId, Batch, Claim, Incarnation, Key, Outcome, Row, Store as _, StoreError},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use turmoil::net::TcpListener;

/// The database. It outlives the process on its host, as a disk does.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    shared: Arc<Mutex<Shared>>,
    pub(crate) backend: Backend,
    clock: StoreClock,
    network: Network,
    mail: Mail,
    trace: Trace,
}

#[derive(Debug)]
struct Shared {
    rng: Rng,
    /// Longest time that a call takes, in microseconds.
    slow: u64,
    ledger: Ledger,
    bug: Option<Bug>,
    /// Faults to come: calls that are carried out and not answered, and calls that are lost before.
    lose_answers: u32,
    drop_requests: u32,
    memory: Memory,
    effects: BTreeMap<&'static str, u64>,
}

impl Database {
    pub(crate) fn new(
        backend: Backend,
        clock: StoreClock,
        network: Network,
        mail: Mail,
        trace: Trace,
        (seed, slow, bug): (u64, u64, Option<Bug>),
    ) -> Self {
        let shared = Shared {
            rng: clock::generator(seed, "database"),
            slow,
            ledger: Ledger::default(),
            bug,
            lose_answers: 0,
            drop_requests: 0,
            memory: Memory::default(),
            effects: BTreeMap::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            backend,
            clock,
            network,
            mail,
            trace,
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads its books.
    pub(crate) fn ledger<T>(&self, read: impl FnOnce(&mut Ledger) -> T) -> T {
        read(&mut self.shared().ledger)
    }

    /// The next so many calls are carried out, and the connection breaks before the answer.
    pub(crate) fn lose_answers(&self, count: u32) {
        self.shared().lose_answers = count;
    }

    /// The connection breaks before the next so many calls are carried out.
    pub(crate) fn drop_requests(&self, count: u32) {
        self.shared().drop_requests = count;
    }

    /// Nothing more goes wrong.
    pub(crate) fn heal(&self) {
        let mut shared = self.shared();
        (shared.lose_answers, shared.drop_requests) = (0, 0);
    }

    /// What its faults really met.
    pub(crate) fn effects(&self) -> BTreeMap<&'static str, u64> {
        self.shared().effects.clone()
    }

    /// The process on the database host.
    pub(crate) async fn serve(self) -> turmoil::Result {
        let listener = TcpListener::bind(("0.0.0.0", DATABASE.1)).await?;
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! { biased;
                Some(()) = connections.next() => {}
                accepted = listener.accept() => {
                    let (stream, client) = accepted?;
                    let stream = self.network.accepted(stream, client, DATABASE.0);
                    connections.push(self.converse(stream));
                }
                () = self.late_writes() => {}
            }
        }
    }

    async fn converse(&self, mut stream: SimStream) {
        let mut number = [0; 8];
        while stream.read_exact(&mut number).await.is_ok() {
            let number = u64::from_le_bytes(number);
            let Some(request) = self.mail.take(number) else {
                return;
            };
            let takes = {
                let mut shared = self.shared();
                let slow = shared.slow;
                shared.rng.below(slow + 1)
            };
            if takes >= 1000 {
                tokio::time::sleep(Duration::from_micros(takes)).await;
            }
            if self.strikes(|shared| &mut shared.drop_requests, "request lost") {
                self.trace
                    .note(clock::now(), "db", format_args!("loses {}", request.name));
                return;
            }
            let answer = self.carry_out(request);
            if self.strikes(|shared| &mut shared.lose_answers, "answer lost") {
                return;
            }
            self.mail.answer(number, answer);
            if stream.write_all(&number.to_le_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn strikes(&self, which: impl FnOnce(&mut Shared) -> &mut u32, name: &'static str) -> bool {
        let mut shared = self.shared();
        let left = which(&mut shared);
        let strikes = *left > 0;
        *left = left.saturating_sub(1);
        if strikes {
            *shared.effects.entry(name).or_default() += 1;
        }
        strikes
    }

    fn carry_out(&self, request: Request) -> Answer {
        let Request {
            from,
            name,
            words,
            ask,
        } = request;
        let bug = self.shared().bug;
        if bug != Some(Bug::StoppedClock) {
            self.clock.set(clock::now());
        }
        let answer = match ask {
            Ask::Commit(batches) => Answer::of(self.commit(batches, bug)),
            Ask::Load(account, keys) => Answer::of(self.load(&account, keys, bug)),
            Ask::Claim(who, accounts) => {
                let asked = accounts.clone();
                let claim = |store: Backend| async move { store.claim(who, asked).await };
                let mut answer = self.backend.run(claim);
                if bug == Some(Bug::GreedyClaim) {
                    self.be_greedy(who, &accounts, &mut answer);
                }
                self.claimed(&accounts, &answer);
                Answer::of(answer)
            }
            Ask::Release(..) | Ask::Leave(_) if bug == Some(Bug::IgnoredRelease) => {
                Answer::of(IGNORED)
            }
            Ask::Release(who, accounts) => {
                for (account, epoch) in &accounts {
                    self.shared().ledger.released(account, *epoch);
                }
                let release = |store: Backend| async move { store.release(who, accounts).await };
                Answer::of(self.backend.run(release))
            }
            Ask::Leave(who) => {
                let leave = |store: Backend| async move { store.leave(who).await };
                Answer::of(self.backend.run(leave))
            }
            Ask::Other(_)
                if bug == Some(Bug::ForgottenRequest)
                    && name == "enqueue"
                    && self.shared().memory.forgets_request() =>
            {
                Answer::of(Ok(true))
            }
            Ask::Other(job) => self.backend.run(job),
        };
        self.trace.note(
            clock::now(),
            "db",
            format_args!("{from} {name} {words} = {}", answer.words),
        );
        answer
    }

    fn commit(&self, batches: Vec<Batch>, bug: Option<Bug>) -> Result<Vec<Outcome>, StoreError> {
        if bug.is_some_and(|bug| bug.answers_early(&batches)) {
            let outcomes = vec![Outcome::Committed; batches.len()];
            // So late that a crash can come in between.
            let due = clock::now() + 40_000;
            self.shared().memory.early.push((due, batches));
            return Ok(outcomes);
        }
        self.write_early(u64::MAX);
        self.write(batches, bug)
    }

    fn write(&self, asked: Vec<Batch>, bug: Option<Bug>) -> Result<Vec<Outcome>, StoreError> {
        let mut batches = asked.clone();
        if let Some(bug) = bug {
            let shared = self.shared();
            bug.thin_out(&mut batches);
            if bug == Bug::NoFence {
                shared.memory.forge(&mut batches, &shared.ledger);
            }
        }
        let outcomes = self
            .backend
            .run(|store| async move { store.commit(batches).await })?;
        let mut shared = self.shared();
        for (batch, outcome) in asked.iter().zip(&outcomes) {
            if let Some(bug) = bug {
                shared.memory.written(bug, batch, outcome);
            }
            shared.ledger.commit(clock::now(), batch, outcome);
        }
        Ok(outcomes)
    }

    /// For the bugs that answer before they write.
    async fn late_writes(&self) {
        let due = self.shared().memory.early.first().map(|(at, _)| *at);
        match due {
            Some(at) => {
                let pause = at.saturating_sub(clock::now());
                tokio::time::sleep(Duration::from_micros(pause)).await;
                self.write_early(clock::now());
            }
            None => std::future::pending().await,
        }
    }

    fn write_early(&self, until: u64) {
        loop {
            let next = {
                let mut shared = self.shared();
                match shared.memory.early.first() {
                    Some((at, _)) if *at <= until => shared.memory.early.remove(0).1,
                    _ => return,
                }
            };
            // Nobody waits for what becomes of it: that is the bug.
            let _ = self.write(next, None);
        }
    }

    fn load(
        &self,
        account: &AccountId,
        keys: Vec<Key>,
        bug: Option<Bug>,
    ) -> Result<Vec<Row>, StoreError> {
        let (whose, wanted) = (account.clone(), keys.clone());
        let mut rows = self
            .backend
            .run(|store| async move { store.load(&whose, wanted).await })?;
        if let Some(bug) = bug {
            self.shared().memory.age(bug, account, keys, &mut rows);
        }
        Ok(rows)
    }

    fn be_greedy(
        &self,
        who: Incarnation,
        accounts: &[AccountId],
        answer: &mut Result<Vec<Claim>, StoreError>,
    ) {
        let Ok(claims) = answer else { return };
        for (account, claim) in accounts.iter().zip(claims) {
            let victim = self.shared().memory.victim(account, claim);
            let Some((by, epoch)) = victim else { continue };
            let account = account.clone();
            let again = self.backend.run(|store| async move {
                store.release(by, vec![(account.clone(), epoch)]).await?;
                store.claim(who, vec![account]).await
            });
            if let Some(first) = again.ok().and_then(|claims| claims.into_iter().next()) {
                *claim = first;
            }
        }
    }

    fn claimed(&self, accounts: &[AccountId], answer: &Result<Vec<Claim>, StoreError>) {
        let Ok(claims) = answer else { return };
        if !(claims.iter()).any(|claim| matches!(claim, Claim::Granted(_))) {
            return;
        }
        let hosts = self.backend.run(|store| async move { store.hosts().await });
        let hosts = hosts.unwrap_or_default();
        let mut shared = self.shared();
        for (account, claim) in accounts.iter().zip(claims) {
            if let Claim::Granted(lease) = claim {
                shared.memory.granted(account, lease);
                let is_live = |who| {
                    let mut hosts = hosts.iter();
                    hosts.any(|host| host.who == who && host.state.is_live())
                };
                shared.ledger.granted(clock::now(), account, lease, is_live);
            }
        }
    }
}
