//! The promises of encryption at rest, shown on the store in memory.

use super::*;
use crate::{
    crypto::SecretKey,
    state::{
        AccountId, Key, Micros, Outcome, Record, Row, Scan, Table,
        conformance::{Harness, Owner, block_on, samples},
        hooked::{Hooked, Moment},
        memory::MemoryStore,
    },
};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

mod keys;
mod rows;

/// The suite that every store runs, over a store that encrypts.
mod conformance {
    use super::*;

    struct Encrypted {
        below: MemoryStore,
        clock: Arc<AtomicU64>,
    }

    impl Encrypted {
        fn new() -> Self {
            let clock = Arc::new(AtomicU64::new(1));
            let hands = Arc::clone(&clock);
            Self {
                below: MemoryStore::new(move || Micros(hands.load(Ordering::SeqCst))),
                clock,
            }
        }
    }

    impl Harness for Encrypted {
        type Store = Sealed<MemoryStore>;

        fn open(&self) -> Self::Store {
            open(&self.below)
        }

        fn advance(&self, by: Micros) {
            self.clock.fetch_add(by.0, Ordering::SeqCst);
        }

        fn corrupt(&self, account: &AccountId, key: &Key) -> bool {
            self.below.corrupt(account, key)
        }
    }

    crate::store_conformance!(Encrypted::new());
}

/// What a record of the suite says; nothing else holds these bytes.
const SECRET: &[u8] = b"nobody may read this";
/// The wall clock of batches, as the suite has it.
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const NO_GRACE: Micros = Micros(0);

fn after(minutes: i64) -> UnixMillis {
    UnixMillis(NOW.0 + minutes * 60_000)
}

fn memory() -> MemoryStore {
    MemoryStore::new(|| Micros(1))
}

fn acme() -> BusinessId {
    BusinessId::new("acme").unwrap()
}

fn master(of: u8) -> MasterKey {
    MasterKey::new(&SecretKey::from_bytes([of; 32]))
}

/// No two handles draw the same numbers.
fn seed() -> [u8; 32] {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&OPENED.fetch_add(1, Ordering::SeqCst).to_be_bytes());
    seed
}

fn open_with<S: Store>(
    below: &S,
    masters: MasterKeys,
    plain: PlainRows,
) -> Result<Sealed<S>, OpenError> {
    block_on(Sealed::open(below.clone(), masters, seed(), plain))
}

fn open<S: Store>(below: &S) -> Sealed<S> {
    open_with(below, MasterKeys::new(master(1)), PlainRows::Refuse).unwrap()
}

/// A record as the engine writes them, with the secret in it and `content` behind.
fn secret(content: &str) -> Record {
    Record([&[1], SECRET, content.as_bytes()].concat().into())
}

/// Every key of the suite's samples.
fn all_keys() -> Vec<Key> {
    Table::ALL
        .iter()
        .flat_map(|&table| samples::keys(table))
        .collect()
}

/// Everything that is stored of an account, as the store below has it.
fn stored<S: Store>(below: &S, account: &AccountId) -> Vec<(Key, Row)> {
    let mut rows = Vec::new();
    for &table in Table::ALL {
        let limit = 10_000;
        let after = None;
        let scan = Scan {
            table,
            after,
            limit,
        };
        rows.extend(block_on(below.scan(account, scan)).unwrap());
    }
    rows
}

fn numbers<S: Store>(sealed: &Sealed<S>) -> Vec<u32> {
    let keys = block_on(sealed.data_keys(&acme())).unwrap();
    keys.iter().map(|key| key.number).collect()
}

/// The data key that each stored row names.
fn names<S: Store>(below: &S, account: &AccountId) -> std::collections::BTreeSet<row::Form> {
    stored(below, account)
        .iter()
        .map(|(_, row)| match row {
            Row::Present(record) => row::form(record),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Runs a pass to its end in slices of `slice` rows.
async fn run<S: Store>(sealed: &Sealed<S>, mut pass: Pass, slice: u32) -> (Pass, Progress) {
    loop {
        match sealed.advance(&mut pass, slice).await.unwrap() {
            Progress::More => {}
            end => return (pass, end),
        }
    }
}
