//! `sim bugs`: old mistakes, put back one at a time, and two at a time with a layer of defence off: who finds each, in how
//! many seeds, and what is left of the plan when it is shrunk.

use super::run_all;
use clap::Args;
use sim::world::{
    bugs::{Bug, Pair},
    judges::Judge,
    plan::Plan,
    report::Report,
    shrink::shrink,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Seeds at a time, so that what is found at once costs little.
const ROUND: u64 = 16;

/// A plan is shrunk for so long at most.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Options {
    /// Which, and the pairs that they are part of; by default all.
    names: Vec<Bug>,
    /// How many seeds are tried at most.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Go on when it is found, to see in how many of the seeds it is.
    #[arg(long)]
    all: bool,
    /// Shrink the plan of the first seed that each mistake was found in.
    #[arg(long)]
    shrink: bool,
    /// Print it as the page that is kept in the documentation.
    #[arg(long)]
    markdown: bool,
}

/// What is known of a mistake.
#[derive(Default)]
struct Case {
    tried: u64,
    /// The first seed, and who found it there.
    first: Option<(u64, BTreeSet<Judge>)>,
    failed: u64,
    changed: u64,
}

/// What is known of a pair.
#[derive(Default)]
struct Double {
    tried: u64,
    /// Seeds that fail with either alone.
    alone: (u64, u64),
    /// Seeds in which somebody speaks who is silent about either, the first of them, and who speaks there.
    both: u64,
    first: Option<(u64, BTreeSet<Judge>)>,
}

/// What is left of a plan.
struct Shrunk {
    bug: Bug,
    judge: Judge,
    faults: (usize, usize),
    work: (usize, usize),
    tried: u64,
    seconds: f64,
}

/// What is known of a seed: its trace and who is guilty.
type Known = BTreeMap<(Option<Bug>, u64), ([u8; 32], BTreeSet<Judge>)>;

struct Bench<'a> {
    options: &'a Options,
    known: Known,
    /// Seeds in which something is wrong without any bug.
    sick: Vec<u64>,
}

impl Bench<'_> {
    fn reports(
        &self,
        from: u64,
        count: u64,
        bugs: (Option<Bug>, Option<Bug>),
        each: impl FnMut(u64, Report),
    ) {
        let plan = |n: u64| {
            let mut plan = (n < count).then(|| Plan::draw(from + n))?;
            (plan.bug, plan.second_bug) = bugs;
            Some(plan)
        };
        run_all(plan, each);
    }

    /// Runs what is not known yet of a round.
    fn learn(&mut self, bug: Option<Bug>, from: u64, count: u64) {
        if (from..from + count).all(|seed| self.known.contains_key(&(bug, seed))) {
            return;
        }
        let mut news = Vec::new();
        self.reports(from, count, (bug, None), |_, report| {
            let sick = bug.is_none() && !report.is_good();
            if sick {
                eprint!("without any bug: {report}");
            }
            let seed = report.plan.seed;
            news.push((seed, sick, report.trace, report.guilty()));
        });
        for (seed, sick, trace, guilty) in news {
            if sick {
                self.sick.push(seed);
            }
            self.known.insert((bug, seed), (trace, guilty));
        }
    }

    fn mistake(&mut self, bug: Bug) -> Case {
        let mut case = Case::default();
        while case.tried < self.options.seeds && (self.options.all || case.first.is_none()) {
            let (from, count) = (case.tried, ROUND.min(self.options.seeds - case.tried));
            self.learn(None, from, count);
            self.learn(Some(bug), from, count);
            for seed in from..from + count {
                case.tried += 1;
                let (trace, guilty) = &self.known[&(Some(bug), seed)];
                case.changed += u64::from(self.known[&(None, seed)].0 != *trace);
                if !guilty.is_empty() {
                    case.failed += 1;
                    case.first.get_or_insert_with(|| (seed, guilty.clone()));
                }
            }
        }
        case
    }

    fn pair(&mut self, pair: &Pair) -> Double {
        let mut double = Double::default();
        while double.tried < self.options.seeds && (self.options.all || double.first.is_none()) {
            let (from, count) = (double.tried, ROUND.min(self.options.seeds - double.tried));
            self.learn(Some(pair.bug), from, count);
            self.learn(Some(pair.off), from, count);
            let known = &self.known;
            let bugs = (Some(pair.bug), Some(pair.off));
            self.reports(from, count, bugs, |_, report| {
                let seed = report.plan.seed;
                let (of_bug, of_off) = (
                    &known[&(Some(pair.bug), seed)].1,
                    &known[&(Some(pair.off), seed)].1,
                );
                double.tried += 1;
                double.alone.0 += u64::from(!of_bug.is_empty());
                double.alone.1 += u64::from(!of_off.is_empty());
                let mut guilty = report.guilty();
                guilty.retain(|judge| !of_bug.contains(judge) && !of_off.contains(judge));
                if !guilty.is_empty() {
                    double.both += 1;
                    double.first.get_or_insert((seed, guilty));
                }
            });
        }
        double
    }
}

