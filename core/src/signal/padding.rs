//! The padding of plaintexts (chapter 05.14), over and above the cipher's own.

use crate::crypto::Rng;

/// The padding is not what any client appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the padding of the plaintext is wrong")]
pub struct PaddingError;

/// Appends 1 to 16 bytes, each saying how many, all sixteen equally likely: what the official client does.
pub fn pad(plaintext: &[u8], rng: &mut Rng) -> Vec<u8> {
    let count = rng.below(16) as u8 + 1;
    let mut out = Vec::with_capacity(plaintext.len() + usize::from(count));
    out.extend_from_slice(plaintext);
    out.resize(plaintext.len() + usize::from(count), count);
    out
}

/// The plaintext without its padding. More than 16 bytes are accepted if they all agree; none are not.
pub fn unpad(padded: &[u8]) -> Result<&[u8], PaddingError> {
    let &count = padded.last().ok_or(PaddingError)?;
    let end = padded
        .len()
        .checked_sub(usize::from(count))
        .ok_or(PaddingError)?;
    let (plaintext, padding) = padded.split_at_checked(end).ok_or(PaddingError)?;
    if count == 0 || padding.iter().any(|&byte| byte != count) {
        return Err(PaddingError);
    }
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Rng;
    use crate::crypto::testing::bytes;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn the_vectors_unpad() {
        let misc: Value =
            serde_json::from_str(include_str!("../../tests/vectors/misc.json")).unwrap();
        for case in misc["padding"].as_array().unwrap() {
            assert_eq!(
                unpad(&bytes(&case["padded"])).unwrap(),
                bytes(&case["plaintext"])
            );
        }
    }

    #[test]
    fn every_length_occurs_and_comes_off() {
        let mut rng = Rng::from_seed([1; 32]);
        let mut seen = [false; 16];
        for _ in 0..500 {
            let padded = pad(b"text", &mut rng);
            seen[padded.len() - 5] = true;
            assert_eq!(unpad(&padded), Ok(b"text".as_slice()));
        }
        assert_eq!(seen, [true; 16]);
    }

    #[test]
    fn wrong_padding_is_refused() {
        let cases: [&[u8]; 4] = [b"", b"abc\0", b"\x02", b"abc\x01\x02"];
        for case in cases {
            assert_eq!(unpad(case), Err(PaddingError), "{case:?}");
        }
        assert_eq!(unpad(&[255; 255]), Ok(&[][..]));
    }

    proptest! {
        #[test]
        fn survives_anything(padded: Vec<u8>) {
            let _ = unpad(&padded);
        }
    }
}
