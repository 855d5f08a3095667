//! What app state costs: `cargo bench -p baton-core --bench appstate`.
//!
//! Contacts, as an address book has them. A mutation costs two expansions to 128 bytes at most (one that goes, one that
//! comes), two MACs and the decryption of some 150 bytes.

#![allow(clippy::disallowed_methods, reason = "a bench measures time")]

use baton_core::appstate::{
    Change, Collection, KeyId, KeyRing, LtHash, Operation, State, SyncKey, action, build_patch,
    build_snapshot, verify_patch, verify_snapshot,
};
use baton_core::crypto::{Rng, sha256};
use baton_core::history::HistoryReader;
use baton_core::media::{self, Expected, MediaKind, MediaReader, Survey};
use baton_core::proto::e2e;
use baton_core::proto::history::{Conversation, HistorySync, HistorySyncMsg, WebMessageInfo};
use baton_core::proto::sync::{
    ContactAction, SyncActionValue, SyncdPatch, SyncdSnapshot, SyncdVersion,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flate2::{Compression, write::ZlibEncoder};
use prost::Message as _;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write as _;

const COLLECTION: Collection = Collection::CriticalUnblockLow;

criterion_group!(benches, lthash, patches, snapshots, history);
criterion_main!(benches);

fn key() -> SyncKey {
    let id = KeyId::new(vec![0, 0, 0, 0, 0, 1]).expect("six bytes");
    SyncKey::expand(id, &[7; 32])
}

fn contacts(count: u64) -> Vec<Change> {
    let contact = |n: u64| Change {
        operation: Operation::Set,
        index: action::write_index(&["contact", &format!("{}@s.whatsapp.net", 15_550_000_000 + n)]),
        value: SyncActionValue {
            timestamp: Some(1_700_000_000_000),
            contact_action: Some(ContactAction {
                full_name: Some(format!("Somebody Number {n}")),
                first_name: Some("Somebody".into()),
                lid_jid: Some(format!("{}@lid", 100_000_000_000_000 + n)),
                ..Default::default()
            }),
            ..Default::default()
        },
        version: 2,
    };
    (0..count).map(contact).collect()
}

fn lthash(c: &mut Criterion) {
    let mut group = c.benchmark_group("lthash");
    let mut hash = LtHash::default();
    group.bench_function("add", |b| b.iter(|| hash.add(black_box(&[7; 32]))));
    let macs = vec![[9; 32]; 1000];
    group.throughput(Throughput::Elements(2000));
    group.bench_function("1000 values replaced", |b| {
        b.iter(|| hash.update(black_box(&macs), black_box(&macs)))
    });
}

fn patches(c: &mut Criterion) {
    let mut rng = Rng::from_seed([1; 32]);
    let changes = contacts(1000);
    let (key, ring) = (key(), KeyRing::from_iter([key()]));
    let first = build_patch(
        COLLECTION,
        &State::default(),
        &key,
        &changes,
        |_| None,
        &mut rng,
    )
    .expect("sound");
    let macs: BTreeMap<[u8; 32], [u8; 32]> = first
        .macs
        .iter()
        .filter_map(|(index, value)| Some((*index, (*value)?)))
        .collect();
    // Every setting has another value already: the dearer case.
    let mut build = || {
        build_patch(
            COLLECTION,
            &first.state,
            &key,
            black_box(&changes),
            |index| macs.get(index).copied(),
            &mut rng,
        )
    };
    let mut patch = build().expect("sound").patch;
    patch.version = Some(SyncdVersion { version: Some(2) });
    let bytes = bytes::Bytes::from(patch.encode_to_vec());

    let mut group = c.benchmark_group("patch of 1000 mutations");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("build", |b| b.iter(|| build().expect("sound")));
    group.bench_function("decode", |b| {
        b.iter(|| SyncdPatch::decode(black_box(bytes.clone())).expect("sound"))
    });
    group.bench_function("verify and decrypt", |b| {
        b.iter(|| {
            verify_patch(
                COLLECTION,
                &first.state,
                &patch,
                &patch.mutations,
                &ring,
                |index| macs.get(index).copied(),
            )
            .expect("sound")
        })
    });
}

fn snapshots(c: &mut Criterion) {
    let mut rng = Rng::from_seed([1; 32]);
    let settings = contacts(5000);
    let (key, ring) = (key(), KeyRing::from_iter([key()]));
    let (snapshot, _) = build_snapshot(COLLECTION, 9, &key, &settings, &mut rng).expect("sound");
    let bytes = bytes::Bytes::from(snapshot.encode_to_vec());
    let mut group = c.benchmark_group("snapshot of 5000 mutations");
    group.throughput(Throughput::Elements(5000));
    group.bench_function("decode", |b| {
        b.iter(|| SyncdSnapshot::decode(black_box(bytes.clone())).expect("sound"))
    });
    group.bench_function("verify and decrypt", |b| {
        b.iter(|| verify_snapshot(COLLECTION, black_box(&snapshot), &ring).expect("sound"))
    });
}

/// A chunk of 5,000 messages of 300 bytes: about what a phone puts into one.
fn chunk() -> Vec<u8> {
    let message = |chat: usize, n: usize| HistorySyncMsg {
        message: Some(WebMessageInfo {
            key: Some(e2e::MessageKey {
                remote_jid: Some(format!("1555000{chat:04}@s.whatsapp.net")),
                from_me: Some(n.is_multiple_of(2)),
                id: Some(format!("3EB0{:016X}", chat * 1000 + n)),
                participant: None,
            }),
            // Half of it does not deflate, as words do not.
            message: Some([sha256(&[&n.to_be_bytes()]).repeat(4), vec![b'e'; 150]].concat()),
            message_timestamp: Some(1_700_000_000 + n as u64),
            ..Default::default()
        }),
        msg_order_id: Some(n as u64),
    };
    let history = HistorySync {
        conversations: (0..50)
            .map(|chat| Conversation {
                id: Some(format!("1555000{chat:04}@s.whatsapp.net")),
                messages: (0..100).map(|n| message(chat, n)).collect(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&history.encode_to_vec()).expect("memory");
    encoder.finish().expect("memory")
}

fn history(c: &mut Criterion) {
    let compressed = chunk();
    let key = [3; 32];
    let file = media::encrypt(MediaKind::History, &key, &compressed);
    let expected = Expected {
        sha256: Some(sha256(&[&compressed])),
        enc_sha256: Some(sha256(&[&file])),
        most: 1 << 30,
    };
    let mut group = c.benchmark_group("chunk of 5000 messages");
    group.throughput(Throughput::Elements(5000));
    group.bench_function("decrypt and check", |b| {
        b.iter(|| {
            let (mut reader, mut out) = (
                MediaReader::new(MediaKind::History, &key, expected),
                Vec::new(),
            );
            for piece in file.chunks(64 << 10) {
                out.clear();
                reader.push(black_box(piece), &mut out).expect("sound");
            }
            reader.finish(&mut out).expect("sound");
        })
    });
    group.bench_function("inflate and take apart", |b| {
        b.iter(|| {
            let mut reader = HistoryReader::default();
            let mut pieces = 0;
            for piece in compressed.chunks(64 << 10) {
                reader.input().extend_from_slice(black_box(piece));
                while reader.next().expect("sound").is_some() {
                    pieces += 1;
                }
            }
            reader.finish().expect("whole");
            assert_eq!(pieces, 5050);
        })
    });
    drop(group);

    let mut group = c.benchmark_group("file of 4 MiB");
    let long = media::encrypt(MediaKind::History, &key, &vec![7; 4 << 20]);
    let expected = Expected {
        most: 1 << 30,
        ..Default::default()
    };
    group.throughput(Throughput::Bytes(4 << 20));
    group.bench_function("first reading and second reading", |b| {
        b.iter(|| {
            let (mut survey, mut out) =
                (Survey::new(MediaKind::History, &key, expected), Vec::new());
            for piece in long.chunks(64 << 10) {
                out.clear();
                survey.push(black_box(piece), &mut out).expect("sound");
            }
            let mut guard = survey.finish(&mut out).expect("sound");
            let mut reader = MediaReader::new(MediaKind::History, &key, expected);
            for piece in long.chunks(64 << 10) {
                let mut sealed = Vec::new();
                out.clear();
                guard.push(piece, &mut sealed).expect("the same");
                reader.push(&sealed, &mut out).expect("sound");
            }
        })
    });
}
