//! `baton demo` as a newcomer runs it.

use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

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

/// Found by hand: host processes went on, and held ports and files, when a demonstration was told to end.
#[test]
fn a_demonstration_that_is_interrupted_leaves_no_process_behind() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_baton"));
    demo.args(["demo", "--json", "--seconds", "30"])
        .stdout(Stdio::piped())
        // Its processes are of its group.
        .process_group(0);
    let mut demo = demo.spawn().unwrap();
    let group = demo.id().to_string();
    let of_the_group = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = processes.filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // pid (name) state ppid pgrp …
            let (_, rest) = stat.rsplit_once(") ")?;
            let mut words = rest.split(' ');
            (words.next() != Some("Z") && words.nth(1) == Some(&group)).then_some(())
        });
        stats.count()
    };
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| line.unwrap());
    assert!(lines.any(|line| line.contains("\"owns\"") || line.contains("traffic")));
    assert!(of_the_group() >= 3, "two hosts and itself");
    let mut kill = Command::new("sh");
    kill.arg("-c").arg(format!("kill -TERM {group}"));
    assert!(kill.status().unwrap().success());
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    let begin = Instant::now();
    while of_the_group() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "they live on");
        std::thread::sleep(Duration::from_millis(20));
    }
}
