//! The roster: who is in it, who is declared dead, and by whom.

use super::*;
use crate::state::HostState;

fn info(name: &str) -> HostInfo {
    HostInfo {
        name: name.into(),
        address: "10.0.0.7:8081".into(),
        zone: "zone-ä".into(),
        version: "1.2.3".into(),
        capacity: 2000,
    }
}

async fn state<S: Store>(store: &S, who: Incarnation) -> Option<HostState> {
    let hosts = store.hosts().await.expect("hosts");
    hosts
        .iter()
        .find(|host| host.who == who)
        .map(|host| host.state)
}

fn resting(ttl: Micros) -> Beat {
    Beat {
        draining: false,
        accounts: 0,
        live: 0,
        ttl,
    }
}

/// Everybody has a slot of their own, and a beat shows them all as they describe themselves.
pub async fn a_host_joins_once_and_sees_the_fleet<H: Harness>(harness: H) {
    let store = harness.open();
    assert_eq!(store.hosts().await, Ok(vec![]));
    let (a, b) = (new_life(), new_life());
    let first = store.join(a, info("a"), LONG).await.expect("join");
    let second = harness.open().join(b, info("b"), LONG).await.expect("join");
    assert_eq!((first, second), (1, 2), "the first free slots");
    let again = store.join(a, info("a"), LONG).await;
    assert_eq!(again, Ok(first), "joining again is not joining twice");

    let beat = Beat {
        draining: true,
        accounts: 17,
        live: 9,
        ttl: LONG,
    };
    let Beaten::Renewed(view) = store.beat(b, beat).await.expect("beat") else {
        panic!("b lives")
    };
    assert_eq!(view.history, store.history().await.expect("history"));
    assert_eq!((view.newly_dead, view.gifts), (vec![], 0));
    let seen: Vec<_> = view
        .hosts
        .iter()
        .map(|host| {
            (
                host.slot,
                host.who,
                host.info.clone(),
                host.state,
                (host.accounts, host.live, host.drain),
            )
        })
        .collect();
    let expected = [
        (1, a, info("a"), HostState::Active, (0, 0, false)),
        (2, b, info("b"), HostState::Draining, (17, 9, false)),
    ];
    assert_eq!(seen, expected);
    for host in &view.hosts {
        let left = host.remaining;
        assert!(left > Micros(0) && left <= LONG, "{left:?}");
    }
    assert_eq!(store.hosts().await.expect("hosts").len(), 2);
    // A slot is used again when its host is gone.
    store.leave(a).await.expect("leave");
    assert_eq!(state(&store, a).await, Some(HostState::Released));
    let third = new_life();
    assert_eq!(store.join(third, info("a"), LONG).await, Ok(1));
    assert_eq!(state(&store, a).await, None);
}

/// Left by anybody, read by the host with its next renewal, gone with its incarnation.
pub async fn the_wish_that_a_host_be_drained_is_shown<H: Harness>(harness: H) {
    let store = harness.open();
    let (a, b) = (join(&store, "a", LONG).await, join(&store, "b", LONG).await);
    let shown = |view: View| -> Vec<bool> { view.hosts.iter().map(|host| host.drain).collect() };
    assert_eq!(shown(beat(&store, a, LONG).await), [false, false]);
    assert_eq!(harness.open().drain(a, true).await, Ok(true));
    assert_eq!(shown(beat(&store, a, LONG).await), [true, false]);
    assert_eq!(
        shown(beat(&store, a, LONG).await),
        [true, false],
        "it stays"
    );
    assert_eq!(
        state(&store, a).await,
        Some(HostState::Active),
        "a wish is not a fact"
    );
    assert_eq!(store.drain(a, false).await, Ok(true));
    assert_eq!(store.drain(b, true).await, Ok(true));
    assert_eq!(shown(beat(&store, a, LONG).await), [false, true]);
    store.leave(b).await.expect("leave");
    for nobody in [b, new_life()] {
        assert_eq!(store.drain(nobody, true).await, Ok(false));
    }
    let again = new_life();
    assert_eq!(store.join(again, info("b"), LONG).await, Ok(2));
    assert_eq!(shown(beat(&store, again, LONG).await), [false, false]);
}

