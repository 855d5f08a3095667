//! Named disasters over the real drivers, on every store there is. Each file is a story: the hosts, the disaster, what
//! must hold.

mod clock_jump;
mod commit_outcome_unknown;
mod crash_at_every_output;
mod database_failover_lost_commits;
mod database_stall;
mod frozen_host;
mod half_open_socket;
mod hand_over_under_load;
mod lost_release;
mod pre_key_race;
mod reconnect_storm;
mod rolling_upgrade;
mod service_restart;
mod session_race;
mod split_brain;
mod stream_replaced;
mod two_incarnations_of_one_host;

use sim::{
    tier_b::{Kind, Setup, World},
    world::Verdict,
};

/// A lease, the next renewal of whoever finds it run out, the next claim, a connection and a login.
const TAKEOVER: u64 = 6_000 + 1_000 + 500 + 1_500;

/// Tells the story on every store; says which.
fn on_every_store(setup: Setup, story: impl Fn(World)) {
    for backend in Kind::available() {
        println!("--- on {backend}");
        let mut world = World::new(Setup {
            backend,
            ..setup.clone()
        });
        world.link_all();
        story(world);
    }
}

/// One text from each party to another every `every` milliseconds, for `millis`: accounts to accounts and phones, phones
/// to accounts, some of those with an answer.
fn talk(world: &mut World, accounts: usize, millis: u64, every: u64) {
    for n in 0..millis / every {
        let from = usize::try_from(n).unwrap() % accounts;
        match n % 4 {
            0 => drop(world.text(from, accounts, &format!("to a phone {n}"))),
            1 => world.phone_text(0, from, &format!("echo {n}")),
            2 => world.phone_text(0, from, &format!("text {n}")),
            _ => drop(world.text(from, (from + 1) % accounts, &format!("text {n}"))),
        }
        world.run(every);
    }
}

fn assert_good(world: &World, verdict: &Verdict) {
    assert!(
        verdict.is_good(),
        "{verdict:#?}\nmet {:?}\n{:#?}",
        world.effects(),
        world.books(|books| {
            let words = books.iter().map(|book| {
                format!(
                    "{}: owners {:?}, stops {:?}, notices {:?}",
                    book.phone, book.owners, book.stops, book.notices
                )
            });
            words.collect::<Vec<_>>()
        })
    );
}

/// The host that owns account 0, and another one.
fn owner_and_other(world: &World) -> (String, String) {
    let owner = world.owner(0).expect("account 0 is online");
    let other = if owner == "a" { "b" } else { "a" };
    (owner, other.to_owned())
}

/// When account 0 came online on `host` after `since`.
fn online_at(world: &World, host: &str, since: u64) -> Option<u64> {
    world.books(|books| {
        let mut onlines = books[0].onlines.iter();
        onlines
            .find(|(at, on)| at / 1000 >= since && on == host)
            .map(|(at, _)| at / 1000)
    })
}
