//! The suite of `baton-core` on a file, with a clock that the tests turn; and the same core without threads.

use crate::{Options, SqliteStore, presence::hex, schema};
use baton_core::state::{
    AccountId, Batch, BusinessId, Claim, Epoch, Incarnation, Key, Micros, Record, Row, Store,
    UnixMillis,
    conformance::{Harness, block_on},
};
use bytes::Bytes;
use rusqlite::Connection;
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use tempfile::TempDir;

mod faults;

/// A file of its own per test.
struct OnDisk {
    directory: TempDir,
    clock: Arc<AtomicI64>,
}

impl OnDisk {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: Arc::new(AtomicI64::new(1_700_000_000_000)),
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("baton.db")
    }

    fn options(&self) -> Options {
        let clock = Arc::clone(&self.clock);
        Options {
            clock: Arc::new(move || UnixMillis(clock.load(Ordering::SeqCst))),
            ..Options::default()
        }
    }
}

impl Harness for OnDisk {
    type Store = SqliteStore;

    fn open(&self) -> SqliteStore {
        SqliteStore::open(self.path(), self.options()).unwrap()
    }

    fn advance(&self, by: Micros) {
        self.clock.fetch_add((by.0 / 1000) as i64, Ordering::SeqCst);
    }

    /// Text where bytes should be. The tables are STRICT, so it takes a forged schema to get it in.
    fn corrupt(&self, account: &AccountId, key: &Key) -> bool {
        let forge = |from: &str, to: &str| {
            let connection = Connection::open(self.path()).unwrap();
            connection
                .pragma_update(None, "writable_schema", true)
                .unwrap();
            let table = format!("baton_{}", key.table().name());
            let sql = "UPDATE sqlite_schema SET sql = replace(sql, ?2, ?3) WHERE name = ?1";
            assert_eq!(connection.execute(sql, [&table, from, to]).unwrap(), 1);
        };
        forge(") STRICT", ") /*STRICT*/");
        forge("/*STRICT*/,", "/*STRICT,*/");
        {
            let connection = Connection::open(self.path()).unwrap();
            let mut put = connection
                .prepare(&schema::statements(key.table()).put)
                .unwrap();
            put.raw_bind_parameter(1, account.business.as_str())
                .unwrap();
            put.raw_bind_parameter(2, schema::number(account.device))
                .unwrap();
            put.raw_bind_parameter(3, "not bytes").unwrap();
            put.raw_bind_parameter(4, 0).unwrap();
            schema::bind(&mut put, 5, key).unwrap();
            assert_eq!(put.raw_execute().unwrap(), 1);
        }
        forge("/*STRICT,*/", "STRICT,");
        forge("/*STRICT*/", "STRICT");
        true
    }
}

baton_core::store_conformance!(OnDisk::new());

fn business() -> BusinessId {
    BusinessId::default()
}

fn batch(
    account: &AccountId,
    epoch: Epoch,
    seq: u64,
    rows: impl IntoIterator<Item = (Key, Vec<u8>)>,
) -> Batch {
    Batch {
        account: account.clone(),
        epoch,
        seq: baton_core::state::Seq(seq),
        at: UnixMillis(0),
        rows: rows
            .into_iter()
            .map(|(key, bytes)| (key, Some(Record(Bytes::from(bytes)))))
            .collect(),
    }
}

fn granted(claim: Claim) -> Epoch {
    match claim {
        Claim::Granted(lease) => lease.epoch,
        Claim::Held { by, .. } => panic!("held by {by:?}"),
    }
}

const HOUR: Micros = Micros::from_secs(3600);

#[test]
fn a_dead_holder_is_replaced_at_once() {
    let harness = OnDisk::new();
    let (alice, bob) = (Incarnation(0xa), Incarnation(0xb));
    let first = harness.open();
    let second = harness.open();
    let id = block_on(first.create_account(&business(), "main")).unwrap();
    granted(block_on(first.claim(&id, alice, HOUR)).unwrap());
    let held = block_on(second.claim(&id, bob, HOUR)).unwrap();
    assert!(
        matches!(held, Claim::Held { by, .. } if by == alice),
        "{held:?}"
    );
    // The lease has an hour to go, but its holder has let go of its lock.
    drop(first);
    assert_eq!(
        granted(block_on(second.claim(&id, bob, HOUR)).unwrap()),
        Epoch(2)
    );
    let locks = std::fs::read_dir(format!("{}.hosts", harness.path().display())).unwrap();
    let names: Vec<_> = locks
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, [hex(bob)], "the dead leave nothing behind");
}

/// Gateways that start together on a new file: each finds it usable, whoever prepares it.
#[test]
fn a_new_file_may_be_opened_by_many_at_once() {
    const OPENERS: usize = 4;
    for _ in 0..40 {
        let disk = OnDisk::new();
        let (path, options) = (disk.path(), disk.options());
        let start = std::sync::Barrier::new(OPENERS);
        std::thread::scope(|scope| {
            let open = || {
                start.wait();
                SqliteStore::open(&path, options.clone())
            };
            let opening: Vec<_> = (0..OPENERS).map(|_| scope.spawn(open)).collect();
            for opened in opening {
                opened.join().unwrap().unwrap();
            }
        });
    }
}

