//! What happened to an engine, written down, so that it can be done again elsewhere, byte for byte.
//!
//! An engine is a function of its birth and its inputs ([`Engine::new`]), so a file of these is everything there is to
//! know about a run. The driver gives each input to the [`Writer`] as it gives it to the engine, and each output as it
//! takes it; of outputs only a digest is kept. [`replay`] builds the engine again, and says where the two differ first:
//! nowhere, if the program is the same.
//!
//! Such a file holds an account's keys, its rows and its messages: all of it is encrypted under the key that rows are
//! encrypted under. It is a prelude in the clear (magic, version, salt) and then frames, each sealed under the file's own
//! key and its number: a file that ends in the middle of one, as of a process that was killed, is good up to there.
//!
//! ```text
//! BATONJRN | version u16 | salt 16 | { length u32 | XChaCha20-Poly1305(protobuf Line) }*
//! ```

mod codec;
mod digest;

use crate::{
    crypto::{Rng, SecretKey, XChaCha, hkdf_sha256},
    engine::{Engine, Grant, Input, Now, Output},
    flow::Config,
    state::AccountId,
};
use codec::{Kind, Line};
use digest::Digest;
use prost::Message as _;
use std::fmt;

const MAGIC: [u8; 8] = *b"BATONJRN";
/// The version this code writes, and the only one it reads.
const VERSION: u16 = 1;
const PRELUDE: usize = 8 + 2 + 16;
/// No frame is longer: an input is a page of rows at most.
const FRAME_MAX: usize = 256 << 20;

/// All that [`Engine::new`] takes.
#[derive(Clone, Debug)]
pub struct Birth {
    /// Whose engine.
    pub account: AccountId,
    /// Its configuration.
    pub config: Config,
    /// Its right to act.
    pub grant: Grant,
    /// Its randomness.
    pub seed: Seed,
    /// When.
    pub now: Now,
}

/// What all randomness of an engine comes from. As secret as its keys.
#[derive(Clone)]
pub struct Seed(pub [u8; 32]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Birth {
    /// The engine that was born so.
    #[must_use]
    pub fn build(self) -> Engine {
        Engine::new(self.account, self.config, self.grant, self.seed.0, self.now)
    }
}

/// Why a journal cannot be read, or not be done again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It does not begin like one.
    #[error("this is no journal")]
    NotAJournal,
    /// Of a version that this release does not know.
    #[error("the journal has version {0}; this release reads version 1")]
    Newer(u16),
    /// Or its first bytes were changed.
    #[error("the key is not the journal's")]
    WrongKey,
    /// It was changed at this line.
    #[error("the journal is damaged at line {0}")]
    Damaged(u64),
    /// It holds something that this release does not know, at this line.
    #[error("line {0} of the journal holds what this release does not know")]
    Unknown(u64),
    /// The engine did something else than the one whose journal it is.
    #[error("line {line}: the engine did {found}, and that is not what it did then")]
    Differs {
        /// Where.
        line: u64,
        /// What it did now since the line before.
        found: String,
    },
}

/// Makes the bytes of a journal; whoever has a file appends them to it.
pub struct Writer {
    cipher: XChaCha,
    prelude: [u8; PRELUDE],
    sequence: u64,
    digest: Digest,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer(line {})", self.sequence)
    }
}

impl Writer {
    /// Begins a file, under the key that rows are encrypted under. `rng` gives the salt.
    pub fn begin(master: &SecretKey, birth: &Birth, rng: &mut Rng, out: &mut Vec<u8>) -> Self {
        let mut prelude = [0; PRELUDE];
        let (magic, rest) = prelude.split_at_mut(MAGIC.len());
        let (version, salt) = rest.split_at_mut(2);
        magic.copy_from_slice(&MAGIC);
        version.copy_from_slice(&VERSION.to_be_bytes());
        salt.copy_from_slice(&rng.bytes::<16>());
        out.extend_from_slice(&prelude);
        let mut writer = Self {
            cipher: cipher(master, &prelude),
            prelude,
            sequence: 0,
            digest: Digest::default(),
        };
        writer.line(&codec::birth(birth), out);
        writer
    }

    /// The engine is about to be given `input`.
    pub fn input(&mut self, input: &Input<'_>, now: Now, out: &mut Vec<u8>) {
        self.done(out);
        self.line(&codec::input(input, now), out);
    }

    /// The engine has given `output`, and appended `wire`.
    pub fn output(&mut self, output: &Output, wire: &[u8], out: &mut Vec<u8>) {
        self.digest.absorb(output, wire);
        // It has nothing more to say.
        if is_last(output) {
            self.done(out);
        }
    }

    fn done(&mut self, out: &mut Vec<u8>) {
        if let Some(line) = self.digest.line() {
            self.line(&line, out);
        }
    }

