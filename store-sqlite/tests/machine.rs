//! What the machine can do to a database: no space, no rights, nothing to write to, and several programs that bring
//! the tables up to date at the same moment.
//!
//! A full and a read-only file system are real ones (a small tmpfs), which takes the right to mount; where that is
//! missing these two tests say so and the unit tests, which limit the size of the file instead, have to do.

use baton_core::state::{
    AccountId, Batch, BusinessId, Claim, HostInfo, Incarnation, Key, Micros, Outcome, Record, Row,
    Seq, Store, StoreError, Table, Term, UnixMillis, conformance::block_on,
};
use baton_store_sqlite::{Options, SCHEMA_VERSION, SqliteStore};
use bytes::Bytes;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

const HOST: Incarnation = Incarnation(1);

fn options() -> Options {
    Options {
        busy: Duration::from_secs(30),
        ..Options::default()
    }
}

fn owned(store: &SqliteStore) -> (AccountId, Term) {
    let id = block_on(store.create_account(&BusinessId::default(), "main")).unwrap();
    let hour = Micros::from_secs(3600);
    block_on(store.join(HOST, HostInfo::named("host"), hour)).unwrap();
    match block_on(store.claim(HOST, vec![id.clone()])).unwrap()[..] {
        [Claim::Granted(lease)] => (id, lease.term),
        ref other => panic!("{other:?}"),
    }
}

fn commit(
    store: &SqliteStore,
    (id, term): &(AccountId, Term),
    seq: u64,
    bytes: usize,
) -> Result<Outcome, StoreError> {
    let content = Record(Bytes::from(vec![seq as u8; bytes]));
    let batch = Batch {
        account: id.clone(),
        term: *term,
        seq: Seq(seq),
        reseal: false,
        at: UnixMillis(0),
        rows: [
            (Key::Counters, Some(Record(Bytes::from(vec![seq as u8])))),
            (Key::PreKey(seq as u32), Some(content)),
        ]
        .into(),
    };
    block_on(store.commit(vec![batch])).map(|mut outcomes| outcomes.remove(0))
}

/// A file system of its own, gone in the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` if we may not.
    fn new(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            Some(Self(directory))
        } else {
            eprintln!("no right to mount: not tested here");
            None
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// The disk runs full in the middle of everything. What was answered stays, what was refused is not there by half,
/// reading goes on, and with space again the same batch goes through.
#[test]
fn a_full_disk_refuses_and_recovers() {
    let Some(disk) = Mounted::new("4m") else {
        return;
    };
    let path = disk.path().join("baton.db");
    let store = SqliteStore::open(&path, options()).unwrap();
    let account = owned(&store);
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let mut applied = 0;
    let refused = loop {
        match commit(&store, &account, applied + 1, 100_000) {
            Ok(outcome) => assert_eq!(outcome, Outcome::Committed),
            Err(error) => break error,
        }
        applied += 1;
        assert!(applied < 100, "the disk never gets full");
    };
    let full = StoreError::Refused("no space left for the database".to_owned());
    assert_eq!(refused, full);
    assert!(applied > 5, "full after {applied}");
    let check = |store: &SqliteStore| {
        let rows = block_on(store.load(&account.0, vec![Key::Counters])).unwrap();
        let last = Row::Present(Record(Bytes::from(vec![applied as u8])));
        assert_eq!(rows, [last]);
        let scan = baton_core::state::Scan {
            table: Table::PreKey,
            after: None,
            limit: 1000,
        };
        let keys = block_on(store.scan(&account.0, scan)).unwrap();
        assert_eq!(keys.len() as u64, applied);
    };
    check(&store);
    // Another program that opens it now, or this one started again, comes through or says what is wrong.
    match SqliteStore::open(&path, options()) {
        Ok(second) => check(&second),
        Err(error) => assert!(error.to_string().contains("no space left"), "{error}"),
    }
    fs::remove_file(&ballast).unwrap();
    let again = commit(&store, &account, applied + 1, 100_000);
    assert_eq!(again, Ok(Outcome::Committed));
    drop(store);
    let store = SqliteStore::open(&path, options()).unwrap();
    let held = block_on(store.held(HOST)).unwrap();
    assert_eq!(held[0].1.applied, Seq(applied + 1));
    assert_eq!(block_on(store.history()).unwrap().generation, 1);
}

#[test]
fn a_full_disk_is_no_place_to_begin() {
    let Some(disk) = Mounted::new("64k") else {
        return;
    };
    let path = disk.path().join("baton.db");
    let error = SqliteStore::open(&path, options()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no space left for {}", path.display())
    );
}

#[test]
fn a_read_only_file_system_is_refused() {
    let Some(disk) = Mounted::new("4m") else {
        return;
    };
    let path = disk.path().join("baton.db");
    drop(SqliteStore::open(&path, options()).unwrap());
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(disk.path())
        .status();
    assert!(remounted.unwrap().success());
    let sentence = |path: &Path| format!("{} is read-only: the store has to write", path.display());
    for path in [&path, &disk.path().join("new.db")] {
        let error = SqliteStore::open(path, options()).unwrap_err();
        assert_eq!(error.to_string(), sentence(path));
    }
}

/// As somebody who is not the owner. Root may do everything, so a process of another user does it.
#[cfg(unix)]
#[test]
fn missing_rights_are_one_sentence() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(directory.path(), 0o755);
    let make = |name: &str, of_directory, of_file| -> PathBuf {
        let home = directory.path().join(name);
        fs::create_dir(&home).unwrap();
        let path = home.join("baton.db");
        drop(SqliteStore::open(&path, options()).unwrap());
        set(&path, of_file);
        set(&home, of_directory);
        path
    };
    let no_rights = |path: &Path| {
        format!(
            "no permission to read and write {}, its directory, and the files beside it",
            path.display()
        )
    };
    let read_only =
        |path: &Path| format!("{} is read-only: the store has to write", path.display());
    let closed = make("closed", 0o000, 0o600);
    let unreadable = make("unreadable", 0o777, 0o000);
    let unwritable = make("unwritable", 0o777, 0o444);
    let fixed = make("fixed", 0o555, 0o666);
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    set(&empty, 0o555);
    let empty = empty.join("baton.db");
    let cases = [
        (&closed, no_rights(&closed)),
        (&unreadable, no_rights(&unreadable)),
        (&unwritable, read_only(&unwritable)),
        (&fixed, no_rights(&fixed)),
        (&empty, no_rights(&empty)),
    ];
    for (path, expected) in cases {
        let output = as_nobody(directory.path(), path);
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.lines().find_map(|line| line.strip_prefix("open: "));
        assert_eq!(said, Some(&expected[..]), "{output:?}");
    }
    set(closed.parent().unwrap(), 0o700);
}

