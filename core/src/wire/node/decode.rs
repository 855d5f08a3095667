//! From a frame's plaintext to a node.
//!
//! One pass checks every byte and writes the tape; what it lets through, the readers of [`NodeRef`] can rely on. What
//! is refused and what is tolerated follows the column "recommended" of ch. 02.8: refuse whatever makes one of the
//! known clients crash or read something else than the others.

use flate2::{Decompress, FlushDecompress, Status};

use super::error::{Malformed, NodeError};
use super::value::Node;
use super::view::{NodeRef, tape};
use super::{FLAG_COMPRESSED, limits, lookup, tag, text};
use crate::jid::{Server, is_user_text};

/// Memory of one decoded frame, to be used again for the next: the tape, and the node bytes of a compressed frame.
///
/// It keeps the size of the largest frame it has seen. A tape is at most 32 bytes per 3 bytes of frame and never more
/// than 8 MiB; inflated bytes are at most [`limits::INFLATED`]. To give the memory back, drop it: a new one costs one
/// allocation at its first frame.
#[derive(Default)]
pub struct Scratch {
    tape: Vec<u32>,
    inflated: Vec<u8>,
}

impl Scratch {
    /// An empty one; nothing is allocated yet.
    pub const fn new() -> Self {
        Self {
            tape: Vec::new(),
            inflated: Vec::new(),
        }
    }

    /// Bytes of memory held.
    pub const fn allocated(&self) -> usize {
        self.tape.capacity() * size_of::<u32>() + self.inflated.capacity()
    }
}

/// Reads a frame's plaintext, flag byte and body. The node borrows from both arguments.
///
/// # Errors
///
/// [`NodeError::Malformed`] with the position, for anything that is not exactly one well-formed node within the
/// [`limits`]. Drop the frame; the connection is still good.
pub fn decode<'a>(payload: &'a [u8], scratch: &'a mut Scratch) -> Result<NodeRef<'a>, NodeError> {
    // Position 0, where the flag byte should be.
    let Some((flags, body)) = payload.split_first() else {
        return Err(NodeError::Malformed {
            position: 0,
            what: Malformed::Empty,
        });
    };
    let Scratch { tape, inflated } = scratch;
    let bytes: &'a [u8] = if flags & FLAG_COMPRESSED == 0 {
        body
    } else {
        inflate(body, inflated)?;
        inflated
    };
    // Positions on the tape have 32 bits; no frame is this long anyway.
    if bytes.len() > limits::INFLATED {
        return Err(Malformed::TooLarge.at(limits::INFLATED));
    }
    tape.clear();
    // A guess that fits nearly every stanza, bounded for those that are one large blob.
    tape.reserve(tape::NODE + (bytes.len() / 4).min(16 << 10));
    let mut scan = Scan { bytes, at: 0, tape };
    scan.node(0)?;
    if scan.at != bytes.len() {
        return Err(Malformed::Trailing.at(scan.at));
    }
    Ok(NodeRef::root(bytes, tape))
}

/// Reads a frame's plaintext into a node of its own.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_owned(payload: &[u8]) -> Result<Node, NodeError> {
    decode(payload, &mut Scratch::new()).map(NodeRef::to_node)
}

/// Inflates step by step, so that a small frame that claims to be large is stopped at the limit. Bytes behind the end
/// of the stream are ignored, as everyone does (VERIFIED, ch. 02.1).
fn inflate(body: &[u8], out: &mut Vec<u8>) -> Result<(), NodeError> {
    out.clear();
    let mut stream = Decompress::new(true);
    let mut rest = body;
    loop {
        if out.len() > limits::INFLATED {
            return Err(Malformed::TooLarge.at(limits::INFLATED));
        }
        if out.len() == out.capacity() {
            // Double what is there, and leave room for the one byte too many that tells "full" from "too large".
            let step = out.len().max(body.len()).max(1 << 10);
            out.reserve_exact(step.min(limits::INFLATED + 1 - out.len()));
        }
        let (taken, written) = (stream.total_in(), out.len());
        let status = stream.decompress_vec(rest, out, FlushDecompress::None);
        let taken = usize::try_from(stream.total_in() - taken).unwrap_or(usize::MAX);
        rest = rest.get(taken..).unwrap_or_default();
        match status {
            // Perhaps one byte too many; that is looked at where all frames are.
            Ok(Status::StreamEnd) => return Ok(()),
            Ok(Status::Ok | Status::BufError) if taken == 0 && out.len() == written => {
                return Err(Malformed::Truncated.at(body.len()));
            }
            Ok(Status::Ok | Status::BufError) => {}
            Err(_) => return Err(Malformed::Zlib.at(body.len() - rest.len())),
        }
    }
}

struct Scan<'a, 't> {
    bytes: &'a [u8],
    at: usize,
    tape: &'t mut Vec<u32>,
}

