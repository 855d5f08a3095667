//! What a connection costs: the handshakes, both sides of them, and a frame in each direction.
//!
//! `cargo bench -p baton-core --bench noise`

use std::hint::black_box;

use baton_core::crypto::{KeyPair, Rng};
use baton_core::wire::noise::{
    ClientHandshake, Established, ServerHandshake, ServerReply, Transport, Trust,
    certificate_chain, verify_chain,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const NOW: i64 = 1_800_000_000;
/// A login payload is about that long.
const PAYLOAD: [u8; 150] = [7; 150];

struct World {
    device: KeyPair,
    service: KeyPair,
    chain: Vec<u8>,
    trust: Trust,
    rng: Rng,
}

impl World {
    fn new() -> Self {
        let mut rng = Rng::from_seed([1; 32]);
        let [device, service, root, intermediate] =
            std::array::from_fn(|_| KeyPair::generate(&mut rng));
        let chain = certificate_chain(&root, &intermediate, &service.public, NOW, NOW, &mut rng);
        let trust = Trust {
            root: root.public,
            now_unix_secs: NOW,
        };
        Self {
            device,
            service,
            chain,
            trust,
            rng,
        }
    }

    /// The device's side and the service's of one XX.
    fn xx(&mut self) -> (Established, Transport) {
        let (device, hello) = ClientHandshake::start(&self.device, None, &PAYLOAD, &mut self.rng);
        let answer =
            ServerHandshake::client_hello(&self.service, &self.chain, &hello, &mut self.rng);
        let Ok(ServerReply::AwaitFinish { reply, state }) = answer else {
            panic!("resumed")
        };
        let met = device.server_hello(&reply, &self.trust).unwrap();
        let (transport, ..) = state.client_finish(met.reply.as_ref().unwrap()).unwrap();
        (met, transport)
    }
}

fn handshakes(c: &mut Criterion) {
    let mut world = World::new();
    let mut group = c.benchmark_group("noise/handshake");
    group.bench_function("xx, both sides", |b| b.iter(|| world.xx()));

    let identity = verify_chain(&world.chain, &world.service.public, &world.trust).unwrap();
    group.bench_function("ik, both sides", |b| {
        b.iter(|| {
            let (device, hello) =
                ClientHandshake::start(&world.device, Some(&identity), &PAYLOAD, &mut world.rng);
            let answer =
                ServerHandshake::client_hello(&world.service, &world.chain, &hello, &mut world.rng);
            let Ok(ServerReply::Resumed {
                reply, transport, ..
            }) = answer
            else {
                panic!("refused")
            };
            (
                device.server_hello(&reply, &world.trust).unwrap(),
                transport,
            )
        });
    });

    // One side each. The other side's messages are made beforehand.
    group.bench_function("xx, device", |b| {
        b.iter_batched(
            || {
                let (device, hello) =
                    ClientHandshake::start(&world.device, None, &PAYLOAD, &mut world.rng);
                let answer = ServerHandshake::client_hello(
                    &world.service,
                    &world.chain,
                    &hello,
                    &mut world.rng,
                );
                let Ok(ServerReply::AwaitFinish { reply, .. }) = answer else {
                    panic!("resumed")
                };
                (device, reply)
            },
            |(device, reply)| device.server_hello(&reply, &world.trust).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("certificate chain", |b| {
        b.iter(|| {
            verify_chain(black_box(&world.chain), &world.service.public, &world.trust).unwrap()
        });
    });
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut world = World::new();
    for (name, length) in [("200 B", 200), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10)] {
        let plaintext = vec![0x5a; length];
        let mut group = c.benchmark_group(format!("noise/frame/{name}"));
        group.throughput(Throughput::Bytes(length as u64));

        let (mut met, mut service) = world.xx();
        let mut out = Vec::new();
        group.bench_function("seal", |b| {
            b.iter(|| {
                out.clear();
                met.transport.seal(black_box(&plaintext), &mut out).unwrap();
            });
        });

        let (mut met_again, mut service_again) = world.xx();
        group.bench_function("open", |b| {
            // Sealed in the order in which they are opened: the counters stay in step.
            b.iter_batched(
                || {
                    let mut frame = Vec::new();
                    service_again.seal(&plaintext, &mut frame).unwrap();
                    frame
                },
                |frame| met_again.transport.open(black_box(&frame[3..])).unwrap(),
                BatchSize::LargeInput,
            );
        });
        // What was measured was a connection.
        out.clear();
        service.seal(&plaintext, &mut out).unwrap();
        assert_eq!(met.transport.open(&out[3..]).unwrap(), plaintext);
        group.finish();
    }
}

criterion_group!(benches, handshakes, frames);
criterion_main!(benches);
