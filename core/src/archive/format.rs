//! The form of a file: a prelude in the clear, then encrypted chunks in one order. `docs/export.md` has the table.

use super::{FileError, FileKey, Source};
use crate::{
    crypto::{PassphraseCost, Rng, SecretKey, XChaCha, hkdf_sha256, hmac_sha256, verify_mac},
    proto::archive,
    state::{Key, Record},
};
use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

const MAGIC: [u8; 8] = *b"BATONEXP";
/// The version this code writes, and the only one there is.
const VERSION: u16 = 1;
const SIGNED: usize = 39;
const PRELUDE: usize = SIGNED + 32;
/// Rows are collected until they are that long.
pub(super) const CHUNK: usize = 64 << 10;
/// No chunk is longer: a collection that one row of any size was added to.
const CHUNK_MAX: usize = CHUNK + Record::MAX_STORED_BYTES + (64 << 10);

/// Why a file cannot be read. Nothing was written anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The file itself.
    #[error("the file cannot be read: {0}")]
    File(#[from] FileError),
    /// It does not begin like one.
    #[error("this is not an export file")]
    NotAnExport,
    /// Of a version that this release does not know.
    #[error("the file has version {0}; this release reads version 1")]
    Newer(u16),
    /// A passphrase was given.
    #[error("the file is locked with a key, not with a passphrase")]
    NeedsKey,
    /// A key was given.
    #[error("the file is locked with a passphrase, not with a key")]
    NeedsPassphrase,
    /// Or the first 71 bytes of the file were changed.
    #[error("the key or passphrase is not the file's")]
    WrongKey,
    /// The file asks for more work than is reasonable, or than there is memory for.
    #[error("the file asks for more memory or time to open than is given to it")]
    Cost,
    /// It ends in the middle.
    #[error("the file ends too early: it is not complete")]
    Truncated,
    /// What it holds is not what was written.
    #[error("the file is damaged at chunk {0}")]
    Damaged(u64),
    /// It is whole, but holds what this release does not know.
    #[error("the file holds rows that only a later release knows")]
    Unknown,
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Header = 1,
    Rows = 2,
    End = 3,
    Release = 4,
}

/// The part of a file that its key opens.
struct Locked {
    cipher: XChaCha,
    context: Vec<u8>,
    /// Of the next chunk.
    sequence: u64,
}

impl Locked {
    fn new(secret: &SecretKey, signed: &[u8; SIGNED]) -> (Self, [u8; PRELUDE]) {
        let derive = |info| hkdf_sha256::<32>(b"Baton export", secret.as_bytes(), info);
        // The salt is part of both: every file has keys of its own, so that chunks can be counted instead of drawing
        // nonces.
        let chunks = [&b"chunks"[..], signed].concat();
        let check = hmac_sha256(derive(b"check").as_slice(), &[signed]);
        let mut prelude = [0; PRELUDE];
        let (front, back) = prelude.split_at_mut(SIGNED);
        front.copy_from_slice(signed);
        back.copy_from_slice(&check);
        let locked = Self {
            cipher: XChaCha::new(&derive(&chunks)),
            context: [&b"Baton export\0"[..], &prelude].concat(),
            sequence: 0,
        };
        (locked, prelude)
    }

    fn nonce(&self, kind: u8) -> [u8; XChaCha::NONCE] {
        let mut nonce = [0; XChaCha::NONCE];
        let [.., kind_at, a, b, c, d, e, f, g, h] = &mut nonce;
        *kind_at = kind;
        [*a, *b, *c, *d, *e, *f, *g, *h] = self.sequence.to_be_bytes();
        nonce
    }
}

/// Makes the bytes of a file.
pub(super) struct Writer {
    locked: Locked,
    pub(super) prelude: [u8; PRELUDE],
}

