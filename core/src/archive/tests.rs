//! Moving accounts, on stores in memory and files that are vectors.

use super::*;
use crate::{
    crypto::{PassphraseCost, Rng},
    proto::record::{Counters, Device, SignedPreKey},
    state::{
        AccountId, BusinessId, Claim, Key, Record, Row, Store, StoreError, Table, codec,
        conformance::{LONG, Owner, block_on, claim, join, samples, whole_table},
        hooked::{Hooked, Moment},
        memory::MemoryStore,
        sealed::{MasterKey, MasterKeys, PlainRows, Sealed},
    },
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

mod crashes;
mod files;
mod moves;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn key() -> SecretKey {
    SecretKey::from_bytes([9; 32])
}

/// No two have the same numbers.
fn rng() -> Rng {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let mut seed = [2; 32];
    seed[..8].copy_from_slice(&DRAWN.fetch_add(1, Ordering::SeqCst).to_be_bytes());
    Rng::from_seed(seed)
}

fn memory() -> MemoryStore {
    MemoryStore::new(|| Micros(1))
}

/// A store whose time can be turned.
fn clocked() -> (MemoryStore, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(1));
    let hands = Arc::clone(&clock);
    let store = MemoryStore::new(move || Micros(hands.load(Ordering::SeqCst)));
    (store, clock)
}

fn sealed(below: &MemoryStore) -> Sealed<MemoryStore> {
    let masters = MasterKeys::new(MasterKey::new(&SecretKey::from_bytes([1; 32])));
    block_on(Sealed::open(
        below.clone(),
        masters,
        rng().bytes(),
        PlainRows::Refuse,
    ))
    .unwrap()
}

fn acme() -> BusinessId {
    BusinessId::new("acme").unwrap()
}

fn device(jid: &str) -> Record {
    codec::encode(&Device {
        jid: Some(jid.to_owned()),
        signed_pre_keys: vec![SignedPreKey {
            id: Some(4),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn counters() -> Record {
    codec::encode(&Counters {
        next_event: Some(70),
        next_order: Some(8),
        next_pre_key: Some(813),
        first_unconfirmed_pre_key: Some(813),
        ..Default::default()
    })
}

const JID: &str = "15550000001:3@s.whatsapp.net";
const OTHER: &str = "15550000001:4@s.whatsapp.net";

/// A linked account with a few rows that nobody holds.
async fn furnish<S: Store>(store: &S, name: &str, jid: &str) -> AccountId {
    let mut owner = Owner::create(store, &acme(), name).await;
    let mut rows = vec![
        (Key::Device, Some(device(jid))),
        (Key::Counters, Some(counters())),
    ];
    for table in [Table::Session, Table::Inbox, Table::Mailbox] {
        let keys = samples::keys(table).into_iter().take(2);
        let content = |key: &Key| codec::wrap(&[&b"content of "[..], &key.to_bytes()].concat());
        rows.extend(keys.map(|key| {
            let content = content(&key);
            (key, Some(content))
        }));
    }
    owner.write(rows).await;
    owner.release().await;
    store.leave(owner.who()).await.unwrap();
    owner.id
}

/// All rows of an account but the counters.
async fn rows<S: Store>(store: &S, account: &AccountId) -> BTreeMap<Key, Row> {
    let mut rows = BTreeMap::new();
    for &table in Table::ALL {
        rows.extend(whole_table(store, account, table, 1000).await);
    }
    rows.remove(&Key::Counters);
    rows
}

async fn counters_of<S: Store>(store: &S, account: &AccountId) -> Counters {
    match &store.load(account, vec![Key::Counters]).await.unwrap()[..] {
        [Row::Present(record)] => codec::decode(record).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A file in memory, as far as it was kept and as far as it was written.
#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    kept: usize,
    /// Fails after so many calls.
    calls_left: Option<u32>,
}

impl File {
    fn call(&mut self) -> Result<(), FileError> {
        match &mut self.calls_left {
            Some(0) => Err(FileError("no space".to_owned())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Sink for File {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.call()?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn keep(&mut self) -> Result<(), FileError> {
        self.call()?;
        self.kept = self.bytes.len();
        Ok(())
    }
}

/// Reads in pieces of awkward sizes.
struct Reading<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Source for Reading<'_> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, FileError> {
        let rest = &self.bytes[self.at..];
        let piece = rest.len().min(into.len()).min(1 + self.at % 4093);
        into[..piece].copy_from_slice(&rest[..piece]);
        self.at += piece;
        Ok(piece)
    }

    fn rewind(&mut self) -> Result<(), FileError> {
        self.at = 0;
        Ok(())
    }
}

async fn export_to<S: Store>(
    store: &S,
    name: &str,
    file: &mut File,
    change: impl FnOnce(&mut ExportOptions<'_>),
) -> Result<Exported, ExportError> {
    let key = key();
    let mut options = ExportOptions::new(FileKey::Key(&key));
    change(&mut options);
    export(store, &acme(), name, file, options, &mut rng(), NOW).await
}

/// The bytes of a file that is kept.
async fn exported<S: Store>(store: &S, name: &str) -> Vec<u8> {
    let mut file = File::default();
    export_to(store, name, &mut file, |_| ()).await.unwrap();
    assert_eq!(file.kept, file.bytes.len(), "kept to the last byte");
    file.bytes
}

async fn import_with<S: Store>(
    store: &S,
    bytes: &[u8],
    change: impl FnOnce(&mut ImportOptions<'_>),
) -> Result<Imported, ImportError> {
    let key = key();
    let mut options = ImportOptions::new(FileKey::Key(&key));
    change(&mut options);
    let mut source = Reading { bytes, at: 0 };
    import(store, &acme(), &mut source, options, &mut rng(), NOW).await
}

async fn import_from<S: Store>(store: &S, bytes: &[u8]) -> Result<Imported, ImportError> {
    import_with(store, bytes, |_| ()).await
}

/// What there is of a database, besides hosts.
async fn accounts<S: Store>(store: &S) -> Vec<(AccountId, String, bool)> {
    let mut accounts = Vec::new();
    for business in store.tenants().await.unwrap() {
        let infos = store.accounts(&business).await.unwrap();
        accounts.extend(
            infos
                .into_iter()
                .map(|info| (info.id, info.name, info.retired)),
        );
    }
    accounts
}

/// Whether a host could take the account and run it under its device.
async fn can_run<S: Store>(store: &S, account: &AccountId) -> bool {
    let row = store.load(account, vec![Key::Device]).await;
    if !matches!(row.as_deref(), Ok([Row::Present(_)])) {
        return false;
    }
    let who = join(store, "another", LONG).await;
    let answer = claim(store, account, who).await;
    store.leave(who).await.unwrap();
    matches!(answer, Claim::Granted(_))
}
