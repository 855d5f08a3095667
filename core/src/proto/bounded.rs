//! Protobuf from outside, counted before it is decoded.
//!
//! A decoder makes a struct of a hundred bytes and more out of each element of a repeated message, and an empty element
//! takes two bytes. So a message of 8 MiB, which anybody can send, would cost half a gigabyte, and a file of settings of
//! 64 MiB more than three. What is counted here is what can be repeated, without decoding anything: one pass over the
//! bytes, nothing allocated.

use prost::{Message, bytes::Buf};

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no such message.
    #[error("the message does not decode")]
    Malformed,
    /// It consists of more parts than are allowed.
    #[error("the message has too many parts")]
    TooMany,
}

/// Decodes a message whose field `list` may be repeated `most` times.
pub fn decode_list<M: Message + Default>(
    bytes: impl Buf + AsRef<[u8]>,
    list: u32,
    most: usize,
) -> Result<M, Refused> {
    if count(bytes.as_ref(), Some(list), 0, most) > most {
        return Err(Refused::TooMany);
    }
    M::decode(bytes).map_err(|_| Refused::Malformed)
}

/// Decodes a message that may have `most` parts in all, whatever they are parts of.
///
/// Which bytes are messages in their turn, only a decoder knows; here all are taken for messages that could be. That
/// counts too much rather than too little, so `most` has to leave room; messages that are too short to have so many
/// parts are not looked at.
pub fn decode_within<M: Message + Default>(
    bytes: impl Buf + AsRef<[u8]>,
    most: usize,
) -> Result<M, Refused> {
    let long = bytes.as_ref().len() / 2 > most;
    if long && count(bytes.as_ref(), None, DEPTH, most) > most {
        return Err(Refused::TooMany);
    }
    M::decode(bytes).map_err(|_| Refused::Malformed)
}

/// Levels that are looked into. Real messages have fewer than ten; one that has more counts as too many.
const DEPTH: u32 = 24;

/// Fields with bytes in them, of this number or of any; those inside them too, so many levels deep. Stops when they are
/// too many, and at the first that makes no sense, which is where a decoder stops.
fn count(mut bytes: &[u8], list: Option<u32>, depth: u32, most: usize) -> usize {
    let mut found = 0;
    while let Some((number, value)) = field(&mut bytes) {
        let Some(value) = value else { continue };
        if list.is_some_and(|list| list != number) {
            continue;
        }
        found += 1;
        if list.is_none() && value.len() > 1 {
            found += match depth {
                0 => most,
                _ => count(value, None, depth - 1, most),
            };
        }
        if found > most {
            break;
        }
    }
    found
}

/// The next field: its number, and its bytes if it has any.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let key = varint(bytes)?;
    let number = u32::try_from(key >> 3).ok()?;
    match key & 7 {
        0 => varint(bytes).map(|_| (number, None)),
        1 => take(bytes, 8).map(|_| (number, None)),
        2 => {
            let length = varint(bytes)?;
            take(bytes, length).map(|taken| (number, Some(taken)))
        }
        5 => take(bytes, 4).map(|_| (number, None)),
        // Groups: marks without a value. A decoder passes over what is between them, so nothing is made of it.
        3 | 4 => Some((number, None)),
        _ => None,
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if *first < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits,
        proto::{e2e, sync},
    };
    use proptest::prelude::*;

    fn snapshot(records: usize) -> Vec<u8> {
        [0x12, 0].repeat(records)
    }

    #[test]
    fn a_list_ends_at_its_limit() {
        let decode = |records| decode_list::<sync::SyncdSnapshot>(&snapshot(records)[..], 2, 3);
        for records in 0..=3 {
            assert_eq!(decode(records).map(|s| s.records.len()), Ok(records));
        }
        assert_eq!(decode(4), Err(Refused::TooMany));
        // Fields of another number do not count.
        let keyed = [&snapshot(3)[..], &[0x22, 0, 0x22, 0]].concat();
        assert!(decode_list::<sync::SyncdSnapshot>(&keyed[..], 2, 3).is_ok());
        assert_eq!(
            decode_list::<sync::SyncdSnapshot>(&[0xff][..], 2, 3),
            Err(Refused::Malformed)
        );
    }

    /// `protocolMessage.appStateSyncKeyShare.keys`, each empty; then broken at its end, when a decoder would have made
    /// everything already.
    #[test]
    fn a_message_of_empty_keys_is_refused() {
        let keys = [0x0a, 0].repeat(limits::MESSAGE_PARTS + 1);
        let nest = |tag: &[u8], inside: &[u8]| {
            let mut out = tag.to_vec();
            prost::encoding::encode_varint(inside.len() as u64, &mut out);
            [out, inside.to_vec()].concat()
        };
        for end in [&b""[..], &[0xff]] {
            let share = nest(&[0x3a], &[&keys, end].concat());
            let message = nest(&[0x62], &share);
            assert_eq!(
                decode_within::<e2e::Message>(&message[..], limits::MESSAGE_PARTS).map(|_| ()),
                Err(Refused::TooMany)
            );
        }
        // Deeper than anybody looks: not decoded either.
        let mut deep = keys;
        for _ in 0..30 {
            deep = nest(&[0x0a], &deep);
        }
        assert_eq!(
            decode_within::<e2e::Message>(&deep[..], limits::MESSAGE_PARTS).map(|_| ()),
            Err(Refused::TooMany)
        );
    }

    #[test]
    fn parts_end_at_their_limit() {
        let message = |parts: usize| [0x0a, 0].repeat(parts);
        let decode = |parts| decode_within::<e2e::Message>(&message(parts)[..], 5).map(|_| ());
        assert_eq!(decode(4), Ok(()));
        assert_eq!(decode(5), Ok(()));
        assert_eq!(decode(6), Err(Refused::TooMany));
    }

    #[test]
    fn a_long_text_is_one_part() {
        let text = e2e::Message {
            conversation: Some("a text of 250,000 letters ".repeat(10_000)),
            ..Default::default()
        };
        let bytes = text.encode_to_vec();
        let back = decode_within::<e2e::Message>(&bytes[..], limits::MESSAGE_PARTS);
        assert!(back == Ok(text));
    }

    proptest! {
        /// Nothing that decodes is called malformed, and nothing is made of what does not.
        #[test]
        fn the_same_as_the_decoder(bytes: Vec<u8>) {
            let plain = sync::SyncdPatch::decode(&bytes[..]).map_err(|_| Refused::Malformed);
            prop_assert_eq!(&decode_list::<sync::SyncdPatch>(&bytes[..], 2, usize::MAX), &plain);
            prop_assert_eq!(&decode_within::<sync::SyncdPatch>(&bytes[..], usize::MAX), &plain);
        }

        /// A list is never counted short.
        #[test]
        fn what_is_decoded_was_counted(bytes: Vec<u8>, most in 0..4usize) {
            if let Ok(patch) = decode_list::<sync::SyncdMutations>(&bytes[..], 1, most) {
                prop_assert!(patch.mutations.len() <= most);
            }
        }
    }
}
