//! Ownership: who may claim, hand over and give up, and what an epoch is worth.

use super::*;
use crate::state::{HandOver, Orphan, Placement};

async fn main_account<S: Store>(store: &S) -> AccountId {
    store
        .create_account(&business("acme"), "main")
        .await
        .expect("create")
}

/// A held account is not given away, whichever process asks; its holder may claim again and gets a new epoch.
pub async fn an_account_is_claimed_by_one<H: Harness>(harness: H) {
    let store = harness.open();
    let id = main_account(&store).await;
    let (alice, bob) = (
        join(&store, "alice", LONG).await,
        join(&store, "bob", LONG).await,
    );
    let first = granted(&store, &id, alice).await;
    assert_eq!(
        (first.applied, first.sealed),
        (Seq(0), first.term.history),
        "a new account has nothing to make good"
    );
    assert_eq!(first.term.history, store.history().await.expect("history"));
    for handle in [store.clone(), harness.open()] {
        assert_eq!(claim(&handle, &id, bob).await, Claim::Held { by: alice });
    }
    let again = granted(&store, &id, alice).await;
    assert!(
        again.term.epoch > first.term.epoch,
        "a claim is a new term, also for the same holder"
    );
    let held = store.held(alice).await.expect("held");
    assert_eq!(held, [(id, again)]);
    assert_eq!(store.held(bob).await, Ok(vec![]));
}

/// One call, many accounts of several businesses, an answer for each in the order of the call.
pub async fn claims_are_answered_one_by_one<H: Harness>(harness: H) {
    let store = harness.open();
    let (alice, bob) = (
        join(&store, "alice", LONG).await,
        join(&store, "bob", LONG).await,
    );
    let mut ids = Vec::new();
    for n in 0..6 {
        let tenant = business(["acme", "other"][n % 2]);
        let id = store.create_account(&tenant, &format!("a{n}")).await;
        ids.push(id.expect("create"));
    }
    granted(&store, &ids[1], bob).await;
    let mut wrong = ids[2].clone();
    wrong.business = business("thief");
    let asked: Vec<_> = [5, 1, 0, 3]
        .map(|n: usize| ids[n].clone())
        .into_iter()
        .chain([wrong])
        .collect();
    let answers = store.claim(alice, asked).await.expect("claim");
    assert!(
        matches!(
            answers[..],
            [
                Claim::Granted(_),
                Claim::Held { by },
                Claim::Granted(_),
                Claim::Granted(_),
                Claim::Missing
            ] if by == bob
        ),
        "{answers:?}"
    );
    let held = store.held(alice).await.expect("held");
    let mut mine: Vec<_> = held.into_iter().map(|(id, _)| id).collect();
    mine.sort();
    let mut expected = [5, 0, 3].map(|n: usize| ids[n].clone());
    expected.sort();
    assert_eq!(mine, expected);
    assert_eq!(store.claim(alice, vec![]).await, Ok(vec![]));
}

/// The roster decides about claims, the fence about writes: a host declared dead by mistake loses nothing it wrote.
pub async fn a_dead_host_writes_until_somebody_claims<H: Harness>(harness: H) {
    let store = harness.open();
    let mut alice = Owner::create(&store, &business("acme"), "main").await;
    let judge = join(&store, "judge", LONG).await;
    assert_eq!(store.declare_dead(judge, alice.who()).await, Ok(true));
    let late = record("late, but nobody else is there");
    alice.write([(Key::Counters, Some(late))]).await;
    let mut bob = Owner::claim(&store, &alice.id, judge).await;
    assert!(bob.epoch() > alice.epoch());
    assert_eq!(bob.seq, alice.seq);
    let late = alice.batch([(Key::Counters, Some(record("too late")))]);
    let fenced = Outcome::Fenced { by: bob.epoch() };
    assert_eq!(commit(&store, [late]).await, [fenced]);
    bob.write([]).await;
}

