//! Programs of different versions on one database.

use crate::{
    cluster::{Db, RUNTIME, options},
    rows::{Owner, claim, join},
};
use baton_core::state::{
    AccountId, Claim, Epoch, Outcome, Placement, Seal, Store,
    conformance::{Harness as _, block_on},
};
use baton_store_postgres::{OpenError, PgStore, SCHEMA_VERSION};

/// As the migrations' checksums are made.
fn checksum(sql: &str) -> String {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = sql.bytes().filter(|&byte| byte != b'\r');
    format!("{:016x}", hash.fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// A database as version 1 has made it, with an account that a host of version 1 holds.
fn of_version_1(db: &Db) -> AccountId {
    let sql = include_str!("../../migrations/0001_accounts.sql");
    db.sql(&format!(
        "CREATE TABLE baton_schema_migrations (
             version integer NOT NULL PRIMARY KEY CHECK (version >= 1),
             name text NOT NULL,
             checksum text NOT NULL,
             compatible_from integer NOT NULL CHECK (compatible_from BETWEEN 1 AND version),
             applied_at timestamptz NOT NULL DEFAULT now()
         );
         {sql};
         INSERT INTO baton_schema_migrations VALUES (1, 'accounts', '{}', 1);
         INSERT INTO baton_tenant VALUES ('acme');
         INSERT INTO baton_device (business_id, name) VALUES ('acme', 'main'), ('acme', 'idle');
         INSERT INTO baton_fence (business_id, device_id, epoch, applied, holder, expires_at, lease_us)
           SELECT business_id, device_id, 5, 3, 77, now() + interval '1 hour', 3600000000 FROM baton_device
           WHERE name = 'main';
         INSERT INTO baton_fence (business_id, device_id) SELECT business_id, device_id FROM baton_device
           WHERE name = 'idle'",
        checksum(sql)
    ));
    AccountId {
        business: crate::rows::business("acme"),
        device: u64::try_from(db.number("SELECT device_id FROM baton_device WHERE name = 'main'"))
            .unwrap(),
    }
}

/// Version 2 takes over a database of version 1, beside a host of version 1 that still has an account: that one goes on
/// until version 2 claims it, and then has lost it.
#[test]
fn version_2_takes_over_from_version_1() {
    let Some(db) = Db::empty() else { return };
    let account = of_version_1(&db);
    // The role may be missing as well as the second migration.
    let store = db.open();
    assert_eq!(
        db.number("SELECT count(*) FROM baton_schema_migrations"),
        i64::from(SCHEMA_VERSION)
    );
    let accounts = block_on(store.accounts(&account.business)).unwrap();
    let main = accounts
        .iter()
        .find(|account| account.name == "main")
        .unwrap();
    assert_eq!((main.epoch, main.holder), (Epoch(5), None));
    assert_eq!(main.placement, Placement::default());
    assert_eq!(accounts.len(), 2);

    // The guard of its commits.
    let old = |seq: u64| {
        db.number(&format!(
            "WITH m AS (UPDATE baton_fence SET applied = {seq} WHERE business_id = 'acme' AND device_id = {} \
             AND epoch = 5 AND applied = {seq} - 1 RETURNING 1) SELECT count(*) FROM m",
            account.device
        ))
    };
    assert_eq!(old(4), 1, "the host of version 1 goes on");
    let mut owner = Owner::claim(&store, &account, join(&store));
    assert_eq!((owner.epoch(), owner.seq.0), (Epoch(6), 4));
    assert_eq!(owner.lease.sealed, Seal::FIRST);
    assert_eq!(old(5), 0, "and is fenced");
    assert_eq!(owner.commit("x"), Ok(Outcome::Committed));
}

/// The next version adds what this one does not know of and says that it can stay: it can.
#[test]
fn this_version_works_beside_the_next() {
    let Some(db) = Db::new() else { return };
    let running = db.open();
    let mut owner = Owner::create(&running, "acme", "main");
    owner.commit("before").unwrap();
    let next = SCHEMA_VERSION + 1;
    db.sql(&format!(
        "ALTER TABLE baton_fence ADD COLUMN region text NOT NULL DEFAULT 'x';
         ALTER TABLE baton_host ADD COLUMN load real;
         ALTER TABLE baton_event_buffer ADD COLUMN kind smallint;
         CREATE TABLE baton_later (business_id text PRIMARY KEY);
         GRANT SELECT, INSERT, UPDATE, DELETE ON baton_later TO baton_app;
         INSERT INTO baton_schema_migrations VALUES ({next}, 'later', '', {SCHEMA_VERSION})"
    ));
    // Who runs goes on, with the statements it has prepared; who starts gets in.
    assert_eq!(owner.commit("after"), Ok(Outcome::Committed));
    let started = db.open();
    let who = join(&started);
    assert!(matches!(
        claim(&started, &owner.id, who),
        Claim::Held { .. }
    ));
    let handed = block_on(running.hand_over(owner.who(), &owner.id, owner.epoch(), who));
    assert!(handed.is_ok(), "{handed:?}");
    let lease = block_on(started.held(who)).unwrap()[0].1;
    let mut owner = Owner::of(&started, &owner.id, lease);
    assert_eq!(owner.commit("handed over"), Ok(Outcome::Committed));
    // Until the one after that leaves us behind.
    db.sql(&format!(
        "INSERT INTO baton_schema_migrations VALUES ({0}, 'much later', '', {0})",
        next + 1
    ));
    let error = RUNTIME
        .block_on(PgStore::connect(&db.url(), options()))
        .unwrap_err();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}
