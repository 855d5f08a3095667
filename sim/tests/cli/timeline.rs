//! The timeline: it changes nothing, it has everything, and it points at what is wrong.

use sim::{
    timeline::{ArrowKind, BarKind, Event, LaneKind, MarkKind, Timeline},
    world::{Verdict, World, bugs::Bug, chaos, plan::Plan},
};
use std::sync::{Arc, Mutex};

/// Runs a plan; with its timeline, and its lines as somebody else has heard them.
fn record(plan: &Plan) -> (World, Verdict, Timeline, Vec<String>) {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&lines);
    let (mut world, verdict) = chaos::run_with(plan, |world| {
        world.listen(move |line| heard.lock().unwrap().push(line.to_owned()));
        world.record();
    });
    let timeline = world.timeline(plan, &verdict).unwrap();
    let lines = std::mem::take(&mut *lines.lock().unwrap());
    (world, verdict, timeline, lines)
}

fn draw(seed: u64, bug: Bug) -> Plan {
    let mut plan = Plan::draw(seed);
    plan.bug = Some(bug);
    plan
}

#[test]
fn recording_changes_nothing() {
    for seed in 0..6 {
        let plan = Plan::draw(seed);
        let (plain, verdict) = chaos::run(&plan);
        let (world, recorded, ..) = record(&plan);
        assert_eq!(world.trace(), plain.trace(), "seed {seed}");
        assert_eq!(recorded, verdict);
    }
}

/// Every line of the trace that is about something that went somewhere is an arrow.
#[test]
fn arrows_are_those_of_the_trace() {
    for seed in [1, 2, 3, 4] {
        let plan = Plan::draw(seed);
        let (_, _, timeline, lines) = record(&plan);
        assert_eq!(timeline.lines.len(), lines.len());
        let said = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
        let arrows = |kind: ArrowKind, to: LaneKind| {
            let mut arrows: Vec<_> = timeline.arrows.iter().collect();
            arrows.retain(|arrow| arrow.kind == kind && timeline.lanes[arrow.to].kind == to);
            arrows
        };
        let arrived = |kind, to| {
            arrows(kind, to)
                .iter()
                .filter(|arrow| arrow.arrived)
                .count()
        };
        let (stanza, load, scan) = (ArrowKind::Stanza, ArrowKind::Load, ArrowKind::Scan);
        assert_eq!(arrived(stanza, LaneKind::Process), said(" < Received("));
        assert_eq!(
            arrived(stanza, LaneKind::Service),
            said(" service takes in ")
        );
        assert_eq!(arrows(load, LaneKind::Store).len(), said(" > Load("));
        assert_eq!(arrows(scan, LaneKind::Store).len(), said(" > Scan("));
        assert_eq!(arrived(load, LaneKind::Store), said(" < Loaded("));
        let batches = timeline.bars.iter();
        let batches = batches.filter(|bar| matches!(bar.kind, BarKind::Batch { .. }));
        assert_eq!(batches.count(), said(" > Commit("));
        let answers = arrows(ArrowKind::Answer, LaneKind::Process).len();
        assert!(answers >= said(" < Committed {"), "seed {seed}");
        assert!(said(" > Load(") > 50 && said(" < Received(") > 100);
        // What a line says, it says when it happens.
        for arrow in timeline.arrows.iter().filter(|arrow| arrow.arrived) {
            let line = arrow.end.map_or("", |line| timeline.lines[line].as_str());
            let at = format!(
                "{}.{:06} ",
                arrow.arrives / 1_000_000,
                arrow.arrives % 1_000_000
            );
            assert!(
                line.is_empty() || line.starts_with(&at),
                "{arrow:?}: {line}"
            );
        }
        // Nothing arrives before it was sent.
        assert!(
            timeline
                .arrows
                .iter()
                .all(|arrow| arrow.sent <= arrow.arrives)
        );
        // Who sends is there at that time: an owner, or somebody who is just being told that it is over.
        let owners = timeline
            .bars
            .iter()
            .filter(|bar| matches!(bar.kind, BarKind::Owner { .. }));
        assert_eq!(owners.count(), said(" begins under epoch "));
        let struck = timeline
            .faults
            .iter()
            .filter(|fault| fault.at.is_some())
            .count();
        assert_eq!(timeline.faults.len(), plan.faults.len());
        assert!(struck <= said(" weather "), "seed {seed}");
    }
}

