//! Real races: threads that fight for one account as processes would.

use super::*;
use crate::state::EventSeq;

/// Two processes that both believe to own an account, over and over, as fast as they can. Afterwards the history has
/// to read as if they had taken turns: every number written once, by who was told that it was committed, under epochs
/// that never fall.
pub async fn racing_processes_write_one_history<H: Harness>(harness: H) {
    const TERMS: u64 = 40;
    const BATCHES: u64 = 6;
    let judge = harness.open();
    let id = judge
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let stores: Vec<H::Store> = (0..3).map(|_| harness.open()).collect();
    // What each racer was told is committed: (number, epoch, content).
    let told: Vec<Vec<(Seq, Epoch, Record)>> = std::thread::scope(|scope| {
        let racers: Vec<_> = stores
            .into_iter()
            .map(|store| {
                let id = id.clone();
                scope.spawn(move || block_on(race(store, id, TERMS, BATCHES)))
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().expect("a racer"))
            .collect()
    });

    let applied = Owner::seize(&judge, &id).await.seq;
    let rows = whole_table(&judge, &id, Table::Inbox, 100).await;
    assert_eq!(rows.len() as u64, applied.0, "one row per applied batch");
    let mut last = Epoch(0);
    for ((key, row), n) in rows.iter().zip(1_u64..) {
        assert_eq!(*key, Key::Inbox(EventSeq(n)), "no gaps");
        let Row::Present(content) = row else {
            panic!("{key:?} is {row:?}")
        };
        let writers: Vec<_> = told
            .iter()
            .flatten()
            .filter(|(seq, ..)| seq.0 == n)
            .collect();
        // Nobody is told Committed for somebody else's batch; an answer may only be missing if nobody asked again.
        assert!(
            writers.len() == 1,
            "batch {n} was reported committed to {} racers",
            writers.len()
        );
        let (_, epoch, expected) = writers[0];
        assert_eq!(content, expected, "batch {n} holds what its writer wrote");
        assert!(*epoch >= last, "batch {n} of {epoch:?} behind {last:?}");
        last = *epoch;
    }
    let reported: usize = told.iter().map(Vec::len).sum();
    assert_eq!(
        reported as u64, applied.0,
        "everything reported committed is there"
    );
}

async fn race<S: Store>(
    store: S,
    id: AccountId,
    terms: u64,
    batches: u64,
) -> Vec<(Seq, Epoch, Record)> {
    let mut told = Vec::new();
    for term in 0..terms {
        let mut owner = Owner::seize(&store, &id).await;
        for n in 0..batches {
            let content = record(&format!("{:?} {term} {n}", owner.who()));
            let key = Key::Inbox(EventSeq(owner.seq.0 + 1));
            let batch = owner.batch([(key, Some(content.clone()))]);
            let seq = batch.seq;
            // Every third batch is sent twice in one call, as after a lost answer.
            let call = if n % 3 == 0 {
                vec![batch.clone(), batch]
            } else {
                vec![batch]
            };
            let outcomes = commit(&store, call).await;
            match &outcomes[0] {
                Outcome::Committed => told.push((seq, owner.epoch(), content)),
                Outcome::Fenced { by } => {
                    assert!(
                        *by > owner.epoch(),
                        "fenced by {by:?} at {:?}",
                        owner.epoch()
                    );
                    break;
                }
                other => panic!("the holder's next batch: {other:?}"),
            }
            assert!(
                outcomes.iter().all(|outcome| *outcome == outcomes[0]),
                "{outcomes:?}"
            );
        }
    }
    told
}
