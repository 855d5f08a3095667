//! The server uses the indexes that are there for it, wall or no wall.
//!
//! `auto_explain` writes down how each statement of the store was really run, with the parameters it was sent with, on a
//! database with some thousands of accounts and rows.

use crate::{
    cluster::{Cluster, RUNTIME, options},
    rows::{HOUR, Owner, beat, business, claim, join, record},
};
use baton_core::{
    jid::{Jid, Server},
    state::{
        AccountId, Claim, EventSeq, Key, Placement, Scan, Store, Table, UnixMillis,
        conformance::block_on,
    },
};
use baton_store_postgres::PgStore;

/// Tables that have a row per host, or one in all: reading them whole is the way.
const SMALL: [&str; 2] = ["baton_host", "baton_cluster"];

/// What the server did since `from`, one entry per statement: its text and plan.
fn statements(cluster: &Cluster, from: usize) -> Vec<String> {
    let log = cluster.log();
    let plans = log[from..].split("Query Text: ").skip(1);
    plans.map(str::to_owned).collect()
}

#[test]
fn every_way_in_is_an_index() {
    let Some(cluster) = Cluster::start(&[
        "shared_preload_libraries=auto_explain",
        "auto_explain.log_min_duration=0",
        "auto_explain.log_analyze=on",
        "log_line_prefix=",
    ]) else {
        return;
    };
    let url = cluster.url("postgres");
    let store = RUNTIME.block_on(PgStore::connect(&url, options())).unwrap();
    let hosts = [join(&store), join(&store), join(&store)];
    let mut owner = Owner::create_for(&store, "acme", "main", hosts[0]);
    let device = owner.id.device;
    // 12,000 accounts of 300 tenants, nearly all of them held by one of two hosts. Another one has 20,000 rows in some
    // tables.
    cluster.sql(
        "postgres",
        &format!(
            "INSERT INTO baton_tenant SELECT 't' || n FROM generate_series(0, 299) n;
             INSERT INTO baton_device (business_id, name) SELECT 't' || n % 300, 'a' || n FROM generate_series(1, 12000) n;
             INSERT INTO baton_fence (business_id, device_id, epoch, holder, sealed_timeline, sealed_generation)
               SELECT business_id, device_id, 1, CASE WHEN device_id % 20 = 0 THEN NULL WHEN device_id % 2 = 0 THEN {} ELSE {} END, 1, 1
               FROM baton_device WHERE business_id <> 'acme';
             INSERT INTO baton_placement (business_id, device_id, run)
               SELECT business_id, device_id, device_id % 3 = 0 FROM baton_device WHERE business_id <> 'acme';
             INSERT INTO baton_vault SELECT 't' || n % 300, n, 'x' FROM generate_series(1, 3000) n;
             INSERT INTO baton_sessions SELECT 'acme', {device}, n::text, 'lid', 0, 0, 'x', n FROM generate_series(1, 20000) n;
             INSERT INTO baton_seen SELECT 'acme', {device}, sha256(n::text::bytea), 'x', n FROM generate_series(1, 20000) n;
             INSERT INTO baton_event_buffer SELECT 'acme', {device}, n, 'x', n FROM generate_series(1, 20000) n;
             INSERT INTO baton_mailbox SELECT 'acme', {device}, n::text, 'x', n FROM generate_series(1, 20000) n;
             ANALYZE",
            hosts[0].0.cast_signed(),
            hosts[1].0.cast_signed()
        ),
    );
    let some: Vec<AccountId> = (0..20)
        .flat_map(|n| block_on(store.accounts(&business(&format!("t{n}")))).unwrap())
        .map(|account| account.id)
        // A few: a call that concerns a good part of a table may as well read it whole.
        .step_by(20)
        .collect();
    let from = cluster.log().len();

    beat(&store, hosts[0], HOUR);
    let claims = block_on(store.claim(hosts[2], some.clone())).unwrap();
    let granted: Vec<_> = some
        .iter()
        .zip(&claims)
        .filter_map(|(id, claim)| match claim {
            Claim::Granted(lease) => Some((id.clone(), *lease)),
            _ => None,
        })
        .collect();
    assert!(granted.len() > 1, "{claims:?}");
    let terms = granted
        .iter()
        .map(|(id, lease)| (id.clone(), lease.term))
        .collect();
    block_on(store.confirm(terms)).unwrap();
    let batches = granted
        .iter()
        .map(|(id, lease)| Owner::of(&store, id, *lease).batch("x"))
        .collect();
    block_on(store.commit(batches)).unwrap();
    let (id, lease) = &granted[0];
    block_on(store.hand_over(hosts[2], id, lease.term.epoch, hosts[1])).unwrap();
    let mine = granted
        .iter()
        .map(|(id, lease)| (id.clone(), lease.term.epoch))
        .collect();
    block_on(store.release(hosts[2], mine)).unwrap();
    assert!(block_on(store.held(hosts[1])).unwrap().len() > 5000);
    assert!(block_on(store.orphans(None, 10)).unwrap().len() <= 10);
    block_on(store.place(id, Placement::default())).unwrap();
    block_on(store.vault(&business("t7"))).unwrap();
    block_on(store.swap_vault(&business("t7"), 7, Some(record("x")), Some(record("y")))).unwrap();
    block_on(store.accounts(&business("t7"))).unwrap();
    assert!(matches!(
        claim(&store, &owner.id, hosts[1]),
        Claim::Held { .. }
    ));
    let mut batch = owner.batch("x");
    let peer = |user: &str| Jid::new(user, Server::Lid).unwrap();
    let keys = [
        Key::Session(peer("77")),
        Key::Inbox(EventSeq(500)),
        Key::Seen([7; 32]),
    ];
    batch.rows = keys.clone().map(|key| (key, Some(record("x")))).into();
    block_on(store.commit(vec![batch])).unwrap();
    let mut batch = owner.batch("x");
    batch.rows = keys.clone().map(|key| (key, None)).into();
    block_on(store.commit(vec![batch])).unwrap();
    block_on(store.load(&owner.id, keys.to_vec())).unwrap();
    let scan = |table, after| {
        let scan = Scan {
            table,
            after,
            limit: 50,
        };
        block_on(store.scan(&owner.id, scan)).unwrap().len()
    };
    assert_eq!(scan(Table::Session, Some(Key::Session(peer("7")))), 50);
    assert_eq!(scan(Table::Session, None), 50);
    assert_eq!(scan(Table::Inbox, Some(Key::Inbox(EventSeq(9000)))), 50);
    let swaps = vec![(Key::Session(peer("5")), record("x"), record("y"))];
    assert_eq!(block_on(store.swap_records(&owner.id, swaps)), Ok(1));
    block_on(store.enqueue(&owner.id, "new".into(), record("x"), UnixMillis(1))).unwrap();
    let retained = block_on(store.retain(&owner.id, Table::Seen, UnixMillis(500), 100));
    assert_eq!(retained, Ok(100));
    block_on(store.delete_account(&granted[1].0)).unwrap();

    let plans = statements(&cluster, from);
    assert!(plans.len() > 40, "{} statements explained", plans.len());
    let mut used = String::new();
    for plan in &plans {
        for line in plan
            .lines()
            .filter(|line| line.contains("Seq Scan on baton_"))
        {
            assert!(
                SMALL.iter().any(|table| line.contains(table)),
                "{line}\n{plan}"
            );
        }
        used.push_str(plan);
    }
    for index in [
        "baton_fence_pkey",
        "baton_fence_holder",
        "baton_placement_pkey",
        "baton_placement_run",
        "baton_vault_pkey",
        "baton_sessions_pkey",
        "baton_event_buffer_pkey",
        "baton_seen_pkey",
        "baton_seen_age",
        "baton_device_business_id_name_key",
    ] {
        assert!(used.contains(index), "{index} is not used");
    }
}