/// Opens `path` in a process that is not root's.
#[cfg(unix)]
fn as_nobody(place: &Path, path: &Path) -> Output {
    use std::os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    };
    const NOBODY: u32 = 65534;
    let me = std::env::current_exe().unwrap();
    // Where nobody may look for it.
    let program = place.join("program");
    if !program.exists() {
        fs::copy(me, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = child_command(&program, "open", path);
    if fs::metadata(place).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

/// Programs that start at the same moment, on a new file and on one of the first release: each finds it ready, and
/// every migration was applied once.
#[test]
fn several_processes_migrate_at_once() {
    const PROCESSES: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let path = directory.path().join(format!("{round}.db"));
        let old = round % 2 == 1;
        if old {
            first_release(&path);
        }
        let children: Vec<Child> = (0..PROCESSES)
            .map(|_| {
                child_command(&std::env::current_exe().unwrap(), "open", &path)
                    .spawn()
                    .unwrap()
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("open: generation 1\n"), "{output:?}");
        }
        let connection = rusqlite::Connection::open(&path).unwrap();
        let count = |sql: &str| -> u32 { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
        let applied = count("SELECT count(*) FROM baton_schema_migrations");
        assert_eq!(applied, SCHEMA_VERSION);
        drop(connection);
        if old {
            is_what_the_first_release_wrote(&path);
        }
    }
}

/// A file as the first migration made it, with an account that somebody held by a lease.
fn first_release(path: &Path) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let sql = include_str!("../migrations/0001_accounts.sql");
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE baton_schema_migrations (
                version INTEGER NOT NULL PRIMARY KEY CHECK (version >= 1), name TEXT NOT NULL,
                checksum TEXT NOT NULL, applied_at INTEGER NOT NULL
             ) STRICT;
             {sql}
             INSERT INTO baton_schema_migrations VALUES (1, 'accounts', '{FIRST_CHECKSUM}', 0);
             INSERT INTO baton_tenant VALUES ('default', 0);
             INSERT INTO baton_device (business_id, device_id, name, created_at) VALUES ('default', 1, 'main', 0);
             UPDATE baton_numbers SET next_device_id = 2;
             INSERT INTO baton_fence VALUES ('default', 1, 7, 41, '00000000000000aa', 99999999999999, 60000);
             INSERT INTO baton_counters VALUES ('default', 1, x'0102', 5);"
        ))
        .unwrap();
}

/// Of the first migration. It never changes.
const FIRST_CHECKSUM: &str = "4e96c11d23b14036";

fn is_what_the_first_release_wrote(path: &Path) {
    let store = SqliteStore::open(path, options()).unwrap();
    let listed = block_on(store.accounts(&BusinessId::default())).unwrap();
    assert_eq!(listed.len(), 1);
    let id = &listed[0].id;
    assert_eq!((listed[0].holder, listed[0].epoch.0), (None, 7));
    let rows = block_on(store.load(id, vec![Key::Counters])).unwrap();
    assert_eq!(rows, [Row::Present(Record(Bytes::from_static(&[1, 2])))]);
    // Whoever held it has no lease any more, and is fenced by the first claim.
    let hour = Micros::from_secs(3600);
    block_on(store.join(HOST, HostInfo::named("host"), hour)).unwrap();
    let claims = block_on(store.claim(HOST, vec![id.clone()])).unwrap();
    let [Claim::Granted(lease)] = claims[..] else {
        panic!("{claims:?}")
    };
    assert_eq!((lease.term.epoch.0, lease.applied), (8, Seq(41)));
    assert_eq!(lease.sealed, lease.term.history, "nothing to make good");
    let next = block_on(store.create_account(&BusinessId::default(), "other")).unwrap();
    assert_eq!(next.device, 2);
}

fn child_command(program: &Path, role: &str, path: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args([
            "child",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("BATON_TEST_ROLE", role)
        .env("BATON_TEST_PATH", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The other process. Ignored because it is no test: [`child_command`] runs it by name.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child() {
    if std::env::var("BATON_TEST_ROLE").as_deref() != Ok("open") {
        return;
    }
    let path = PathBuf::from(std::env::var("BATON_TEST_PATH").unwrap());
    match SqliteStore::open(path, options()) {
        Ok(store) => {
            let history = block_on(store.history()).unwrap();
            println!("\nopen: generation {}", history.generation);
        }
        Err(error) => println!("\nopen: {error}"),
    }
}
