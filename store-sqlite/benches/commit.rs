//! What a commit costs, beside what the disk asks for a sync and beside plain inserts of the same durability.
//!
//! `cargo bench -p baton-store-sqlite` prints Markdown tables. The files are in the temporary directory (`TMPDIR`
//! chooses the disk; in a tmpfs a sync costs nothing, and what is left is the work). `SECONDS` is how long each row
//! of a table is measured, 3 unless given.
//!
//! * A *message* is what receiving one writes: counters, session of 1.5 kB, event, duplicate mark; one batch.
//! * *n accounts*: that many engines, each with one batch under way: it sends the next when the last is answered.
//! * *n rows*: one account, one batch of so many rows of 300 bytes at a time.

use baton_core::state::{
    AccountId, Batch, Beat, BusinessId, Claim, EventSeq, HostInfo, Incarnation, Key, Micros,
    Outcome, Record, Seq, Store, StoreError, Term, UnixMillis, conformance::block_on,
};
use baton_store_sqlite::{Options, SqliteStore};
use bytes::Bytes;
use std::{
    fs::File,
    future::Future,
    io::Write,
    pin::Pin,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

const HOST: Incarnation = Incarnation(1);
const DAY: Micros = Micros::from_secs(86_400);

struct Account {
    id: AccountId,
    term: Term,
    seq: Seq,
}

impl Account {
    fn create(store: &SqliteStore, name: &str) -> Self {
        let id = block_on(store.create_account(&BusinessId::default(), name)).expect("create");
        match block_on(store.claim(HOST, vec![id.clone()])).expect("claim")[..] {
            [Claim::Granted(lease)] => Self {
                id,
                term: lease.term,
                seq: lease.applied,
            },
            ref other => unreachable!("a new account is free: {other:?}"),
        }
    }

    fn batch(&mut self, rows: impl IntoIterator<Item = (Key, usize)>) -> Batch {
        self.seq = self.seq.next();
        let content = |bytes| Some(Record(Bytes::from(vec![self.seq.0 as u8; bytes])));
        Batch {
            account: self.id.clone(),
            term: self.term,
            seq: self.seq,
            reseal: false,
            at: UnixMillis(0),
            rows: rows
                .into_iter()
                .map(|(key, bytes)| (key, content(bytes)))
                .collect(),
        }
    }

    fn message(&mut self) -> Batch {
        let n = self.seq.0 + 1;
        let mut mark = [0; 32];
        mark[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let peer = baton_core::jid::Jid::lid("100000000000001").expect("a LID");
        self.batch([
            (Key::Counters, 24),
            (Key::Session(peer.with_device((n % 8) as u16)), 1500),
            (Key::Inbox(EventSeq(n)), 400),
            (Key::Seen(mark), 0),
        ])
    }
}

/// A store in a directory of its own, with one host.
fn open() -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("bench.db");
    let store = SqliteStore::open(path, Options::default()).expect("open");
    block_on(store.join(HOST, HostInfo::named("bench"), DAY)).expect("join");
    (directory, store)
}

/// How long each of many things took, and how long all of them together.
#[derive(Default)]
struct Times {
    each: Vec<Duration>,
    all: Duration,
}

impl Times {
    /// Does something over and over.
    fn of(length: Duration, mut act: impl FnMut()) -> Self {
        let mut times = Self::default();
        let begin = Instant::now();
        while begin.elapsed() < length {
            let start = Instant::now();
            act();
            times.each.push(start.elapsed());
        }
        times.all = begin.elapsed();
        times
    }

    /// A line of a table; `per` things are done in each.
    fn print(mut self, what: &str, per: usize) {
        self.each.sort_unstable();
        let at = |share: f64| {
            let last = self.each.len() - 1;
            self.each[(last as f64 * share).round() as usize].as_secs_f64() * 1e3
        };
        let rate = (self.each.len() * per) as f64 / self.all.as_secs_f64();
        println!(
            "| {what} | {rate:.0} | {:.2} ms | {:.2} ms | {:.1} µs |",
            at(0.5),
            at(0.99),
            1e6 / rate
        );
    }
}

fn table(what: &str, unit: &str) {
    println!("\n| {what} | {unit} per second | p50 | p99 | time for each |");
    println!("|---|---|---|---|---|");
}

/// Names the account whose answer has come.
struct Bell(usize, Sender<usize>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.1.send(self.0);
    }
}

