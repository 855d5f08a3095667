//! The store with its threads: one that writes, some that read, and futures that wait for them.
//!
//! The writer takes everything that has queued up while the disk was busy and does it in one transaction: a burst of
//! commits from many accounts costs one sync. Readers have connections of their own and see whatever was committed
//! before the call, without waiting for the writer.

use crate::{
    database::{Database, Failure, Transaction, Work, real_path},
    migrate::OpenError,
    oneshot,
    presence::Observer,
    queue::{Queue, Refused, Worker},
    watch::Watch,
};
use baton_core::state::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Change, Claim, Epoch, HandOver,
    HostInfo, HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome, Placement,
    Record, Row, Scan, Seal, Store, StoreError, Table, Term, UnixMillis,
};
use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How to open a database.
#[derive(Clone)]
pub struct Options {
    /// How long a call waits while another process writes. Then it fails as unavailable.
    pub busy: Duration,
    /// Connections that read, at least one.
    pub readers: usize,
    /// Calls that may wait for the writer, and for the readers. Beyond that a call fails as unavailable at once.
    pub queue: usize,
    /// Keep a lock file per host in `<database>.hosts`, so that a killed host is replaced at once instead of when its
    /// lease runs out. It is kept for as long as this store is open: a host joins by a handle that it keeps.
    pub presence: bool,
    /// The clock of leases: Unix milliseconds, the same for all processes that share the file. SQLite has no clock but
    /// the machine's, which is the default.
    pub clock: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            busy: Duration::from_secs(5),
            readers: 2,
            queue: 16_384,
            presence: true,
            clock: Arc::new(|| {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            busy,
            readers,
            queue,
            presence,
            clock: _,
        } = self;
        write!(
            f,
            "Options {{ busy: {busy:?}, readers: {readers}, queue: {queue}, presence: {presence} }}"
        )
    }
}

/// Accounts in a SQLite file. Clones share connections and threads; the last one to go waits for the work that is
/// queued and stops them.
///
/// A call is queued when it is made, not when its future is first polled: calls of one caller are done in the order in
/// which they were made, and a caller that drops a future has still made the call.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    options: Options,
    writes: Arc<WriteQueue>,
    reads: Arc<Queue<Box<dyn ReadJob>>>,
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    watch: Arc<Watch>,
    /// Started by the first who watches.
    watcher: Mutex<Option<JoinHandle<()>>>,
}

/// What waits for the thread that writes.
pub(crate) type WriteQueue = Queue<Box<dyn WriteJob>>;

/// Work done in one transaction at most; bounds how long the first caller waits for the last.
const GROUP: usize = 4096;

impl SqliteStore {
    /// Opens the file, creates it if there is none, and brings its tables up to date.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let (busy, presence) = (options.busy, options.presence);
        let (readers, clock) = (options.readers.max(1), Arc::clone(&options.clock));
        let mut inner = Inner {
            path: path.to_owned(),
            writes: Queue::new(options.queue),
            reads: Queue::new(options.queue),
            readers: Vec::new(),
            writer: None,
            watch: Arc::default(),
            watcher: Mutex::new(None),
            options,
        };
        let writer = Database::open(path, busy, presence, clock())?;
        let queue = Arc::clone(&inner.writes);
        inner.writer = Some(spawn(path, "baton-write", move || {
            write_loop(writer, &Worker(queue), &*clock);
        })?);
        for _ in 0..readers {
            let reader = Database::open_reader(path, busy, presence)?;
            let queue = Arc::clone(&inner.reads);
            let body = move || read_loop(&reader, &queue);
            inner.readers.push(spawn(path, "baton-read", body)?);
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Opens with a further setting of SQLite for the connection that writes.
    #[cfg(test)]
    pub(crate) fn open_with(
        path: impl AsRef<Path>,
        options: Options,
        pragma: &'static str,
    ) -> Result<Self, OpenError> {
        let store = Self::open(path, options)?;
        drop(store.write(move |transaction| Ok(transaction.set(pragma)?)));
        Ok(store)
    }

    /// Makes the writer wait until something comes through `gate`.
    #[cfg(test)]
    pub(crate) fn hold(
        &self,
        gate: std::sync::mpsc::Receiver<()>,
    ) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let (entered, inside) = std::sync::mpsc::channel();
        let call = self.write(move |_| {
            let _ = entered.send(());
            let _ = gate.recv();
            Ok(())
        });
        let _ = inside.recv();
        call
    }

