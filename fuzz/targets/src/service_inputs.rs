//! The simulated service, against clients that send anything: before the handshake, in it, and behind it.
//!
//! Checked: it does not panic, and answers everybody else; nothing is sent on a connection that it has closed; what it
//! saves can be restored, and saves the same.

use crate::{
    input::Take,
    support::{Client, Net as _, World},
    words,
};
use baton_core::{
    crypto::Rng,
    state::Micros,
    wire::{
        frame,
        node::{self, Node},
    },
};
use sim::service::{ConnId, Service};
use std::sync::OnceLock;

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

/// A service at which two are paired, saved: pairing takes longer than everything behind it.
struct Paired {
    saved: Vec<u8>,
    now: sim::service::Now,
    clients: [Client; 2],
}

fn paired() -> &'static Paired {
    static ONCE: OnceLock<Paired> = OnceLock::new();
    ONCE.get_or_init(|| {
        let mut world = World::new();
        let mut alice = Client::online(&mut world, 1, ALICE);
        let mut bob = Client::online(&mut world, 2, BOB);
        alice.hang_up(&mut world);
        bob.hang_up(&mut world);
        Paired {
            saved: world.service.save(),
            now: world.now,
            clients: [alice, bob],
        }
    })
}

/// A client that was paired, on its way in again.
fn again(world: &mut World, which: usize) -> Client {
    let mut client = paired().clients[which].restarted(Rng::from_seed([11 + which as u8; 32]));
    client.relogin(world);
    client
}

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let restored = Service::restore(Default::default(), [1; 32], &paired().saved);
    let mut world = World::of(restored.expect("just saved"), paired().now);
    let mut bob = again(&mut world, 1);
    let mut alice: Option<Client> = None;
    let mut stranger = None;
    for _ in 0..24 {
        if take.is_empty() {
            break;
        }
        match take.u8() % 12 {
            0 => {
                // Bytes of all sorts, on a connection of their own.
                let conn = *stranger.get_or_insert_with(|| world.open());
                if !world.closed.contains(&conn) {
                    world.give(conn, take.short());
                }
            }
            1 => {
                let conn = *stranger.get_or_insert_with(|| world.open());
                let mut bytes = Vec::new();
                if take.u8() & 1 == 0 {
                    frame::connection_header(None, &mut bytes);
                }
                frame::write_frame(take.short(), &mut bytes).expect("short");
                if !world.closed.contains(&conn) {
                    world.give(conn, &bytes);
                }
            }
            2 => stranger = None,
            3 => {
                // Nobody's: those that are somebody's are hung up.
                let conn = ConnId(take.number() | 1 << 32);
                world.service.disconnect(conn, world.now);
                world.pump();
            }
            4 => world.pass(Micros(u64::from(take.u16()) * 1000)),
            5 => {
                let text = String::from_utf8_lossy(take.short()).into_owned();
                let _ = world.service.scan(&text, None, world.now);
                let _ = world.service.phone_send(ALICE, &text, &text, world.now);
                world.pump();
            }
            6 => {
                if let Some(mut gone) = alice.take() {
                    gone.hang_up(&mut world);
                }
            }
            what => {
                let mut client = match alice.take() {
                    Some(client)
                        if !client.conn.is_some_and(|conn| world.closed.contains(&conn)) =>
                    {
                        client
                    }
                    _ => again(&mut world, 0),
                };
                if what == 7 {
                    client.send_plain(&mut world, take.short());
                } else {
                    let mut node = words::stanza(&mut take, 0);
                    let tags = [
                        "message",
                        "receipt",
                        "iq",
                        "ack",
                        "presence",
                        "chatstate",
                        "call",
                        "ib",
                    ];
                    node.tag = (*take.pick(&tags)).into();
                    if node::encode(&node, &mut Vec::new()).is_ok() {
                        client.send(&mut world, &node);
                    }
                }
                // What came for it is not looked at, but it has to open.
                if !client.conn.is_some_and(|conn| world.closed.contains(&conn)) {
                    client.read(&mut world);
                    alice = Some(client);
                }
            }
        }
    }
    if bob.conn.is_some_and(|conn| world.closed.contains(&conn)) {
        // Silent for too long.
        bob = again(&mut world, 1);
    }
    let pong = bob.iq(&mut world, "get", "w:p", Vec::<Node>::new());
    assert_eq!(pong.get_str("type"), Some("result"));
    let saved = world.service.save();
    let back = Service::restore(Default::default(), [1; 32], &saved).expect("what was saved");
    assert_eq!(back.save(), saved);
}

/// Each step, and steps of all sorts.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut rng = Rng::from_seed([8; 32]);
    let mut seeds: Vec<Vec<u8>> = (0..12u8)
        .map(|step| {
            std::iter::once(step)
                .chain((0..40).map(|_| rng.next_u32() as u8))
                .collect()
        })
        .collect();
    seeds.extend((0..8).map(|_| (0..200).map(|_| rng.next_u32() as u8).collect()));
    seeds
}
