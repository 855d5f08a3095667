//! The consumer of an account: what it asks for, what it sees, what it acknowledges.

use super::{ToEngine, ready};
use crate::world::{Happening, World, chance::Stream, cover::Point, judges::Judge};
use baton_core::{
    flow::{Command, Connection, Event, Notice, SendRequest, mailbox_request},
    state::{EventSeq, Micros, Store},
};

impl World {
    pub(crate) fn enqueue(&mut self, account: usize, request: SendRequest) {
        let Some(id) = request.id.clone() else { return };
        let row = mailbox_request(&request, self.now.0);
        let at = self.now().unix;
        let account_id = self.accounts[account].id.clone();
        match ready(self.store.enqueue(&account_id, id.clone(), row, at)) {
            Ok(_) => {
                self.ledger.requested(account, &id);
                self.asks_again(account, &request);
                self.mail_may_have_come(account);
            }
            Err(error) => self.accounts[account]
                .complaints
                .push(format!("enqueue: {error}")),
        }
    }

    /// The consumer sees an event, and acknowledges now and then.
    pub(super) fn show(&mut self, account: usize, seq: EventSeq, event: Event) {
        self.note(&[b"event", &account.to_le_bytes(), &seq.0.to_le_bytes()]);
        self.mark(|recorder| recorder.shows(account, seq, &event));
        let draw = self.chance.of(Stream::Consumer, account as u64, seq.0) % 4;
        let this = &mut self.accounts[account];
        // Before a gap the last event has to be exactly the one that the gap says is the last; a consumer that has seen
        // more, in what was lost, has seen that too.
        let mut wrong = None;
        let gap = match &event {
            Event::HistoryLost { after, .. } => Some(*after),
            _ => None,
        };
        if let Some(last) = this.last_shown {
            if seq != last.next() && gap != Some(last) {
                let words = format!("event {} was shown after {}", seq.0, last.0);
                wrong = Some((Judge::EventOrder, words));
            }
        } else if seq > this.acknowledged.next() && gap.is_none_or(|gap| gap > this.acknowledged) {
            let words = format!(
                "event {} was shown first; acknowledged up to {}",
                seq.0, this.acknowledged.0
            );
            wrong = Some((Judge::EventOrder, words));
        }
        this.last_shown = Some(seq);
        if this.events.contains_key(&seq) {
            self.cover.hit(Point::EventAgain);
        }
        match this.events.get(&seq) {
            Some(known) if *known != event => {
                wrong = Some((Judge::EventOnce, format!("event {} has changed", seq.0)));
            }
            Some(_) => {}
            None => {
                this.events.insert(seq, event);
            }
        }
        self.judged.saw(Judge::EventOrder, 1);
        self.judged.saw(Judge::EventOnce, 1);
        if let Some((judge, words)) = wrong {
            self.finds(account, judge, words);
        }
        let this = &mut self.accounts[account];
        // Nobody shows it more than this before it has acknowledged something.
        let full = seq.0.saturating_sub(this.acknowledged.0) >= u64::from(self.bounds.1);
        // What it has acknowledged before is acknowledged again: that may have been lost with a process.
        if draw == 0 || full || seq <= this.acknowledged {
            // Durable at the consumer: only from here on may it be forgotten. A crash before this shows it again.
            this.acknowledged = this.acknowledged.max(seq);
            let life = this.life;
            let input = ToEngine::Command(Command::Acknowledge(seq));
            self.later(
                Micros(50),
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
        }
    }

    pub(super) fn notice(&mut self, account: usize, notice: Notice) {
        match notice {
            Notice::Qr { text, .. } => {
                let phone = self.accounts[account].phone.clone();
                let now = self.service_now();
                match self.service.scan(&text, Some(&phone), now) {
                    Ok(scanned) => self.accounts[account].device = scanned.jid.device(),
                    Err(error) => {
                        self.accounts[account]
                            .complaints
                            .push(format!("scan: {error}"));
                    }
                }
            }
            Notice::Connection(state) => {
                self.accounts[account].online = state == Connection::Online
            }
            Notice::Sync(..) | Notice::History { .. } => {
                self.accounts[account].progress.push(format!("{notice:?}"));
            }
            other => self.accounts[account].notices.push(format!("{other:?}")),
        }
    }
}
