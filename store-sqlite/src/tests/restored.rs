//! A database file that is not the one it was.

use super::*;
use baton_core::state::{Outcome, Seal, Seq, StoreError};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn generation(store: &SqliteStore) -> u32 {
    block_on(store.history()).unwrap().generation
}

fn beside(path: &Path, what: &str) -> PathBuf {
    PathBuf::from(format!("{}{what}", path.display()))
}

fn write(store: &SqliteStore, id: &AccountId, term: Term, seq: u64) -> Outcome {
    let rows = [(Key::Counters, vec![seq as u8])];
    block_on(store.commit(vec![batch(id, term, seq, rows)]))
        .unwrap()
        .remove(0)
}

/// A database with one account and three batches, closed; and a copy of it as it was after the first two.
struct Restore {
    harness: OnDisk,
    id: AccountId,
    term: Term,
    copy: PathBuf,
}

impl Restore {
    fn new() -> Self {
        let harness = OnDisk::new();
        let copy = harness.directory.path().join("copy");
        let store = harness.open();
        let id = create(&store, "main");
        let term = owned(&store, ALICE, &id);
        write(&store, &id, term, 1);
        write(&store, &id, term, 2);
        drop(store);
        fs::copy(harness.path(), &copy).unwrap();
        let store = harness.open();
        assert_eq!(write(&store, &id, term, 3), Outcome::Committed);
        Self {
            harness,
            id,
            term,
            copy,
        }
    }

    fn put_back(&self) {
        fs::copy(&self.copy, self.harness.path()).unwrap();
    }
}

/// The promise: what the old file may not do again is refused, until the account was re-sealed.
#[test]
fn an_old_copy_put_back_begins_a_new_generation() {
    let restore = Restore::new();
    restore.put_back();
    let (harness, id, term) = (&restore.harness, &restore.id, restore.term);
    let store = harness.open();
    let history = block_on(store.history()).unwrap();
    assert_eq!(history.losses_until(Seal::FIRST), 1);
    let unsealed = Outcome::Unsealed { history };
    assert_eq!(write(&store, id, term, 3), unsealed);
    assert_eq!(write(&store, id, term, 1), unsealed, "nor what it has");
    let confirmed = block_on(store.confirm(vec![(id.clone(), term)])).unwrap();
    assert_eq!(confirmed, std::slice::from_ref(&unsealed));

    join(&store, BOB, HOUR);
    let lease = granted(&store, BOB, id);
    assert_eq!((lease.applied, lease.sealed), (Seq(2), Seal::FIRST));
    assert_eq!(write(&store, id, lease.term, 3), unsealed);
    let mut reseal = batch(id, lease.term, 3, [(Key::Counters, vec![30])]);
    reseal.reseal = true;
    let outcomes = block_on(store.commit(vec![reseal])).unwrap();
    assert_eq!(outcomes, [Outcome::Committed]);
    assert_eq!(write(&store, id, lease.term, 4), Outcome::Committed);
    assert_eq!(granted(&store, BOB, id).sealed, history);
    drop(store);
    assert_eq!(generation(&harness.open()), 2, "noticed once");
}

#[test]
fn one_lost_commit_is_enough() {
    let harness = OnDisk::new();
    let store = harness.open();
    let id = create(&store, "main");
    let term = owned(&store, ALICE, &id);
    drop(store);
    let copy = harness.directory.path().join("copy");
    for seq in 1..=20 {
        fs::copy(harness.path(), &copy).unwrap();
        let store = harness.open();
        assert_eq!(generation(&store), 1);
        assert_eq!(write(&store, &id, term, seq), Outcome::Committed);
    }
    fs::copy(&copy, harness.path()).unwrap();
    assert_eq!(generation(&harness.open()), 2);
}

/// Opening, closing, reading, being killed between two commits: no reason to think that anything is lost.
#[test]
fn a_database_that_was_left_alone_keeps_its_history() {
    let restore = Restore::new();
    let harness = &restore.harness;
    for _ in 0..3 {
        let store = harness.open();
        let second = harness.open();
        let other = create(&second, "other");
        block_on(second.delete_account(&other)).unwrap();
        assert_eq!(generation(&store), 1);
    }
    // The file beside may be behind: after a power cut it is.
    let mark = beside(&harness.path(), ".mark");
    let behind = fs::read(&mark).unwrap();
    let store = harness.open();
    create(&store, "another");
    drop(store);
    fs::write(&mark, behind).unwrap();
    assert_eq!(generation(&harness.open()), 1);
}

