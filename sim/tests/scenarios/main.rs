//! Named disasters over the real drivers, on every store there is. Each file is a story: the hosts, the disaster, what
//! must hold.

mod app_state_fork;
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
use std::sync::Arc;

/// A lease, the next renewal of whoever finds it run out, the next claim, a connection and a login.
const TAKEOVER: u64 = 6_000 + 1_000 + 500 + 1_500;

/// Tells the story on every store; says which. Each tells it word for word as the first one does, or the test ends at
/// the first line of the trace that differs.
fn on_every_store(setup: Setup, story: impl Fn(&mut World)) {
    on_stores(Kind::available(), setup, story);
}

fn on_stores(stores: Vec<Kind>, setup: Setup, story: impl Fn(&mut World)) {
    let mut told: Option<Arc<[String]>> = None;
    for backend in stores {
        println!("--- on {backend}");
        let mut world = World::new(Setup {
            backend,
            ..setup.clone()
        });
        match &told {
            None => world.trace().keep(),
            Some(lines) => world.trace().listen(as_told(Arc::clone(lines))),
        }
        world.link_all();
        story(&mut world);
        let lines = told.get_or_insert_with(|| world.trace().lines().into());
        assert_eq!(world.trace().count(), lines.len() as u64, "lines in all");
    }
}

/// Compares each line with the one in its place, and panics at the first that differs.
fn as_told(lines: Arc<[String]>) -> impl FnMut(&str) {
    let mut next = 0;
    move |line| {
        let expected = lines.get(next).map(String::as_str);
        let before = &lines[next.saturating_sub(8).min(lines.len())..next.min(lines.len())];
        assert_eq!(Some(line), expected, "line {next}, after {before:#?}");
        next += 1;
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
