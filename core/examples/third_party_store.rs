//! A store of your own: everything in one file, a journal of key-value pairs that are on the disk before they count.
//!
//! Not fast (each call waits for the disk, each handle has everything in memory), but complete: it passes the suite
//! that every store passes, see the foot. It consists of two things that any database has in some form:
//!
//! * **Sorted pairs of bytes** ([`Pairs`]), inside a transaction that sees its own writes.
//! * **A transaction** ([`KeyValue::transact`]): lock, see what others have written, change, wait for the disk, unlock.
//!   All promises about crashes and rivals rest on it.
//!
//! [`KvStore`] makes a store of that: it knows the rows, and who may write them. If your database has tables and
//! columns, implement `Store` itself; `baton_core::state::columns` has the columns, `Fence` and `Roster` the rules.
//!
//! `cargo run -p baton-core --example third_party_store`
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "stores do I/O"
)]

use baton_core::state::{
    BusinessId, Micros, Store, StoreError,
    conformance::block_on,
    kv::{KeyValue, KvStore, Pairs},
};
use std::{
    collections::BTreeMap,
    error::Error,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// A handle to a journal. Any number of them, in any number of processes, may have the same file open.
#[derive(Clone)]
struct Journal {
    inner: Arc<Mutex<Inner>>,
    clock: Arc<dyn Fn() -> Micros + Send + Sync>,
}

struct Inner {
    file: File,
    /// How much of the file is in `pairs`.
    end: u64,
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Journal {
    fn open(
        path: &Path,
        clock: impl Fn() -> Micros + Send + Sync + 'static,
    ) -> io::Result<KvStore<Self>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path)?;
        // The name of a new file is as precious as what is in it.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        let inner = Inner {
            file,
            end: 0,
            pairs: BTreeMap::new(),
        };
        Ok(KvStore(Self {
            inner: Arc::new(Mutex::new(inner)),
            clock: Arc::new(clock),
        }))
    }
}

impl KeyValue for Journal {
    fn transact<T>(
        &self,
        mut body: impl FnMut(&mut dyn Pairs) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Whoever panics in here leaves `pairs` as far as `end` says: `Transaction` undoes what it has done.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.file.lock().map_err(unavailable)?;
        let result = inner.catch_up().map_err(unavailable).and_then(|()| {
            let mut transaction = Transaction {
                inner: &mut inner,
                undo: Vec::new(),
                entry: Vec::new(),
            };
            let answer = body(&mut transaction)?;
            transaction.commit().map_err(unavailable)?;
            Ok(answer)
        });
        inner.file.unlock().map_err(unavailable)?;
        result
    }

    fn now(&self) -> Micros {
        (self.clock)()
    }
}

/// Nobody knows whether what was written has come through: the caller asks again.
fn unavailable(error: io::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// Changes the pairs at once, and takes it back unless it is committed.
struct Transaction<'a> {
    inner: &'a mut Inner,
    /// What was under each key before it was changed.
    undo: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The changes, as they go to the file.
    entry: Vec<u8>,
}

impl Pairs for Transaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner.pairs.get(key).cloned())
    }

    fn first(&self, from: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, StoreError> {
        let mut pairs = self.inner.pairs.range(from.to_vec()..);
        Ok(pairs
            .next()
            .map(|(key, value)| (key.clone(), value.clone())))
    }

    fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        write_bytes(&mut self.entry, &key);
        self.entry.push(u8::from(value.is_some()));
        write_bytes(&mut self.entry, value.as_deref().unwrap_or_default());
        let before = self.inner.set(key.clone(), value);
        self.undo.push((key, before));
        Ok(())
    }
}

impl Transaction<'_> {
    fn commit(mut self) -> io::Result<()> {
        if self.entry.is_empty() {
            return Ok(());
        }
        let mut framed = checksum(&self.entry).to_le_bytes().to_vec();
        write_bytes(&mut framed, &self.entry);
        self.inner.file.write_all(&framed)?;
        self.inner.file.sync_data()?;
        self.inner.end += framed.len() as u64;
        self.undo.clear();
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        for (key, before) in self.undo.drain(..).rev() {
            self.inner.set(key, before);
        }
    }
}

