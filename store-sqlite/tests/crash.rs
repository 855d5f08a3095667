//! Processes that are killed while they commit, and processes that fight for one account.
//!
//! The test binary starts itself again as the other process: `child` does nothing unless it is told to. A killed
//! process shows what a crash of ours does; it does not show a power cut, for what was written stays in the cache of
//! the operating system. That a commit waits for the disk is `synchronous=FULL`, which a unit test looks at.

use baton_core::state::{
    AccountId, Batch, BusinessId, Claim, Epoch, EventSeq, Incarnation, Key, Lease, Micros, Outcome,
    Record, Row, Scan, Seq, Store, Table, UnixMillis, conformance::block_on,
};
use baton_store_sqlite::{Options, SqliteStore};
use bytes::Bytes;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

const HOUR: Micros = Micros::from_secs(3600);

/// Whatever a killed process was told is committed is there, and nothing is there by half. And nobody waits for the
/// lease of the dead, which has an hour to go.
#[test]
fn what_was_acknowledged_survives_kill_9() {
    const ACCOUNTS: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baton.db");
    let ids = create(&path, ACCOUNTS);
    let mut dice = 0x2545_f491_4f6c_dd1d_u64;
    let mut total = 0;
    for round in 1..=12 {
        let mut child = spawn("commit", &path, round);
        let out = child.stdout.take().unwrap();
        let reader = thread::spawn(move || acknowledged(out));
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(20 + (dice >> 33) % 150));
        child.kill().unwrap();
        child.wait().unwrap();
        let told = reader.join().unwrap();

        let store = open(&path);
        for (n, id) in ids.iter().enumerate() {
            let Lease { applied, .. } = granted(&store, id, Incarnation(1000 + round));
            let last = told
                .iter()
                .filter(|(account, _)| *account == n)
                .map(|(_, seq)| *seq)
                .max()
                .unwrap_or(0);
            assert!(
                applied.0 >= last,
                "round {round}: batch {last} was acknowledged, the history ends at {applied:?}"
            );
            check_history(&store, id, applied);
            total += told.iter().filter(|(account, _)| *account == n).count();
        }
    }
    assert!(
        total > 100,
        "only {total} batches were acknowledged: the children were killed before they did anything"
    );
}

/// Three processes that claim, commit and are fenced, over and over: one history, written in turns.
#[test]
fn racing_processes_write_one_history() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baton.db");
    let id = create(&path, 1).remove(0);
    let children: Vec<Child> = (1..=3).map(|who| spawn("race", &path, who)).collect();
    // Per process: (number, epoch) of each batch it was told is committed.
    let mut fenced = 0;
    let mut told: Vec<(u64, u64, u64)> = Vec::new();
    for (child, who) in children.into_iter().zip(1_u64..) {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            fenced += usize::from(line == "fenced");
            if let Some(numbers) = line.strip_prefix("told ") {
                let (seq, epoch) = numbers.split_once(' ').unwrap();
                told.push((seq.parse().unwrap(), epoch.parse().unwrap(), who));
            }
        }
    }
    told.sort_unstable();
    assert!(fenced > 10, "fenced only {fenced} times: that was no race");

    let store = open(&path);
    let applied = granted(&store, &id, Incarnation(99)).applied;
    assert_eq!(
        told.len() as u64,
        applied.0,
        "everything applied was reported once, and nothing else"
    );
    let rows = table(&store, &id, Table::Inbox);
    assert_eq!(rows.len(), told.len());
    let mut last = 0;
    for ((seq, epoch, who), (key, row)) in told.iter().zip(rows) {
        assert_eq!(key, Key::Inbox(EventSeq(*seq)));
        assert_eq!(
            row,
            Row::Present(content(&format!("{who} {seq}"))),
            "{key:?}"
        );
        assert!(*epoch >= last, "batch {seq} of epoch {epoch} behind {last}");
        last = *epoch;
    }
}

/// The other process. Ignored because it is no test: [`spawn`] runs it by name.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child() {
    let Ok(role) = std::env::var("BATON_TEST_ROLE") else {
        return;
    };
    let path = std::env::var("BATON_TEST_PATH").unwrap();
    let who = Incarnation(std::env::var("BATON_TEST_WHO").unwrap().parse().unwrap());
    let store = open(Path::new(&path));
    // The harness has begun a line of its own.
    say("");
    match role.as_str() {
        "commit" => commit_for_ever(&store, who),
        "race" => race(&store, who),
        other => panic!("no role {other}"),
    }
}

/// One thread per account; every acknowledged batch is a line.
fn commit_for_ever(store: &SqliteStore, who: Incarnation) {
    thread::scope(|scope| {
        for (n, id) in accounts(store).into_iter().enumerate() {
            scope.spawn(move || {
                let lease = granted(store, &id, who);
                let mut seq = lease.applied;
                loop {
                    seq = seq.next();
                    let outcome =
                        block_on(store.commit(vec![numbered(&id, lease.epoch, seq)])).unwrap();
                    assert_eq!(outcome, [Outcome::Committed]);
                    say(&format!("ack {n} {}", seq.0));
                }
            });
        }
    });
}

/// Batches that a racer gets through before it rests.
const BATCHES: u32 = 60;

