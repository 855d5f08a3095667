//! Judges that look on while a world runs: what an engine may say now, what a store may take now.
//!
//! Each finding is a complaint of the account; how much there was to look at is counted with it.

use super::{World, cover::Point, judges::Judge};
use baton_core::{
    engine::{Output, StopReason},
    flow::{Command, CommandId, Notice},
    state::{Batch, Epoch, EventSeq, Key, Lease, Micros, Outcome, Seq, Term},
};
use std::collections::{BTreeMap, BTreeSet};

/// More outputs than this behind one input are a loop.
const MOST_OUTPUTS: usize = 20_000;

/// An engine that wants to be woken at once so often, one time behind the other, does not sleep.
const MOST_WAKES: u32 = 100;

/// What the judges remember of an account.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// The right that was given last, after how many losses of commits, and the last batch written under it.
    given: Option<(Term, usize, Seq)>,
    /// Of each epoch the last batch that a store has taken.
    written: BTreeMap<Epoch, Seq>,
    /// What was taken under a number since so many losses, roughly: rows, and bytes in them.
    taken: BTreeMap<(usize, Epoch, Seq), (usize, usize)>,
    /// What has become durable, and when first.
    pub(super) inbox: BTreeMap<EventSeq, Micros>,
    pub(super) outbox: BTreeMap<String, Micros>,
    pub(super) seen: BTreeMap<[u8; 32], Micros>,
    /// Of the present life.
    life: Life,
}

#[derive(Debug, Default)]
struct Life {
    /// The last batch that was handed out, and the last that the engine knows to be durable.
    handed: Seq,
    durable: Seq,
    /// Commands that have no answer yet.
    pub(super) open: BTreeSet<CommandId>,
    /// Events that were shown, and not acknowledged to this engine.
    shown: BTreeSet<EventSeq>,
    /// A connection is being made.
    opening: bool,
    /// Connections that were asked for.
    opened: u32,
    wakes: u32,
}

impl Watched {
    /// The right that was given last, and the last batch written under it.
    pub(super) fn given(&self) -> Option<(Term, Seq)> {
        self.given.map(|(term, _, applied)| (term, applied))
    }

    /// How many connections the present engine has asked for.
    pub(super) const fn opened(&self) -> u32 {
        self.life.opened
    }

    /// Commands that have no answer.
    pub(super) fn unanswered(&self) -> usize {
        self.life.open.len()
    }
}

impl World {
    pub(crate) fn finds(&mut self, account: usize, judge: Judge, words: String) {
        let words = format!("{judge}: {words}");
        self.tell("judge", || format!("account {account}: {words}"));
        let which = self.accounts[account].complaints.len();
        self.mark(|recorder| recorder.finds(account, which, judge, &words));
        self.accounts[account].complaints.push(words);
    }

    fn watched(&mut self, account: usize) -> &mut Watched {
        &mut self.accounts[account].watched
    }

    /// An account was given to somebody.
    pub(crate) fn watch_claim(&mut self, account: usize, lease: &Lease) {
        self.judged.saw(Judge::EpochGrows, 1);
        let losses = self.ledger.losses();
        let given = (lease.term, losses, lease.applied);
        let watched = self.watched(account);
        let before = watched.given.replace(given);
        // A database that went back has forgotten whom it had given it to.
        let grows =
            before.is_none_or(|(term, then, _)| then != losses || lease.term.epoch > term.epoch);
        if !grows {
            let Epoch(epoch) = lease.term.epoch;
            self.finds(
                account,
                Judge::EpochGrows,
                format!("epoch {epoch} was given again"),
            );
        }
    }

    /// A new engine begins with it.
    pub(crate) fn watch_birth(&mut self, account: usize, lease: &Lease) {
        self.watched(account).life = Life {
            handed: lease.applied,
            durable: lease.applied,
            ..Life::default()
        };
    }

