//! A chunk of history, field by field (fact sheet 07.17).
//!
//! A chunk is one protobuf message of any size. It is taken apart as it comes: nothing is held but the field that is not
//! complete yet, and a field that is longer than anybody needs is passed over without being held at all.

use crate::proto::history::{Conversation, PhoneNumberToLidMapping, Pushname};
use bytes::Bytes;
use prost::Message as _;

/// Longest message that is taken in.
pub const MESSAGE_BYTES: usize = crate::limits::HISTORY_MESSAGE;

/// Longest field of a chat apart from its messages.
const FIELD_BYTES: usize = crate::limits::HISTORY_FIELD;

/// All of them together.
const HEAD_BYTES: usize = crate::limits::HISTORY_HEAD;

/// What a chunk consists of.
#[derive(Debug)]
pub enum Piece {
    /// A serialized `WebMessageInfo` in the chat of this name.
    Message(String, Bytes),
    /// A chat, behind its messages and without them.
    Chat(Box<Conversation>),
    /// What somebody calls themselves.
    Name(Pushname),
    /// Which phone number is which LID.
    Lid(PhoneNumberToLidMapping),
}

impl Piece {
    /// What it holds in memory, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        100 + match self {
            Self::Message(chat, info) => chat.len() + info.len(),
            Self::Chat(chat) => chat.encoded_len(),
            Self::Name(name) => name.encoded_len(),
            Self::Lid(pair) => pair.encoded_len(),
        }
    }
}

/// It is no such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A chat that is being read.
#[derive(Debug)]
struct Chat {
    left: u64,
    id: String,
    head: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Parser {
    buffer: Vec<u8>,
    at: usize,
    /// Bytes to pass over.
    skip: u64,
    chat: Option<Chat>,
    /// Things that were passed over because they are too long or make no sense.
    pub(super) skipped: u64,
}

/// A field whose head is known.
struct Field {
    number: u32,
    wire: u32,
    head: usize,
    /// Bytes behind the head.
    length: u64,
}

impl Parser {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the message may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.at == self.buffer.len() && self.skip == 0 && self.chat.is_none()
    }

    /// The next piece. `None` if more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, Malformed> {
        loop {
            let here = (self.buffer.len() - self.at) as u64;
            let now = self.skip.min(here);
            self.at += now as usize;
            self.skip -= now;
            if self.skip > 0 {
                return Ok(None);
            }
            if self.chat.as_ref().is_some_and(|chat| chat.left == 0)
                && let Some(chat) = self.chat.take()
            {
                match Conversation::decode(chat.head.as_slice()) {
                    Ok(mut conversation) if !chat.id.is_empty() => {
                        conversation.id = Some(chat.id);
                        return Ok(Some(Piece::Chat(Box::new(conversation))));
                    }
                    _ => self.skipped += 1,
                }
                continue;
            }
            let Some(field) = self.field()? else {
                return Ok(None);
            };
            let whole = (field.head as u64).saturating_add(field.length);
            let most = match (&self.chat, field.number, field.wire) {
                (None, 2, 2) => {
                    self.at += field.head;
                    self.chat = Some(Chat {
                        left: field.length,
                        id: String::new(),
                        head: Vec::new(),
                    });
                    continue;
                }
                (None, 3, 2) | (Some(_), 2, 2) => MESSAGE_BYTES,
                (None, 7 | 15, 2) => FIELD_BYTES,
                (None, ..) => 0,
                (Some(_), ..) => FIELD_BYTES,
            };
            if let Some(chat) = &mut self.chat {
                // A field that reaches beyond its chat.
                chat.left = chat.left.checked_sub(whole).ok_or(Malformed)?;
            }
            if field.length > most as u64 {
                self.at += field.head;
                self.skip = field.length;
                self.skipped += u64::from(most > 0);
                continue;
            }
            let end = self.at + whole as usize;
            let Some(bytes) = self.buffer.get(self.at..end) else {
                // Not all of it is here: the same field is looked at again.
                if let Some(chat) = &mut self.chat {
                    chat.left += whole;
                }
                return Ok(None);
            };
            let value = bytes.get(field.head..).unwrap_or_default();
            let piece = match (&mut self.chat, field.number, field.wire) {
                (None, 3, 2) => Some(Piece::Message(
                    "status@broadcast".into(),
                    Bytes::copy_from_slice(value),
                )),
                (None, 7, 2) => Pushname::decode(value).ok().map(Piece::Name),
                (None, 15, 2) => PhoneNumberToLidMapping::decode(value).ok().map(Piece::Lid),
                (Some(chat), 2, 2) => match first_of(value) {
                    Some(info) if !chat.id.is_empty() => Some(Piece::Message(
                        chat.id.clone(),
                        Bytes::copy_from_slice(info),
                    )),
                    _ => None,
                },
                (Some(chat), number, wire) => {
                    // Whose chat it is, is known however much else there is.
                    if (number, wire) == (1, 2) {
                        chat.id = String::from_utf8(value.to_vec()).unwrap_or_default();
                    } else if chat.head.len() + bytes.len() <= HEAD_BYTES {
                        chat.head.extend_from_slice(bytes);
                    } else {
                        self.skipped += 1;
                    }
                    self.at = end;
                    continue;
                }
                (None, ..) => {
                    self.at = end;
                    continue;
                }
            };
            self.at = end;
            match piece {
                Some(piece) => return Ok(Some(piece)),
                None => self.skipped += 1,
            }
        }
    }

    /// The head of the next field, if all of it is here.
    fn field(&self) -> Result<Option<Field>, Malformed> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let Some((key, one)) = varint(rest)? else {
            return Ok(None);
        };
        let number = u32::try_from(key >> 3)
            .ok()
            .filter(|n| *n > 0)
            .ok_or(Malformed)?;
        let wire = (key & 7) as u32;
        let behind = rest.get(one..).unwrap_or_default();
        let (head, length) = match wire {
            0 => match varint(behind)? {
                Some((_, two)) => (one, two as u64),
                None => return Ok(None),
            },
            1 => (one, 8),
            5 => (one, 4),
            2 => match varint(behind)? {
                Some((length, two)) => (one + two, length),
                None => return Ok(None),
            },
            _ => return Err(Malformed),
        };
        Ok(Some(Field {
            number,
            wire,
            head,
            length,
        }))
    }
}

