//! Answers at odd moments, and figures at the edge of what they mean.

use super::*;

#[test]
fn only_a_member_with_a_fresh_lease_is_healthy() {
    let health = |bench: &Bench| (bench.host.is_member(), bench.host.is_healthy());
    let mut bench = Bench::new();
    assert_eq!(health(&bench), (false, false));
    bench.input(0, Input::Start);
    assert_eq!(health(&bench), (false, false));
    let mut bench = Bench::active();
    assert_eq!(health(&bench), (true, true));
    bench.starve(2_600);
    assert_eq!(bench.host.state(), State::Suspect);
    assert_eq!(health(&bench), (true, false));
    bench.input(2_700, Input::Ended(bench.host.who()));
    assert_eq!(health(&bench), (false, false));
}

/// Four in five is well connected, for us and for the others.
#[test]
fn accounts_are_better_off_elsewhere_only_if_others_are_connected_and_we_are_not() {
    use HostState::{Active, Draining};
    for (up, theirs, better) in [
        (8, other(7, Active, 100, 81), true),
        (9, other(7, Active, 100, 81), false),
        (0, other(7, Active, 100, 80), false),
        (0, other(7, Active, 100, 100), true),
        (0, other(7, Active, 0, 0), false),
        (0, other(7, Draining, 100, 100), false),
    ] {
        let mut bench = Bench::active();
        let load = Load {
            accounts: 20,
            wanting: 10,
            up,
        };
        bench.host.set_load(load);
        assert_eq!(bench.host.load(), load);
        let case = format!("{up} of 10, and {theirs:?}");
        let view = View {
            hosts: vec![theirs],
            ..View::default()
        };
        bench.feed(2_000, &view);
        assert_eq!(bench.host.others_are_better(), better, "{case}");
    }
    // Who wants none, lacks none. And a host that is alone is as good as any.
    let mut bench = Bench::active();
    bench.feed(2_000, &View::default());
    assert!(!bench.host.others_are_better());
}

#[test]
fn a_host_is_dark_when_fewer_than_one_in_five_are_connected() {
    for (up, wanting, state) in [
        (2, 10, State::Active),
        (2, 9, State::Active),
        (2, 11, State::Draining),
        (20, 101, State::Draining),
        (0, 0, State::Active),
    ] {
        let mut bench = Bench::active();
        bench.host.set_load(Load {
            accounts: wanting,
            wanting,
            up,
        });
        let view = View {
            hosts: vec![other(7, HostState::Active, 50, 50)],
            ..View::default()
        };
        bench.feed(20_000, &view);
        assert_eq!(bench.host.state(), state, "{up} of {wanting}");
    }
}

#[test]
fn a_question_that_is_out_is_not_asked_again() {
    let mut bench = Bench::new();
    bench.input(0, Input::Start);
    bench.tick(500);
    bench.tick(1_999);
    assert_eq!(bench.calls.len(), 1, "{:?}", bench.calls);
    bench.answer(1_999, Answer::Joined(1));
    bench.tick(2_000);
    bench.tick(2_700);
    assert_eq!(bench.calls.len(), 2, "{:?}", bench.calls);
    bench.input(2_710, Input::Drain { leave: true });
    bench.input(2_720, Input::Empty);
    bench.tick(2_730);
    bench.tick(4_700);
    assert_eq!(bench.calls.len(), 3, "{:?}", bench.calls);
    assert_eq!(bench.last().ask, Ask::Leave);
}

#[test]
fn what_was_long_on_its_way_does_not_make_a_lease_fresh() {
    for (late, state) in [(2_499, State::Active), (2_500, State::Suspect)] {
        let mut bench = Bench::active();
        bench.feed(1_500, &View::default());
        let sent = bench.host.wake().unwrap().0.div_ceil(MS);
        bench.tick(sent);
        let asked = bench.last().clone();
        assert!(matches!(asked.ask, Ask::Beat(_)));
        // Nothing is heard meanwhile.
        bench.starve(sent + late - 1);
        let renewed = Answer::Beaten(Beaten::Renewed(View::default()));
        bench.input(sent + late, Input::Answer(asked.id, renewed));
        assert_eq!(bench.host.state(), state, "after {late} ms");
        let resumed = bench.orders().contains(&Order::Resume);
        assert_eq!(resumed, state == State::Active, "after {late} ms");
    }
}

/// Also when somebody else has found out that a host is gone, there are accounts to look for; but once.
#[test]
fn the_end_of_a_host_that_we_knew_is_a_reason_to_look() {
    let mut bench = Bench::active();
    let looks = |bench: &mut Bench, hosts: &[(u64, HostState)], at| {
        let hosts = hosts.iter().map(|(n, state)| other(*n, *state, 0, 0));
        let view = View {
            hosts: hosts.collect(),
            ..View::default()
        };
        bench.others.clear();
        bench.feed(at, &view);
        let mut scans = Vec::new();
        for output in &bench.others {
            if let Output::Look { scan } = output {
                scans.push(*scan);
            }
        }
        scans
    };
    use HostState::{Active, Dead};
    let know = looks(&mut bench, &[(7, Active), (8, Active)], 1_500);
    assert!(!know.contains(&true), "{know:?}");
    // One that was gone before we came.
    let strange = looks(&mut bench, &[(7, Active), (8, Active), (9, Dead)], 3_000);
    assert!(
        !strange.is_empty() && !strange.contains(&true),
        "{strange:?}"
    );
    let gone = looks(&mut bench, &[(7, Active), (8, Dead), (9, Dead)], 6_000);
    assert!(gone[0] && !gone[1..].contains(&true), "{gone:?}");
}

#[test]
fn incarnations_fit_a_signed_number() {
    let mut rng = Rng::from_seed([4; 32]);
    let all: Vec<u64> = (0..64).map(|_| incarnation(&mut rng).0).collect();
    assert!(all.iter().all(|n| i64::try_from(*n).is_ok()));
    assert!(all.iter().any(|n| n % 2 == 1));
}
