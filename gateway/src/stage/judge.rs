//! The verdict: the books of the service, of the consumer and of the store, held against each other and the plan.

use super::{Split, ledger::Ledger, plan::Plan};
use crate::setup::{Failure, store_failed};
use baton_core::state::{BusinessId, Row, Scan, Store, Table};
use serde::Serialize;
use sim::service::{DeviceId, books::Books};
use std::{collections::BTreeMap, time::Duration};

/// What came of a play. All counts but the first two, `shown_again` and `resent` have to be zero.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Messages of the plan that the service accepted.
    pub sent: usize,
    /// Messages of the plan that reached the consumer of their recipient.
    pub received: usize,
    /// Messages of the plan that did not reach their recipient's consumer, or not all their phones.
    pub lost: usize,
    /// Messages that a consumer or a phone got twice, or the service under two ciphertexts.
    pub duplicated: usize,
    /// Messages that came after a later one of the same sender.
    pub reordered: usize,
    /// Message keys that encrypted two different things.
    pub keys_used_twice: usize,
    /// Logins while another connection of the same device was live.
    pub two_connections: usize,
    /// Rows in the store of work that should be done: outbox, mailbox, unacknowledged events.
    pub left_in_store: usize,
    /// Everything else that must not be, in words.
    pub faults: Vec<String>,
    /// Events that a consumer saw again because a process was killed before their acknowledgement was durable.
    pub shown_again: usize,
    /// Messages that the service got again, byte for byte, because a process was killed before it knew.
    pub resent: u32,
    /// Connections that the service closed because the next owner came: their process was frozen, or cut off and silent.
    pub evicted: usize,
    /// Terms that were refused to hosts that came back too late.
    pub refused: usize,
    /// From each blow to the moment at which the last of the victim's accounts was online elsewhere.
    #[serde(serialize_with = "as_seconds")]
    pub takeovers: Vec<Duration>,
    /// The same by account and step.
    pub splits: Vec<Split>,
    /// How long accounts had no connection since the first blow, by the service's books: the longest of each account.
    #[serde(serialize_with = "as_seconds")]
    pub silences: Vec<Duration>,
}

impl Verdict {
    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let Self {
            lost,
            duplicated,
            reordered,
            keys_used_twice,
            two_connections,
            left_in_store,
            faults,
            ..
        } = self;
        lost + duplicated + reordered + keys_used_twice + two_connections + left_in_store == 0
            && faults.is_empty()
    }
}

fn as_seconds<S: serde::Serializer>(times: &[Duration], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(
        times
            .iter()
            .map(|time| (time.as_secs_f64() * 1000.0).round() / 1000.0),
    )
}

/// Compares consumer and service. `devices` are the linked devices, by account.
pub(super) fn compare(
    plan: &Plan,
    ledger: &Ledger,
    books: &Books,
    devices: &[DeviceId],
) -> Verdict {
    let mut verdict = Verdict {
        received: ledger.received(),
        duplicated: ledger.duplicated,
        reordered: ledger.reordered,
        faults: ledger.faults.clone(),
        shown_again: ledger.shown_again,
        ..Verdict::default()
    };
    // How often each phone could read each message.
    let mut read: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for text in books.texts() {
        *read
            .entry((text.phone.phone.as_str(), text.id.as_str()))
            .or_default() += 1;
    }
    for (n, message) in plan.messages.iter().enumerate() {
        let phone = |account: usize| {
            plan.accounts
                .get(account)
                .map_or("", |account| account.phone.as_str())
        };
        let log = devices
            .get(message.from)
            .and_then(|device| books.message(device, &message.id));
        let accepted = log.map_or(0, |log| {
            log.accepted
                .iter()
                .filter(|accepted| !accepted.resend)
                .count()
        });
        verdict.sent += accepted.min(1);
        verdict.duplicated += accepted.saturating_sub(1);
        verdict.resent += log.map_or(0, |log| log.repeated);
        // The recipient's phone, and the sender's own, which gets a copy.
        let by_phones = [message.to, message.from].map(|account| {
            read.get(&(phone(account), message.id.as_str()))
                .copied()
                .unwrap_or(0)
        });
        verdict.duplicated += by_phones
            .iter()
            .map(|times| times.saturating_sub(1))
            .sum::<usize>();
        if !ledger.has_arrived(n) || by_phones.contains(&0) {
            verdict.lost += 1;
        }
    }
    verdict.keys_used_twice = books.keys_used_twice().count();
    let others = books.violations().len() - verdict.keys_used_twice;
    if others > 0 {
        verdict.faults.push(format!(
            "{others} other violations in the service's books: {:?}",
            books.violations()
        ));
    }
    for anomaly in books.anomalies() {
        verdict
            .faults
            .push(format!("the service noticed: {}", anomaly.what));
    }
    verdict.two_connections = books.devices().map(|(_, log)| log.live_twice.len()).sum();
    verdict
}

