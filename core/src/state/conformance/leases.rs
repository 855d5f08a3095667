//! Ownership: who may claim, renew and release, and what an epoch is worth.

use super::*;
use crate::state::{Renewal, StoreError};

/// A held account is not given away, whichever process asks; its holder may claim again and gets a new epoch.
pub async fn an_account_is_claimed_by_one<H: Harness>(harness: H) {
    let store = harness.open();
    let id = store
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let first = granted(&store, &id, ALICE, LONG).await;
    assert_eq!((first.applied, first.ttl), (Seq(0), LONG));
    for handle in [store.clone(), harness.open()] {
        match handle.claim(&id, BOB, LONG).await.expect("claim") {
            Claim::Held { by, remaining } => {
                assert_eq!(by, ALICE);
                assert!(remaining > Micros(0) && remaining <= LONG, "{remaining:?}");
            }
            Claim::Granted(lease) => panic!("granted twice: {lease:?}"),
        }
    }
    let again = granted(&store, &id, ALICE, LONG).await;
    assert!(
        again.epoch > first.epoch,
        "a claim is a new term, also for the same holder"
    );
    let other = store
        .create_account(&business("acme"), "other")
        .await
        .expect("create");
    granted(&store, &other, BOB, LONG).await;
}

/// After its time a lease can be taken; until somebody does, the holder's batches are still good.
pub async fn a_lease_runs_out<H: Harness>(harness: H) {
    let store = harness.open();
    let id = store
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let mut alice = Owner::claim(&store, &id, ALICE, SHORT).await;
    harness.advance(PAUSE);
    alice
        .write([(
            Key::Counters,
            Some(record("late, but nobody else is there")),
        )])
        .await;
    let mut bob = Owner::claim(&store, &id, BOB, LONG).await;
    assert!(bob.epoch > alice.epoch);
    assert_eq!(bob.seq, alice.seq);
    let late = alice.batch([(Key::Counters, Some(record("too late")))]);
    assert_eq!(
        commit(&store, [late]).await,
        [Outcome::Fenced { by: bob.epoch }]
    );
    bob.write([]).await;
    // A lease of no length is over at once.
    let other = store
        .create_account(&business("acme"), "other")
        .await
        .expect("create");
    granted(&store, &other, ALICE, Micros(0)).await;
    granted(&store, &other, BOB, LONG).await;
}

/// One answer per account: prolonged, or lost and to whom.
pub async fn renewal_prolongs_and_tells_who_has_lost<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owners = Vec::new();
    for name in ["kept", "taken", "given-up", "stale"] {
        let id = store
            .create_account(&business("acme"), name)
            .await
            .expect("create");
        owners.push(Owner::claim(&store, &id, ALICE, SHORT).await);
    }
    harness.advance(PAUSE);
    let (kept, taken, given_up, stale) = (&owners[0], &owners[1], &owners[2], &owners[3]);
    let by = granted(&store, &taken.id, BOB, LONG).await.epoch;
    store
        .release(&given_up.id, ALICE, given_up.epoch)
        .await
        .expect("release");
    let newer = granted(&store, &stale.id, ALICE, LONG).await.epoch;

    let leases = owners
        .iter()
        .map(|owner| (owner.id.clone(), owner.epoch))
        .collect();
    let answers = store.renew(ALICE, leases, LONG).await.expect("renew");
    let lost = |by| Renewal::Lost { by };
    assert_eq!(
        answers,
        [
            Renewal::Renewed,
            lost(by),
            lost(given_up.epoch),
            lost(newer)
        ]
    );
    // Prolonged: what had run out is held again.
    let held = store.claim(&kept.id, BOB, LONG).await.expect("claim");
    assert!(matches!(held, Claim::Held { by: ALICE, .. }), "{held:?}");
    // Losing does not touch the new holder's lease, and nobody renews for another.
    let answers = store
        .renew(ALICE, vec![(taken.id.clone(), by)], LONG)
        .await
        .expect("renew");
    assert_eq!(answers, [lost(by)]);
    let answers = store
        .renew(BOB, vec![(taken.id.clone(), by)], LONG)
        .await
        .expect("renew");
    assert_eq!(answers, [Renewal::Renewed]);
    assert_eq!(store.renew(ALICE, vec![], LONG).await, Ok(vec![]));
}

