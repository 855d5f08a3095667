//! Who is alive on this machine: a lock file per process start, beside the database.
//!
//! A lease tells when a *silent* host may be replaced. A host that was killed need not be waited for: the operating
//! system releases its lock the moment it dies, and whoever finds the lock free, or the file gone, knows that it is
//! dead. This is evidence about processes of this machine only; a database file must not be shared between machines.
//!
//! A host keeps a *shared* lock on `<hex of incarnation>`, so that several handles of one process can keep it
//! together; whoever wants to know tries for an exclusive one and removes the file of a dead host while holding it.
//! A host that gets its lock on a file that was just removed notices and starts over.

use baton_core::state::Incarnation;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The locks that this process holds in the directory of one database. They last until it is dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    observer: Observer,
    held: BTreeMap<Incarnation, File>,
    /// Who has left, once that is committed.
    leaving: Vec<Incarnation>,
}

/// Who only looks.
#[derive(Clone, Debug)]
pub(crate) struct Observer {
    directory: PathBuf,
}

impl Presence {
    /// For the database at `database`: uses the directory `<database>.hosts`, and removes what the dead left there.
    pub(crate) fn open(database: &Path) -> io::Result<Self> {
        let observer = Observer::new(database);
        create_private(&observer.directory)?;
        for entry in fs::read_dir(&observer.directory)? {
            // A file that cannot be looked at is somebody else's trouble.
            let _ = entry.map(|entry| is_dead(&entry.path()));
        }
        Ok(Self {
            observer,
            held: BTreeMap::new(),
            leaving: Vec::new(),
        })
    }

    /// Makes `who` visibly alive. Has to come before the commit that takes it into the roster.
    pub(crate) fn announce(&mut self, who: Incarnation) -> io::Result<()> {
        if self.held.contains_key(&who) {
            return Ok(());
        }
        let path = self.observer.path(who);
        loop {
            let file = private_file()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)?;
            file.lock_shared()?;
            if is_at(&file, &path)? {
                self.held.insert(who, file);
                return Ok(());
            }
        }
    }

    /// Whether `who` has provably ended. `false` if it lives or nobody can tell.
    pub(crate) fn is_dead(&self, who: Incarnation) -> bool {
        !self.held.contains_key(&who) && self.observer.is_dead(who)
    }

    /// `who` says that it goes; its lock is let go by [`settle`](Self::settle), once others can read that it has gone.
    pub(crate) fn withdraw(&mut self, who: Incarnation) {
        self.leaving.push(who);
    }

    /// The transaction is over.
    pub(crate) fn settle(&mut self, committed: bool) {
        for who in self.leaving.drain(..) {
            if committed && self.held.remove(&who).is_some() {
                // Takes the file away, unless another handle of this process keeps it.
                self.observer.is_dead(who);
            }
        }
    }
}

impl Observer {
    pub(crate) fn new(database: &Path) -> Self {
        let mut directory = database.as_os_str().to_owned();
        directory.push(".hosts");
        Self {
            directory: PathBuf::from(directory),
        }
    }

    /// Whether `who` has provably ended. `false` if it lives or nobody can tell.
    pub(crate) fn is_dead(&self, who: Incarnation) -> bool {
        is_dead(&self.path(who))
    }

    fn path(&self, who: Incarnation) -> PathBuf {
        self.directory.join(hex(who))
    }
}

/// Sixteen digits: the name of the lock file, and of the host in the database.
pub(crate) fn hex(who: Incarnation) -> String {
    format!("{:016x}", who.0)
}

/// [`hex`] backwards.
pub(crate) fn unhex(hex: &str) -> Option<Incarnation> {
    u64::from_str_radix(hex, 16).ok().map(Incarnation)
}

fn is_dead(path: &Path) -> bool {
    loop {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) => return error.kind() == io::ErrorKind::NotFound,
        };
        match file.try_lock() {
            // Only whoever has the lock on the very file that is there may remove it: another sweeper may have been
            // faster, and a living host may have put a new one in its place.
            Ok(()) => match is_at(&file, path) {
                Ok(true) => {
                    let _ = fs::remove_file(path);
                    return true;
                }
                Ok(false) => {}
                Err(_) => return false,
            },
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return false,
        }
    }
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let mine = identity(&file.metadata()?);
    match fs::metadata(path) {
        Ok(there) => Ok(identity(&there) == mine),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What tells one file from another, whatever they are called. Elsewhere than on Unix all are taken for the same; a
/// mistake costs a takeover or a warning, never data.
#[cfg(unix)]
pub(crate) type Identity = (u64, u64);
#[cfg(not(unix))]
pub(crate) type Identity = ();

#[cfg(unix)]
pub(crate) fn identity(of: &fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt as _;
    (of.dev(), of.ino())
}

#[cfg(not(unix))]
pub(crate) fn identity(_: &fs::Metadata) -> Identity {}

#[cfg(unix)]
fn create_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

#[cfg(not(unix))]
fn create_private(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)
}

/// Options for a file that only its owner may touch.
#[cfg(unix)]
pub(crate) fn private_file() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(not(unix))]
pub(crate) fn private_file() -> OpenOptions {
    OpenOptions::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_alive_and_the_dead_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("db");
        let (a, b) = (Incarnation(1), Incarnation(u64::MAX));
        let observer = Presence::open(&database).unwrap();
        assert!(observer.is_dead(a), "never heard of");

        let mut one = Presence::open(&database).unwrap();
        one.announce(a).unwrap();
        one.announce(a).unwrap();
        one.announce(b).unwrap();
        let mut two = Presence::open(&database).unwrap();
        two.announce(a).unwrap();
        assert!(!observer.is_dead(a) && !observer.is_dead(b) && !one.is_dead(a));
        drop(one);
        assert!(!observer.is_dead(a), "the second handle keeps it");
        assert!(observer.is_dead(b));
        assert!(!observer.observer.path(b).exists(), "swept");
        drop(two);
        Presence::open(&database).unwrap();
        assert!(!observer.observer.path(a).exists(), "opening sweeps");
    }

    #[test]
    fn coming_to_life_survives_the_sweepers() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("db");
        let who = Incarnation(7);
        let observer = Presence::open(&database).unwrap();
        std::thread::scope(|scope| {
            let sweep = scope.spawn(|| (0..3000).filter(|_| observer.is_dead(who)).count());
            while !sweep.is_finished() {
                let mut presence = Presence::open(&database).unwrap();
                presence.announce(who).unwrap();
                assert!(!presence.is_dead(who), "announced is alive");
            }
        });
    }
}
