//! Seals: what a database that may have lost commits does to terms.

use super::*;

/// Whatever was granted in the old history writes nothing in the new one.
pub async fn a_new_generation_fences_every_term<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owners = Vec::new();
    for name in ["one", "two"] {
        owners.push(Owner::create(&store, &business("acme"), name).await);
    }
    for owner in &mut owners {
        owner.write([(Key::Counters, Some(record("before")))]).await;
    }
    let before = store.history().await.expect("history");
    let after = store.renew_history(before).await.expect("renew");
    assert_eq!(
        (after.timeline, after.generation),
        (before.timeline, before.generation + 1)
    );
    assert_eq!(harness.open().history().await, Ok(after));
    let unsealed = Outcome::Unsealed { history: after };
    for owner in &mut owners {
        let late = owner.batch([(Key::Counters, Some(record("late")))]);
        let mut again = late.clone();
        again.reseal = true;
        let mut repeated = late.clone();
        repeated.seq = Seq(1);
        let outcomes = commit(&store, [late, again, repeated]).await;
        assert_eq!(outcomes, vec![unsealed.clone(); 3]);
        let terms = vec![(owner.id.clone(), owner.term)];
        let confirmed = store.confirm(terms).await.expect("confirm");
        assert_eq!(confirmed, vec![unsealed.clone()]);
        let row = owner.load(&Key::Counters).await;
        assert_eq!(row, Row::Present(record("before")));
    }
    let view = beat(&store, owners[0].who(), LONG).await;
    assert_eq!(view.history, after);
}

/// A new term in the new history may only begin with the batch that re-seals; behind it all is as ever. The seal is
/// the account's: later holders need not do it again.
pub async fn an_account_is_sealed_by_a_batch_of_its_owner<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    owner.write([]).await;
    let before = store.history().await.expect("history");
    let after = store.renew_history(before).await.expect("renew");
    let lease = granted(&store, &owner.id, owner.who()).await;
    assert_eq!((lease.term.history, lease.sealed), (after, before));
    assert_eq!(lease.sealed.losses_until(lease.term.history), 1);
    let mut owner = Owner::of(&store, &owner.id, lease);
    let early = owner.batch([(Key::Counters, Some(record("early")))]);
    let unsealed = Outcome::Unsealed { history: after };
    assert_eq!(commit(&store, [early]).await, [unsealed]);
    owner.seq = lease.applied;
    // It is a commit of nothing that is asked for here, and the term is in force.
    let confirmed = store.confirm(vec![(owner.id.clone(), owner.term)]).await;
    assert_eq!(confirmed, Ok(vec![Outcome::Committed]));

    let mut reseal = owner.batch([(Key::Counters, Some(record("ahead")))]);
    reseal.reseal = true;
    let normal = owner.batch([(Key::PreKey(1), Some(record("key")))]);
    let call = [reseal.clone(), normal, reseal];
    assert_eq!(commit(&store, call).await, vec![Outcome::Committed; 3]);
    let next = granted(&harness.open(), &owner.id, owner.who()).await;
    assert_eq!((next.sealed, next.applied), (after, owner.seq));
    Owner::of(&store, &owner.id, next).write([]).await;
    // A loss that nobody had made good before the next one counts twice.
    let twice = store.renew_history(after).await.expect("renew");
    let twice = store.renew_history(twice).await.expect("renew");
    let lease = granted(&store, &owner.id, owner.who()).await;
    assert_eq!((lease.term.history, lease.sealed), (twice, after));
    assert_eq!(lease.sealed.losses_until(twice), 2);
}

/// Many hosts may notice the same loss: it is counted once.
pub async fn a_generation_begins_once<H: Harness>(harness: H) {
    let store = harness.open();
    let first = store.history().await.expect("history");
    let stores: Vec<H::Store> = (0..4).map(|_| harness.open()).collect();
    let answers: Vec<Seal> = std::thread::scope(|scope| {
        let calls: Vec<_> = stores
            .iter()
            .map(|store| scope.spawn(move || block_on(store.renew_history(first))))
            .collect();
        let join = |call: std::thread::ScopedJoinHandle<'_, Result<Seal, StoreError>>| {
            call.join().expect("a thread").expect("renew")
        };
        calls.into_iter().map(join).collect()
    });
    let second = Seal {
        generation: first.generation + 1,
        ..first
    };
    assert_eq!(answers, [second; 4]);
    let store = harness.restart(store);
    assert_eq!(store.history().await, Ok(second));
    assert_eq!(store.renew_history(first).await, Ok(second));
}
