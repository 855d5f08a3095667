//! What a message costs: `cargo bench -p baton-core --bench signal`.
//!
//! Plaintexts have 128 bytes, as in the comparisons of chapter 05's implementations. `floor/*` are the primitives
//! alone, so that a number can be read as "so many agreements and so many hashes".

#![allow(clippy::disallowed_methods, reason = "a bench measures time")]

use baton_core::crypto::{KeyPair, Rng, hmac_sha256};
use baton_core::signal::{
    Bundle, Ciphertext, CiphertextKind, LocalIdentity, PreKeyMessage, SenderKeyRecord,
    SessionRecord, decrypt, decrypt_pre_key, encrypt, initiate,
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;

const PLAINTEXT: [u8; 128] = [0x61; 128];

criterion_group!(benches, floor, sessions, messages, records, sender_keys);
criterion_main!(benches);

fn floor(c: &mut Criterion) {
    let mut rng = Rng::from_seed([1; 32]);
    let (ours, theirs) = (KeyPair::generate(&mut rng), KeyPair::generate(&mut rng));
    let signature = ours.private.sign(&[&PLAINTEXT], &mut rng);
    let mut group = c.benchmark_group("floor");
    group.bench_function("key pair", |b| b.iter(|| KeyPair::generate(&mut rng)));
    group.bench_function("agree", |b| {
        b.iter(|| ours.private.agree(black_box(&theirs.public)).unwrap())
    });
    group.bench_function("sign", |b| {
        b.iter(|| ours.private.sign(&[black_box(&PLAINTEXT)], &mut rng))
    });
    group.bench_function("verify", |b| {
        b.iter(|| {
            ours.public
                .verify(&[&PLAINTEXT], black_box(&signature))
                .unwrap()
        })
    });
    group.bench_function("hmac of 1 byte", |b| {
        b.iter(|| hmac_sha256(black_box(&[7; 32]), &[&[1]]))
    });
}

fn sessions(c: &mut Criterion) {
    let mut pair = Pair::new();
    let mut group = c.benchmark_group("session");
    group.bench_function("from a bundle", |b| {
        b.iter_batched(
            SessionRecord::new,
            |mut record| pair.left.initiate(&mut record, &pair.bundle),
            BatchSize::SmallInput,
        );
    });
    let mut record = SessionRecord::new();
    pair.left.initiate(&mut record, &pair.bundle);
    let first = encrypt(&mut record.clone(), &pair.left.local(), &PLAINTEXT).unwrap();
    let message = PreKeyMessage::parse(&first.bytes).unwrap();
    group.bench_function("encrypt first", |b| {
        let encrypt = |mut record| encrypt(&mut record, &pair.left.local(), &PLAINTEXT).unwrap();
        b.iter_batched(|| record.clone(), encrypt, BatchSize::SmallInput);
    });
    group.bench_function("decrypt first", |b| {
        b.iter_batched(
            SessionRecord::new,
            |mut record| pair.read_first(&mut record, &message),
            BatchSize::SmallInput,
        );
    });
}

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("message");
    let mut pair = Pair::started();
    group.bench_function("encrypt", |b| b.iter(|| pair.left.encrypt()));
    group.bench_function("decrypt in order", |b| {
        let mut pair = Pair::started();
        b.iter_batched(
            || pair.left.encrypt(),
            |message| pair.right.decrypt(&message),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("decrypt with a ratchet turn", |b| {
        let mut pair = Pair::started();
        let turn = |pair: &mut Pair| {
            let message = pair.left.encrypt();
            pair.right.decrypt(&message);
            pair.right.encrypt()
        };
        b.iter_custom(|count| {
            let mut total = std::time::Duration::ZERO;
            for _ in 0..count {
                let message = turn(&mut pair);
                let start = std::time::Instant::now();
                pair.left.decrypt(&message);
                total += start.elapsed();
            }
            total
        });
    });
    group.bench_function("decrypt after a gap of 500", |b| {
        let mut pair = Pair::started();
        let messages: Vec<_> = (0..501).map(|_| pair.left.encrypt()).collect();
        let (record, last) = (pair.right.record.clone(), &messages[500]);
        let receive = |record| {
            pair.right.record = record;
            pair.right.decrypt(last);
        };
        b.iter_batched(|| record.clone(), receive, BatchSize::SmallInput);
    });
}

fn records(c: &mut Criterion) {
    let pair = Pair::started();
    let bytes = pair.left.record.encode();
    let mut group = c.benchmark_group(format!("record of {} bytes", bytes.len()));
    group.bench_function("encode", |b| {
        b.iter(|| black_box(&pair.left.record).encode())
    });
    group.bench_function("decode", |b| {
        b.iter(|| SessionRecord::decode(black_box(&bytes)).unwrap())
    });
}

fn sender_keys(c: &mut Criterion) {
    let mut rng = Rng::from_seed([3; 32]);
    let mut sender = SenderKeyRecord::create(&mut rng);
    let mut receiver = SenderKeyRecord::new();
    receiver.process(&sender.distribution().unwrap()).unwrap();
    let mut group = c.benchmark_group("sender key");
    group.bench_function("decrypt", |b| {
        b.iter_batched(
            || sender.encrypt(&PLAINTEXT, &mut rng).unwrap(),
            |message| receiver.decrypt(&message).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("encrypt", |b| {
        b.iter(|| sender.encrypt(&PLAINTEXT, &mut rng).unwrap())
    });
}

/// Two devices.
struct Pair {
    left: Side,
    right: Side,
    bundle: Bundle,
    signed_pre_key: KeyPair,
    one_time: KeyPair,
}

struct Side {
    identity: KeyPair,
    record: SessionRecord,
    rng: Rng,
}

impl Pair {
    fn new() -> Self {
        let mut rng = Rng::from_seed([2; 32]);
        let mut side = |label| Side {
            identity: KeyPair::generate(&mut rng),
            record: SessionRecord::new(),
            rng: rng.fork(label),
        };
        let (left, right) = (side("left"), side("right"));
        let (signed_pre_key, one_time) = (KeyPair::generate(&mut rng), KeyPair::generate(&mut rng));
        let bundle = Bundle {
            registration_id: 1,
            identity: right.identity.public,
            signed_pre_key_id: 1,
            signed_pre_key: signed_pre_key.public,
            signature: right
                .identity
                .private
                .sign(&[&signed_pre_key.public.serialize()], &mut rng),
            pre_key: Some((1, one_time.public)),
        };
        Self {
            left,
            right,
            bundle,
            signed_pre_key,
            one_time,
        }
    }

    /// With a session both have confirmed.
    fn started() -> Self {
        let mut pair = Self::new();
        let mut record = SessionRecord::new();
        pair.left.initiate(&mut record, &pair.bundle);
        pair.left.record = record;
        let first = pair.left.encrypt();
        let mut record = SessionRecord::new();
        pair.read_first(&mut record, &PreKeyMessage::parse(&first.bytes).unwrap());
        pair.right.record = record;
        let answer = pair.right.encrypt();
        pair.left.decrypt(&answer);
        let message = pair.left.encrypt();
        assert_eq!(message.kind, CiphertextKind::Message);
        pair.right.decrypt(&message);
        pair
    }

    fn read_first(&mut self, record: &mut SessionRecord, message: &PreKeyMessage) {
        let Side { identity, rng, .. } = &mut self.right;
        let local = LocalIdentity {
            key_pair: identity,
            registration_id: 1,
        };
        let keys = (Some(&self.signed_pre_key), Some(&self.one_time));
        decrypt_pre_key(record, &local, message, keys.0, keys.1, rng).unwrap();
    }
}

impl Side {
    fn local(&self) -> LocalIdentity<'_> {
        LocalIdentity {
            key_pair: &self.identity,
            registration_id: 1,
        }
    }

    fn initiate(&mut self, record: &mut SessionRecord, bundle: &Bundle) {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: 1,
        };
        initiate(record, &local, bundle, &mut self.rng).unwrap();
    }

    fn encrypt(&mut self) -> Ciphertext {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: 1,
        };
        encrypt(&mut self.record, &local, &PLAINTEXT).unwrap()
    }

    fn decrypt(&mut self, message: &Ciphertext) {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: 1,
        };
        let plaintext = decrypt(&mut self.record, &local, &message.bytes, &mut self.rng).unwrap();
        assert_eq!(plaintext, PLAINTEXT);
    }
}