    fn clock(&self) -> Arc<dyn Fn() -> UnixMillis + Send + Sync> {
        Arc::clone(&self.inner.options.clock)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    fn write<T: Send + 'static>(
        &self,
        call: impl FnMut(&mut Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Answer<T> {
        submit(&self.inner.writes, call)
    }

    /// Starts the thread that looks for news, if it does not run yet.
    fn start_watching(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        let mut watcher = inner.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.is_some() {
            return Ok(());
        }
        let cannot = |error: OpenError| StoreError::Unavailable(error.to_string());
        let Options { busy, presence, .. } = inner.options;
        let database = Database::open_reader(&inner.path, busy, presence).map_err(cannot)?;
        let observer = presence.then(|| Observer::new(&real_path(&inner.path)));
        let (watch, writes) = (Arc::clone(&inner.watch), Arc::clone(&inner.writes));
        let body = move || watch.run(&database, observer.as_ref(), &writes);
        *watcher = Some(spawn(&inner.path, "baton-watch", body).map_err(cannot)?);
        Ok(())
    }

    fn read<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(Read { call, sender });
        let refused = match self.inner.reads.push(job) {
            Ok(()) => None,
            Err(Refused::Full(_)) => Some("too many calls are waiting for the database"),
            Err(Refused::Stopped(_)) => Some(STOPPED),
        };
        Answer { refused, receiver }
    }
}

/// Queues a call for the thread that writes.
pub(crate) fn submit<T: Send + 'static>(
    writes: &WriteQueue,
    call: impl FnMut(&mut Transaction<'_>) -> Result<T, Failure> + Send + 'static,
) -> Answer<T> {
    let (sender, receiver) = oneshot::channel();
    let job = Box::new(Write {
        call,
        answer: None,
        sender,
    });
    let refused = match writes.push(job) {
        Ok(()) => None,
        Err(Refused::Full(_)) => Some("too many calls are waiting for the database"),
        Err(Refused::Stopped(_)) => Some(STOPPED),
    };
    Answer { refused, receiver }
}

const STOPPED: &str = "the thread of the database has stopped";

/// A call on its way.
pub(crate) struct Answer<T> {
    refused: Option<&'static str>,
    receiver: oneshot::Receiver<Result<T, StoreError>>,
}

impl<T> Answer<T> {
    /// Waits on this thread.
    pub(crate) fn wait(self) -> Result<T, StoreError> {
        let unavailable = |why: &str| Err(StoreError::Unavailable(why.to_owned()));
        match self.refused {
            Some(why) => unavailable(why),
            None => self.receiver.wait().unwrap_or_else(|| unavailable(STOPPED)),
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let unavailable = |why: &str| Err(StoreError::Unavailable(why.to_owned()));
        match self.refused {
            Some(why) => Poll::Ready(unavailable(why)),
            None => Pin::new(&mut self.receiver)
                .poll(context)
                .map(|answer| answer.unwrap_or_else(|| unavailable(STOPPED))),
        }
    }
}

impl Store for SqliteStore {
    fn load(
        &self,
        account: &AccountId,
        keys: Vec<Key>,
    ) -> impl Future<Output = Result<Vec<Row>, StoreError>> + Send {
        let account = account.clone();
        self.read(move |database| database.load(&account, &keys))
    }

    fn scan(
        &self,
        account: &AccountId,
        scan: Scan,
    ) -> impl Future<Output = Result<Vec<(Key, Row)>, StoreError>> + Send {
        let account = account.clone();
        self.read(move |database| database.scan(&account, &scan))
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send {
        self.write(move |transaction| transaction.commit(&batches))
    }

    fn confirm(
        &self,
        terms: Vec<(AccountId, Term)>,
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send {
        self.write(move |transaction| transaction.confirm(&terms))
    }

    fn create_account(
        &self,
        business: &BusinessId,
        name: &str,
    ) -> impl Future<Output = Result<AccountId, StoreError>> + Send {
        let (business, name) = (business.clone(), name.to_owned());
        self.write(move |transaction| transaction.create_account(&business, &name))
    }

    fn delete_account(
        &self,
        account: &AccountId,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.delete_account(&account))
    }

    fn accounts(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<AccountInfo>, StoreError>> + Send {
        let (business, clock) = (business.clone(), self.clock());
        self.read(move |database| database.accounts(&business, clock()))
    }

    fn tenants(&self) -> impl Future<Output = Result<Vec<BusinessId>, StoreError>> + Send {
        self.read(Database::tenants)
    }

    fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.enqueue(&account, &id, &request, at))
    }

    fn retain(
        &self,
        account: &AccountId,
        table: Table,
        before: UnixMillis,
        limit: u32,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.retain(&account, table, before, limit))
    }

    fn join(
        &self,
        who: Incarnation,
        info: HostInfo,
        ttl: Micros,
    ) -> impl Future<Output = Result<u16, StoreError>> + Send {
        self.write(move |transaction| transaction.join(who, &info, ttl))
    }

