//! What decoding costs in memory, counted by an allocator that counts: for every decoder a multiple of what comes in and
//! a constant, whatever the bytes are. A test binary of its own, one test, because the count is of the whole process.

use baton_core::{
    history::HistoryReader,
    limits,
    media::{Expected, MediaKind, MediaReader},
    proto::{bounded, e2e, sync},
    signal::{PreKeyMessage, SenderKeyRecord, SessionRecord},
    wire::{
        frame::{FrameReader, MAX_FRAME},
        node::{self, Scratch},
    },
};
use flate2::{Compression, write::ZlibEncoder};
use peak_alloc::PeakAlloc;
use proptest::{prelude::*, test_runner::TestRunner};
use std::io::Write as _;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What every decoder may use at once, however little comes in: buffers of a fixed size.
const CONSTANT: usize = 160 << 10;

/// The most memory in use at any moment of `what`, beyond what was in use before.
fn cost<T>(what: impl FnOnce() -> T) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let out = what();
    let peak = MEMORY.peak_usage();
    drop(out);
    peak.saturating_sub(before)
}

/// A decoder, and how many bytes it may use for each byte that comes in.
struct Decoder {
    name: &'static str,
    multiple: usize,
    run: fn(&[u8]),
}

const DECODERS: &[Decoder] = &[
    Decoder {
        name: "frames",
        // What has arrived, growing, and the frame that is given out of it.
        multiple: 4,
        run: |bytes| {
            let mut reader = FrameReader::new(MAX_FRAME);
            bytes.chunks(100).for_each(|piece| reader.push(piece));
            while let Ok(Some(_)) = reader.next() {}
        },
    },
    Decoder {
        name: "node, borrowed",
        // The tape: 16 bytes for a node of 3, 8 for an attribute of 2, growing by doubling, old and new at once.
        multiple: 17,
        run: |bytes| {
            let _ = node::decode(bytes, &mut Scratch::new());
        },
    },
    Decoder {
        name: "node, owned",
        // A node of 3 bytes is about a hundred, an attribute of 2 about seventy; lists grow by doubling.
        multiple: 160,
        run: |bytes| {
            let _ = node::decode_owned(bytes);
        },
    },
    Decoder {
        name: "message",
        // An element of 2 bytes is a struct of up to 150, in a list that grows by doubling.
        multiple: 230,
        run: |bytes| {
            let _ = bounded::decode_within::<e2e::Message>(bytes, limits::MESSAGE_PARTS);
        },
    },
    Decoder {
        name: "patch",
        multiple: 230,
        run: |bytes| {
            let _ = bounded::decode_list::<sync::SyncdPatch>(bytes, 2, limits::PATCH_MUTATIONS);
        },
    },
    Decoder {
        name: "snapshot",
        multiple: 230,
        run: |bytes| {
            let list = limits::COLLECTION_RECORDS;
            let _ = bounded::decode_list::<sync::SyncdSnapshot>(bytes, 2, list);
        },
    },
    Decoder {
        name: "Signal message",
        multiple: 2,
        run: |bytes| {
            let _ = PreKeyMessage::parse(bytes);
        },
    },
    Decoder {
        name: "Signal records",
        // Rows of our own, or of whoever can write to the database: a session of a few bytes is a struct of 500.
        multiple: 60,
        run: |bytes| {
            let _ = SessionRecord::decode(bytes);
            let _ = SenderKeyRecord::decode(bytes);
        },
    },
    Decoder {
        name: "file",
        multiple: 4,
        run: |bytes| {
            let expected = Expected {
                most: u64::MAX,
                ..Expected::default()
            };
            let mut reader = MediaReader::new(MediaKind::Image, &[1; 32], expected);
            let mut out = Vec::new();
            for piece in bytes.chunks(1000) {
                let _ = reader.push(piece, &mut out);
                out.clear();
            }
            let _ = reader.finish(&mut out);
        },
    },
];

