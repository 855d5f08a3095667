//! The owner of an account is lost in the middle of announcing changes of settings: anywhere between the moment at which
//! its patch is durable and the moment at which it is durable what became of it. Another host takes over, and the
//! phone changes the same settings meanwhile.
//!
//! One line of versions for everybody: the phone verifies each patch as it is accepted, and every state that the
//! database was ever given has to be one that the phone has had.

use super::{TAKEOVER, assert_good, on_every_store, on_stores, owner_and_other};
use sim::{
    service::{
        DeviceId,
        faults::{Fault, SettingsFault},
        settings::{Change, SettingChange},
    },
    tier_b::{Kind, Setup, World},
};

fn hosts() -> Setup {
    Setup {
        accounts: 1,
        tick: 2,
        latency: (2, 6),
        ..Setup::default()
    }
}

fn chat(n: u64) -> String {
    format!("{}@s.whatsapp.net", 15_559_990_000 + n)
}

fn mute(n: u64, until: i64) -> Change {
    let until = Some(until);
    Change::Mute {
        chat: chat(n),
        until,
    }
}

fn pin(n: u64, pinned: bool) -> Change {
    Change::Pin {
        chat: chat(n),
        pinned,
    }
}

fn name(n: u64, name: &str) -> Change {
    Change::Contact {
        user: chat(n),
        name: Some(name.to_owned()),
    }
}

/// What the account's companion has announced so far.
fn announced(world: &World) -> Vec<SettingChange> {
    let phone = world.books(|books| books[0].phone.clone());
    world.service(|service| {
        let log = service.setting_changes(&phone).iter();
        log.filter(|change| !change.by.is_phone())
            .cloned()
            .collect()
    })
}

/// Tick by tick until it is so.
fn wait_for(world: &mut World, what: &str, done: impl Fn(&World) -> bool) {
    for _ in 0..5_000 {
        if done(world) {
            return;
        }
        world.run(2);
    }
    panic!("it never came to this: {what}");
}

/// A change is asked for and durable, and the service has not taken it.
fn the_patch_is_on_its_way(world: &mut World) {
    let before = announced(world).len();
    world.change(0, vec![mute(1, 9_000)]);
    wait_for(world, "a patch on its way", |world| world.announces(0));
    assert_eq!(announced(world).len(), before, "not taken yet");
}

/// The service has taken it, and the owner has not heard of that.
fn the_patch_is_taken(world: &mut World) {
    let before = announced(world).len();
    the_patch_is_on_its_way(world);
    wait_for(world, "a patch taken", |world| {
        announced(world).len() > before
    });
    assert!(world.announces(0), "nobody knows yet");
}

/// The phone changes what the owner was about to change, and something else.
fn the_phone_changes_the_same(world: &mut World) {
    world.phone_change(0, vec![mute(1, 5_000), mute(2, 6_000), pin(1, true)]);
    world.run(200);
    world.phone_change(0, vec![mute(1, 4_000)]);
    world.run(200);
}

