//! Files at the media hosts: sealed by whoever leaves them, handed out in pieces (chapter 07.16).
//!
//! A file is held, or made anew whenever somebody reads it: a history of a hundred megabytes costs no memory here. Who
//! knows a path may read; the content is sealed, and the key is told to whom it is meant for.

use super::ciphers::{Cbc, Mac, Sum, cbc_open, hmac256, sum};
use super::faults::{FileFault, Kind};
use super::history::Chunk;
use super::{DeviceId, Service};
use baton_core::crypto::{Rng, hkdf_sha256};
use baton_core::state::Micros;
use bytes::Bytes;
use smol_str::SmolStr;
use std::collections::BTreeMap;

/// Longest file that somebody may leave.
pub const UPLOAD_BYTES: usize = 64 << 20;

/// What a file is for: decides the key, and its name in addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Snapshots and long patches.
    Settings,
    /// Chunks of history.
    History,
}

impl FileKind {
    const fn info(self) -> &'static [u8] {
        match self {
            Self::Settings => b"WhatsApp App State Keys",
            Self::History => b"WhatsApp History Keys",
        }
    }
}

/// What is told about a file to whom it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) key: [u8; 32],
    pub(super) path: String,
    /// Of the plaintext.
    pub(super) length: u64,
    pub(super) sha256: [u8; 32],
    pub(super) enc_sha256: [u8; 32],
}

/// All files.
#[derive(Default)]
pub(super) struct Files {
    files: BTreeMap<String, File>,
    /// What clients are told to be the media host, name and port.
    pub(super) host: Option<String>,
}

struct File {
    /// Phone number of the account it was left by; none if it came over HTTP.
    owner: Option<SmolStr>,
    length: u64,
    source: Source,
}

enum Source {
    Held(Bytes),
    Made(Box<Chunk>, [u8; 32]),
}

/// There is no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such file")]
pub struct NoFile;

/// The connection broke off in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the download broke off")]
pub struct Broken;

type Pieces = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// A file that is being read.
pub struct Download {
    pieces: Pieces,
    rest: Bytes,
    at: u64,
    /// Bytes of the whole file.
    length: u64,
    flaw: Option<FileFault>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Download({} of {} bytes, {:?})",
            self.at, self.length, self.flaw
        )
    }
}

impl Download {
    /// The next bytes, `most` at most; none at the end.
    ///
    /// # Errors
    ///
    /// If a fault breaks it off.
    pub fn next(&mut self, most: usize) -> Result<Option<Bytes>, Broken> {
        let half = self.length / 2;
        let mut most = most;
        match self.flaw {
            Some(FileFault::Truncated) if self.at >= half => return Ok(None),
            Some(FileFault::BreaksOff) if self.at >= half => return Err(Broken),
            Some(FileFault::Truncated | FileFault::BreaksOff) => {
                most = most.min(usize::try_from(half - self.at).unwrap_or(most));
            }
            _ => {}
        }
        while self.rest.is_empty() {
            match self.pieces.next() {
                Some(piece) => self.rest = piece.into(),
                None if self.flaw == Some(FileFault::Endless) => {
                    self.rest = Bytes::from_static(&[0; 16 << 10])
                }
                None => return Ok(None),
            }
        }
        let mut bytes = self.rest.split_to(most.min(self.rest.len()));
        self.at += bytes.len() as u64;
        if self.flaw == Some(FileFault::WrongMac) && self.at == self.length {
            let mut changed = bytes.to_vec();
            if let Some(last) = changed.last_mut() {
                *last ^= 1;
            }
            bytes = changed.into();
        }
        Ok(Some(bytes))
    }

    /// How long each piece takes.
    #[must_use]
    pub fn delay(&self) -> Micros {
        match self.flaw {
            Some(FileFault::Slow) => Micros::from_millis(500),
            _ => Micros(0),
        }
    }

    /// Bytes of the whole file, as announced.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether it will end where it was announced to.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        !matches!(
            self.flaw,
            Some(FileFault::Truncated | FileFault::BreaksOff | FileFault::Endless)
        )
    }
}

/// Seals what comes, piece by piece, and sums it up.
pub(super) struct Sealer<I> {
    plain: I,
    cipher: Cbc,
    mac: Mac,
    block: Vec<u8>,
    ended: bool,
}

/// Bytes that are handed out at a time at least.
const PIECE: usize = 4 << 10;