/// Bytes that make much of little: the smallest elements of every list there is, and noise.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let repeated = |unit: &'static [u8]| (0..6000usize).prop_map(move |n| unit.repeat(n));
    let list = |unit: &'static [u8]| {
        (0..6000u16).prop_map(move |n| {
            let mut bytes = vec![0, 0xf8, 2, 3, 0xf9];
            bytes.extend(n.to_be_bytes());
            bytes.extend(unit.repeat(n.into()));
            bytes
        })
    };
    let attributes = (1..1024u16).prop_map(|n| {
        let mut bytes = vec![0, 0xf9];
        bytes.extend((1 + 2 * n).to_be_bytes());
        bytes.push(3);
        bytes.extend([3, 4].repeat(n.into()));
        bytes
    });
    // `protocolMessage.appStateSyncKeyShare.keys`, each empty.
    let keys = (0..6000usize).prop_map(|n| {
        let nest = |tag: u8, inside: Vec<u8>| {
            let mut out = vec![tag];
            let mut length = inside.len();
            while length > 0x7f {
                out.push(length as u8 | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
            [out, inside].concat()
        };
        nest(0x62, nest(0x3a, [0x0a, 0].repeat(n)))
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4000),
        list(&[0xf8, 1, 3]),
        list(&[0xf8, 3, 3, 4, 5]),
        attributes,
        repeated(&[0x12, 0]),
        repeated(&[0x0a, 0]),
        repeated(&[0, 0, 0]),
        repeated(&[0x12, 4, 8, 3, 0x22, 0]),
        keys,
    ]
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    zlib.write_all(bytes).expect("memory");
    zlib.finish().expect("memory")
}

#[test]
fn decoding_costs_a_multiple_of_what_comes_in() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&hostile(), |bytes| {
            for decoder in DECODERS {
                let cost = cost(|| (decoder.run)(&bytes));
                let allowed = decoder.multiple * bytes.len() + CONSTANT;
                prop_assert!(
                    cost <= allowed,
                    "{}: {cost} for {} bytes",
                    decoder.name,
                    bytes.len()
                );
            }
            Ok(())
        })
        .expect("every decoder keeps to its multiple");

    // The largest there can be: what bounds the whole is not the multiple any more but the limits.
    let empty_nodes = {
        let mut bytes = vec![0, 0xf8, 2, 3, 0xf9, 0xff, 0xff];
        // Lists in lists, because one list ends at 65,535.
        let list = [
            &[0xf8, 2, 3, 0xf9, 0xff, 0xff][..],
            &[0xf8, 1, 3].repeat(65_535),
        ]
        .concat();
        bytes.extend(list.repeat(80));
        bytes.truncate(limits::NODE_BYTES);
        bytes
    };
    let spent = cost(|| node::decode_owned(&empty_nodes));
    assert!(spent <= 96 << 20, "{spent} for a frame of empty nodes");

    // A small frame that inflates to a large one costs what the large one would.
    let bomb = [&[2][..], &zlib(&vec![0; 64 << 20])].concat();
    let spent = cost(|| node::decode_owned(&bomb));
    assert!(
        spent <= 3 * limits::NODE_BYTES + (1 << 20),
        "{spent} for a bomb"
    );

    // Eight mebibytes of empty keys, and a file of 64 of empty records: refused before anything is made of them.
    let keys = [0x0a, 0].repeat(limits::MESSAGE_RECEIVED / 2 - 8);
    let spent = cost(|| bounded::decode_within::<e2e::Message>(&keys[..], limits::MESSAGE_PARTS));
    assert!(spent < CONSTANT, "{spent} for a message of nothing");
    let records = [0x12, 0].repeat(32 << 20);
    let spent = cost(|| {
        bounded::decode_list::<sync::SyncdSnapshot>(&records[..], 2, limits::COLLECTION_RECORDS)
    });
    assert!(spent < CONSTANT, "{spent} for a file of nothing");

    // History is taken apart as it comes: what it inflates to does not matter.
    let past = zlib(&[0x3a, 2, 0x0a, 0].repeat(8 << 20));
    let spent = cost(|| {
        let mut reader = HistoryReader::default();
        for piece in past.chunks(limits::MEDIA_PART) {
            reader.input().extend_from_slice(piece);
            while let Ok(Some(_)) = reader.next() {}
        }
    });
    assert!(spent <= 2 << 20, "{spent} for 32 MiB of history");
}
