//! Settings and history in a simulated world: an engine, a phone that has the keys and checks every patch, and trouble.

use baton_core::{
    appstate::Collection,
    crypto::Rng,
    flow::{Command, Event, Reply, SyncStats},
};
use sim::service::{
    faults::{Fault, FileFault, SettingsFault},
    history::{Damage, History, HistoryKind},
    settings::Change,
};
use sim::world::{
    Options, Step, Verdict, World,
    chaos::{remember, rest, settle_down, talk},
};

const SECOND: u64 = 1_000_000;

fn linked(seed: u64) -> World {
    let mut world = World::new(Options {
        seed,
        ..Options::default()
    });
    world.link_all();
    world.run(world.now().mono.0 + 2 * SECOND);
    world
}

fn assert_good(world: &World, verdict: &Verdict) {
    let accounts = world.accounts().iter();
    let said = accounts.map(|account| {
        format!(
            "{}: {:?} {:?}",
            account.phone, account.notices, account.progress
        )
    });
    assert!(
        verdict.is_good(),
        "{verdict:#?}\n{:#?}",
        said.collect::<Vec<_>>()
    );
}

/// Messages go on whatever happens to settings: some before, some in the middle, some after.
fn end(world: &mut World, texts: u64) -> Verdict {
    talk(world, &mut Rng::from_seed([9; 32]), texts, 20 * SECOND);
    let verdict = rest(world);
    assert_eq!(verdict.received, usize::try_from(texts).expect("few"));
    verdict
}

fn stats(world: &World) -> SyncStats {
    world.accounts()[0]
        .engine()
        .expect("it lives")
        .stats()
        .sync
        .clone()
}

fn pin(n: u64) -> Change {
    Change::Pin {
        chat: format!("{}@s.whatsapp.net", 15_559_990_000 + n),
        pinned: true,
    }
}

fn mute(n: u64) -> Change {
    Change::Mute {
        chat: format!("{}@s.whatsapp.net", 15_559_990_000 + n),
        until: Some(-1),
    }
}

fn phone(world: &mut World, at: u64, change: Change) {
    let changes = vec![change];
    world.plan(
        at,
        Step::Phone {
            account: 0,
            changes,
        },
    );
}

fn engine(world: &mut World, at: u64, change: Change) {
    let changes = vec![change];
    world.plan(
        at,
        Step::Change {
            account: 0,
            changes,
        },
    );
}

fn settings_fault(world: &mut World, at: u64, what: SettingsFault, count: u32) {
    let device = world.companion(0);
    world.plan(
        at,
        Step::Fault(Fault::Settings {
            device,
            what,
            count,
        }),
    );
}

fn file_fault(world: &mut World, at: u64, what: FileFault, count: u32) {
    let device = world.companion(0);
    world.plan(
        at,
        Step::Fault(Fault::File {
            device,
            what,
            count,
        }),
    );
}

fn history(kind: HistoryKind, bytes: u64) -> History {
    History {
        kind,
        chunks: 2,
        bytes,
        inline: false,
        seed: 11,
        damage: None,
    }
}

/// The phone is always a moment faster, answers get lost, and the owner dies between a patch and its answer, again and
/// again. One history, one state, nothing lost, nothing said twice.
#[test]
fn app_state_fork() {
    for seed in 0..6 {
        let mut world = linked(seed);
        for n in 0..12 {
            let at = n * SECOND;
            settings_fault(&mut world, at, SettingsFault::Overtake, 2);
            engine(&mut world, at + 1, pin(n % 4));
            engine(&mut world, at + 2, mute(n % 3));
            phone(&mut world, at + 300_000, pin((n + 1) % 4));
            if n % 3 == 1 {
                settings_fault(&mut world, at, SettingsFault::LostAnswer, 1);
            }
            if n % 3 == 2 {
                let pause = 100_000 * seed;
                world.plan(at + 20_000 * seed, Step::Crash { account: 0, pause });
            }
        }
        world.plan(20 * SECOND, Step::Heal);
        let verdict = end(&mut world, 20);
        assert_good(&world, &verdict);
        assert!(verdict.settings > 24, "{} settings", verdict.settings);
        let acted = world.service().faults().acted();
        assert!(
            acted["settings_overtake"] > 4 && acted["settings_lost_answer"] > 0,
            "{acted:?}"
        );
    }
}