/// Only the holder can give up, only its current term; the next claim is granted at once under a higher epoch.
pub async fn release_frees_and_keeps_the_epoch<H: Harness>(harness: H) {
    let store = harness.open();
    let mut alice = Owner::create(&store, &business("acme"), "main").await;
    let bob = join(&store, "bob", LONG).await;
    let held = Claim::Held { by: alice.who() };
    let (id, epoch) = (alice.id.clone(), alice.epoch());
    let not_theirs = vec![(id.clone(), epoch)];
    store.release(bob, not_theirs).await.expect("by a stranger");
    assert_eq!(claim(&store, &id, bob).await, held);
    let old = vec![(id.clone(), Epoch(epoch.0 - 1))];
    store.release(alice.who(), old).await.expect("an old term");
    assert_eq!(claim(&store, &id, bob).await, held);
    alice.write([]).await;

    alice.release().await;
    alice.release().await;
    let listed = store.accounts(&id.business).await.expect("accounts");
    assert_eq!((listed[0].epoch, listed[0].holder), (epoch, None));
    // What was given up cannot be written any more, although the epoch is still the one in force.
    let late = alice.batch([]);
    let fenced = Outcome::Fenced { by: epoch };
    assert_eq!(commit(&store, [late]).await, [fenced]);
    let lease = granted(&store, &id, bob).await;
    assert_eq!(
        (lease.term.epoch, lease.applied),
        (Epoch(epoch.0 + 1), Seq(1))
    );
}

/// A host that leaves frees what it holds, and nothing else.
pub async fn who_leaves_frees_everything<H: Harness>(harness: H) {
    let store = harness.open();
    let other = Owner::create(&store, &business("other"), "main").await;
    let (alice, bob) = (
        join(&store, "alice", LONG).await,
        join(&store, "bob", LONG).await,
    );
    let mut ids = Vec::new();
    for n in 0..5 {
        let tenant = business(["acme", "other"][n % 2]);
        let id = store.create_account(&tenant, &format!("a{n}")).await;
        ids.push(id.expect("create"));
    }
    store.claim(alice, ids.clone()).await.expect("claim");
    store.leave(alice).await.expect("leave");
    let answers = store.claim(bob, ids).await.expect("claim");
    let all = |answer: &Claim| matches!(answer, Claim::Granted(_));
    assert!(answers.iter().all(all), "{answers:?}");
    let held = Claim::Held { by: other.who() };
    assert_eq!(claim(&store, &other.id, bob).await, held);
}

/// From one to the other in one step, told to the successor; never to one who is not there to take it.
pub async fn hand_over_leaves_no_gap<H: Harness>(harness: H) {
    let store = harness.open();
    let mut alice = Owner::create(&store, &business("acme"), "main").await;
    let (bob, carol) = (
        join(&store, "bob", LONG).await,
        join(&store, "carol", LONG).await,
    );
    let (id, who, epoch) = (alice.id.clone(), alice.who(), alice.epoch());
    let hand_over = |who, epoch, to| store.hand_over(who, &id, epoch, to);
    let fenced = Ok(HandOver::Fenced { by: epoch });
    assert_eq!(hand_over(carol, epoch, bob).await, fenced, "not hers");
    let old = Epoch(epoch.0 - 1);
    assert_eq!(hand_over(who, old, bob).await, fenced, "an old term");
    // Successors that would not take it.
    let draining = Beat {
        draining: true,
        accounts: 0,
        live: 0,
        ttl: LONG,
    };
    store.beat(carol, draining).await.expect("beat");
    let gone = join(&store, "gone", LONG).await;
    store.leave(gone).await.expect("leave");
    for to in [carol, gone, new_life()] {
        assert_eq!(hand_over(who, epoch, to).await, Ok(HandOver::Refused));
    }
    alice.write([]).await;

    let next = Epoch(epoch.0 + 1);
    let done = Ok(HandOver::Done { epoch: next });
    assert_eq!(hand_over(who, epoch, bob).await, done);
    assert_eq!(beat(&store, bob, LONG).await.gifts, 1);
    let held = store.held(bob).await.expect("held");
    let (taken, lease) = &held[0];
    assert_eq!(
        (taken, lease.term.epoch, lease.applied),
        (&id, next, Seq(1))
    );
    Owner::of(&store, &id, *lease).write([]).await;
    let late = alice.batch([]);
    let fenced = Outcome::Fenced { by: next };
    assert_eq!(commit(&store, [late]).await, [fenced]);
    assert_eq!(
        hand_over(who, epoch, bob).await,
        Ok(HandOver::Fenced { by: next }),
        "only once"
    );
}

