//! What will happen, drawn from a seed before anything happens: who writes what to whom under which id, and who is
//! killed when. Clocks and speeds of the machine change when things are done, never what is done.

use baton_core::crypto::{Rng, sha256};
use std::time::Duration;

/// The size of a play.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Accounts, at least two.
    pub accounts: usize,
    /// Messages between them.
    pub messages: usize,
    /// Over how long they are spread.
    pub over: Duration,
    /// Processes to share the accounts.
    pub nodes: usize,
    /// Processes killed on the way.
    pub kills: usize,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Plan {
    /// All of them.
    pub accounts: Vec<Account>,
    /// In the order in which they are handed over.
    pub messages: Vec<Message>,
    /// In order.
    pub kills: Vec<Kill>,
    /// Processes to begin with.
    pub nodes: usize,
}

/// One account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name in the store.
    pub name: String,
    /// Its phone number.
    pub phone: String,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: String,
    /// Index of the sending account.
    pub from: usize,
    /// Index of the receiving account.
    pub to: usize,
    /// Addressed by LID instead of the phone number. The same for all messages of a pair.
    pub by_lid: bool,
    /// What it says.
    pub text: String,
    /// When it is handed over, after the start of the traffic.
    pub at: Duration,
}

/// One process to kill, or to do something else to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// When so many messages were handed over ...
    pub after: usize,
    /// ... and so much later. It is always in the middle of something.
    pub delay: Duration,
    /// Which of the processes alive at that time, counted by age.
    pub node: usize,
}

/// Messages before a blow, and as many after it, that are handed over at once; fewer if there are few accounts.
const BURST: usize = 60;

const WORDS: [&str; 24] = [
    "rain", "over", "the", "harbour", "keeps", "its", "time", "and", "nobody", "counts", "twice",
    "but", "we", "lost", "no", "letter", "to", "wind", "ключ", "mañana", "水", "🙂", "relay",
    "baton",
];

impl Plan {
    /// Equal seeds and sizes give equal plans.
    #[must_use]
    pub fn draw(seed: u64, size: Size) -> Self {
        let mut rng = Rng::from_seed(sha256(&[b"baton stage", &seed.to_be_bytes()]));
        let mut traffic = rng.fork("traffic");
        let mut trouble = rng.fork("trouble");
        let accounts = size.accounts.max(2);
        let below =
            |rng: &mut Rng, n: usize| usize::try_from(rng.below(n.max(1) as u64)).unwrap_or(0);

        let pairs: Vec<bool> = (0..accounts * accounts)
            .map(|_| traffic.below(4) == 0)
            .collect();
        let over = u64::try_from(size.over.as_micros()).unwrap_or(u64::MAX);
        let mut times: Vec<u64> = (0..size.messages)
            .map(|_| traffic.below(over.max(1)))
            .collect();
        times.sort_unstable();
        let messages = times.into_iter().map(|at| {
            let from = below(&mut traffic, accounts);
            let to = (from + 1 + below(&mut traffic, accounts - 1)) % accounts;
            let words = 1 + below(&mut traffic, 9);
            let text: Vec<&str> = (0..words)
                .map(|_| {
                    WORDS
                        .get(below(&mut traffic, WORDS.len()))
                        .copied()
                        .unwrap_or_default()
                })
                .collect();
            let id = traffic
                .bytes::<9>()
                .iter()
                .fold("3EB0".to_owned(), |id, byte| format!("{id}{byte:02X}"));
            let by_lid = pairs.get(from * accounts + to).copied().unwrap_or(false);
            Message {
                id,
                from,
                to,
                by_lid,
                text: text.join(" "),
                at: Duration::from_micros(at),
            }
        });
        let mut messages: Vec<Message> = messages.collect();

        // Spread over the middle of the traffic, one in each part of equal length.
        let (first, last) = (size.messages / 8, size.messages - size.messages / 8);
        let part = (last - first) / size.kills.max(1);
        let kills: Vec<Kill> = (0..size.kills)
            .map(|n| Kill {
                after: first + n * part + below(&mut trouble, part),
                // Now in the burst, now somewhere after it.
                delay: Duration::from_micros(trouble.below(if n % 2 == 0 {
                    15_000
                } else {
                    60_000
                })),
                node: below(&mut trouble, size.nodes),
            })
            .collect();
        // A burst around each kill, so that there is something in flight.
        for kill in &kills {
            let burst = (4 * accounts).min(BURST);
            let first = kill.after.saturating_sub(burst);
            if let Some(at) = messages.get(first).map(|message| message.at) {
                let end = (kill.after + burst).min(messages.len());
                // Later ones stay later.
                messages
                    .iter_mut()
                    .take(end)
                    .skip(first)
                    .for_each(|message| message.at = at);
            }
        }

        let accounts = (0..accounts)
            .map(|n| Account {
                name: format!("account-{}", n + 1),
                phone: format!("1555{:07}", n + 1),
            })
            .collect();
        Self {
            accounts,
            messages,
            kills,
            nodes: size.nodes.max(1),
        }
    }

    /// When the last message is handed over, after the start of the traffic.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.messages
            .last()
            .map_or(Duration::ZERO, |message| message.at)
    }

    /// A hash over ids, senders, recipients and texts in order.
    #[must_use]
    pub fn digest(&self) -> String {
        let all = self.messages.iter().fold(String::new(), |all, message| {
            let Message {
                id,
                from,
                to,
                by_lid,
                text,
                at: _,
            } = message;
            format!("{all}{id} {from} {to} {by_lid} {text}\n")
        });
        sha256(&[all.as_bytes()])
            .iter()
            .take(8)
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        accounts: 5,
        messages: 200,
        over: Duration::from_secs(4),
        nodes: 2,
        kills: 3,
    };

    #[test]
    fn a_seed_is_a_plan() {
        let (a, b) = (Plan::draw(1, SIZE), Plan::draw(1, SIZE));
        assert_eq!(
            (a.digest(), &a.messages, &a.kills),
            (b.digest(), &b.messages, &b.kills)
        );
        assert_ne!(a.digest(), Plan::draw(2, SIZE).digest());
        // Trouble does not change what is said.
        let calm = Plan::draw(1, Size { kills: 0, ..SIZE });
        assert_eq!(calm.digest(), a.digest());
    }

    #[test]
    fn plans_are_sound() {
        for seed in 0..50 {
            let plan = Plan::draw(seed, SIZE);
            let ids: std::collections::BTreeSet<_> =
                plan.messages.iter().map(|message| &message.id).collect();
            assert_eq!(ids.len(), SIZE.messages);
            assert!(
                plan.messages
                    .iter()
                    .all(|m| m.from != m.to && m.from < 5 && m.to < 5 && !m.text.is_empty())
            );
            assert!(plan.messages.is_sorted_by_key(|message| message.at));
            assert!(plan.kills.is_sorted_by_key(|kill| kill.after));
            assert!(
                plan.kills
                    .iter()
                    .all(|kill| kill.after > 0 && kill.after < SIZE.messages && kill.node < 2)
            );
        }
    }
}
