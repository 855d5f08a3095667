//! What the store costs, beside what the server asks for a single row and the disk for a sync.
//!
//! `cargo bench -p baton-store-postgres` prints tables in Markdown. The server is a private one with default settings,
//! its files in the temporary directory (`TMPDIR` chooses the disk; in a tmpfs a sync costs nothing and the numbers say
//! little), reached by its socket: a network adds its round trip to every statement.
//!
//! * *Floors*: one page appended to a file and synced; one row of 400 bytes into a plain table, committed, from one
//!   connection and from sixteen.
//! * *Commits*: so many accounts, each of a business of its own, each committing its next batch as soon as the last one
//!   is answered, all through one store. A batch of four rows is what receiving a message writes: counters, session,
//!   event, duplicate mark. Every statement is a round trip; `BEGIN` and `COMMIT` count.
//! * *Ownership*: two hosts with so many accounts between them, beating once a second and looking for orphans every two,
//!   as hosts do; then one of them dies and the other takes everything.

#[allow(dead_code, reason = "the bench needs a part of what the tests do")]
#[path = "../tests/postgres/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "the bench needs a part of what the tests do")]
#[path = "../tests/postgres/rows.rs"]
mod rows;

use baton_core::{
    jid::Jid,
    state::{
        AccountId, Batch, Beat, Claim, EventSeq, Incarnation, Key, Outcome, Record, Store,
        UnixMillis, conformance::block_on,
    },
};
use baton_store_postgres::{Options, PgStore};
use bytes::Bytes;
use cluster::{Cluster, RUNTIME};
use rows::{HOUR, Owner, join};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use std::{
    fs::File,
    io::Write,
    time::{Duration, Instant},
};

const MEASURE: Duration = Duration::from_secs(3);

/// Durations of single operations, and how long all of it took.
struct Sample {
    each: Vec<Duration>,
    total: Duration,
}

impl Sample {
    fn per_second(&self) -> f64 {
        self.each.len() as f64 / self.total.as_secs_f64()
    }

    /// In milliseconds.
    fn percentile(&mut self, percent: usize) -> f64 {
        self.each.sort();
        let place = (self.each.len() * percent / 100).min(self.each.len().saturating_sub(1));
        self.each
            .get(place)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }

    fn print(&mut self, what: &str) {
        let (p50, p99) = (self.percentile(50), self.percentile(99));
        println!(
            "| {what} | {:.0} | {p50:.2} | {p99:.2} |",
            self.per_second()
        );
    }
}

/// Runs `work` again and again.
fn repeat(mut work: impl FnMut()) -> Sample {
    let (started, mut each) = (Instant::now(), Vec::new());
    while started.elapsed() < MEASURE {
        let began = Instant::now();
        work();
        each.push(began.elapsed());
    }
    Sample {
        each,
        total: started.elapsed(),
    }
}

/// What receiving a message writes, or so many pre-keys.
fn batch(owner: &mut Owner, rows: u32) -> Batch {
    owner.seq = owner.seq.next();
    let n = owner.seq.0;
    let content = |bytes: usize| Some(Record(Bytes::from(vec![n as u8; bytes])));
    let mut mark = [0; 32];
    mark[..8].copy_from_slice(&n.to_be_bytes());
    let peer = Jid::lid("100000000000001")
        .expect("a LID")
        .with_device((n % 8) as u16);
    let message = [
        (Key::Counters, content(24)),
        (Key::Session(peer), content(1500)),
        (Key::Inbox(EventSeq(n)), content(400)),
        (Key::Seen(mark), content(0)),
    ];
    let keys = (1..=rows).map(|n| (Key::PreKey(n), content(300)));
    Batch {
        account: owner.id.clone(),
        term: owner.lease.term,
        seq: owner.seq,
        reseal: false,
        at: UnixMillis(0),
        rows: if rows == 4 {
            message.into()
        } else {
            keys.collect()
        },
    }
}

fn open(cluster: &Cluster, database: &str) -> PgStore {
    RUNTIME
        .block_on(PgStore::connect(&cluster.url(database), Options::default()))
        .expect("open")
}

