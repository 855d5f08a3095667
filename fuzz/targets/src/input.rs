//! Reading an input: a few choices, then bytes; or edits of something genuine.

/// The rest of an input. Reading past its end gives zeros, so that every input means something.
#[derive(Clone, Copy, Debug)]
pub struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    /// From the beginning.
    #[must_use]
    pub const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// A number, mostly small, sometimes at the edge.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            250 => u64::from(u32::MAX),
            251 => u64::from(u32::MAX) + 1,
            252 => i64::MAX as u64,
            253 => u64::MAX - 1,
            254 => u64::MAX,
            255 => u64::from_be_bytes(std::array::from_fn(|_| self.u8())),
            small => small.into(),
        }
    }

    /// One of these.
    pub fn pick<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        &of[usize::from(self.u8()) % of.len()]
    }

    /// So many bytes, or as many as there are.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length of one byte and so many bytes.
    pub fn short(&mut self) -> &'a [u8] {
        let length = self.u8().into();
        self.bytes(length)
    }

    /// A length of two bytes and so many bytes.
    pub fn long(&mut self) -> &'a [u8] {
        let length = self.u16().into();
        self.bytes(length)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Something in place of `genuine`: bytes of the input's own, or `genuine` with up to four edits.
    pub fn forged(&mut self, genuine: &[u8]) -> Vec<u8> {
        match self.u8() % 6 {
            0 => self.long().to_vec(),
            edits => self.edited(genuine, edits - 1),
        }
    }

    /// `genuine` with so many edits.
    pub fn edited(&mut self, genuine: &[u8], edits: u8) -> Vec<u8> {
        let mut bytes = genuine.to_vec();
        for _ in 0..edits {
            let (what, at) = (self.u8(), usize::from(self.u16()) % (bytes.len() + 1));
            match what % 6 {
                0 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= self.u8();
                    }
                }
                1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.u8();
                    }
                }
                2 => bytes.truncate(at),
                3 => {
                    bytes.splice(at..at, self.short().iter().copied());
                }
                4 => {
                    let end = bytes.len().min(at + usize::from(self.u8()));
                    bytes.drain(at..end);
                }
                _ => {
                    let end = bytes.len().min(at + usize::from(self.u8()));
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        bytes
    }
}

/// An input that [`Take::long`] reads as these bytes.
#[must_use]
pub fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(&bytes[..length.into()]);
    out
}

/// A gzip stream that holds these bytes as they are. Written out by hand: an encoder clears a quarter of a megabyte first.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    stored(bytes, &mut out);
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&crc.amount().to_le_bytes());
    out
}

/// A zlib stream that holds these bytes as they are; see [`gzip`].
#[must_use]
pub fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    stored(bytes, &mut out);
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    out.extend_from_slice(&(b << 16 | a).to_be_bytes());
    out
}

/// Stored blocks of deflate, the last one marked.
fn stored(bytes: &[u8], out: &mut Vec<u8>) {
    let mut blocks = bytes.chunks(65_535).peekable();
    if bytes.is_empty() {
        out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        out.push(blocks.peek().is_none().into());
        let length = u16::try_from(block.len()).expect("a block");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::{GzDecoder, ZlibDecoder};
    use std::io::Read as _;

    #[test]
    fn stored_streams_hold_their_bytes() {
        for length in [0, 1, 65_535, 65_536, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
            let mut back = Vec::new();
            let packed = gzip(&bytes);
            GzDecoder::new(&packed[..])
                .read_to_end(&mut back)
                .expect("gzip");
            assert_eq!(back, bytes);
            back.clear();
            let packed = zlib(&bytes);
            ZlibDecoder::new(&packed[..])
                .read_to_end(&mut back)
                .expect("zlib");
            assert_eq!(back, bytes);
        }
    }
}