    fn beat(
        &self,
        who: Incarnation,
        beat: Beat,
    ) -> impl Future<Output = Result<Beaten, StoreError>> + Send {
        self.write(move |transaction| transaction.beat(who, beat))
    }

    fn hosts(&self) -> impl Future<Output = Result<Vec<HostView>, StoreError>> + Send {
        let clock = self.clock();
        self.read(move |database| database.hosts(clock()))
    }

    fn drain(
        &self,
        who: Incarnation,
        drain: bool,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        self.write(move |transaction| transaction.drain(who, drain))
    }

    fn declare_dead(
        &self,
        by: Incarnation,
        dead: Incarnation,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        self.write(move |transaction| transaction.declare_dead(by, dead))
    }

    fn leave(&self, who: Incarnation) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.write(move |transaction| transaction.leave(who))
    }

    fn claim(
        &self,
        who: Incarnation,
        accounts: Vec<AccountId>,
    ) -> impl Future<Output = Result<Vec<Claim>, StoreError>> + Send {
        self.write(move |transaction| transaction.claim(who, &accounts))
    }

    fn release(
        &self,
        who: Incarnation,
        accounts: Vec<(AccountId, Epoch)>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.write(move |transaction| transaction.release(who, &accounts))
    }

    fn hand_over(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
        to: Incarnation,
    ) -> impl Future<Output = Result<HandOver, StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.hand_over(who, &account, epoch, to))
    }

    fn held(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<(AccountId, Lease)>, StoreError>> + Send {
        self.read(move |database| database.held(who))
    }

    fn orphans(
        &self,
        after: Option<AccountId>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Orphan>, StoreError>> + Send {
        let clock = self.clock();
        self.read(move |database| database.orphans(after.as_ref(), limit, clock()))
    }

    fn misplaced(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<(AccountId, Placement)>, StoreError>> + Send {
        self.read(move |database| database.misplaced(who))
    }

    fn mail(
        &self,
        who: Incarnation,
    ) -> impl Future<Output = Result<Vec<AccountId>, StoreError>> + Send {
        self.read(move |database| database.mail(who))
    }

    fn place(
        &self,
        account: &AccountId,
        placement: Placement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.place(&account, &placement))
    }

    fn retire(
        &self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.retire(who, &account, epoch))
    }

    fn history(&self) -> impl Future<Output = Result<Seal, StoreError>> + Send {
        self.read(Database::history)
    }

    fn renew_history(&self, now: Seal) -> impl Future<Output = Result<Seal, StoreError>> + Send {
        self.write(move |transaction| transaction.renew_history(now))
    }

    async fn watch(&self, who: Incarnation) -> Result<Change, StoreError> {
        self.start_watching()?;
        self.inner.watch.watch(who).await
    }

    fn vault(
        &self,
        business: &BusinessId,
    ) -> impl Future<Output = Result<Vec<(u32, Record)>, StoreError>> + Send {
        let business = business.clone();
        self.read(move |database| database.vault(&business))
    }

    fn swap_vault(
        &self,
        business: &BusinessId,
        number: u32,
        old: Option<Record>,
        new: Option<Record>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let business = business.clone();
        self.write(move |transaction| {
            transaction.swap_vault(&business, number, old.as_ref(), new.as_ref())
        })
    }

    fn swap_records(
        &self,
        account: &AccountId,
        records: Vec<(Key, Record, Record)>,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send {
        let account = account.clone();
        self.write(move |transaction| transaction.swap_records(&account, &records))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteStore({})", self.inner.path.display())
    }
}

fn spawn(
    path: &Path,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map_err(|error| OpenError::from_io(path, &error))
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Who watches waits for the writer.
        self.watch.stop();
        let watcher = self
            .watcher
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        join(watcher.take());
        // Then readers: the connection that closes last, alone, copies the log into the file and removes it.
        self.reads.close();
        join(self.readers.drain(..));
        self.writes.close();
        join(self.writer.take());
    }
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        // An answer may wake a task that holds the last handle, and drop it there: a thread cannot join itself.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

fn write_loop(
    mut database: Database,
    worker: &Worker<Box<dyn WriteJob>>,
    clock: &(dyn Fn() -> UnixMillis + Send + Sync),
) {
    loop {
        let mut jobs = worker.0.take(GROUP);
        if jobs.is_empty() {
            return;
        }
        let mut work: Vec<&mut dyn Work> = jobs.iter_mut().map(|job| job.work()).collect();
        database.transact(&mut work, clock);
        for job in jobs {
            job.finish();
        }
    }
}

fn read_loop(database: &Database, queue: &Arc<Queue<Box<dyn ReadJob>>>) {
    let _worker = Worker(Arc::clone(queue));
    loop {
        // One at a time: the other readers want some too.
        let jobs = queue.take(1);
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            job.run(database);
        }
    }
}

