//! Plans of tier A as data: drawn before the first step, run again from a file, made smaller.

use sim::service::settings::Change;
use sim::world::{
    Step,
    bugs::Bug,
    chaos,
    cover::Point,
    judges::Judge,
    plan::{Buggify, Plan, Task},
    report::{Batch, Report},
    shrink::shrink,
    weather::{Fault, Kind},
};

/// Something to run a few times.
fn small(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed);
    plan.work
        .retain(|task| matches!(task.step, Step::Send { .. }));
    plan.work.truncate(20);
    plan.faults.clear();
    plan
}

fn fault(account: usize, kind: Kind) -> Fault {
    Fault {
        at: 1_000_000,
        aim: None,
        account,
        kind,
        lasts: 500_000,
        count: 1,
    }
}

#[test]
fn a_plan_from_a_file_is_the_same_run() {
    let plan = Plan::draw(4);
    let file = serde_json::to_string_pretty(&plan).unwrap();
    let again: Plan = serde_json::from_str(&file).unwrap();
    assert_eq!(Report::of(plan).trace, Report::of(again).trace);
}

/// A fault that never comes moves nothing; one that does is said to have done something.
#[test]
fn a_fault_without_effect_is_said_and_changes_nothing() {
    let mut plan = small(2);
    let without = Report::of(plan.clone());
    // There is nothing to download.
    plan.faults.push(Fault {
        aim: Some(Point::DownloadBegins),
        ..fault(0, Kind::Crash)
    });
    let with = Report::of(plan.clone());
    assert_eq!(without.trace, with.trace);
    assert_eq!(with.effects, [0]);
    assert!(with.to_string().contains("without effect"), "{with}");

    plan.faults.push(fault(1, Kind::Crash));
    let with = Report::of(plan);
    assert_ne!(without.trace, with.trace);
    assert_eq!(with.effects, [0, 1]);
    assert!(with.is_good(), "{with}");
}

/// Two batches in one commit whose answer is lost: both are sent again, and the older one does not come back with it.
#[test]
fn a_commit_of_two_batches_may_be_sent_again() {
    let plan = Plan {
        seed: 1718,
        accounts: 2,
        network: (500, 80_000),
        store: (100, 30_001),
        buggify: Buggify::default(),
        bug: None,
        second_bug: None,
        crypto: None,
        work: Vec::new(),
        faults: vec![
            Fault {
                at: 232_028,
                lasts: 1_593_868,
                ..fault(0, Kind::DatabaseRestart)
            },
            Fault {
                at: 1_287_913,
                lasts: 57_501,
                ..fault(0, Kind::AnswerLost)
            },
        ],
        heals: 2_825_896,
        reconnect: false,
    };
    let report = Report::of(plan);
    assert!(report.cover.count(Point::CommitAgain) > 1, "{report}");
    assert!(report.is_good(), "{report}");
}

/// Found as seed 9795: a change was dated when its rows were here, and a wall clock had gone back by then. What the phone
/// changed in between would have won over it.
#[test]
fn a_change_has_the_time_at_which_it_was_asked_for() {
    let plan = Plan {
        seed: 9795,
        accounts: 2,
        network: (500, 20_000),
        // Rows take a tenth of a second, in which the clock goes back by nearly one.
        store: (100_000, 100_001),
        buggify: Buggify::default(),
        bug: None,
        second_bug: None,
        crypto: None,
        work: vec![Task {
            at: 10_000_000,
            step: Step::Change {
                account: 0,
                changes: vec![Change::PushName { name: "New".into() }],
            },
        }],
        faults: vec![Fault {
            at: 10_050_000,
            lasts: 900_000,
            ..fault(0, Kind::WallBack)
        }],
        heals: 20_000_000,
        reconnect: false,
    };
    let report = Report::of(plan);
    assert_eq!(report.effects, [1], "{report}");
    assert!(report.is_good(), "{report}");
}

/// Every delay of a connection is its own: another account's trouble does not move it.
#[test]
fn trouble_of_one_account_does_not_move_the_others() {
    let mut plan = small(3);
    plan.accounts = 4;
    // The first two talk to each other; the others are silent.
    plan.work.retain(|task| {
        matches!(
            task.step,
            Step::Send {
                from: 0 | 1,
                to: 0 | 1,
                ..
            }
        )
    });
    assert!(!plan.work.is_empty());
    let lines = |plan: &Plan| {
        let (world, verdict) = chaos::run(plan);
        assert!(verdict.is_good(), "{verdict:#?}");
        let told = |account: usize| world.accounts()[account].events.clone();
        (told(0), told(1), world.accounts()[0].most)
    };
    let quiet = lines(&plan);
    plan.faults.push(fault(3, Kind::Crash));
    plan.faults.push(fault(2, Kind::Reset));
    assert_eq!(quiet, lines(&plan));
}

/// What is not needed to break the rule is left out.
#[test]
fn a_plan_shrinks_to_what_breaks_the_rule() {
    let mut plan = Plan::draw(7);
    plan.bug = Some(Bug::MailboxForgotten);
    let shrunk = shrink(plan, || true).expect("nothing is sent");
    assert_eq!(shrunk.judge, Judge::MessageKept);
    let plan = &shrunk.report.plan;
    assert_eq!((plan.faults.len(), plan.work.len()), (0, 1), "{plan}");
    assert!(shrunk.report.guilty().contains(&Judge::MessageKept));
}

#[test]
fn nothing_is_shrunk_that_is_good() {
    assert!(shrink(small(5), || true).is_none());
}

/// One old mistake of each sort: `sim bugs` has all.
#[test]
fn old_mistakes_are_found() {
    for (bug, judge) in [
        (Bug::ForgetsOutbox, Judge::DurableBeforeVisible),
        (Bug::WriteBehind, Judge::DurableBeforeVisible),
        (Bug::LostWrite, Judge::Protocol),
        (Bug::NotificationsUnacked, Judge::LiveQueue),
        (Bug::OwnCopiesForgotten, Judge::CopyKept),
    ] {
        let found = (0..10).any(|seed| {
            let mut plan = Plan::draw(seed);
            plan.bug = Some(bug);
            Report::of(plan).guilty().contains(&judge)
        });
        assert!(found, "{bug} was not found by {judge}");
    }
}

/// What a batch has not seen is said.
#[test]
fn a_batch_names_its_gaps() {
    let mut batch = Batch::default();
    batch.add(&Report::of(small(6)));
    assert_eq!((batch.runs, batch.failed), (1, 0));
    let gaps = batch.gaps();
    assert!(
        gaps.iter().any(|gap| gap.contains("a process dies")),
        "{gaps:#?}"
    );
    assert!(
        gaps.iter().any(|gap| gap.contains("no effect: Crash")),
        "{gaps:#?}"
    );
    assert!(
        !gaps.iter().any(|gap| gap.contains("message-kept")),
        "{gaps:#?}"
    );
}