fn race(store: &SqliteStore, who: Incarnation) {
    let id = accounts(store).remove(0);
    let mut told = 0;
    while told < BATCHES {
        let Claim::Granted(lease) = block_on(store.claim(&id, who, Micros(0))).unwrap() else {
            panic!("a lease of no length is over at once");
        };
        let mut seq = lease.applied;
        for n in 0..5 {
            // A pause now and then, or whoever has the database's lock keeps it and nobody is ever fenced.
            thread::sleep(Duration::from_micros((who.0 * 700 + n * 300) % 1500));
            seq = seq.next();
            let row = (
                Key::Inbox(EventSeq(seq.0)),
                Some(content(&format!("{} {}", who.0, seq.0))),
            );
            let batch = batch(&id, lease.epoch, seq, [row]);
            match block_on(store.commit(vec![batch])).unwrap().remove(0) {
                Outcome::Committed => {
                    told += 1;
                    say(&format!("told {} {}", seq.0, lease.epoch.0));
                }
                Outcome::Fenced { by } => {
                    assert!(by > lease.epoch);
                    say("fenced");
                    break;
                }
                Outcome::Rejected(why) => panic!("{why}"),
            }
        }
    }
}

/// Batch n: event n, its number in the counters, and five rows of changing size that all say n.
fn numbered(id: &AccountId, epoch: Epoch, seq: Seq) -> Batch {
    let mut rows = vec![
        (
            Key::Inbox(EventSeq(seq.0)),
            Some(content(&seq.0.to_string())),
        ),
        (Key::Counters, Some(content(&seq.0.to_string()))),
    ];
    for n in 1..=5 {
        let text = format!(
            "{} {}",
            seq.0,
            "x".repeat((seq.0 as usize * 131 * n as usize) % 6000)
        );
        rows.push((Key::PreKey(n), Some(content(&text))));
    }
    batch(id, epoch, seq, rows)
}

fn check_history(store: &SqliteStore, id: &AccountId, applied: Seq) {
    let expected = numbered(id, Epoch(1), applied);
    for (key, row) in expected
        .rows
        .keys()
        .zip(block_on(store.load(id, expected.rows.keys().cloned().collect())).unwrap())
    {
        match applied {
            Seq(0) => assert_eq!(row, Row::Absent),
            _ => assert_eq!(
                Some(row),
                expected.rows[key].clone().map(Row::Present),
                "{key:?} of batch {applied:?}"
            ),
        }
    }
    let events = table(store, id, Table::Inbox);
    assert_eq!(events.len() as u64, applied.0);
    for ((key, row), n) in events.into_iter().zip(1_u64..) {
        assert_eq!(
            (key, row),
            (
                Key::Inbox(EventSeq(n)),
                Row::Present(content(&n.to_string()))
            )
        );
    }
}

fn acknowledged(out: impl std::io::Read) -> Vec<(usize, u64)> {
    let lines = BufReader::new(out).lines().map_while(Result::ok);
    // The last line may be torn: without its end it was never said.
    lines
        .filter_map(|line| {
            let rest = line.strip_prefix("ack ")?.strip_suffix('.')?.to_owned();
            let (account, seq) = rest.split_once(' ')?;
            Some((account.parse().ok()?, seq.parse().ok()?))
        })
        .collect()
}

/// One write, so that lines of several threads do not mix; the full stop tells a whole line from a torn one.
fn say(line: &str) {
    let end = if line.starts_with("ack") { ".\n" } else { "\n" };
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}{end}").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn spawn(role: &str, path: &Path, who: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "child",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("BATON_TEST_ROLE", role)
        .env("BATON_TEST_PATH", path)
        .env("BATON_TEST_WHO", who.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(
        path,
        Options {
            busy: Duration::from_secs(30),
            ..Options::default()
        },
    )
    .unwrap()
}

fn create(path: &Path, count: usize) -> Vec<AccountId> {
    let store = open(path);
    (0..count)
        .map(|n| block_on(store.create_account(&BusinessId::default(), &format!("a{n}"))).unwrap())
        .collect()
}

fn accounts(store: &SqliteStore) -> Vec<AccountId> {
    block_on(store.accounts(&BusinessId::default()))
        .unwrap()
        .into_iter()
        .map(|account| account.id)
        .collect()
}

fn granted(store: &SqliteStore, id: &AccountId, who: Incarnation) -> Lease {
    match block_on(store.claim(id, who, HOUR)).unwrap() {
        Claim::Granted(lease) => lease,
        Claim::Held { by, remaining } => panic!("held by {by:?} for {remaining:?}"),
    }
}

fn table(store: &SqliteStore, id: &AccountId, table: Table) -> Vec<(Key, Row)> {
    block_on(store.scan(
        id,
        Scan {
            table,
            after: None,
            limit: u32::MAX,
        },
    ))
    .unwrap()
}

fn batch(
    id: &AccountId,
    epoch: Epoch,
    seq: Seq,
    rows: impl IntoIterator<Item = (Key, Option<Record>)>,
) -> Batch {
    Batch {
        account: id.clone(),
        epoch,
        seq,
        at: UnixMillis(0),
        rows: rows.into_iter().collect(),
    }
}

fn content(text: &str) -> Record {
    Record(Bytes::copy_from_slice(text.as_bytes()))
}
