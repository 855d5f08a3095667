//! A store that lies, a driver that stumbles, rows that are damaged.

use crate::malice::{OUTPUTS, stanza, stranger, unlinked};
use crate::rig::{Rig, SECOND, ready};
use crate::{cases, keys, rest, texts};
use baton_core::engine::{Engine, Grant, Input, LoadId, Output, StopReason};
use baton_core::flow::{Command, CommandId, Content, Event, SendRequest};
use baton_core::jid::Jid;
use baton_core::proto::record;
use baton_core::state::{
    Epoch, EventSeq, Key, Micros, Record, Row, Scan, Seq, Store, Table, UnixMillis, codec,
};
use baton_core::wire::node::Node;
use proptest::collection::vec;
use proptest::prelude::*;
use sim::service::DeviceId;
use sim::service::faults::Fault;
use sim::world::{Options, Step, World, judge};

/// What a driver and a store can do wrong, and what clocks can.
#[derive(Clone, Debug)]
pub(crate) enum Slip {
    Tick(u64),
    Back(u64),
    Wall(i64),
    Opened,
    Closed,
    Received(Vec<u8>),
    /// Answers the n-th open load with this many rows of this kind; or a load that was never asked for.
    Loaded {
        n: usize,
        rows: Vec<u8>,
        made_up: Option<u64>,
    },
    Scanned {
        n: usize,
        keys: Vec<u8>,
        made_up: Option<u64>,
    },
    Committed {
        epoch: i8,
        upto: u64,
    },
    Fenced(u64),
    Grant {
        epoch: i8,
        until: i64,
    },
    Send(u8),
    Acknowledge(u64),
    Other(u8),
    Reseed,
    /// The honest way on.
    Answer,
    Commit,
    Say(Node),
    Text,
}

pub(crate) fn slip() -> impl Strategy<Value = Slip> {
    let number = || {
        prop_oneof![
            Just(0u64),
            1..30u64,
            Just(u64::MAX),
            Just(u64::MAX - 1),
            any::<u64>()
        ]
    };
    prop_oneof![
        3 => (0..60 * SECOND).prop_map(Slip::Tick),
        1 => any::<u64>().prop_map(Slip::Back),
        1 => (-315_576_000_000i64..315_576_000_000).prop_map(Slip::Wall),
        1 => Just(Slip::Opened),
        1 => Just(Slip::Closed),
        1 => vec(any::<u8>(), 0..60).prop_map(Slip::Received),
        3 => (0..3usize, vec(any::<u8>(), 0..12), proptest::option::of(number()))
            .prop_map(|(n, rows, made_up)| Slip::Loaded { n, rows, made_up }),
        2 => (0..2usize, vec(any::<u8>(), 0..12), proptest::option::of(number()))
            .prop_map(|(n, keys, made_up)| Slip::Scanned { n, keys, made_up }),
        2 => (-1..2i8, number()).prop_map(|(epoch, upto)| Slip::Committed { epoch, upto }),
        2 => (-1..2i8, -20_000_000i64..40_000_000).prop_map(|(epoch, until)| Slip::Grant { epoch, until }),
        2 => any::<u8>().prop_map(Slip::Send),
        1 => number().prop_map(Slip::Acknowledge),
        1 => any::<u8>().prop_map(Slip::Other),
        1 => Just(Slip::Fenced(u64::MAX)),
        1 => Just(Slip::Reseed),
        8 => Just(Slip::Answer),
        6 => Just(Slip::Commit),
        2 => stanza().prop_map(Slip::Say),
        3 => Just(Slip::Text),
    ]
}

pub(crate) fn some_key(n: u8) -> Key {
    match n % 9 {
        0 => Key::Outbox(format!("{n}").into()),
        1 => Key::Inbox(EventSeq(u64::from(n))),
        2 => Key::Inbox(EventSeq(u64::MAX - u64::from(n))),
        3 => Key::Inbox(EventSeq(0)),
        4 => Key::Mailbox(format!("{n}").into()),
        5 => Key::Device,
        6 => Key::PreKey(u32::from(n)),
        7 => Key::Session(stranger()),
        _ => Key::Counters,
    }
}

