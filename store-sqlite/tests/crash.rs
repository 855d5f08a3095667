//! Processes that are killed while they commit, and processes that fight for one account.
//!
//! The test binary starts itself again as the other process: `child` does nothing unless it is told to. A killed
//! process shows what a crash of ours does; it does not show a power cut, for what was written stays in the cache of
//! the operating system. That a commit waits for the disk is `synchronous=FULL`, which a unit test looks at.

use baton_core::state::{
    AccountId, Batch, BusinessId, Claim, Epoch, EventSeq, HostInfo, Incarnation, Key, Lease,
    Micros, Outcome, Record, Row, Scan, Seq, Store, StoreError, Table, Term, UnixMillis,
    conformance::block_on,
};
use baton_store_sqlite::{Options, SqliteStore};
use bytes::Bytes;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

const HOUR: Micros = Micros::from_secs(3600);

/// Two hosts on one file, each with accounts of its own. One is killed, the other is not disturbed; then that one is
/// killed too. Whatever a killed process was told is committed is there, and nothing is there by half. And nobody
/// waits for the lease of the dead, which has an hour to go.
#[test]
fn what_was_acknowledged_survives_kill_9() {
    const ACCOUNTS: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baton.db");
    let ids = create(&path, ACCOUNTS);
    let mut dice = 0x2545_f491_4f6c_dd1d_u64;
    let mut pause = || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(20 + (dice >> 33) % 120));
    };
    let mut total = 0;
    for round in 0..8 {
        let [mut first, mut second] = [0, 1].map(|n| Committer::start(&path, 2 * round + n));
        first.wait_for_more_than(0);
        second.wait_for_more_than(0);
        pause();
        let told = first.kill();
        let store = open(&path);
        let me = Incarnation(1000 + round);
        join(&store, me);
        for (n, id) in mine(&ids, 2 * round) {
            // Held by nobody who lives: granted at once.
            let Lease { applied, .. } = granted(&store, id, me);
            assert_told(&told, n, applied);
            check_history(&store, id, applied);
        }
        for (_, id) in mine(&ids, 2 * round + 1) {
            let held = block_on(store.claim(me, vec![id.clone()])).unwrap();
            assert!(matches!(held[..], [Claim::Held { .. }]), "{held:?}");
        }
        // Whoever lives goes on.
        let before = second.told();
        second.wait_for_more_than(before);
        pause();
        let second_told = second.kill();
        for (n, id) in mine(&ids, 2 * round + 1) {
            let Lease { applied, .. } = granted(&store, id, me);
            assert_told(&second_told, n, applied);
            check_history(&store, id, applied);
        }
        total += told.len() + second_told.len();
    }
    assert!(
        total > 100,
        "only {total} batches were acknowledged: the children were killed before they did anything"
    );
}

/// The accounts of a committer: every other one.
fn mine(ids: &[AccountId], who: u64) -> impl Iterator<Item = (usize, &AccountId)> {
    ids.iter()
        .enumerate()
        .filter(move |(n, _)| *n % 2 == who as usize % 2)
}

fn assert_told(told: &[(usize, u64)], n: usize, applied: Seq) {
    let mine = told.iter().filter(|(account, _)| *account == n);
    let last = mine.map(|(_, seq)| *seq).max().unwrap_or(0);
    assert!(
        applied.0 >= last,
        "batch {last} was acknowledged, the history ends at {applied:?}"
    );
}

/// A process that commits to its accounts until it is killed, and what it said was acknowledged.
struct Committer {
    child: Child,
    told: Arc<std::sync::Mutex<Vec<(usize, u64)>>>,
    reader: JoinHandle<()>,
}

