//! What happens when the file, the disk or another process is in the way.

use super::*;
use crate::{OpenError, SCHEMA_VERSION};
use baton_core::state::{Outcome, StoreError};
use std::{fs, time::Duration};

fn open_error(path: &std::path::Path) -> OpenError {
    let options = Options {
        busy: Duration::from_millis(100),
        ..Options::default()
    };
    SqliteStore::open(path, options).expect_err("must not open")
}

#[test]
fn what_cannot_be_opened_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);

    let error = open_error(&path("no/such/db"));
    assert!(matches!(error, OpenError::NoDirectory(_)), "{error}");
    let error = open_error(directory.path());
    assert!(matches!(error, OpenError::NotADatabase(_)), "{error}");
    fs::write(
        path("text"),
        "This is not a database, however long one looks at it. ".repeat(100),
    )
    .unwrap();
    let error = open_error(&path("text"));
    assert!(matches!(error, OpenError::NotADatabase(_)), "{error}");
    assert_eq!(
        error.to_string(),
        format!("{} is not a SQLite database", path("text").display())
    );

    // An empty file is what a crash between creating and migrating leaves.
    fs::write(path("empty"), "").unwrap();
    SqliteStore::open(path("empty"), Options::default()).unwrap();
}

#[test]
fn other_schemas_are_refused() {
    let harness = OnDisk::new();
    drop(harness.open());
    let edit = |sql: &str| {
        Connection::open(harness.path())
            .unwrap()
            .execute(sql, [])
            .unwrap()
    };

    edit("UPDATE baton_schema_migrations SET checksum = 'edited' WHERE version = 1");
    let error = open_error(&harness.path());
    assert!(
        matches!(error, OpenError::Changed { version: 1, .. }),
        "{error}"
    );

    edit("INSERT INTO baton_schema_migrations VALUES (9, 'future', '', 0)");
    let error = open_error(&harness.path());
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 9,
                known: SCHEMA_VERSION,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn tables_of_other_programs_are_left_alone() {
    let harness = OnDisk::new();
    let connection = Connection::open(harness.path()).unwrap();
    connection
        .execute_batch("CREATE TABLE sessions (x); INSERT INTO sessions VALUES (1)")
        .unwrap();
    drop(connection);
    let store = harness.open();
    block_on(store.create_account(&business(), "main")).unwrap();
    let connection = Connection::open(harness.path()).unwrap();
    let count = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(count("SELECT count(*) FROM sessions"), 1);
    let foreign = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'baton\\_%' ESCAPE '\\'";
    assert_eq!(count(foreign), 1, "every table of ours has the prefix");
}

#[cfg(unix)]
#[test]
fn only_the_owner_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let harness = OnDisk::new();
    let store = harness.open();
    block_on(store.create_account(&business(), "main")).unwrap();
    for beside in ["", "-wal", "-shm"] {
        let path = format!("{}{beside}", harness.path().display());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
}

#[test]
fn a_full_disk_refuses_the_large_and_takes_the_small() {
    let harness = OnDisk::new();
    let store = SqliteStore::open_with(
        harness.path(),
        harness.options(),
        "PRAGMA max_page_count = 200",
    )
    .unwrap();
    let small = block_on(store.create_account(&business(), "small")).unwrap();
    let large = block_on(store.create_account(&business(), "large")).unwrap();
    join(&store, ALICE, HOUR);
    let terms = [&small, &large].map(|id| granted(&store, ALICE, id).term);

    // Hold the writer back, so that both calls are in one transaction.
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = store.hold(gate);
    let fits = store.commit(vec![batch(
        &small,
        terms[0],
        1,
        [(Key::Counters, vec![1; 100])],
    )]);
    let rows = (1..=20).map(|n| (Key::PreKey(n), vec![2; 200_000]));
    let too_large = store.commit(vec![batch(&large, terms[1], 1, rows)]);
    release.send(()).unwrap();
    block_on(gate).unwrap();

    assert_eq!(
        block_on(too_large),
        Err(StoreError::Refused(
            "no space left for the database".to_owned()
        ))
    );
    assert_eq!(
        block_on(fits),
        Ok(vec![Outcome::Committed]),
        "the neighbour in the same transaction"
    );
    let rows = block_on(store.load(&large, (1..=20).map(Key::PreKey).collect())).unwrap();
    assert!(rows.iter().all(|row| *row == Row::Absent), "nothing half");
    // And the account goes on with what fits, under the same number.
    let again =
        block_on(store.commit(vec![batch(&large, terms[1], 1, [(Key::Counters, vec![3])])]));
    assert_eq!(again, Ok(vec![Outcome::Committed]));
}

/// The rules of the core come first, so it takes a trigger to make a table refuse a row in the middle of a batch.
#[test]
fn what_a_table_refuses_is_rejected_alone() {
    let harness = OnDisk::new();
    let store = harness.open();
    let id = block_on(store.create_account(&business(), "main")).unwrap();
    let other = block_on(store.create_account(&business(), "other")).unwrap();
    let terms = [&other, &id].map(|id| owned(&store, ALICE, id));
    let connection = Connection::open(harness.path()).unwrap();
    let trigger =
        "CREATE TRIGGER no BEFORE INSERT ON baton_outbox BEGIN SELECT RAISE(ABORT, 'no'); END";
    connection.execute(trigger, []).unwrap();

    let refused = [(Key::Counters, vec![1]), (Key::Outbox("m".into()), vec![1])];
    let call = vec![
        batch(&other, terms[0], 1, [(Key::Counters, vec![1])]),
        batch(&id, terms[1], 1, refused),
        batch(&id, terms[1], 1, [(Key::PreKey(1), vec![1])]),
        batch(&other, terms[0], 2, [(Key::PreKey(1), vec![1])]),
    ];
    let outcomes = block_on(store.commit(call)).unwrap();
    assert!(matches!(outcomes[1], Outcome::Rejected(_)), "{outcomes:?}");
    for n in [0, 2, 3] {
        assert_eq!(outcomes[n], Outcome::Committed, "batch {n}");
    }
    let rows = block_on(store.load(&id, vec![Key::Counters, Key::PreKey(1)])).unwrap();
    assert_eq!(
        rows,
        [Row::Absent, Row::Present(Record(Bytes::from_static(&[1])))]
    );
}

#[test]
fn a_locked_database_is_unavailable_and_comes_back() {
    let harness = OnDisk::new();
    let options = Options {
        busy: Duration::from_millis(50),
        ..harness.options()
    };
    let store = SqliteStore::open(harness.path(), options).unwrap();
    let id = block_on(store.create_account(&business(), "main")).unwrap();
    let term = owned(&store, ALICE, &id);
    let write = || store.commit(vec![batch(&id, term, 1, [(Key::Counters, vec![1])])]);

    let other = Connection::open(harness.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = block_on(write()).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // Reading goes on meanwhile.
    assert_eq!(
        block_on(store.load(&id, vec![Key::Counters])),
        Ok(vec![Row::Absent])
    );
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(block_on(write()), Ok(vec![Outcome::Committed]));
}

#[test]
fn deleting_an_account_takes_its_rows_and_never_its_number() {
    let harness = OnDisk::new();
    let store = harness.open();
    let id = block_on(store.create_account(&business(), "main")).unwrap();
    let term = owned(&store, ALICE, &id);
    let keys = || {
        baton_core::state::Table::ALL
            .iter()
            .flat_map(|&table| baton_core::state::conformance::samples::keys(table))
    };
    let rows = batch(&id, term, 1, keys().map(|key| (key, vec![1])));
    assert_eq!(
        block_on(store.commit(vec![rows])),
        Ok(vec![Outcome::Committed])
    );

    let connection = Connection::open(harness.path()).unwrap();
    connection
        .pragma_update(None, "foreign_keys", true)
        .unwrap();
    connection.execute("DELETE FROM baton_device", []).unwrap();
    for table in baton_core::state::Table::ALL
        .iter()
        .map(|table| table.name())
        .chain(["fence"])
    {
        let sql = format!("SELECT count(*) FROM baton_{table}");
        let left: i64 = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{table}");
    }
    let next = block_on(store.create_account(&business(), "main")).unwrap();
    assert_eq!(next.device, id.device + 1);
    // The engine of the deleted account meets nobody.
    let late = block_on(store.commit(vec![batch(&id, term, 2, [])])).unwrap();
    assert!(matches!(late[..], [Outcome::Rejected(_)]), "{late:?}");
}

#[test]
fn a_damaged_file_is_refused_with_a_sentence() {
    let harness = OnDisk::new();
    let id = {
        let store = harness.open();
        let id = block_on(store.create_account(&business(), "main")).unwrap();
        let term = owned(&store, ALICE, &id);
        let rows = (1..=50).map(|n| (Key::PreKey(n), vec![n as u8; 2000]));
        block_on(store.commit(vec![batch(&id, term, 1, rows)])).unwrap();
        id
    };
    assert!(!fs::exists(format!("{}-wal", harness.path().display())).unwrap());
    // The last to close has copied the log into the file. Ruin the first page of one table.
    let root: u32 = {
        let connection = Connection::open(harness.path()).unwrap();
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'baton_pre_keys'";
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let mut bytes = fs::read(harness.path()).unwrap();
    let root = root as usize;
    bytes[(root - 1) * 4096..root * 4096].fill(0x55);
    fs::write(harness.path(), bytes).unwrap();

    let store = harness.open();
    let damaged = StoreError::Refused("the database file is damaged: restore a backup".to_owned());
    assert_eq!(
        block_on(store.load(&id, vec![Key::PreKey(1)])),
        Err(damaged.clone())
    );
    let term = owned(&store, ALICE, &id);
    let rows = [(Key::Counters, vec![1]), (Key::PreKey(1), vec![1])];
    assert_eq!(
        block_on(store.commit(vec![batch(&id, term, 2, rows)])),
        Err(damaged)
    );
    // Other tables are still there, and can be written under the same number.
    assert_eq!(
        block_on(store.load(&id, vec![Key::Counters])),
        Ok(vec![Row::Absent])
    );
    let again = batch(&id, term, 2, [(Key::Counters, vec![2])]);
    assert_eq!(
        block_on(store.commit(vec![again])),
        Ok(vec![Outcome::Committed])
    );
}
