//! What a commit costs, beside what the server asks for a single row and the disk for a sync.
//!
//! `cargo bench -p baton-store-postgres`. The server is a private one with default settings, its files in the temporary
//! directory (`TMPDIR` chooses the disk; in a tmpfs a sync costs nothing and the numbers say little), reached by its
//! socket: a network adds its round trip to every statement.
//!
//! Names begin with `postgres`, so that results are not compared with those of another store.
//!
//! * `sync`: one page appended to a file and synced: the floor under any durable commit.
//! * `insert`: one row of 400 bytes into a plain table, committed, from one connection.
//! * `accounts/n`: n accounts commit what receiving a message writes, all at once, as separate calls of one store. One
//!   round is one burst. Each account has a business of its own. How many statements a message took is printed.
//! * `rows/n`: one account commits one batch of n rows of 300 bytes.
//! * `load`: five rows by key.
//! * `renew/n`: n leases at once.

#[allow(dead_code, reason = "the bench needs a part of what the tests do")]
#[path = "../tests/postgres/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "the bench needs a part of what the tests do")]
#[path = "../tests/postgres/rows.rs"]
mod rows;

use baton_core::{
    jid::Jid,
    state::{
        Batch, EventSeq, Incarnation, Key, Outcome, Record, Store, UnixMillis,
        conformance::block_on,
    },
};
use baton_store_postgres::{Options, PgStore};
use bytes::Bytes;
use cluster::{Cluster, RUNTIME};
use criterion::{BenchmarkId, Criterion, Throughput};
use rows::{HOUR, Owner};
use sqlx::{Connection as _, Executor as _};
use std::{fs::File, hint::black_box, io::Write, time::Duration};

fn batch(owner: &mut Owner, rows: impl IntoIterator<Item = (Key, usize)>) -> Batch {
    owner.seq = owner.seq.next();
    let content = |bytes: usize| Record(Bytes::from(vec![owner.seq.0 as u8; bytes]));
    Batch {
        account: owner.id.clone(),
        epoch: owner.epoch,
        seq: owner.seq,
        at: UnixMillis(0),
        rows: rows
            .into_iter()
            .map(|(key, bytes)| (key, Some(content(bytes))))
            .collect(),
    }
}

/// What receiving a message writes: counters, session, event, duplicate mark.
fn message(owner: &mut Owner) -> Batch {
    let n = owner.seq.0 + 1;
    let mut mark = [0; 32];
    mark[..8].copy_from_slice(&n.to_be_bytes());
    let peer = Jid::lid("100000000000001")
        .expect("a LID")
        .with_device((n % 8) as u16);
    batch(
        owner,
        [
            (Key::Counters, 24),
            (Key::Session(peer), 1500),
            (Key::Inbox(EventSeq(n)), 400),
            (Key::Seen(mark), 0),
        ],
    )
}

fn open(cluster: &Cluster) -> PgStore {
    let url = cluster.url(&cluster.empty_database());
    RUNTIME
        .block_on(PgStore::connect(&url, Options::default()))
        .expect("open")
}

fn floors(criterion: &mut Criterion, cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = File::create(directory.path().join("log")).expect("a file");
    criterion.bench_function("postgres sync", |bench| {
        bench.iter(|| {
            file.write_all(&[7; 4096]).expect("write");
            file.sync_data().expect("sync");
        });
    });
    let database = cluster.empty_database();
    cluster.sql(
        &database,
        "CREATE TABLE plain (id bigserial PRIMARY KEY, record bytea)",
    );
    let mut connection = RUNTIME
        .block_on(sqlx::PgConnection::connect(&cluster.url(&database)))
        .expect("connect");
    criterion.bench_function("postgres insert", |bench| {
        bench.iter(|| {
            let insert =
                sqlx::query("INSERT INTO plain (record) VALUES ($1)").bind(vec![7_u8; 400]);
            RUNTIME
                .block_on(connection.execute(insert))
                .expect("insert")
        });
    });
}

fn accounts(criterion: &mut Criterion, cluster: &Cluster) {
    let mut group = criterion.benchmark_group("postgres accounts");
    for count in [1_usize, 8, 64, 512, 2048] {
        let store = open(cluster);
        let mut owners: Vec<_> = (0..count)
            .map(|n| Owner::create(&store, &format!("tenant-{n}"), "main"))
            .collect();
        let before = store.stats();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                let calls: Vec<_> = owners
                    .iter_mut()
                    .map(|owner| store.commit(vec![message(owner)]))
                    .collect();
                for call in calls {
                    assert_eq!(block_on(call).expect("commit"), [Outcome::Committed]);
                }
            });
        });
        let after = store.stats();
        let batches = (after.batches - before.batches) as f64;
        println!(
            "accounts/{count}: {:.3} statements and {:.4} transactions per message",
            (after.statements - before.statements) as f64 / batches,
            (after.transactions - before.transactions) as f64 / batches,
        );
    }
    group.finish();
}

fn rows(criterion: &mut Criterion, cluster: &Cluster) {
    let mut group = criterion.benchmark_group("postgres rows");
    for count in [1_u32, 10, 100, 1000] {
        let store = open(cluster);
        let mut owner = Owner::create(&store, "acme", "main");
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                let batch = batch(&mut owner, (1..=count).map(|n| (Key::PreKey(n), 300)));
                assert_eq!(
                    block_on(store.commit(vec![batch])).expect("commit"),
                    [Outcome::Committed]
                );
            });
        });
    }
    group.finish();
}

fn load(criterion: &mut Criterion, cluster: &Cluster) {
    let store = open(cluster);
    let mut owner = Owner::create(&store, "acme", "main");
    let batch = batch(&mut owner, (1..=1000).map(|n| (Key::PreKey(n), 1500)));
    block_on(store.commit(vec![batch])).expect("commit");
    criterion.bench_function("postgres load", |bench| {
        bench.iter(|| {
            let keys = [3, 500, 77, 998, 1].map(Key::PreKey).to_vec();
            black_box(block_on(store.load(&owner.id, keys)).expect("load"))
        });
    });
}

fn renew(criterion: &mut Criterion, cluster: &Cluster) {
    let mut group = criterion.benchmark_group("postgres renew");
    for count in [1_usize, 1000] {
        let store = open(cluster);
        let leases: Vec<_> = (0..count)
            .map(|n| Owner::create(&store, &format!("tenant-{}", n % 20), &format!("a{n}")))
            .map(|owner| (owner.id, owner.epoch))
            .collect();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                let renewed = store.renew(Incarnation(1), leases.clone(), HOUR);
                black_box(block_on(renewed).expect("renew"))
            });
        });
    }
    group.finish();
}

fn main() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .sample_size(30)
        .configure_from_args();
    floors(&mut criterion, &cluster);
    accounts(&mut criterion, &cluster);
    rows(&mut criterion, &cluster);
    load(&mut criterion, &cluster);
    renew(&mut criterion, &cluster);
    criterion.final_summary();
}
