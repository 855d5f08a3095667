//! What must hold at the end, from the books of service and consumers.

use super::{
    World,
    judges::{Judge, Judged},
    losses::Ledger,
    rest,
    subject::Subject,
};
use crate::service::books::Books;
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
    /// As [`lost`](Self::lost), but the database had lost the request, or the event, when the service had been told that
    /// all was well.
    pub forgiven: usize,
    /// Seen under two event numbers, of which neither was lost.
    pub duplicated: usize,
    /// Seen before something that was asked earlier by the same sender for the same recipient.
    pub reordered: usize,
    /// Message keys that encrypted two different things, pre-key ids bound to two keys.
    pub violations: usize,
    /// Settings that were changed, by whomever.
    pub settings: usize,
    /// Messages of the past that were shown.
    pub history: usize,
    /// How much each judge has looked at.
    pub judged: Judged,
    /// Everything that is wrong, in words, with the judges' names.
    pub complaints: Vec<String>,
    /// What complaints are about, by their places.
    pub about: BTreeMap<usize, Subject>,
    /// Pairs of texts of which the later one came first.
    pub overtaken: Vec<Subject>,
}

impl Verdict {
    /// Who has found something.
    #[must_use]
    pub fn guilty(&self) -> std::collections::BTreeSet<Judge> {
        let mut judges = Judge::all_of(&self.complaints);
        if self.reordered > 0 {
            judges.insert(Judge::MessageOrder);
        }
        judges
    }

    /// Whether all is well.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.violations == 0
            && self.complaints.is_empty()
    }
}

/// What a verdict is found by, in worlds of either tier.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    /// Every account's consumer.
    pub(crate) accounts: Vec<Witness<'a>>,
    /// What was asked to be sent: from, to (an account), id, text; in the order of asking per pair.
    pub(crate) asked: Vec<(usize, usize, &'a str, &'a str)>,
    /// The service's books.
    pub(crate) books: &'a Books,
    /// What the database has lost.
    pub(crate) ledger: &'a Ledger,
}

/// One account's consumer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Witness<'a> {
    pub(crate) phone: &'a str,
    /// Every event it was ever shown, by number.
    pub(crate) events: &'a BTreeMap<EventSeq, Event>,
    /// What it found wrong itself.
    pub(crate) complaints: &'a [String],
}

/// Compares the books. Call it when the world has come to rest.
#[must_use]
pub fn judge(world: &World) -> Verdict {
    let _scope = world.options.crypto.scope();
    let mut verdict = weigh(&Evidence {
        accounts: (world.accounts.iter())
            .map(|account| Witness {
                phone: &account.phone,
                events: &account.events,
                complaints: &account.complaints,
            })
            .collect(),
        asked: (world.asked.iter())
            .map(|(from, to, id, text)| (*from, *to, id.as_str(), text.as_str()))
            .collect(),
        books: world.service.books(),
        ledger: &world.ledger,
    });
    verdict.judged.add(&world.judged);
    let named = verdict.complaints.len();
    super::settings::judge(world, &mut verdict);
    let linked = world.accounts.iter().filter(|account| account.online);
    let linked = linked.count();
    for judge in [Judge::SettingsArrive, Judge::SettingsMean] {
        verdict.judged.saw(judge, linked);
    }
    verdict.judged.saw(Judge::ChangeOnce, verdict.settings);
    verdict.judged.saw(Judge::PatchAddsUp, verdict.settings);
    verdict.judged.saw(Judge::HistoryOnce, verdict.history);
    for complaint in &mut verdict.complaints[named..] {
        let judge = about_settings(complaint);
        *complaint = complaint.replacen(": ", &format!(": {judge}: "), 1);
    }
    rest::judge(world, &mut verdict);
    verdict
}

/// Whose a complaint about settings and history is.
fn about_settings(complaint: &str) -> Judge {
    let says = |words: &str| complaint.contains(words);
    if says("history ") || says(" of a past ") {
        Judge::HistoryOnce
    } else if says("announced twice") || says(" is lost") || says("a change was refused") {
        Judge::ChangeOnce
    } else if says(": contact ") || says(": chat ") || says("the settings of chat ") {
        Judge::SettingsMean
    } else {
        Judge::SettingsArrive
    }
}

