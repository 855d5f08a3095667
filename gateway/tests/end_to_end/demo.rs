//! `baton demo` as a newcomer runs it.

use serde_json::Value;
use std::process::{Command, Output};

fn demo(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_baton"))
        .arg("demo")
        .args(flags)
        .output()
        .unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What does not depend on speed.
fn fixed(objects: &[Value]) -> Vec<Value> {
    let mut fixed: Vec<Value> = objects
        .iter()
        .filter(|o| o["event"] == "message")
        .cloned()
        .collect();
    let verdict = objects.last().unwrap();
    for name in [
        "event",
        "seed",
        "ok",
        "sent",
        "received",
        "lost",
        "duplicated",
        "reordered",
        "keys_used_twice",
    ] {
        fixed.push(verdict[name].clone());
    }
    fixed
}

#[test]
fn a_seed_gives_the_same_ids_and_counts() {
    let flags = ["--seed", "1", "--seconds", "2", "--accounts", "4", "--json"];
    let runs = [demo(&flags), demo(&flags)].map(|output| {
        assert!(output.status.success(), "{output:?}");
        objects(&output)
    });
    let (first, second) = (fixed(&runs[0]), fixed(&runs[1]));
    assert_eq!(first, second);
    assert_eq!(
        runs[0]
            .iter()
            .filter(|object| object["event"] == "message")
            .count(),
        120
    );
    assert!(runs[0].iter().any(|object| object["event"] == "killed"));
    assert!(runs[0].iter().any(|object| object["event"] == "took_over"));
    let verdict = runs[0].last().unwrap();
    assert_eq!(
        (&verdict["event"], &verdict["ok"], &verdict["sent"]),
        (&"verdict".into(), &true.into(), &120.into())
    );
    assert_ne!(
        fixed(&objects(&demo(&[
            "--seed",
            "2",
            "--seconds",
            "1",
            "--json"
        ]))),
        first
    );
}

#[test]
fn people_get_a_timeline_and_a_verdict() {
    let output = demo(&["--seconds", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in [
        "simulated WhatsApp on 127.0.0.1:",
        "killed (SIGKILL)",
        "lost 0  duplicated 0  reordered 0",
        "all is well",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn wrong_flags_are_status_2() {
    for flags in [
        &["--seed", "x"][..],
        &["--accounts", "1"],
        &["--seconds", "0"],
        &["--disaster", "flood"],
        &["--hosts", "1", "--disaster", "pause"],
        &["--hosts", "0"],
        &["--nonsense"],
    ] {
        assert_eq!(demo(flags).status.code(), Some(2), "{flags:?}");
    }
}
