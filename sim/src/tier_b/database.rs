//! The database host: takes calls from the network, one at a time, and keeps books of them.

use super::{
    backend::{Backend, StoreClock},
    clock,
    judge::Ledger,
    net::{Network, SimStream},
    remote::{Answer, Ask, DATABASE, Mail, Request},
    trace::Trace,
};
use baton_core::{
    crypto::Rng,
    state::{
        AccountId, Batch, Claim, Epoch, Incarnation, Key, Lease, Outcome, Record, Row, Seq,
        Store as _, StoreError, Table,
    },
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use turmoil::net::TcpListener;

/// An old mistake, put back into the database host or the way to it, to see which judge finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Batches with a send in them are answered before they are written, as if the gate were open: what they allow is
    /// on the wire before it is durable.
    SentBeforeCommit,
    /// The same for batches with an event in them: acknowledged before it is kept.
    AckBeforeKeep,
    /// Whoever sends a batch may write it: epoch, holder and number are not looked at.
    NoFence,
    /// A new owner is given the sessions as they were one write ago.
    StaleSession,
    /// Nobody's lease ends before its time: releasing and leaving are ignored.
    IgnoredRelease,
    /// A claim takes an account away from a live host.
    GreedyClaim,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SentBeforeCommit,
        Self::AckBeforeKeep,
        Self::NoFence,
        Self::StaleSession,
        Self::IgnoredRelease,
        Self::GreedyClaim,
    ];
}

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
    /// For bugs: the rights given last, and rows as they were one write before.
    given: BTreeMap<AccountId, Lease>,
    before: BTreeMap<(AccountId, Key), (Option<Record>, Option<Record>)>,
    served: BTreeMap<(AccountId, Key), Epoch>,
    early: Vec<(u64, Vec<Batch>)>,
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
            given: BTreeMap::new(),
            before: BTreeMap::new(),
            served: BTreeMap::new(),
            early: Vec::new(),
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
        self.clock.set(clock::now());
        let bug = self.shared().bug;
        let answer = match ask {
            Ask::Commit(batches) => Answer::of(self.commit(batches, bug)),
            Ask::Load(account, keys) => Answer::of(self.load(&account, keys, bug)),
            Ask::Claim(who, accounts) => {
                let mut answer = Backend::run(self.backend.claim(who, accounts.clone()));
                if bug == Some(Bug::GreedyClaim) {
                    self.be_greedy(who, &accounts, &mut answer);
                }
                self.claimed(&accounts, &answer);
                Answer::of(answer)
            }
            Ask::Release(..) | Ask::Leave(_) if bug == Some(Bug::IgnoredRelease) => {
                Answer::of(Ok::<(), StoreError>(()))
            }
            Ask::Release(who, accounts) => {
                Answer::of(Backend::run(self.backend.release(who, accounts)))
            }
            Ask::Leave(who) => Answer::of(Backend::run(self.backend.leave(who))),
            Ask::Other(job) => Backend::run(job(self.backend.clone())),
        };
        self.trace.note(
            clock::now(),
            "db",
            format_args!("{from} {name} {words} = {}", answer.words),
        );
        answer
    }

    fn commit(&self, batches: Vec<Batch>, bug: Option<Bug>) -> Result<Vec<Outcome>, StoreError> {
        let holds = |table| {
            batches
                .iter()
                .any(|batch| batch.rows.keys().any(|key| key.table() == table))
        };
        let early = match bug {
            Some(Bug::SentBeforeCommit) => holds(Table::Outbox),
            Some(Bug::AckBeforeKeep) => holds(Table::Seen),
            _ => false,
        };
        if early {
            let outcomes = vec![Outcome::Committed; batches.len()];
            // So late that a crash can come in between.
            self.shared().early.push((clock::now() + 40_000, batches));
            return Ok(outcomes);
        }
        self.write_early(u64::MAX);
        self.write(batches, bug)
    }

    fn write(&self, mut batches: Vec<Batch>, bug: Option<Bug>) -> Result<Vec<Outcome>, StoreError> {
        let asked = batches.clone();
        if bug == Some(Bug::NoFence) {
            let shared = self.shared();
            for batch in &mut batches {
                if let Some(lease) = shared.given.get(&batch.account) {
                    batch.term = lease.term;
                    batch.seq = shared
                        .ledger
                        .applied(&batch.account)
                        .unwrap_or(lease.applied);
                    batch.seq = Seq(batch.seq.0 + 1);
                }
            }
        }
        let outcomes = Backend::run(self.backend.commit(batches.clone()))?;
        let mut shared = self.shared();
        for (batch, outcome) in asked.iter().zip(&outcomes) {
            if bug == Some(Bug::StaleSession) && *outcome == Outcome::Committed {
                for (key, record) in &batch.rows {
                    let place = (batch.account.clone(), key.clone());
                    let history = shared.before.entry(place).or_default();
                    history.0 = history.1.take();
                    history.1 = record.clone();
                }
            }
            shared.ledger.commit(clock::now(), batch, outcome);
        }
        Ok(outcomes)
    }

    /// For the bugs that answer before they write.
    async fn late_writes(&self) {
        let due = self.shared().early.first().map(|(at, _)| *at);
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
                match shared.early.first() {
                    Some((at, _)) if *at <= until => shared.early.remove(0).1,
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
        let mut rows = Backend::run(self.backend.load(account, keys.clone()))?;
        if bug == Some(Bug::StaleSession) {
            let mut shared = self.shared();
            let Some(epoch) = shared.given.get(account).map(|lease| lease.term.epoch) else {
                return Ok(rows);
            };
            for (key, row) in keys.into_iter().zip(&mut rows) {
                let is_session = matches!(key, Key::Session(_));
                let place = (account.clone(), key);
                let served = shared.served.insert(place.clone(), epoch);
                if is_session
                    && served.is_some_and(|before| before < epoch)
                    && let Some((Some(old), _)) = shared.before.get(&place)
                {
                    *row = Row::Present(old.clone());
                }
            }
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
            if let Claim::Held { by } = claim {
                let epoch = self
                    .shared()
                    .given
                    .get(account)
                    .map(|lease| lease.term.epoch);
                let Some(epoch) = epoch else { continue };
                let mine = vec![(account.clone(), epoch)];
                if Backend::run(self.backend.release(*by, mine)).is_ok()
                    && let Ok(again) = Backend::run(self.backend.claim(who, vec![account.clone()]))
                    && let Some(first) = again.into_iter().next()
                {
                    *claim = first;
                }
            }
        }
    }

    fn claimed(&self, accounts: &[AccountId], answer: &Result<Vec<Claim>, StoreError>) {
        let Ok(claims) = answer else { return };
        let mut shared = self.shared();
        for (account, claim) in accounts.iter().zip(claims) {
            if let Claim::Granted(lease) = claim {
                shared.given.insert(account.clone(), *lease);
                shared.ledger.granted(clock::now(), account, lease);
            }
        }
    }
}