/// Through claims, releases, deaths and restarts: never the same epoch twice.
pub async fn epochs_only_grow<H: Harness>(harness: H) {
    let mut store = harness.open();
    let id = main_account(&store).await;
    let mut last = Epoch(0);
    for round in 0..12 {
        let owner = Owner::seize(&store, &id).await;
        assert!(owner.epoch() > last, "{:?} after {last:?}", owner.epoch());
        last = owner.epoch();
        match round % 4 {
            0 => owner.release().await,
            1 => {
                drop(owner);
                store = harness.restart(store);
            }
            2 => store.leave(owner.who()).await.expect("leave"),
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
        let again = granted(&harness.open(), &owner.id, owner.who()).await;
        assert_eq!(again.applied, Seq(u64::from(n)));
        owner.term = again.term;
    }
    // A batch that was refused is no part of the history.
    let mut gap = owner.batch([]);
    gap.seq = gap.seq.next();
    assert!(is_rejected(&commit(&store, [gap]).await[0]));
    let again = granted(&store, &owner.id, owner.who()).await;
    assert_eq!(again.applied, Seq(5));
}

/// The list shows epoch, holder, wishes and device row as they are now.
pub async fn accounts_show_who_holds_them<H: Harness>(harness: H) {
    let store = harness.open();
    let id = main_account(&store).await;
    let now = |store: H::Store| async move {
        let accounts = store.accounts(&business("acme")).await;
        let account = accounts.expect("accounts").remove(0);
        (account.epoch, account.holder, account.device)
    };
    assert_eq!(now(store.clone()).await, (Epoch(0), None, Row::Absent));
    let bob = join(&store, "bob", LONG).await;
    let mut owner = Owner::claim(&store, &id, bob).await;
    owner.write([(Key::Device, Some(record("device")))]).await;
    let device = Row::Present(record("device"));
    let mine = (owner.epoch(), Some(bob), device.clone());
    assert_eq!(now(harness.open()).await, mine);
    let judge = join(&store, "judge", LONG).await;
    store.declare_dead(judge, bob).await.expect("declare dead");
    assert_eq!(now(store.clone()).await, (owner.epoch(), None, device));

    let wish = Placement {
        run: true,
        pin: Some("alice".into()),
        pause: Micros(0),
    };
    store.place(&id, wish.clone()).await.expect("place");
    let listed = store.accounts(&id.business).await.expect("accounts");
    assert_eq!((&listed[0].placement, listed[0].retired), (&wish, false));
    let answer = store.create_account(&business("acme"), "main").await;
    assert_eq!(answer, Err(StoreError::Exists));
}

/// What is wished to run and has no live host, of all businesses, page by page.
pub async fn orphans_are_what_should_run_and_does_not<H: Harness>(harness: H) {
    let store = harness.open();
    let host = join(&store, "host", LONG).await;
    let run = Placement {
        run: true,
        ..Placement::default()
    };
    let mut wished = Vec::new();
    for n in 0..6 {
        let tenant = business(["acme", "other"][n % 2]);
        let id = store.create_account(&tenant, &format!("a{n}")).await;
        wished.push(id.expect("create"));
    }
    let idle = store.create_account(&business("acme"), "idle").await;
    let idle = idle.expect("create");
    assert_eq!(store.orphans(None, 100).await, Ok(vec![]), "nothing wished");
    for id in &wished {
        store.place(id, run.clone()).await.expect("place");
    }
    let pinned = Placement {
        pin: Some("elsewhere".into()),
        ..run.clone()
    };
    store.place(&wished[3], pinned).await.expect("place");
    let paused = Placement {
        pause: LONG,
        ..run.clone()
    };
    store.place(&wished[5], paused).await.expect("place");
    granted(&store, &wished[0], host).await;
    let mut left = Owner::claim(&store, &wished[1], host).await;
    left.write([]).await;
    left.release().await;
    // Held by somebody who is gone: an orphan that remembers whose it was.
    let gone = Owner::seize(&store, &wished[2]).await;
    store.declare_dead(host, gone.who()).await.expect("dead");

    let expected = |n: usize, last| Orphan {
        account: wished[n].clone(),
        pin: (n == 3).then(|| "elsewhere".into()),
        last,
    };
    let mut all = vec![
        expected(1, None),
        expected(2, Some(gone.who())),
        expected(3, None),
        expected(4, None),
    ];
    all.sort_by(|a, b| a.account.cmp(&b.account));
    assert_eq!(store.orphans(None, 100).await, Ok(all.clone()));
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map(|orphan: &Orphan| orphan.account.clone());
        let page = store.orphans(after, 3).await.expect("orphans");
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all);
    assert_eq!(store.orphans(None, 0).await, Ok(vec![]));
    store
        .place(&wished[4], Placement::default())
        .await
        .expect("place");
    store.place(&idle, run).await.expect("place");
    let now = store.orphans(None, 100).await.expect("orphans");
    assert!(now.iter().any(|orphan| orphan.account == idle));
    assert!(now.iter().all(|orphan| orphan.account != wished[4]));
    let bad = Placement {
        pin: Some("no name".into()),
        ..Placement::default()
    };
    let answer = store.place(&idle, bad).await;
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
}

