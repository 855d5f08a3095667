//! Statement by statement: none reads a whole table, and none is where a crash or an error leaves half a batch.

use super::*;
use crate::{Database, Failure, Transaction, Work};
use baton_core::state::{
    EventSeq, HandOver, Outcome, Placement, Scan, Seal, Seq, StoreError, Table,
    conformance::{history, ownership, samples, tables, vault},
};
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

/// A call in a transaction of its own.
struct Call<T, F> {
    call: F,
    answer: Option<Result<T, StoreError>>,
}

impl<T, F: FnMut(&mut Transaction<'_>) -> Result<T, Failure>> Work for Call<T, F> {
    fn attempt(&mut self, transaction: &mut Transaction<'_>) -> Result<(), rusqlite::Error> {
        self.answer = Some(match (self.call)(transaction) {
            Ok(value) => Ok(value),
            Err(Failure::Answer(error)) => Err(error),
            Err(Failure::Transaction(error)) => return Err(error),
        });
        Ok(())
    }

    fn fail(&mut self, error: StoreError) {
        self.answer = Some(Err(error));
    }
}

fn write<T>(
    database: &mut Database,
    call: impl FnMut(&mut Transaction<'_>) -> Result<T, Failure>,
) -> Result<T, StoreError> {
    let mut work = Call { call, answer: None };
    database.transact(&mut [&mut work], &|| UnixMillis(1_700_000_000_000));
    work.answer.unwrap()
}

fn open(path: &Path) -> Database {
    Database::open(path, Duration::from_secs(5), true, UnixMillis(0)).unwrap()
}

fn record(text: &str) -> Record {
    Record(Bytes::copy_from_slice(text.as_bytes()))
}

/// Calls `look` with the text of each statement before it runs.
fn trace(database: &mut Database, mut look: impl FnMut(&str) + Send + 'static) {
    let tell = move |event: TraceEvent<'_>| {
        if let TraceEvent::Stmt(statement, _) = event {
            look(&statement.sql());
        }
    };
    let codes = TraceEventCodes::SQLITE_TRACE_STMT;
    let connection = database.connection();
    connection.trace_v2(codes, Some(tell)).unwrap();
}