/// A wrong MAC at any level: the collection is replaced by a snapshot, and the evidence kept.
#[test]
fn wrong_macs_are_refused_and_healed() {
    for (what, counted) in [
        (
            SettingsFault::PatchMac,
            (|s| s.bad_patch_macs) as fn(&SyncStats) -> u64,
        ),
        (SettingsFault::SnapshotMac, |s| {
            s.bad_patch_macs + s.bad_snapshot_macs
        }),
        (SettingsFault::ValueMac, |s| s.bad_mutations),
        (SettingsFault::IndexMac, |s| s.bad_mutations),
        (SettingsFault::Garbage, |s| s.malformed),
    ] {
        let mut world = linked(1);
        settings_fault(&mut world, SECOND, what, 1);
        phone(&mut world, SECOND, pin(1));
        phone(&mut world, 20 * SECOND, pin(2));
        let verdict = end(&mut world, 10);
        assert_good(&world, &verdict);
        assert_eq!(counted(&stats(&world)), 1, "{what:?}: {:?}", stats(&world));
    }
}

#[test]
fn versions_that_skip_or_come_again() {
    for (what, counted) in [
        (
            SettingsFault::Skip,
            (|s| s.version_gaps) as fn(&SyncStats) -> u64,
        ),
        (SettingsFault::Stale, |s| s.stale_patches),
    ] {
        let mut world = linked(2);
        phone(&mut world, SECOND, pin(1));
        phone(&mut world, 2 * SECOND, pin(2));
        settings_fault(&mut world, 5 * SECOND, what, 1);
        // Two at once, so that there is something behind what is missing.
        for n in 3..5 {
            phone(&mut world, 6 * SECOND, pin(n));
        }
        let verdict = end(&mut world, 10);
        assert_good(&world, &verdict);
        assert!(counted(&stats(&world)) > 0, "{what:?}: {:?}", stats(&world));
    }
    // And patches that the service itself has not any more.
    let mut world = linked(3);
    phone(&mut world, SECOND, pin(1));
    world.run(world.now().mono.0 + 5 * SECOND);
    world.plan(0, Step::Cut { account: 0 });
    phone(&mut world, 0, pin(2));
    let device = world.companion(0);
    world.plan(1, Step::Fault(Fault::DropPatches { device }));
    phone(&mut world, 2, pin(3));
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
}

/// Found as seed 16512 of tier A: after a conflict for no reason we only read, what came was known already, and that was the
/// end of it: the change waited until somebody else changed something.
#[test]
fn a_change_goes_out_after_a_conflict_and_patches_that_come_again() {
    let mut world = linked(4);
    phone(&mut world, SECOND, pin(1));
    settings_fault(&mut world, 5 * SECOND, SettingsFault::FalseConflict, 1);
    settings_fault(&mut world, 5 * SECOND, SettingsFault::Stale, 1);
    engine(&mut world, 6 * SECOND, pin(2));
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    let stats = stats(&world);
    assert_eq!((stats.stale_patches, stats.changes_out), (1, 1));
}

/// A service that shows nothing but what we have is not asked for ever.
#[test]
fn patches_that_come_again_for_ever_are_given_up() {
    let mut world = linked(4);
    phone(&mut world, SECOND, pin(1));
    settings_fault(&mut world, 5 * SECOND, SettingsFault::FalseConflict, 5000);
    settings_fault(&mut world, 5 * SECOND, SettingsFault::Stale, 5000);
    engine(&mut world, 6 * SECOND, pin(2));
    world.run(world.now().mono.0 + 600 * SECOND);
    let stats = stats(&world);
    assert_eq!(stats.given_up, 1, "{stats:?}");
    assert!((5..60).contains(&stats.stale_patches), "{stats:?}");
}

/// Found as seed 78177 of tier A: a patch of ours is taken and nobody says so, the phone changes the same setting, and then the
/// service forgets all patches. The snapshot does not show ours any more: announced again, it would undo the phone's.
#[test]
fn a_change_that_was_overtaken_is_not_announced_again() {
    let mut world = linked(6);
    settings_fault(&mut world, 5 * SECOND, SettingsFault::LostAnswer, 1);
    engine(&mut world, 6 * SECOND, mute(1));
    let unmute = Change::Mute {
        chat: "15559990001@s.whatsapp.net".into(),
        until: None,
    };
    phone(&mut world, 7 * SECOND, unmute);
    let device = world.companion(0);
    let forget = Step::Fault(Fault::DropPatches { device });
    world.plan(7 * SECOND + 1, forget);
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    assert_eq!(stats(&world).changes_overtaken, 1);
}