impl Writer {
    pub(super) fn new(key: FileKey<'_>, cost: PassphraseCost, rng: &mut Rng) -> Option<Self> {
        let salt: [u8; 16] = rng.bytes();
        let (kind, cost, secret) = match key {
            FileKey::Key(key) => {
                let none = PassphraseCost {
                    kib: 0,
                    passes: 0,
                    lanes: 0,
                };
                (0, none, key.clone())
            }
            FileKey::Passphrase(text) => {
                let secret = SecretKey::from_passphrase(text.as_bytes(), &salt, cost).ok()?;
                (1, cost, secret)
            }
        };
        let signed: Vec<u8> = [
            &MAGIC[..],
            &VERSION.to_be_bytes(),
            &[kind],
            &salt,
            &cost.kib.to_be_bytes(),
            &cost.passes.to_be_bytes(),
            &cost.lanes.to_be_bytes(),
        ]
        .concat();
        let (locked, prelude) = Locked::new(&secret, &signed.try_into().ok()?);
        Some(Self { locked, prelude })
    }

    pub(super) fn header(&mut self, header: &archive::Header) -> Vec<u8> {
        self.chunk(Kind::Header, &header.encode_to_vec())
    }

    pub(super) fn rows(&mut self, rows: &[u8]) -> Vec<u8> {
        self.chunk(Kind::Rows, rows)
    }

    pub(super) fn end(&mut self, end: &archive::End) -> Vec<u8> {
        self.chunk(Kind::End, &end.encode_to_vec())
    }

    pub(super) fn release(&mut self, release: &archive::Release) -> Vec<u8> {
        self.chunk(Kind::Release, &release.encode_to_vec())
    }

    fn chunk(&mut self, kind: Kind, plaintext: &[u8]) -> Vec<u8> {
        const FRONT: usize = 5;
        let kind = kind as u8;
        let mut out = Vec::with_capacity(FRONT + plaintext.len() + XChaCha::TAG);
        let len = u32::try_from(plaintext.len() + XChaCha::TAG).unwrap_or(u32::MAX);
        out.push(kind);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(plaintext);
        let nonce = self.locked.nonce(kind);
        let context = &self.locked.context;
        self.locked
            .cipher
            .seal_from(FRONT, &nonce, context, &mut out);
        self.locked.sequence += 1;
        out
    }
}

/// Adds a row to a collection.
pub(super) fn put_row(rows: &mut Vec<u8>, key: &Key, record: &Record) {
    let at = rows.len();
    rows.extend_from_slice(&[0; 4]);
    key.write_bytes(rows);
    let len = u32::try_from(rows.len() - at - 4).unwrap_or(u32::MAX);
    if let Some(front) = rows.get_mut(at..at + 4) {
        front.copy_from_slice(&len.to_be_bytes());
    }
    let len = u32::try_from(record.0.len()).unwrap_or(u32::MAX);
    rows.extend_from_slice(&len.to_be_bytes());
    rows.extend_from_slice(&record.0);
}

/// A chunk that was opened.
pub(super) enum Chunk {
    Header(archive::Header),
    Rows(Vec<(Key, Record)>),
    End(archive::End),
    Release(archive::Release),
}

/// Reads a file, twice if need be.
pub(super) struct Reader<'a, F> {
    source: &'a mut F,
    prelude: [u8; PRELUDE],
    locked: Locked,
}

impl<'a, F: Source> Reader<'a, F> {
    pub(super) fn open(source: &'a mut F, key: FileKey<'_>) -> Result<Self, ReadError> {
        source.rewind()?;
        let mut prelude = [0; PRELUDE];
        let got = fill(source, &mut prelude)?;
        let front = prelude
            .first_chunk::<SIGNED>()
            .ok_or(ReadError::NotAnExport)?;
        let (magic, rest) = front.split_first_chunk().ok_or(ReadError::NotAnExport)?;
        if *magic != MAGIC || got < 10 {
            return Err(ReadError::NotAnExport);
        }
        let &[v0, v1, kind, ref rest @ ..] = rest else {
            return Err(ReadError::NotAnExport);
        };
        match u16::from_be_bytes([v0, v1]) {
            VERSION => {}
            other => return Err(ReadError::Newer(other)),
        }
        if got < PRELUDE {
            return Err(ReadError::Truncated);
        }
        let (salt, cost) = rest
            .split_first_chunk::<16>()
            .ok_or(ReadError::NotAnExport)?;
        let secret = match (kind, key) {
            (0, FileKey::Key(key)) => key.clone(),
            (1, FileKey::Passphrase(text)) => {
                let cost = read_cost(cost).filter(|cost| cost.is_bearable());
                let cost = cost.ok_or(ReadError::Cost)?;
                SecretKey::from_passphrase(text.as_bytes(), salt, cost)
                    .map_err(|_| ReadError::Cost)?
            }
            (0, FileKey::Passphrase(_)) => return Err(ReadError::NeedsKey),
            (1, FileKey::Key(_)) => return Err(ReadError::NeedsPassphrase),
            _ => return Err(ReadError::NotAnExport),
        };
        let (locked, expected) = Locked::new(&secret, front);
        if !verify_mac(&expected, &prelude) {
            return Err(ReadError::WrongKey);
        }
        Ok(Self {
            source,
            prelude,
            locked,
        })
    }

