//! Files, decrypted in pieces.
//!
//! Checked: a genuine file reads back whole, however it is cut; what is accepted is what encrypting it gives; a second
//! reading lets through exactly what the first has checked; what is too long is refused when it is, not at the end.

use crate::input::Take;
use baton_core::media::{self, Expected, MediaError, MediaKind, MediaReader, Survey};

const KEY: [u8; 32] = [9; 32];

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let choice = take.u8();
    let kind = *take.pick(&[MediaKind::AppState, MediaKind::History, MediaKind::Image]);
    let most = if choice & 1 == 0 {
        1 << 20
    } else {
        u64::from(take.u16())
    };
    let cut = 1 + usize::from(take.u16());
    let plain = take.long();
    let genuine = media::encrypt(kind, &KEY, plain);
    let file = take.forged(&genuine);
    let expected = Expected {
        most,
        ..Expected::default()
    };
    let read = |file: &[u8]| {
        let (mut reader, mut out) = (MediaReader::new(kind, &KEY, expected), Vec::new());
        for piece in file.chunks(cut) {
            reader.push(piece, &mut out)?;
        }
        reader.finish(&mut out)?;
        Ok::<_, MediaError>(out)
    };
    let result = read(&file);
    match &result {
        Ok(out) => {
            // The fuzzer sees comparisons, so in time it learns what MAC belongs to bytes of its own. Then what comes out
            // is at least what went in: all but the last block, in which the padding may be another.
            let again = media::encrypt(kind, &KEY, out);
            let front = file.len() - 26;
            assert_eq!(again.len(), file.len());
            assert_eq!(again[..front], file[..front]);
            assert!(file != genuine || out == plain);
        }
        Err(MediaError::TooLong) => assert!(file.len() as u64 > most + 26),
        Err(error) => assert_ne!(file, genuine, "{error}"),
    }

    let (mut survey, mut out) = (Survey::new(kind, &KEY, expected), Vec::new());
    let first = file
        .chunks(cut)
        .try_for_each(|piece| survey.push(piece, &mut out));
    let Ok(mut guard) = first.and_then(|()| survey.finish(&mut out)) else {
        return assert!(result.is_err());
    };
    assert_eq!(Ok(&out), result.as_ref());
    let second = take.forged(&file);
    let mut through = Vec::new();
    let told = second
        .chunks(cut)
        .try_for_each(|piece| guard.push(piece, &mut through))
        .and_then(|()| guard.finish(&mut through));
    assert_eq!(told.is_ok(), second == file);
    assert!(file.starts_with(&through), "something else came through");
}

/// Files of a few lengths, whole and with edits.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let file = |choice: u8, length: u16, edits: &[u8]| {
        let plain = vec![0x55; length.into()];
        [
            &[choice, 1, 0, 15][..],
            &length.to_be_bytes(),
            &plain,
            edits,
        ]
        .concat()
    };
    vec![
        file(0, 0, &[1, 1]),
        file(0, 15, &[1, 1]),
        file(0, 16, &[2, 0, 0, 3, 1, 1]),
        file(0, 100, &[1, 2, 2, 0, 9]),
        file(1, 300, &[1, 1]),
    ]
}