impl<I: Iterator<Item = Vec<u8>>> Sealer<I> {
    pub(super) fn new(kind: FileKind, key: &[u8; 32], plain: I) -> Self {
        let (iv, cipher, mac_key) = keys(kind, key);
        let mut mac = Mac::new(&mac_key);
        mac.update(&iv);
        Self {
            plain,
            cipher: Cbc::new(&cipher, &iv),
            mac,
            block: Vec::new(),
            ended: false,
        }
    }

    fn seal(&mut self, upto: usize) -> Vec<u8> {
        let rest = self.block.split_off(upto);
        let mut sealed = std::mem::replace(&mut self.block, rest);
        self.cipher.encrypt(&mut sealed);
        self.mac.update(&sealed);
        sealed
    }
}

impl<I: Iterator<Item = Vec<u8>>> Iterator for Sealer<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.ended {
                return None;
            }
            match self.plain.next() {
                Some(piece) => {
                    self.block.extend(piece);
                    // A client that asks for piece after piece should not need a round trip for each name in it.
                    if self.block.len() >= PIECE {
                        return Some(self.seal(self.block.len() / 16 * 16));
                    }
                }
                None => {
                    self.ended = true;
                    let padding = 16 - self.block.len() % 16;
                    self.block
                        .extend(vec![u8::try_from(padding).unwrap_or(16); padding]);
                    let mut last = self.seal(self.block.len());
                    let mac = self.mac.clone().finish();
                    last.extend(&mac[..10]);
                    return Some(last);
                }
            }
        }
    }
}

/// Vector, cipher key and MAC key.
fn keys(kind: FileKind, key: &[u8; 32]) -> ([u8; 16], [u8; 32], [u8; 32]) {
    let all = hkdf_sha256::<112>(&[], key, kind.info());
    (
        std::array::from_fn(|n| all[n]),
        std::array::from_fn(|n| all[16 + n]),
        std::array::from_fn(|n| all[48 + n]),
    )
}

/// Opens a whole file; none if anything about it is wrong.
pub(super) fn open(kind: FileKind, key: &[u8; 32], file: &[u8]) -> Option<Vec<u8>> {
    let (iv, cipher, mac_key) = keys(kind, key);
    let (sealed, mac) = file.split_last_chunk::<10>()?;
    if hmac256(&mac_key, &[&iv, sealed])[..10] != *mac {
        return None;
    }
    cbc_open(&cipher, &iv, sealed)
}

impl Files {
    /// Leaves a file whose content is at hand.
    pub(super) fn hold(
        &mut self,
        owner: &str,
        kind: FileKind,
        plain: &[u8],
        rng: &mut Rng,
    ) -> Reference {
        let key = rng.bytes();
        let sealed: Vec<u8> = Sealer::new(kind, &key, std::iter::once(plain.to_vec()))
            .flatten()
            .collect();
        let sums = (plain.len() as u64, sum(plain), sum(&sealed));
        let length = sealed.len() as u64;
        self.insert(owner, key, sums, length, Source::Held(sealed.into()), rng)
    }

    /// Leaves a chunk of history, which is made whenever it is read. It is made once here, to sum it up.
    pub(super) fn make(&mut self, owner: &str, chunk: Chunk, rng: &mut Rng) -> Reference {
        let key = rng.bytes();
        let (mut plain, mut sealed) = (Sum::new(), Sum::new());
        let (mut plain_length, mut length) = (0, 0);
        let pieces = chunk.file().inspect(|piece| {
            plain.update(piece);
            plain_length += piece.len() as u64;
        });
        for piece in Sealer::new(FileKind::History, &key, pieces) {
            sealed.update(&piece);
            length += piece.len() as u64;
        }
        let sums = (plain_length, plain.finish(), sealed.finish());
        self.insert(
            owner,
            key,
            sums,
            length,
            Source::Made(Box::new(chunk), key),
            rng,
        )
    }

    fn insert(
        &mut self,
        owner: &str,
        key: [u8; 32],
        (plain, sha256, enc_sha256): (u64, [u8; 32], [u8; 32]),
        length: u64,
        source: Source,
        rng: &mut Rng,
    ) -> Reference {
        let name = format!("/v/sim/{}.enc", super::books::hex(&rng.bytes::<12>()));
        let path = format!("{name}?ccb=11-4&oe={plain:X}");
        self.files.insert(
            name,
            File {
                owner: Some(owner.into()),
                length,
                source,
            },
        );
        Reference {
            key,
            path,
            length: plain,
            sha256,
            enc_sha256,
        }
    }

