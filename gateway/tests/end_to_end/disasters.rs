//! Every disaster of `baton demo`, in short: whatever it takes, and however long, nothing is lost, doubled, reordered,
//! or encrypted under a key that was used.
//!
//! `BATON_SOAK=300 cargo test --release -p baton soak -- --nocapture` kills hosts in turn for so many seconds; with
//! `BATON_SOAK_STORE=postgres://…` on an empty database there. `scripts/soak` is both.

use baton_gateway::stage::{Disaster, Plan, Size, Staging, Verdict, play};
use std::time::Duration;

struct Play {
    size: Size,
    seed: u64,
    staging: fn(Staging) -> Staging,
    store: Option<String>,
}

/// Few accounts, one blow.
const SMALL: Size = Size {
    accounts: 4,
    messages: 90,
    over: Duration::from_millis(1_500),
    nodes: 2,
    kills: 1,
};

async fn small(staging: fn(Staging) -> Staging) -> Verdict {
    clean(Play {
        size: SMALL,
        seed: 11,
        staging,
        store: None,
    })
    .await
}

async fn clean(wanted: Play) -> Verdict {
    let (told, verdict, scratch) = played(&wanted).await;
    if !verdict.is_clean() {
        let kept = scratch.keep();
        panic!(
            "{verdict:#?}\n{}\nlogs: {}",
            told.join("\n"),
            kept.display()
        );
    }
    assert_eq!(
        (verdict.sent, verdict.received),
        (wanted.size.messages, wanted.size.messages)
    );
    verdict
}

async fn played(wanted: &Play) -> (Vec<String>, Verdict, tempfile::TempDir) {
    let plan = Plan::draw(wanted.seed, wanted.size);
    let scratch = tempfile::tempdir().unwrap();
    let staging = Staging {
        store: wanted.store.clone(),
        ..Staging::new(
            env!("CARGO_BIN_EXE_baton").into(),
            scratch.path().to_owned(),
        )
    };
    let mut told = Vec::new();
    let verdict = play(&plan, &(wanted.staging)(staging), &mut |beat| {
        told.push(format!("{:?}", beat));
    })
    .await
    .unwrap();
    (told, verdict, scratch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_killed_is_noticed_by_its_lease_alone() {
    let verdict = small(|staging| Staging {
        presence: false,
        ..staging
    })
    .await;
    assert!(!verdict.takeovers.is_empty());
    assert!(verdict.splits.iter().all(|split| split.total >= split.gone));
}

/// The only host dies; the next one finds everything in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_host_is_replaced_by_itself() {
    let size = Size { nodes: 1, ..SMALL };
    let verdict = clean(Play {
        size,
        seed: 5,
        staging: |staging| Staging {
            revive: true,
            ..staging
        },
        store: None,
    })
    .await;
    assert_eq!(verdict.splits.len(), size.accounts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_host_is_refused_when_it_comes_back() {
    let verdict = small(|staging| Staging {
        disaster: Disaster::Pause,
        ..staging
    })
    .await;
    assert!(verdict.refused > 0);
    assert_eq!(verdict.refused, verdict.splits.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_cut_off_falls_silent_and_is_refused() {
    let verdict = small(|staging| Staging {
        disaster: Disaster::Partition,
        ..staging
    })
    .await;
    assert!(verdict.refused > 0);
    assert_eq!(verdict.refused, verdict.splits.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_host_hands_everything_over() {
    let verdict = small(|staging| Staging {
        disaster: Disaster::Drain,
        ..staging
    })
    .await;
    assert!(!verdict.splits.is_empty());
    assert_eq!(verdict.refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_replaced_one_after_another() {
    let verdict = small(|staging| Staging {
        disaster: Disaster::Rolling,
        ..staging
    })
    .await;
    assert_eq!(verdict.takeovers.len(), 2);
    assert_eq!(verdict.refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_answers_nobody_for_a_while_costs_nothing() {
    small(|staging| Staging {
        disaster: Disaster::StoreStall,
        ..staging
    })
    .await;
}

/// The judge is not blind: without fences the same play ends in damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_fencing_there_is_damage_and_it_is_seen() {
    let wanted = Play {
        size: Size {
            messages: 400,
            over: Duration::from_secs(12),
            ..SMALL
        },
        seed: 1,
        staging: |staging| Staging {
            disaster: Disaster::Naive,
            ..staging
        },
        store: None,
    };
    let (told, verdict, _scratch) = played(&wanted).await;
    assert!(!verdict.is_clean(), "{}", told.join("\n"));
    assert!(
        verdict.two_connections > 0,
        "{verdict:#?}\n{}",
        told.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak() {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let seconds = number("BATON_SOAK").unwrap_or(12);
    let accounts = number("BATON_SOAK_ACCOUNTS").unwrap_or(12);
    // One blow in twelve seconds: the next host is hit when the last has come back.
    let kills = usize::try_from(seconds / 12).unwrap().max(2);
    let verdict = clean(Play {
        size: Size {
            accounts: usize::try_from(accounts).unwrap(),
            messages: usize::try_from(seconds * 20).unwrap(),
            over: Duration::from_secs(seconds),
            nodes: 2,
            kills,
        },
        seed: number("BATON_SEED").unwrap_or(3),
        staging: |staging| Staging {
            revive: true,
            ..staging
        },
        store: std::env::var("BATON_SOAK_STORE").ok(),
    })
    .await;
    println!(
        "{kills} kills in {seconds} s, {accounts} accounts, {} messages: {} events shown again, {} messages sent again",
        verdict.sent, verdict.shown_again, verdict.resent
    );
    assert_eq!(verdict.takeovers.len(), kills);
}