    /// A store has answered a batch. Returns whether it has written it: it may have had it already.
    pub(crate) fn watch_outcome(
        &mut self,
        account: usize,
        batch: &Batch,
        outcome: &Outcome,
    ) -> bool {
        if let Outcome::Rejected(why) = outcome {
            let words = format!("batch {} was rejected: {why}", batch.seq.0);
            self.finds(account, Judge::OneWriter, words);
        }
        if *outcome != Outcome::Committed {
            return false;
        }
        self.judged.saw(Judge::OneWriter, 1);
        self.judged.saw(Judge::TenantWall, 1);
        if batch.account != self.accounts[account].id {
            let words = format!("batch {} is of {}", batch.seq.0, batch.account);
            self.finds(account, Judge::TenantWall, words);
        }
        let now = self.now;
        let losses = self.ledger.losses();
        let watched = self.watched(account);
        let mut wrong = None;
        let mut again = false;
        match &mut watched.given {
            // It went back behind that right.
            Some((_, then, _)) if *then != losses => {}
            Some((term, _, applied)) => {
                if *term != batch.term {
                    wrong = Some(format!(
                        "batch {} was written under epoch {}, not {}",
                        batch.seq.0, batch.term.epoch.0, term.epoch.0
                    ));
                } else if batch.seq > applied.next() {
                    wrong = Some(format!(
                        "batch {} was written after {}",
                        batch.seq.0, applied.0
                    ));
                }
                again = batch.seq <= *applied;
                *applied = batch.seq.max(*applied);
            }
            None => wrong = Some("a batch of an account that nobody has".to_owned()),
        }
        let bytes = (batch.rows.values().flatten()).map(|row| row.0.len()).sum();
        let what = (batch.rows.len(), bytes);
        let number = (losses, batch.term.epoch, batch.seq);
        if *watched.taken.entry(number).or_insert(what) != what {
            wrong = Some(format!("there are two batches {}", batch.seq.0));
        }
        for (key, row) in &batch.rows {
            if row.is_none() || again {
                continue;
            }
            match key {
                Key::Inbox(seq) => drop(watched.inbox.entry(*seq).or_insert(now)),
                Key::Outbox(id) => drop(watched.outbox.entry(id.to_string()).or_insert(now)),
                Key::Seen(mark) => drop(watched.seen.entry(*mark).or_insert(now)),
                _ => {}
            }
        }
        if again {
            self.cover.hit(Point::CommitAgain);
        }
        let collections = batch.rows.keys();
        let collections = collections.filter(|key| matches!(key, Key::AppStateVersion(_)));
        self.judged.saw(Judge::SettingsNoFork, collections.count());
        if let Some(words) = wrong {
            self.finds(account, Judge::OneWriter, words);
        }
        !again
    }

    /// A store has taken a batch, as an engine made it.
    pub(crate) fn watch_written(&mut self, account: usize, batch: &Batch) {
        let written = &mut self.watched(account).written;
        let last = written.entry(batch.term.epoch).or_default();
        *last = batch.seq.max(*last);
    }

    /// An engine is told that its batches are durable.
    pub(crate) fn watch_durable(&mut self, account: usize, epoch: Epoch, upto: Seq) {
        self.judged.saw(Judge::CommitTold, 1);
        let watched = self.watched(account);
        let written = watched.written.get(&epoch).copied().unwrap_or_default();
        let life = &mut watched.life;
        life.durable = life.durable.max(upto);
        if upto > written {
            let words = format!(
                "batch {} under epoch {} was called durable, the store has {}",
                upto.0, epoch.0, written.0
            );
            self.finds(account, Judge::CommitTold, words);
        }
    }

    /// An engine was told that its connection stands, or is gone.
    pub(crate) fn watch_connection(&mut self, account: usize) {
        self.watched(account).life.opening = false;
    }

    /// An engine was given a command.
    pub(crate) fn watch_command(&mut self, account: usize, id: CommandId, command: &Command) {
        let life = &mut self.watched(account).life;
        life.open.insert(id);
        if let Command::Acknowledge(upto) = command {
            life.shown.retain(|seq| seq > upto);
        }
    }