/// Found as seed 42137 of tier A: what came last in an answer was missing, behind a sound beginning, and its version was not
/// looked at.
#[test]
fn an_answer_that_ends_too_early_is_asked_for_again() {
    let mut world = linked(7);
    phone(&mut world, SECOND, pin(1));
    world.run(world.now().mono.0 + 5 * SECOND);
    let device = world.companion(0);
    world.plan(0, Step::Fault(Fault::DropPatches { device }));
    // Twice to make it ask for a snapshot, and once behind that.
    settings_fault(&mut world, 0, SettingsFault::Skip, 3);
    phone(&mut world, SECOND, pin(2));
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    assert_eq!(stats(&world).version_gaps, 3);
}

#[test]
fn removed_settings_that_never_were() {
    let mut world = linked(4);
    let remove = Change::Other {
        collection: "regular".into(),
        index: vec!["never_was".into()],
        remove: true,
    };
    phone(&mut world, SECOND, remove);
    let contact = Change::Contact {
        user: "15559990007@s.whatsapp.net".into(),
        name: None,
    };
    phone(&mut world, 2 * SECOND, contact.clone());
    // Asked of the engine, it is accepted, and there is nothing to announce.
    engine(&mut world, 3 * SECOND, contact);
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    assert_eq!(stats(&world).missing_removes, 2);
}

#[test]
fn keys_that_come_late_when_asked_or_never() {
    // When asked: the phone has told nobody of its new key.
    let mut world = linked(5);
    settings_fault(&mut world, 0, SettingsFault::NoKeys, 1);
    let device = world.companion(0);
    world.plan(
        1,
        Step::Fault(Fault::RotateKey {
            device: device.clone(),
        }),
    );
    phone(&mut world, SECOND, pin(1));
    phone(&mut world, SECOND, mute(1));
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    assert_eq!((stats(&world).key_requests, stats(&world).keys), (1, 2));

    // Late: twenty seconds after it was asked for.
    let mut world = linked(6);
    settings_fault(&mut world, 0, SettingsFault::NoKeys, 1);
    world.plan(
        1,
        Step::Fault(Fault::RotateKey {
            device: device.clone(),
        }),
    );
    settings_fault(&mut world, 2, SettingsFault::LateKeys, 1);
    phone(&mut world, SECOND, pin(1));
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);

    // Never: the collection waits, the others and messages go on.
    let mut world = linked(7);
    settings_fault(&mut world, 0, SettingsFault::NoKeys, 1);
    world.plan(
        1,
        Step::Fault(Fault::RotateKey {
            device: device.clone(),
        }),
    );
    phone(&mut world, SECOND, pin(1));
    world.plan(
        SECOND + 1,
        Step::Fault(Fault::RotateKey {
            device: device.clone(),
        }),
    );
    world.plan(SECOND + 2, Step::Fault(Fault::ForgetKeys { device }));
    phone(&mut world, 3 * SECOND, mute(1));
    let verdict = end(&mut world, 10);
    // One collection is not where the phone is; nothing else is wrong.
    let waits: Vec<_> = verdict
        .complaints
        .iter()
        .filter(|text| !text.contains("chat 1555999"))
        .collect();
    assert_eq!(waits.len(), 1, "{verdict:#?}");
    assert!(waits[0].contains("regular_low is at"), "{waits:?}");
    assert_eq!((verdict.lost, verdict.violations), (0, 0));
    assert!(stats(&world).missing_keys > 0);
}

#[test]
fn a_snapshot_of_fifty_thousand() {
    let mut world = World::new(Options {
        seed: 8,
        ..Options::default()
    });
    // Before anybody is linked.
    let many: Vec<Change> = (0..50_000)
        .map(|n| Change::Contact {
            user: format!("{}@s.whatsapp.net", 15_660_000_000_u64 + n),
            name: Some(format!("Contact {n}")),
        })
        .collect();
    world.add_phone(0);
    for part in many.chunks(10_000) {
        let changes = part.to_vec();
        world.plan(
            0,
            Step::Phone {
                account: 0,
                changes,
            },
        );
    }
    world.plan(
        1,
        Step::Fault(Fault::DropPatches {
            device: world.companion(0),
        }),
    );
    world.link_all();
    // Messages come and go while it is taken in.
    let verdict = end(&mut world, 20);
    assert_good(&world, &verdict);
    let account = &world.accounts()[0];
    let replaced = account.events.values().any(|event| {
        matches!(event, Event::SettingsReplaced { collection, settings: 50_000, .. }
            if *collection == Collection::CriticalUnblockLow)
    });
    assert!(replaced, "{:?}", account.progress);
}