pub(crate) fn some_row(n: u8) -> Row {
    let number = |n: u64| record::Counters {
        next_event: Some(n),
        next_order: Some(n),
        next_pre_key: Some(n as u32),
        first_unconfirmed_pre_key: Some(0),
        burn: Some(n as u32),
        next_signed_pre_key: Some(n as u32),
        pre_keys_due: Some(n.is_multiple_of(2)),
        origin: None,
    };
    match n % 8 {
        0 => Row::Absent,
        1 => Row::Corrupt,
        2 => Row::Present(Record(vec![n; usize::from(n) / 2].into())),
        3 => Row::Present(Record(vec![1].into())),
        4 => Row::Present(codec::encode(&number(u64::MAX))),
        5 => Row::Present(codec::encode(&number(u64::from(n)))),
        6 => Row::Present(codec::encode(&record::Outbound {
            state: Some(i32::from(n) % 7),
            to: Some("800000000000001@lid".into()),
            content: (n > 100).then(|| vec![n]),
            order: Some(u64::MAX),
            stanza: (n > 200).then(|| vec![0, 0xf8, 1, 3]),
            ..Default::default()
        })),
        _ => Row::Present(codec::wrap(&[n; 40])),
    }
}

pub(crate) fn stumble(rig: &mut Rig, slip: Slip, n: usize) {
    let epoch_of = |rig: &Rig, by: i8| {
        Epoch(
            rig.grant
                .lease
                .term
                .epoch
                .0
                .saturating_add_signed(by.into()),
        )
    };
    match slip {
        Slip::Tick(micros) => {
            rig.now.mono.0 += micros;
            rig.give(Input::Tick);
        }
        Slip::Back(micros) => {
            let now = rig.now;
            rig.now.mono.0 = now.mono.0.saturating_sub(micros);
            rig.give(Input::Tick);
            rig.now = now;
        }
        Slip::Wall(millis) => {
            rig.now.unix = UnixMillis(rig.now.unix.0 + millis);
            rig.give(Input::Tick);
        }
        Slip::Opened => rig.give(Input::Opened),
        Slip::Closed => rig.give(Input::Closed),
        Slip::Received(bytes) => rig.give(Input::Received(&bytes)),
        Slip::Loaded { n, rows, made_up } => {
            let known = rig.asked.get(n).map(|(id, _, _)| *id);
            if let Some(id) = made_up.map(LoadId).or(known) {
                rig.asked
                    .retain(|(other, _, scan)| *other != id || scan.is_some());
                rig.give(Input::Loaded(id, rows.into_iter().map(some_row).collect()));
            }
        }
        Slip::Scanned { n, keys, made_up } => {
            let known = rig.asked.get(n).map(|(id, _, _)| *id);
            if let Some(id) = made_up.map(LoadId).or(known) {
                rig.asked
                    .retain(|(other, _, scan)| *other != id || scan.is_none());
                let rows = keys
                    .into_iter()
                    .map(|n| (some_key(n), some_row(n.wrapping_mul(7))));
                rig.give(Input::Scanned(id, rows.collect()));
            }
        }
        Slip::Committed { epoch, upto } => {
            let epoch = epoch_of(rig, epoch);
            rig.give(Input::Committed {
                epoch,
                upto: Seq(upto),
            });
        }
        Slip::Fenced(by) => rig.give(Input::Fenced { by: Epoch(by) }),
        Slip::Grant { epoch, until } => {
            let mut lease = rig.grant.lease;
            lease.term.epoch = epoch_of(rig, epoch);
            lease.applied = Seq(u64::MAX);
            let grant = Grant {
                lease,
                until: Micros(rig.now.mono.0.saturating_add_signed(until)),
            };
            rig.give(Input::Granted(grant));
        }
        Slip::Send(n) => {
            let request = SendRequest {
                id: (n % 3 == 0).then(|| format!("send-{n}").into()),
                to: if n % 2 == 0 {
                    stranger()
                } else {
                    Jid::pn("15550009999").expect("digits")
                },
                content: Content::Text("x".repeat(usize::from(n))),
            };
            rig.command(Command::Send(request));
        }
        Slip::Acknowledge(n) => {
            rig.command(Command::Acknowledge(EventSeq(n)));
        }
        Slip::Other(n) => {
            rig.command(match n % 6 {
                0 => Command::Link,
                1 => Command::CheckMailbox,
                2 => Command::Presence {
                    available: n > 99,
                    name: (n > 150).then(|| "@name".into()),
                },
                3 => Command::MarkRead {
                    chat: stranger(),
                    sender: None,
                    ids: vec!["a".into(); usize::from(n)],
                },
                4 => Command::Logout,
                _ => Command::CheckMailbox,
            });
        }
        Slip::Reseed => rig.give(Input::Reseed([7; 32])),
        Slip::Answer => {
            for (id, keys, scan) in std::mem::take(&mut rig.asked) {
                match scan {
                    Some(scan) => {
                        let rows = ready(rig.store.scan(&rig.account, scan)).expect("rows");
                        rig.give(Input::Scanned(id, rows));
                    }
                    None => {
                        let rows = ready(rig.store.load(&rig.account, keys)).expect("rows");
                        rig.give(Input::Loaded(id, rows));
                    }
                }
            }
        }
        Slip::Commit => {
            if let Some(batch) = rig.held.pop_front() {
                let (epoch, upto) = (batch.term.epoch, batch.seq);
                // A store can refuse what was built on lies.
                let _ = ready(rig.store.commit(vec![batch]));
                rig.give(Input::Committed { epoch, upto });
            }
        }
        Slip::Say(node) => rig.say(&node),
        Slip::Text => {
            let text = rig.text(0, &format!("text-{n}"), "text");
            rig.say(&text);
        }
    }
}

