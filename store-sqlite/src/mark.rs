//! Noticing that the database is not the one it was: an old copy put back, another file in its place.
//!
//! A small file beside the database, `<database>.mark`, remembers how far the database had come. Both hold the same
//! random *mark*, which names one unbroken line of commits, and both count its commits: the database in every
//! transaction, the file behind each of them, before anybody is told that it is done. So at the next opening a
//! database with another mark, or with fewer commits than the file knows of, has lost some that were answered. Then a
//! new generation begins, under a new mark, and every account has to re-seal.
//!
//! The file is written in place and not synced: after a power cut it may be behind, which is harmless, never ahead.
//! It is no protection against somebody who puts back both files together; nothing in the two could tell.

use crate::{
    database::unsigned,
    migrate::OpenError,
    presence::{Identity, identity, private_file},
};
use rusqlite::{Connection, TransactionBehavior, params};
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

/// How far a database has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// 16 hexadecimal digits.
    pub(crate) mark: String,
    /// Transactions in the line that the mark names.
    pub(crate) commits: u64,
    pub(crate) generation: u32,
}

/// The file beside an open database.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    database: PathBuf,
    /// Of the database that is open. Not a handle of it: closing one would take SQLite's locks away.
    opened: Identity,
}

/// The path now names another file than the one that is open.
#[derive(Debug)]
pub(crate) struct Replaced;

impl Mark {
    /// Compares the database with the file beside it, and begins a new generation if it has lost commits.
    pub(crate) fn settle(connection: &mut Connection, database: &Path) -> Result<Self, OpenError> {
        let sql = |error: rusqlite::Error| OpenError::from_sql(database, &error);
        let path = beside(database);
        let file = |error: io::Error| OpenError::from_io(&path, &error);
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sql)?;
        let (mark, commits, generation) = transaction
            .query_row(
                "SELECT mark, commits, generation FROM baton_cluster WHERE id = 1",
                [],
                |row| {
                    let mark: Option<String> = row.get(0)?;
                    Ok((mark, unsigned(row.get(1)?), row.get::<_, u32>(2)?))
                },
            )
            .map_err(sql)?;
        let seen = match fs::read(&path) {
            Ok(bytes) => Some(State::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(file(error)),
        };
        let verdict = judge(mark.as_deref(), commits, seen.as_ref());
        if verdict != Verdict::Same {
            let generation = match verdict {
                Verdict::Same | Verdict::New => generation,
                Verdict::Lost(why) => {
                    // Above every generation that either has seen: two lines must not share one.
                    let known = seen.flatten().map_or(0, |seen| seen.generation);
                    let next = generation.max(known).saturating_add(1);
                    tracing::error!(
                        database = %database.display(), generation = next,
                        "{why}: a new generation begins and every account re-seals"
                    );
                    next
                }
            };
            let mark: String = transaction
                .query_row("SELECT lower(hex(randomblob(8)))", [], |row| row.get(0))
                .map_err(sql)?;
            transaction
                .execute(
                    "UPDATE baton_cluster SET mark = ?1, generation = ?2, commits = commits + 1, \
                     changes = changes + 1 WHERE id = 1",
                    params![mark, generation],
                )
                .map_err(sql)?;
            let state = State {
                mark,
                commits: commits + 1,
                generation,
            };
            // Before the database: whoever opens it next must not find the new mark there and the old one here. If
            // the database does not follow, the worst is a generation more.
            write_whole(&path, &state).map_err(file)?;
            transaction.commit().map_err(sql)?;
        } else {
            drop(transaction);
        }
        Ok(Self {
            file: open(&path).map_err(file)?,
            database: database.to_owned(),
            opened: fs::metadata(database)
                .map(|found| identity(&found))
                .map_err(|error| OpenError::from_io(database, &error))?,
        })
    }

