//! Every way in which the service can show an account the door.

use crate::rest;
use crate::rig::{SECOND, ready};
use baton_core::engine::StopReason;
use baton_core::flow::{Event, LinkState, describe_device};
use baton_core::proto::record;
use baton_core::state::{Key, Row, Store, codec};
use sim::service::DeviceId;
use sim::service::faults::Fault;
use sim::world::{Options, Step, World, judge};

/// What an engine does after the service has shown it the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Online again within so many seconds.
    Back(u64),
    /// Online again, but not before so many seconds.
    NotBefore(u64),
    Stopped(StopReason),
    /// The engine stops and does not fight for the connection; its driver comes back after a while.
    Replaced,
    LoggedOut(u16),
}

pub(crate) fn shown_the_door(
    seed: u64,
    refusals: u32,
    fault: impl FnOnce(DeviceId) -> Vec<Step>,
    after: &After,
) {
    let mut world = World::new(Options {
        seed,
        ..Options::default()
    });
    world.link_all();
    rest(&mut world);
    let identity = |world: &World| -> record::Device {
        let rows = ready(
            world
                .store()
                .load(&world.accounts()[0].id, vec![Key::Device]),
        )
        .expect("rows");
        let [Row::Present(row)] = rows.as_slice() else {
            panic!("{rows:?}")
        };
        codec::decode(row).expect("the device row")
    };
    let before = identity(&world);
    let device = DeviceId::new(&world.accounts()[0].phone, 1);
    let logins = |world: &World| {
        world
            .service()
            .books()
            .device(&device)
            .map_or(0, |log| log.connections.len())
    };
    let start = world.now().mono.0;
    let known = logins(&world);
    for step in fault(device.clone()) {
        world.plan(0, step);
    }
    // A message for the account: it waits at the service, or reaches whoever comes back.
    world.plan_text(SECOND, 1, 0, "are you there?");
    let mut back = None;
    while back.is_none() && world.now().mono.0 < start + 400 * SECOND {
        world.run(world.now().mono.0 + 50_000);
        let again = logins(&world) > known && world.accounts()[0].online;
        back = again.then(|| (world.now().mono.0 - start) / SECOND);
    }
    let account = &world.accounts()[0];
    let said = format!(
        "{after:?} ({refusals} refusals): back {back:?}, stops {:?}",
        account.stops
    );
    match after {
        After::Back(within) => {
            assert!(back.is_some_and(|back| back <= *within), "{said}");
            assert_eq!(account.stops, [], "{said}");
        }
        After::NotBefore(least) => {
            assert!(back.is_some_and(|back| back >= *least), "{said}");
            assert_eq!(account.stops, [], "{said}");
        }
        After::Replaced => {
            assert!(back.is_some_and(|back| back >= 2), "{said}");
            assert_eq!(account.stops, [StopReason::Replaced], "{said}");
        }
        After::Stopped(reason) => {
            assert_eq!(account.stops, std::slice::from_ref(reason), "{said}");
            assert_eq!(logins(&world), known, "it came back: {said}");
        }
        After::LoggedOut(code) => {
            assert_eq!(account.stops, [StopReason::LoggedOut(*code)], "{said}");
            let last = account.events.values().next_back();
            assert_eq!(last, Some(&Event::LoggedOut { code: *code }), "{said}");
        }
    }
    let row = identity(&world);
    assert_eq!(
        (
            row.identity_private.clone(),
            row.noise_private.clone(),
            row.jid.clone(),
            row.account.clone()
        ),
        (
            before.identity_private,
            before.noise_private,
            before.jid,
            before.account
        ),
        "keys are kept: {said}"
    );
    let state = describe_device(&codec::encode(&row)).expect("a row").state;
    match after {
        After::LoggedOut(code) => {
            assert_eq!(state, LinkState::LoggedOut(*code));
            // The next owner finds it so, tells the consumer what was not acknowledged, and does not connect.
            world.crash(0, SECOND);
            rest(&mut world);
            assert_eq!(logins(&world), known);
            assert_eq!(
                world.accounts()[0].stops.last(),
                Some(&StopReason::LoggedOut(*code))
            );
        }
        After::Stopped(_) => {
            assert_eq!(state, LinkState::Linked);
            // Somebody has done something about it, and starts it again.
            world.crash(0, SECOND);
            rest(&mut world);
            assert!(world.accounts()[0].online, "{said}");
            assert_eq!(judge(&world).lost, 0);
        }
        _ => {
            assert_eq!(state, LinkState::Linked);
            rest(&mut world);
            assert_eq!(judge(&world).lost, 0, "{said}");
        }
    }
}

#[test]
fn every_failure_at_login() {
    let stopped = |code| After::Stopped(StopReason::Refused(code));
    let rows = [
        (401, After::LoggedOut(401)),
        (403, After::LoggedOut(403)),
        (406, After::LoggedOut(406)),
        (
            402,
            After::Stopped(StopReason::Banned {
                code: 0,
                seconds: 0,
            }),
        ),
        (405, After::Stopped(StopReason::Outdated)),
        (400, stopped(400)),
        (409, stopped(409)),
        (413, stopped(413)),
        (414, stopped(414)),
        (415, stopped(415)),
        (418, stopped(418)),
        (501, stopped(501)),
        (500, After::Back(30)),
        (503, After::Back(30)),
    ];
    for (n, (reason, after)) in rows.into_iter().enumerate() {
        let refuse = |device: DeviceId| {
            vec![
                Step::Fault(Fault::FailLogin {
                    device,
                    reason,
                    count: 1,
                }),
                Step::Cut { account: 0 },
            ]
        };
        shown_the_door(50 + n as u64, 1, refuse, &after);
    }
    // The pause grows with every refusal.
    let refuse = |device: DeviceId| {
        vec![
            Step::Fault(Fault::FailLogin {
                device,
                reason: 503,
                count: 6,
            }),
            Step::Cut { account: 0 },
        ]
    };
    shown_the_door(70, 6, refuse, &After::NotBefore(30));
}

#[test]
fn every_error_of_a_stream() {
    let rows = [
        (Some(515), None, After::Back(1)),
        (Some(516), None, After::LoggedOut(516)),
        (Some(401), None, After::Back(30)),
        (Some(401), Some("device_removed"), After::LoggedOut(401)),
        (Some(401), Some("replaced"), After::Replaced),
        (None, Some("replaced"), After::Replaced),
        (None, Some("something new"), After::Replaced),
        (Some(409), None, After::Replaced),
        (Some(429), None, After::NotBefore(10)),
        (Some(500), None, After::Back(30)),
        (Some(503), None, After::Back(30)),
        (None, None, After::Back(30)),
        (Some(999), None, After::Back(30)),
    ];
    for (n, (code, conflict, after)) in rows.into_iter().enumerate() {
        let end = |device: DeviceId| {
            vec![Step::Fault(Fault::StreamError {
                device,
                code,
                conflict: conflict.map(Into::into),
            })]
        };
        shown_the_door(80 + n as u64, 0, end, &after);
    }
}