proptest! {
    #![proptest_config(cases(96))]

    /// Answers to nothing, too few rows and too many, rows of other tables, commits that never were, clocks and leases
    /// that jump, inputs at the wrong time: never a panic, never an endless loop; and once stopped, stopped for good.
    #[test]
    fn nothing_a_store_driver_or_clock_does_panics(
        seed in any::<u8>(),
        online in any::<bool>(),
        slips in vec(slip(), 1..60),
    ) {
        let mut rig = Rig::new(seed);
        rig.peer("800000000000005");
        if online {
            rig.go_online();
        }
        rig.hold = true;
        rig.answers = false;
        rig.confused = true;
        for (n, slip) in slips.into_iter().enumerate() {
            stumble(&mut rig, slip, n);
            prop_assert!(rig.outputs < OUTPUTS, "{} outputs", rig.outputs);
            if let Some(reason) = rig.stopped.clone() {
                for input in [Input::Opened, Input::Tick, Input::Closed, Input::Granted(rig.grant)] {
                    rig.give(input);
                }
                prop_assert_eq!(rig.engine.poll(&mut Vec::new()), Output::Stopped(reason));
                break;
            }
        }
    }

    /// The first rows an engine is given are lies: it stops and says which table, or goes on without panic.
    #[test]
    fn no_row_of_the_beginning_panics(
        device in any::<u8>(),
        counters in any::<u8>(),
        pages in vec(vec((any::<u8>(), any::<u8>()), 0..300), 1..6),
    ) {
        let mut rig = unlinked(13);
        let (store, account) = crate::rig::store();
        rig.engine = Engine::new(account.clone(), config_of(&rig), rig.grant, [1; 32], rig.now);
        let rows = ready(store.load(&account, vec![Key::Device])).expect("rows");
        let device = if device < 200 { rows[0].clone() } else { some_row(device) };
        let mut pages = pages.into_iter();
        let mut wire = Vec::new();
        for _ in 0..50 {
            match rig.engine.poll(&mut wire) {
                Output::Load(id, keys) if keys.first() == Some(&Key::Device) => {
                    let rows = vec![device.clone(), some_row(counters)];
                    rig.engine.handle(Input::Loaded(id, rows), rig.now);
                }
                Output::Load(id, keys) => {
                    rig.engine.handle(Input::Loaded(id, keys.iter().map(|_| Row::Corrupt).collect()), rig.now);
                }
                Output::Scan(id, _) => {
                    let page = pages.next().unwrap_or_default();
                    let rows = page.into_iter().map(|(key, row)| (some_key(key), some_row(row)));
                    rig.engine.handle(Input::Scanned(id, rows.collect()), rig.now);
                }
                Output::Idle { .. } => break,
                Output::Stopped(reason) => {
                    let StopReason::Store(why) = &reason else { panic!("{reason:?}") };
                    prop_assert!(Table::ALL.iter().any(|table| why.contains(table.name())), "{}", why);
                    break;
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn config_of(_: &Rig) -> baton_core::flow::Config {
    let mut kept = None;
    let (store, account) = crate::rig::store();
    Rig::with(store, account, 1, |config| kept = Some(config.clone()));
    kept.expect("it was called")
}

/// The rows that the engine cannot do without: it stops and names the table. Nothing is written over them.
#[test]
fn an_unreadable_account_row_stops_the_engine_and_names_it() {
    let garbage = || Record(vec![1, 0xff, 0xff].into());
    let newer = || Record(vec![9].into());
    let wild = codec::encode(&record::Counters {
        next_event: Some(u64::MAX),
        ..Default::default()
    });
    let pre_keys = codec::encode(&record::Counters {
        next_pre_key: Some(u32::MAX),
        first_unconfirmed_pre_key: Some(1),
        ..Default::default()
    });
    let cases = [
        (Key::Device, None, "device"),
        (Key::Device, Some(garbage()), "device"),
        (Key::Device, Some(newer()), "device"),
        (Key::Counters, None, "counters"),
        (Key::Counters, Some(garbage()), "counters"),
        (Key::Counters, Some(newer()), "counters"),
        (Key::Counters, Some(wild), "counters"),
        (Key::Counters, Some(pre_keys), "counters"),
    ];
    for (key, row, table) in cases {
        let (store, account) = crate::rig::store();
        match row {
            Some(row) => Rig::write(&store, &account, key.clone(), row),
            None => assert!(store.corrupt(&account, &key)),
        }
        let before = ready(store.load(&account, vec![key.clone()])).expect("rows");
        let mut rig = Rig::with(store, account, 14, |_| {});
        rig.give(Input::Tick);
        let Some(StopReason::Store(why)) = &rig.stopped else {
            panic!("{key:?}: {:?}", rig.stopped);
        };
        assert!(why.contains(table), "{why}");
        let said = rig.look();
        assert!(said.is_silent() && said.batches.is_empty());
        assert_eq!(rig.row(key), before[0]);
    }
}

/// A store that gives the same full page for ever is found out.
#[test]
fn a_scan_that_does_not_advance_ends() {
    let mut rig = Rig::new(15);
    let (store, account) = crate::rig::store();
    rig.engine = Engine::new(
        account.clone(),
        config_of(&rig),
        rig.grant,
        [1; 32],
        rig.now,
    );
    let mut scans = 0;
    loop {
        match rig.engine.poll(&mut Vec::new()) {
            Output::Load(id, keys) => {
                let rows = ready(store.load(&account, keys)).expect("rows");
                rig.engine.handle(Input::Loaded(id, rows), rig.now);
            }
            Output::Scan(id, Scan { limit, .. }) => {
                scans += 1;
                assert!(scans < 5);
                let row = (Key::Outbox("same".into()), Row::Corrupt);
                rig.engine
                    .handle(Input::Scanned(id, vec![row; limit as usize]), rig.now);
            }
            Output::Stopped(StopReason::Store(why)) => {
                assert!(why.contains("outbox"), "{why}");
                return;
            }
            Output::Idle { .. } => panic!("it waits"),
            _ => {}
        }
    }
}

/// Rows that say they are events of the far future are not waited for, and hide none of the real ones.
#[test]
fn made_up_events_hide_no_real_ones() {
    let (store, account) = crate::rig::store();
    for seq in [u64::MAX, 1 << 62, 1_000_000] {
        // The reference store takes what the rules allow; a liar's rows come through the answer itself.
        let mut rig = Rig::with(
            store.copy(|| Micros(1_000_000 * SECOND)),
            account.clone(),
            16,
            |_| {},
        );
        let _ = &mut rig;
        let mut liar = Engine::new(
            account.clone(),
            config_of(&rig),
            rig.grant,
            [1; 32],
            rig.now,
        );
        let mut shown = Vec::new();
        for _ in 0..200 {
            match liar.poll(&mut Vec::new()) {
                Output::Load(id, keys) => {
                    let rows = ready(store.load(&account, keys)).expect("rows");
                    liar.handle(Input::Loaded(id, rows), rig.now);
                }
                Output::Scan(id, scan) => {
                    let mut rows = ready(store.scan(&account, scan.clone())).expect("rows");
                    if scan.table == Table::Inbox {
                        rows.push((Key::Inbox(EventSeq(seq)), Row::Corrupt));
                    }
                    liar.handle(Input::Scanned(id, rows), rig.now);
                }
                Output::Event(seq, _) => shown.push(seq),
                Output::Idle { .. } => break,
                _ => {}
            }
        }
        liar.handle(
            Input::Command(CommandId(1), Command::Acknowledge(EventSeq(u64::MAX))),
            rig.now,
        );
        let first = shown.first().map_or(0, |seq| seq.0);
        let expected: Vec<_> = (0..shown.len() as u64)
            .map(|n| EventSeq(first + n))
            .collect();
        assert_eq!(shown, expected);
        assert!(shown.last().is_none_or(|last| last.0 < 1_000_000));
    }
}

/// Damage in any table but the account's own rows costs no message: a session is asked for anew, a list is fetched
/// again, a key is replaced. Event rows that are lost are gone, and said so; there are none here.
#[test]
fn damage_in_a_table_costs_no_message() {
    let tables = [
        Table::Session,
        Table::Identity,
        Table::PreKey,
        Table::DeviceList,
        Table::LidMap,
        Table::Seen,
        Table::Sent,
        Table::AppStateSyncKey,
    ];
    for table in tables {
        let mut world = World::new(Options {
            seed: 40,
            ..Options::default()
        });
        world.link_all();
        texts(&mut world, 6, 2 * SECOND);
        rest(&mut world);
        world.crash(0, SECOND);
        world.run(world.now().mono.0 + SECOND / 2);
        let damaged = keys(&world, 0, table);
        let id = world.accounts()[0].id.clone();
        assert!(!damaged.is_empty(), "{table:?} has no rows");
        for key in &damaged {
            assert!(world.store().corrupt(&id, key));
        }
        texts(&mut world, 6, 8 * SECOND);
        rest(&mut world);
        let verdict = judge(&world);
        assert_eq!(
            (verdict.lost, verdict.duplicated, verdict.violations),
            (0, 0, 0),
            "{table:?}: {verdict:?} {:?}",
            world.accounts()[0].notices
        );
        assert_eq!(world.accounts()[0].stops, []);
        let read_again = !matches!(
            table,
            Table::PreKey | Table::Seen | Table::Sent | Table::AppStateSyncKey
        );
        let said = world.accounts()[0]
            .notices
            .iter()
            .any(|notice| notice.contains("CorruptRow"));
        assert!(
            said || !read_again,
            "{table:?} was read, and nobody was told"
        );
    }
}

/// One row of the outbox is damaged: it is reported, and the others are sent.
#[test]
fn a_damaged_send_does_not_hold_up_the_others() {
    let mut world = World::new(Options {
        seed: 41,
        ..Options::default()
    });
    world.link_all();
    let device = DeviceId::new(&world.accounts()[0].phone, 1);
    world.plan(
        0,
        Step::Fault(Fault::IgnoreIq {
            device,
            count: 1000,
        }),
    );
    let ids: Vec<String> = (0..5)
        .map(|n| world.plan_text(100_000 + n * 100_000, 0, 1, &format!("text {n}")))
        .collect();
    world.run(world.now().mono.0 + 4 * SECOND);
    world.crash(0, SECOND);
    world.plan(0, Step::Heal);
    world.run(world.now().mono.0 + SECOND / 2);
    assert_eq!(keys(&world, 0, Table::Outbox).len(), 5);
    let victim = Key::Outbox(ids[2].as_str().into());
    let id = world.accounts()[0].id.clone();
    assert!(world.store().corrupt(&id, &victim));
    rest(&mut world);
    let account = &world.accounts()[0];
    assert!(
        account
            .notices
            .iter()
            .any(|notice| notice.contains("CorruptRow(outbox")),
        "{:?}",
        account.notices
    );
    let sent: Vec<String> = account
        .events
        .values()
        .filter_map(|event| match event {
            Event::Sent { id, .. } => Some(id.to_string()),
            _ => None,
        })
        .collect();
    let others: Vec<_> = ids.iter().filter(|id| **id != ids[2]).cloned().collect();
    assert_eq!(sent, others);
    assert_eq!(keys(&world, 0, Table::Outbox), [victim]);
}

/// What waits to be sent is for a user. A row that names one of the user's devices is none of ours: the list of devices was
/// loaded under one address and read under another. Found by engine_inputs.
#[test]
fn a_send_to_a_device_is_a_damaged_row() {
    let mut rig = Rig::online(60);
    let peer = rig.peer("800000000000006");
    let to = rig.peers[peer].jid.bare();
    rig.honest = false;
    rig.command(Command::Send(SendRequest {
        id: Some("waits".into()),
        to: to.clone(),
        content: Content::Text("text".into()),
    }));
    let key = Key::Outbox("waits".into());
    let Row::Present(record) = rig.row(key.clone()) else {
        panic!("it waits for the devices");
    };
    let mut row: record::Outbound = codec::decode(&record).expect("whole");
    row.to = Some(to.with_device(3).to_string());
    let (store, account) = (rig.store.clone(), rig.account.clone());
    crate::rig::bury(&store);
    Rig::write(&store, &account, key.clone(), codec::encode(&row));
    let mut next = Rig::with(store, account, 61, |_| {});
    next.give(Input::Tick);
    let said = next.look();
    let corrupt = said
        .notices
        .iter()
        .any(|it| format!("{it:?}").contains("CorruptRow(outbox"));
    assert!(corrupt, "{:?}", said.notices);
    assert_eq!(
        next.row(key),
        Row::Present(codec::encode(&row)),
        "kept as evidence"
    );
    assert!(next.is_up());
}