#[test]
fn a_database_without_its_companion_is_not_trusted() {
    let restore = Restore::new();
    let (harness, mark) = (&restore.harness, beside(&restore.harness.path(), ".mark"));
    fs::remove_file(&mark).unwrap();
    assert_eq!(generation(&harness.open()), 2, "taken away");
    fs::write(&mark, "baton 1 nonsense").unwrap();
    assert_eq!(generation(&harness.open()), 3, "unreadable");
    // Another database under the name.
    let other = OnDisk::new();
    drop(other.open());
    fs::copy(other.path(), harness.path()).unwrap();
    assert_eq!(
        generation(&harness.open()),
        4,
        "above all that were seen here"
    );
    assert_eq!(generation(&harness.open()), 4);
}

/// Two lines of commits from one file: a generation is never given to both.
#[test]
fn putting_the_newer_file_back_again_counts_too() {
    let restore = Restore::new();
    let newer = restore.harness.directory.path().join("newer");
    fs::copy(restore.harness.path(), &newer).unwrap();
    restore.put_back();
    assert_eq!(generation(&restore.harness.open()), 2);
    fs::copy(&newer, restore.harness.path()).unwrap();
    assert_eq!(generation(&restore.harness.open()), 3);
}

/// What cannot be noticed, for nothing on the disk tells: the operator has to say it.
#[test]
fn a_whole_directory_put_back_is_for_the_operator_to_tell() {
    let restore = Restore::new();
    let path = restore.harness.path();
    let mark = beside(&path, ".mark");
    // As they were together, before the last commit.
    let (old_file, old_mark) = (fs::read(&path).unwrap(), fs::read(&mark).unwrap());
    let store = restore.harness.open();
    write(&store, &restore.id, restore.term, 4);
    drop(store);
    fs::write(&path, old_file).unwrap();
    fs::write(&mark, old_mark).unwrap();
    let store = restore.harness.open();
    let history = block_on(store.history()).unwrap();
    assert_eq!(history, Seal::FIRST, "not noticed");
    let renewed = block_on(store.renew_history(history)).unwrap();
    assert_eq!(
        write(&store, &restore.id, restore.term, 4),
        Outcome::Unsealed { history: renewed }
    );
}

/// A process that has the old file open while another one takes its place writes to a file that nobody will read.
#[test]
fn a_file_that_was_replaced_under_a_process_is_noticed_by_it() {
    let restore = Restore::new();
    let path = restore.harness.path();
    let first = restore.harness.open();
    let replacement = restore.harness.directory.path().join("replacement");
    fs::copy(&restore.copy, &replacement).unwrap();
    for file in ["-wal", "-shm"] {
        fs::remove_file(beside(&path, file)).unwrap();
    }
    fs::rename(&replacement, &path).unwrap();
    let second = restore.harness.open();
    assert_eq!(generation(&second), 2);
    let answer = block_on(first.create_account(&business(), "lost"));
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    let answer = block_on(first.place(&restore.id, Default::default()));
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    create(&second, "kept");
}

/// Two processes on one file that find a new mark: both go on.
#[test]
fn a_new_mark_does_not_stop_who_has_the_file_open() {
    let restore = Restore::new();
    let mark = beside(&restore.harness.path(), ".mark");
    let first = restore.harness.open();
    fs::remove_file(&mark).unwrap();
    let second = restore.harness.open();
    for n in 0..3 {
        create(&first, &format!("a{n}"));
        create(&second, &format!("b{n}"));
    }
    assert_eq!((generation(&first), generation(&second)), (2, 2));
    drop((first, second));
    // The first one goes on to note in the new file: losing its commits is noticed.
    let copy = restore.harness.directory.path().join("later");
    fs::copy(restore.harness.path(), &copy).unwrap();
    let first = restore.harness.open();
    create(&first, "c");
    drop(first);
    fs::copy(&copy, restore.harness.path()).unwrap();
    assert_eq!(generation(&restore.harness.open()), 3);
}
