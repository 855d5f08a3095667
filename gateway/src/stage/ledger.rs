//! The consumer's books: everything the host processes said about every account, held against the plan.

use super::plan::Plan;
use baton_core::crypto::sha256;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: Vec<Account>,
    /// By message id: its index in the plan.
    index: BTreeMap<String, usize>,
    /// By index in the plan.
    messages: Vec<Life>,
    /// Last index received, by (sender, recipient).
    last: BTreeMap<(usize, usize), usize>,
    received: usize,
    /// Things that must not be, in words.
    pub(super) faults: Vec<String>,
    /// Messages that came again under a new event number.
    pub(super) duplicated: usize,
    /// Messages that came after a later one of the same sender.
    pub(super) reordered: usize,
    /// Events shown again because their acknowledgement was lost with a process: harmless, and worth counting.
    pub(super) shown_again: usize,
}

#[derive(Debug, Default)]
struct Account {
    addresses: BTreeSet<String>,
    /// Hashes of the events so far; event 1 is the first.
    events: Vec<[u8; 32]>,
}

#[derive(Clone, Debug, Default)]
struct Life {
    received: usize,
    sent: usize,
    delivered: bool,
}

impl Ledger {
    /// Nothing has happened.
    #[must_use]
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            accounts: plan.accounts.iter().map(|_| Account::default()).collect(),
            index: plan
                .messages
                .iter()
                .enumerate()
                .map(|(n, message)| (message.id.clone(), n))
                .collect(),
            messages: vec![Life::default(); plan.messages.len()],
            last: BTreeMap::new(),
            received: 0,
            faults: Vec::new(),
            duplicated: 0,
            reordered: 0,
            shown_again: 0,
        }
    }

    /// Messages of the plan that have reached their recipient.
    #[must_use]
    pub(super) const fn received(&self) -> usize {
        self.received
    }

    /// Whether this one has.
    #[must_use]
    pub(super) fn has_arrived(&self, message: usize) -> bool {
        self.messages
            .get(message)
            .is_some_and(|life| life.received > 0)
    }

    /// Whether the senders have heard of everything that it was sent and delivered.
    #[must_use]
    pub(super) fn all_confirmed(&self) -> bool {
        self.messages
            .iter()
            .all(|life| life.received > 0 && life.sent > 0 && life.delivered)
    }

    /// The account's addresses, by which others know it.
    pub(super) fn known_as(&mut self, account: usize, address: &str) {
        if let Some(account) = self.accounts.get_mut(account) {
            account.addresses.insert(user_of(address));
        }
    }

    /// Books one event of an account. Returns its number, to be acknowledged.
    pub(super) fn event(&mut self, plan: &Plan, account: usize, event: &Value) -> Option<u64> {
        let seq = event["seq"].as_u64()?;
        let hash = sha256(&[event.to_string().as_bytes()]);
        let events = &mut self.accounts.get_mut(account)?.events;
        let next = events.len() as u64 + 1;
        if seq > next {
            self.faults.push(format!(
                "account {account}: event {seq} came, {next} did not"
            ));
            return None;
        }
        if seq < next {
            self.shown_again += 1;
            let first = usize::try_from(seq)
                .ok()
                .and_then(|seq| events.get(seq.checked_sub(1)?));
            if first != Some(&hash) {
                self.faults.push(format!(
                    "account {account}: event {seq} came again and said something else"
                ));
            }
            return Some(seq);
        }
        events.push(hash);
        self.fresh(plan, account, event);
        Some(seq)
    }

    fn fresh(&mut self, plan: &Plan, account: usize, event: &Value) {
        let kind = event["event"].as_str().unwrap_or_default();
        let id = event["id"].as_str().unwrap_or_default();
        match (kind, self.index.get(id).copied()) {
            ("message", Some(n)) => self.message(plan, account, n, event),
            ("message", None) if event["text"].is_string() => {
                self.faults
                    .push(format!("account {account}: message {id} was never written"));
            }
            ("sent", Some(n)) => {
                if let Some(life) = self.messages.get_mut(n) {
                    life.sent += 1;
                    if life.sent > 1 {
                        self.faults.push(format!(
                            "message {id} was sent more than once, by two events"
                        ));
                    }
                }
            }
            ("delivered", Some(n)) => {
                if let Some(life) = self.messages.get_mut(n) {
                    life.delivered = true;
                }
            }
            ("failed" | "undecryptable" | "logged_out", _) => {
                self.faults.push(format!("account {account}: {kind} {id}"));
            }
            _ => {}
        }
    }

    fn message(&mut self, plan: &Plan, account: usize, n: usize, event: &Value) {
        let Some((planned, life)) = plan.messages.get(n).zip(self.messages.get_mut(n)) else {
            return;
        };
        let id = &planned.id;
        life.received += 1;
        if life.received > 1 {
            self.duplicated += 1;
            return;
        }
        self.received += 1;
        if account != planned.to || event["from_me"] == true {
            self.faults.push(format!(
                "message {id} reached account {account} instead of {}",
                planned.to
            ));
        }
        if event["text"].as_str() != Some(&planned.text) {
            self.faults
                .push(format!("message {id} says something else than was written"));
        }
        let sender = user_of(event["sender"].as_str().unwrap_or_default());
        if !self
            .accounts
            .get(planned.from)
            .is_some_and(|from| from.addresses.contains(&sender))
        {
            self.faults
                .push(format!("message {id} seems to come from somebody else"));
        }
        let last = self.last.entry((planned.from, planned.to)).or_insert(n);
        if *last > n {
            self.reordered += 1;
        }
        *last = (*last).max(n);
    }
}

