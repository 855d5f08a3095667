//! Frames: a stream of bytes cut into payloads, each behind its length as three big-endian bytes (chapter 01.3).
//!
//! WebSocket messages mean nothing here. One of them may hold several frames, and a frame may begin in one and end in
//! another; a [`FrameReader`] takes whatever arrives and gives whole payloads. Only the client's first bytes are
//! special: [`connection_header`] stands once in front of its first frame, and the service takes it off with a
//! [`HeaderReader`].

use bytes::{Bytes, BytesMut};

/// The longest payload that three bytes can announce: 16,777,215.
pub const MAX_FRAME: usize = crate::limits::FRAME;

/// "WA", magic 6, dictionary version 3. It opens every connection and is the prologue of the Noise handshake.
pub const PROLOGUE: [u8; 4] = [b'W', b'A', 6, 3];

/// "ED" 0 1: what follows is routing information for the service's edge. Never part of the Noise prologue.
const ROUTING: [u8; 4] = [b'E', b'D', 0, 1];
const LENGTH: usize = 3;

/// What is wrong with a frame or a header. On the receiving side all of it ends the connection: there is no way to
/// find the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than `limit` bytes, or than what three bytes can say.
    #[error("a frame of {length} bytes where {limit} are allowed")]
    TooLong {
        /// Bytes of the payload.
        length: usize,
        /// The most that would be accepted.
        limit: usize,
    },
    /// The connection does not open with [`PROLOGUE`]. Another dictionary version counts as that, because its tokens
    /// would mean something else.
    #[error("the connection does not open with a header of this protocol version")]
    BadHeader,
}

/// Appends the header that a client puts in front of its first frame, in the same WebSocket message.
///
/// `routing` is what the service once gave as `edge_routing` (opaque, possibly empty). One too long to announce is
/// left out: it only helps the service find a nearer server.
pub fn connection_header(routing: Option<&[u8]>, out: &mut Vec<u8>) {
    if let Some(routing) = routing
        && let Some(length) = length_bytes(routing.len())
    {
        out.extend_from_slice(&ROUTING);
        out.extend_from_slice(&length);
        out.extend_from_slice(routing);
    }
    out.extend_from_slice(&PROLOGUE);
}

/// Appends `payload` as one frame. `out` is unchanged on error.
pub fn write_frame(payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = length_bytes(payload.len()).ok_or(FrameError::TooLong {
        length: payload.len(),
        limit: MAX_FRAME,
    })?;
    out.reserve(LENGTH + payload.len());
    out.extend_from_slice(&length);
    out.extend_from_slice(payload);
    Ok(())
}

/// The three bytes in front of a payload of so many bytes, if it has that few.
pub(super) fn length_bytes(length: usize) -> Option<[u8; LENGTH]> {
    match u32::try_from(length).ok()?.to_be_bytes() {
        [0, a, b, c] => Some([a, b, c]),
        _ => None,
    }
}

/// Puts frames together again from pieces of any size.
///
/// Memory follows the bytes that arrived, never the length that was announced.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    limit: usize,
}

impl FrameReader {
    /// A reader that refuses payloads longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole payload, `None` until more bytes have arrived. An empty payload is given like any other.
    ///
    /// After an error the stream is lost, and every further call gives the same error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some((&[a, b, c], rest)) = self.buffer.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong {
                length,
                limit: self.limit,
            });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(LENGTH + length).freeze();
        Ok(Some(frame.split_off(LENGTH)))
    }

    /// Bytes that arrived and were not yet given out as frames.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

/// The service's side of [`connection_header`]: takes the header off and hands everything behind it on.
#[derive(Debug, Default)]
pub struct HeaderReader {
    buffer: Vec<u8>,
    complete: bool,
    routing: Option<Vec<u8>>,
}

