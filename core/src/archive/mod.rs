//! One account as a file: out of one database, into another, never in two at once.
//!
//! Think of a car that is sold with one set of papers. The seller writes everything into the papers, then scraps the
//! number plate (the account is *retired* at its source, for ever), and only then signs. The buyer takes no unsigned
//! papers. If the seller dies with the plate scrapped and the papers unsigned, the car is still there, without a plate:
//! papers can be written again.
//!
//! * [`export`] claims the account, writes every row, makes sure that the file is kept, retires the account, and signs:
//!   the last chunk of a file says that the account cannot run at its source any more.
//! * [`import`] reads the whole file before it writes anything, and writes the device row last: an account without one
//!   is an import that has not ended, and can be begun again.
//! * [`inspect`] only looks.
//!
//! Files are encrypted ([`FileKey`]), versioned, and end where they say: what is cut off, changed, or in another order is
//! an error. `docs/export.md` has the format byte by byte, and says what is prevented and what is not: nobody can keep a
//! *file* from being copied and opened in two databases that do not know of each other. An account that comes out of a
//! file therefore goes on under new sessions and new ids ([`reseal`](crate::flow)), so that even then no message key
//! encrypts two messages.
//!
//! No files are touched here: bytes go to a [`Sink`] and come from a [`Source`].

mod export;
mod format;
mod import;
mod owner;

#[cfg(test)]
mod tests;

pub use export::{ExportError, ExportOptions, Exported, export};
pub use format::ReadError;
pub use import::{ImportError, ImportOptions, Imported, import, inspect};

use crate::{
    crypto::SecretKey,
    state::{Micros, UnixMillis},
};
use std::fmt;

/// What a file is locked with.
#[derive(Clone, Copy)]
pub enum FileKey<'a> {
    /// 32 random bytes.
    Key(&'a SecretKey),
    /// At least [`FileKey::PASSPHRASE`] characters; stretched by Argon2id, which takes about a tenth of a second and
    /// does not yield: not on a thread that others wait for.
    Passphrase(&'a str),
}

impl FileKey<'_> {
    /// Characters; what is shorter is not taken for new files.
    pub const PASSPHRASE: usize = 12;
}

impl fmt::Debug for FileKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(..)",
            Self::Passphrase(_) => "Passphrase(..)",
        })
    }
}

/// Where a file goes, from its first byte to its last.
pub trait Sink {
    /// Takes all of `bytes`.
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError>;

    /// Returns once everything written so far would survive a power cut: for a file, synced, and its directory too.
    fn keep(&mut self) -> Result<(), FileError>;
}

/// Where a file comes from. It is read twice.
pub trait Source {
    /// Fills some of `into`; 0 is the end.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, FileError>;

    /// Back to the first byte.
    fn rewind(&mut self) -> Result<(), FileError>;
}

/// The file itself failed: a full disk, missing rights. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(pub String);

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// This file among all others.
    pub id: ExportId,
    /// What the account was called, and whose it was.
    pub name: String,
    /// See [`name`](Self::name).
    pub business: String,
    /// When it was written.
    pub made_at: UnixMillis,
    /// How often the account has been moved, this time included.
    pub moves: u32,
    /// Whether it belongs to a linked phone.
    pub linked: bool,
    /// Rows in it.
    pub rows: u64,
    /// Rows that could not be read at the source and are missing.
    pub left_out: u64,
    /// Whether it ends with the word that the account cannot run at its source any more.
    pub released: bool,
}

/// The random number of a file, printed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportId(pub [u8; 16]);

impl fmt::Display for ExportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ExportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExportId({self})")
    }
}

/// How long the host of an export or import counts as alive without saying so: an interrupted one blocks its account
/// for no longer.
const LEASE: Micros = Micros::from_secs(60);
/// Says so after this many calls.
const BEAT_EVERY: u32 = 16;
/// Rows per call.
const PAGE: u32 = 256;
