//! The store as a driver meets it: slow, failing, answering late.

use super::{ToEngine, ready};
use crate::world::{Happening, World, bugs::Bug, chance::Stream, cover::Point, weather::Kind};
use baton_core::state::{Batch, Key, Micros, Outcome, Store};

impl World {
    pub(super) fn store_delay(&mut self, account: usize) -> Micros {
        let mut slow = self.accounts[account].slow;
        if self
            .weather
            .strikes(account, Kind::Slow, self.now)
            .is_some()
        {
            slow += self.draw(Stream::Weather, account, (0, 1_000_000)).0;
        }
        if let Some(front) = self.weather.strikes(account, Kind::Stall, self.now) {
            slow += front.until.since(self.now).0;
        }
        self.draw(Stream::Store, account, self.options.store)
            .plus(Micros(slow))
    }

    /// Whether a read has to be tried again.
    pub(super) fn read_fails(&mut self, account: usize) -> bool {
        let mut kinds = [Kind::ReadError, Kind::DatabaseRestart].into_iter();
        kinds.any(|kind| self.weather.strikes(account, kind, self.now).is_some())
    }

    /// Whether a commit has to be tried again, after how long, and whether it is carried out all the same.
    fn commit_fails(&mut self, account: usize) -> Option<(u64, bool)> {
        [
            (Kind::CommitError, 100_000, false),
            (Kind::Serialization, 2_000, false),
            (Kind::ReadOnly, 200_000, false),
            (Kind::FullDisk, 200_000, false),
            (Kind::DatabaseRestart, 300_000, false),
            (Kind::AnswerLost, 1_000_000, true),
        ]
        .into_iter()
        .find(|(kind, ..)| self.weather.strikes(account, *kind, self.now).is_some())
        .map(|(_, pause, applied)| (pause, applied))
    }

    /// A commit reaches the store; the answer needs a while to get back.
    pub(crate) fn commit(&mut self, account: usize, life: u64, batches: Vec<Batch>) {
        let Some(last) = batches.last() else { return };
        let (epoch, upto) = (last.term.epoch, last.seq);
        let alive = self.accounts[account].life == life;
        self.mark(|recorder| recorder.commit_reaches(account, life, &batches));
        // What was answered before it was written is gone with the process.
        if !alive && self.answers_early(&batches) {
            return;
        }
        if let Some((pause, applied)) = self.commit_fails(account) {
            if applied {
                self.apply(account, alive, &batches);
            } else {
                self.tell("store", || {
                    format!(
                        "fails the commit of account {account} up to batch {}",
                        upto.0
                    )
                });
                self.mark(|recorder| recorder.fails(account, &batches));
                if self.has(Bug::ErrorSwallowed) {
                    let input = ToEngine::Committed { epoch, upto };
                    self.later(
                        Micros(1000),
                        Happening::Engine {
                            account,
                            life,
                            input,
                        },
                    );
                    return;
                }
            }
            let mut batches = batches;
            if applied && self.has(Bug::RetriedAsNew) {
                let count = batches.len() as u64;
                batches.iter_mut().for_each(|batch| batch.seq.0 += count);
            }
            // Nobody sends it again for a process that is dead.
            if alive {
                self.later(
                    Micros(pause),
                    Happening::Store {
                        account,
                        life,
                        batches,
                    },
                );
            }
            return;
        }
        let answer = self.apply(account, alive, &batches);
        if self.repeats(account, life, &batches) {
            return;
        }
        let answer = answer.unwrap_or(ToEngine::Committed { epoch, upto });
        self.sometimes(account, Point::CommitLands);
        let delay = self.draw(Stream::Store, account, self.options.store);
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input: answer,
            },
        );
    }

    /// The store carries a commit out; what is wrong with it, if anything.
    fn apply(&mut self, account: usize, alive: bool, asked: &[Batch]) -> Option<ToEngine> {
        let batches = &*self.bugged_batches(account, alive, asked);
        let outcomes = match ready(self.store.commit(batches.to_vec())) {
            Ok(outcomes) => outcomes,
            Err(error) => return Some(ToEngine::Refused(error.to_string())),
        };
        let mut answer = None;
        for ((outcome, batch), asked) in outcomes.into_iter().zip(batches).zip(asked) {
            self.tell("store", || {
                format!(
                    "batch {} of account {account} under epoch {}, {} rows: {outcome:?}",
                    batch.seq.0,
                    batch.term.epoch.0,
                    batch.rows.len()
                )
            });
            self.mark(|recorder| recorder.wrote(account, batch, &outcome));
            self.note_batch(batch);
            // A batch that is sent again is answered again, and nothing is written: what came after it still stands.
            let fresh = self.watch_outcome(account, batch, &outcome);
            self.cover.batch(batch);
            let bad = match outcome {
                Outcome::Committed => {
                    if !alive {
                        self.cover.hit(Point::CommitOfDead);
                    }
                    self.watch_written(account, asked);
                    if fresh {
                        self.enter(account, batch);
                    }
                    continue;
                }
                Outcome::Fenced { by } => {
                    self.cover.hit(Point::CommitFenced);
                    if self.has(Bug::FencedIgnored) {
                        continue;
                    }
                    ToEngine::Fenced(by)
                }
                Outcome::Unsealed { history } => {
                    self.cover.hit(Point::CommitUnsealed);
                    if self.has(Bug::UnsealedIgnored) {
                        continue;
                    }
                    ToEngine::Unsealed(history)
                }
                Outcome::Rejected(why) => ToEngine::Refused(why),
            };
            answer = answer.or(Some(bad));
        }
        answer
    }

    /// What is written is part of what happened.
    fn note_batch(&mut self, batch: &Batch) {
        let keys: Vec<Vec<u8>> = batch.rows.keys().map(Key::to_bytes).collect();
        let seq = batch.seq.0.to_le_bytes();
        let mut parts: Vec<&[u8]> = vec![b"batch", &seq];
        for (key, row) in keys.iter().zip(batch.rows.values()) {
            parts.push(key);
            parts.push(row.as_ref().map_or(&[], |row| &row.0));
        }
        self.note(&parts);
    }
}
