//! `kill -9` at random moments of traffic. `BATON_KILLS=200 cargo test -p baton kills` is the long run; `BATON_SEED`
//! chooses another one.

use baton_gateway::stage::{Plan, Size, Staging, play};
use std::time::Duration;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing() {
    let kills = number("BATON_KILLS").map_or(10, |kills| usize::try_from(kills).unwrap());
    let seed = number("BATON_SEED").unwrap_or(7);
    // A burst of 48 messages around each kill, and something in between.
    let size = Size {
        accounts: 6,
        messages: kills * 60 + 40,
        over: Duration::from_millis(u64::try_from(kills).unwrap() * 400 + 500),
        nodes: 2,
        kills,
    };
    let plan = Plan::draw(seed, size);
    let scratch = tempfile::tempdir().unwrap();
    let staging = Staging::new(
        env!("CARGO_BIN_EXE_baton").into(),
        scratch.path().to_owned(),
    );
    let mut told = Vec::new();
    let verdict = play(&plan, &staging, &mut |beat| {
        told.push(format!("{:?}", beat))
    })
    .await
    .unwrap();
    let longest = verdict.takeovers.iter().max().copied().unwrap_or_default();
    let mut sorted = verdict.takeovers.clone();
    sorted.sort();
    println!(
        "{kills} kills (seed {seed}): {} messages, {} events shown again, {} messages sent again, takeover p50 {:?}, \
         longest {longest:?}",
        verdict.sent,
        verdict.shown_again,
        verdict.resent,
        sorted.get(sorted.len() / 2),
    );
    if !verdict.is_clean() {
        let kept = scratch.keep();
        panic!(
            "seed {seed}: {verdict:#?}\n{}\nlogs: {}",
            told.join("\n"),
            kept.display()
        );
    }
    assert_eq!(
        (verdict.sent, verdict.received),
        (plan.messages.len(), plan.messages.len())
    );
    assert_eq!(verdict.takeovers.len(), kills);
    assert!(longest < Duration::from_secs(7), "{longest:?}");
}
