//! Streams of bytes cut into frames.
//!
//! Checked: where the stream is cut changes nothing, neither frames nor errors; no frame is longer than the limit; the
//! frames written again and what is left over are the stream; nothing is held beyond what came.

use crate::input::Take;
use baton_core::wire::frame::{
    FrameError, FrameReader, HeaderReader, MAX_FRAME, PROLOGUE, connection_header, write_frame,
};

#[derive(Debug, PartialEq)]
struct Read {
    frames: Vec<Vec<u8>>,
    routing: Option<Vec<u8>>,
    error: Option<FrameError>,
    buffered: Option<usize>,
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: usize, header: bool) -> Read {
    let (mut headers, mut reader) = (HeaderReader::new(), FrameReader::new(limit));
    let mut frames = Vec::new();
    let mut error = None;
    for piece in pieces {
        let pushed = match header {
            true => headers.push(piece, &mut reader),
            false => {
                reader.push(piece);
                Ok(())
            }
        };
        let mut next = || -> Result<(), FrameError> {
            pushed?;
            while let Some(frame) = reader.next()? {
                assert!(frame.len() <= limit, "longer than the limit");
                frames.push(frame.to_vec());
            }
            Ok(())
        };
        if let Err(found) = next() {
            error = Some(found);
            assert_eq!(
                reader.next().err(),
                error.filter(|e| matches!(e, FrameError::TooLong { .. }))
            );
            break;
        }
    }
    let buffered = error.is_none().then(|| reader.buffered());
    Read {
        frames,
        routing: headers.routing().map(<[u8]>::to_vec),
        error,
        buffered,
    }
}

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let choice = take.u8();
    let limit = match choice % 4 {
        0 => MAX_FRAME,
        1 => 16,
        2 => 300,
        _ => take.u16().into(),
    };
    let header = choice & 4 != 0;
    let cut = 1 + usize::from(take.u8());
    let stream = take.rest();
    let whole = read(std::iter::once(stream), limit, header);
    let pieces = read(stream.chunks(cut), limit, header);
    if stream.is_empty() {
        return;
    }
    assert_eq!(whole, pieces, "cut every {cut} bytes");

    if let Some(buffered) = whole.buffered {
        let mut again = Vec::new();
        for frame in &whole.frames {
            write_frame(frame, &mut again).expect("it was read");
        }
        assert!(again.len() + buffered <= stream.len());
        let frames = &stream[stream.len() - buffered - again.len()..stream.len() - buffered];
        assert_eq!(frames, again);
        if header && (!whole.frames.is_empty() || buffered > 0) {
            let mut written = Vec::new();
            connection_header(whole.routing.as_deref(), &mut written);
            let front = &stream[..stream.len() - buffered - again.len()];
            assert_eq!(front.len(), written.len());
            assert!(front.ends_with(&PROLOGUE));
        }
    }
}

/// Streams with and without header.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut stream = Vec::new();
    connection_header(Some(&[8, 2, 8, 5]), &mut stream);
    for payload in [&b"first"[..], b"", &[7; 300]] {
        write_frame(payload, &mut stream).expect("short");
    }
    let frames = &stream[15..];
    vec![
        [&[4, 3][..], &stream].concat(),
        [&[0, 0][..], frames].concat(),
        [&[1, 200][..], frames].concat(),
        [&[7, 1, 1, 44][..], &stream].concat(),
    ]
}