/// Runs every call there is, on every table, and asks SQLite how it does what it was asked to do.
#[test]
fn no_call_reads_a_whole_table() {
    let harness = OnDisk::new();
    let path = harness.path();
    let mut writer = open(&path);
    let mut reader = Database::open_reader(&path, Duration::from_secs(5), true).unwrap();
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    for database in [&mut writer, &mut reader] {
        let seen = Arc::clone(&seen);
        trace(database, move |sql| {
            seen.lock().unwrap().insert(sql.to_owned());
        });
    }

    let id = write(&mut writer, |call| call.create_account(&business(), "main")).unwrap();
    let info = HostInfo::named("host");
    for who in [ALICE, BOB, BOB] {
        write(&mut writer, |call| call.join(who, &info, HOUR)).unwrap();
    }
    let beating = Beat {
        draining: false,
        accounts: 1,
        live: 0,
        ttl: HOUR,
    };
    write(&mut writer, |call| call.beat(ALICE, beating)).unwrap();
    let claims = write(&mut writer, |call| {
        call.claim(ALICE, std::slice::from_ref(&id))
    });
    let Claim::Granted(lease) = claims.unwrap()[0] else {
        panic!("free")
    };
    let keys = || {
        let keys = Table::ALL.iter().flat_map(|&table| samples::keys(table));
        keys.collect::<Vec<_>>()
    };
    let with = |content: Option<Record>, seq| Batch {
        rows: keys()
            .into_iter()
            .map(|key| (key, content.clone()))
            .collect(),
        ..batch(&id, lease.term, seq, [])
    };
    let batches = [with(Some(record("x")), 1), with(Some(record("y")), 2)];
    let outcomes = write(&mut writer, |call| call.commit(&batches));
    assert_eq!(outcomes, Ok(vec![Outcome::Committed; 2]));
    let again = write(&mut writer, |call| call.commit(&batches));
    assert_eq!(again, Ok(vec![Outcome::Committed; 2]));
    write(&mut writer, |call| {
        call.confirm(&[(id.clone(), lease.term)])
    })
    .unwrap();
    let swaps: Vec<_> = keys()
        .into_iter()
        .map(|key| (key, record("y"), record("z")))
        .collect();
    write(&mut writer, |call| call.swap_records(&id, &swaps)).unwrap();
    reader.load(&id, &keys()).unwrap();
    for key in keys() {
        for after in [None, Some(key.clone())] {
            let scan = Scan {
                table: key.table(),
                after,
                limit: 3,
            };
            reader.scan(&id, &scan).unwrap();
        }
    }
    for table in [Table::Seen, Table::Sent, Table::MessageSecret] {
        write(&mut writer, |call| {
            call.retain(&id, table, UnixMillis(1), 10)
        })
        .unwrap();
    }
    write(&mut writer, |call| call.commit(&[with(None, 3)])).unwrap();
    let request = record("request");
    write(&mut writer, |call| {
        call.enqueue(&id, &"m".into(), &request, UnixMillis(0))
    })
    .unwrap();
    let run = Placement {
        run: true,
        ..Placement::default()
    };
    write(&mut writer, |call| call.place(&id, &run)).unwrap();
    write(&mut writer, |call| call.drain(ALICE, true)).unwrap();
    assert_eq!(reader.mail(ALICE), Ok(vec![id.clone()]));
    assert_eq!(reader.misplaced(ALICE), Ok(vec![]));
    let handed = write(&mut writer, |call| {
        call.hand_over(ALICE, &id, lease.term.epoch, BOB)
    });
    let Ok(HandOver::Done { epoch }) = handed else {
        panic!("{handed:?}")
    };
    reader.held(BOB).unwrap();
    write(&mut writer, |call| {
        call.release(BOB, &[(id.clone(), epoch)])
    })
    .unwrap();
    let orphans = reader
        .orphans(None, 10, UnixMillis(i64::MAX / 2000))
        .unwrap();
    assert_eq!(orphans.len(), 1);
    reader.orphans(Some(&id), 10, UnixMillis(0)).unwrap();
    reader.accounts(&business(), UnixMillis(0)).unwrap();
    reader.tenants().unwrap();
    reader.hosts(UnixMillis(0)).unwrap();
    reader.history().unwrap();
    reader.pulse().unwrap();
    reader.fleet().unwrap();
    for (old, new) in [(None, Some(&request)), (Some(&request), None)] {
        write(&mut writer, |call| {
            call.swap_vault(&business(), 1, old, new)
        })
        .unwrap();
    }
    reader.vault(&business()).unwrap();
    write(&mut writer, |call| call.renew_history(Seal::FIRST)).unwrap();
    write(&mut writer, |call| call.declare_dead(ALICE, BOB)).unwrap();
    write(&mut writer, |call| call.bury(BOB)).unwrap();
    write(&mut writer, |call| call.retire(ALICE, &id, epoch)).unwrap();
    write(&mut writer, |call| call.leave(ALICE)).unwrap();
    write(&mut writer, |call| call.delete_account(&id)).unwrap();

    let statements = seen.lock().unwrap().clone();
    assert!(statements.len() > 150, "only {}", statements.len());
    // What is meant to be read from end to end: the list of all tenants, and the roster, which has 1,023 rows at most.
    let whole = ["SCAN baton_tenant", "SCAN baton_host"];
    // Not tables.
    let none = ["SCAN step", "SCAN CONSTANT ROW"];
    let plain = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
    let mut explained = 0;
    for sql in statements {
        if !plain.iter().any(|word| sql.starts_with(word)) {
            continue;
        }
        explained += 1;
        let connection = reader.connection();
        let mut explain = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let mut plan = explain.raw_query();
        while let Some(row) = plan.next().unwrap() {
            let step: String = row.get(3).unwrap();
            let fine = !step.contains("SCAN")
                || whole.iter().any(|table| step.starts_with(table))
                || none.contains(&&step[..]);
            assert!(fine, "{step}: {sql}");
        }
    }
    assert!(explained > 140, "only {explained}");
}

/// Two accounts, and the call whose statements are counted: three batches that write, overwrite and delete.
struct Scene {
    ids: [AccountId; 2],
    call: Vec<Batch>,
}

