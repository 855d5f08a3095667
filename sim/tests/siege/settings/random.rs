//! Random histories of engine, another device and phone, against a plain model.

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// Another device changes something; we are told, or not.
    Remote(Vec<(u8, u8, bool)>, bool),
    /// We do.
    Local(Vec<(u8, u8, bool)>),
    Hold,
    Commit(usize),
    Crash,
    HangUp,
    Lose,
    Terse(bool),
    External(bool),
    Page(usize),
    Compact(u8),
    Pass(u8),
    /// The phone makes a new key, and tells us, or not.
    Rotate(bool),
    /// It tells us what it has not told us.
    Share,
}

fn op() -> impl Strategy<Value = Op> {
    let what = || vec((0..3u8, 0..4u8, any::<bool>()), 1..4);
    prop_oneof![
        4 => (what(), any::<bool>()).prop_map(|(what, told)| Op::Remote(what, told)),
        5 => what().prop_map(Op::Local),
        2 => Just(Op::Hold),
        2 => (0..4usize).prop_map(Op::Commit),
        2 => Just(Op::Crash),
        1 => Just(Op::HangUp),
        1 => Just(Op::Lose),
        1 => any::<bool>().prop_map(Op::Terse),
        1 => any::<bool>().prop_map(Op::External),
        1 => (1..5usize).prop_map(Op::Page),
        1 => (0..5u8).prop_map(Op::Compact),
        2 => (1..20u8).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Rotate),
        1 => Just(Op::Share),
    ]
}

