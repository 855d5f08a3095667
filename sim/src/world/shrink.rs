//! Makes a plan smaller that breaks a rule, as long as it breaks the same one: fewer faults, less work, shorter
//! troubles. What is left can be read.
//!
//! Because chance is looked up by what it is for, leaving something out does not change what is not concerned, so nearly
//! every smaller plan that can fail does.

use super::{
    judges::Judge,
    plan::{Buggify, Plan},
    report::Report,
};

const SECOND: u64 = 1_000_000;

/// What is left.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest plan that was found, as it ran.
    pub report: Report,
    /// The judge that finds it guilty, as it did the first.
    pub judge: Judge,
    /// How many plans were tried.
    pub tried: u64,
}

/// Shrinks a plan as long as `goes_on` says so; `None` if nothing is wrong with it.
pub fn shrink(plan: Plan, mut goes_on: impl FnMut() -> bool) -> Option<Shrunk> {
    let report = Report::of(plan);
    let judge = report.guilty().into_iter().next()?;
    let mut this = Shrinker {
        best: report,
        judge,
        tried: 1,
        goes_on: &mut goes_on,
    };
    loop {
        let before = this.best.plan.clone();
        this.lists();
        this.limits();
        this.times();
        if this.best.plan == before || !(this.goes_on)() {
            break;
        }
    }
    Some(Shrunk {
        report: this.best,
        judge,
        tried: this.tried,
    })
}

struct Shrinker<'a> {
    best: Report,
    judge: Judge,
    tried: u64,
    goes_on: &'a mut dyn FnMut() -> bool,
}

impl Shrinker<'_> {
    /// Takes a plan if it breaks the same rule.
    fn takes(&mut self, plan: Plan) -> bool {
        if plan == self.best.plan || !(self.goes_on)() {
            return false;
        }
        self.tried += 1;
        let report = Report::of(plan);
        let same = report.guilty().contains(&self.judge);
        if same {
            self.best = report;
        }
        same
    }

    /// Leaves out halves, quarters, and so on, of the faults and of the work.
    fn lists(&mut self) {
        self.list(
            |plan| plan.faults.len(),
            |plan, from, to| drop(plan.faults.drain(from..to)),
        );
        self.list(
            |plan| plan.work.len(),
            |plan, from, to| drop(plan.work.drain(from..to)),
        );
    }

    fn list(&mut self, len: impl Fn(&Plan) -> usize, cut: impl Fn(&mut Plan, usize, usize)) {
        let mut size = len(&self.best.plan);
        while size > 0 {
            let mut from = 0;
            while from < len(&self.best.plan) {
                let to = (from + size).min(len(&self.best.plan));
                let mut plan = self.best.plan.clone();
                cut(&mut plan, from, to);
                if !self.takes(plan) {
                    from = to;
                }
            }
            size /= 2;
        }
    }

    /// Usual limits, one kind at a time, and no new connections at the end.
    fn limits(&mut self) {
        let limits: [fn(&mut Buggify); 8] = [
            |limits| limits.cache_bytes = None,
            |limits| limits.batches_in_flight = None,
            |limits| limits.work_queued = None,
            |limits| limits.gate_bytes = None,
            |limits| limits.events_in_flight = None,
            |limits| limits.outbox = None,
            |limits| limits.hurry = None,
            |limits| limits.pre_keys = None,
        ];
        for usual in limits {
            let mut plan = self.best.plan.clone();
            usual(&mut plan.buggify);
            self.takes(plan);
        }
        let mut plan = self.best.plan.clone();
        plan.reconnect = false;
        self.takes(plan);
    }

    /// Shorter, and less often.
    fn times(&mut self) {
        for index in 0..self.best.plan.faults.len() {
            let mut plan = self.best.plan.clone();
            plan.faults[index].count = 1;
            self.takes(plan);
            let mut plan = self.best.plan.clone();
            plan.faults[index].aim = None;
            self.takes(plan);
            loop {
                let mut plan = self.best.plan.clone();
                let lasts = &mut plan.faults[index].lasts;
                if *lasts < 100_000 {
                    break;
                }
                *lasts /= 2;
                if !self.takes(plan) {
                    break;
                }
            }
        }
        // Everything a little earlier: the world heals when the last fault is over.
        let plan = &self.best.plan;
        let faults = plan.faults.iter().map(|fault| fault.at + fault.lasts);
        let work = plan.work.iter().map(|task| task.at);
        let end = faults.chain(work).max().unwrap_or(0) + SECOND;
        if end < plan.heals {
            let mut plan = plan.clone();
            plan.heals = end;
            self.takes(plan);
        }
    }
}
