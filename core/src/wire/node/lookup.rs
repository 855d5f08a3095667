//! From a string to its token: a hash table built by the compiler.
//!
//! Most strings of a stanza are tokens or packed digits, so this is asked for every tag, key and value that is
//! written. The table is open-addressed with 4,096 slots for 1,259 tokens; a slot holds 16 bits of the hash beside
//! the code, so a string that is no token is turned away without looking at any token. It is a constant: no lock,
//! no start-up, the same on every machine.

use super::tokens::{DOUBLE, SINGLE};

/// Tag byte of the first dictionary; dictionary `d` is `DICTIONARY + d`.
pub(super) const DICTIONARY: u8 = 0xEC;

/// The longest token.
pub(super) const LONGEST: usize = 48;

/// The longest token of digits, hyphens and dots. Longer strings of those characters need no look-up, and no token
/// has only the characters `0-9 A-F` without being all digits; the tests hold both against the lists.
pub(super) const LONGEST_DIGITS: usize = 4;

/// How a token is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// One byte.
    Single(u8),
    /// A dictionary's tag byte and the index in it.
    Double(u8, u8),
}

/// The token of a string, if it has one. The empty string has none.
pub(super) fn find(text: &str) -> Option<Token> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes.len() > LONGEST {
        return None;
    }
    let hash = hash(bytes);
    let mut slot = first_slot(hash);
    loop {
        let entry = *SLOTS.get(slot)?;
        if entry == 0 {
            return None;
        }
        if entry >> 16 == fingerprint(hash) {
            let [index, dictionary, ..] = entry.to_le_bytes();
            let (token, word) = match dictionary {
                0 => (Token::Single(index), single(index)),
                tag => (Token::Double(tag, index), double(tag, index)),
            };
            if word == Some(text) {
                return Some(token);
            }
        }
        slot = (slot + 1) % SLOTS.len();
    }
}

/// The string of a one-byte token.
pub(super) fn single(index: u8) -> Option<&'static str> {
    SINGLE
        .get(usize::from(index))
        .copied()
        .filter(|word| !word.is_empty())
}

/// The string of a two-byte token, by the dictionary's tag byte.
pub(super) fn double(tag: u8, index: u8) -> Option<&'static str> {
    DOUBLE
        .get(usize::from(tag.checked_sub(DICTIONARY)?))?
        .get(usize::from(index))
        .copied()
}

/// High half: fingerprint. Low half: dictionary tag (0 for a one-byte token) and index. 0: free.
static SLOTS: [u32; 4096] = build();

const fn build() -> [u32; 4096] {
    let mut slots = [0; 4096];
    let mut index = 1;
    while index < SINGLE.len() {
        insert(&mut slots, SINGLE[index], index as u32);
        index += 1;
    }
    let mut dictionary = 0;
    while dictionary < DOUBLE.len() {
        let mut index = 0;
        while index < DOUBLE[dictionary].len() {
            let tag = DICTIONARY as u32 + dictionary as u32;
            insert(
                &mut slots,
                DOUBLE[dictionary][index],
                tag << 8 | index as u32,
            );
            index += 1;
        }
        dictionary += 1;
    }
    slots
}

const fn insert(slots: &mut [u32; 4096], word: &str, code: u32) {
    assert!(!word.is_empty() && word.len() <= LONGEST);
    let hash = hash(word.as_bytes());
    let mut slot = first_slot(hash);
    while slots[slot] != 0 {
        slot = (slot + 1) % slots.len();
    }
    slots[slot] = fingerprint(hash) << 16 | code;
}

/// Length, first eight and last eight bytes, multiplied. What lies between does not matter for so few words.
const fn hash(bytes: &[u8]) -> u64 {
    let (head, tail) = match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
        _ => match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
            (Some(head), Some(tail)) => (
                u32::from_le_bytes(*head) as u64,
                u32::from_le_bytes(*tail) as u64,
            ),
            _ => match bytes {
                [a] => (*a as u64, 0),
                [a, b] => (*a as u64, *b as u64),
                [a, b, c] => (*a as u64 | (*b as u64) << 8, *c as u64),
                _ => (0, 0),
            },
        },
    };
    let mixed = (head ^ tail.rotate_left(29))
        .wrapping_add(bytes.len() as u64)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

const fn first_slot(hash: u64) -> usize {
    (hash >> 52) as usize
}

const fn fingerprint(hash: u64) -> u32 {
    (hash >> 36) as u32 & 0xFFFF
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_lists_are_the_protocols() {
        let lists: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/tokens.json")).unwrap();
        assert_eq!(lists["dict_version"], 3);
        assert_eq!(lists["single"], serde_json::json!(SINGLE.as_slice()));
        let double: Vec<&[&str]> = DOUBLE.iter().map(<[_; 256]>::as_slice).collect();
        assert_eq!(lists["double"], serde_json::json!(double));
    }

    #[test]
    fn every_token_is_found_and_nothing_else() {
        let mut words = Vec::new();
        for (index, word) in (0u8..).zip(SINGLE).skip(1) {
            assert_eq!(find(word), Some(Token::Single(index)));
            assert_eq!(single(index), Some(word));
            words.push(word);
        }
        for (tag, dictionary) in (DICTIONARY..).zip(&DOUBLE) {
            for (index, word) in (0u8..=255).zip(dictionary) {
                assert_eq!(find(word), Some(Token::Double(tag, index)));
                assert_eq!(double(tag, index), Some(*word));
                words.push(word);
            }
        }
        assert_eq!(words.len(), 1259);
        words.sort_unstable();
        for word in &words {
            for stranger in [
                format!("{word}x"),
                format!(" {word}"),
                word.to_uppercase(),
                word[1..].to_owned(),
            ] {
                assert_eq!(
                    find(&stranger).is_some(),
                    words.binary_search(&stranger.as_str()).is_ok(),
                    "{stranger}"
                );
            }
        }
        assert_eq!(
            (find(""), single(0), single(236), double(DICTIONARY + 4, 0)),
            (None, None, None, None)
        );
    }

    #[test]
    fn packed_strings_need_few_look_ups() {
        let all = || SINGLE.iter().skip(1).chain(DOUBLE.iter().flatten());
        assert_eq!(all().map(|word| word.len()).max(), Some(LONGEST));
        let digits = |word: &str| word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'-' | b'.'));
        let hex = |word: &str| word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        assert_eq!(
            all()
                .filter(|word| digits(word))
                .map(|word| word.len())
                .max(),
            Some(LONGEST_DIGITS)
        );
        assert!(!all().any(|word| hex(word) && !digits(word)));
    }

    /// What is no token is turned away by its fingerprint, without a look at any token.
    #[test]
    fn fingerprints_tell_tokens_apart() {
        let words = SINGLE.iter().skip(1).chain(DOUBLE.iter().flatten());
        let different: BTreeSet<u32> = words
            .map(|word| fingerprint(hash(word.as_bytes())))
            .collect();
        assert!(different.len() > 1_200, "{}", different.len());
    }

    #[test]
    fn chains_are_short() {
        // Occupied slots in a row bound the work of any look-up, whoever chose the string.
        let mut longest = 0;
        let mut run = 0;
        for entry in SLOTS.iter().chain(&SLOTS) {
            run = if *entry == 0 { 0 } else { run + 1 };
            longest = longest.max(run);
        }
        assert!(longest <= 16, "{longest}");
    }
}
