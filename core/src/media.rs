//! Files outside the protocol (fact sheet 07.16): decrypted and checked in pieces, so that their size costs no memory.
//!
//! A file is AES-256-CBC with ten bytes of MAC at its end. That is where the trouble with long files lies: nothing is
//! known to be sound before the last byte has come. [`MediaReader`] hands out plaintext as it goes and says at
//! [`finish`](MediaReader::finish) whether it was worth anything. Whoever cannot hold everything back until then reads a
//! file twice: a [`Survey`] checks all of it and notes a hash of each part, and in the second reading [`Guard`] lets
//! through only parts that were there the first time.

use crate::crypto::{
    CbcStream, HmacStream, Sha256Stream, hkdf_sha256, padding, sha256, verify_mac,
};
use std::fmt;

const BLOCK: usize = 16;
const MAC: usize = 10;

/// Length of the parts that a [`Survey`] notes.
pub const PART_BYTES: usize = crate::limits::MEDIA_PART;

/// What a file is: its key is derived for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediaKind {
    /// Snapshots and long patches.
    AppState,
    /// Chunks of history.
    History,
    /// Pictures and stickers.
    Image,
    /// Videos.
    Video,
    /// Sound.
    Audio,
    /// Anything else.
    Document,
}

impl MediaKind {
    const fn info(self) -> &'static [u8] {
        match self {
            Self::AppState => b"WhatsApp App State Keys",
            Self::History => b"WhatsApp History Keys",
            Self::Image => b"WhatsApp Image Keys",
            Self::Video => b"WhatsApp Video Keys",
            Self::Audio => b"WhatsApp Audio Keys",
            Self::Document => b"WhatsApp Document Keys",
        }
    }

    /// Its name in the addresses of media hosts.
    #[must_use]
    pub const fn mms_type(self) -> &'static str {
        match self {
            Self::AppState => "md-app-state",
            Self::History => "md-msg-hist",
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Document => "document",
        }
    }
}

/// What is known about a file before it is fetched.
#[derive(Clone, Copy, Default)]
pub struct Expected {
    /// SHA-256 of the encrypted file, MAC included.
    pub enc_sha256: Option<[u8; 32]>,
    /// SHA-256 of the plaintext.
    pub sha256: Option<[u8; 32]>,
    /// Most bytes of plaintext that are taken.
    pub most: u64,
}

/// Why a file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// Longer than allowed.
    #[error("a file is too long")]
    TooLong,
    /// Not whole blocks and a MAC, or padding that is none.
    #[error("a file has an impossible length or padding")]
    Length,
    /// Changed, cut, or of another key.
    #[error("the MAC of a file is wrong")]
    Mac,
    /// Not the file that was announced.
    #[error("the hash of a file is wrong")]
    Hash,
    /// Read a second time, it is another one.
    #[error("a file has changed between two readings")]
    Changed,
}

/// Decrypts a file that comes in pieces of any size.
pub struct MediaReader {
    cipher: CbcStream,
    mac: HmacStream,
    sealed: Sha256Stream,
    plain: Sha256Stream,
    expected: Expected,
    /// Not decrypted yet: the last block waits for its padding to be known as such, the MAC for the end.
    held: Vec<u8>,
    length: u64,
}

impl fmt::Debug for MediaReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MediaReader({} bytes)", self.length)
    }
}

impl MediaReader {
    /// At the beginning of a file.
    #[must_use]
    pub fn new(kind: MediaKind, media_key: &[u8; 32], expected: Expected) -> Self {
        let keys = hkdf_sha256::<112>(&[], media_key, kind.info());
        let (mut iv, mut cipher) = ([0; BLOCK], zeroize::Zeroizing::new([0; 32]));
        iv.copy_from_slice(&keys[..16]);
        cipher.copy_from_slice(&keys[16..48]);
        let mut mac = HmacStream::new(&keys[48..80]);
        mac.update(&iv);
        Self {
            cipher: CbcStream::new(&cipher, &iv),
            mac,
            sealed: Sha256Stream::default(),
            plain: Sha256Stream::default(),
            expected,
            held: Vec::new(),
            length: 0,
        }
    }