    /// Back to the first chunk.
    pub(super) fn rewind(&mut self) -> Result<(), ReadError> {
        self.source.rewind()?;
        let mut prelude = [0; PRELUDE];
        if fill(self.source, &mut prelude)? < PRELUDE || prelude != self.prelude {
            return Err(ReadError::Damaged(0));
        }
        self.locked.sequence = 0;
        Ok(())
    }

    /// The next chunk; `None` at the end of the bytes.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, ReadError> {
        let at = self.locked.sequence;
        let mut front = [0; 5];
        match fill(self.source, &mut front)? {
            0 => return Ok(None),
            5 => {}
            _ => return Err(ReadError::Truncated),
        }
        let [kind, a, b, c, d] = front;
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        // A length that was changed must not make us ask for so much memory, or for bytes that never come.
        if len > CHUNK_MAX {
            return Err(ReadError::Damaged(at));
        }
        let mut sealed = vec![0; len];
        if fill(self.source, &mut sealed)? < len {
            return Err(ReadError::Truncated);
        }
        let plaintext = self
            .locked
            .cipher
            .open(&self.locked.nonce(kind), &self.locked.context, &sealed)
            .map_err(|_| ReadError::Damaged(at))?;
        self.locked.sequence += 1;
        // From here on the bytes are what somebody with the key wrote: what we do not know, a later release does.
        let plaintext = Zeroizing::new(plaintext);
        let bytes = plaintext.as_slice();
        let unknown = |_| ReadError::Unknown;
        Ok(Some(match kind {
            1 => Chunk::Header(archive::Header::decode(bytes).map_err(unknown)?),
            2 => Chunk::Rows(read_rows(bytes).ok_or(ReadError::Unknown)?),
            3 => Chunk::End(archive::End::decode(bytes).map_err(unknown)?),
            4 => Chunk::Release(archive::Release::decode(bytes).map_err(unknown)?),
            _ => return Err(ReadError::Unknown),
        }))
    }

    /// The number of the chunk that was read last.
    pub(super) const fn at(&self) -> u64 {
        self.locked.sequence.saturating_sub(1)
    }
}

fn read_cost(bytes: &[u8]) -> Option<PassphraseCost> {
    let (kib, bytes) = bytes.split_first_chunk()?;
    let (passes, bytes) = bytes.split_first_chunk()?;
    let (lanes, _) = bytes.split_first_chunk()?;
    Some(PassphraseCost {
        kib: u32::from_be_bytes(*kib),
        passes: u32::from_be_bytes(*passes),
        lanes: u32::from_be_bytes(*lanes),
    })
}

fn read_rows(mut bytes: &[u8]) -> Option<Vec<(Key, Record)>> {
    fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (len, rest) = bytes.split_first_chunk()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        let (part, rest) = rest.split_at_checked(len)?;
        *bytes = rest;
        Some(part)
    }
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        let key = Key::from_bytes(part(&mut bytes)?).ok()?;
        let record = Record(Bytes::copy_from_slice(part(&mut bytes)?));
        rows.push((key, record));
    }
    Some(rows)
}

/// As many bytes as there are, up to all of `into`.
fn fill<F: Source>(source: &mut F, into: &mut [u8]) -> Result<usize, FileError> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest)? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}
