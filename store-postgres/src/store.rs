//! The store as its users hold it: a handle on connections, lanes and a runtime.

use crate::{
    accounts,
    commit::{Job, Lane, Work, within},
    error::Failure,
    hosts::{self, Ground},
    open::{self, Durability, OpenError, Replication},
    ownership,
    pool::Pool,
    presence::{Presence, Seats},
    rows,
};
use baton_core::state::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Change, Claim, Epoch, HandOver,
    HostInfo, HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome, Placement,
    Record, Row, Scan, Seal, Store, StoreError, Table, Term, UnixMillis,
};
use std::{
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

/// How to use a database.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at most, whatever the number of accounts. 10 to 20 are enough for a host.
    pub connections: usize,
    /// Commits under way at the same time, each on a connection of its own; more than a few only make groups smaller.
    pub lanes: usize,
    /// Calls of `commit` that may wait for a lane. Beyond that a call fails as unavailable at once.
    pub queue: usize,
    /// Businesses whose batches may share a transaction. While it runs, row-level security lets it see
    /// these and no others. 1 makes every transaction one business's, at the price of smaller groups.
    pub tenants: usize,
    /// How long to wait for a connection to one server.
    pub connect: Duration,
    /// The server ends a statement after so long.
    pub statement: Duration,
    /// The server ends a wait for a lock after so long.
    pub lock: Duration,
    /// The server ends a transaction that has nothing to do for so long: its process is frozen or gone, and the next owner
    /// waits for what it has locked. So it is over before presence tells that the host is gone.
    pub idle_in_transaction: Duration,
    /// A call is over after so long, whatever the server does; its connection is closed. Bounds what the server does
    /// not, such as the wait for a synchronous standby.
    pub deadline: Duration,
    /// The role that transactions run as, so that neither the owner of the tables nor a superuser ever reads a row.
    /// `None`: as the login of the URL, which then has to be such a role itself.
    pub role: Option<String>,
    /// Bring the schema up to date when opening, and create the role. Takes a login that may do that.
    pub migrate: bool,
    /// There is a pooler in transaction mode between us and the server: no prepared statements are kept, and limits
    /// are set in each transaction instead of once per connection.
    pub pooler: bool,
    /// A URL of the same database that leads to the server itself, for sessions that have to last: see [`Presence`].
    /// `None`: the URL of the store, unless that leads to a pooler.
    pub direct_url: Option<String>,
    /// Show the hosts that join here as present, and look after their neighbours. Two more connections per host.
    pub presence: bool,
    /// The server ends the session of a host that has been silent for so long: it is frozen or cut off.
    pub presence_idle: Duration,
    /// Do not open, and do not commit, unless commits wait for a synchronous standby.
    pub require_sync: bool,
    /// What the server calls our connections.
    pub application_name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 16,
            lanes: 4,
            queue: 16_384,
            tenants: 256,
            connect: Duration::from_secs(5),
            statement: Duration::from_secs(10),
            lock: Duration::from_secs(2),
            idle_in_transaction: Duration::from_secs(2),
            deadline: Duration::from_secs(15),
            role: Some("baton_app".to_owned()),
            migrate: true,
            pooler: false,
            direct_url: None,
            presence: true,
            presence_idle: Duration::from_secs(3),
            require_sync: false,
            application_name: "baton".to_owned(),
        }
    }
}

/// What the store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches handed to a transaction.
    pub batches: u64,
    /// Transactions begun, for whatever call.
    pub transactions: u64,
    /// Statements sent, `BEGIN` and `COMMIT` included: about the number of round trips.
    pub statements: u64,
}

/// Accounts in a PostgreSQL database. Clones share connections and lanes.
///
/// Calls run on the runtime that opened the store; their futures can be awaited anywhere. A call that is dropped goes
/// on to its end. Commits of one account reach the database in the order of the calls.
#[derive(Clone)]
pub struct PgStore {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Arc<Pool>,
    runtime: Handle,
    lanes: Vec<mpsc::Sender<Job>>,
    seats: Arc<Seats>,
    deadline: Duration,
    batches: Arc<AtomicU64>,
}

impl PgStore {
    /// Opens the database at `url`: `postgres://user:password@host:port/database?…`, several hosts separated by
    /// commas. Of several, the one that can write is used, also after they have changed places.
    ///
    /// Checks that the server can be relied on and brings the schema up to date. Has to be called in a tokio runtime,
    /// which the store then lives in.
    pub async fn connect(url: &str, options: Options) -> Result<Self, OpenError> {
        let pool = Arc::new(Pool::new(url, &options)?);
        open::prepare(&pool, &options).await?;
        let seats = Arc::new(Seats::new(url, &options, &pool)?);
        let batches = Arc::new(AtomicU64::new(0));
        let runtime = Handle::current();
        let lane = Lane {
            pool: Arc::clone(&pool),
            deadline: options.deadline,
            tenants: options.tenants,
            synchronous: options.require_sync,
            batches: Arc::clone(&batches),
        };
        let lanes = (0..options.lanes.max(1))
            .map(|_| {
                let (sender, queue) = mpsc::channel(options.queue.max(1));
                runtime.spawn(lane.clone().run(queue));
                sender
            })
            .collect();
        Ok(Self {
            inner: Arc::new(Inner {
                pool,
                runtime,
                lanes,
                seats,
                deadline: options.deadline,
                batches,
            }),
        })
    }

