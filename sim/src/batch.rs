//! Many seeds on every core, reported in the order of the seeds, with a line on the terminal that says how far it is.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Workers may be this many seeds ahead of the slowest: what is waiting to be reported has to fit into memory.
const AHEAD: usize = 4096;

/// Between two changes of the line.
const PAUSE: Duration = Duration::from_millis(250);

/// How many seeds run at once.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What there is to say of a seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whether all was well.
    pub good: bool,
    /// Printed, if there is anything in it.
    pub text: String,
}

/// Runs `seeds` seeds, the first of which is `from`; `report` is asked in their order. A seed whose world panicked has
/// nothing to report. Returns how many were good, and how long it took.
pub fn batch<R: Send>(
    from: u64,
    seeds: u64,
    run: impl Fn(u64) -> R + Sync,
    mut report: impl FnMut(u64, Option<R>) -> Said,
) -> (u64, Duration) {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let mut progress = Progress::new(seeds, began);
    std::thread::scope(|scope| {
        let (send, reports) = mpsc::sync_channel(AHEAD);
        for _ in 0..cores() {
            let (send, next, run) = (send.clone(), &next, &run);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let seed = from.saturating_add(index);
                    // Nothing of a world outlives it, so nothing half done is left.
                    let result = catch_unwind(AssertUnwindSafe(|| run(seed))).ok();
                    if send.send((index, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting = BTreeMap::new();
        let mut done = 0;
        for (index, result) in reports {
            waiting.insert(index, result);
            while let Some(result) = waiting.remove(&done) {
                let said = report(from.saturating_add(done), result);
                done += 1;
                progress.step(done, &said);
            }
        }
        progress.clear();
    });
    (progress.good, began.elapsed())
}

/// So many in a time, as a rate a minute.
#[must_use]
pub fn a_minute(seeds: u64, spent: Duration) -> f64 {
    seeds as f64 / spent.as_secs_f64() * 60.0
}

/// A line on standard error, if that is a terminal.
struct Progress {
    seeds: u64,
    good: u64,
    began: Instant,
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    fn new(seeds: u64, began: Instant) -> Self {
        Self {
            seeds,
            good: 0,
            began,
            terminal: std::io::stderr().is_terminal(),
            shown: None,
        }
    }

    fn step(&mut self, done: u64, said: &Said) {
        self.good += u64::from(said.good);
        if !said.text.is_empty() {
            self.clear();
            let _ = writeln!(std::io::stdout(), "{}", said.text);
        }
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        let (seeds, failed) = (self.seeds, done - self.good);
        let rate = a_minute(done, self.began.elapsed());
        let line = format!("{done} of {seeds} seeds, {failed} failed, {rate:.0} a minute");
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_reported_in_order_and_panics_are_noticed() {
        let mut seen = Vec::new();
        let run = |seed: u64| {
            assert!(seed != 13, "on purpose");
            seed * 2
        };
        let (good, _) = batch(10, 50, run, |seed, result| {
            seen.push((seed, result));
            Said {
                good: result.is_some_and(|result| result % 4 == 0),
                text: String::new(),
            }
        });
        assert_eq!(good, 25);
        let expected = (10..60).map(|seed| (seed, (seed != 13).then_some(seed * 2)));
        assert_eq!(seen, expected.collect::<Vec<_>>());
    }
}