/// Everybody goes on, and arrives at the same; the change in question was announced once.
fn one_line_of_versions(world: &mut World) {
    world.phone_text(0, 0, "echo is anybody there?");
    world.change(0, vec![pin(3, true), name(4, "Ann Example")]);
    let verdict = world.rest(90_000);
    assert_good(world, &verdict);
    assert_eq!(verdict.received, verdict.asked);
    let announced = announced(world);
    let of = |name: &str| {
        let name = name.as_bytes();
        let words = |change: &&SettingChange| change.index.windows(name.len()).any(|at| at == name);
        announced.iter().filter(words).count()
    };
    let index = format!(r#"["mute","{}"]"#, chat(1));
    assert_eq!(of(&index), 1, "{announced:#?}");
    assert_eq!((of("pin_v1"), of("Ann")), (1, 0), "{announced:#?}");
    assert_eq!(of("contact"), 1, "{announced:#?}");
}

fn another_takes_over(world: &mut World, owner: &str) {
    let moved = world.run_until(2 * TAKEOVER, |world| {
        world.owner(0).is_some_and(|now| now != owner)
    });
    assert!(moved, "nobody took over");
}

/// The owner is killed, or loses its power, at that moment.
fn the_owner_dies(at_the_moment: fn(&mut World)) {
    for power in [false, true] {
        on_every_store(hosts(), |world| {
            let (owner, _) = owner_and_other(world);
            at_the_moment(world);
            match power {
                true => world.power_loss(&owner),
                false => world.kill(&owner),
            }
            the_phone_changes_the_same(world);
            another_takes_over(world, &owner);
            one_line_of_versions(world);
        });
    }
}

/// Before its patch reaches the service: the next owner sends the same bytes.
#[test]
fn the_owner_dies_before_its_patch_arrives() {
    the_owner_dies(the_patch_is_on_its_way);
}

/// Between upload and answer: the service has taken the patch, and nobody is left who could hear of it.
#[test]
fn the_owner_dies_between_upload_and_answer() {
    the_owner_dies(the_patch_is_taken);
}

/// Between answer and commit: the owner hears that its patch was taken and cannot write it down. The service still
/// believes in it, the database does not.
#[test]
fn the_owner_is_cut_off_between_answer_and_commit() {
    on_every_store(hosts(), |world| {
        let (owner, other) = owner_and_other(world);
        the_patch_is_taken(world);
        world.cut(&owner, "db");
        the_phone_changes_the_same(world);
        another_takes_over(world, &owner);
        assert_eq!(world.owner(0), Some(other));
        // It comes back while the other is at work.
        world.change(0, vec![mute(5, 7_000)]);
        world.heal(&owner, "db");
        world.run(3_000);
        one_line_of_versions(world);
    });
}

/// The machine stands still with the answer in its sockets, and goes on when the account is somebody else's.
#[test]
fn the_owner_stands_still_between_upload_and_answer() {
    on_every_store(hosts(), |world| {
        let (owner, _) = owner_and_other(world);
        the_patch_is_taken(world);
        world.freeze(&owner);
        the_phone_changes_the_same(world);
        another_takes_over(world, &owner);
        world.change(0, vec![mute(5, 7_000)]);
        world.thaw(&owner);
        world.run(3_000);
        one_line_of_versions(world);
    });
}

/// Cut off from the service with a patch on its way: the owner stays, and its patch arrives when others have gone on.
#[test]
fn the_owner_is_cut_off_from_the_service() {
    on_every_store(hosts(), |world| {
        let (owner, _) = owner_and_other(world);
        the_patch_is_on_its_way(world);
        world.cut(&owner, "service");
        the_phone_changes_the_same(world);
        world.run(40_000);
        world.heal(&owner, "service");
        one_line_of_versions(world);
    });
}

/// Somebody asks a process that waits for the account, and the clock of its machine is set back before it has it. The
/// change is made under the new date, which is before the one on which it was asked for; it is not lost for that.
#[test]
fn a_change_waits_while_the_clock_is_set_back() {
    let setup = Setup {
        hosts: 1,
        ..hosts()
    };
    on_every_store(setup, |world| {
        world.kill("a");
        world.start("a");
        world.run(1_000);
        world.change(0, vec![mute(1, 9_000)]);
        world.run(500);
        world.jump("a", -1_800_000);
        let made = world.run_until(2 * TAKEOVER, |world| announced(world).len() == 1);
        assert!(made, "nobody made it");
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
    });
}

/// All of it at once: the phone is always a moment faster, the answer gets lost, the key changes, and the owner dies.
#[test]
fn the_phone_is_faster_while_owners_come_and_go() {
    on_every_store(hosts(), |world| {
        let device = world.books(|books| DeviceId::new(&books[0].phone, 1));
        for round in 0..3 {
            let (owner, _) = owner_and_other(world);
            let fault = |what| Fault::Settings {
                device: device.clone(),
                what,
                count: 1,
            };
            world.fault(fault(SettingsFault::Overtake));
            if round == 1 {
                world.fault(fault(SettingsFault::LateKeys));
                world.fault(Fault::RotateKey {
                    device: device.clone(),
                });
            } else {
                world.fault(fault(SettingsFault::LostAnswer));
            }
            world.run(50);
            let before = announced(world).len();
            world.change(0, vec![mute(6, 1_000 + round), pin(6, round % 2 == 0)]);
            wait_for(world, "a patch on its way", |world| world.announces(0));
            match round {
                // What overtakes it is under a key that comes later.
                1 => world.run(100),
                _ => wait_for(world, "a patch taken", |world| {
                    announced(world).len() > before
                }),
            }
            world.kill(&owner);
            world.phone_change(0, vec![mute(6, 2_000), pin(6, true)]);
            another_takes_over(world, &owner);
            world.start(&owner);
        }
        let verdict = world.rest(120_000);
        assert_good(world, &verdict);
        let effects = world.effects();
        let met = |name| effects.get(name).copied().unwrap_or(0);
        assert!(
            met("settings_overtake") >= 3 && met("settings_lost_answer") >= 2,
            "{effects:?}"
        );
        assert!(verdict.settings > 12, "{} settings", verdict.settings);
    });
}

/// The owner is killed at every moment, from before the change is durable to after everything is: one world each.
#[test]
fn the_owner_dies_at_every_moment() {
    for after in (0..120).step_by(4) {
        on_stores(vec![Kind::Memory], hosts(), |world| {
            let (owner, _) = owner_and_other(world);
            world.change(0, vec![mute(1, 9_000), name(4, "Ann Example")]);
            world.run(after);
            match after % 8 {
                0 => world.kill(&owner),
                _ => world.power_loss(&owner),
            }
            the_phone_changes_the_same(world);
            another_takes_over(world, &owner);
            let verdict = world.rest(90_000);
            assert_good(world, &verdict);
            let announced = announced(world);
            assert!(announced.len() <= 2, "said twice: {announced:#?}");
        });
    }
}