#[test]
fn without_presence_the_lease_alone_decides() {
    let harness = OnDisk::new();
    let options = || Options {
        presence: false,
        ..harness.options()
    };
    let first = SqliteStore::open(harness.path(), options()).unwrap();
    let second = SqliteStore::open(harness.path(), options()).unwrap();
    let id = block_on(first.create_account(&business(), "main")).unwrap();
    granted(block_on(first.claim(&id, Incarnation(1), HOUR)).unwrap());
    drop(first);
    let held = block_on(second.claim(&id, Incarnation(2), HOUR)).unwrap();
    assert!(matches!(held, Claim::Held { .. }), "{held:?}");
    harness.advance(HOUR);
    granted(block_on(second.claim(&id, Incarnation(2), HOUR)).unwrap());
    assert!(!harness.path().with_extension("db.hosts").exists());
}

#[test]
fn a_clock_set_back_does_not_lengthen_a_lease() {
    let harness = OnDisk::new();
    let store = harness.open();
    let id = block_on(store.create_account(&business(), "main")).unwrap();
    granted(block_on(store.claim(&id, Incarnation(1), Micros::from_secs(10))).unwrap());
    // A year back: the lease seems to last a year longer.
    harness.clock.fetch_sub(365 * 86_400_000, Ordering::SeqCst);
    let held = block_on(store.claim(&id, Incarnation(2), HOUR)).unwrap();
    assert_eq!(
        held,
        Claim::Held {
            by: Incarnation(1),
            remaining: Micros::from_secs(10)
        }
    );
    harness.advance(Micros::from_secs(11));
    granted(block_on(store.claim(&id, Incarnation(2), HOUR)).unwrap());
}

#[test]
fn the_core_runs_without_threads() {
    use crate::{Database, Transaction, Work};
    use baton_core::state::{Outcome, StoreError};

    /// Creates, claims and writes in one transaction.
    struct Start(Option<(AccountId, Vec<Outcome>)>);
    impl Work for Start {
        fn attempt(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error> {
            let id = transaction.create_account(&business(), "main").unwrap();
            let epoch = granted(transaction.claim(&id, Incarnation(1), HOUR).unwrap());
            let outcomes = transaction
                .commit(&[batch(&id, epoch, 1, [(Key::Counters, vec![7])])])
                .unwrap();
            self.0 = Some((id, outcomes));
            Ok(())
        }
        fn fail(&mut self, error: StoreError) {
            panic!("{error}");
        }
    }
    let mut database = Database::open_in_memory(UnixMillis(0)).unwrap();
    let mut start = Start(None);
    database.transact(&mut [&mut start], &|| UnixMillis(5));
    let (id, outcomes) = start.0.unwrap();
    assert_eq!(outcomes, [Outcome::Committed]);
    let rows = database.load(&id, &[Key::Counters, Key::Device]).unwrap();
    assert_eq!(
        rows,
        [Row::Present(Record(Bytes::from_static(&[7]))), Row::Absent]
    );
    let listed = database.accounts(&business(), UnixMillis(6)).unwrap();
    assert_eq!(listed[0].holder, Some(Incarnation(1)));
}

/// The addresses of an account stand in columns of their own, for people who look into the file.
#[test]
fn the_addresses_of_an_account_can_be_read_in_sql() {
    use baton_core::{proto::record, state::codec};
    let key = || Some(vec![7; 32]);
    let row = |jid: Option<&str>, lid: Option<&str>| {
        codec::encode(&record::Device {
            noise_private: key(),
            identity_private: key(),
            adv_secret: key(),
            registration_id: Some(1),
            signed_pre_keys: vec![record::SignedPreKey {
                id: Some(1),
                private: key(),
                signature: Some(vec![0; 64]),
                made_at: None,
            }],
            jid: jid.map(str::to_owned),
            lid: lid.map(str::to_owned),
            ..record::Device::default()
        })
    };
    let (jid, lid) = ("15550000001:2@s.whatsapp.net", "100000000000001:2@lid");
    let harness = OnDisk::new();
    let store = harness.open();
    let account = block_on(store.create_account(&business(), "main")).unwrap();
    let claim = block_on(store.claim(&account, Incarnation(1), Micros::from_secs(60))).unwrap();
    let epoch = granted(claim);
    let addresses = || -> (Option<String>, Option<String>) {
        Connection::open(harness.path())
            .unwrap()
            .query_row("SELECT jid, lid FROM baton_device", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap()
    };
    let steps = [
        (Some(row(None, None)), (None, None)),
        (
            Some(row(Some(jid), Some(lid))),
            (Some(jid.to_owned()), Some(lid.to_owned())),
        ),
        // Not a row of this release.
        (Some(Record(Bytes::from_static(b"\xff"))), (None, None)),
        (Some(row(Some(jid), None)), (Some(jid.to_owned()), None)),
        (None, (None, None)),
    ];
    for (seq, (row, expected)) in (1..).zip(steps) {
        let batch = Batch {
            account: account.clone(),
            epoch,
            seq: baton_core::state::Seq(seq),
            at: UnixMillis(1),
            rows: [(Key::Device, row)].into(),
        };
        let outcomes = block_on(store.commit(vec![batch])).unwrap();
        assert_eq!(outcomes, [baton_core::state::Outcome::Committed]);
        assert_eq!(addresses(), expected);
    }
}