impl<'a> Scan<'a, '_> {
    fn node(&mut self, depth: usize) -> Result<(), NodeError> {
        let start = self.at;
        if depth >= limits::DEPTH {
            return Err(Malformed::TooDeep.at(start));
        }
        let size = match self.byte()? {
            tag::LIST_8 | tag::LIST_16 => self.list_size(start)?,
            form => return Err(unexpected(form, Malformed::NotANode).at(start)),
        };
        if size == 0 {
            return Err(Malformed::NotANode.at(start));
        }
        let attributes = (size - 1) / 2;
        if attributes > limits::ATTRIBUTES {
            return Err(Malformed::TooManyAttributes.at(start));
        }
        let head = self.tape.len();
        if head + tape::NODE + attributes * tape::ATTRIBUTE > limits::ELEMENTS * tape::ATTRIBUTE {
            return Err(Malformed::TooManyElements.at(start));
        }
        let tag = self.name()?;
        self.tape.extend_from_slice(&[tag, attributes as u32, 0, 0]);
        for _ in 0..attributes {
            let pair = [self.name()?, self.value()?];
            self.tape.extend_from_slice(&pair);
        }
        if size.is_multiple_of(2) {
            let content = self.position();
            self.content(depth)?;
            self.note(head + tape::CONTENT, content);
        }
        let end = self.tape.len() as u32;
        self.note(head + tape::END, end);
        Ok(())
    }

    fn content(&mut self, depth: usize) -> Result<(), NodeError> {
        let start = self.at;
        match self.peek()? {
            tag::EMPTY => self.at += 1,
            tag::LIST_8 | tag::LIST_16 => {
                self.at += 1;
                for _ in 0..self.list_size(start)? {
                    self.node(depth + 1)?;
                }
            }
            tag::BINARY_8 | tag::BINARY_20 | tag::BINARY_32 => {
                self.raw()?;
            }
            _ => self.text_or_jid()?,
        }
        Ok(())
    }

    /// A tag or a key: text that is not empty.
    fn name(&mut self) -> Result<u32, NodeError> {
        let start = self.at;
        if !self.text()? {
            return Err(Malformed::EmptyName.at(start));
        }
        Ok(start as u32)
    }

    /// An attribute's value: text, a JID, or nothing, which reads as empty text.
    fn value(&mut self) -> Result<u32, NodeError> {
        let start = self.at;
        match self.peek()? {
            tag::EMPTY => self.at += 1,
            tag::LIST_8 | tag::LIST_16 => return Err(Malformed::NotAValue.at(start)),
            _ => self.text_or_jid()?,
        }
        Ok(start as u32)
    }

    fn text_or_jid(&mut self) -> Result<(), NodeError> {
        match self.peek()? {
            tag::JID_PAIR => self.jid_pair(),
            tag::AD_JID => self.device_jid(),
            tag::FB_JID => self.messenger_jid(),
            tag::INTEROP_JID => self.interop_jid(),
            _ => self.text().map(|_| ()),
        }
    }

    /// Any text. Says whether there is something in it.
    #[inline]
    fn text(&mut self) -> Result<bool, NodeError> {
        let start = self.at;
        match self.peek()? {
            1..=tag::LAST_SINGLE => {
                self.at += 1;
                Ok(true)
            }
            lookup::DICTIONARY..=tag::LAST_DICTIONARY => {
                self.skip(2)?;
                Ok(true)
            }
            form @ (tag::NIBBLE_8 | tag::HEX_8) => self.packed(form == tag::NIBBLE_8),
            tag::BINARY_8 | tag::BINARY_20 | tag::BINARY_32 => {
                let raw = self.raw()?;
                match std::str::from_utf8(raw) {
                    Ok(text) => Ok(!text.is_empty()),
                    Err(error) => {
                        Err(Malformed::Utf8.at(self.at - raw.len() + error.valid_up_to()))
                    }
                }
            }
            form => Err(unexpected(form, Malformed::NotText).at(start)),
        }
    }

    fn packed(&mut self, nibbles: bool) -> Result<bool, NodeError> {
        self.skip(1)?;
        let length = self.byte()?;
        let start = self.at;
        let packed = self.take(usize::from(length & 0x7F))?;
        let odd = length & 0x80 != 0;
        // The padding half byte may hold anything, as everywhere (VERIFIED, ch. 02.4.1).
        let Some((last, whole)) = packed.split_last() else {
            return Ok(false);
        };
        // The values 12 to 15 have both upper bits of their half set. All 16 digits of HEX_8 are good.
        let bad = |byte: u8| byte & byte << 1 & 0x88;
        let padded = bad(*last) & if odd { 0x80 } else { 0x88 };
        if nibbles && whole.iter().fold(padded, |all, byte| all | bad(*byte)) != 0 {
            let at = whole
                .iter()
                .position(|byte| bad(*byte) != 0)
                .unwrap_or(whole.len());
            return Err(Malformed::PackedDigit.at(start + at));
        }
        Ok(true)
    }

    fn jid_pair(&mut self) -> Result<(), NodeError> {
        self.skip(1)?;
        if self.peek()? == tag::EMPTY {
            self.at += 1;
        } else {
            self.user()?;
        }
        self.server().map(|_| ())
    }

    fn device_jid(&mut self) -> Result<(), NodeError> {
        self.skip(1)?;
        let domain = self.at;
        if Server::from_domain(self.byte()?).is_none() {
            return Err(Malformed::JidDomain.at(domain));
        }
        self.skip(1)?;
        self.required_user()
    }

    fn messenger_jid(&mut self) -> Result<(), NodeError> {
        self.skip(1)?;
        self.required_user()?;
        self.skip(2)?;
        let start = self.at;
        match self.server()? {
            Server::Messenger => Ok(()),
            _ => Err(Malformed::JidServer.at(start)),
        }
    }

    /// The service writes a server behind the integrator; some clients write none (ch. 02.6).
    ///
    /// The two can be told apart by looking for the one server that may stand there: every item of a node is counted
    /// in its header, so a wrong guess (another server there, or an attribute really named "interop" behind the short
    /// form) leaves one item too many or too few and the frame is refused. It is never read as something else.
    /// The price: a frame cut off exactly before that last server is a frame; frames are authenticated, so none is.
    fn interop_jid(&mut self) -> Result<(), NodeError> {
        self.skip(1)?;
        self.required_user()?;
        self.skip(4)?;
        if self
            .bytes
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(INTEROP))
        {
            self.at += INTEROP.len();
        }
        Ok(())
    }

    fn required_user(&mut self) -> Result<(), NodeError> {
        let start = self.at;
        if self.peek()? == tag::EMPTY || !self.user()? {
            return Err(Malformed::JidUser.at(start));
        }
        Ok(())
    }

    fn user(&mut self) -> Result<bool, NodeError> {
        let start = self.at;
        let form = self.peek()?;
        let filled = self.text()?;
        // Packed characters are all good ones.
        if !matches!(form, tag::NIBBLE_8 | tag::HEX_8)
            && !text::read(self.bytes, start).is_some_and(|(user, _)| is_user_text(&user))
        {
            return Err(Malformed::JidUser.at(start));
        }
        Ok(filled)
    }

    fn server(&mut self) -> Result<Server, NodeError> {
        let start = self.at;
        if self.peek()? == tag::EMPTY {
            return Err(Malformed::JidServer.at(start));
        }
        self.text()?;
        text::read(self.bytes, start)
            .and_then(|(server, _)| server.parse().ok())
            .ok_or(Malformed::JidServer.at(start))
    }

    /// The number of items of a list whose tag byte stands at `start` and has been read.
    fn list_size(&mut self, start: usize) -> Result<usize, NodeError> {
        let high = match self.bytes.get(start) {
            Some(&tag::LIST_16) => self.byte()?,
            _ => 0,
        };
        Ok(usize::from(u16::from_be_bytes([high, self.byte()?])))
    }

    /// The bytes of a BINARY_x.
    #[inline]
    fn raw(&mut self) -> Result<&'a [u8], NodeError> {
        let Some((start, end)) = text::raw_range(self.bytes, self.at) else {
            return Err(self.truncated());
        };
        match self.bytes.get(start..end) {
            Some(raw) => {
                self.at = end;
                Ok(raw)
            }
            None => Err(self.truncated()),
        }
    }

    #[inline]
    fn peek(&self) -> Result<u8, NodeError> {
        self.bytes
            .get(self.at)
            .copied()
            .ok_or_else(|| self.truncated())
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, NodeError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], NodeError> {
        match self.bytes.get(self.at..self.at + length) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(self.truncated()),
        }
    }

    #[inline]
    fn skip(&mut self, length: usize) -> Result<(), NodeError> {
        self.take(length).map(|_| ())
    }

    /// The end of the frame came too early: the position is where something is missing.
    #[cold]
    fn truncated(&self) -> NodeError {
        Malformed::Truncated.at(self.bytes.len())
    }

    fn position(&self) -> u32 {
        // `decode` admits no more than 16 MiB.
        self.at as u32
    }

    fn note(&mut self, at: usize, word: u32) {
        if let Some(place) = self.tape.get_mut(at) {
            *place = word;
        }
    }
}

/// The server "interop" as everyone writes it: raw, for it is no token.
const INTEROP: &[u8] = b"\xFC\x07interop";

/// A byte that starts nothing anywhere, or something that does not belong here.
#[cold]
fn unexpected(form: u8, what: Malformed) -> Malformed {
    match form {
        0xF0..=0xF4 => Malformed::UnknownTag,
        _ => what,
    }
}