impl Committer {
    fn start(path: &Path, who: u64) -> Self {
        let mut child = spawn("commit", path, who);
        let out = child.stdout.take().unwrap();
        let told: Arc<std::sync::Mutex<Vec<_>>> = Arc::default();
        let heard = Arc::clone(&told);
        let reader = thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                heard.lock().unwrap().extend(acknowledged(&line));
            }
        });
        Self {
            child,
            told,
            reader,
        }
    }

    fn told(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    fn wait_for_more_than(&mut self, told: usize) {
        while self.told() <= told {
            if self.child.try_wait().unwrap().is_some() {
                let mut why = String::new();
                std::io::Read::read_to_string(self.child.stderr.as_mut().unwrap(), &mut why)
                    .unwrap();
                panic!("the committer has ended: {why}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill(mut self) -> Vec<(usize, u64)> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.join().unwrap();
        Arc::into_inner(self.told).unwrap().into_inner().unwrap()
    }
}

/// Batches that the racers get through together.
const RACE: usize = 10_000;

/// Two processes that take the account from each other and commit under their epochs, over and over: one history,
/// written in turns. Somebody who reads meanwhile never sees half a batch, or one of an epoch that was over.
#[test]
fn racing_processes_write_one_history() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baton.db");
    let id = create(&path, 1).remove(0);
    let children: Vec<Child> = (1..=2).map(|who| spawn("race", &path, who)).collect();

    let store = open(&path);
    let done = AtomicBool::new(false);
    let (outputs, looks) = thread::scope(|scope| {
        let reader = scope.spawn(|| watch_the_race(&store, &id, &done));
        // Both are listened to at the same time: one that cannot get rid of its words would stop, and the other waits
        // for it.
        let listeners: Vec<_> = children
            .into_iter()
            .map(|child| scope.spawn(|| child.wait_with_output().unwrap()))
            .collect();
        let outputs: Vec<_> = listeners
            .into_iter()
            .map(|listener| listener.join().unwrap())
            .collect();
        done.store(true, Ordering::Relaxed);
        (outputs, reader.join().unwrap())
    });
    // Per process: (number, epoch) of each batch it was told is committed.
    let mut fenced = 0;
    let mut told: Vec<(u64, u64, u64)> = Vec::new();
    for (output, who) in outputs.into_iter().zip(1_u64..) {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            fenced += usize::from(line == "fenced");
            if let Some(numbers) = line.strip_prefix("told ") {
                let (seq, epoch) = numbers.split_once(' ').unwrap();
                told.push((seq.parse().unwrap(), epoch.parse().unwrap(), who));
            }
        }
    }
    told.sort_unstable();
    assert!(fenced > 20, "fenced only {fenced} times: that was no race");
    assert!(looks > 20, "looked only {looks} times");
    assert!(told.len() >= RACE, "only {} commits", told.len());

    join(&store, Incarnation(99));
    let listed = block_on(store.accounts(&BusinessId::default())).unwrap();
    let last_holder = listed[0].holder;
    assert_eq!(last_holder, None, "both racers have ended");
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
        let written = Row::Present(content(&format!("{who} {epoch} {seq}")));
        assert_eq!(row, written, "{key:?}");
        assert!(*epoch >= last, "batch {seq} of epoch {epoch} behind {last}");
        last = *epoch;
    }
}

/// Reads the rows that every batch writes, all of one moment, until the race is over.
fn watch_the_race(store: &SqliteStore, id: &AccountId, done: &AtomicBool) -> u32 {
    let (mut looks, mut last) = (0, (0, 0));
    while !done.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_micros(300));
        let keys = vec![Key::Counters, Key::PreKey(1), Key::PreKey(2)];
        let rows = block_on(store.load(id, keys)).unwrap();
        assert!(rows.windows(2).all(|pair| pair[0] == pair[1]), "{rows:?}");
        if let Row::Present(Record(bytes)) = &rows[0] {
            let text = std::str::from_utf8(bytes).unwrap();
            let mut numbers = text.split(' ').map(|number| number.parse::<u64>().unwrap());
            let (_, epoch, seq) = (numbers.next(), numbers.next(), numbers.next());
            let now = (epoch.unwrap(), seq.unwrap());
            assert!(now >= last, "{now:?} behind {last:?}");
            assert!(now.1 >= last.1, "{now:?} behind {last:?}");
            looks += u32::from(now > last);
            last = now;
        }
    }
    looks
}

/// A process that opens the file a second time and closes that again keeps SQLite's lock on it. (POSIX gives up all
/// locks of a process on a file when it closes the file once, so nothing but SQLite may open it.)
#[cfg(target_os = "linux")]
#[test]
fn a_second_handle_does_not_take_the_locks_away() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baton.db");
    create(&path, 1);
    let store = open(&path);
    let file = format!(":{} ", std::fs::metadata(&path).unwrap().ino());
    // The list is read piece by piece, and while others lock and unlock a line can be missed: look more than once.
    let is_locked = || {
        (0..100).any(|_| {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let ours = |line: &str| line.contains("POSIX") && line.contains(&file);
            locks.lines().any(ours)
        })
    };
    assert!(is_locked(), "as long as it is open");
    drop(open(&path));
    assert!(is_locked(), "by the first handle");
    drop(store);
    assert!(!is_locked());
}

/// The other process. Ignored because it is no test: [`spawn`] runs it by name.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child() {
    let Ok(role) = std::env::var("BATON_TEST_ROLE") else {
        return;
    };
    let path = std::env::var("BATON_TEST_PATH").unwrap();
    let who: u64 = std::env::var("BATON_TEST_WHO").unwrap().parse().unwrap();
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
fn commit_for_ever(store: &SqliteStore, who: u64) {
    let host = Incarnation(who + 1);
    join(store, host);
    let ids = accounts(store);
    thread::scope(|scope| {
        for (n, id) in mine(&ids, who) {
            scope.spawn(move || {
                // Last held by somebody who was killed, or by the test, which still lives.
                let lease = seized(store, id, host);
                let mut seq = lease.applied;
                loop {
                    seq = seq.next();
                    let batch = numbered(id, lease.term, seq);
                    let outcome = block_on(store.commit(vec![batch])).unwrap();
                    assert_eq!(outcome, [Outcome::Committed]);
                    say(&format!("ack {n} {}", seq.0));
                }
            });
        }
    });
}