impl Scene {
    fn new(database: &mut Database) -> Self {
        let info = HostInfo::named("host");
        write(database, |call| call.join(ALICE, &info, HOUR)).unwrap();
        let ids = ["one", "two"]
            .map(|name| write(database, |call| call.create_account(&business(), name)).unwrap());
        let claims = write(database, |call| call.claim(ALICE, &ids)).unwrap();
        let terms: Vec<Term> = claims
            .iter()
            .map(|claim| match claim {
                Claim::Granted(lease) => lease.term,
                other => panic!("{other:?}"),
            })
            .collect();
        let first = [0, 1].map(|n| batch(&ids[n], terms[n], 1, Self::rows("old")));
        let outcomes = write(database, |call| call.commit(&first));
        assert_eq!(outcomes, Ok(vec![Outcome::Committed; 2]));
        let mut second = batch(&ids[0], terms[0], 2, Self::rows("new"));
        second.rows.insert(Key::PreKey(1), None);
        let third = batch(&ids[0], terms[0], 3, [(Key::Seen([3; 32]), vec![3])]);
        let mut other = batch(&ids[1], terms[1], 2, Self::rows("new"));
        other.rows.insert(Key::PreKey(1), None);
        Self {
            ids,
            call: vec![second, other, third],
        }
    }

    fn rows(content: &str) -> Vec<(Key, Vec<u8>)> {
        let keys = [
            Key::Counters,
            Key::Device,
            Key::PreKey(1),
            Key::PreKey(2),
            Key::Inbox(EventSeq(1)),
            samples::keys(Table::Session).remove(0),
            samples::keys(Table::MessageSecret).remove(0),
        ];
        let long = content.repeat(2000);
        keys.map(|key| (key, long.clone().into_bytes())).to_vec()
    }

    /// Whether the call is there. Panics if it is there by half, or with anything else.
    fn is_done(
        &self,
        load: &mut dyn FnMut(&AccountId, &[Key]) -> Vec<Row>,
        held: &[Lease],
    ) -> bool {
        let (mut keys, _): (Vec<_>, Vec<_>) = Self::rows("").into_iter().unzip();
        keys.push(Key::Seen([3; 32]));
        let done = load(&self.ids[0], &keys[..1]) == [content("new")];
        for (n, id) in self.ids.iter().enumerate() {
            for (key, row) in keys.iter().zip(load(id, &keys)) {
                let expected = match (key, done) {
                    (Key::Seen(_), true) if n == 0 => Row::Present(Record(vec![3].into())),
                    (Key::Seen(_), _) | (Key::PreKey(1), true) => Row::Absent,
                    (_, true) => content("new"),
                    (_, false) => content("old"),
                };
                assert!(row == expected, "{key:?} of account {n}, done: {done}");
            }
            let applied = if done { [3, 2][n] } else { 1 };
            assert_eq!(held[n].applied, Seq(applied), "account {n}");
        }
        done
    }
}

fn content(text: &str) -> Row {
    Row::Present(record(&text.repeat(2000)))
}

fn leases(held: Vec<(AccountId, Lease)>) -> Vec<Lease> {
    held.into_iter().map(|(_, lease)| lease).collect()
}

/// The files of a database as they are now: what a process leaves that is killed at this moment.
fn image(of: &Path, at: &Path) {
    fs::create_dir(at).unwrap();
    for file in ["baton.db", "baton.db-wal", "baton.db.mark"] {
        fs::copy(of.join(file), at.join(file)).unwrap();
    }
}

/// Kills the process before each statement of a commit, from the beginning of the transaction to its end, and behind
/// it. Whoever comes next finds all of it or nothing, sends it again, and then has a store as good as new.
#[test]
fn a_crash_at_any_statement_leaves_all_or_nothing() {
    let harness = OnDisk::new();
    let home = harness.directory.path().to_owned();
    let mut database = open(&harness.path());
    let scene = Scene::new(&mut database);
    let images: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
    let taken = Arc::clone(&images);
    let parent = tempfile::tempdir().unwrap();
    let place = parent.path().to_owned();
    trace(&mut database, move |_| {
        let mut images = taken.lock().unwrap();
        let at = place.join(images.len().to_string());
        image(&home, &at);
        images.push(at);
    });
    let outcomes = write(&mut database, |call| call.commit(&scene.call));
    assert_eq!(outcomes, Ok(vec![Outcome::Committed; 3]));
    let before_the_end = images.lock().unwrap().len();
    let last = parent.path().join("end");
    image(harness.directory.path(), &last);
    images.lock().unwrap().push(last);
    drop(database);

    let images = images.lock().unwrap().clone();
    assert!(images.len() > 25, "only {} images", images.len());
    let mut done = Vec::new();
    for (n, directory) in images.iter().enumerate() {
        let crashed = OnDisk::at(directory);
        let store = crashed.open();
        assert_eq!(block_on(store.history()), Ok(Seal::FIRST), "image {n}");
        let held = leases(block_on(store.held(ALICE)).unwrap());
        let mut load =
            |id: &AccountId, keys: &[Key]| block_on(store.load(id, keys.to_vec())).unwrap();
        done.push(scene.is_done(&mut load, &held));
        let again = block_on(store.commit(scene.call.clone()));
        assert_eq!(again, Ok(vec![Outcome::Committed; 3]), "image {n}");
        let held = leases(block_on(store.held(ALICE)).unwrap());
        assert!(scene.is_done(&mut load, &held), "image {n}");
        drop(store);
        // The suite begins with an empty roster.
        block_on(crashed.open().leave(ALICE)).unwrap();
        match n % 4 {
            0 => block_on(history::a_batch_applies_whole_or_not_at_all(crashed)),
            1 => block_on(ownership::hand_over_leaves_no_gap(crashed)),
            2 => block_on(tables::every_key_shape_comes_back(crashed)),
            _ => block_on(vault::records_are_swapped_only_for_what_they_were(crashed)),
        }
    }
    let committed = done.iter().filter(|&&done| done).count();
    assert_eq!(committed, 1, "only behind the last statement: {done:?}");
    assert!(done[before_the_end]);
}