    fn line(&mut self, line: &Line, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        // Cannot fail: a Vec grows.
        let _ = line.encode(out);
        let nonce = nonce(self.sequence);
        self.sequence += 1;
        self.cipher.seal_from(start + 4, &nonce, &self.prelude, out);
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        if let Some(place) = out.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// Whether the engine waits for an input after this.
const fn is_last(output: &Output) -> bool {
    matches!(output, Output::Idle { .. } | Output::Stopped(_))
}

/// Every file has a key of its own, so lines can be counted instead of drawing nonces.
fn cipher(master: &SecretKey, prelude: &[u8; PRELUDE]) -> XChaCha {
    XChaCha::new(&hkdf_sha256::<32>(
        prelude,
        master.as_bytes(),
        b"Baton journal",
    ))
}

fn nonce(sequence: u64) -> [u8; XChaCha::NONCE] {
    let mut nonce = [0; XChaCha::NONCE];
    let (_, end) = nonce.split_at_mut(XChaCha::NONCE - 8);
    end.copy_from_slice(&sequence.to_be_bytes());
    nonce
}

/// Reads a journal.
pub struct Reader<'a> {
    cipher: XChaCha,
    prelude: [u8; PRELUDE],
    rest: &'a [u8],
    sequence: u64,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader(line {})", self.sequence)
    }
}

impl<'a> Reader<'a> {
    /// Opens `file`, which was written under this key.
    pub fn open(master: &SecretKey, file: &'a [u8]) -> Result<(Birth, Self), JournalError> {
        let (prelude, rest) = file
            .split_first_chunk::<PRELUDE>()
            .ok_or(JournalError::NotAJournal)?;
        let version = prelude
            .strip_prefix(&MAGIC)
            .and_then(|rest| rest.first_chunk())
            .map(|version| u16::from_be_bytes(*version))
            .ok_or(JournalError::NotAJournal)?;
        if version != VERSION {
            return Err(JournalError::Newer(version));
        }
        let mut reader = Self {
            cipher: cipher(master, prelude),
            prelude: *prelude,
            rest,
            sequence: 0,
        };
        let birth = match reader.line() {
            Ok(Some(line)) => codec::read_birth(&line).ok_or(JournalError::Unknown(0))?,
            Ok(None) => return Err(JournalError::NotAJournal),
            Err(_) => return Err(JournalError::WrongKey),
        };
        Ok((birth, reader))
    }

    /// `None` at the end, also at one in the middle of a line.
    fn line(&mut self) -> Result<Option<Line>, JournalError> {
        let Some((length, rest)) = self.rest.split_first_chunk() else {
            return Ok(None);
        };
        let damaged = JournalError::Damaged(self.sequence);
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(damaged);
        }
        let Some((sealed, rest)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let opened = self
            .cipher
            .open(&nonce(self.sequence), &self.prelude, sealed);
        let opened = opened.map_err(|_| damaged)?;
        let line = Line::decode(&*opened).map_err(|_| JournalError::Unknown(self.sequence))?;
        self.rest = rest;
        self.sequence += 1;
        Ok(Some(line))
    }
}

/// What is seen of a run that is done again.
#[derive(Debug)]
pub enum Seen<'a> {
    /// The engine is given this, at this time.
    Input(Now, &'a Input<'a>),
    /// It did this.
    Output(&'a Output),
}

/// What was done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Lines of the journal.
    pub lines: u64,
    /// Inputs.
    pub inputs: u64,
    /// Outputs, every one the same as then.
    pub outputs: u64,
}

/// Does again what a journal tells of, and shows it line by line. An error says where the engine did something else.
pub fn replay(
    master: &SecretKey,
    file: &[u8],
    mut watch: impl FnMut(u64, Seen<'_>),
) -> Result<Replayed, JournalError> {
    let (birth, mut reader) = Reader::open(master, file)?;
    let mut engine = birth.build();
    let mut done = Replayed::default();
    let mut wire = Vec::new();
    loop {
        let at = reader.sequence;
        let Some(line) = reader.line()? else {
            done.lines = at;
            return Ok(done);
        };
        let unknown = JournalError::Unknown(at);
        if line.kind() != Some(Kind::Done) {
            let (input, now) = codec::read_input(&line).ok_or(unknown)?;
            watch(at, Seen::Input(now, &input));
            engine.handle(input, now);
            done.inputs += 1;
            continue;
        }
        let (mut digest, mut last) = (Digest::default(), String::new());
        for _ in 0..line.numbers.first().copied().unwrap_or(0) {
            let output = engine.poll(&mut wire);
            digest.absorb(&output, &wire);
            wire.clear();
            watch(at, Seen::Output(&output));
            done.outputs += 1;
            last = format!("{output:?}");
            if is_last(&output) {
                break;
            }
        }
        if digest.line().as_ref() != Some(&line) {
            return Err(JournalError::Differs {
                line: at,
                found: last,
            });
        }
    }
}

#[cfg(test)]
mod tests;