    /// Takes the next piece; what it decrypts to is appended to `out`. It is not known to be sound yet.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), MediaError> {
        self.sealed.update(piece);
        self.length = self.length.saturating_add(piece.len() as u64);
        if self.length > self.expected.most.saturating_add((BLOCK + MAC) as u64) {
            return Err(MediaError::TooLong);
        }
        self.held.extend_from_slice(piece);
        let ready = self.held.len().saturating_sub(BLOCK + MAC) / BLOCK * BLOCK;
        if ready > 0 {
            let start = out.len();
            out.extend(self.held.drain(..ready));
            if let Some(blocks) = out.get_mut(start..) {
                self.mac.update(blocks);
                self.cipher.decrypt(blocks);
                self.plain.update(blocks);
            }
        }
        Ok(())
    }

    /// The file has ended: the rest is appended to `out`, and everything is known to be sound, or is not.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), MediaError> {
        let (block, mac) = self
            .held
            .split_last_chunk::<MAC>()
            .filter(|(block, _)| block.len() == BLOCK)
            .ok_or(MediaError::Length)?;
        if let Some(expected) = self.expected.enc_sha256
            && !verify_mac(&expected, &self.sealed.finish())
        {
            return Err(MediaError::Hash);
        }
        self.mac.update(block);
        let whole = self.mac.finish();
        if !verify_mac(&whole[..MAC], mac) {
            return Err(MediaError::Mac);
        }
        let mut block = block.to_vec();
        self.cipher.decrypt(&mut block);
        let padding = padding(&block).ok_or(MediaError::Length)?;
        block.truncate(BLOCK - padding);
        self.plain.update(&block);
        if let Some(expected) = self.expected.sha256
            && !verify_mac(&expected, &self.plain.finish())
        {
            return Err(MediaError::Hash);
        }
        out.append(&mut block);
        Ok(())
    }
}

/// The first reading of a file: checks it, and keeps nothing but a hash per part.
#[derive(Debug)]
pub struct Survey {
    reader: MediaReader,
    part: Sha256Stream,
    filled: usize,
    parts: Vec<[u8; 32]>,
}

impl fmt::Debug for Sha256Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Stream(…)")
    }
}

impl Survey {
    /// At the beginning of a file.
    #[must_use]
    pub fn new(kind: MediaKind, media_key: &[u8; 32], expected: Expected) -> Self {
        Self {
            reader: MediaReader::new(kind, media_key, expected),
            part: Sha256Stream::default(),
            filled: 0,
            parts: Vec::new(),
        }
    }

    /// Takes the next piece; what it decrypts to is appended to `out`, for a file that turns out to be short.
    pub fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Result<(), MediaError> {
        self.reader.push(piece, out)?;
        while !piece.is_empty() {
            let (now, rest) = piece.split_at(piece.len().min(PART_BYTES - self.filled));
            self.part.update(now);
            self.filled += now.len();
            if self.filled == PART_BYTES {
                self.parts.push(std::mem::take(&mut self.part).finish());
                self.filled = 0;
            }
            piece = rest;
        }
        Ok(())
    }

    /// The file has ended. If it is sound, a guard for the second reading; the rest is appended to `out`.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<Guard, MediaError> {
        self.reader.finish(out)?;
        if self.filled > 0 {
            self.parts.push(self.part.finish());
        }
        Ok(Guard {
            parts: self.parts.into(),
            held: Vec::new(),
        })
    }
}

/// The second reading of a file: lets through only what was there the first time.
pub struct Guard {
    parts: std::collections::VecDeque<[u8; 32]>,
    held: Vec<u8>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({} parts)", self.parts.len())
    }
}

impl Guard {
    /// Takes the next piece; whole parts that are the same as before are appended to `out`.
    pub fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Result<(), MediaError> {
        while !piece.is_empty() {
            let (now, rest) = piece.split_at(piece.len().min(PART_BYTES - self.held.len()));
            self.held.extend_from_slice(now);
            if self.held.len() == PART_BYTES {
                self.release(out)?;
            }
            piece = rest;
        }
        Ok(())
    }