/// Breaks every instruction off that SQLite carries out for a commit, one after the other: the call fails as a whole,
/// nothing is there by half, and the same call sent again settles it.
#[test]
fn an_error_in_any_instruction_leaves_all_or_nothing() {
    let harness = OnDisk::new();
    let mut database = open(&harness.path());
    let scene = Scene::new(&mut database);
    let mut failed = 0;
    for at in (1..).step_by(3) {
        let mut count = 0;
        let interrupt = move || {
            count += 1;
            count == at
        };
        database
            .connection()
            .progress_handler(1, Some(interrupt))
            .unwrap();
        let outcomes = write(&mut database, |call| call.commit(&scene.call));
        let off: Option<fn() -> bool> = None;
        database.connection().progress_handler(1, off).unwrap();
        let held = leases(database.held(ALICE).unwrap());
        let mut load = |id: &AccountId, keys: &[Key]| database.load(id, keys).unwrap();
        let done = scene.is_done(&mut load, &held);
        match outcomes {
            Ok(outcomes) => {
                assert_eq!(outcomes, vec![Outcome::Committed; 3]);
                assert!(done);
                break;
            }
            Err(error) => {
                assert!(error.is_retryable() && !done, "{error} at {at}");
                failed += 1;
            }
        }
    }
    assert!(failed > 100, "broken off only {failed} times");
}

/// A disk that lies about its syncs, and a power cut: the end of the log is missing. What is there is whole, and that
/// answered commits are missing is noticed.
#[test]
fn a_log_that_was_cut_off_is_whole_batches_and_noticed() {
    let harness = OnDisk::new();
    let mut database = open(&harness.path());
    let scene = Scene::new(&mut database);
    let outcomes = write(&mut database, |call| call.commit(&scene.call));
    assert_eq!(outcomes, Ok(vec![Outcome::Committed; 3]));
    let parent = tempfile::tempdir().unwrap();
    let whole = parent.path().join("whole");
    image(harness.directory.path(), &whole);
    drop(database);
    let log = fs::read(whole.join("baton.db-wal")).unwrap();
    let (mut kept, mut lost) = (0, 0);
    // From the end on, for as long as the scene before the call is there.
    for cut in (0..log.len()).step_by(1531) {
        let at = parent.path().join(cut.to_string());
        fs::create_dir(&at).unwrap();
        for file in ["baton.db", "baton.db.mark"] {
            fs::copy(whole.join(file), at.join(file)).unwrap();
        }
        fs::write(at.join("baton.db-wal"), &log[..log.len() - cut]).unwrap();
        let store = OnDisk::at(&at).open();
        let held = leases(block_on(store.held(ALICE)).unwrap());
        if held.len() < 2 || held.iter().any(|lease| lease.applied == Seq(0)) {
            break;
        }
        let mut load =
            |id: &AccountId, keys: &[Key]| block_on(store.load(id, keys.to_vec())).unwrap();
        let generation = block_on(store.history()).unwrap().generation;
        if scene.is_done(&mut load, &held) {
            kept += 1;
            assert_eq!(generation, 1);
        } else {
            lost += 1;
            assert_eq!(generation, 2, "cut by {cut}");
        }
    }
    assert!(kept > 0 && lost > 10, "kept {kept}, lost {lost}");
}