fn floors(cluster: &Cluster) {
    println!("\n| floor | per second | p50 ms | p99 ms |\n|---|---|---|---|");
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = File::create(directory.path().join("log")).expect("a file");
    repeat(|| {
        file.write_all(&[7; 4096]).expect("write");
        file.sync_data().expect("sync");
    })
    .print("4 kB appended and synced");
    let database = cluster.empty_database();
    cluster.sql(
        &database,
        "CREATE TABLE plain (id bigserial PRIMARY KEY, record bytea)",
    );
    for connections in [1, 16] {
        let url = cluster.url(&database);
        let started = Instant::now();
        let insert = async move |url: String| {
            let mut connection = PgConnection::connect(&url).await.expect("connect");
            let (started, mut each) = (Instant::now(), Vec::new());
            while started.elapsed() < MEASURE {
                let began = Instant::now();
                let insert =
                    sqlx::query("INSERT INTO plain (record) VALUES ($1)").bind(vec![7_u8; 400]);
                connection.execute(insert).await.expect("insert");
                each.push(began.elapsed());
            }
            each
        };
        let tasks: Vec<_> = (0..connections)
            .map(|_| RUNTIME.spawn(insert(url.clone())))
            .collect();
        let each = tasks
            .into_iter()
            .flat_map(|task| RUNTIME.block_on(task).expect("a task"))
            .collect();
        let total = started.elapsed();
        Sample { each, total }.print(&format!("one row inserted, {connections} connections"));
    }
}

fn commits(cluster: &Cluster) {
    println!(
        "\n| accounts | rows per batch | batches/s | p50 ms | p99 ms | statements per batch | transactions per batch |\n\
         |---|---|---|---|---|---|---|"
    );
    for (count, rows) in [
        (1, 1),
        (1, 4),
        (1, 40),
        (1, 400),
        (16, 4),
        (128, 4),
        (1024, 1),
        (1024, 4),
        (1024, 40),
        (4096, 4),
    ] {
        let store = open(cluster, &cluster.empty_database());
        let who = join(&store);
        let owners: Vec<Owner> = (0..count)
            .map(|n| Owner::create_for(&store, &format!("tenant-{n}"), "main", who))
            .collect();
        let (before, started) = (store.stats(), Instant::now());
        let tasks: Vec<_> = owners
            .into_iter()
            .map(|mut owner| {
                RUNTIME.spawn(async move {
                    let (started, mut each) = (Instant::now(), Vec::new());
                    while started.elapsed() < MEASURE {
                        let batch = batch(&mut owner, rows);
                        let began = Instant::now();
                        let outcome = owner.store.commit(vec![batch]).await.expect("commit");
                        assert_eq!(outcome, [Outcome::Committed]);
                        each.push(began.elapsed());
                    }
                    each
                })
            })
            .collect();
        let each: Vec<Duration> = tasks
            .into_iter()
            .flat_map(|task| RUNTIME.block_on(task).expect("a task"))
            .collect();
        let mut sample = Sample {
            each,
            total: started.elapsed(),
        };
        let after = store.stats();
        let batches = (after.batches - before.batches) as f64;
        let (p50, p99) = (sample.percentile(50), sample.percentile(99));
        println!(
            "| {count} | {rows} | {:.0} | {p50:.1} | {p99:.1} | {:.3} | {:.4} |",
            sample.per_second(),
            (after.statements - before.statements) as f64 / batches,
            (after.transactions - before.transactions) as f64 / batches,
        );
    }
}

fn beat(store: &PgStore, who: Incarnation) -> Duration {
    let beat = Beat {
        draining: false,
        accounts: 0,
        live: 0,
        ttl: HOUR,
    };
    let began = Instant::now();
    block_on(store.beat(who, beat)).expect("beat");
    began.elapsed()
}

