//! The server uses the indexes that are there for it, wall or no wall.

use crate::{cluster::Db, rows::Owner};
use baton_core::state::conformance::Harness as _;
use sqlx::Row as _;

#[test]
fn every_way_in_is_an_index() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let owner = Owner::create(&store, "acme", "main");
    let device = owner.id.device;
    db.sql(&format!(
        "INSERT INTO baton_sessions SELECT 'acme', {device}, n::text, 'lid', 0, 0, 'x', n FROM generate_series(1, 20000) n;
         INSERT INTO baton_seen SELECT 'acme', {device}, sha256(n::text::bytea), 'x', n FROM generate_series(1, 20000) n;
         INSERT INTO baton_event_buffer SELECT 'acme', {device}, n, 'x', n FROM generate_series(1, 20000) n;
         ANALYZE"
    ));
    let mine = format!("business_id = 'acme' AND device_id = {device}");
    let cases = [
        (
            "a row by key",
            format!(
                "SELECT k.n, t.record FROM unnest('{{5,77}}'::text[], '{{lid,lid}}'::text[], '{{0,0}}'::bigint[], \
                 '{{0,0}}'::bigint[]) WITH ORDINALITY AS k(u, s, d, i, n) JOIN baton_sessions t ON t.{mine_t} \
                 AND t.peer_user = k.u AND t.peer_server = k.s AND t.peer_device = k.d AND t.peer_integrator = k.i",
                mine_t = mine.replace("AND ", "AND t.")
            ),
            "baton_sessions_pkey",
        ),
        (
            "a page of events",
            format!(
                "SELECT record FROM baton_event_buffer WHERE {mine} AND seq >= 9000 AND seq > 9000 ORDER BY seq LIMIT 50"
            ),
            "baton_event_buffer_pkey",
        ),
        (
            "a page of sessions",
            format!(
                "SELECT record FROM baton_sessions WHERE {mine} AND peer_user >= '5' ORDER BY peer_user LIMIT 50"
            ),
            "baton_sessions_pkey",
        ),
        (
            "the oldest",
            format!(
                "SELECT hash FROM baton_seen WHERE {mine} AND written_at < 500 ORDER BY written_at LIMIT 100"
            ),
            "baton_seen_age",
        ),
        (
            "a fence",
            format!("UPDATE baton_fence SET applied = 1 WHERE {mine} AND epoch = 1"),
            "baton_fence_pkey",
        ),
    ];
    for (what, sql, index) in cases {
        // Small tables are read whole; that they could be found by index is what counts.
        let rows = db.sql(&format!(
            "BEGIN; SET LOCAL ROLE baton_app; SET LOCAL baton.businesses = 'acme'; {} EXPLAIN {sql}",
            if what == "a fence" { "SET LOCAL enable_seqscan = off;" } else { "" }
        ));
        let plan: Vec<String> = rows.iter().map(|row| row.try_get(0).unwrap()).collect();
        let plan = plan.join("\n");
        assert!(
            plan.contains(index) && !plan.contains("Seq Scan"),
            "{what}:\n{plan}"
        );
    }
}

/// The statements as the store has them, with the parameters it sends.
#[test]
fn pages_of_a_large_table_are_cheap() {
    use baton_core::{
        jid::{Jid, Server},
        state::{Key, Scan, Store, Table, conformance::block_on},
    };
    let Some(db) = Db::new() else { return };
    let store = db.open();
    let owner = Owner::create(&store, "acme", "main");
    db.sql(&format!(
        "INSERT INTO baton_sessions SELECT 'acme', {}, n::text, 'lid', 0, 0, 'x', n FROM generate_series(1, 50000) n; ANALYZE",
        owner.id.device
    ));
    let after = Jid::new("7", Server::Lid).unwrap();
    let started = std::time::Instant::now();
    for _ in 0..20 {
        let scan = Scan {
            table: Table::Session,
            after: Some(Key::Session(after.clone())),
            limit: 20,
        };
        assert_eq!(block_on(store.scan(&owner.id, scan)).unwrap().len(), 20);
    }
    let read = db.number("SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes WHERE relname = 'baton_sessions'");
    let scans =
        db.number("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'baton_sessions'");
    assert!(started.elapsed().as_secs() < 10);
    assert!(
        read < 20_000 && scans <= 1,
        "{read} index entries read, {scans} scans of the whole table"
    );
}
