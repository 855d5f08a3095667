//! What the store answers: what former owners have left, the rows of queued work, the mailbox.

use super::{Engine, LoadId, Phase, Reading};
use crate::{
    flow::{Account, LinkState, StopReason, inbox, reseal},
    proto::record::Counters,
    state::{Key, Row, Table, codec, rules},
};

/// Rows per scan while starting.
const SCAN_ROWS: u32 = 256;

/// Requests taken from the mailbox at once.
pub(super) const MAILBOX_ROWS: u32 = 1024;

/// A row without which there is no going on.
fn unusable(table: Table, why: impl std::fmt::Display) -> StopReason {
    StopReason::Store(format!("row {}: {why}", table.name()))
}

/// Whether counters can be counted on from where they stand: what comes out of them has to fit the tables.
fn plausible(counters: &Counters) -> bool {
    let pre_key = |id: Option<u32>| id.unwrap_or(1) <= rules::MAX_PRE_KEY_ID;
    counters.next_event.unwrap_or(1) < rules::MAX_NUMBER
        && counters.next_order.unwrap_or(1) < rules::MAX_NUMBER
        && pre_key(counters.next_pre_key)
        && pre_key(counters.first_unconfirmed_pre_key)
        && pre_key(counters.next_signed_pre_key)
        && counters.burn.unwrap_or(0) < u32::MAX
}

impl Engine {
    pub(super) fn loaded(&mut self, id: LoadId, rows: Vec<Row>) {
        let reading = match self.reading.get(&id) {
            Some(Reading::Account | Reading::Rows(_)) => self.reading.remove(&id),
            _ => None,
        };
        match reading {
            Some(Reading::Account) => self.account_read(rows),
            Some(Reading::Rows(keys)) => {
                for key in self.cx.rows.load_finished(keys, rows) {
                    self.cx.corrupt(key);
                }
            }
            // Not asked for, or asked for as a scan: the driver has mixed something up. Nothing depends on it.
            _ => self.cx.protocol_error("rows that were not asked for"),
        }
    }

    pub(super) fn account_read(&mut self, rows: Vec<Row>) {
        let mut rows = rows.into_iter();
        match rows.next() {
            Some(Row::Absent) => self.cx.save_account(),
            Some(Row::Present(record)) => match Account::from_record(&record) {
                Ok(account) => self.cx.account = account,
                Err(error) => return self.halt(unusable(Table::Device, error)),
            },
            _ => return self.halt(unusable(Table::Device, "cannot be read")),
        }
        match rows.next() {
            Some(Row::Absent) => self.cx.save_counters(),
            Some(Row::Present(record)) => match codec::decode(&record) {
                Ok(counters) if !plausible(&counters) => {
                    return self.halt(unusable(Table::Counters, "numbers out of range"));
                }
                Ok(counters) => self.cx.counters = counters,
                // Guessing these would bind ids twice.
                Err(error) => return self.halt(unusable(Table::Counters, error)),
            },
            _ => return self.halt(unusable(Table::Counters, "cannot be read")),
        }
        // Before anything else is written: this has to be in the first batch.
        let (sealed, history) = (self.grant.lease.sealed, self.grant.lease.term.history);
        if sealed != history {
            reseal::reseal(&mut self.cx, sealed, history);
            if !plausible(&self.cx.counters) {
                return self.halt(StopReason::Store("the numbers are used up".into()));
            }
        }
        self.scan(Table::Outbox, None, SCAN_ROWS, Reading::Outbox(None));
    }

    pub(super) fn scanned(&mut self, id: LoadId, rows: Vec<(Key, Row)>) {
        let reading = match self.reading.get(&id) {
            None | Some(Reading::Account | Reading::Rows(_)) => None,
            Some(_) => self.reading.remove(&id),
        };
        match reading {
            Some(Reading::Outbox(before)) => {
                let last = rows.last().map(|(key, _)| key.clone());
                let full = rows.len() >= SCAN_ROWS as usize;
                // A store that gives the same rows again and again would keep us here for ever.
                let advances =
                    last > before && last.as_ref().is_none_or(|key| key.table() == Table::Outbox);
                if full && !advances {
                    return self.halt(StopReason::Store(format!(
                        "a scan of table {} does not advance",
                        Table::Outbox.name()
                    )));
                }
                self.sends.start(&mut self.cx, rows);
                if full {
                    self.scan(
                        Table::Outbox,
                        last.clone(),
                        SCAN_ROWS,
                        Reading::Outbox(last),
                    );
                } else {
                    let window = self.cx.config.limits.events_in_flight.get();
                    self.scan(Table::Inbox, None, window, Reading::InboxAtStart);
                }
            }
            Some(Reading::InboxAtStart) => {
                inbox::start(&mut self.cx, rows);
                // After a loss a request can be back in the mailbox that has been sent, and somebody may ask for it
                // again: it has to be known before the service can speak.
                if self.cx.stats.losses > 0 && self.cx.account.is_linked() {
                    self.scan(Table::Mailbox, None, MAILBOX_ROWS, Reading::MailboxAtStart);
                } else {
                    self.started();
                }
            }
            Some(Reading::MailboxAtStart) => {
                self.work.mailbox(&mut self.cx, rows);
                self.started();
            }
            Some(Reading::Inbox) => inbox::scanned(&mut self.cx, rows),
            Some(Reading::Sync(scan)) => self.sync.scanned(&mut self.cx, scan, rows),
            Some(Reading::Mailbox) => {
                self.checking_mailbox = false;
                self.sends.mailbox_read();
                self.work.mailbox(&mut self.cx, rows);
            }
            _ => self.cx.protocol_error("rows that were not asked for"),
        }
    }

    pub(super) fn started(&mut self) {
        if let LinkState::LoggedOut(code) = self.cx.account.state {
            // Linking anew is a decision of people: a command for it may have come already.
            if self.early.is_empty() {
                self.stop(StopReason::LoggedOut(code));
                return;
            }
        }
        self.phase = Phase::Running;
        if self.cx.account.is_linked() {
            self.link.open(&mut self.cx);
        }
        while let Some((id, command)) = self.early.pop_front() {
            self.command(id, command);
        }
    }
}
