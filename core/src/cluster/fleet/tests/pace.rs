//! How many at a time, and not before when.

use super::*;

fn at(secs: u64) -> Micros {
    Micros::from_secs(secs)
}

/// So many accounts on each of two hosts, we being the first, and none on the third, which comes at `comes`.
fn uneven(comes: u64) -> Bench {
    let mut bench = Bench::new(350);
    let full = HostView {
        slot: 3,
        accounts: 350,
        live: 350,
        info: info("three"),
        ..second(Incarnation(8))
    };
    bench.others = vec![full];
    bench.run(at(comes));
    assert_eq!(bench.fleet.accounts().count(), 350);
    bench.others.push(second(Incarnation(7)));
    bench
}

/// Two minutes of being uneven, five of quiet; then one per cent of all accounts a minute, shared among those that have
/// too much.
#[test]
fn evening_out_waits_and_then_takes_its_time() {
    for (comes, begins) in [(20, 300), (400, 520)] {
        let mut bench = uneven(comes);
        bench.run(at(begins - 1));
        assert_eq!(bench.handed.len(), 0, "before {begins} s");
        for minute in 0..4 {
            let from = begins + 60 * minute;
            bench.run(at(from + 3 + minute));
            assert_eq!(bench.handed.len() as u64, 3 * (minute + 1), "at {from} s");
            bench.run(at(from + 59));
            assert_eq!(bench.handed.len() as u64, 3 * (minute + 1), "at {from} s");
        }
    }
}

#[test]
fn accounts_of_our_own_are_claimed_anew_in_calls_of_five_hundred() {
    let mut bench = Bench::new(601);
    bench.run(at(15));
    assert_eq!(bench.connects.len(), 601);
    bench.claims.clear();
    bench.unanswered = Some(Vec::new());
    for device in 1..=601 {
        let unsealed = Input::Account(account(device), device::Input::Unsealed);
        bench.fleet.handle(unsealed, bench.now);
    }
    bench.settle();
    let calls = bench.unanswered.take().unwrap();
    let mut claims = calls
        .iter()
        .filter(|call| matches!(call.ask, Ask::Claim(_)));
    let (first, second) = (claims.next().unwrap(), claims.next());
    assert!(second.is_none(), "{second:?}");
    assert!(matches!(&first.ask, Ask::Claim(accounts) if accounts.len() == 1));
    bench.epoch = 2;
    let answer = Answer::Claimed(vec![Claim::Granted(lease(first.who, 2))]);
    bench.host(host::Input::Answer(first.id, answer));
    let sizes: Vec<usize> = bench.claims.iter().map(|(_, accounts)| *accounts).collect();
    assert_eq!(sizes, [500, 100]);
    bench.run(at(25));
    for (account, device) in bench.fleet.accounts() {
        assert_eq!(
            device.term().map(|term| term.epoch),
            Some(Epoch(2)),
            "{account:?}"
        );
    }
}

/// What the store does not take back in time is left to the lease.
#[test]
fn a_host_that_leaves_without_a_store_says_its_last_words_for_two_seconds() {
    let mut bench = Bench::new(2);
    bench.run(at(5));
    bench.unanswered = Some(Vec::new());
    bench.host(host::Input::Drain { leave: true });
    let drained = bench.now.plus(Timing::default().drain);
    bench.run(drained.plus(Micros::from_millis(1_900)));
    assert_eq!(bench.fleet.accounts().count(), 2);
    bench.run(drained.plus(Micros::from_millis(2_100)));
    assert_eq!(bench.fleet.accounts().count(), 0);
    bench.run(drained.plus(at(10)));
    assert_eq!(bench.fleet.host().state(), State::Released);
}

/// The settings of this host, not those that ship.
#[test]
fn the_hosts_own_timing_counts() {
    let timing = Timing {
        scan: at(20),
        ..Timing::default()
    };
    let mut bench = Bench::new(0);
    bench.fleet = Fleet::new(info(ME), timing, [3; 32], Micros(0)).unwrap();
    bench.host(host::Input::Start);
    bench.run(at(10));
    let looks = bench.looks;
    bench.run(at(70));
    assert!(
        (2..=4).contains(&(bench.looks - looks)),
        "{looks} and {}",
        bench.looks
    );
}

#[test]
fn the_canary_is_one_that_wants_a_connection_and_has_none() {
    let mut bench = Bench::new(3);
    bench.others = vec![second(Incarnation(7))];
    bench.run(at(5));
    assert_eq!(bench.connects.len(), 3);
    bench.unanswered = Some(Vec::new());
    let tell = |bench: &mut Bench, device, input| {
        let input = Input::Account(account(device), input);
        bench.fleet.handle(input, bench.now);
        bench.settle();
    };
    let leaving = |bench: &Bench| -> Vec<u64> {
        let accounts = bench.fleet.accounts();
        let leaving = accounts.filter(|(_, device)| device.is_leaving());
        leaving.map(|(account, _)| account.device).collect()
    };
    tell(&mut bench, 2, device::Input::Down);
    tell(&mut bench, 2, device::Input::Leave(None));
    tell(&mut bench, 3, device::Input::Down);
    assert_eq!(leaving(&bench), [2]);
    bench.fleet.send_canary(bench.now);
    assert_eq!(leaving(&bench), [2, 3]);
    bench.fleet.send_canary(bench.now);
    assert_eq!(leaving(&bench), [2, 3], "the first is connected");
}
