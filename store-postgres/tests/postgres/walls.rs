//! The wall between tenants, seen from SQL: what a query gets that forgot to ask for its tenant, or asks for another.

use crate::{
    cluster::{Db, RUNTIME, options},
    rows::{Owner, business, record},
};
use baton_core::state::{
    Store as _, Table,
    conformance::{Harness as _, block_on},
};
use baton_store_postgres::{OpenError, Options, PgStore};
use sqlx::Row as _;

/// Acts as the store does, and then runs a statement of the test's.
fn as_tenants(
    db: &Db,
    tenants: &str,
    sql: &str,
) -> Result<Vec<sqlx::postgres::PgRow>, sqlx::Error> {
    let text = format!(
        "BEGIN; SELECT set_config('role', 'baton_app', true), set_config('baton.businesses', '{tenants}', true); {sql}"
    );
    let result = db.cluster.try_sql("postgres", &db.name, &text);
    // Without the answer of the first.
    result.map(|rows| rows.into_iter().skip(1).collect())
}

fn tables() -> Vec<String> {
    let of_accounts = Table::ALL
        .iter()
        .map(|table| format!("baton_{}", table.name()));
    ["tenant", "fence", "placement", "vault"]
        .map(|table| format!("baton_{table}"))
        .into_iter()
        .chain(of_accounts)
        .collect()
}

fn two_tenants(db: &Db) -> (PgStore, Owner, Owner) {
    let store = db.open();
    let mut acme = Owner::create(&store, "acme", "main");
    let mut other = Owner::create(&store, "other", "main");
    acme.commit("of acme").unwrap();
    other.commit("of other").unwrap();
    (store, acme, other)
}

#[test]
fn a_wrong_where_sees_and_changes_only_its_own() {
    let Some(db) = Db::new() else { return };
    let (_store, acme, other) = two_tenants(&db);
    for table in tables() {
        let everything = format!("SELECT business_id FROM {table} WHERE true");
        for row in as_tenants(&db, "acme", &everything).unwrap() {
            assert_eq!(row.try_get::<&str, _>(0).unwrap(), "acme", "{table}");
        }
        let theirs = format!("SELECT business_id FROM {table} WHERE business_id = 'other'");
        assert!(
            as_tenants(&db, "acme", &theirs).unwrap().is_empty(),
            "{table}"
        );
    }
    let count = |tenants: &str, sql: &str| {
        let sql = format!("WITH x AS ({sql} RETURNING 1) SELECT count(*) FROM x");
        as_tenants(&db, tenants, &sql).map(|rows| rows[0].try_get::<i64, _>(0).unwrap())
    };
    let everybody = "UPDATE baton_event_buffer SET record = 'x'";
    assert_eq!(count("acme", everybody).unwrap(), 1);
    assert_eq!(count("acme,other", everybody).unwrap(), 2);
    assert_eq!(
        count(
            "acme",
            "DELETE FROM baton_fence WHERE business_id = 'other'"
        )
        .unwrap(),
        0
    );
    // Neither into another tenant nor over to it.
    let stolen = format!(
        "INSERT INTO baton_counters (business_id, device_id, record, written_at) VALUES ('other', {}, 'x', 0)",
        other.id.device
    );
    let error = count("acme", &stolen).unwrap_err().to_string();
    assert!(error.contains("row-level security"), "{error}");
    let moved = format!(
        "UPDATE baton_event_buffer SET business_id = 'other', device_id = {}",
        other.id.device
    );
    let error = count("acme", &moved).unwrap_err().to_string();
    assert!(error.contains("row-level security"), "{error}");
    assert_eq!(acme.id.business.as_str(), "acme");
}

#[test]
fn who_names_no_tenant_sees_nothing() {
    let Some(db) = Db::new() else { return };
    let (_store, ..) = two_tenants(&db);
    for table in tables() {
        let everything = format!("SELECT 1 FROM {table}");
        assert!(
            as_tenants(&db, "", &everything).unwrap().is_empty(),
            "{table}"
        );
        // The setting was never made in this session.
        let rows = db.cluster.try_sql(
            "postgres",
            &db.name,
            &format!("SET ROLE baton_app; {everything}"),
        );
        assert!(rows.unwrap().is_empty(), "{table}");
    }
}

/// A transaction of the fleet sees fences, wishes and names of tenants, moves fences, and that is all.
#[test]
fn the_fleet_sees_nothing_of_users() {
    let Some(db) = Db::new() else { return };
    let (store, ..) = two_tenants(&db);
    block_on(store.swap_vault(&business("acme"), 1, None, Some(record("key")))).unwrap();
    let as_fleet = |sql: &str| {
        let text = format!(
            "BEGIN; SELECT set_config('role', 'baton_app', true), set_config('baton.fleet', 'on', true); {sql}"
        );
        let rows = db.cluster.try_sql("postgres", &db.name, &text)?;
        Ok::<_, sqlx::Error>(rows.len() - 1)
    };
    for table in tables() {
        let seen = as_fleet(&format!("SELECT 1 FROM {table}")).unwrap();
        let open = ["baton_tenant", "baton_fence", "baton_placement"].contains(&table.as_str());
        assert_eq!(seen, if open { 2 } else { 0 }, "{table}");
    }
    let changed = |sql: &str| as_fleet(&format!("{sql} RETURNING 1"));
    assert_eq!(changed("UPDATE baton_fence SET commit_seq = 9").unwrap(), 2);
    for nothing in [
        "DELETE FROM baton_fence",
        "UPDATE baton_placement SET run = true",
        "DELETE FROM baton_placement",
        "UPDATE baton_tenant SET created_at = now()",
        "DELETE FROM baton_host",
        "DELETE FROM baton_cluster",
    ] {
        assert_eq!(changed(nothing).unwrap(), 0, "{nothing}");
    }
    let error = changed("INSERT INTO baton_tenant (business_id) VALUES ('new')").unwrap_err();
    assert!(error.to_string().contains("row-level security"), "{error}");
    // And a tenant's transaction moves neither hosts nor history.
    let count = |sql: &str| {
        let sql = format!("{sql} RETURNING 1");
        as_tenants(&db, "acme", &sql).unwrap().len()
    };
    assert_eq!(count("UPDATE baton_host SET state = 'dead'"), 0);
    assert_eq!(count("UPDATE baton_cluster SET generation = 7"), 0);
}

