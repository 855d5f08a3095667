//! What an idle account costs in memory: links one account in the simulated world, gives its recorded inputs to many
//! engines, and divides the growth of this process by their number.
//!
//! ```text
//! cargo run --release -p sim --example idle_memory [ENGINES]
//! ```

use sim::world::{Options, World};

/// Resident bytes of this process, as Linux counts them.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

fn main() {
    let count: usize = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(2000);
    let mut world = World::new(Options {
        record: true,
        ..Options::default()
    });
    world.link_all();
    // One conversation, then a minute of silence: sessions are in memory, nothing is under way.
    world.plan_text(0, 0, 1, "hello");
    world.plan_text(1_000_000, 1, 0, "hello yourself");
    world.run(world.now().mono.0 + 60_000_000);
    let account = &world.accounts()[0];
    let config = world.config();
    let revive = || account.revive(config.clone()).map(|(engine, _)| engine);
    // The first ones warm the allocator up.
    let warm: Vec<_> = (0..16).filter_map(|_| revive()).collect();
    let Some(before) = resident() else {
        eprintln!("this system has no /proc/self/statm");
        std::process::exit(2);
    };
    let engines: Vec<_> = (0..count).filter_map(|_| revive()).collect();
    let grown = resident().unwrap_or(before).saturating_sub(before);
    let cached = engines
        .first()
        .map_or(0, baton_core::engine::Engine::cached_bytes);
    println!(
        "{} idle engines: {:.1} KiB each ({cached} bytes of it cached rows)",
        engines.len(),
        grown as f64 / engines.len() as f64 / 1024.0
    );
    drop(warm);
}
