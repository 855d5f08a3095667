//! What came of a plan, and of many.

use super::{
    Verdict, chaos,
    cover::{Cover, Point},
    judges::{Judge, Judged},
    plan::Plan,
    weather::Kind,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// What came of one plan.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// What the judges say.
    pub verdict: Verdict,
    /// What each fault has done.
    pub effects: Vec<u64>,
    /// What was reached.
    pub cover: Cover,
    /// A hash of everything that happened.
    pub trace: [u8; 32],
    /// What the world said when it broke down, if it did.
    pub panic: Option<String>,
}

impl Report {
    /// Runs a plan. A panic in it is a finding like another.
    #[must_use]
    pub fn of(plan: Plan) -> Self {
        match catch_unwind(AssertUnwindSafe(|| chaos::run(&plan))) {
            Ok((world, verdict)) => Self {
                effects: world.effects(),
                cover: world.cover(),
                trace: world.trace(),
                panic: None,
                plan,
                verdict,
            },
            Err(panic) => {
                let words = panic.downcast_ref::<String>().cloned();
                let words = words.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Self {
                    effects: vec![0; plan.faults.len()],
                    cover: Cover::default(),
                    trace: [0; 32],
                    panic: Some(words.unwrap_or_default()),
                    plan,
                    verdict: Verdict::default(),
                }
            }
        }
    }

    /// Who has found something. A world that breaks down is a scenario that does not work.
    #[must_use]
    pub fn guilty(&self) -> BTreeSet<Judge> {
        let mut judges = self.verdict.guilty();
        if self.panic.is_some() {
            judges.insert(Judge::Scenario);
        }
        judges
    }

    /// Whether all is well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.panic.is_none() && self.verdict.is_good()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.plan)?;
        for (fault, effects) in self.plan.faults.iter().zip(&self.effects) {
            if *effects == 0 {
                writeln!(f, "  without effect: {fault}")?;
            }
        }
        if let Some(panic) = &self.panic {
            writeln!(f, "  it broke down: {panic}")?;
        }
        for complaint in self.verdict.complaints.iter().take(20) {
            writeln!(f, "  {complaint}")?;
        }
        let more = self.verdict.complaints.len().saturating_sub(20);
        if more > 0 {
            writeln!(f, "  and {more} more")?;
        }
        if self.verdict.reordered > 0 {
            let (judge, count) = (Judge::MessageOrder, self.verdict.reordered);
            writeln!(f, "  {judge}: {count} texts were overtaken")?;
        }
        Ok(())
    }
}

/// What came of many.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Plans.
    pub runs: u64,
    /// Of those, in which something was wrong.
    pub failed: u64,
    /// Texts that arrived.
    pub texts: usize,
    /// What was reached.
    pub cover: Cover,
    /// What was judged.
    pub judged: Judged,
    /// Of each kind of fault: how many were planned, how many had an effect, and effects.
    pub kinds: BTreeMap<Kind, (u64, u64, u64)>,
}

impl Batch {
    /// A batch of this many seeds is expected to have no gaps. The rarest points are reached three times in 1,000 seeds:
    /// that is 15 times in so many, and never once in three million such batches (e^-15). Of 1,000, one in seven would
    /// miss something.
    pub const ENOUGH: u64 = 5_000;

    /// Adds what came of another plan.
    pub fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.failed += u64::from(!report.is_good());
        self.texts += report.verdict.received;
        self.cover.add(&report.cover);
        self.judged.add(&report.verdict.judged);
        for (fault, effects) in report.plan.faults.iter().zip(&report.effects) {
            let (planned, met, done) = self.kinds.entry(fault.kind).or_default();
            *planned += 1;
            *met += u64::from(*effects > 0);
            *done += effects;
        }
    }

    /// What was never reached, judged, or done: then the batch proves less than it says.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let points = self.cover.missing();
        let points = points.map(|point| format!("never reached: when {}", point.words()));
        let judges = self.judged.idle();
        let judges = judges.map(|judge| format!("had nothing to judge: {judge}"));
        let kinds = Kind::ALL.iter().filter(|kind| {
            let (_, met, _) = self.kinds.get(kind).copied().unwrap_or_default();
            met == 0
        });
        let kinds = kinds.map(|kind| format!("had no effect: {kind:?}"));
        points.chain(judges).chain(kinds).collect()
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sometimes points ({}):", Point::ALL.len())?;
        for point in Point::ALL {
            writeln!(
                f,
                "{:>10}  when {}",
                self.cover.count(*point),
                point.words()
            )?;
        }
        writeln!(f, "judges ({}), and what they looked at:", Judge::ALL.len())?;
        for judge in Judge::ALL {
            writeln!(
                f,
                "{:>10}  {judge}: {}",
                self.judged.count(*judge),
                judge.words()
            )?;
        }
        writeln!(
            f,
            "kinds of faults ({}): planned, with an effect, effects:",
            Kind::ALL.len()
        )?;
        for kind in Kind::ALL {
            let (planned, met, done) = self.kinds.get(kind).copied().unwrap_or_default();
            writeln!(
                f,
                "{planned:>7} {met:>7} {done:>9}  {}: {}",
                kind.family(),
                kind.words()
            )?;
        }
        Ok(())
    }
}
