//! The suite of `baton-core` on a file, with a clock that the tests turn; and the same core without threads.

use crate::{Options, SqliteStore, schema};
use baton_core::state::{
    AccountId, Batch, Beat, Beaten, BusinessId, Claim, HostInfo, HostState, Incarnation, Key,
    Lease, Micros, Record, Row, Store, Term, UnixMillis, View,
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
mod presence;
mod restored;
mod statements;
mod wall;

/// A file of its own per test.
struct OnDisk {
    directory: Directory,
    clock: Arc<AtomicI64>,
}

/// Gone in the end, unless it is somebody else's.
enum Directory {
    Own(TempDir),
    Other(std::path::PathBuf),
}

impl Directory {
    fn path(&self) -> &std::path::Path {
        match self {
            Self::Own(directory) => directory.path(),
            Self::Other(directory) => directory,
        }
    }
}

impl OnDisk {
    fn new() -> Self {
        Self {
            directory: Directory::Own(tempfile::tempdir().unwrap()),
            clock: Arc::new(AtomicI64::new(1_700_000_000_000)),
        }
    }

    /// What is in this directory already.
    fn at(directory: &std::path::Path) -> Self {
        Self {
            directory: Directory::Other(directory.to_owned()),
            ..Self::new()
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
    term: Term,
    seq: u64,
    rows: impl IntoIterator<Item = (Key, Vec<u8>)>,
) -> Batch {
    Batch {
        account: account.clone(),
        term,
        seq: baton_core::state::Seq(seq),
        reseal: false,
        at: UnixMillis(0),
        rows: rows
            .into_iter()
            .map(|(key, bytes)| (key, Some(Record(Bytes::from(bytes)))))
            .collect(),
    }
}

const HOUR: Micros = Micros::from_secs(3600);
const ALICE: Incarnation = Incarnation(0xa);
const BOB: Incarnation = Incarnation(0xb0b0_0000_0000_000b);

fn join(store: &SqliteStore, who: Incarnation, ttl: Micros) {
    block_on(store.join(who, HostInfo::named("host"), ttl)).unwrap();
}

fn claim(store: &SqliteStore, who: Incarnation, account: &AccountId) -> Claim {
    block_on(store.claim(who, vec![account.clone()])).unwrap()[0]
}

fn granted(store: &SqliteStore, who: Incarnation, account: &AccountId) -> Lease {
    match claim(store, who, account) {
        Claim::Granted(lease) => lease,
        other => panic!("{other:?}"),
    }
}

/// Joins and claims.
fn owned(store: &SqliteStore, who: Incarnation, account: &AccountId) -> Term {
    join(store, who, HOUR);
    granted(store, who, account).term
}

fn create(store: &SqliteStore, name: &str) -> AccountId {
    block_on(store.create_account(&business(), name)).unwrap()
}

fn beat(store: &SqliteStore, who: Incarnation, ttl: Micros) -> View {
    let beat = Beat {
        draining: false,
        accounts: 0,
        live: 0,
        ttl,
    };
    match block_on(store.beat(who, beat)).unwrap() {
        Beaten::Renewed(view) => view,
        Beaten::Dead => panic!("{who:?} is dead"),
    }
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

/// Two years back: everybody's lease seems to last two years longer, and nobody seems to have beaten since.
#[test]
fn a_clock_set_back_does_not_lengthen_a_lease() {
    let harness = OnDisk::new();
    let store = harness.open();
    let ttl = Micros::from_secs(10);
    join(&store, ALICE, ttl);
    join(&store, BOB, ttl);
    harness
        .clock
        .fetch_sub(2 * 365 * 86_400_000, Ordering::SeqCst);
    assert_eq!(beat(&store, BOB, ttl).hosts[0].remaining, ttl);
    for _ in 0..3 {
        harness.advance(Micros::from_secs(4));
        beat(&store, BOB, ttl);
    }
    let hosts = block_on(store.hosts()).unwrap();
    assert_eq!(hosts[0].state, HostState::Dead, "{hosts:?}");
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
            transaction
                .join(ALICE, &HostInfo::named("host"), HOUR)
                .unwrap();
            let claims = transaction.claim(ALICE, std::slice::from_ref(&id)).unwrap();
            let [Claim::Granted(lease)] = claims[..] else {
                panic!("{claims:?}")
            };
            let outcomes = transaction
                .commit(&[batch(&id, lease.term, 1, [(Key::Counters, vec![7])])])
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
    assert_eq!(listed[0].holder, Some(ALICE));
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
    let account = create(&store, "main");
    let term = owned(&store, ALICE, &account);
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
            term,
            seq: baton_core::state::Seq(seq),
            reseal: false,
            at: UnixMillis(1),
            rows: [(Key::Device, row)].into(),
        };
        let outcomes = block_on(store.commit(vec![batch])).unwrap();
        assert_eq!(outcomes, [baton_core::state::Outcome::Committed]);
        assert_eq!(addresses(), expected);
    }
}
