//! A whole engine among enemies: a service that lies, a store that lies, clocks that jump, a driver that stumbles.
//!
//! Two instruments. [`World`] for stories with an honest rest of the world; [`Rig`](rig::Rig) for one engine whose every
//! input is in the test's hand. What must hold, whatever comes in: no panic, no endless output, no memory beyond the
//! limits, nothing visible before it is durable, nothing at all after the lease, and an honest world works again.
//!
//! `BATON_CASES` sets the number of random cases per property.

mod cloud;
mod gate;
mod history;
mod limits;
mod malice;
mod refused;
mod rig;
mod room;
mod service;
mod settings;
mod store;
#[path = "../support/words.rs"]
mod words;

use baton_core::state::{Key, Scan, Store, Table};
use proptest::prelude::*;
use rig::{SECOND, ready};
use sim::world::World;

pub(crate) fn cases(few: u32) -> ProptestConfig {
    let given = std::env::var("BATON_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: given.unwrap_or(few),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Every key of an account's table.
pub(crate) fn keys(world: &World, account: usize, table: Table) -> Vec<Key> {
    let scan = Scan {
        table,
        after: None,
        limit: 10_000,
    };
    let rows = ready(world.store().scan(&world.accounts()[account].id, scan)).expect("rows");
    rows.into_iter().map(|(key, _)| key).collect()
}

pub(crate) fn texts(world: &mut World, count: u64, span: u64) {
    for n in 0..count {
        world.plan_text(n * span / count, 0, 1, &format!("there {n}"));
        world.plan_text(n * span / count, 1, 0, &format!("back {n}"));
    }
}

pub(crate) fn rest(world: &mut World) {
    world.run(world.now().mono.0 + 240 * SECOND);
}
