//! Worlds that should be the same, line by line, up to the first difference.

use super::{Kind, Plan, run_with};
use std::{collections::VecDeque, fmt, sync::mpsc, thread};

/// Lines before the difference that are shown.
const CONTEXT: usize = 8;

/// Where traces part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The number of the line, from 1.
    pub line: u64,
    /// The last lines that are the same.
    pub before: Vec<String>,
    /// What each world says there, by its name; `None` if it has come to its end.
    pub said: Vec<(String, Option<String>)>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "line {} differs", self.line)?;
        for line in &self.before {
            writeln!(f, "           {line}")?;
        }
        for (name, line) in &self.said {
            let line = line.as_deref().unwrap_or("(the end)");
            writeln!(f, "{name:>9}: {line}")?;
        }
        Ok(())
    }
}

/// Runs the plan of a seed on each of `stores`, side by side, and stops at the first line that is not the same on all of
/// them; or says how many lines there were.
///
/// # Errors
///
/// The difference.
pub fn diff(seed: u64, stores: &[Kind]) -> Result<u64, Difference> {
    let plans = stores
        .iter()
        .map(|store| (store.to_string(), Plan::draw(seed, *store)));
    diff_plans(plans.collect())
}

/// As [`diff`], for plans with names.
///
/// # Errors
///
/// The difference. Worlds that are not at their ends yet are left to themselves.
pub fn diff_plans(plans: Vec<(String, Plan)>) -> Result<u64, Difference> {
    let worlds: Vec<(String, mpsc::Receiver<String>)> = plans
        .into_iter()
        .map(|(name, plan)| {
            // None runs far ahead of the slowest.
            let (lines, read) = mpsc::sync_channel(1024);
            thread::spawn(move || {
                run_with(plan, |trace| {
                    trace.listen(move |line| drop(lines.send(line.to_owned())));
                })
            });
            (name, read)
        })
        .collect();
    let mut before = VecDeque::new();
    let mut count = 0;
    loop {
        let said: Vec<_> = worlds
            .iter()
            .map(|(name, lines)| (name.clone(), lines.recv().ok()))
            .collect();
        let Some((_, first)) = said.first().cloned() else {
            return Ok(0);
        };
        if said.iter().any(|(_, line)| *line != first) {
            return Err(Difference {
                line: count + 1,
                before: before.into(),
                said,
            });
        }
        let Some(line) = first else { return Ok(count) };
        count += 1;
        before.push_back(line);
        if before.len() > CONTEXT {
            before.pop_front();
        }
    }
}