/// Shrinks the first plan of each, as many at a time as there are cores.
fn shrink_all(cases: &[(Bug, Case)]) -> Vec<Shrunk> {
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Shrunk>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((bug, case)) = cases.get(index) else {
                        return;
                    };
                    let Some((seed, _)) = case.first else {
                        continue;
                    };
                    let mut plan = Plan::draw(seed);
                    plan.bug = Some(*bug);
                    let before = (plan.faults.len(), plan.work.len());
                    let began = Instant::now();
                    let shrunk = shrink(plan, || began.elapsed() < PATIENCE);
                    let (Some(shrunk), Ok(mut done)) = (shrunk, done.lock()) else {
                        continue;
                    };
                    let left = &shrunk.report.plan;
                    let shrunk = Shrunk {
                        bug: *bug,
                        judge: shrunk.judge,
                        faults: (before.0, left.faults.len()),
                        work: (before.1, left.work.len()),
                        tried: shrunk.tried,
                        seconds: began.elapsed().as_secs_f64(),
                    };
                    done.insert(index, shrunk);
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_default()
        .into_values()
        .collect()
}

fn median<T: Copy + PartialOrd>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

fn names(judges: &BTreeSet<Judge>) -> String {
    let names: Vec<&str> = judges.iter().map(|judge| judge.name()).collect();
    names.join(", ")
}

fn share(part: u64, of: u64) -> String {
    match part as f64 * 100.0 / of.max(1) as f64 {
        0.0 => "0 %".to_owned(),
        few if few < 10.0 => format!("{few:.1} %"),
        many => format!("{many:.0} %"),
    }
}

fn print_mistake(bug: Bug, case: &Case, all: bool) {
    let (by, seeds) = match &case.first {
        Some((seed, judges)) => (names(judges), (seed + 1).to_string()),
        None => ("**nobody**".to_owned(), format!("more than {}", case.tried)),
    };
    let failed = match all {
        true => format!(" {} |", share(case.failed, case.tried)),
        false => String::new(),
    };
    let changed = share(case.changed, case.tried);
    let words = bug.words();
    println!("| `{bug}` | {words} | {by} | {seeds} |{failed} {changed} |");
}

fn print_pair(pair: &Pair, double: &Double) {
    let Pair { bug, off, words } = pair;
    let (by, seeds) = match &double.first {
        Some((seed, judges)) => (names(judges), (seed + 1).to_string()),
        None => (
            "**nobody**".to_owned(),
            format!("more than {}", double.tried),
        ),
    };
    let part = |count| share(count, double.tried);
    println!(
        "| `{bug}` + `{off}` | {words} | {} | {} | {} | {seeds} | {by} |",
        part(double.alone.0),
        part(double.alone.1),
        part(double.both)
    );
}

/// Which judge finds what first: alone, and among others.
fn print_judges(finds: &[(String, BTreeSet<Judge>)]) {
    println!("\n| judge | finds first, alone | finds first, with others |\n|---|---|---|");
    for judge in Judge::ALL {
        let of = |alone: bool| {
            let fits = |by: &BTreeSet<Judge>| by.contains(judge) && (by.len() == 1) == alone;
            let names = finds
                .iter()
                .filter(|(_, by)| fits(by))
                .map(|(name, _)| name);
            let names: Vec<&str> = names.map(String::as_str).collect();
            match names.len() {
                0 => String::new(),
                1..=3 => names.join(", "),
                many => format!("{}, and {} more", names[..3].join(", "), many - 3),
            }
        };
        let (alone, others) = (of(true), of(false));
        let none = alone.is_empty() && others.is_empty();
        let others = if none {
            "**nothing**".to_owned()
        } else {
            others
        };
        println!("| {judge} | {alone} | {others} |");
    }
}