/// `user@server` of a device address.
fn user_of(address: &str) -> String {
    match address.parse::<baton_core::jid::Jid>() {
        Ok(jid) => jid.bare().to_string(),
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::plan::Size;
    use serde_json::json;
    use std::time::Duration;

    fn setting() -> (Plan, Ledger) {
        let size = Size {
            accounts: 2,
            messages: 40,
            over: Duration::ZERO,
            nodes: 1,
            kills: 0,
        };
        let plan = Plan::draw(3, size);
        let mut ledger = Ledger::new(&plan);
        ledger.known_as(0, "15550000001:1@s.whatsapp.net");
        ledger.known_as(1, "15550000002:1@s.whatsapp.net");
        (plan, ledger)
    }

    fn message(plan: &Plan, n: usize, seq: u64) -> Value {
        let planned = &plan.messages[n];
        let sender = format!("1555000000{}:1@s.whatsapp.net", planned.from + 1);
        json!({ "event": "message", "seq": seq, "id": planned.id, "sender": sender, "text": planned.text,
                "from_me": false })
    }

    /// The first two messages from account 0 to account 1.
    fn two(plan: &Plan) -> (usize, usize) {
        let mut found = plan
            .messages
            .iter()
            .enumerate()
            .filter(|(_, m)| m.from == 0)
            .map(|(n, _)| n);
        (found.next().unwrap(), found.next().unwrap())
    }

    #[test]
    fn good_books() {
        let (plan, mut ledger) = setting();
        let (a, b) = two(&plan);
        assert_eq!(ledger.event(&plan, 1, &message(&plan, a, 1)), Some(1));
        assert_eq!(ledger.event(&plan, 1, &message(&plan, b, 2)), Some(2));
        // Shown again after a crash: acknowledged again, counted once.
        assert_eq!(ledger.event(&plan, 1, &message(&plan, a, 1)), Some(1));
        assert_eq!(
            (
                ledger.received(),
                ledger.shown_again,
                ledger.duplicated,
                ledger.reordered
            ),
            (2, 1, 0, 0)
        );
        assert_eq!(ledger.faults, Vec::<String>::new());
        assert!(ledger.has_arrived(a) && !ledger.all_confirmed());
    }

    #[test]
    fn every_kind_of_wrong_is_noticed() {
        let (plan, mut ledger) = setting();
        let (a, b) = two(&plan);
        ledger.event(&plan, 1, &message(&plan, b, 1));
        ledger.event(&plan, 1, &message(&plan, a, 2));
        ledger.event(&plan, 1, &message(&plan, a, 3));
        assert_eq!((ledger.reordered, ledger.duplicated), (1, 1));
        assert_eq!(ledger.event(&plan, 1, &message(&plan, a, 9)), None, "a gap");
        ledger.event(&plan, 1, &message(&plan, a, 1));
        assert_eq!(
            ledger.faults.len(),
            2,
            "the gap, and event 1 with other content: {:?}",
            ledger.faults
        );
        let mut forged = message(
            &plan,
            plan.messages.iter().rposition(|m| m.from == 0).unwrap(),
            4,
        );
        forged["text"] = "something else".into();
        forged["sender"] = "15559999999@s.whatsapp.net".into();
        ledger.event(&plan, 1, &forged);
        assert_eq!(ledger.faults.len(), 4);
        ledger.event(
            &plan,
            1,
            &json!({ "event": "message", "seq": 5, "id": "X", "text": "never written" }),
        );
        ledger.event(
            &plan,
            1,
            &json!({ "event": "undecryptable", "seq": 6, "id": "X" }),
        );
        assert_eq!(ledger.faults.len(), 6);
    }
}
