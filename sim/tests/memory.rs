//! Memory stays flat over a history of any length: live bytes are counted by the allocator, while an engine reads a chunk
//! that is made as it is read.

#[allow(dead_code, reason = "shared with the siege")]
#[path = "siege/cloud.rs"]
mod cloud;
#[allow(dead_code, reason = "shared with the siege")]
#[path = "siege/rig.rs"]
mod rig;

use baton_core::{
    jid::Jid,
    proto::e2e::{self, HistorySyncNotification},
};
use peak_alloc::PeakAlloc;
use rig::Rig;
use sha2::{Digest, Sha256};
use sim::service::history::{Chunk, History, HistoryKind};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const KEY: [u8; 32] = [9; 32];

/// Reads a chunk of so many bytes. Returns its messages, the bytes of its file, and how far live bytes went above where
/// they were before it was announced.
fn read(bytes: u64) -> (usize, u64, usize) {
    let chunk = Chunk {
        history: History {
            kind: HistoryKind::Full,
            chunks: 1,
            bytes,
            inline: false,
            seed: 5,
            damage: None,
        },
        order: 1,
    };
    let (mut sealed, mut plain, mut length) = (Sha256::new(), Sha256::new(), 0);
    for piece in chunk.file() {
        length += piece.len() as u64;
        plain.update(&piece);
    }
    chunk.sealed(&KEY).for_each(|piece| sealed.update(&piece));
    let notification = HistorySyncNotification {
        media_key: Some(KEY.to_vec()),
        direct_path: Some("/chunk".into()),
        file_sha256: Some(plain.finalize().to_vec()),
        file_enc_sha256: Some(sealed.finalize().to_vec()),
        file_length: Some(length),
        sync_type: Some(2),
        chunk_order: Some(1),
        ..Default::default()
    };
    let mut rig = Rig::online(1);
    let lid = rig.device().lid.expect("linked");
    let lid: Jid = lid.parse().expect("a LID");
    let phone = rig.peer(lid.user());
    rig.forget = true;
    rig.chunk = 64 << 10;
    rig.source = Some(Box::new(move || chunk.sealed(&KEY)));
    let message = e2e::Message {
        protocol_message: Some(Box::new(e2e::ProtocolMessage {
            r#type: Some(5),
            history_sync_notification: Some(notification),
            ..Default::default()
        })),
        ..Default::default()
    };
    let mut rng = rig.rng.fork("phone");
    let (kind, bytes) = rig.peers[phone].seal(&message, &mut rng);
    let stanza = rig.peers[phone].stanza("h", kind, bytes);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    rig.say(&stanza.attr("category", "peer"));
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    let stats = rig.engine.stats().sync.clone();
    assert_eq!(stats.history_chunks, 1, "{stats:?}");
    assert_eq!(stats.history_messages as usize, rig.past);
    (rig.past, length, peak)
}

/// One test, alone in its process: nobody else allocates.
#[test]
fn a_history_of_a_hundred_megabytes_costs_no_more_than_one_of_ten() {
    // Whatever is made once is made before it is counted.
    read(1 << 10);
    let mut peaks = Vec::new();
    for megabytes in [10, 100] {
        let (messages, file, peak) = read(megabytes << 20);
        println!(
            "{megabytes} MiB, {file} bytes of file, {messages} messages: at most {peak} more bytes"
        );
        assert!(messages > 20_000 * megabytes as usize / 10);
        peaks.push(peak);
    }
    assert!(peaks[1] < 16 << 20, "{peaks:?}");
    assert!(peaks[1] < peaks[0] + (1 << 20), "{peaks:?}");
}
