//! The suite over encrypted rows in a file, and what such a file shows to who reads it without the key.

use baton_core::{
    crypto::SecretKey,
    state::{
        BusinessId, Key, Micros, Record, Store as _, Table, UnixMillis,
        conformance::{Harness, block_on, samples},
        sealed::{MasterKey, MasterKeys, PlainRows, Progress, Sealed},
    },
};
use baton_store_sqlite::{Options, SqliteStore};
use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

struct Encrypted {
    directory: tempfile::TempDir,
}

impl Encrypted {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn below(&self) -> SqliteStore {
        SqliteStore::open(self.directory.path().join("baton.db"), Options::default()).unwrap()
    }

    fn sealed(&self, plain: PlainRows) -> Sealed<SqliteStore> {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let mut seed = [3; 32];
        seed[..8].copy_from_slice(&OPENED.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        let masters = MasterKeys::new(MasterKey::new(&SecretKey::from_bytes([1; 32])));
        block_on(Sealed::open(self.below(), masters, seed, plain)).unwrap()
    }

    /// Whether `needle` is anywhere in the files of the database.
    fn shows(&self, needle: &[u8]) -> bool {
        fs::read_dir(self.directory.path()).unwrap().any(|entry| {
            let bytes = fs::read(entry.unwrap().path()).unwrap_or_default();
            bytes.windows(needle.len()).any(|window| window == needle)
        })
    }
}

impl Harness for Encrypted {
    type Store = Sealed<SqliteStore>;

    fn open(&self) -> Self::Store {
        self.sealed(PlainRows::Refuse)
    }

    fn advance(&self, by: Micros) {
        thread::sleep(Duration::from_micros(by.0));
    }
}

baton_core::store_conformance!(Encrypted::new());

#[test]
fn the_files_show_no_record() {
    const SECRET: &[u8] = b"nobody may read this";
    let world = Encrypted::new();
    let business = BusinessId::default();
    let request = || Record([&[1], SECRET].concat().into());
    let id = |i: usize| format!("request-{i}");
    block_on(async {
        // As it looks in the clear, so that the search is known to find it.
        let clear = world.below();
        let account = clear.create_account(&business, "main").await.unwrap();
        let now = UnixMillis(1_700_000_000_000);
        clear
            .enqueue(&account, id(0).into(), request(), now)
            .await
            .unwrap();
        assert!(world.shows(SECRET) && world.shows(b"request-0"));
        clear.delete_account(&account).await.unwrap();
    });

    let world = Encrypted::new();
    block_on(async {
        let sealed = world.sealed(PlainRows::Convert);
        let account = sealed.create_account(&business, "main").await.unwrap();
        let now = UnixMillis(1_700_000_000_000);
        for i in 0..samples::keys(Table::Mailbox).len() {
            let left = sealed.enqueue(&account, id(i).into(), request(), now).await;
            assert_eq!(left, Ok(true));
        }
        let key = Key::Mailbox(id(0).into());
        let row = sealed.load(&account, vec![key]).await.unwrap().remove(0);
        assert_eq!(row, baton_core::state::Row::Present(request()));
        assert!(world.shows(b"request-0"), "keys of rows are in the clear");
        assert!(!world.shows(SECRET));
        sealed.rotate(&business, now).await.unwrap();
        let mut pass = sealed.pass(&business, now, Micros(0)).await.unwrap();
        while sealed.advance(&mut pass, 3).await.unwrap() == Progress::More {}
        assert!(!world.shows(SECRET));
        assert_eq!(sealed.data_keys(&business).await.unwrap().len(), 1);
    });
}
