//! Chunks of history.
//!
//! Checked: where a chunk is cut changes nothing of what comes out of a good one, and whether it is one; no piece is
//! longer than the limit.

use crate::input::{Take, zlib};
use baton_core::{
    history::{HistoryError, HistoryReader, MESSAGE_BYTES, Piece},
    proto::history::{
        Conversation, HistorySync, HistorySyncMsg, PhoneNumberToLidMapping, Pushname,
        WebMessageInfo,
    },
};
use prost::Message as _;

type Chunk = (Vec<String>, Option<HistoryError>, u64);

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Chunk {
    let mut reader = HistoryReader::default();
    let mut out = Vec::new();
    for piece in pieces {
        reader.input().extend_from_slice(piece);
        loop {
            match reader.next() {
                Ok(Some(piece)) => {
                    if let Piece::Message(_, info) = &piece {
                        assert!(info.len() <= MESSAGE_BYTES);
                    }
                    out.push(format!("{} {piece:?}", piece.bytes()));
                }
                Ok(None) => break,
                Err(error) => return (out, Some(error), reader.skipped()),
            }
        }
        assert!(out.len() < 1 << 20);
    }
    let end = reader.finish().err();
    (out, end, reader.skipped())
}

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let choice = take.u8();
    let cut = 1 + usize::from(take.u16());
    let chunk = match choice & 1 {
        0 => take.rest().to_vec(),
        _ => zlib(take.rest()),
    };
    let whole = read(std::iter::once(chunk.as_slice()));
    if chunk.is_empty() {
        return;
    }
    let pieces = read(chunk.chunks(cut));
    assert_eq!(whole.1.is_some(), pieces.1.is_some());
    if whole.1.is_none() {
        assert_eq!(whole.0, pieces.0, "cut every {cut} bytes");
        assert_eq!(whole.2, pieces.2);
    } else {
        // How much comes out before an error depends on where it is noticed, not what.
        let common = whole.0.len().min(pieces.0.len());
        assert_eq!(whole.0[..common], pieces.0[..common]);
    }
}

/// A small past, compressed by the target and here.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let message = |text: &str| HistorySyncMsg {
        message: Some(WebMessageInfo {
            push_name: Some(text.into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let chat = Conversation {
        id: Some("15550000001@s.whatsapp.net".into()),
        messages: vec![message("one"), message("two")],
        name: Some("name".into()),
        ..Default::default()
    };
    let sync = HistorySync {
        conversations: vec![chat.clone(), chat],
        pushnames: vec![Pushname {
            id: Some("15550000001@s.whatsapp.net".into()),
            pushname: Some("Zoë".into()),
        }],
        phone_number_to_lid_mappings: vec![PhoneNumberToLidMapping {
            pn_jid: Some("15550000001@s.whatsapp.net".into()),
            lid_jid: Some("100000000000001@lid".into()),
        }],
        ..Default::default()
    };
    let plain = sync.encode_to_vec();
    vec![
        [&[1, 0, 3][..], &plain].concat(),
        [&[1, 1, 0][..], &plain[..plain.len() / 2]].concat(),
        [&[0, 0, 30][..], &zlib(&plain)].concat(),
    ]
}
