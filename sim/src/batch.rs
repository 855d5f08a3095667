//! Many seeds on every core, reported in the order of the seeds, with a bar on the terminal that says how far it is.

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

/// Between two changes of the bar.
const PAUSE: Duration = Duration::from_millis(250);

/// Characters of the bar.
const WIDTH: usize = 24;

/// How many seeds run at once.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How long a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many seeds.
    Seeds(u64),
    /// Seeds that begin within this time.
    Time(Duration),
}

/// What there is to say of a seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whether all was well.
    pub good: bool,
    /// Printed, if there is anything in it.
    pub text: String,
}

/// What came of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Seeds that ran.
    pub seeds: u64,
    /// Of those, in which all was well.
    pub passed: u64,
    /// How long it took.
    pub spent: Duration,
}

impl Done {
    /// Seeds in which something was wrong.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.seeds - self.passed
    }

    /// Seeds a minute.
    #[must_use]
    pub fn a_minute(&self) -> f64 {
        a_minute(self.seeds, self.spent)
    }
}

/// Runs seeds on so many threads, the first of which is `from`; `report` is asked in their order. A seed whose world
/// panicked has nothing to report.
pub fn batch<R: Send>(
    from: u64,
    length: Length,
    threads: usize,
    run: impl Fn(u64) -> R + Sync,
    mut report: impl FnMut(u64, Option<R>) -> Said,
) -> Done {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let goes_on = |index| match length {
        Length::Seeds(seeds) => index < seeds,
        Length::Time(time) => began.elapsed() < time,
    };
    let mut progress = Progress::new(length, began);
    std::thread::scope(|scope| {
        let (send, reports) = mpsc::sync_channel(AHEAD);
        for _ in 0..threads {
            let (send, next, run, goes_on) = (send.clone(), &next, &run, &goes_on);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if !goes_on(index) {
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
        for (index, result) in reports {
            waiting.insert(index, result);
            while let Some(result) = waiting.remove(&progress.done) {
                let said = report(from.saturating_add(progress.done), result);
                progress.step(&said);
            }
        }
        // When the time is over, a thread may have let a seed go that another one has not.
        for (index, result) in waiting {
            progress.step(&report(from.saturating_add(index), result));
        }
        progress.clear();
    });
    Done {
        seeds: progress.done,
        passed: progress.good,
        spent: began.elapsed(),
    }
}

/// So many in a time, as a rate a minute.
#[must_use]
pub fn a_minute(seeds: u64, spent: Duration) -> f64 {
    seeds as f64 / spent.as_secs_f64().max(1e-9) * 60.0
}

/// A bar on standard error, if that is a terminal.
struct Progress {
    length: Length,
    done: u64,
    good: u64,
    began: Instant,
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    fn new(length: Length, began: Instant) -> Self {
        Self {
            length,
            done: 0,
            good: 0,
            began,
            terminal: std::io::stderr().is_terminal(),
            shown: None,
        }
    }

    fn step(&mut self, said: &Said) {
        self.done += 1;
        self.good += u64::from(said.good);
        if !said.text.is_empty() {
            self.clear();
            // Whoever reads may have seen enough.
            let _ = writeln!(std::io::stdout(), "{}", said.text);
        }
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = self.line(self.began.elapsed());
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }

    /// The bar, and what it means.
    fn line(&self, spent: Duration) -> String {
        let (done, failed) = (self.done, self.done - self.good);
        let rate = a_minute(done, spent);
        let (share, of) = match self.length {
            Length::Seeds(seeds) => {
                let left = (seeds.saturating_sub(done)) as f64 / rate.max(1e-9) * 60.0;
                let of = format!("{done} of {seeds} seeds, {left:.0} s left");
                (done as f64 / seeds.max(1) as f64, of)
            }
            Length::Time(time) => {
                let left = time.saturating_sub(spent).as_secs();
                let share = spent.as_secs_f64() / time.as_secs_f64().max(1e-9);
                (share, format!("{done} seeds, {left} s left"))
            }
        };
        let full = ((share * WIDTH as f64) as usize).min(WIDTH);
        let bar = "#".repeat(full) + &".".repeat(WIDTH - full);
        format!("[{bar}] {of}, {failed} failed, {rate:.0} a minute")
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
        let done = batch(10, Length::Seeds(50), 3, run, |seed, result| {
            seen.push((seed, result));
            Said {
                good: result.is_some_and(|result| result % 4 == 0),
                text: String::new(),
            }
        });
        assert_eq!((done.seeds, done.passed, done.failed()), (50, 25, 25));
        let expected = (10..60).map(|seed| (seed, (seed != 13).then_some(seed * 2)));
        assert_eq!(seen, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_batch_ends_when_its_time_is_over() {
        let mut seen = Vec::new();
        let time = Length::Time(Duration::from_millis(20));
        let run = |seed: u64| {
            std::thread::sleep(Duration::from_millis(1));
            seed
        };
        let done = batch(7, time, 2, run, |seed, _| {
            seen.push(seed);
            Said::default()
        });
        assert_eq!((done.seeds, done.passed), (seen.len() as u64, 0));
        assert!(!seen.is_empty() && seen.is_sorted());
    }

    #[test]
    fn a_bar_says_how_far_it_is() {
        let mut progress = Progress::new(Length::Seeds(200), Instant::now());
        (progress.done, progress.good) = (50, 48);
        let line = progress.line(Duration::from_secs(60));
        let full = "[######..................] ";
        assert_eq!(
            line,
            format!("{full}50 of 200 seeds, 180 s left, 2 failed, 50 a minute")
        );
        progress.length = Length::Time(Duration::from_secs(240));
        let line = progress.line(Duration::from_secs(60));
        assert_eq!(
            line,
            format!("{full}50 seeds, 180 s left, 2 failed, 50 a minute")
        );
    }
}