impl Inner {
    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match value {
            Some(value) => self.pairs.insert(key, value),
            None => self.pairs.remove(&key),
        }
    }

    /// Takes in what others have appended, and what came through of a write of ours that failed.
    fn catch_up(&mut self) -> io::Result<()> {
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.read_to_end(&mut tail)?;
        let mut rest = &tail[..];
        while let Some(mut entry) = read_entry(&mut rest) {
            while let Some((key, value)) = read_change(&mut entry) {
                self.set(key.to_vec(), value.map(<[u8]>::to_vec));
            }
        }
        self.end += (tail.len() - rest.len()) as u64;
        // Cut off by a crash: nobody was ever told that it is done.
        if !rest.is_empty() {
            self.file.set_len(self.end)?;
        }
        // Read is not yet durable: its writer may have died before it could wait for the disk.
        if tail.is_empty() {
            Ok(())
        } else {
            self.file.sync_data()
        }
    }
}

/// The next whole entry: checksum, length, changes.
fn read_entry<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (sum, mut behind) = rest.split_first_chunk()?;
    let entry = read_bytes(&mut behind)?;
    if checksum(entry) != u64::from_le_bytes(*sum) {
        return None;
    }
    *rest = behind;
    Some(entry)
}

/// The next change of an entry: a key, and its value if it was not deleted.
fn read_change<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let key = read_bytes(rest)?;
    let (&is_there, behind) = rest.split_first()?;
    *rest = behind;
    let value = read_bytes(rest)?;
    Some((key, (is_there == 1).then_some(value)))
}

fn write_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    to.extend_from_slice(bytes);
}

fn read_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (bytes, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(bytes)
}

/// FNV-1a: tells a torn entry from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Creates an account in `baton.journal`, in the current directory, and shows all there are.
fn main() -> Result<(), Box<dyn Error>> {
    let clock = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Micros(since.map_or(0, |since| since.as_micros() as u64))
    };
    let store = Journal::open(Path::new("baton.journal"), clock)?;
    let business = BusinessId::default();
    let count = block_on(store.accounts(&business))?.len();
    block_on(store.create_account(&business, &format!("account-{count}")))?;
    for account in block_on(store.accounts(&business))? {
        println!("{} {}", account.id, account.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::conformance::Harness;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    /// A journal of its own per test, with a clock that the test turns.
    struct OnDisk {
        directory: tempfile::TempDir,
        clock: Arc<AtomicU64>,
    }

    fn on_disk() -> OnDisk {
        OnDisk {
            directory: tempfile::tempdir().unwrap(),
            clock: Arc::default(),
        }
    }

    impl Harness for OnDisk {
        type Store = KvStore<Journal>;

        fn open(&self) -> Self::Store {
            let hands = Arc::clone(&self.clock);
            let path = self.directory.path().join("journal");
            Journal::open(&path, move || Micros(hands.load(SeqCst))).unwrap()
        }

        fn advance(&self, by: Micros) {
            self.clock.fetch_add(by.0, SeqCst);
        }
    }

    baton_core::store_conformance!(on_disk());

    /// Wherever a crash cuts the last entry off, what was answered before is there and the store goes on.
    #[test]
    fn a_torn_end_is_cut_away() {
        let disk = on_disk();
        let business = BusinessId::default();
        let create = |name| block_on(disk.open().create_account(&business, name));
        create("first").unwrap();
        let path = disk.directory.path().join("journal");
        let before = std::fs::read(&path).unwrap();
        create("second").unwrap();
        let after = std::fs::read(&path).unwrap();
        for cut in before.len()..after.len() {
            std::fs::write(&path, &after[..cut]).unwrap();
            assert_eq!(create("first"), Err(StoreError::Exists));
            create("second").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), after, "cut at {cut}");
        }
    }
}