impl HeaderReader {
    /// A reader for one new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what arrived, before, within or after the header; what is behind it goes to `frames`.
    pub fn push(&mut self, bytes: &[u8], frames: &mut FrameReader) -> Result<(), FrameError> {
        if self.complete {
            frames.push(bytes);
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        if let Some((routing, rest)) = split_header(&self.buffer)? {
            self.routing = routing.map(<[u8]>::to_vec);
            frames.push(rest);
            self.complete = true;
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Whether the whole header has arrived.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The routing information that the client sent along, once the header is complete.
    pub fn routing(&self) -> Option<&[u8]> {
        self.routing.as_deref()
    }
}

/// Routing information, if any, and what follows the header.
type Header<'a> = (Option<&'a [u8]>, &'a [u8]);

/// `None` while the header may still become a good one.
fn split_header(bytes: &[u8]) -> Result<Option<Header<'_>>, FrameError> {
    let (routing, rest) = match bytes {
        // The two bytes behind "ED" are 0 1 so far; nothing depends on them.
        [b'E', b'D', _, _, a, b, c, rest @ ..] => {
            match rest.split_at_checked(u32::from_be_bytes([0, *a, *b, *c]) as usize) {
                Some((routing, rest)) => (Some(routing), rest),
                None => return Ok(None),
            }
        }
        [b'E'] | [b'E', b'D', ..] => return Ok(None),
        _ => (None, bytes),
    };
    match rest.strip_prefix(&PROLOGUE) {
        Some(rest) => Ok(Some((routing, rest))),
        None if PROLOGUE.starts_with(rest) => Ok(None),
        None => Err(FrameError::BadHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames_of(stream: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut reader = FrameReader::new(MAX_FRAME);
        let mut frames = Vec::new();
        let mut rest = stream;
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            rest = behind;
            reader.push(piece);
            while let Some(frame) = reader.next().unwrap() {
                frames.push(frame.to_vec());
            }
        }
        assert_eq!(reader.buffered(), 0);
        frames
    }

    /// Chapter 01.2, from another client: the header stands before the first frame only.
    #[test]
    fn header_with_routing() {
        let mut out = Vec::new();
        connection_header(Some(&[8, 2, 8, 5]), &mut out);
        write_frame(&[0xaa], &mut out).unwrap();
        assert_eq!(
            out,
            b"ED\x00\x01\x00\x00\x04\x08\x02\x08\x05WA\x06\x03\x00\x00\x01\xaa"
        );

        out.clear();
        connection_header(Some(&[]), &mut out);
        assert_eq!(out, b"ED\x00\x01\x00\x00\x00WA\x06\x03");
        out.clear();
        connection_header(None, &mut out);
        assert_eq!(out, PROLOGUE);
        out.clear();
        connection_header(Some(&vec![0; MAX_FRAME + 1]), &mut out);
        assert_eq!(out, PROLOGUE);
    }

    #[test]
    fn the_longest_frame_and_one_byte_more() {
        let mut out = Vec::new();
        write_frame(&vec![7; MAX_FRAME], &mut out).unwrap();
        assert_eq!(
            (&out[..3], out.len()),
            ([0xff; 3].as_slice(), 3 + MAX_FRAME)
        );
        let mut reader = FrameReader::new(MAX_FRAME);
        reader.push(&out);
        assert_eq!(reader.next().unwrap().unwrap().len(), MAX_FRAME);

        out.clear();
        let too_long = FrameError::TooLong {
            length: MAX_FRAME + 1,
            limit: MAX_FRAME,
        };
        assert_eq!(
            write_frame(&vec![7; MAX_FRAME + 1], &mut out),
            Err(too_long)
        );
        assert!(out.is_empty());
    }

    #[test]
    fn an_announcement_allocates_nothing() {
        let mut reader = FrameReader::new(MAX_FRAME);
        reader.push(&[0xff, 0xff, 0xff, 1]);
        assert_eq!(reader.next(), Ok(None));
        assert!(
            reader.buffer.capacity() < 1024,
            "{}",
            reader.buffer.capacity()
        );
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_arrives() {
        let mut reader = FrameReader::new(4);
        reader.push(&[0, 0, 4, 1, 2, 3, 4, 0, 0, 5]);
        assert_eq!(reader.next().unwrap().unwrap(), [1, 2, 3, 4].as_slice());
        let refused = Err(FrameError::TooLong {
            length: 5,
            limit: 4,
        });
        assert_eq!(reader.next(), refused);
        reader.push(&[0; 16]);
        assert_eq!(reader.next(), refused);
    }

    #[test]
    fn other_versions_and_other_protocols_are_refused() {
        for stream in [
            "WA\x06\x02",
            "WA\x05",
            "GET / HTTP/1.1",
            "WX",
            "EX",
            "ED\x00\x01\x00\x00\x01xW\x00",
            "\x00",
        ] {
            let mut frames = FrameReader::new(MAX_FRAME);
            let result = HeaderReader::new().push(stream.as_bytes(), &mut frames);
            assert_eq!(result, Err(FrameError::BadHeader), "{stream:?}");
            assert_eq!(frames.buffered(), 0);
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in prop::collection::vec(1usize..400, 1..20),
        ) {
            let mut stream = Vec::new();
            for payload in &payloads {
                write_frame(payload, &mut stream).unwrap();
            }
            prop_assert_eq!(frames_of(&stream, &cuts), payloads);
        }

        #[test]
        fn any_cut_gives_the_same_header(
            routing in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
            payload in prop::collection::vec(any::<u8>(), 0..40),
            cut in 1usize..20,
        ) {
            let mut stream = Vec::new();
            connection_header(routing.as_deref(), &mut stream);
            write_frame(&payload, &mut stream).unwrap();
            let (mut header, mut frames) = (HeaderReader::new(), FrameReader::new(MAX_FRAME));
            for piece in stream.chunks(cut) {
                prop_assert!(!header.is_complete() || header.routing() == routing.as_deref());
                header.push(piece, &mut frames).unwrap();
            }
            prop_assert!(header.is_complete());
            prop_assert_eq!(header.routing(), routing.as_deref());
            prop_assert_eq!(frames.next().unwrap().unwrap(), payload);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, cut in 1usize..9, limit in 0usize..70_000) {
            let (mut header, mut frames) = (HeaderReader::new(), FrameReader::new(limit));
            for piece in bytes.chunks(cut) {
                let _ = header.push(piece, &mut frames);
                while let Ok(Some(frame)) = frames.next() {
                    prop_assert!(frame.len() <= limit);
                }
            }
            prop_assert!(frames.buffered() <= bytes.len());
        }
    }
}
