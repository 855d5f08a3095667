//! The forms of a string (ch. 02.4): token, packed digits, raw UTF-8.

use std::fmt;
use std::ops::Deref;

use smol_str::SmolStr;

use super::{lookup, tag};

/// A text read from a frame. Compares with and derefs to `str`.
#[derive(Clone)]
pub enum Text<'a> {
    /// Stands in the frame as it is.
    Borrowed(&'a str),
    /// A token of the protocol's lists.
    Token(&'static str),
    /// Unpacked digits, or a JID where text was asked for. Up to 23 bytes live inside, without allocation.
    Unpacked(SmolStr),
}

impl Text<'_> {
    /// As `str`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) | Self::Token(text) => text,
            Self::Unpacked(text) => text,
        }
    }

    /// As an owned string; a copy only where the frame would be borrowed.
    pub fn into_smol(self) -> SmolStr {
        match self {
            Self::Borrowed(text) => SmolStr::new(text),
            Self::Token(text) => SmolStr::new_static(text),
            Self::Unpacked(text) => text,
        }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text<'_> {}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text<'_> {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The text at `at` and the position behind it. `None` for what is no text; a checked frame has text wherever the tape
/// says so.
#[inline]
pub(super) fn read(bytes: &[u8], at: usize) -> Option<(Text<'_>, usize)> {
    let form = *bytes.get(at)?;
    match form {
        1..=tag::LAST_SINGLE => Some((Text::Token(lookup::single(form)?), at + 1)),
        lookup::DICTIONARY..=tag::LAST_DICTIONARY => Some((
            Text::Token(lookup::double(form, *bytes.get(at + 1)?)?),
            at + 2,
        )),
        tag::NIBBLE_8 => unpack(bytes, at, &NIBBLES),
        tag::HEX_8 => unpack(bytes, at, &HEXES),
        _ => {
            let (start, end) = raw_range(bytes, at)?;
            Some((
                Text::Borrowed(std::str::from_utf8(bytes.get(start..end)?).ok()?),
                end,
            ))
        }
    }
}

/// Where the bytes of a BINARY_x at `at` begin and end. Whether they are all there is not checked.
#[inline]
pub(super) fn raw_range(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let (length, start) = match bytes.get(at..)? {
        [tag::BINARY_8, a, ..] => (u32::from(*a), at + 2),
        // 20 bits: the upper half of the first byte means nothing (VERIFIED, ch. 02.2).
        [tag::BINARY_20, a, b, c, ..] => (u32::from_be_bytes([0, a & 0x0F, *b, *c]), at + 4),
        [tag::BINARY_32, a, b, c, d, ..] => (u32::from_be_bytes([*a, *b, *c, *d]), at + 5),
        _ => return None,
    };
    Some((start, start.checked_add(usize::try_from(length).ok()?)?))
}

/// Two characters per byte, the first in the high half.
type Pairs = [[u8; 2]; 256];

static NIBBLES: Pairs = pairs(b"0123456789-.\0\0\0\0");
static HEXES: Pairs = pairs(b"0123456789ABCDEF");

const fn pairs(alphabet: &[u8; 16]) -> Pairs {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [alphabet[byte >> 4], alphabet[byte & 0xF]];
        byte += 1;
    }
    pairs
}

fn unpack<'a>(bytes: &'a [u8], at: usize, pairs: &Pairs) -> Option<(Text<'a>, usize)> {
    let length = *bytes.get(at + 1)?;
    let start = at + 2;
    let end = start + usize::from(length & 0x7F);
    let packed = bytes.get(start..end)?;
    // An odd number of characters: the last half byte is padding. No bytes at all stay the empty text.
    let characters = (packed.len() * 2).saturating_sub(usize::from(length >> 7));
    let text = if packed.len() <= 16 {
        unpack_into(&mut [0; 32], packed, characters, pairs)
    } else {
        unpack_into(&mut [0; 254], packed, characters, pairs)
    };
    Some((Text::Unpacked(text?), end))
}

#[inline]
fn unpack_into<const N: usize>(
    buffer: &mut [u8; N],
    packed: &[u8],
    characters: usize,
    pairs: &Pairs,
) -> Option<SmolStr> {
    for (to, byte) in buffer.chunks_exact_mut(2).zip(packed) {
        to.copy_from_slice(pairs.get(usize::from(*byte))?);
    }
    Some(SmolStr::new(
        std::str::from_utf8(buffer.get(..characters)?).ok()?,
    ))
}