/// Terms of at most twelve calls. Whoever is through with a term waits for the other to take the account away, so
/// that there is a race however the machine runs them.
fn race(store: &SqliteStore, me: u64) {
    let id = accounts(store).remove(0);
    let mut life = me << 32;
    let mut told = 0;
    let mut dice = me;
    let mut roll = |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % below
    };
    // One life for as long as the race lasts, which holds nothing: to be seen by.
    let racer = Incarnation(life);
    join(store, racer);
    while !is_opposed(store, racer) {
        thread::sleep(Duration::from_millis(1));
    }
    while told < RACE / 2 {
        life += 1;
        let who = Incarnation(life);
        join(store, who);
        let Some(lease) = seize(store, &id, who) else {
            continue;
        };
        let term = lease.term;
        let mut seq = lease.applied;
        let mut fenced = false;
        for _ in 0..12 {
            thread::sleep(Duration::from_micros(roll(600)));
            let batches: Vec<Batch> = (0..=roll(16))
                .map(|_| {
                    seq = seq.next();
                    let text = content(&format!("{me} {} {}", term.epoch.0, seq.0));
                    let keys = [
                        Key::Inbox(EventSeq(seq.0)),
                        Key::Counters,
                        Key::PreKey(1),
                        Key::PreKey(2),
                    ];
                    let rows = keys.map(|key| (key, Some(text.clone())));
                    batch(&id, term, seq, rows)
                })
                .collect();
            let numbers: Vec<u64> = batches.iter().map(|batch| batch.seq.0).collect();
            let outcomes = block_on(store.commit(batches)).unwrap();
            for (seq, outcome) in numbers.into_iter().zip(&outcomes) {
                match outcome {
                    Outcome::Committed => {
                        told += 1;
                        say(&format!("told {seq} {}", term.epoch.0));
                    }
                    Outcome::Fenced { by } => {
                        assert!(*by > term.epoch);
                        fenced = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if fenced {
                break;
            }
        }
        // Looking costs no lock, which the other needs.
        while !fenced && is_opposed(store, racer) && told < RACE / 2 {
            fenced = block_on(store.held(who)).unwrap().is_empty();
            thread::sleep(Duration::from_millis(1));
        }
        if fenced {
            say("fenced");
        }
    }
    block_on(store.leave(racer)).unwrap();
}

/// Whether the other racer is there.
fn is_opposed(store: &SqliteStore, me: Incarnation) -> bool {
    let hosts = block_on(store.hosts()).unwrap();
    let mut racers = hosts
        .iter()
        .filter(|host| host.state.is_live() && host.who.0.trailing_zeros() >= 32);
    racers.any(|host| host.who != me)
}

/// Takes the account whoever has it; `None` if somebody has ended this life meanwhile.
fn seize(store: &SqliteStore, id: &AccountId, who: Incarnation) -> Option<Lease> {
    loop {
        match block_on(store.claim(who, vec![id.clone()])).as_deref() {
            Ok([Claim::Granted(lease)]) => return Some(*lease),
            Ok([Claim::Held { by }]) => {
                block_on(store.declare_dead(who, *by)).unwrap();
            }
            Err(StoreError::NotMember) => return None,
            other => panic!("{other:?}"),
        }
    }
}

fn seized(store: &SqliteStore, id: &AccountId, who: Incarnation) -> Lease {
    seize(store, id, who).expect("nobody declares a committer dead")
}

/// Batch n: event n, its number in the counters, and five rows of changing size that all say n.
fn numbered(id: &AccountId, term: Term, seq: Seq) -> Batch {
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
    batch(id, term, seq, rows)
}

fn check_history(store: &SqliteStore, id: &AccountId, applied: Seq) {
    let term = Term {
        epoch: Epoch(1),
        holder: Incarnation(0),
        history: baton_core::state::Seal::FIRST,
    };
    let expected = numbered(id, term, applied);
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

fn acknowledged(line: &str) -> Option<(usize, u64)> {
    // The last line may be torn: without its end it was never said.
    let (account, seq) = line
        .strip_prefix("ack ")?
        .strip_suffix('.')?
        .split_once(' ')?;
    Some((account.parse().ok()?, seq.parse().ok()?))
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

fn join(store: &SqliteStore, who: Incarnation) {
    block_on(store.join(who, HostInfo::named("host"), HOUR)).unwrap();
}

fn granted(store: &SqliteStore, id: &AccountId, who: Incarnation) -> Lease {
    match block_on(store.claim(who, vec![id.clone()])).unwrap()[0] {
        Claim::Granted(lease) => lease,
        other => panic!("{other:?}"),
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
    term: Term,
    seq: Seq,
    rows: impl IntoIterator<Item = (Key, Option<Record>)>,
) -> Batch {
    Batch {
        account: id.clone(),
        term,
        seq,
        reseal: false,
        at: UnixMillis(0),
        rows: rows.into_iter().collect(),
    }
}

fn content(text: &str) -> Record {
    Record(Bytes::copy_from_slice(text.as_bytes()))
}