/// A number and how many bytes it takes. `None` if it is not complete.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f)
            .checked_shl(7 * n as u32)
            .unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(Some((value, n + 1)));
        }
    }
    if bytes.len() < 10 {
        Ok(None)
    } else {
        Err(Malformed)
    }
}

/// The first field of a message, if it is one of bytes: what a `HistorySyncMsg` carries.
fn first_of(message: &[u8]) -> Option<&[u8]> {
    let (key, one) = varint(message).ok()??;
    let (length, two) = varint(message.get(one..)?).ok()??;
    let start = one + two;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (key == 0x0a).then(|| message.get(start..end))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::history::{HistorySync, HistorySyncMsg, WebMessageInfo};
    use proptest::prelude::*;

    fn info(n: u64) -> WebMessageInfo {
        WebMessageInfo {
            message_timestamp: Some(n),
            message: Some(vec![7; (n % 300) as usize]),
            ..Default::default()
        }
    }

    fn history(chats: &[u64]) -> HistorySync {
        HistorySync {
            sync_type: Some(3),
            conversations: chats
                .iter()
                .enumerate()
                .map(|(n, messages)| Conversation {
                    id: Some(format!("{n}@s.whatsapp.net")),
                    messages: (0..*messages)
                        .map(|n| HistorySyncMsg {
                            message: Some(info(n)),
                            msg_order_id: Some(n),
                        })
                        .collect(),
                    unread_count: Some(3),
                    archived: Some(true),
                    ..Default::default()
                })
                .collect(),
            status_v3_messages: vec![info(5)],
            progress: Some(50),
            pushnames: vec![Pushname {
                id: Some("1@s.whatsapp.net".into()),
                pushname: Some("Zoë".into()),
            }],
            phone_number_to_lid_mappings: vec![PhoneNumberToLidMapping {
                pn_jid: Some("1@s.whatsapp.net".into()),
                lid_jid: Some("2@lid".into()),
            }],
            nct_salt: Some(vec![1; 32]),
            ..Default::default()
        }
    }

    /// The pieces, as text that says everything.
    fn parse(bytes: &[u8], step: usize) -> Result<(Vec<String>, u64, usize), Malformed> {
        let (mut parser, mut out, mut most) = (Parser::default(), Vec::new(), 0);
        for bytes in bytes.chunks(step) {
            parser.push(bytes);
            most = most.max(parser.buffer.len());
            while let Some(piece) = parser.next()? {
                out.push(format!("{piece:?}"));
                if let Piece::Message(chat, info) = &piece {
                    let info = WebMessageInfo::decode(info.clone()).unwrap();
                    out.push(format!("{chat} {:?}", info.message_timestamp));
                }
            }
        }
        if parser.is_complete() {
            Ok((out, parser.skipped, most))
        } else {
            Err(Malformed)
        }
    }

    #[test]
    fn a_chunk_falls_into_its_pieces() {
        let (pieces, skipped, _) = parse(&history(&[2, 0]).encode_to_vec(), 1 << 20).unwrap();
        // Two messages (and what they are), two chats, a status, a name, a mapping.
        assert_eq!((pieces.len(), skipped), (2 * 2 + 2 + 2 + 1 + 1, 0));
        assert_eq!(pieces[1], "0@s.whatsapp.net Some(0)");
        assert_eq!(pieces[3], "0@s.whatsapp.net Some(1)");
        assert!(pieces[4].contains("archived: Some(true)"), "{}", pieces[4]);
        assert_eq!(pieces[7], "status@broadcast Some(5)");
    }

    #[test]
    fn long_fields_cost_nothing() {
        let mut long = history(&[1]);
        long.conversations[0].messages[0]
            .message
            .as_mut()
            .unwrap()
            .message = Some(vec![0; 4 * MESSAGE_BYTES]);
        long.conversations[0].name = Some("x".repeat(FIELD_BYTES + 1));
        let (pieces, skipped, most) = parse(&long.encode_to_vec(), 1000).unwrap();
        assert_eq!(skipped, 2);
        assert!(most < 10_000, "{most} bytes were held");
        // The chat is there, without them.
        assert!(pieces[0].starts_with("Chat("), "{}", pieces[0]);
    }

    fn field(tag: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        prost::encoding::encode_varint(value.len() as u64, &mut out);
        [&out, value].concat()
    }

    /// What comes out of a chunk, and how much was passed over.
    fn count(bytes: &[u8]) -> (usize, u64) {
        let mut parser = Parser::default();
        parser.push(bytes);
        let mut pieces = 0;
        while parser.next().unwrap().is_some() {
            pieces += 1;
        }
        assert!(parser.is_complete());
        (pieces, parser.skipped)
    }

    #[test]
    fn a_message_and_a_field_end_at_their_limits() {
        use crate::limits::{HISTORY_FIELD, HISTORY_MESSAGE};
        let beside = |limit: usize| [(limit - 1, true), (limit, true), (limit + 1, false)];
        for (length, taken) in beside(HISTORY_MESSAGE) {
            let expected = (usize::from(taken), u64::from(!taken));
            // A status; and a message in a chat, which is a piece of its own behind it.
            assert_eq!(count(&field(0x1a, &vec![0; length])), expected, "{length}");
            let inside = length - 4;
            let message = field(0x0a, &vec![0; inside]);
            assert_eq!(message.len(), length);
            let chat = [field(0x0a, b"1@s.whatsapp.net"), field(0x12, &message)].concat();
            let expected = (expected.0 + 1, expected.1);
            assert_eq!(count(&field(0x12, &chat)), expected, "{length}");
        }
        for (length, taken) in beside(HISTORY_FIELD) {
            let expected = (usize::from(taken), u64::from(!taken));
            let name = field(0x12, &vec![b'x'; length - 3]);
            assert_eq!(name.len(), length);
            // A name; a LID; and the name of a chat.
            assert_eq!(count(&field(0x3a, &name)), expected, "{length}");
            assert_eq!(count(&field(0x7a, &name)), expected, "{length}");
            let name = field(0x6a, &vec![b'x'; length]);
            let chat = [field(0x0a, b"1@s.whatsapp.net"), name].concat();
            assert_eq!(count(&field(0x12, &chat)), (1, expected.1), "{length}");
        }
    }

    /// All fields of a chat but its messages, up to the limit together: what is beyond it is counted, and the chat is
    /// there without it.
    #[test]
    fn the_fields_of_a_chat_end_at_their_limit() {
        use crate::limits::HISTORY_HEAD;
        let id = field(0x0a, b"1@s.whatsapp.net");
        for (length, skipped) in [
            (HISTORY_HEAD - 1, 0),
            (HISTORY_HEAD, 0),
            (HISTORY_HEAD + 1, 1),
        ] {
            let mut chat = Vec::new();
            while chat.len() + 2000 < length {
                chat.extend(field(0x6a, &[b'x'; 1000]));
            }
            let rest = length - chat.len() - 3;
            chat.extend(field(0x6a, &vec![b'y'; rest]));
            assert_eq!(chat.len(), length);
            let mut parser = Parser::default();
            parser.push(&field(0x12, &[&chat[..], &id].concat()));
            let Ok(Some(Piece::Chat(read))) = parser.next() else {
                panic!("no chat");
            };
            assert_eq!(read.id.as_deref(), Some("1@s.whatsapp.net"));
            let last = read.name.as_deref().and_then(|name| name.chars().next());
            assert_eq!(last, Some(if skipped == 0 { 'y' } else { 'x' }));
            assert_eq!(parser.skipped, skipped, "{length}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for bad in [
            &[0x00][..],               // field 0
            &[0x0b],                   // a group
            &[0x12, 0x02, 0x08],       // a chat that is cut
            &[0x12, 0x01, 0x0a, 0x05], // a field that reaches beyond its chat
            &[0xff; 11],               // a number without end
        ] {
            assert!(parse(bad, 64).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// However it is cut, the same pieces come out.
        #[test]
        fn cuts_do_not_matter(chats in proptest::collection::vec(0..6u64, 0..5), step in 1..200usize) {
            let bytes = history(&chats).encode_to_vec();
            let whole = parse(&bytes, usize::MAX).unwrap();
            let cut = parse(&bytes, step).unwrap();
            prop_assert_eq!((whole.0, whole.1), (cut.0, cut.1));
        }

        #[test]
        fn anything_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1..50usize) {
            let whole = std::panic::catch_unwind(|| {
                let mut parser = Parser::default();
                for bytes in bytes.chunks(step) {
                    parser.push(bytes);
                    while let Ok(Some(_)) = parser.next() {}
                }
            });
            prop_assert!(whole.is_ok());
        }
    }
}