fn print_shrunk(shrunk: &[Shrunk]) {
    println!(
        "\n| bug | judge | faults, before and after | tasks | plans | seconds |\n|---|---|---|---|---|---|"
    );
    for this in shrunk {
        println!(
            "| `{}` | {} | {} → {} | {} → {} | {} | {:.1} |",
            this.bug,
            this.judge,
            this.faults.0,
            this.faults.1,
            this.work.0,
            this.work.1,
            this.tried,
            this.seconds
        );
    }
    let faults = median(shrunk.iter().map(|this| this.faults.1)).unwrap_or(0);
    let work = median(shrunk.iter().map(|this| this.work.1)).unwrap_or(0);
    let seconds = median(shrunk.iter().map(|this| this.seconds)).unwrap_or(0.0);
    let slowest = shrunk.iter().map(|this| this.seconds).fold(0.0, f64::max);
    println!(
        "\n{} plans; median {faults} faults, {work} tasks, {seconds:.1} s; the slowest took {slowest:.1} s.",
        shrunk.len()
    );
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let everything = options.names.is_empty();
    let bugs: Vec<Bug> = match everything {
        true => Bug::mistakes().collect(),
        false => (options.names.iter().copied())
            .filter(|bug| !bug.is_layer())
            .collect(),
    };
    let mut bench = Bench {
        options,
        known: Known::new(),
        sick: Vec::new(),
    };
    if options.markdown {
        print!("{}", include_str!("bugs/bugs.md"));
        let (seeds, all) = (options.seeds, if options.all { " --all" } else { "" });
        let shrink = if options.shrink { " --shrink" } else { "" };
        println!("\n```text\nsim bugs --seeds {seeds}{all}{shrink} --markdown > docs/bugs.md\n```");
        println!("\n## Mistakes\n");
    }
    let mut good = true;
    let mut finds = Vec::new();
    let (column, line) = match options.all {
        true => (" seeds that find it |", "---|"),
        false => ("", ""),
    };
    println!(
        "| bug | what is wrong | found first by | seeds until found |{column} traces changed |"
    );
    println!("|---|---|---|---|{line}---|");
    let mut cases = Vec::new();
    for bug in bugs {
        let case = bench.mistake(bug);
        print_mistake(bug, &case, options.all);
        good &= case.first.is_some() && case.changed * 100 >= case.tried;
        if let Some((_, judges)) = &case.first {
            finds.push((format!("`{bug}`"), judges.clone()));
        }
        cases.push((bug, case));
    }
    let pairs = Pair::ALL.iter().filter(|pair| {
        let named = |bug| options.names.contains(&bug);
        everything || named(pair.bug) || named(pair.off)
    });
    let pairs: Vec<&Pair> = pairs.collect();
    if !pairs.is_empty() {
        println!("\n{}\n", include_str!("bugs/pairs.md").trim());
        println!(
            "| pair | layers | first alone | second alone | both | seeds until found | found by |"
        );
        println!("|---|---|---|---|---|---|---|");
        for pair in pairs {
            let double = bench.pair(pair);
            print_pair(pair, &double);
            good &= double.first.is_some();
            if let Some((_, judges)) = double.first {
                finds.push((format!("`{}` + `{}`", pair.bug, pair.off), judges));
            }
        }
    }
    if everything {
        println!("\n| layer | what is off |\n|---|---|");
        for layer in Bug::ALL.iter().filter(|bug| bug.is_layer()) {
            println!("| `{layer}` | {} |", layer.words());
        }
        println!("\n{}", include_str!("bugs/judges.md").trim());
        print_judges(&finds);
    }
    if options.shrink {
        println!("\n{}", include_str!("bugs/shrunk.md").trim());
        print_shrunk(&shrink_all(&cases));
    }
    if good && bench.sick.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