/// Only the holder can give up, only its current term; the next claim is granted at once under a higher epoch.
pub async fn release_frees_and_keeps_the_epoch<H: Harness>(harness: H) {
    let store = harness.open();
    let mut alice = Owner::create(&store, &business("acme"), "main").await;
    let held = |claim| matches!(claim, Ok(Claim::Held { by: ALICE, .. }));
    store
        .release(&alice.id, BOB, alice.epoch)
        .await
        .expect("release by a stranger");
    assert!(held(store.claim(&alice.id, BOB, LONG).await));
    store
        .release(&alice.id, ALICE, Epoch(alice.epoch.0 - 1))
        .await
        .expect("release of an old term");
    assert!(held(store.claim(&alice.id, BOB, LONG).await));
    alice.write([]).await;

    store
        .release(&alice.id, ALICE, alice.epoch)
        .await
        .expect("release");
    store
        .release(&alice.id, ALICE, alice.epoch)
        .await
        .expect("release again");
    let listed = store.accounts(&alice.id.business).await.expect("accounts");
    assert_eq!((listed[0].epoch, listed[0].holder), (alice.epoch, None));
    let bob = granted(&store, &alice.id, BOB, LONG).await;
    assert_eq!(
        (bob.epoch, bob.applied),
        (Epoch(alice.epoch.0 + 1), alice.seq)
    );
}

/// Through claims, releases, expiry and restarts: never the same epoch twice.
pub async fn epochs_only_grow<H: Harness>(harness: H) {
    let mut store = harness.open();
    let id = store
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let mut last = Epoch(0);
    for round in 0..12 {
        let who = if round % 2 == 0 { ALICE } else { BOB };
        let ttl = if round % 3 == 0 { LONG } else { Micros(0) };
        let lease = granted(&store, &id, who, ttl).await;
        assert!(lease.epoch > last, "{:?} after {last:?}", lease.epoch);
        last = lease.epoch;
        match round % 4 {
            _ if ttl == LONG => store.release(&id, who, last).await.expect("release"),
            1 => store = harness.restart(store),
            _ => {}
        }
    }
}

/// A new holder learns where to go on, and that includes what its predecessor wrote last.
pub async fn a_claim_tells_how_far_the_history_has_come<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    for n in 1..=5 {
        owner.write([(Key::PreKey(n), Some(record("key")))]).await;
        let again = granted(&harness.open(), &owner.id, ALICE, LONG).await;
        assert_eq!(again.applied, Seq(u64::from(n)));
        owner.epoch = again.epoch;
    }
    // A batch that was refused is no part of the history.
    let mut gap = owner.batch([]);
    gap.seq = gap.seq.next();
    assert!(is_rejected(&commit(&store, [gap]).await[0]));
    assert_eq!(
        granted(&store, &owner.id, ALICE, LONG).await.applied,
        Seq(5)
    );
}

/// The list shows epoch, holder and device row as they are now.
pub async fn accounts_show_who_holds_them<H: Harness>(harness: H) {
    let store = harness.open();
    let id = store
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let now = |store: H::Store| async move {
        let account = store
            .accounts(&business("acme"))
            .await
            .expect("accounts")
            .remove(0);
        (account.epoch, account.holder, account.device)
    };
    assert_eq!(now(store.clone()).await, (Epoch(0), None, Row::Absent));
    let mut owner = Owner::claim(&store, &id, BOB, SHORT).await;
    owner.write([(Key::Device, Some(record("device")))]).await;
    harness.advance(PAUSE);
    let device = Row::Present(record("device"));
    assert_eq!(
        now(store.clone()).await,
        (owner.epoch, None, device.clone()),
        "run out"
    );
    let lease = granted(&store, &id, ALICE, LONG).await;
    assert_eq!(
        now(harness.open()).await,
        (lease.epoch, Some(ALICE), device)
    );
    let answer = store.create_account(&business("acme"), "main").await;
    assert_eq!(answer, Err(StoreError::Exists));
}