    /// The file has ended.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), MediaError> {
        if !self.held.is_empty() {
            self.release(out)?;
        }
        if self.parts.is_empty() {
            Ok(())
        } else {
            Err(MediaError::Changed)
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) -> Result<(), MediaError> {
        let known = self.parts.pop_front().ok_or(MediaError::Changed)?;
        if sha256(&[&self.held]) != known {
            return Err(MediaError::Changed);
        }
        out.append(&mut self.held);
        Ok(())
    }
}

/// Encrypts a file: what a phone does with a snapshot or a chunk of history before it uploads it.
#[must_use]
pub fn encrypt(kind: MediaKind, media_key: &[u8; 32], plain: &[u8]) -> Vec<u8> {
    let keys = hkdf_sha256::<112>(&[], media_key, kind.info());
    let (mut iv, mut cipher) = ([0; BLOCK], zeroize::Zeroizing::new([0; 32]));
    iv.copy_from_slice(&keys[..16]);
    cipher.copy_from_slice(&keys[16..48]);
    let mut file = crate::crypto::aes_cbc_encrypt(&cipher, &iv, plain);
    let mac = crate::crypto::hmac_sha256(&keys[48..80], &[&iv, &file]);
    file.extend_from_slice(&mac[..MAC]);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{array, bytes};
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../tests/vectors/media.json")).unwrap()
    }

    fn read(mut reader: MediaReader, file: &[u8], cuts: &[usize]) -> Result<Vec<u8>, MediaError> {
        let mut out = Vec::new();
        let mut rest = file;
        for cut in cuts {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            reader.push(now, &mut out)?;
            rest = later;
        }
        reader.push(rest, &mut out)?;
        reader.finish(&mut out)?;
        Ok(out)
    }

    #[test]
    fn file_of_the_vector() {
        let vectors = vectors();
        let case = &vectors["image_file"];
        let (key, file) = (array(&case["media_key"]), bytes(&case["uploaded_bytes"]));
        let plain = bytes(&case["plaintext"]);
        let expected = Expected {
            enc_sha256: Some(array(&case["file_enc_sha256"])),
            sha256: Some(array(&case["file_sha256"])),
            most: 1 << 20,
        };
        let reader = || MediaReader::new(MediaKind::Image, &key, expected);
        assert_eq!(read(reader(), &file, &[]), Ok(plain.clone()));
        assert_eq!(read(reader(), &file, &[1, 15, 16, 17]), Ok(plain.clone()));
        assert_eq!(encrypt(MediaKind::Image, &key, &plain), file);

        // Each thing that can be wrong.
        let but = |change: &dyn Fn(&mut Expected)| {
            let mut other = expected;
            change(&mut other);
            read(MediaReader::new(MediaKind::Image, &key, other), &file, &[])
        };
        assert_eq!(
            but(&|e| e.enc_sha256 = Some([0; 32])),
            Err(MediaError::Hash)
        );
        assert_eq!(but(&|e| e.sha256 = Some([0; 32])), Err(MediaError::Hash));
        assert_eq!(but(&|e| e.most = 5), Err(MediaError::TooLong));
        let unhashed = Expected {
            most: 1 << 20,
            ..Default::default()
        };
        let other = MediaReader::new(MediaKind::Video, &key, unhashed);
        assert_eq!(read(other, &file, &[]), Err(MediaError::Mac));
        for length in [0, 9, 10, 25, 27, file.len() - 1] {
            let reader = MediaReader::new(MediaKind::Image, &key, unhashed);
            assert!(read(reader, &file[..length], &[]).is_err(), "{length}");
        }
    }

    #[test]
    fn keys_of_the_vector() {
        let vectors = vectors();
        let mut found = 0;
        for case in vectors["expansions"].as_array().unwrap() {
            let kinds = [
                MediaKind::AppState,
                MediaKind::History,
                MediaKind::Image,
                MediaKind::Video,
                MediaKind::Audio,
                MediaKind::Document,
            ];
            for kind in kinds {
                if case["info"].as_str().unwrap().as_bytes() != kind.info() {
                    continue;
                }
                let key: [u8; 32] = array(&case["media_key"]);
                let keys = hkdf_sha256::<112>(&[], &key, kind.info());
                assert_eq!(keys[..16], bytes(&case["iv"]));
                assert_eq!(keys[16..48], bytes(&case["cipher_key"]));
                assert_eq!(keys[48..80], bytes(&case["mac_key"]));
                found += 1;
            }
        }
        assert!(found >= 6);
    }

    proptest! {
        /// Cut anywhere, a file reads the same; changed anywhere, it is refused.
        #[test]
        fn pieces_do_not_matter(
            plain in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0..80usize, 0..8),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let key = [3; 32];
            let expected = Expected { most: 1000, ..Default::default() };
            let reader = || MediaReader::new(MediaKind::History, &key, expected);
            let mut file = encrypt(MediaKind::History, &key, &plain);
            prop_assert_eq!(read(reader(), &file, &cuts), Ok(plain));
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            prop_assert_eq!(read(reader(), &file, &cuts), Err(MediaError::Mac));
        }
    }

    /// What is held until it is known to be what it was is one part, never more.
    #[test]
    fn a_part_ends_at_its_limit() {
        use crate::limits::MEDIA_PART;
        let file = encrypt(MediaKind::History, &[3; 32], &vec![7; 3 * MEDIA_PART]);
        let expected = Expected {
            most: 1 << 30,
            ..Default::default()
        };
        let mut survey = Survey::new(MediaKind::History, &[3; 32], expected);
        survey.push(&file, &mut Vec::new()).unwrap();
        let mut guard = survey.finish(&mut Vec::new()).unwrap();
        let mut out = Vec::new();
        for (upto, passed, held) in [
            (MEDIA_PART - 1, 0, MEDIA_PART - 1),
            (MEDIA_PART, MEDIA_PART, 0),
            (MEDIA_PART + 1, MEDIA_PART, 1),
            (3 * MEDIA_PART - 1, 2 * MEDIA_PART, MEDIA_PART - 1),
            (file.len(), 3 * MEDIA_PART, file.len() - 3 * MEDIA_PART),
        ] {
            let had = out.len() + guard.held.len();
            guard.push(&file[had..upto], &mut out).unwrap();
            assert_eq!((out.len(), guard.held.len()), (passed, held), "{upto}");
            assert!(guard.held.capacity() <= 2 * MEDIA_PART);
        }
        guard.finish(&mut out).unwrap();
        assert_eq!(out, file);
    }

    /// A second reading lets through exactly the first one, in parts, and nothing of a part that differs.
    #[test]
    fn the_second_reading_is_the_first() {
        let key = [3; 32];
        for length in [0, 10, PART_BYTES - 26, PART_BYTES, 3 * PART_BYTES + 5] {
            let plain: Vec<u8> = (0..length).map(|n| ((n * 31) >> 3) as u8).collect();
            let file = encrypt(MediaKind::History, &key, &plain);
            let expected = Expected {
                most: 1 << 30,
                ..Default::default()
            };
            let guard = || {
                let mut survey = Survey::new(MediaKind::History, &key, expected);
                file.chunks(70_000)
                    .for_each(|piece| survey.push(piece, &mut Vec::new()).unwrap());
                survey.finish(&mut Vec::new()).unwrap()
            };
            let second = |file: &[u8]| {
                let (mut guard, mut out) = (guard(), Vec::new());
                let result = file
                    .chunks(90_001)
                    .try_for_each(|piece| guard.push(piece, &mut out))
                    .and_then(|()| guard.finish(&mut out));
                (result, out)
            };
            assert_eq!(second(&file), (Ok(()), file.clone()));
            let mut longer = file.clone();
            longer.push(0);
            assert_eq!(second(&longer).0, Err(MediaError::Changed));
            assert_eq!(second(&file[..file.len() - 1]).0, Err(MediaError::Changed));
            let mut other = file.clone();
            let last = other.len() - 1;
            other[last] ^= 1;
            let (result, out) = second(&other);
            assert_eq!(result, Err(MediaError::Changed));
            assert!(out.len() < file.len() && file.starts_with(&out));
            // What is not sound the first time is not read a second time.
            let mut survey = Survey::new(MediaKind::History, &key, expected);
            survey.push(&other, &mut Vec::new()).unwrap();
            assert_eq!(survey.finish(&mut Vec::new()).err(), Some(MediaError::Mac));
        }
    }
}