#[test]
fn files_that_are_not_what_they_should_be() {
    for what in FileFault::ALL {
        if what == FileFault::Endless {
            continue;
        }
        let mut world = linked(9);
        file_fault(&mut world, SECOND, what, 1);
        let changes = (0..12).map(pin).collect();
        world.plan(
            SECOND,
            Step::Phone {
                account: 0,
                changes,
            },
        );
        let verdict = end(&mut world, 10);
        assert_good(&world, &verdict);
        let (stats, acted) = (stats(&world), world.service().faults().acted());
        assert_eq!(acted.len(), 1, "{acted:?}");
        if what != FileFault::Slow {
            assert_eq!(
                stats.failed_fetches + stats.bad_files,
                1,
                "{what:?}: {stats:?}"
            );
        }
    }
}

#[test]
fn history_of_every_kind_and_twice() {
    let mut world = linked(10);
    for (n, kind) in [
        HistoryKind::Initial,
        HistoryKind::Status,
        HistoryKind::Full,
        HistoryKind::Recent,
        HistoryKind::PushNames,
    ]
    .into_iter()
    .enumerate()
    {
        let mut history = history(kind, 40_000);
        history.seed = n as u64;
        world.plan(
            n as u64 * SECOND,
            Step::History {
                account: 0,
                history,
            },
        );
    }
    for n in 0..12 {
        world.plan(n * SECOND + 500_000, Step::HistoryAgain { account: 0 });
    }
    let verdict = end(&mut world, 20);
    assert_good(&world, &verdict);
    assert!(verdict.history > 200, "{}", verdict.history);
    let stats = stats(&world);
    assert!(
        stats.history_chunks >= 10 && stats.stale_history > 0,
        "{stats:?}"
    );
}

/// Owners die in the middle of a chunk, downloads break and are changed: every message is shown once.
#[test]
fn history_survives_crashes_and_bad_files() {
    for seed in 0..4 {
        let mut world = linked(20 + seed);
        let history = history(HistoryKind::Full, 600_000);
        world.plan(
            0,
            Step::History {
                account: 0,
                history,
            },
        );
        for n in 0..4 {
            let at = 150_000 + n * 400_000 + seed * 60_000;
            world.plan(
                at,
                Step::Crash {
                    account: 0,
                    pause: 50_000,
                },
            );
        }
        file_fault(&mut world, 0, FileFault::BreaksOff, 1);
        file_fault(&mut world, 9 * SECOND, FileFault::WrongMac, 1);
        let verdict = end(&mut world, 20);
        assert_good(&world, &verdict);
        assert!(verdict.history > 2_000, "{}", verdict.history);
    }
}

/// The hosts do not have the file any more: the phone uploads it again.
#[test]
fn a_file_that_is_gone_is_uploaded_again() {
    let mut world = linked(31);
    file_fault(&mut world, 0, FileFault::Gone, 1);
    let history = history(HistoryKind::Recent, 30_000);
    world.plan(
        1,
        Step::History {
            account: 0,
            history,
        },
    );
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    let acted = world.service().faults().acted();
    assert_eq!(acted.get("file_uploaded_again"), Some(&1), "{acted:?}");
    assert_eq!(stats(&world).bad_history, 0);
}

/// A chunk that was announced in two messages, and a file that is gone for both: the phone is asked about either, and knows
/// what it said in either. Found by tier A (seeds 48024, 91146), where a phone knew its last message alone.
#[test]
fn a_file_that_is_gone_is_uploaded_again_for_each_message_that_told_of_it() {
    let mut world = linked(32);
    file_fault(&mut world, 0, FileFault::Gone, 2);
    let history = history(HistoryKind::Recent, 30_000);
    let handed = Step::History {
        account: 0,
        history,
    };
    world.plan(1, handed);
    world.plan(2, Step::HistoryAgain { account: 0 });
    let verdict = end(&mut world, 10);
    assert_good(&world, &verdict);
    assert_eq!(world.service().books().anomalies(), []);
    let acted = world.service().faults().acted();
    assert_eq!(acted.get("file_uploaded_again"), Some(&2), "{acted:?}");
}

/// Whatever the service has of a collection does not add up: the phone tells what is in it, and the log goes on from
/// there. That happens to settings under several keys.
#[test]
fn the_phone_mends_what_the_service_cannot() {
    for seed in 0..3 {
        let mut world = linked(60 + seed);
        let device = world.companion(0);
        for n in 0..8 {
            phone(&mut world, n * 300_000, pin(n));
        }
        world.plan(
            SECOND,
            Step::Fault(Fault::RotateKey {
                device: device.clone(),
            }),
        );
        // One patch, and a snapshot for each time that it is replaced.
        settings_fault(&mut world, 5 * SECOND, SettingsFault::SnapshotMac, 4);
        phone(&mut world, 5 * SECOND + 1, pin(9));
        engine(&mut world, 6 * SECOND, pin(10));
        phone(&mut world, 12 * SECOND, pin(1));
        let verdict = end(&mut world, 10);
        assert_good(&world, &verdict);
        let stats = stats(&world);
        assert_eq!(
            (stats.recovery_requests, stats.recoveries, stats.given_up),
            (1, 1, 0),
            "{stats:?} {:?}",
            world.accounts()[0].progress
        );
    }
}