/// The part of judging that does not depend on how a world works.
pub(crate) fn weigh(world: &Evidence<'_>) -> Verdict {
    let mut verdict = Verdict {
        asked: world.asked.len(),
        ..Verdict::default()
    };
    // Per recipient: message id → event numbers.
    let mut seen: Vec<BTreeMap<&str, Vec<EventSeq>>> = Vec::new();
    for (index, account) in world.accounts.iter().enumerate() {
        let was_lost = |seq: &EventSeq| world.ledger.lost_event(index, *seq);
        let mut ids: BTreeMap<&str, Vec<EventSeq>> = BTreeMap::new();
        let mut sent: BTreeMap<&str, usize> = BTreeMap::new();
        for (seq, event) in account.events {
            match event {
                Event::Message(message) if !message.from_me => {
                    ids.entry(&message.id).or_default().push(*seq)
                }
                Event::Sent { id, .. } if !was_lost(seq) => *sent.entry(id).or_default() += 1,
                Event::Failed { id, code, .. } => {
                    verdict.complaints.push(format!(
                        "{}: {id} failed with code {code}",
                        Judge::SendTaken
                    ));
                    verdict.concerns(message(id));
                }
                Event::Undecryptable { id, .. } => {
                    let words = format!("{}: {id} is undecryptable", Judge::MessageRead);
                    verdict.complaints.push(words);
                    verdict.concerns(message(id));
                }
                _ => {}
            }
        }
        verdict.judged.saw(Judge::SentOnce, sent.len());
        verdict.judged.saw(Judge::EventGap, account.events.len());
        for (id, times) in sent.into_iter().filter(|(_, times)| *times > 1) {
            verdict.complaints.push(format!(
                "{}: {id} was reported {times} times",
                Judge::SentOnce
            ));
            verdict.concerns(message(id));
        }
        let events: Vec<_> = account.events.iter().collect();
        let follows =
            |pair: &[(&EventSeq, &Event)]| World::follows(*pair[0].0, *pair[1].0, pair[1].1);
        if let Some(pair) = events.windows(2).find(|pair| !follows(pair)) {
            verdict.complaints.push(format!(
                "{}: {}: the book has one",
                account.phone,
                Judge::EventGap
            ));
            let seqs = pair.iter().map(|(seq, _)| seq.0).collect();
            verdict.concerns(Subject::Events {
                account: index,
                seqs,
            });
        }
        for (which, text) in account.complaints.iter().enumerate() {
            verdict
                .complaints
                .push(format!("{}: {text}", account.phone));
            verdict.concerns(Subject::Complaint {
                account: index,
                which,
            });
        }
        seen.push(ids);
    }
    let mut last: BTreeMap<(usize, usize), EventSeq> = BTreeMap::new();
    for judge in [Judge::MessageKept, Judge::MessageOnce, Judge::MessageOrder] {
        verdict.judged.saw(judge, world.asked.len());
    }
    for judge in [Judge::MessageWhole, Judge::MessageRead, Judge::SendTaken] {
        verdict.judged.saw(judge, world.asked.len());
    }
    for (from, to, id, text) in &world.asked {
        let mut numbers = seen[*to].get(*id).cloned().unwrap_or_default();
        // Of what was lost only the first counts, if there is nothing else: the consumer did see it.
        if numbers.len() > 1 {
            let lost = |seq: &EventSeq| world.ledger.lost_event(*to, *seq);
            let first = numbers.iter().position(|seq| !lost(seq)).unwrap_or(0);
            let first = numbers[first];
            numbers.retain(|seq| *seq == first || !lost(seq));
        }
        let forgiven = world.ledger.lost_request(*from, id) || world.ledger.lost_message(*to, id);
        match numbers.as_slice() {
            [] if forgiven => verdict.forgiven += 1,
            [] => {
                verdict.lost += 1;
                verdict.complaints.push(format!(
                    "{}: {id} from {from} to {to} was lost",
                    Judge::MessageKept
                ));
                verdict.concerns(message(id));
            }
            [one] => {
                verdict.received += 1;
                let before = last.entry((*from, *to)).or_default();
                if *one < *before {
                    verdict.reordered += 1;
                    let seqs = vec![before.0, one.0];
                    verdict
                        .overtaken
                        .push(Subject::Events { account: *to, seqs });
                }
                *before = (*before).max(*one);
                let event = &world.accounts[*to].events[one];
                if !matches!(event, Event::Message(message) if message.text.as_deref() == Some(*text))
                {
                    verdict.complaints.push(format!(
                        "{}: {id} arrived with another text",
                        Judge::MessageWhole
                    ));
                    verdict.concerns(message(id));
                }
            }
            more => {
                verdict.received += 1;
                verdict.duplicated += more.len() - 1;
                let numbers: Vec<u64> = more.iter().map(|seq| seq.0).collect();
                let words = format!("{}: {id} was shown as {numbers:?}", Judge::MessageOnce);
                verdict.complaints.push(words);
                verdict.concerns(Subject::Events {
                    account: *to,
                    seqs: numbers,
                });
            }
        }
    }
    let books = world.books;
    verdict.violations = books.violations().len();
    for violation in books.violations() {
        let words = format!("{}: {violation:?}", rest::of(violation));
        verdict.complaints.push(words);
        let (device, at) = violation.moments();
        let mut accounts = world.accounts.iter();
        let account = accounts.position(|account| account.phone == device.phone.as_str());
        verdict.concerns(Subject::Moments { account, at });
    }
    verdict
}

fn message(id: &str) -> Subject {
    Subject::Message { id: id.to_owned() }
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