/// The longest time without a connection of each account that had one since `since`, by the service's clock.
pub(super) fn silences(books: &Books, devices: &[DeviceId], since: u64) -> Vec<Duration> {
    let silence = |device: &DeviceId| {
        let connections = &books.device(device)?.connections;
        let gaps = connections.windows(2).filter_map(|pair| {
            let [before, after] = pair else { return None };
            let end = before.closed.as_ref().map(|(stamp, _)| stamp.micros)?;
            (after.login.micros >= since).then(|| after.login.micros.saturating_sub(end))
        });
        gaps.max().map(Duration::from_micros)
    };
    devices.iter().filter_map(silence).collect()
}

/// Rows of unfinished work.
pub(super) async fn left_in_store<S: Store>(store: &S) -> Result<usize, Failure> {
    let mut left = 0;
    for account in store
        .accounts(&BusinessId::default())
        .await
        .map_err(store_failed)?
    {
        if !matches!(account.device, Row::Present(_)) {
            return Err(Failure::failed(format!(
                "account {} has no readable row",
                account.name
            )));
        }
        for table in [Table::Outbox, Table::Mailbox, Table::Inbox] {
            let scan = Scan {
                table,
                after: None,
                limit: 10_000,
            };
            left += store
                .scan(&account.id, scan)
                .await
                .map_err(store_failed)?
                .len();
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::plan::Size;
    use baton_core::state::{Incarnation, Micros, Outcome, Record, UnixMillis};

    #[test]
    fn a_service_that_saw_nothing_is_not_fine() {
        let size = Size {
            accounts: 3,
            messages: 25,
            over: Duration::ZERO,
            nodes: 1,
            kills: 0,
        };
        let plan = Plan::draw(1, size);
        let devices: Vec<DeviceId> = plan
            .accounts
            .iter()
            .map(|account| DeviceId::new(&account.phone, 1))
            .collect();
        let verdict = compare(&plan, &Ledger::new(&plan), &Books::default(), &devices);
        assert_eq!((verdict.sent, verdict.received, verdict.lost), (0, 0, 25));
        assert!(!verdict.is_clean());
        assert!(Verdict::default().is_clean());
        for spoil in [
            |verdict: &mut Verdict| verdict.duplicated = 1,
            |verdict: &mut Verdict| verdict.reordered = 1,
            |verdict: &mut Verdict| verdict.keys_used_twice = 1,
            |verdict: &mut Verdict| verdict.two_connections = 1,
            |verdict: &mut Verdict| verdict.left_in_store = 1,
            |verdict: &mut Verdict| verdict.faults.push("something".into()),
        ] {
            let mut verdict = Verdict::default();
            spoil(&mut verdict);
            assert!(!verdict.is_clean());
        }
    }

    #[tokio::test]
    async fn unfinished_work_is_found_in_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = baton_store_sqlite::SqliteStore::open(
            directory.path().join("baton.db"),
            Default::default(),
        )
        .unwrap();
        let id = baton_tokio::account_named(&store, "a").await.unwrap();
        assert!(
            left_in_store(&store).await.is_err(),
            "an account without a row of its own is no account"
        );
        let who = Incarnation(1);
        let info = baton_core::state::HostInfo::named("a");
        store.join(who, info, Micros::from_secs(60)).await.unwrap();
        let claims = store.claim(who, vec![id.clone()]).await.unwrap();
        let [baton_core::state::Claim::Granted(lease)] = claims[..] else {
            panic!("{claims:?}")
        };
        let device = (
            baton_core::state::Key::Device,
            Some(Record(bytes::Bytes::from_static(b"\x01"))),
        );
        let batch = baton_core::state::Batch {
            account: id.clone(),
            term: lease.term,
            seq: lease.applied.next(),
            reseal: false,
            at: UnixMillis(0),
            rows: [device].into(),
        };
        assert_eq!(
            store.commit(vec![batch]).await.unwrap(),
            [Outcome::Committed]
        );
        assert_eq!(left_in_store(&store).await.unwrap(), 0);
        let request = Record(bytes::Bytes::from_static(b"\x01"));
        store
            .enqueue(&id, "M".into(), request, UnixMillis(0))
            .await
            .unwrap();
        assert_eq!(left_in_store(&store).await.unwrap(), 1);
    }
}
