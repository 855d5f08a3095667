//! One seed, one trace: in one process, beside other work, and in two processes that run at the same time.

use sim::tier_b::{Kind, Plan, Trouble, diff, diff_plans, run, run_with};
use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

/// Hashes of ten seeds. They hold on every machine, for every store, in dev and release builds.
///
/// A change of the engine, the drivers, the service or the plans changes them, and that is no fault: write the new ones
/// with `BLESS=1 cargo test -p sim --test determinism committed`. A change that should not have changed anything, and
/// did, is one.
const COMMITTED: [&str; 10] = include!("traces.in");

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..4 {
        let (first, second) = (run(seed, Kind::Memory), run(seed, Kind::Memory));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.lines, second.lines);
    }
}

#[test]
fn other_seeds_give_other_traces() {
    assert_ne!(run(1, Kind::Memory).hash, run(2, Kind::Memory).hash);
}

/// tokio numbers its tasks through the whole process, and some generators count per thread: other worlds beside and
/// before this one must not show.
#[test]
fn other_work_in_the_process_does_not_show() {
    let alone = run(5, Kind::Memory).hash;
    let threads: Vec<_> = (0..3)
        .map(|n| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for _ in 0..n {
                        tokio::spawn(async {}).await.unwrap();
                    }
                });
                run(5, Kind::Memory).hash
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), alone);
    }
}

#[test]
fn the_committed_traces_hold() {
    let found: Vec<String> = (0..10).map(|seed| run(seed, Kind::Memory).hash).collect();
    if std::env::var_os("BLESS").is_some() {
        let lines: String = found
            .iter()
            .map(|hash| format!("    \"{hash}\",\n"))
            .collect();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces.in");
        return std::fs::write(file, format!("[\n{lines}]\n")).unwrap();
    }
    assert_eq!(found, COMMITTED);
}

/// What the database keeps its rows in does not show, in no line of any of the committed traces.
#[test]
fn every_store_gives_the_same_trace() {
    let stores = Kind::available();
    for seed in 0..10 {
        match diff(seed, &stores) {
            Ok(lines) => assert!(lines > 500, "seed {seed}: {lines} lines say little"),
            Err(difference) => panic!("seed {seed}: {difference}"),
        }
    }
}

/// Comparing stops where it should: at the first act of what is different.
#[test]
fn a_difference_is_found_where_it_is() {
    let plan = Plan::draw(0, Kind::Memory);
    let mut other = plan.clone();
    let last = other.troubles.last().map_or(0, |(at, _)| *at);
    let trouble = Trouble::Jump {
        host: "a".to_owned(),
        millis: 77,
    };
    other.troubles.push((last + 1, trouble));
    let plans = vec![("without".to_owned(), plan), ("with".to_owned(), other)];
    let difference = diff_plans(plans).unwrap_err();
    let said = difference.said[1].1.as_deref().unwrap_or_default();
    assert!(
        said.ends_with("world the wall clock of a jumps by 77 ms"),
        "{difference}"
    );
    assert!(difference.line > 100, "{difference}");
}

/// The meta-test: two processes, started together, line by line; it stops at the first difference. Each store is in it.
#[test]
fn two_processes_say_the_same_line_by_line() {
    let stores = Kind::available();
    for (seed, store) in ["3", "6", "8"].into_iter().zip(stores) {
        let start = |noise: &str, store: Kind| {
            Command::new(env!("CARGO_BIN_EXE_sim"))
                .args(["run", "--tier", "b", "--trace", "--seeds", "1"])
                .args(["--from", seed, "--backend", &store.to_string()])
                // Another layout of the environment and, where the system does that, of memory.
                .env("NOISE", noise)
                .env("RUST_LOG", "off")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut one = start("", Kind::Memory);
        let mut other = start(&"x".repeat(4000), store);
        let lines = |child: &mut std::process::Child| {
            BufReader::new(child.stdout.take().unwrap())
                .lines()
                .map(|line| line.unwrap())
                // The last lines say how long it took.
                .filter(|line| !line.contains("seeds a minute"))
        };
        let (mut ours, mut theirs) = (lines(&mut one), lines(&mut other));
        let mut count = 0;
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => break,
                (a, b) => assert_eq!(a, b, "seed {seed} on {store}, line {count}"),
            }
            count += 1;
        }
        assert!(one.wait().unwrap().success() && other.wait().unwrap().success());
        assert!(count > 500, "{count} lines say little");
    }
}

/// A plan is data: drawing it twice gives the same, and running it does not change it.
#[test]
fn plans_are_drawn_before_the_first_step() {
    for seed in 0..50 {
        let plan = Plan::draw(seed, Kind::Memory);
        assert_eq!(plan.to_string(), Plan::draw(seed, Kind::Memory).to_string());
    }
    let plan = Plan::draw(9, Kind::Memory);
    let words = plan.to_string();
    assert_eq!(run_with(plan, |_| {}).plan.to_string(), words);
}
