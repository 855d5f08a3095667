//! What encryption at rest costs: a commit and a load of one row, through a store in memory, with and without.
//!
//! `cargo bench -p baton-core --bench sealed`

use std::hint::black_box;

use baton_core::{
    crypto::SecretKey,
    state::{
        AccountId, Batch, BusinessId, Claim, HostInfo, Incarnation, Key, Micros, Outcome, Record,
        Row, Store, Term, UnixMillis,
        conformance::block_on,
        memory::MemoryStore,
        sealed::{MasterKey, MasterKeys, PlainRows, Sealed},
    },
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A mark; counters; a session; a session with archived states; a long event; a large one.
const SIZES: [usize; 6] = [16, 100, 1_500, 10_000, 100_000, 1_000_000];
const KEY: Key = Key::Counters;

struct Account<S> {
    store: S,
    id: AccountId,
    term: Term,
    seq: baton_core::state::Seq,
}

impl<S: Store> Account<S> {
    fn create(store: S) -> Self {
        block_on(async {
            let business = BusinessId::default();
            let id = store.create_account(&business, "main").await.unwrap();
            let who = Incarnation(1);
            let info = HostInfo::named("bench");
            store.join(who, info, Micros(u64::MAX >> 1)).await.unwrap();
            let claims = store.claim(who, vec![id.clone()]).await.unwrap();
            let [Claim::Granted(lease)] = claims[..] else {
                panic!("{claims:?}")
            };
            Self {
                store,
                id,
                term: lease.term,
                seq: lease.applied,
            }
        })
    }

    fn commit(&mut self, record: &Record) {
        self.seq = self.seq.next();
        let batch = Batch {
            account: self.id.clone(),
            term: self.term,
            seq: self.seq,
            reseal: false,
            at: UnixMillis(1_700_000_000_000),
            rows: [(KEY, Some(record.clone()))].into(),
        };
        let outcomes = block_on(self.store.commit(vec![batch])).unwrap();
        assert_eq!(outcomes, [Outcome::Committed]);
    }

    fn load(&self) -> Row {
        block_on(self.store.load(&self.id, vec![KEY]))
            .unwrap()
            .remove(0)
    }
}

fn measure<S: Store>(c: &mut Criterion, name: &str, mut account: Account<S>) {
    for size in SIZES {
        let record = Record(vec![1; size].into());
        let mut group = c.benchmark_group("commit");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new(name, size), |b| {
            b.iter(|| account.commit(black_box(&record)));
        });
        group.finish();
        let mut group = c.benchmark_group("load");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new(name, size), |b| b.iter(|| account.load()));
        group.finish();
        assert_eq!(account.load(), Row::Present(record));
    }
}

fn rows(c: &mut Criterion) {
    let memory = || MemoryStore::new(|| Micros(1));
    let masters = MasterKeys::new(MasterKey::new(&SecretKey::from_bytes([7; 32])));
    let sealed = Sealed::open(memory(), masters, [1; 32], PlainRows::Refuse);
    let sealed = block_on(sealed).unwrap();
    measure(c, "clear", Account::create(memory()));
    measure(c, "sealed", Account::create(sealed));
}

criterion_group!(benches, rows);
criterion_main!(benches);
