//! What must hold at the end, from the books of service and consumers.

use super::World;
use baton_core::{flow::Event, state::EventSeq};
use std::collections::BTreeMap;

/// Figures of a run, and everything that is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Texts that somebody asked to be sent.
    pub asked: usize,
    /// Texts that reached the consumer of the recipient.
    pub received: usize,
    /// Asked, and never seen by the recipient's consumer.
    pub lost: usize,
    /// Seen under two event numbers.
    pub duplicated: usize,
    /// Seen before something that was asked earlier by the same sender for the same recipient.
    pub reordered: usize,
    /// Message keys that encrypted two different things, pre-key ids bound to two keys.
    pub violations: usize,
    /// What else is wrong, in words.
    pub complaints: Vec<String>,
}

impl Verdict {
    /// Whether all is well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.violations == 0
            && self.complaints.is_empty()
    }
}

/// Compares the books. Call it when the world has come to rest.
#[must_use]
pub fn judge(world: &World) -> Verdict {
    let mut verdict = Verdict {
        asked: world.asked.len(),
        ..Verdict::default()
    };
    // Per recipient: message id → event numbers.
    let mut seen: Vec<BTreeMap<&str, Vec<EventSeq>>> = Vec::new();
    for account in &world.accounts {
        let mut ids: BTreeMap<&str, Vec<EventSeq>> = BTreeMap::new();
        let mut sent: BTreeMap<&str, usize> = BTreeMap::new();
        for (seq, event) in &account.events {
            match event {
                Event::Message(message) if !message.from_me => {
                    ids.entry(&message.id).or_default().push(*seq)
                }
                Event::Sent { id, .. } => *sent.entry(id).or_default() += 1,
                Event::Failed { id, code, .. } => verdict
                    .complaints
                    .push(format!("{id} failed with code {code}")),
                Event::Undecryptable { id, .. } => {
                    verdict.complaints.push(format!("{id} is undecryptable"))
                }
                _ => {}
            }
        }
        for (id, times) in sent.into_iter().filter(|(_, times)| *times > 1) {
            verdict
                .complaints
                .push(format!("{id} was reported as sent {times} times"));
        }
        let numbers: Vec<u64> = account.events.keys().map(|seq| seq.0).collect();
        if numbers.windows(2).any(|pair| pair[1] != pair[0] + 1) {
            verdict
                .complaints
                .push(format!("{} has a gap in its events", account.phone));
        }
        verdict.complaints.extend(
            account
                .complaints
                .iter()
                .map(|text| format!("{}: {text}", account.phone)),
        );
        seen.push(ids);
    }
    let mut last: BTreeMap<(usize, usize), EventSeq> = BTreeMap::new();
    for (from, to, id, text) in &world.asked {
        let numbers = seen[*to].get(id.as_str()).cloned().unwrap_or_default();
        match numbers.as_slice() {
            [] => verdict.lost += 1,
            [one] => {
                verdict.received += 1;
                let before = last.entry((*from, *to)).or_default();
                if *one < *before {
                    verdict.reordered += 1;
                }
                *before = (*before).max(*one);
                let event = &world.accounts[*to].events[one];
                if !matches!(event, Event::Message(message) if message.text.as_ref() == Some(text))
                {
                    verdict
                        .complaints
                        .push(format!("{id} arrived with another text"));
                }
            }
            more => {
                verdict.received += 1;
                verdict.duplicated += more.len() - 1;
            }
        }
    }
    let books = world.service.books();
    verdict.violations = books.violations().len();
    verdict.complaints.extend(
        books
            .violations()
            .iter()
            .map(|violation| format!("{violation:?}")),
    );
    verdict
}

impl World {
    /// What was asked and never seen: (from, to, id).
    #[must_use]
    pub fn missing(&self) -> Vec<(usize, usize, String)> {
        let seen = |to: usize, id: &str| {
            let mut events = self.accounts[to].events.values();
            events.any(|event| matches!(event, Event::Message(message) if message.id == id && !message.from_me))
        };
        self.asked
            .iter()
            .filter(|(_, to, id, _)| !seen(*to, id))
            .map(|(from, to, id, _)| (*from, *to, id.clone()))
            .collect()
    }
}
