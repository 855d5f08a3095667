//! The suite over encrypted rows in a real server: what is left readable is enough for every call.

use crate::cluster::{Db, RUNTIME, options};
use baton_core::{
    crypto::SecretKey,
    state::{
        Micros,
        conformance::Harness,
        sealed::{MasterKey, MasterKeys, PlainRows, Sealed},
    },
};
use baton_store_postgres::PgStore;
use std::sync::atomic::{AtomicU64, Ordering};

struct Encrypted(Db);

impl Harness for Encrypted {
    type Store = Sealed<PgStore>;

    fn open(&self) -> Self::Store {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let mut seed = [3; 32];
        seed[..8].copy_from_slice(&OPENED.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        let masters = MasterKeys::new(MasterKey::new(&SecretKey::from_bytes([1; 32])));
        let below = self.0.open_with(options());
        let opened = Sealed::open(below, masters, seed, PlainRows::Refuse);
        RUNTIME.block_on(opened).unwrap()
    }

    fn advance(&self, by: Micros) {
        self.0.advance(by);
    }
}

baton_core::store_conformance!(match Db::new() {
    Some(db) => Encrypted(db),
    None => return,
});