/// Moved to another database: it can be looked at and deleted, nothing else.
pub async fn a_retired_account_never_runs_again<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let (id, who, epoch) = (owner.id.clone(), owner.who(), owner.epoch());
    owner.write([(Key::Counters, Some(record("kept")))]).await;
    let run = Placement {
        run: true,
        ..Placement::default()
    };
    store.place(&id, run).await.expect("place");
    let left = store.enqueue(&id, "before".into(), record("asked"), UnixMillis(1));
    assert_eq!(left.await, Ok(true));
    assert_eq!(store.retire(new_life(), &id, epoch).await, Ok(false));
    let old = Epoch(epoch.0 - 1);
    assert_eq!(store.retire(who, &id, old).await, Ok(false));
    owner.write([]).await;
    assert_eq!(store.retire(who, &id, epoch).await, Ok(true));
    assert_eq!(store.retire(who, &id, epoch).await, Ok(false), "once");

    let late = owner.batch([]);
    let outcome = commit(&store, [late]).await.remove(0);
    assert_eq!(outcome, Outcome::Fenced { by: epoch });
    assert_eq!(claim(&store, &id, who).await, Claim::Retired);
    assert_eq!(store.orphans(None, 10).await, Ok(vec![]));
    let listed = store.accounts(&id.business).await.expect("accounts");
    assert!(listed[0].retired && listed[0].holder.is_none());
    // A request for it would never be read.
    for name in ["before", "after"] {
        let left = store.enqueue(&id, name.into(), record("other"), UnixMillis(1));
        assert_eq!(left.await, Err(StoreError::Retired));
    }
    let kept = Row::Present(record("kept"));
    assert_eq!(owner.load(&Key::Counters).await, kept);
    assert_eq!(
        owner.load(&Key::Mailbox("before".into())).await,
        Row::Present(record("asked"))
    );
    let again = harness.open();
    assert_eq!(claim(&again, &id, who).await, Claim::Retired);
    store.delete_account(&id).await.expect("delete");
}

/// All rows go with it, its number is never given again, and a live owner is not robbed.
pub async fn a_deleted_account_is_gone<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let mut other = Owner::create(&store, &business("acme"), "other").await;
    let rows: Vec<_> = Table::ALL
        .iter()
        .flat_map(|&table| samples::keys(table))
        .map(|key| (key, Some(record("row"))))
        .collect();
    owner.write(rows.clone()).await;
    other.write(rows.clone()).await;
    let id = owner.id.clone();
    assert_eq!(store.delete_account(&id).await, Err(StoreError::Held));
    owner.write([]).await;
    owner.release().await;
    assert_eq!(store.delete_account(&id).await, Ok(()));
    assert_eq!(store.delete_account(&id).await, Err(StoreError::NoAccount));
    let loaded = store.load(&id, vec![Key::Counters]).await;
    assert_eq!(loaded, Err(StoreError::NoAccount));
    assert_eq!(claim(&store, &id, owner.who()).await, Claim::Missing);
    let late = owner.batch([]);
    assert!(is_rejected(&commit(&store, [late]).await[0]));
    let mine = whole_table(&store, &other.id, Table::Inbox, 100).await;
    assert_eq!(mine.len(), samples::keys(Table::Inbox).len());
    let again = store.create_account(&business("acme"), "main").await;
    let again = again.expect("the name is free");
    assert!(again.device > id.device && again.device > other.id.device);
    let mut again = Owner::claim(&store, &again, owner.who()).await;
    for &table in Table::ALL {
        assert_eq!(again.table(table).await, [], "{}", table.name());
    }
    again.write(rows).await;
}

/// A commit of nothing settles whose the account is, for many at once.
pub async fn a_term_is_confirmed_only_while_it_is_in_force<H: Harness>(harness: H) {
    let store = harness.open();
    let mut kept = Owner::create(&store, &business("acme"), "kept").await;
    let lost = Owner::create(&store, &business("other"), "lost").await;
    let free = Owner::create(&store, &business("acme"), "free").await;
    let by = Owner::seize(&store, &lost.id).await.epoch();
    free.release().await;
    let mut stranger = kept.term;
    stranger.holder = new_life();
    let mut future = kept.term;
    future.epoch = Epoch(future.epoch.0 + 1);
    let asked = vec![
        (kept.id.clone(), kept.term),
        (lost.id.clone(), lost.term),
        (free.id.clone(), free.term),
        (kept.id.clone(), stranger),
        (kept.id.clone(), kept.term),
        (kept.id.clone(), future),
    ];
    let outcomes = store.confirm(asked).await.expect("confirm");
    let fenced = |by| Outcome::Fenced { by };
    let expected = [
        Outcome::Committed,
        fenced(by),
        fenced(free.epoch()),
        fenced(kept.epoch()),
        Outcome::Committed,
    ];
    assert_eq!(outcomes[..5], expected);
    assert!(is_rejected(&outcomes[5]) && outcomes.len() == 6);
    // It is no part of the history.
    kept.write([]).await;
    assert_eq!(store.confirm(vec![]).await, Ok(vec![]));
}

