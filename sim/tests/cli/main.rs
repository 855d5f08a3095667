//! Each subcommand, as somebody at a terminal has it.

mod timeline;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// What a command has said, and whether it was content.
struct Said {
    out: String,
    err: String,
    good: bool,
}

fn sim(args: &[&str]) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(args)
        .env("RUST_LOG", "off")
        .output()
        .unwrap();
    Said {
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
        good: status.success(),
    }
}

impl Said {
    fn last(&self) -> &str {
        self.out.lines().last().unwrap_or_default()
    }

    fn has(&self, words: &str) {
        assert!(self.out.contains(words), "no {words:?} in:\n{}", self.out);
    }

    fn trace(&self) -> &str {
        let mut lines = self.out.lines();
        lines.find(|line| line.starts_with("trace ")).unwrap()
    }
}

fn file(dir: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
    let path = dir.path().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

/// The last line says what came of it, the one before how fast it was; nothing is drawn where nobody looks.
#[test]
fn run_counts_and_says_how_fast() {
    let said = sim(&["run", "--seeds", "3", "--crypto", "stand-in"]);
    assert_eq!(said.last(), "3 passed, 0 failed");
    assert!(said.good);
    said.has(" seeds a minute on ");
    said.has(" gaps, which says nothing of fewer than ");
    assert_eq!(said.err, "");
    let said = sim(&["run", "--tier", "b", "--seeds", "1", "--from", "3"]);
    assert_eq!(said.last(), "1 passed, 0 failed");
    said.has(" seeds a minute on ");
}

/// The batch of both tiers that every change has to pass; docs/simulation.md has the long ones.
#[test]
fn batches_of_both_tiers_pass() {
    for (tier, seeds) in [("a", 5000), ("b", 200)] {
        let said = sim(&["run", "--tier", tier, "--seeds", &seeds.to_string()]);
        assert!(said.good, "{}", said.out);
        assert_eq!(said.last(), format!("{seeds} passed, 0 failed"));
    }
}

/// A plan is a file that says what the seed says, and it can be cut short.
#[test]
fn a_plan_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, name) = file(&dir, "plan.json");
    let plan = sim(&["plan", "5"]);
    std::fs::write(&path, &plan.out).unwrap();
    let seed = sim(&["replay", "5"]);
    let again = sim(&["replay", "--plan", &name, "--quiet"]);
    assert!(seed.good && again.good);
    assert_eq!(seed.trace(), again.trace());
    seed.has("nothing was wrong: ");
    seed.has(" > Transmit");
    assert!(!again.out.contains(" > Transmit"));
    let words = sim(&["plan", "5", "--words"]);
    assert!(seed.out.starts_with(&words.out));
    // What was planned and has not happened by then is missed.
    let short = sim(&["replay", "5", "--until", "3"]);
    assert_ne!(short.trace(), seed.trace());
    assert!(short.out.len() < seed.out.len());
}

/// What fails is named, drawn, made smaller, and fails again.
#[test]
fn what_fails_is_shrunk_and_fails_again() {
    let dir = tempfile::tempdir().unwrap();
    let bug = ["--bug", "forgets-outbox"];
    let replay = |seed: u64| sim(&["replay", &seed.to_string(), "--quiet", bug[0], bug[1]]);
    let seed = (0..50).find(|seed| !replay(*seed).good).unwrap();
    let (path, name) = file(&dir, "small.json");
    let shrunk = sim(&[
        "shrink",
        &seed.to_string(),
        "--seconds",
        "4",
        bug[0],
        bug[1],
        "--out",
        &name,
    ]);
    assert!(shrunk.good, "{}", shrunk.out);
    let judge = shrunk.out.split(':').next().unwrap();
    shrunk.has("again with: sim replay --plan ");
    assert!(path.exists());
    let (page, html) = file(&dir, "small.html");
    let again = sim(&["replay", "--plan", &name, "--quiet", "--html", &html]);
    assert!(!again.good);
    again.has(judge);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(&format!("\"judge\":\"{judge}\"")));
    let well = sim(&["shrink", "5", "--seconds", "1"]);
    assert!(!well.good);
    well.has("nothing is wrong with it");
}

#[test]
fn a_hunt_ends_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let said = sim(&["hunt", "--minutes", "0.01", "--from", "7", "--out", out]);
    assert!(said.good, "{}", said.out);
    assert!(said.out.starts_with("from seed 7\n"));
    said.has(" seeds a minute");
    assert!(said.last().ends_with(" passed, 0 failed"));
    assert!(!said.last().starts_with("0 "));
}

/// A handful of seeds cannot have reached everything, and `cover` does not let that pass.
#[test]
fn cover_fails_where_something_was_never_reached() {
    let said = sim(&["cover", "--seeds", "2"]);
    assert!(!said.good);
    said.has("never reached: when ");
    said.has("sometimes points (");
    said.has("kinds of faults (");
    assert_eq!(said.last(), "2 passed, 0 failed");
}

#[test]
fn a_bug_is_found_by_name() {
    let said = sim(&["bugs", "forgets-outbox", "--seeds", "24"]);
    assert!(said.good, "{}", said.out);
    said.has("| `forgets-outbox` |");
    assert!(!said.out.contains("nobody"));
    assert!(!sim(&["bugs", "no-such-bug"]).good);
}

#[test]
fn two_processes_say_the_same() {
    let said = sim(&["meta", "2", "3"]);
    assert!(said.good, "{}", said.out);
    let lines = said.out.lines();
    assert_eq!(
        lines
            .filter(|line| line.ends_with(" lines, twice the same"))
            .count(),
        2
    );
    let said = sim(&["meta", "--tier", "b", "3"]);
    assert!(said.good, "{}", said.out);
    assert!(said.out.starts_with("seed 3: "));
}

/// The model and a real store, by the names that people use.
#[test]
fn stores_do_not_differ() {
    let said = sim(&["diff", "3", "--stores", "model,sqlite"]);
    assert!(said.good, "{}", said.out);
    assert!(said.last().ends_with(" lines, the same on memory, sqlite"));
    assert!(!sim(&["diff", "3", "--stores", "model"]).good);
}