/// The page asks nobody for anything, and has every lane.
#[test]
fn a_page_is_self_contained() {
    let plan = draw(3, Bug::ForgetsOutbox);
    let (_, _, timeline, _) = record(&plan);
    let page = timeline.page();
    let json = serde_json::to_string(&timeline)
        .unwrap()
        .replace('<', "\\u003c");
    assert_eq!(page.matches(&json).count(), 1);
    let template = page.replace(&json, "");
    for outside in [
        "http:", "https:", "src=", "href=", "@import", "url(", "import(", "fetch(",
    ] {
        assert!(!template.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("</script>").count(), 1);
    for (index, _) in timeline.accounts.iter().enumerate() {
        let lanes = |kind| {
            let lanes = timeline.lanes.iter();
            lanes
                .filter(move |lane| (lane.account, lane.kind) == (Some(index), kind))
                .count()
        };
        assert_eq!((lanes(LaneKind::Service), lanes(LaneKind::Store)), (1, 1));
        assert!(lanes(LaneKind::Process) >= 1);
    }
    // Each process that had an account has a lane, with what it owned in it.
    for (index, lane) in timeline.lanes.iter().enumerate() {
        assert!(page.contains(&format!("\"name\":\"{}\"", lane.name)));
        let owns = |bar: &sim::timeline::Bar| {
            bar.lane == index && matches!(bar.kind, BarKind::Owner { .. })
        };
        assert_eq!(
            lane.kind == LaneKind::Process,
            timeline.bars.iter().any(owns)
        );
    }
}

/// Runs seeds until a judge finds the bug; the finding with both of its facts.
fn found(bug: Bug, judge: &str) -> (Timeline, sim::timeline::Finding) {
    for seed in 0..60 {
        let plan = draw(seed, bug);
        if !chaos::run(&plan)
            .1
            .complaints
            .iter()
            .any(|text| text.contains(judge))
        {
            continue;
        }
        let (_, _, timeline, _) = record(&plan);
        let findings = timeline.findings.iter();
        let mut findings = findings.filter(|finding| finding.judge == judge);
        let finding = findings.find(|finding| finding.facts.len() > 1).cloned();
        if let Some(finding) = finding {
            return (timeline, finding);
        }
    }
    panic!("{bug} is never found by {judge} with two facts");
}

fn mark(timeline: &Timeline, event: Option<Event>) -> MarkKind {
    match event {
        Some(Event::Mark(index)) => timeline.marks[index].kind,
        other => panic!("{other:?} is no mark"),
    }
}

/// One key, two things: the two stanzas that brought them to the service.
#[test]
fn a_key_that_was_used_twice_shows_both_stanzas() {
    let (timeline, finding) = found(Bug::StaleSessions, "key-used-once");
    let stanza = |event: Option<Event>| match event {
        Some(Event::Arrow(index)) => timeline.arrows[index].clone(),
        other => panic!("{other:?} is no arrow"),
    };
    let stanzas: Vec<_> = finding
        .facts
        .iter()
        .map(|fact| stanza(fact.event))
        .collect();
    assert_eq!(stanzas.len(), 2);
    for (stanza, fact) in stanzas.iter().zip(&finding.facts) {
        assert!(stanza.words.starts_with("message "), "{}", stanza.words);
        assert_eq!(stanza.arrives, fact.at);
        assert_eq!(timeline.lanes[stanza.to].account, finding.account);
        assert!(timeline.lines[fact.line.unwrap()].contains("service takes in"));
    }
    assert!(finding.facts[0].at < finding.facts[1].at);
    assert!(timeline.opens.0 <= finding.facts[1].at && finding.facts[1].at <= timeline.opens.1);
}

/// A write out of turn: the last that was taken, and the write.
#[test]
fn a_write_out_of_turn_shows_the_last_one() {
    let (timeline, finding) = found(Bug::ErrorSwallowed, "one-writer");
    let kinds: Vec<MarkKind> = (finding.facts.iter())
        .map(|fact| mark(&timeline, fact.event))
        .collect();
    match kinds[..] {
        [
            MarkKind::Batch {
                seq, taken: true, ..
            },
            MarkKind::Batch {
                seq: other,
                taken: false,
                ..
            },
        ] => assert!(other > seq + 1, "{other} after {seq}"),
        _ => panic!("{finding:#?}"),
    }
}

/// An event that was shown before the commit that has it: both, and the commit is the later one.
#[test]
fn an_event_that_was_shown_too_early_shows_the_commit() {
    let (timeline, finding) = found(Bug::SentBeforeCommit, "durable-before-visible");
    let [shown, durable] = &finding.facts[..] else {
        panic!("{finding:#?}");
    };
    assert!(shown.at < durable.at);
    match durable.event {
        Some(Event::Arrow(index)) => {
            let arrow = &timeline.arrows[index];
            assert_eq!((arrow.kind, arrow.arrives), (ArrowKind::Commit, durable.at));
            assert!(arrow.sent <= shown.at);
        }
        other => panic!("{other:?} is no arrow"),
    }
}

/// A text that was shown under two numbers: both times.
#[test]
fn a_text_that_was_shown_twice_shows_both() {
    let (timeline, finding) = found(Bug::ForgetsMarks, "message-once");
    for fact in &finding.facts {
        let kind = mark(&timeline, fact.event);
        assert!(matches!(kind, MarkKind::Shown { .. }), "{kind:?}");
        assert!(timeline.lines[fact.line.unwrap()].contains("> Event("));
    }
}
