//! Names of settings: a JSON array of strings, and nothing else that JSON has.

use std::fmt::Write as _;

/// More parts than this no name has.
const PARTS: usize = 16;

/// The compact form that all clients write and that MACs go over: what has to be escaped is, and nothing more.
#[must_use]
pub fn write_index(parts: &[&str]) -> Vec<u8> {
    let mut out = String::from("[");
    for (n, part) in parts.iter().enumerate() {
        out.push_str(if n == 0 { "\"" } else { ",\"" });
        for c in part.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                c if u32::from(c) < 0x20 => {
                    // Cannot fail: a String grows.
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out.push(']');
    out.into_bytes()
}

/// Reads it, with whatever white space and escapes another client may write. `None` if it is anything else.
#[must_use]
pub fn parse_index(bytes: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut rest = text
        .trim_ascii()
        .strip_prefix('[')?
        .strip_suffix(']')?
        .trim_ascii();
    let mut parts = Vec::new();
    while !rest.is_empty() {
        if parts.len() == PARTS {
            return None;
        }
        let (part, behind) = string(rest)?;
        parts.push(part);
        rest = behind.trim_ascii_start();
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix(',')?.trim_ascii_start();
        if rest.is_empty() {
            return None;
        }
    }
    Some(parts)
}

/// A string in quotes, and what is behind it.
fn string(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, inner.get(at + 1..)?)),
            '\\' => out.push(match chars.next()?.1 {
                c @ ('"' | '\\' | '/') => c,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => unicode(&mut chars)?,
                _ => return None,
            }),
            c if u32::from(c) < 0x20 => return None,
            c => out.push(c),
        }
    }
    None
}

fn unicode(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    let mut unit = || (0..4).try_fold(0, |unit, _| Some(unit * 16 + chars.next()?.1.to_digit(16)?));
    let first = unit()?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first);
    }
    if chars.next()?.1 != '\\' || chars.next()?.1 != 'u' {
        return None;
    }
    let mut unit = || (0..4).try_fold(0, |unit, _| Some(unit * 16 + chars.next()?.1.to_digit(16)?));
    let second = unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_others_write() {
        let parse = |text: &str| parse_index(text.as_bytes());
        let parts =
            |parts: &[&str]| Some(parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            parse(r#"["mute","1@s.whatsapp.net"]"#),
            parts(&["mute", "1@s.whatsapp.net"])
        );
        assert_eq!(
            parse(r#" [ "a" , "\u003cb\u003e" ] "#),
            parts(&["a", "<b>"])
        );
        assert_eq!(parse(r#"["\ud83d\ude00\n\/"]"#), parts(&["😀\n/"]));
        assert_eq!(parse("[]"), parts(&[]));
        for bad in [
            "",
            "[",
            "]",
            "{}",
            "[1]",
            "[\"a\"",
            "[\"a\",]",
            "[,\"a\"]",
            "[\"a\" \"b\"]",
            "[\"\\x\"]",
            "[\"\\ud800\"]",
            "[\"\\ud800\\u0041\"]",
            "[\"a\u{1}\"]",
            "[\"\\u12\"]",
            "[\"\"]]",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse_index(&[b'[', b'"', 0xff, b'"', b']']), None);
        let many = vec!["x"; PARTS + 1];
        assert_eq!(parse_index(&write_index(&many)), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in proptest::collection::vec(any::<String>(), 0..PARTS)) {
            let written = write_index(&parts.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(parse_index(&written), Some(parts.clone()));
            // The same bytes as everybody else's encoder, up to the choice of escapes.
            let json: Vec<String> = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(json, parts);
        }

        #[test]
        fn anything_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let ours = parse_index(&bytes);
            let theirs: Option<Vec<String>> = serde_json::from_slice(&bytes).ok();
            if bytes.is_ascii() {
                prop_assert_eq!(ours, theirs.filter(|parts| parts.len() <= PARTS));
            }
        }
    }
}
