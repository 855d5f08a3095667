//! Chunks of history (fact sheet 07.17): inflated and taken apart as they come, in memory that does not depend on their
//! size.

mod parser;

pub use parser::{MESSAGE_BYTES, Piece};

use flate2::{Decompress, FlushDecompress, Status};
use parser::Parser;

/// Bytes that are inflated at once.
const INFLATE_BYTES: usize = 32 << 10;

/// Longest chunk, inflated.
pub const INFLATED_BYTES: u64 = crate::limits::HISTORY;

/// Why a chunk is refused. What came out of it before is what it says there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Not zlib, or changed on the way.
    #[error("a chunk of history that does not inflate")]
    Inflate,
    /// More than anybody's past.
    #[error("a chunk of history that inflates too far")]
    TooLong,
    /// Not the message that it should be.
    #[error("a chunk of history that does not decode")]
    Malformed,
    /// It ends in the middle.
    #[error("a chunk of history that is cut")]
    Cut,
}

/// Reads a chunk.
pub struct HistoryReader {
    compressed: Vec<u8>,
    at: usize,
    inflate: Decompress,
    inflated: bool,
    /// Most bytes that are inflated.
    most: u64,
    parser: Parser,
}

impl Default for HistoryReader {
    fn default() -> Self {
        Self::within(INFLATED_BYTES)
    }
}

impl std::fmt::Debug for HistoryReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HistoryReader({} bytes)", self.inflate.total_out())
    }
}

impl HistoryReader {
    /// A reader of chunks that inflate to so many bytes at most.
    fn within(most: u64) -> Self {
        Self {
            compressed: Vec::new(),
            at: 0,
            inflate: Decompress::new(true),
            inflated: false,
            most,
            parser: Parser::default(),
        }
    }

    /// Where the next compressed bytes are to be appended. They are held until [`next`](Self::next) has used them, so
    /// give no more before it has said `None`.
    pub fn input(&mut self) -> &mut Vec<u8> {
        self.compressed.drain(..self.at);
        self.at = 0;
        &mut self.compressed
    }

    /// The next piece. `None` if more bytes are needed, or that was all.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would have to end"
    )]
    pub fn next(&mut self) -> Result<Option<Piece>, HistoryError> {
        loop {
            match self.parser.next() {
                Ok(Some(piece)) => return Ok(Some(piece)),
                Ok(None) if self.inflated => return Ok(None),
                Ok(None) => {}
                Err(parser::Malformed) => return Err(HistoryError::Malformed),
            }
            let input = self.compressed.get(self.at..).unwrap_or_default();
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let mut out = Vec::with_capacity(INFLATE_BYTES);
            let status = self
                .inflate
                .decompress_vec(input, &mut out, FlushDecompress::None)
                .map_err(|_| HistoryError::Inflate)?;
            let eaten = self.inflate.total_in() - before_in;
            self.at += usize::try_from(eaten).unwrap_or(0);
            if self.inflate.total_out() > self.most {
                return Err(HistoryError::TooLong);
            }
            let stuck = eaten == 0 && self.inflate.total_out() == before_out;
            self.inflated = status == Status::StreamEnd;
            if stuck && !self.inflated {
                return Ok(None);
            }
            self.parser.push(&out);
        }
    }

    /// Whether all that was given has been used.
    #[must_use]
    pub fn is_dry(&self) -> bool {
        self.at == self.compressed.len()
    }

    /// No more bytes will come: whether the chunk is whole, now that `next` has said `None`.
    pub fn finish(&self) -> Result<(), HistoryError> {
        if self.inflated && self.parser.is_complete() {
            Ok(())
        } else {
            Err(HistoryError::Cut)
        }
    }

    /// Things that were left out because they are malformed or too long.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.parser.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write as _;

    #[test]
    fn a_chunk_ends_at_what_it_may_inflate_to() {
        // A field that nobody knows: its head has 4 bytes.
        let plain = [&[0x22, 0x80, 0x80, 0x10][..], &vec![0; 1 << 18]].concat();
        let length = plain.len() as u64;
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&plain).unwrap();
        let packed = packed.finish().unwrap();
        let read = |most: u64| {
            let mut reader = HistoryReader::within(most);
            reader.input().extend_from_slice(&packed);
            while reader.next()?.is_some() {}
            reader.finish()
        };
        assert_eq!(read(length + 1), Ok(()));
        assert_eq!(read(length), Ok(()));
        assert_eq!(read(length - 1), Err(HistoryError::TooLong));
        assert_eq!(HistoryReader::default().most, crate::limits::HISTORY);
    }
}
