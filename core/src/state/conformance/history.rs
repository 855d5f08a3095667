//! Batches: whole, in order, under the right epoch; and one account's trouble is its own.

use super::*;

/// Many rows of many tables appear together; a batch that fails at its last row leaves no trace of its first.
pub async fn a_batch_applies_whole_or_not_at_all<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let keys: Vec<_> = Table::ALL
        .iter()
        .flat_map(|&table| samples::keys(table))
        .collect();
    owner
        .write(keys.iter().map(|key| (key.clone(), Some(record("old")))))
        .await;

    let changed = || keys.iter().map(|key| (key.clone(), Some(record("new"))));
    let bad = (Key::Mailbox("x".repeat(256).into()), Some(record("bad")));
    let batch = owner.batch(changed().chain([bad]));
    assert!(is_rejected(&commit(&store, [batch]).await[0]));
    owner.seq = Seq(owner.seq.0 - 1);
    for row in load(&store, &owner.id, keys.clone()).await {
        assert_eq!(row, Row::Present(record("old")));
    }
    // Other handles see all of a batch as well.
    owner.write(changed()).await;
    for row in load(&harness.open(), &owner.id, keys.clone()).await {
        assert_eq!(row, Row::Present(record("new")));
    }
}

/// The commit whose outcome was unknown is sent again: committed, and later rows stay as they are.
pub async fn a_batch_sent_again_changes_nothing<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let first = owner.batch([
        (Key::Counters, Some(record("first"))),
        (Key::PreKey(1), Some(record("key"))),
    ]);
    let second = owner.batch([
        (Key::Counters, Some(record("second"))),
        (Key::PreKey(1), None),
    ]);
    assert_eq!(commit(&store, [first.clone()]).await, [Outcome::Committed]);
    assert_eq!(commit(&store, [first.clone()]).await, [Outcome::Committed]);
    assert_eq!(
        commit(&store, [first.clone(), second.clone()]).await,
        [Outcome::Committed, Outcome::Committed]
    );
    assert_eq!(
        commit(&store, [second, first]).await,
        [Outcome::Committed, Outcome::Committed]
    );
    assert_eq!(
        owner.load(&Key::Counters).await,
        Row::Present(record("second"))
    );
    assert_eq!(owner.load(&Key::PreKey(1)).await, Row::Absent);
    owner.write([(Key::Counters, Some(record("third")))]).await;
    assert_eq!(
        owner.load(&Key::Counters).await,
        Row::Present(record("third"))
    );
}

/// A missing batch in between stops everything behind it, and nothing of that is written.
pub async fn a_gap_is_rejected<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let batches: Vec<_> = (0..4)
        .map(|n| owner.batch([(Key::PreKey(n + 1), Some(record("key")))]))
        .collect();
    let outcomes = commit(
        &store,
        [batches[0].clone(), batches[2].clone(), batches[3].clone()],
    )
    .await;
    assert_eq!(outcomes[0], Outcome::Committed);
    assert!(
        is_rejected(&outcomes[1]) && is_rejected(&outcomes[2]),
        "{outcomes:?}"
    );
    assert_eq!(owner.table(Table::PreKey).await.len(), 1);
    let mut zero = batches[0].clone();
    zero.seq = Seq(0);
    assert!(is_rejected(&commit(&store, [zero]).await[0]));
    let outcomes = commit(&store, batches).await;
    assert_eq!(outcomes, vec![Outcome::Committed; 4]);
    assert_eq!(owner.table(Table::PreKey).await.len(), 4);
}

/// One call carries a chain of batches; a later one sees what an earlier one did.
pub async fn batches_of_one_account_follow_each_other_in_one_call<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let chain: Vec<_> = (1..=50)
        .map(|n| {
            let written = (Key::PreKey(n), Some(record("key")));
            let gone = (Key::PreKey(n.saturating_sub(1).max(1)), None);
            let latest = (Key::Counters, Some(record(&n.to_string())));
            // A map keeps the last of two: the very first batch writes nothing but the counter.
            owner.batch([written, gone, latest])
        })
        .collect();
    assert_eq!(commit(&store, chain).await, vec![Outcome::Committed; 50]);
    assert_eq!(owner.load(&Key::Counters).await, Row::Present(record("50")));
    assert_eq!(
        owner.table(Table::PreKey).await,
        [(Key::PreKey(50), Row::Present(record("key")))]
    );
    assert_eq!(commit(&store, []).await, [], "no batches, no outcomes");
}

/// Several accounts, several batches each, and in their midst one that was taken over, one with a gap, one unknown.
pub async fn a_fenced_batch_does_not_fail_its_neighbours<H: Harness>(harness: H) {
    let store = harness.open();
    let tenants = [business("acme"), business("other")];
    let mut owners = Vec::new();
    for n in 0..6 {
        owners.push(Owner::create(&store, &tenants[n % 2], &format!("a{n}")).await);
    }
    // Account 2 changes hands.
    owners[2].release().await;
    let bob = join(&store, "bob", LONG).await;
    let by = granted(&store, &owners[2].id, bob).await.term.epoch;

    let mut call = Vec::new();
    let mut expected = Vec::new();
    for round in 1..=3_u32 {
        for (n, owner) in owners.iter_mut().enumerate() {
            let mut batch = owner.batch([(Key::PreKey(round), Some(record(&format!("{n}"))))]);
            expected.push(match n {
                2 => Outcome::Fenced { by },
                4 => {
                    batch.seq = Seq(batch.seq.0 + 1);
                    Outcome::Rejected(String::new())
                }
                5 => {
                    batch.account.device += 1000;
                    Outcome::Rejected(String::new())
                }
                _ => Outcome::Committed,
            });
            call.push(batch);
        }
    }
    let outcomes = commit(&store, call).await;
    assert_eq!(outcomes.len(), expected.len());
    for (i, (outcome, expected)) in outcomes.iter().zip(&expected).enumerate() {
        let fits = outcome == expected || (is_rejected(outcome) && is_rejected(expected));
        assert!(fits, "batch {i}: {outcome:?} instead of {expected:?}");
    }
    for (n, owner) in owners.iter().enumerate() {
        let rows = if matches!(n, 2 | 4 | 5) { 0 } else { 3 };
        assert_eq!(owner.table(Table::PreKey).await.len(), rows, "account {n}");
    }
}