    /// Counters, for metrics and benches.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            batches: self.inner.batches.load(Ordering::Relaxed),
            transactions: self.inner.pool.transactions.load(Ordering::Relaxed),
            statements: self.inner.pool.statements.load(Ordering::Relaxed),
        }
    }

    /// What a commit survives, as the server is set up now.
    pub fn durability(
        &self,
    ) -> impl Future<Output = Result<Durability, StoreError>> + Send + use<> {
        let pool = self.pool();
        self.call(async move {
            let mut transaction = pool.begin_with("BEGIN").await.map_err(Failure::begin)?;
            let read = Replication::read(&mut transaction).await;
            let result = read.map(|found| found.durability()).map_err(Failure::from);
            transaction.finish(result).await
        })
    }

    /// Whether hosts that join through this store show themselves present, and learn at once of those who end.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.inner.seats.presence()
    }

    /// Starts `work` at once and waits for it.
    fn call<T, W>(&self, work: W) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let deadline = self.inner.deadline;
        let task = self.inner.runtime.spawn(within(deadline, work));
        async move {
            match task.await {
                Ok(answer) => answer.map_err(StoreError::from),
                Err(_) => Err(StoreError::Unavailable(STOPPED.to_owned())),
            }
        }
    }

    /// Puts each item into the lane of its account, at once, and waits for all answers.
    fn in_lanes<T>(
        &self,
        items: Vec<T>,
        account: fn(&T) -> &AccountId,
        work: fn(Vec<T>) -> Work,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send + use<T> {
        let count = items.len();
        let mut lanes: Vec<(Vec<usize>, Vec<T>)> = self
            .inner
            .lanes
            .iter()
            .map(|_| Default::default())
            .collect();
        for (place, item) in items.into_iter().enumerate() {
            let lane = self.lane(account(&item));
            if let Some((places, items)) = lanes.get_mut(lane) {
                places.push(place);
                items.push(item);
            }
        }
        let mut parts = Vec::new();
        for (queue, (places, items)) in self.inner.lanes.iter().zip(lanes) {
            if places.is_empty() {
                continue;
            }
            let (sender, receiver) = oneshot::channel();
            let job = Job {
                work: work(items),
                answer: sender,
            };
            let answer = match queue.try_send(job) {
                Ok(()) => Ok(receiver),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Err("too many calls are waiting for the database")
                }
                Err(mpsc::error::TrySendError::Closed(_)) => Err(STOPPED),
            };
            let answer = answer.map_err(|why| StoreError::Unavailable(why.to_owned()));
            parts.push(Part { places, answer });
        }
        async move {
            let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
            let mut failed = None;
            for part in parts {
                let answer = match part.answer {
                    Ok(receiver) => receiver
                        .await
                        .unwrap_or_else(|_| Err(StoreError::Unavailable(STOPPED.to_owned()))),
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(answer) => {
                        for (place, outcome) in part.places.into_iter().zip(answer) {
                            if let Some(slot) = outcomes.get_mut(place) {
                                *slot = Some(outcome);
                            }
                        }
                    }
                    Err(error) => failed = Some(error),
                }
            }
            let lost = || StoreError::Unavailable("an outcome has been lost".to_owned());
            match failed {
                Some(error) => Err(error),
                None => outcomes.into_iter().collect::<Option<_>>().ok_or_else(lost),
            }
        }
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.inner.pool)
    }

    /// The lane of an account: always the same one, so that its batches stay in order.
    fn lane(&self, account: &AccountId) -> usize {
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        (hasher.finish() % self.inner.lanes.len() as u64) as usize
    }
}

const STOPPED: &str = "the runtime of the store has stopped";

/// The part of a call that one lane does: which of its batches, and where the answer comes.
struct Part {
    places: Vec<usize>,
    answer: Result<oneshot::Receiver<Result<Vec<Outcome>, StoreError>>, StoreError>,
}