proptest! {
    #![proptest_config(cases(48))]

    /// Whatever happens in whatever order, crashes included: no patch of ours is unsound (the other device verifies each),
    /// every change that was accepted is in the log, and in the end both have the same.
    #[test]
    fn engine_and_model_agree(ops in vec(op(), 1..40), seed in any::<u8>()) {
        let (mut rig, cloud) = primed(seed);
        // Connections that were asked for while commits were held are made and ended in one breath.
        rig.confused = true;
        rig.give(Input::Tick);
        let mut lives = 1u64;
        let mut unique = 10_000i64;
        cloud.borrow_mut().tidy = true;
        // Keys that the phone has made, those that we were not told of, and how often it has said something.
        let (mut made, mut untold, mut said): (Vec<(KeyId, [u8; 32])>, Vec<_>, u32) = Default::default();
        let mut phone = None;
        let mut share_all = |rig: &mut Rig, untold: &mut Vec<(KeyId, [u8; 32])>, phone: &mut Option<usize>| {
            for key in untold.drain(..) {
                said += 1;
                let phone = *phone.get_or_insert_with(|| own_phone(rig));
                share(rig, phone, &key, &format!("keys {said}"));
            }
        };
        // Accepted and confirmed changes, by the setting's name, with the last value.
        let mut accepted: BTreeMap<(u8, u8), Action> = BTreeMap::new();
        let mut crash = |rig: &mut Rig| {
            lives += 1;
            let later = lives * 2_000_000;
            let (store, account) = (rig.store.copy(move || Micros(later * SECOND)), rig.account.clone());
            let unix = rig.now.unix;
            *rig = engine(store, account, seed.wrapping_add(lives as u8), &cloud);
            rig.now.unix = unix;
            rig.confused = true;
            rig.give(Input::Tick);
        };
        for op in ops {
            match op {
                Op::Remote(what, told) => {
                    let mut actions: BTreeMap<u8, Action> = BTreeMap::new();
                    let kind = what[0].0;
                    for (_, n, on) in what {
                        unique += 1;
                        let action = action(kind, n, on, unique);
                        let here = cloud.borrow().log(action.collection().expect("known")).values.contains_key(&action.change(0).expect("known").1.index);
                        let removes = matches!(action, Action::Contact { card: None, .. });
                        if here || !removes {
                            actions.insert(n, action);
                        }
                    }
                    let actions: Vec<Action> = actions.into_values().collect();
                    if actions.is_empty() {
                        continue;
                    }
                    let collection = cloud.borrow_mut().remote(&actions);
                    if told && rig.is_up() {
                        let version = cloud.borrow().log(collection).state.version;
                        notify(&mut rig, collection, version);
                    }
                }
                Op::Local(what) => {
                    let mut actions = Vec::new();
                    let mut names = Vec::new();
                    for (kind, n, on) in what {
                        unique += 1;
                        actions.push(action(kind, n, on, unique));
                        names.push((kind, n));
                    }
                    // With held commits the answer comes later, or never: then nothing was promised.
                    let done = change(&mut rig, actions.clone()) == Some(Ok(Reply::Done));
                    for (name, action) in names.into_iter().zip(actions) {
                        if done {
                            accepted.insert(name, action);
                        } else {
                            accepted.remove(&name);
                        }
                    }
                }
                Op::Hold => rig.hold = true,
                Op::Commit(n) => rig.commit(n),
                Op::Crash => {
                    crash(&mut rig);
                    // A key that was not durable is lost with us, and is not acknowledged: it comes again.
                    untold.clone_from(&made);
                    phone = None;
                }
                Op::HangUp => {
                    // A driver says so only of a connection that it has made.
                    if rig.is_up() {
                        rig.hang_up();
                    }
                    rig.pass(5 * SECOND);
                }
                Op::Lose => cloud.borrow_mut().lose = 1,
                Op::Terse(on) => cloud.borrow_mut().terse = on,
                Op::External(on) => cloud.borrow_mut().external = on,
                Op::Page(n) => cloud.borrow_mut().page = n,
                Op::Compact(n) => {
                    // A service forgets only what every device has: ours is at its version already, or asks anew.
                    let collection = Collection::ALL[usize::from(n)];
                    let have = collection_row(&rig, collection).version.unwrap_or(0);
                    if have == cloud.borrow().log(collection).state.version {
                        cloud.borrow_mut().compact(collection);
                    }
                }
                Op::Rotate(told) => {
                    let n = u8::try_from(made.len()).expect("few") + 2;
                    let new = (KeyId::new(vec![0, 0, 0, 0, 0, n]).expect("short"), [n; 32]);
                    let old = std::mem::replace(&mut cloud.borrow_mut().key, new.clone());
                    cloud.borrow_mut().others.push(old);
                    made.push(new.clone());
                    untold.push(new);
                    if told && rig.is_up() {
                        share_all(&mut rig, &mut untold, &mut phone);
                    }
                }
                Op::Share => {
                    if rig.is_up() {
                        share_all(&mut rig, &mut untold, &mut phone);
                    }
                }
                Op::Pass(seconds) => rig.pass(u64::from(seconds) * SECOND),
            }
            prop_assert!(rig.stopped.is_none(), "{:?}", rig.stopped);
        }
        // Everything heals.
        rig.commit(usize::MAX);
        rig.hold = false;
        cloud.borrow_mut().lose = 0;
        rig.pass(200 * SECOND);
        untold.clone_from(&made);
        share_all(&mut rig, &mut untold, &mut phone);
        rig.command(Command::Sync(None));
        rig.pass(100 * SECOND);
        converged(&mut rig, &cloud);
        prop_assert_eq!(rig.engine.stats().sync.resyncs, 0);
        prop_assert_eq!(rig.engine.stats().sync.given_up, 0);
        for (name, action) in accepted {
            let removes = matches!(action, Action::Contact { card: None, .. });
            let cloud = cloud.borrow();
            let log = cloud.log(action.collection().expect("known"));
            prop_assert!(removes || log.ours.contains(&action), "{name:?} was accepted and is nowhere");
        }
    }
}

fn action(kind: u8, n: u8, on: bool, unique: i64) -> Action {
    match kind {
        0 => mute(n, if on { unique } else { unique + 1_000_000 }),
        1 => contact(n, on.then(|| format!("name {unique}")).as_deref()),
        _ => Action::Archive {
            chat: chat(n),
            archived: on,
            range: Some(baton_core::appstate::action::MessageRange {
                last: unique,
                ..Default::default()
            }),
        },
    }
}