    /// Notes that the database has come to `state`. A file that cannot be written is a warning, not an error: what was
    /// committed is committed.
    pub(crate) fn note(&mut self, state: &State) -> Result<(), Replaced> {
        // Several processes note here, and the highest number has to stay. Whoever cannot get the lock (somebody was
        // stopped while he had it) does without.
        let locked = (0..1000).any(|_| match self.file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                std::thread::yield_now();
                false
            }
            Ok(()) | Err(fs::TryLockError::Error(_)) => true,
        });
        let result = self.raise(state);
        if locked {
            let _ = self.file.unlock();
        }
        match result {
            Ok(true) => Ok(()),
            // A process that has just opened this database may have found something, and given it a new mark; its
            // count is then above ours.
            Ok(false) if self.is_in_place() => {
                // It may also have made the file anew.
                if let Ok(file) = open(&beside(&self.database)) {
                    self.file = file;
                }
                Ok(())
            }
            Ok(false) => Err(Replaced),
            Err(error) => {
                // Perhaps the file was taken away: the next opening will ask where it is.
                tracing::warn!(database = %self.database.display(), %error, "cannot note how far the database is");
                Ok(())
            }
        }
    }

    /// `false` if the file speaks of another line of commits.
    fn raise(&mut self, state: &State) -> io::Result<bool> {
        let mut bytes = [0; State::BYTES];
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_exact(&mut bytes)?;
        match State::parse(&bytes) {
            Some(seen) if seen.mark != state.mark => Ok(false),
            Some(seen) if seen.commits >= state.commits => Ok(true),
            _ => {
                self.file.seek(SeekFrom::Start(0))?;
                self.file.write_all(state.to_string().as_bytes())?;
                Ok(true)
            }
        }
    }

    fn is_in_place(&self) -> bool {
        match fs::metadata(&self.database) {
            Ok(found) => identity(&found) == self.opened,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Everything that was answered is there.
    Same,
    /// A database that nobody has looked at before.
    New,
    /// Something may be missing; why.
    Lost(&'static str),
}

/// `seen` is what the file beside the database says: `None` if there is none, `Some(None)` if it cannot be read.
fn judge(mark: Option<&str>, commits: u64, seen: Option<&Option<State>>) -> Verdict {
    match (mark, seen) {
        (None, None) => Verdict::New,
        (Some(_), None) => Verdict::Lost("the database was moved here without the file beside it"),
        (_, Some(None)) => Verdict::Lost("the file beside the database cannot be read"),
        (None, Some(Some(_))) => Verdict::Lost("the database is older than the file beside it"),
        (Some(mark), Some(Some(seen))) if mark != seen.mark => {
            Verdict::Lost("the database is not the one that was here")
        }
        (Some(_), Some(Some(seen))) if commits < seen.commits => {
            Verdict::Lost("the database has lost commits: an old copy was put back")
        }
        (Some(_), Some(Some(_))) => Verdict::Same,
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            mark,
            commits,
            generation,
        } = self;
        // Of one length, so that it can be written in place.
        writeln!(f, "baton 1 {mark:>16} {commits:020} {generation:010}")
    }
}

impl State {
    const BYTES: usize = 8 + 16 + 1 + 20 + 1 + 10 + 1;

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut words = text
            .strip_prefix("baton 1 ")?
            .strip_suffix('\n')?
            .split(' ');
        let mark = words.next().filter(|mark| mark.len() == 16)?.to_owned();
        let commits = words.next()?.parse().ok()?;
        let generation = words.next()?.parse().ok()?;
        words.next().is_none().then_some(Self {
            mark,
            commits,
            generation,
        })
    }
}

/// Writes the file and waits for the disk. In place if there is one, for other processes have it open; a new one is
/// never there by half.
fn write_whole(path: &Path, state: &State) -> io::Result<()> {
    let text = state.to_string();
    match private_file().write(true).open(path) {
        Ok(mut file) => {
            file.write_all(text.as_bytes())?;
            file.set_len(State::BYTES as u64)?;
            return file.sync_all();
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let mut file = private_file()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_directory(path)
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    private_file().read(true).write(true).open(path)
}

fn beside(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".mark");
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(mark: &str, commits: u64) -> State {
        State {
            mark: mark.repeat(16),
            commits,
            generation: 3,
        }
    }

    #[test]
    fn a_state_is_of_one_length_and_comes_back() {
        for commits in [0, 7, u64::MAX] {
            let state = state("a", commits);
            let text = state.to_string();
            assert_eq!(text.len(), State::BYTES);
            assert_eq!(State::parse(text.as_bytes()), Some(state));
        }
        for bad in ["", "baton 2 x", "baton 1 short 1 1\n"] {
            assert_eq!(State::parse(bad.as_bytes()), None, "{bad}");
        }
        let text = state("a", 1).to_string();
        assert_eq!(State::parse(&text.as_bytes()[..text.len() - 3]), None);
    }

    #[test]
    fn only_less_than_what_was_seen_is_a_loss() {
        let mark = "a".repeat(16);
        let judge = |mark: Option<&str>, commits, seen: Option<Option<State>>| {
            judge(mark, commits, seen.as_ref())
        };
        let is_lost = |verdict| matches!(verdict, Verdict::Lost(_));
        assert_eq!(judge(None, 0, None), Verdict::New);
        for commits in [5, 6] {
            let verdict = judge(Some(&mark), commits, Some(Some(state("a", 5))));
            assert_eq!(verdict, Verdict::Same);
        }
        assert!(is_lost(judge(Some(&mark), 4, Some(Some(state("a", 5))))));
        assert!(is_lost(judge(Some(&mark), 9, Some(Some(state("b", 5))))));
        assert!(is_lost(judge(None, 9, Some(Some(state("b", 5))))));
        assert!(is_lost(judge(Some(&mark), 9, Some(None))));
        assert!(is_lost(judge(Some(&mark), 9, None)));
    }
}
