//! What a commit costs, beside what the disk asks for a sync.
//!
//! `cargo bench -p baton-store-sqlite`. The files are in the temporary directory (`TMPDIR` chooses the disk; in a
//! tmpfs a sync costs nothing and the numbers say little).
//!
//! * `sync`: one page appended to a file and synced: the floor under any durable commit.
//! * `accounts/n`: n accounts commit one batch each, all at once, as separate calls. One round is one burst.
//! * `rows/n`: one account commits one batch of n rows of 300 bytes.
//! * `load`: five rows by key.

use baton_core::state::{
    AccountId, Batch, BusinessId, Claim, Epoch, Incarnation, Key, Micros, Outcome, Record, Seq,
    Store, UnixMillis, conformance::block_on,
};
use baton_store_sqlite::{Options, SqliteStore};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{fs::File, hint::black_box, io::Write, time::Duration};

struct Account {
    id: AccountId,
    epoch: Epoch,
    seq: Seq,
}

impl Account {
    fn create(store: &SqliteStore, name: &str) -> Self {
        let id = block_on(store.create_account(&BusinessId::default(), name)).expect("create");
        match block_on(store.claim(&id, Incarnation(1), Micros::from_secs(86_400))).expect("claim")
        {
            Claim::Granted(lease) => Self {
                id,
                epoch: lease.epoch,
                seq: lease.applied,
            },
            Claim::Held { .. } => unreachable!("a new account is free"),
        }
    }

    fn batch(&mut self, rows: impl IntoIterator<Item = (Key, usize)>) -> Batch {
        self.seq = self.seq.next();
        let rows = rows
            .into_iter()
            .map(|(key, bytes)| {
                (
                    key,
                    Some(Record(Bytes::from(vec![self.seq.0 as u8; bytes]))),
                )
            })
            .collect();
        Batch {
            account: self.id.clone(),
            epoch: self.epoch,
            seq: self.seq,
            at: UnixMillis(0),
            rows,
        }
    }

    /// What receiving a message writes: counters, session, event, duplicate mark.
    fn message(&mut self) -> Batch {
        let n = self.seq.0 + 1;
        let mut mark = [0; 32];
        mark[..8].copy_from_slice(&n.to_be_bytes());
        let peer = baton_core::jid::Jid::lid("100000000000001")
            .expect("a LID")
            .with_device((n % 8) as u16);
        self.batch([
            (Key::Counters, 24),
            (Key::Session(peer), 1500),
            (Key::Inbox(baton_core::state::EventSeq(n)), 400),
            (Key::Seen(mark), 0),
        ])
    }
}

fn open() -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let store =
        SqliteStore::open(directory.path().join("bench.db"), Options::default()).expect("open");
    (directory, store)
}

fn sync(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = File::create(directory.path().join("log")).expect("a file");
    criterion.bench_function("sync", |bench| {
        bench.iter(|| {
            file.write_all(&[7; 4096]).expect("write");
            file.sync_data().expect("sync");
        });
    });
}

fn accounts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("accounts");
    for count in [1_usize, 8, 64, 512] {
        let (_directory, store) = open();
        let mut accounts: Vec<_> = (0..count)
            .map(|n| Account::create(&store, &format!("a{n}")))
            .collect();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                let calls: Vec<_> = accounts
                    .iter_mut()
                    .map(|account| store.commit(vec![account.message()]))
                    .collect();
                for call in calls {
                    assert_eq!(block_on(call).expect("commit"), [Outcome::Committed]);
                }
            });
        });
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    for count in [1_u32, 10, 100, 1000] {
        let (_directory, store) = open();
        let mut account = Account::create(&store, "main");
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                let batch = account.batch((1..=count).map(|n| (Key::PreKey(n), 300)));
                assert_eq!(
                    block_on(store.commit(vec![batch])).expect("commit"),
                    [Outcome::Committed]
                );
            });
        });
    }
    group.finish();
}

fn load(criterion: &mut Criterion) {
    let (_directory, store) = open();
    let mut account = Account::create(&store, "main");
    let batch = account.batch((1..=1000).map(|n| (Key::PreKey(n), 1500)));
    block_on(store.commit(vec![batch])).expect("commit");
    criterion.bench_function("load", |bench| {
        bench.iter(|| {
            let keys = [3, 500, 77, 998, 1].map(Key::PreKey).to_vec();
            black_box(block_on(store.load(&account.id, keys)).expect("load"))
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(4)).sample_size(30);
    targets = sync, accounts, rows, load
}
criterion_main!(benches);