/// Whether there are orphans is asked every two seconds by every host. With none it takes as many steps as there are
/// hosts; an index of wishes finds what was never held.
/// A server without statistics took a commit for so much work that it compiled it first: a second of processor time each,
/// on every connection. Here it would compile everything.
#[test]
fn no_statement_is_compiled() {
    let Some(cluster) = Cluster::start(&[
        "shared_preload_libraries=auto_explain",
        "auto_explain.log_min_duration=0",
        "auto_explain.log_analyze=on",
        "log_line_prefix=",
        "jit_above_cost=0",
    ]) else {
        return;
    };
    for pooler in [false, true] {
        let url = cluster.url("postgres");
        let options = baton_store_postgres::Options {
            pooler,
            ..options()
        };
        let store = RUNTIME.block_on(PgStore::connect(&url, options)).unwrap();
        let begin = cluster.log().len();
        let name = if pooler { "behind" } else { "direct" };
        let mut owner = Owner::create_for(&store, "acme", name, join(&store));
        let batch = owner.batch("x");
        block_on(store.commit(vec![batch])).unwrap();
        block_on(store.load(&owner.id, vec![Key::Counters])).unwrap();
        let statements = statements(&cluster, begin);
        assert!(statements.len() > 4, "{statements:?}");
        // All but the one that says so.
        for statement in statements.iter().filter(|text| !text.contains("'jit'")) {
            assert!(!statement.contains("JIT:"), "{statement}");
        }
    }
}

#[test]
fn looking_for_orphans_does_not_read_what_is_held() {
    let Some(db) = crate::cluster::Db::new() else {
        return;
    };
    let store = db.open_with(options());
    let host = join(&store);
    db.sql(&format!(
        "INSERT INTO baton_tenant VALUES ('acme');
         INSERT INTO baton_device (business_id, name) SELECT 'acme', 'a' || n FROM generate_series(1, 20000) n;
         INSERT INTO baton_fence (business_id, device_id, epoch, holder, sealed_timeline, sealed_generation)
           SELECT business_id, device_id, 1, {}, 1, 1 FROM baton_device;
         INSERT INTO baton_placement (business_id, device_id, run) SELECT business_id, device_id, true FROM baton_device;
         ANALYZE",
        host.0.cast_signed()
    ));
    let read = || {
        db.sql("SELECT pg_stat_force_next_flush()");
        db.number(
            "SELECT (sum(seq_tup_read) + sum(idx_tup_fetch))::bigint FROM pg_stat_user_tables \
             WHERE relname IN ('baton_fence', 'baton_placement')",
        )
    };
    // Statistics are handed over when a connection ends.
    let counted = |looks: u32| {
        let before = read();
        let looking = db.open_with(options());
        for _ in 0..looks {
            assert_eq!(block_on(looking.orphans(None, 100)), Ok(vec![]));
        }
        drop(looking);
        std::thread::sleep(std::time::Duration::from_millis(500));
        read() - before
    };
    let rows = counted(20);
    assert!(rows < 1000, "{rows} rows read to find nothing, 20 times");
}