    /// An engine says something.
    pub(crate) fn watch_output(&mut self, account: usize, output: &Output, count: usize) {
        let now = self.now;
        let until = self.accounts[account].lease;
        let connected = self.accounts[account].conn.is_some();
        // One that nobody has closed, and that has not broken either.
        let mine = (account, self.accounts[account].life);
        let held = matches!(output, Output::Open(_))
            && (self.conns.iter()).any(|(conn, whose)| *whose == mine && !self.dead.contains(conn));
        // The same for all engines of a world.
        let (most_batches, most_events, margin) = self.bounds;
        let mut found: Vec<(Judge, String)> = Vec::new();
        let mut saw: Vec<Judge> = Vec::new();
        if count > MOST_OUTPUTS {
            found.push((
                Judge::LimitOutputs,
                format!("{count} outputs behind one input"),
            ));
        }
        // A process that was frozen learns of the time with its next input, which is now.
        let leaves = matches!(
            output,
            Output::Open(_)
                | Output::Transmit
                | Output::Event(..)
                | Output::Reply(..)
                | Output::Fetch(..)
        );
        if leaves {
            saw.push(Judge::GrantHeld);
            if now.plus(margin) >= until {
                found.push((
                    Judge::GrantHeld,
                    format!("{output:?} at {}, the grant ran out at {}", now.0, until.0),
                ));
            }
        }
        let watched = &mut self.accounts[account].watched;
        let life = &mut watched.life;
        match output {
            Output::Commit(batch) => {
                saw.extend([Judge::BatchOrder, Judge::LimitBatches]);
                if batch.seq != life.handed.next() {
                    let words = format!("batch {} after {}", batch.seq.0, life.handed.0);
                    found.push((Judge::BatchOrder, words));
                }
                life.handed = batch.seq;
                let out = life.handed.0.saturating_sub(life.durable.0);
                if out > u64::from(most_batches) {
                    found.push((Judge::LimitBatches, format!("{out} batches are under way")));
                }
            }
            Output::Open(_) => {
                saw.push(Judge::OneConnection);
                life.opened += 1;
                if connected || life.opening || held {
                    let words = "a second connection is asked for".to_owned();
                    found.push((Judge::OneConnection, words));
                }
                life.opening = true;
            }
            Output::Close => life.opening = false,
            Output::Event(seq, _) => {
                saw.extend([Judge::DurableBeforeVisible, Judge::LimitEvents]);
                if !watched.inbox.contains_key(seq) {
                    let words = format!("event {} was shown before it was durable", seq.0);
                    found.push((Judge::DurableBeforeVisible, words));
                }
                life.shown.insert(*seq);
                if life.shown.len() > most_events as usize {
                    let words = format!("{} events wait for the consumer", life.shown.len());
                    found.push((Judge::LimitEvents, words));
                }
            }
            Output::Reply(id, _) => {
                saw.push(Judge::ReplyOnce);
                if !life.open.remove(id) {
                    let words = format!("command {} was answered twice, or never given", id.0);
                    found.push((Judge::ReplyOnce, words));
                }
            }
            Output::Idle { wake, .. } => {
                saw.extend([Judge::NoSpin, Judge::LimitOutputs]);
                life.wakes = match wake {
                    Some(wake) if *wake <= now => life.wakes + 1,
                    _ => 0,
                };
                if life.wakes == MOST_WAKES {
                    found.push((Judge::NoSpin, "an engine does not sleep".to_owned()));
                }
            }
            // An engine may read in a database that went back, before it is told.
            Output::Notice(Notice::CorruptRow(key)) if self.ledger.losses() == 0 => {
                found.push((Judge::RowsRead, format!("{key:?} is called unreadable")));
            }
            Output::Stopped(reason) => {
                saw.push(Judge::StopExplained);
                let explained = matches!(
                    reason,
                    StopReason::Fenced(_)
                        | StopReason::HistoryChanged(_)
                        | StopReason::LeaseExpired
                        | StopReason::Replaced
                        | StopReason::Shutdown
                        | StopReason::LoggedOut(_)
                );
                if !explained {
                    found.push((Judge::StopExplained, reason.to_string()));
                }
            }
            _ => {}
        }
        if matches!(output, Output::Load(..)) {
            saw.push(Judge::RowsRead);
        }
        for judge in saw {
            self.judged.saw(judge, 1);
        }
        for (judge, words) in found {
            self.finds(account, judge, words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Options;

    /// No mistake that is put back makes an engine say so much at once: what no limit of its own holds.
    #[test]
    fn too_many_outputs_behind_one_input_are_found() {
        let mut world = World::new(Options::default());
        world.watch_output(0, &Output::Close, MOST_OUTPUTS);
        assert!(world.accounts[0].complaints.is_empty());
        world.watch_output(0, &Output::Close, MOST_OUTPUTS + 1);
        let words = world.accounts[0].complaints.concat();
        assert!(words.contains("limit-outputs"), "{words}");
    }
}