    /// The content of a file that a device left, if it is the one that was announced.
    pub(super) fn content(&self, kind: FileKind, path: &str, key: &[u8; 32]) -> Option<Vec<u8>> {
        let file = self.files.get(path.split('?').next()?)?;
        match &file.source {
            Source::Held(bytes) => open(kind, key, bytes),
            Source::Made(..) => None,
        }
    }
}

impl Service {
    /// Tells clients where files are, name and port. Without it they are sent to a host that does not exist.
    pub fn set_media_host(&mut self, host: &str) {
        self.files.host = Some(host.to_owned());
    }

    /// As set.
    #[must_use]
    pub fn media_host(&self) -> Option<&str> {
        self.files.host.as_deref()
    }

    /// Somebody leaves a file. Returns its path.
    pub fn leave_file(&mut self, bytes: Bytes) -> String {
        let name = format!("/v/sim/{}.enc", super::books::hex(&sum(&bytes)));
        let path = format!("{name}?ccb=11-4");
        self.files.files.insert(
            name,
            File {
                owner: None,
                length: bytes.len() as u64,
                source: Source::Held(bytes),
            },
        );
        path
    }

    /// Somebody reads a file: `path` is what they ask the host for, with or without a query.
    ///
    /// # Errors
    ///
    /// If there is none, or a fault says so.
    pub fn download(&mut self, path: &str) -> Result<Download, NoFile> {
        let name = path.split('?').next().unwrap_or_default();
        let file = self.files.files.get(name).ok_or(NoFile)?;
        let mut flaw = None;
        if let Some(owner) = &file.owner {
            let owner = DeviceId::new(owner, 0);
            flaw = FileFault::ALL
                .into_iter()
                .find(|flaw| self.faults.strikes(&owner, Kind::File(*flaw)).is_some());
        }
        if flaw == Some(FileFault::Gone) {
            return Err(NoFile);
        }
        let pieces: Pieces = match &file.source {
            Source::Held(bytes) => {
                let pieces: Vec<Vec<u8>> = bytes.chunks(64 << 10).map(<[u8]>::to_vec).collect();
                Box::new(pieces.into_iter())
            }
            Source::Made(chunk, key) => Box::new(Sealer::new(FileKind::History, key, chunk.file())),
        };
        Ok(Download {
            pieces,
            rest: Bytes::new(),
            at: 0,
            length: file.length,
            flaw,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn what_is_sealed_opens_and_nothing_else_does() {
        let mut rng = Rng::from_seed([3; 32]);
        for length in [0, 1, 15, 16, 17, 70_000] {
            let (mut files, plain) = (Files::default(), vec![7; length]);
            let told = files.hold("1", FileKind::Settings, &plain, &mut rng);
            assert_eq!(
                files.content(FileKind::Settings, &told.path, &told.key),
                Some(plain)
            );
            assert_eq!(
                files.content(FileKind::History, &told.path, &told.key),
                None
            );
            assert_eq!(
                files.content(FileKind::Settings, &told.path, &[0; 32]),
                None
            );
        }
    }

    /// The construction is the same for every kind of file but for the name of the kind.
    #[test]
    fn a_file_of_another_implementation_opens() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/vectors/media.json")).expect("JSON");
        let bytes = |value: &Value| -> Vec<u8> {
            let text = value.as_str().expect("a text");
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            (0..text.len()).step_by(2).map(byte).collect()
        };
        let expansions = vectors["expansions"].as_array().expect("a list");
        for (kind, info) in [
            (FileKind::History, "WhatsApp History Keys"),
            (FileKind::Settings, "WhatsApp App State Keys"),
        ] {
            let case = expansions
                .iter()
                .find(|case| case["info"] == info)
                .expect("it is there");
            let key: [u8; 32] = bytes(&case["media_key"]).try_into().expect("32 bytes");
            let (iv, cipher, mac) = keys(kind, &key);
            assert_eq!(iv.to_vec(), bytes(&case["iv"]));
            assert_eq!(cipher.to_vec(), bytes(&case["cipher_key"]));
            assert_eq!(mac.to_vec(), bytes(&case["mac_key"]));
        }
    }
}