/// Every account has one call under way until the time is up: the answer to one brings the next.
fn closed_loop(store: &SqliteStore, accounts: &mut [Account], length: Duration) -> Times {
    type Call<'a> = Pin<Box<dyn Future<Output = Result<Vec<Outcome>, StoreError>> + 'a>>;
    let (sender, woken) = channel();
    let wakers: Vec<Waker> = (0..accounts.len())
        .map(|n| Waker::from(Arc::new(Bell(n, sender.clone()))))
        .collect();
    let mut calls: Vec<Option<(Instant, Call<'_>)>> = accounts.iter().map(|_| None).collect();
    let mut times = Times::default();
    let begin = Instant::now();
    for n in 0..accounts.len() {
        let _ = sender.send(n);
    }
    let mut open = accounts.len();
    while open > 0 {
        let n = woken.recv().expect("we hold a sender");
        let mut context = Context::from_waker(&wakers[n]);
        loop {
            if let Some((start, call)) = &mut calls[n] {
                let Poll::Ready(answer) = call.as_mut().poll(&mut context) else {
                    break;
                };
                assert_eq!(answer, Ok(vec![Outcome::Committed]));
                times.each.push(start.elapsed());
                calls[n] = None;
            }
            if begin.elapsed() >= length {
                open -= 1;
                break;
            }
            let call = Box::pin(store.commit(vec![accounts[n].message()]));
            calls[n] = Some((Instant::now(), call));
        }
    }
    times.all = begin.elapsed();
    times
}

fn floor(length: Duration) {
    table("the floor", "syncs or commits");
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = File::create(directory.path().join("log")).expect("a file");
    Times::of(length, || {
        file.write_all(&[7; 4096]).expect("write");
        file.sync_data().expect("sync");
    })
    .print("4 kB appended to a file and synced", 1);
    for (rows, bytes) in [(1, 300), (4, 500)] {
        let path = directory.path().join(format!("plain-{rows}.db"));
        let connection = rusqlite::Connection::open(path).expect("open");
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE plain (id INTEGER PRIMARY KEY, record BLOB) STRICT;",
            )
            .expect("a table");
        Times::of(length, || {
            connection.execute_batch("BEGIN").expect("begin");
            for _ in 0..rows {
                connection
                    .prepare_cached("INSERT INTO plain (record) VALUES (?1)")
                    .and_then(|mut insert| insert.execute([vec![7_u8; bytes]]))
                    .expect("insert");
            }
            connection.execute_batch("COMMIT").expect("commit");
        })
        .print(&format!("SQLite alone, {rows} plain rows inserted"), 1);
    }
}

fn messages(length: Duration) {
    table("messages committed", "commits");
    for count in [1_usize, 8, 64, 512, 2048] {
        let (_directory, store) = open();
        let mut accounts: Vec<_> = (0..count)
            .map(|n| Account::create(&store, &format!("a{n}")))
            .collect();
        // Once around, so that every account has its rows.
        closed_loop(&store, &mut accounts, Duration::ZERO);
        closed_loop(&store, &mut accounts, Duration::from_millis(300));
        closed_loop(&store, &mut accounts, length).print(&format!("{count} accounts"), 1);
    }
}

fn rows(length: Duration) {
    table("rows in one batch", "rows");
    for count in [1_u32, 10, 100, 1000] {
        let (_directory, store) = open();
        let mut account = Account::create(&store, "main");
        let mut act = || {
            let batch = account.batch((1..=count).map(|n| (Key::PreKey(n), 300)));
            let outcomes = block_on(store.commit(vec![batch]));
            assert_eq!(outcomes, Ok(vec![Outcome::Committed]));
        };
        act();
        Times::of(length, act).print(&format!("{count} rows"), count as usize);
    }
}

fn others(length: Duration) {
    table("other calls", "calls");
    let (_directory, store) = open();
    let mut account = Account::create(&store, "main");
    let batch = account.batch((1..=1000).map(|n| (Key::PreKey(n), 1500)));
    block_on(store.commit(vec![batch])).expect("commit");
    Times::of(length, || {
        let keys = [3, 500, 77, 998, 1].map(Key::PreKey).to_vec();
        block_on(store.load(&account.id, keys)).expect("load");
    })
    .print("five rows by key", 1);
    let beat = Beat {
        draining: false,
        accounts: 1000,
        live: 0,
        ttl: DAY,
    };
    Times::of(length, || {
        block_on(store.beat(HOST, beat)).expect("beat");
    })
    .print("a beat", 1);
    let ids: Vec<_> = (0..1000)
        .map(|n| block_on(store.create_account(&BusinessId::default(), &format!("a{n}"))))
        .map(|id| id.expect("create"))
        .collect();
    Times::of(length, || {
        block_on(store.claim(HOST, ids.clone())).expect("claim");
    })
    .print("a thousand accounts claimed", 1);
    Times::of(length, || {
        let orphans = block_on(store.orphans(None, 100)).expect("orphans");
        assert!(orphans.is_empty());
    })
    .print("a look for orphans, a thousand accounts held", 1);
}

fn main() {
    // `cargo test` runs benches too, to see whether they run.
    let seconds = match std::env::var("SECONDS").map(|seconds| seconds.parse()) {
        Ok(Ok(seconds)) => seconds,
        _ if std::env::args().any(|argument| argument == "--bench") => 3.0,
        _ => 0.01,
    };
    let length = Duration::from_secs_f64(seconds);
    floor(length);
    messages(length);
    rows(length);
    others(length);
}