/// Names are names, texts are short.
pub async fn what_a_host_says_is_checked<H: Harness>(harness: H) {
    let store = harness.open();
    let long = "x".repeat(256);
    let named = |name: &str| HostInfo::named(name);
    let bad = [
        named(""),
        named("a b"),
        named(&"n".repeat(65)),
        HostInfo {
            address: long.as_str().into(),
            ..named("a")
        },
        HostInfo {
            zone: "a\0b".into(),
            ..named("a")
        },
    ];
    for info in bad {
        let answer = store.join(new_life(), info.clone(), LONG).await;
        assert!(
            matches!(answer, Err(StoreError::Refused(_))),
            "{info:?} gave {answer:?}"
        );
    }
    assert_eq!(store.hosts().await, Ok(vec![]));
}

/// Left, declared dead, or never there: such an incarnation holds nothing and gets nothing.
pub async fn an_ended_incarnation_never_comes_back<H: Harness>(harness: H) {
    let store = harness.open();
    let id = store
        .create_account(&business("acme"), "main")
        .await
        .expect("create");
    let (left, dead, never) = (
        join(&store, "left", LONG).await,
        join(&store, "dead", LONG).await,
        new_life(),
    );
    let by = join(&store, "by", LONG).await;
    store.leave(left).await.expect("leave");
    store.leave(left).await.expect("leave again");
    assert_eq!(store.declare_dead(by, dead).await, Ok(true));
    for (who, was_there) in [(left, true), (dead, true), (never, false)] {
        assert_eq!(store.beat(who, resting(LONG)).await, Ok(Beaten::Dead));
        let claimed = store.claim(who, vec![id.clone()]).await;
        assert_eq!(claimed, Err(StoreError::NotMember));
        assert_eq!(store.held(who).await, Ok(vec![]));
        if was_there {
            let joined = store.join(who, info("again"), LONG).await;
            assert_eq!(joined, Err(StoreError::NotMember));
        }
    }
    assert_eq!(state(&store, dead).await, Some(HostState::Dead));
}

/// Whose lease has run out is declared dead by the next beat of somebody else, once.
pub async fn a_host_that_falls_silent_is_declared_dead<H: Harness>(harness: H) {
    let store = harness.open();
    let judge = join(&store, "judge", LONG).await;
    let silent = join(&store, "silent", SHORT).await;
    let lively = join(&store, "lively", LONG).await;
    harness.advance(PAUSE);
    let view = beat(&store, judge, LONG).await;
    assert_eq!(view.newly_dead, [silent]);
    assert_eq!(state(&store, silent).await, Some(HostState::Dead));
    assert_eq!(state(&store, lively).await, Some(HostState::Active));
    assert_eq!(beat(&store, lively, LONG).await.newly_dead, []);
    assert_eq!(store.beat(silent, resting(LONG)).await, Ok(Beaten::Dead));
}

/// After an outage everybody's lease has run out; whoever reaches the database first must not take everything.
pub async fn only_who_was_there_all_the_time_may_judge<H: Harness>(harness: H) {
    let store = harness.open();
    let late = join(&store, "late", SHORT).await;
    let silent = join(&store, "silent", SHORT).await;
    harness.advance(PAUSE);
    let view = beat(&store, late, LONG).await;
    assert_eq!(view.newly_dead, [], "its own renewals had a gap");
    let seen: Vec<_> = view.hosts.iter().map(|host| host.state).collect();
    assert_eq!(seen, [HostState::Active; 2]);
    // Without a gap for as long as the other's lease holds: now it may.
    harness.advance(PAUSE);
    assert_eq!(beat(&store, late, LONG).await.newly_dead, [silent]);
}

/// Whoever knows better than the lease says so; the dead and strangers have no word.
pub async fn a_word_declares_dead_at_once<H: Harness>(harness: H) {
    let store = harness.open();
    let (a, b, c) = (
        join(&store, "a", LONG).await,
        join(&store, "b", LONG).await,
        join(&store, "c", LONG).await,
    );
    assert_eq!(store.declare_dead(new_life(), b).await, Ok(false));
    assert_eq!(store.declare_dead(a, a).await, Ok(false), "not oneself");
    assert_eq!(store.declare_dead(a, new_life()).await, Ok(false));
    assert_eq!(store.declare_dead(a, b).await, Ok(true));
    assert_eq!(store.declare_dead(a, b).await, Ok(false), "already");
    assert_eq!(store.declare_dead(b, c).await, Ok(false), "the dead");
    assert_eq!(state(&store, c).await, Some(HostState::Active));
}