/// Two hosts for eight seconds.
fn ownership(cluster: &Cluster) {
    println!(
        "\n| accounts | statements/s of both hosts | transactions/s of the server | beat p50 ms | orphans p50 ms | \
         half of them taken over, ms |\n|---|---|---|---|---|---|"
    );
    for count in [10_usize, 1_000, 10_000] {
        let database = cluster.empty_database();
        let stores = [open(cluster, &database), open(cluster, &database)];
        let hosts = [join(&stores[0]), join(&stores[1])];
        cluster.sql(
            &database,
            &format!(
                "INSERT INTO baton_tenant SELECT 't' || n FROM generate_series(0, 99) n;
                 INSERT INTO baton_device (business_id, name) SELECT 't' || n % 100, 'a' || n FROM generate_series(1, {count}) n;
                 INSERT INTO baton_fence (business_id, device_id, sealed_timeline, sealed_generation)
                   SELECT business_id, device_id, 1, 1 FROM baton_device;
                 INSERT INTO baton_placement (business_id, device_id, run) SELECT business_id, device_id, true FROM baton_device;
                 ANALYZE"
            ),
        );
        let mut all: Vec<AccountId> = Vec::new();
        while let Ok(page) = block_on(stores[0].orphans(all.last().cloned(), 1000)) {
            if page.is_empty() {
                break;
            }
            all.extend(page.into_iter().map(|orphan| orphan.account));
        }
        assert_eq!(all.len(), count);
        let halves = all.split_at(count / 2);
        for (n, half) in [halves.0, halves.1].into_iter().enumerate() {
            let claims = block_on(stores[n].claim(hosts[n], half.to_vec())).expect("claim");
            assert!(
                claims
                    .iter()
                    .all(|claim| matches!(claim, Claim::Granted(_)))
            );
        }
        // Presence has to settle.
        for (store, &who) in stores.iter().zip(&hosts) {
            beat(store, who);
        }
        std::thread::sleep(Duration::from_secs(2));
        let sent = || {
            stores
                .iter()
                .map(|store| store.stats().statements)
                .sum::<u64>()
        };
        let transactions = || {
            cluster.sql(&database, "SELECT pg_stat_clear_snapshot()");
            let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
            cluster.sql(&database, sql)[0].get::<i64, _>(0)
        };
        let (before, begun, started) = (sent(), transactions(), Instant::now());
        let (mut beats, mut looks) = (Vec::new(), Vec::new());
        for second in 0..8 {
            for (store, &who) in stores.iter().zip(&hosts) {
                beats.push(beat(store, who));
                if second % 2 == 0 {
                    let began = Instant::now();
                    assert_eq!(block_on(store.orphans(None, 100)), Ok(vec![]));
                    looks.push(began.elapsed());
                }
            }
            let next = Duration::from_secs(second + 1);
            std::thread::sleep(next.saturating_sub(started.elapsed()));
        }
        let seconds = started.elapsed().as_secs_f64();
        let statements = (sent() - before) as f64 / seconds;
        // Statistics come with up to a second's delay, at both ends alike. Two of them are our own question.
        let transactions = (transactions() - begun - 2) as f64 / seconds;
        let middle = |each: Vec<Duration>| {
            let total = Duration::ZERO;
            Sample { each, total }.percentile(50)
        };
        let began = Instant::now();
        assert_eq!(
            block_on(stores[0].declare_dead(hosts[0], hosts[1])),
            Ok(true)
        );
        let claims = block_on(stores[0].claim(hosts[0], halves.1.to_vec())).expect("claim");
        assert!(
            claims
                .iter()
                .all(|claim| matches!(claim, Claim::Granted(_)))
        );
        let taken = began.elapsed().as_secs_f64() * 1e3;
        println!(
            "| {count} | {statements:.1} | {transactions:.1} | {:.1} | {:.1} | {taken:.0} |",
            middle(beats),
            middle(looks),
        );
    }
}

fn main() {
    // As the harness of cargo is asked for a list of tests: there is none.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    // `-- ownership` for that table alone: half a minute.
    if !std::env::args().any(|argument| argument == "ownership") {
        floors(&cluster);
        commits(&cluster);
    }
    ownership(&cluster);
}