/// Not to run, or pinned to another name; of the accounts of this host alone.
pub async fn a_host_learns_what_of_its_accounts_is_wished_elsewhere<H: Harness>(harness: H) {
    let store = harness.open();
    let (alice, bob) = (
        join(&store, "alice", LONG).await,
        join(&store, "bob", LONG).await,
    );
    let wish = |run, pin: Option<&str>| Placement {
        run,
        pin: pin.map(Into::into),
        pause: Micros(0),
    };
    let wishes = [
        Some(wish(true, None)),
        Some(wish(true, Some("alice"))),
        Some(wish(true, Some("bob"))),
        Some(wish(false, Some("alice"))),
        None,
        // Of others, or of nobody.
        Some(wish(true, Some("carol"))),
        Some(wish(false, None)),
    ];
    let mut ids = Vec::new();
    for (n, wish) in wishes.iter().enumerate() {
        let tenant = business(["acme", "other"][n % 2]);
        let id = store.create_account(&tenant, &format!("a{n}")).await;
        let id = id.expect("create");
        if let Some(wish) = wish {
            let paused = Placement {
                pause: LONG,
                ..wish.clone()
            };
            store.place(&id, paused).await.expect("place");
        }
        if n < 5 {
            granted(&store, &id, alice).await;
        }
        ids.push(id);
    }
    granted(&store, &ids[5], bob).await;
    let mut expected = vec![
        (ids[2].clone(), wish(true, Some("bob"))),
        (ids[3].clone(), wish(false, Some("alice"))),
        (ids[4].clone(), wish(false, None)),
    ];
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(store.misplaced(alice).await, Ok(expected));
    let of_bob = vec![(ids[5].clone(), wish(true, Some("carol")))];
    assert_eq!(harness.open().misplaced(bob).await, Ok(of_bob));
    assert_eq!(store.misplaced(new_life()).await, Ok(vec![]));
    store.place(&ids[5], wish(true, None)).await.expect("place");
    assert_eq!(store.misplaced(bob).await, Ok(vec![]));
}

/// One look for all accounts of a host, of whatever business; it ends when the owner has taken the requests.
pub async fn a_host_learns_which_of_its_accounts_have_mail<H: Harness>(harness: H) {
    let store = harness.open();
    let (alice, bob) = (
        join(&store, "alice", LONG).await,
        join(&store, "bob", LONG).await,
    );
    let mut ids = Vec::new();
    for n in 0..6 {
        let tenant = business(["acme", "other"][n % 2]);
        let id = store.create_account(&tenant, &format!("a{n}")).await;
        ids.push(id.expect("create"));
    }
    let mut owner = Owner::claim(&store, &ids[0], alice).await;
    for id in &ids[1..4] {
        granted(&store, id, alice).await;
    }
    granted(&store, &ids[4], bob).await;
    assert_eq!(store.mail(alice).await, Ok(vec![]));
    for (n, message) in [(0, "m1"), (0, "m2"), (3, "m1"), (4, "m1"), (5, "m1")] {
        let request = record("request");
        let left = harness.open();
        let left = left.enqueue(&ids[n], message.into(), request, UnixMillis(1));
        assert_eq!(left.await, Ok(true));
    }
    let mut expected = vec![ids[0].clone(), ids[3].clone()];
    expected.sort();
    assert_eq!(store.mail(alice).await, Ok(expected.clone()));
    assert_eq!(store.mail(bob).await, Ok(vec![ids[4].clone()]));
    assert_eq!(store.mail(new_life()).await, Ok(vec![]));
    owner.write([(Key::Mailbox("m1".into()), None)]).await;
    assert_eq!(store.mail(alice).await, Ok(expected));
    owner.write([(Key::Mailbox("m2".into()), None)]).await;
    assert_eq!(harness.open().mail(alice).await, Ok(vec![ids[3].clone()]));
}