#[test]
fn history_that_cannot_be_read_is_given_up() {
    for damage in [
        Damage::NotDeflate,
        Damage::Cut,
        Damage::NotHistory,
        Damage::Bomb,
    ] {
        let mut world = linked(30);
        let mut history = history(HistoryKind::Recent, 30_000);
        history.damage = Some(damage);
        world.plan(
            0,
            Step::History {
                account: 0,
                history,
            },
        );
        let verdict = end(&mut world, 10);
        assert_good(&world, &verdict);
        let mut events = world.accounts()[0].events.values();
        let given_up =
            events.any(|event| matches!(event, Event::HistoryEnded { why: Some(_), .. }));
        assert!(given_up, "{damage:?}");
        assert_eq!(stats(&world).bad_history, 1, "{damage:?}");
    }
}

/// Memory stays flat. `cargo test -p sim --release --test app_state -- --ignored` says so about a hundred megabytes.
#[test]
#[ignore = "takes a minute"]
fn a_hundred_megabytes_of_history() {
    let mut world = World::new(Options {
        accounts: 1,
        store: (1, 2),
        network: (1, 2),
        ..Options::default()
    });
    world.link_all();
    let history = History {
        chunks: 1,
        ..history(HistoryKind::Full, 100 << 20)
    };
    world.plan(
        0,
        Step::History {
            account: 0,
            history,
        },
    );
    let verdict = rest(&mut world);
    assert_good(&world, &verdict);
    assert!(verdict.history > 300_000, "{}", verdict.history);
    println!(
        "{} messages; most bytes of rows: {}",
        verdict.history,
        world.accounts()[0].most.1
    );
}

/// What is asked is answered from the rows that the judge compares.
#[test]
fn contacts_and_chats_can_be_asked_for() {
    let mut world = linked(40);
    for n in 0..5 {
        let contact = Change::Contact {
            user: format!("{}@s.whatsapp.net", 15_559_990_000_u64 + n),
            name: Some(format!("Contact {n}")),
        };
        phone(&mut world, n, contact);
        engine(&mut world, SECOND, pin(n));
    }
    let verdict = end(&mut world, 4);
    assert_good(&world, &verdict);
    world.command(
        0,
        Command::Contacts {
            after: None,
            limit: 3,
        },
    );
    world.command(
        0,
        Command::Chats {
            after: None,
            limit: 100,
        },
    );
    world.run(world.now().mono.0 + SECOND);
    let replies = &world.accounts()[0].replies;
    let names = replies.iter().find_map(|(_, reply)| match reply {
        Ok(Reply::Contacts { contacts, next }) => Some((contacts, next)),
        _ => None,
    });
    let (contacts, next) = names.expect("answered");
    let names: Vec<_> = contacts
        .iter()
        .map(|contact| {
            contact
                .card
                .as_ref()
                .and_then(|card| card.full_name.clone())
                .unwrap_or_default()
        })
        .collect();
    assert_eq!(names, ["Contact 0", "Contact 1", "Contact 2"]);
    assert!(next.is_some());
    let pinned = replies.iter().find_map(|(_, reply)| match reply {
        Ok(Reply::Chats { chats, .. }) => Some(chats.iter().filter(|chat| chat.pinned).count()),
        _ => None,
    });
    assert_eq!(pinned, Some(5));
}

/// Seeds of nothing but settings and history, denser than the general ones.
#[test]
fn seeds_of_settings_and_history() {
    let (mut settings, mut past) = (0, 0);
    for seed in 0..24 {
        let mut world = linked(100 + seed);
        let mut rng = Rng::from_seed([u8::try_from(seed).expect("few"); 32]);
        settle_down(&mut world, &mut rng, 60, 12 * SECOND);
        remember(&mut world, &mut rng, 3, 6 * SECOND);
        for _ in 0..3 {
            let (at, pause) = (rng.below(12 * SECOND), rng.below(SECOND));
            world.plan(at, Step::Crash { account: 0, pause });
        }
        let verdict = end(&mut world, 10);
        assert_good(&world, &verdict);
        settings += verdict.settings;
        past += verdict.history;
    }
    assert!(
        settings > 2_000 && past > 1_000,
        "{settings} settings, {past} messages"
    );
}