impl Store for PgStore {
    fn load(
        &self,
        account: &AccountId,
        keys: Vec<Key>,
    ) -> impl Future<Output = Result<Vec<Row>, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { rows::load(&pool, &account, &keys).await })
    }

    fn scan(
        &self,
        account: &AccountId,
        scan: Scan,
    ) -> impl Future<Output = Result<Vec<(Key, Row)>, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { rows::scan(&pool, &account, &scan).await })
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send {
        self.in_lanes(batches, |batch| &batch.account, Work::Commit)
    }

    fn confirm(
        &self,
        terms: Vec<(AccountId, Term)>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send {
        self.in_lanes(terms, |(account, _)| account, Work::Confirm)
    }

    fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> impl Future<Output = Result<AccountId, StoreError>> + Send {
        let (pool, business, name) = (self.pool(), business.clone(), name.to_owned());
        self.call(async move { accounts::create_account(&pool, &business, &name).await })
    }

    fn accounts(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<AccountInfo>, StoreError>> + Send {
        let (pool, business) = (self.pool(), business.clone());
        self.call(async move { accounts::accounts(&pool, &business).await })
    }

    fn delete_account(
        &self,
        account: &AccountId,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { accounts::delete_account(&pool, &account).await })
    }

    fn tenants(&self) -> impl Future<Output = Result<Vec<BusinessId>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { accounts::tenants(&pool).await })
    }

    fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { rows::enqueue(&pool, &account, &id, &request, at).await })
    }

    fn retain(
        &self,
        account: &AccountId,
        table: Table,
        before: UnixMillis,
        limit: u32,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { rows::retain(&pool, &account, table, before, limit).await })
    }

    fn join(
        &self,
        who: Incarnation,
        info: HostInfo,
        ttl: Micros,
    ) -> impl Future<Output = Result<u16, StoreError>> + Send {
        let (pool, seats) = (self.pool(), Arc::clone(&self.inner.seats));
        self.call(async move {
            let slot = hosts::join(&pool, who, &info, ttl).await?;
            seats.sit(who, slot);
            Ok(slot)
        })
    }

    fn beat(
        &self,
        who: Incarnation,
        beat: Beat,
    ) -> impl Future<Output = Result<Beaten, StoreError>> + Send {
        let (pool, seats) = (self.pool(), Arc::clone(&self.inner.seats));
        self.call(async move {
            let (beaten, peers) = hosts::beat(&pool, who, beat).await?;
            match &beaten {
                Beaten::Renewed(_) => seats.look(who, peers),
                Beaten::Dead => seats.leave(who),
            }
            Ok(beaten)
        })
    }

    fn hosts(&self) -> impl Future<Output = Result<Vec<HostView>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { hosts::hosts(&pool).await })
    }

    fn drain(
        &self,
        who: Incarnation,
        drain: bool,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { hosts::drain(&pool, who, drain).await })
    }

    fn declare_dead(
        &self,
        by: Incarnation,
        dead: Incarnation,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { hosts::declare_dead(&pool, by, dead, Ground::Word).await })
    }

    fn leave(&self, who: Incarnation) -> impl Future<Output = Result<(), StoreError>> + Send {
        let (pool, seats) = (self.pool(), Arc::clone(&self.inner.seats));
        self.call(async move {
            hosts::leave(&pool, who).await?;
            // Not before: the end of its session would look like the end of its process.
            seats.leave(who);
            Ok(())
        })
    }

    fn claim(
        &self,
        who: Incarnation,
        accounts: Vec<AccountId>,
    ) -> impl Future<Output = Result<Vec<Claim>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { ownership::claim(&pool, who, &accounts).await })
    }

    fn release(
        &self,
        who: Incarnation,
        accounts: Vec<(AccountId, Epoch)>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { ownership::release(&pool, who, &accounts).await })
    }

    fn hand_over(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
        to: Incarnation,
    ) -> impl Future<Output = Result<HandOver, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { ownership::hand_over(&pool, who, &account, epoch, to).await })
    }

    fn held(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<(AccountId, Lease)>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { ownership::held(&pool, who).await })
    }

    fn orphans(
        &self,
        after: Option<AccountId>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Orphan>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { ownership::orphans(&pool, after.as_ref(), limit).await })
    }

    fn misplaced(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<(AccountId, Placement)>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { ownership::misplaced(&pool, who).await })
    }

    fn mail(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<AccountId>, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { ownership::mail(&pool, who).await })
    }

    fn place(
        &self,
        account: &AccountId,
        placement: Placement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { accounts::place(&pool, &account, &placement).await })
    }

    fn retire(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { ownership::retire(&pool, who, &account, epoch).await })
    }

    fn history(&self) -> impl Future<Output = Result<Seal, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { hosts::history(&pool).await })
    }

    fn renew_history(&self, now: Seal) -> impl Future<Output = Result<Seal, StoreError>> + Send {
        let pool = self.pool();
        self.call(async move { hosts::renew_history(&pool, now).await })
    }

    fn watch(&self, who: Incarnation) -> impl Future<Output = Result<Change, StoreError>> + Send {
        let seats = Arc::clone(&self.inner.seats);
        async move { Ok(seats.watch(who).await) }
    }

    fn vault(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<(u32, Record)>, StoreError>> + Send {
        let (pool, business) = (self.pool(), business.clone());
        self.call(async move { accounts::vault(&pool, &business).await })
    }

    fn swap_vault(
        &self,
        business: &BusinessId,
        number: u32,
        old: Option<Record>,
        new: Option<Record>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let (pool, business) = (self.pool(), business.clone());
        self.call(async move {
            accounts::swap_vault(&pool, &business, number, old.as_ref(), new.as_ref()).await
        })
    }

    fn swap_records(
        &self,
        account: &AccountId,
        records: Vec<(Key, Record, Record)>,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send {
        let (pool, account) = (self.pool(), account.clone());
        self.call(async move { rows::swap_records(&pool, &account, &records).await })
    }
}

impl fmt::Debug for PgStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgStore({})", self.inner.pool.place())
    }
}