/// A call that writes, and whoever waits for it.
pub(crate) trait WriteJob: Send {
    fn work(&mut self) -> &mut dyn Work;
    /// The transaction is over: gives the answer.
    fn finish(self: Box<Self>);
}

struct Write<T, F> {
    call: F,
    answer: Option<Result<T, StoreError>>,
    sender: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Work for Write<T, F>
where
    F: FnMut(&mut Transaction<'_>) -> Result<T, Failure>,
{
    fn attempt(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error> {
        self.answer = Some(match (self.call)(transaction) {
            Ok(value) => Ok(value),
            Err(Failure::Answer(error)) => Err(error),
            Err(Failure::Transaction(error)) => return Err(error),
        });
        Ok(())
    }

    fn fail(&mut self, error: StoreError) {
        self.answer = Some(Err(error));
    }
}

impl<T, F> WriteJob for Write<T, F>
where
    T: Send,
    F: FnMut(&mut Transaction<'_>) -> Result<T, Failure> + Send,
{
    fn work(&mut self) -> &mut dyn Work {
        self
    }

    fn finish(self: Box<Self>) {
        if let Some(answer) = self.answer {
            self.sender.send(answer);
        }
    }
}

/// A call that reads, and whoever waits for it.
trait ReadJob: Send {
    fn run(self: Box<Self>, database: &Database);
}

struct Read<T, F> {
    call: F,
    sender: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> ReadJob for Read<T, F>
where
    T: Send,
    F: FnOnce(&Database) -> Result<T, StoreError> + Send,
{
    fn run(self: Box<Self>, database: &Database) {
        let Self { call, sender } = *self;
        sender.send(call(database));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::conformance::block_on;

    fn open() -> (tempfile::TempDir, SqliteStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path().join("db"), Options::default()).unwrap();
        (directory, store)
    }

    fn unavailable<T: fmt::Debug>(answer: Result<T, StoreError>) -> bool {
        matches!(answer, Err(StoreError::Unavailable(_)))
    }

    #[test]
    fn a_dead_writer_answers_everybody() {
        let (_directory, store) = open();
        let business = BusinessId::default();
        let id = block_on(store.create_account(&business, "main")).unwrap();
        let death = store.write(|_| -> Result<(), Failure> { panic!("a bug, on purpose") });
        // Queued behind the one that kills the thread, or refused because it is dead already: never left waiting.
        let behind: Vec<_> = (0..50)
            .map(|_| store.place(&id, Placement::default()))
            .collect();
        assert!(unavailable(block_on(death)));
        for call in behind {
            assert!(unavailable(block_on(call)));
        }
        assert!(unavailable(block_on(
            store.create_account(&business, "other")
        )));
        // Readers live on.
        assert_eq!(block_on(store.accounts(&business)).unwrap().len(), 1);
    }

    #[test]
    fn calls_beyond_the_bound_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            queue: 4,
            ..Options::default()
        };
        let store = SqliteStore::open(directory.path().join("db"), options).unwrap();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let blocker = store.hold(gate);
        let business = BusinessId::default();
        let names: Vec<_> = (0..6).map(|n| format!("a{n}")).collect();
        let calls: Vec<_> = names
            .iter()
            .map(|name| store.create_account(&business, name))
            .collect();
        open.send(()).unwrap();
        block_on(blocker).unwrap();
        let refused: Vec<_> = calls
            .into_iter()
            .map(|call| unavailable(block_on(call)))
            .collect();
        assert_eq!(refused, [false, false, false, false, true, true]);
    }

    #[test]
    fn reading_does_not_wait_for_writing() {
        let (_directory, store) = open();
        let id = block_on(store.create_account(&BusinessId::default(), "main")).unwrap();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let writer = store.hold(gate);
        assert_eq!(
            block_on(store.load(&id, vec![Key::Counters])),
            Ok(vec![Row::Absent])
        );
        open.send(()).unwrap();
        block_on(writer).unwrap();
    }

    #[test]
    fn the_last_handle_finishes_what_is_queued() {
        let (directory, store) = open();
        for n in 0..100 {
            drop(store.create_account(&BusinessId::default(), &format!("a{n}")));
        }
        drop(store);
        let store = SqliteStore::open(directory.path().join("db"), Options::default()).unwrap();
        assert_eq!(
            block_on(store.accounts(&BusinessId::default()))
                .unwrap()
                .len(),
            100
        );
    }
}