/// The successor has written a batch of the same number: the deposed holder must not take it for its own.
pub async fn an_old_epoch_is_fenced_even_for_a_number_it_knows<H: Harness>(harness: H) {
    let store = harness.open();
    let mut alice = Owner::create(&store, &business("acme"), "main").await;
    alice
        .write([(Key::Counters, Some(record("alice 1")))])
        .await;
    let applied = alice.batch([(Key::Counters, Some(record("alice 2")))]);
    assert_eq!(
        commit(&store, [applied.clone()]).await,
        [Outcome::Committed]
    );
    let late = alice.batch([(Key::Counters, Some(record("alice 3")))]);
    alice.release().await;

    let mut bob = Owner::seize(&harness.open(), &alice.id).await;
    let fenced = Outcome::Fenced { by: bob.epoch() };
    let outcomes = commit(&store, [late.clone()]).await;
    assert_eq!(outcomes[0], fenced, "before the successor has written");
    bob.write([(Key::Counters, Some(record("bob 3")))]).await;
    assert_eq!(
        commit(&store, [late, applied]).await,
        [fenced.clone(), fenced],
        "after"
    );
    assert_eq!(
        bob.load(&Key::Counters).await,
        Row::Present(record("bob 3"))
    );
}

/// No grant, no write: neither epoch 0 of an account nobody ever claimed, nor one from the future, nor the right one
/// in the hands of somebody it was not given to.
pub async fn an_epoch_that_was_never_granted_is_rejected<H: Harness>(harness: H) {
    let store = harness.open();
    let id = store
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let who = join(&store, "host", LONG).await;
    let history = store.history().await.expect("history");
    let nobodys = |epoch| Batch {
        account: id.clone(),
        term: Term {
            epoch: Epoch(epoch),
            holder: who,
            history,
        },
        seq: Seq(1),
        reseal: false,
        at: UnixMillis(0),
        rows: [(Key::Counters, Some(record("nobody's")))].into(),
    };
    for epoch in [0, 1, history.epoch_floor().0] {
        let outcome = commit(&store, [nobodys(epoch)]).await.remove(0);
        assert!(is_rejected(&outcome), "epoch {epoch}: {outcome:?}");
    }
    let mut owner = Owner::claim(&store, &id, who).await;
    let future = nobodys(owner.epoch().0 + 1);
    assert!(
        is_rejected(&commit(&store, [future]).await[0]),
        "the next epoch"
    );
    let mut thief = nobodys(owner.epoch().0);
    thief.term.holder = new_life();
    let fenced = Outcome::Fenced { by: owner.epoch() };
    assert_eq!(commit(&store, [thief]).await, [fenced], "another life");
    assert_eq!(owner.load(&Key::Counters).await, Row::Absent);
    owner.write([]).await;
}

/// No account, no rows, whatever the call.
pub async fn an_account_that_does_not_exist_takes_nothing<H: Harness>(harness: H) {
    let store = harness.open();
    let who = join(&store, "host", LONG).await;
    for device in [0, 1, 77, i64::MAX as u64, u64::MAX] {
        let id = AccountId {
            business: business("acme"),
            device,
        };
        let term = Term {
            epoch: Epoch(1),
            holder: who,
            history: Seal::FIRST,
        };
        let mut nobody = Owner {
            store: store.clone(),
            id: id.clone(),
            term,
            seq: Seq(0),
        };
        let batch = nobody.batch([(Key::Counters, Some(record("x")))]);
        assert!(is_rejected(&commit(&store, [batch]).await[0]));
        assert_eq!(
            store.load(&id, vec![Key::Counters]).await,
            Err(StoreError::NoAccount)
        );
        assert_eq!(claim(&store, &id, who).await, Claim::Missing);
        let outcomes = store.confirm(vec![(id.clone(), term)]).await;
        assert!(is_rejected(&outcomes.expect("confirm")[0]));
        assert_eq!(store.delete_account(&id).await, Err(StoreError::NoAccount));
    }
}

/// Many threads with many accounts at once: every call gets its own answer, and nothing is lost.
pub async fn concurrent_calls_are_all_answered<H: Harness>(harness: H) {
    const THREADS: usize = 8;
    const ROUNDS: u32 = 30;
    let store = harness.open();
    let mut owners = Vec::new();
    for n in 0..THREADS {
        owners.push(Owner::create(&store, &business("acme"), &format!("a{n}")).await);
    }
    std::thread::scope(|scope| {
        for owner in &mut owners {
            scope.spawn(move || {
                block_on(async {
                    for round in 1..=ROUNDS {
                        let row = record(&format!("{}:{round}", owner.id));
                        owner.write([(Key::PreKey(round), Some(row.clone()))]).await;
                        assert_eq!(
                            owner.load(&Key::PreKey(round)).await,
                            Row::Present(row),
                            "own write"
                        );
                    }
                });
            });
        }
    });
    for owner in &owners {
        assert_eq!(owner.table(Table::PreKey).await.len(), ROUNDS as usize);
    }
}