#[test]
fn the_wall_stands_around_every_table_and_for_the_owner_too() {
    let Some(db) = Db::new() else { return };
    let (_store, ..) = two_tenants(&db);
    let open = db.sql(
        "SELECT c.relname::text FROM pg_class c WHERE c.relkind = 'r' AND c.relname ~ '^baton_' \
         AND c.relname <> 'baton_schema_migrations' AND NOT (c.relrowsecurity AND c.relforcerowsecurity)",
    );
    let open: Vec<String> = open.iter().map(|row| row.try_get(0).unwrap()).collect();
    assert!(open.is_empty(), "no wall around {open:?}");
    // An owner without further rights.
    db.sql(
        "DO $$ DECLARE t text; BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'landlord') THEN CREATE ROLE landlord; END IF;
           FOR t IN SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.relname ~ '^baton_'
           LOOP EXECUTE format('ALTER TABLE %s OWNER TO landlord', t); END LOOP;
         END $$",
    );
    let rows = db.sql("SET ROLE landlord; SELECT 1 FROM baton_device");
    assert!(rows.is_empty(), "the owner sees {} devices", rows.len());
}

#[test]
fn the_role_of_the_store_owns_nothing_and_cannot_do_more() {
    let Some(db) = Db::new() else { return };
    let store = db.open();
    Owner::create(&store, "acme", "main").commit("x").unwrap();
    for sql in [
        "ALTER TABLE baton_device DISABLE ROW LEVEL SECURITY",
        "DROP POLICY baton_wall ON baton_device",
        "TRUNCATE baton_device CASCADE",
        "DROP TABLE baton_sessions",
        "UPDATE baton_schema_migrations SET checksum = ''",
    ] {
        let error = as_tenants(&db, "acme", sql).unwrap_err();
        let code = error
            .as_database_error()
            .and_then(|error| error.code().map(|code| code.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
    }
}

#[test]
fn a_role_that_could_climb_the_wall_is_refused() {
    let Some(db) = Db::new() else { return };
    db.sql(
        "DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'climber') THEN CREATE ROLE climber BYPASSRLS; END IF;
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'builder') THEN CREATE ROLE builder; END IF;
         END $$;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO climber, builder;
         GRANT USAGE ON SEQUENCE baton_device_number TO climber, builder;
         ALTER TABLE baton_seen OWNER TO builder",
    );
    let open = |role: Option<&str>| {
        let options = Options {
            role: role.map(str::to_owned),
            ..options()
        };
        RUNTIME.block_on(PgStore::connect(&db.url(), options))
    };
    let error = open(Some("climber")).unwrap_err();
    assert!(
        matches!(&error, OpenError::Bypasses(role) if role == "climber"),
        "{error}"
    );
    let error = open(Some("builder")).unwrap_err();
    assert!(
        matches!(&error, OpenError::Owns(role) if role == "builder"),
        "{error}"
    );
    // The login itself: a superuser.
    let error = open(None).unwrap_err();
    assert!(
        matches!(&error, OpenError::Bypasses(role) if role == "postgres"),
        "{error}"
    );
    let error = open(Some("Robert'); DROP")).unwrap_err();
    assert!(matches!(error, OpenError::RoleName(_)), "{error}");
}

#[test]
fn a_login_of_its_own_needs_no_other_rights() {
    let Some(db) = Db::new() else { return };
    db.sql(
        "DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'gateway') THEN CREATE ROLE gateway LOGIN; END IF;
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nobody') THEN CREATE ROLE nobody LOGIN; END IF;
         END $$; GRANT baton_app TO gateway",
    );
    let open = |user: &str, role: Option<&str>| {
        let options = Options {
            role: role.map(str::to_owned),
            ..options()
        };
        RUNTIME.block_on(PgStore::connect(
            &db.cluster.url_as(user, &db.name),
            options,
        ))
    };
    let store = open("gateway", Some("baton_app")).unwrap();
    Owner::create(&store, "acme", "one").commit("x").unwrap();
    // A member that inherits can as well work under its own name.
    let store = open("gateway", None).unwrap();
    Owner::create(&store, "acme", "two").commit("x").unwrap();
    let error = open("nobody", Some("baton_app")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no role baton_app that nobody may act as: run CREATE ROLE baton_app NOLOGIN; GRANT baton_app TO nobody"
    );
}
