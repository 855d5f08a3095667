//! Judges that look at a world which has come to rest: the store's rows, the service's books, and whether everything
//! that was begun has come to an end.

use super::{Verdict, World, account::ready, judges::Judge, subject::Subject};
use crate::service::books::Violation;
use baton_core::{
    crypto::sha256,
    flow::Event,
    jid::Jid,
    proto::{
        e2e,
        record::{self, outbound::State},
    },
    signal::SessionRecord,
    state::{Key, Record, Row, Store as _, Table, codec, memory::MemoryStore},
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// More connections than this in a run are a fight, or a client that does not wait.
const MOST_CONNECTIONS: u64 = 60;

/// Adds to the verdict what is wrong with a world at rest.
pub(super) fn judge(world: &World, verdict: &mut Verdict) {
    service(world, verdict);
    texts(world, verdict);
    for account in 0..world.accounts.len() {
        let mut case = Case {
            world,
            account,
            verdict,
        };
        case.books();
        // An account that nobody runs any more, because it was unlinked or was never linked, has nothing to arrive at.
        if world.accounts[account].engine.is_some() && world.accounts[account].was_linked() {
            case.liveness();
            case.rows();
        }
    }
}

fn service(world: &World, verdict: &mut Verdict) {
    let books = world.service.books();
    let devices = books.devices().count();
    let relayed = books.messages().count();
    verdict.judged.saw(Judge::KeyUsedOnce, relayed);
    verdict.judged.saw(Judge::PreKeyOnce, devices);
    verdict.judged.saw(Judge::IdentityKept, devices);
    verdict.judged.saw(Judge::Protocol, relayed);
    verdict.judged.saw(Judge::Scenario, world.accounts.len());
    // What was ordered is nobody's fault.
    let ordered = |what: &str| what.contains("fault:");
    for anomaly in books
        .anomalies()
        .iter()
        .filter(|anomaly| !ordered(&anomaly.what))
    {
        let text = format!("{}: {}", Judge::Protocol, anomaly.what);
        verdict.complaints.push(text);
        let account = anomaly.conn.map(super::cover::owner_of);
        let at = vec![(anomaly.at.micros, anomaly.what.clone())];
        verdict.concerns(Subject::Moments { account, at });
    }
}

/// What consumers and phones have read, against what was asked for.
fn texts(world: &World, verdict: &mut Verdict) {
    let asked: BTreeSet<(usize, &str)> = (world.asked.iter())
        .map(|(_, to, id, _)| (*to, id.as_str()))
        .collect();
    let mut found = Vec::new();
    let mut shown = BTreeSet::new();
    for (index, account) in world.accounts.iter().enumerate() {
        for event in account.events.values() {
            let Event::Message(message) = event else {
                continue;
            };
            if message.from_me || message.peer {
                continue;
            }
            verdict.judged.saw(Judge::MessageAsked, 1);
            let what = (index, message.id.as_str());
            if !asked.contains(&what) {
                let words = format!(
                    "{}: {} for account {index}",
                    Judge::MessageAsked,
                    message.id
                );
                found.push((words, message.id.to_string()));
            }
            shown.insert(what);
        }
    }
    // A database that has lost commits may have it sent again, in other words.
    if world.ledger.losses() == 0 {
        let mut read: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for text in world.service.books().texts() {
            *read
                .entry((text.phone.phone.as_str(), &text.id))
                .or_default() += 1;
        }
        for (from, to, id, _) in &world.asked {
            if !shown.contains(&(*to, id.as_str())) {
                continue;
            }
            for account in [*from, *to] {
                verdict.judged.saw(Judge::CopyKept, 1);
                let phone = world.accounts[account].phone.as_str();
                let times = read.get(&(phone, id.as_str())).copied().unwrap_or(0);
                if times != 1 {
                    let words = format!(
                        "{}: phone {phone} has read {id} {times} times",
                        Judge::CopyKept
                    );
                    found.push((words, id.clone()));
                }
            }
        }
    }
    for (words, id) in found {
        verdict.complaints.push(words);
        verdict.concerns(Subject::Message { id });
    }
}

/// Under whose name a broken rule of the service's books goes.
pub(super) const fn of(violation: &Violation) -> Judge {
    match violation {
        Violation::KeyUsedTwice { .. } => Judge::KeyUsedOnce,
        Violation::PreKeyRebound { .. } => Judge::PreKeyOnce,
        Violation::BadPatch { .. } => Judge::PatchAddsUp,
        Violation::IdentityChanged { .. } => Judge::IdentityKept,
    }
}

/// As the engine marks a message as decrypted.
fn mark(sender: &Jid, id: &str) -> [u8; 32] {
    sha256(&[b"seen", sender.to_string().as_bytes(), &[0], id.as_bytes()])
}

struct Case<'a> {
    world: &'a World,
    account: usize,
    verdict: &'a mut Verdict,
}

impl Case<'_> {
    /// Looks at one thing.
    fn look(&mut self, judge: Judge, good: bool, words: impl FnOnce() -> String) {
        self.verdict.judged.saw(judge, 1);
        if !good {
            let phone = &self.world.accounts[self.account].phone;
            let text = format!("{phone}: {judge}: {}", words());
            self.verdict.complaints.push(text);
            let account = self.account;
            self.verdict.concerns(Subject::Account { account });
        }
    }

    /// As [`look`](Self::look), at a message.
    fn look_at(&mut self, judge: Judge, id: &str, good: bool, words: impl FnOnce() -> String) {
        self.look(judge, good, words);
        if !good {
            let id = id.to_owned();
            self.verdict.concerns(Subject::Message { id });
        }
    }

    /// As [`look`](Self::look), at what stands in two books.
    fn look_when(
        &mut self,
        judge: Judge,
        good: bool,
        at: impl FnOnce() -> Vec<(u64, String)>,
        words: impl FnOnce() -> String,
    ) {
        self.look(judge, good, words);
        if !good {
            let (account, at) = (Some(self.account), at());
            self.verdict.concerns(Subject::Moments { account, at });
        }
    }

    /// What the service saw, against what the store had then.
    fn books(&mut self) {
        let world = self.world;
        let this = &world.accounts[self.account];
        let told: BTreeSet<&str> = (this.events.values())
            .filter_map(|event| match event {
                Event::Sent { id, .. } | Event::Failed { id, .. } => Some(id.as_str()),
                _ => None,
            })
            .collect();
        for (key, log) in world.service.books().messages() {
            if key.sender.phone == this.phone.as_str() && !key.sender.is_phone() {
                let Some(first) = log.accepted.first() else {
                    continue;
                };
                if first.category.as_deref() == Some("peer") {
                    continue;
                }
                let durable = this.watched.outbox.get(key.id.as_str());
                let before = durable.is_some_and(|durable| durable.0 <= first.at.micros);
                let at = || {
                    let reached = (first.at.micros, format!("{} reaches the service", key.id));
                    let kept = durable.map(|at| (at.0, format!("{} is durable only here", key.id)));
                    [reached].into_iter().chain(kept).collect()
                };
                self.look_when(Judge::DurableBeforeVisible, before, at, || {
                    format!("{} reached the service before it was durable", key.id)
                });
                let lost = world.ledger.losses() > 0;
                self.look(Judge::SendOnce, log.changed == 0 || lost, || {
                    let (id, times) = (&key.id, log.changed);
                    format!("{id} came with other ciphertexts, {times} times")
                });
                let reported = told.contains(key.id.as_str());
                if this.online {
                    self.look_at(Judge::SentTold, &key.id, reported || lost, || {
                        format!("{} was sent, and nobody was told", key.id)
                    });
                }
            }
            for (device, recipient) in &log.recipients {
                if device.phone != this.phone.as_str() || device.is_phone() {
                    continue;
                }
                let told = (recipient.receipts.iter()).filter(|(_, kind)| kind != "retry");
                // What could not be read is taken off the queue and asked for again.
                let acked = (recipient.acks.iter())
                    .filter(|(_, error)| error.is_none() && recipient.retries == 0);
                let told = told.map(|(at, _)| at.micros);
                let first = told.chain(acked.map(|(at, _)| at.micros)).min();
                let Some(first) = first else { continue };
                let senders = world.service.addresses(&key.sender);
                let kept = (senders.iter())
                    .filter_map(|sender| this.watched.seen.get(&mark(sender, &key.id)));
                let kept = kept.min();
                let before = kept.is_some_and(|kept| kept.0 <= first);
                let at = || {
                    let told = (first, format!("{} is acknowledged", key.id));
                    let kept = kept.map(|at| (at.0, format!("{} is kept only here", key.id)));
                    [told].into_iter().chain(kept).collect()
                };
                self.look_when(Judge::AckAfterKeep, before, at, || {
                    format!("{} was acknowledged before it was kept", key.id)
                });
            }
        }
        let losses = (this.events.values())
            .filter(|event| matches!(event, Event::HistoryLost { .. }))
            .count();
        let lost = world.ledger.losses();
        self.look(Judge::LossTold, losses <= lost, || {
            format!("{losses} losses were announced, there were {lost}")
        });
        self.look(
            Judge::LiveCalm,
            this.connections <= MOST_CONNECTIONS,
            || format!("{} connections", this.connections),
        );
    }

    fn liveness(&mut self) {
        let world = self.world;
        let account = self.account;
        let this = &world.accounts[account];
        self.look(Judge::LiveOnline, this.online, || {
            let last = this.outputs.last();
            let last = last.map_or("(not recorded)", String::as_str);
            format!("not online: {last}, stops {:?}", this.stops)
        });
        let device = world.companion(account);
        let waits = world.service.waiting(&device);
        self.look(Judge::LiveQueue, waits.is_empty(), || {
            format!("the service still has {waits:?}")
        });
        let pool = world.service.pool(&device);
        self.look(Judge::LivePreKeys, !pool.is_empty(), || {
            "the service has no pre-keys".to_owned()
        });
        let keys = |ids: &[u32]| ids.iter().map(|id| Key::PreKey(*id)).collect::<Vec<_>>();
        let rows = ready(world.store.load(&this.id, keys(&pool))).unwrap_or_default();
        // What a database has lost is asked for again, when somebody uses it.
        let whole = world.ledger.losses() == 0;
        for (id, row) in pool.iter().zip(rows).filter(|_| whole) {
            let kept = matches!(row, Row::Present(_));
            self.look(Judge::PreKeyKept, kept, || {
                format!("the service gives out pre-key {id}, which is not in the store")
            });
        }
        if let Some(engine) = &this.engine {
            let config = world.config();
            let appetite = engine.appetite();
            let most = config.limits.outbox.get();
            let open = this.watched.unanswered();
            let idle = appetite.bytes && appetite.commands == most && !this.committing;
            self.look(Judge::LiveEngine, idle, || {
                format!("{appetite:?}, a commit under way: {}", this.committing)
            });
            // The mailbox is looked at all the time.
            self.look(Judge::ReplyOnce, open <= 1, || {
                format!("{open} commands have no answer")
            });
            let (bytes, limit) = (
                engine.cached_bytes(),
                config.limits.cache_bytes.get() as usize,
            );
            self.look(Judge::LimitCache, bytes <= limit, || {
                format!("{bytes} bytes in a cache of {limit}")
            });
        }
        if world.options.record {
            let same = this.replay(world.engine_config());
            self.look(Judge::Replays, same.is_ok(), || format!("{same:?}"));
        }
        let downloads = world
            .downloads
            .keys()
            .filter(|(whose, _)| *whose == account);
        let downloads = downloads.count();
        self.look(Judge::LiveEngine, downloads == 0, || {
            format!("{downloads} downloads are open")
        });
    }

    fn rows(&mut self) {
        let world = self.world;
        let this = &world.accounts[self.account];
        let mut counters = record::Counters::default();
        let mut inbox = Vec::new();
        let mut sent = BTreeMap::new();
        let mut sessions = BTreeMap::new();
        let mut identities = BTreeMap::new();
        let mut setting_keys = BTreeSet::new();
        let (mut most_key, mut most_order) = (0, 0);
        for (key, row) in all_rows(&world.store, &this.id) {
            let decodes = decodes(&key, &row);
            self.look(Judge::RowsDecode, decodes, || {
                format!("{key:?} does not decode")
            });
            match &key {
                Key::Counters => counters = codec::decode(&row).unwrap_or_default(),
                Key::PreKey(id) => most_key = most_key.max(*id),
                Key::Inbox(seq) => inbox.push(*seq),
                Key::Sent(id) => {
                    let row: record::Outbound = codec::decode(&row).unwrap_or_default();
                    sent.insert(id.to_string(), row.content.unwrap_or_default());
                }
                Key::Session(device) => {
                    let session = codec::payload(&row).map(SessionRecord::decode);
                    let identity = session.ok().and_then(|found| found.ok()?.remote_identity());
                    if let Some(identity) = identity {
                        sessions.insert(device.clone(), identity);
                    }
                }
                Key::Identity(device) => {
                    let row: record::Identity = codec::decode(&row).unwrap_or_default();
                    identities.insert(device.clone(), row.key.unwrap_or_default());
                }
                Key::AppStateSyncKey(id) => drop(setting_keys.insert(id.to_vec())),
                Key::Outbox(id) => {
                    let row: record::Outbound = codec::decode(&row).unwrap_or_default();
                    most_order = most_order.max(row.order.unwrap_or(0));
                    let waits = matches!(row.state(), State::Queued | State::Sealed);
                    self.look_at(Judge::LiveOutbox, id, !waits, || {
                        format!("{id} still waits")
                    });
                }
                Key::Mailbox(id) => self.look_at(Judge::LiveMailbox, id, false, || {
                    format!("{id} still waits")
                }),
                _ => {}
            }
        }
        self.verdict.judged.saw(Judge::LiveOutbox, 1);
        self.verdict.judged.saw(Judge::LiveMailbox, 1);
        self.sent(&sent);
        for (device, identity) in sessions {
            let known = identities.get(&device);
            let known = known.is_some_and(|known| known.as_slice() == identity.as_bytes());
            self.look(Judge::IdentityKnown, known, || {
                format!("the identity of {device} is not kept, its session is")
            });
        }
        // Keys that a database has lost are asked for again, when something is encrypted with them.
        let whole = world.ledger.losses() == 0;
        for id in (world.service.setting_keys(&this.phone).into_iter()).filter(|_| whole) {
            self.look(Judge::SettingsKeysKept, setting_keys.contains(&id), || {
                format!("key {id:?} for settings is not kept")
            });
        }
        let last = this.events.keys().next_back().map_or(0, |seq| seq.0);
        let next = counters.next_event.unwrap_or(1);
        self.look(Judge::CountersAhead, next > last, || {
            format!("the next event is {next}, {last} was shown")
        });
        let next = counters.next_pre_key.unwrap_or(1);
        self.look(Judge::CountersAhead, next > most_key, || {
            format!("the next pre-key is {next}, there is {most_key}")
        });
        let next = counters.next_order.unwrap_or(1);
        self.look(Judge::CountersAhead, next > most_order, || {
            format!("the next place is {next}, there is {most_order}")
        });
        let shown = |seq| this.events.contains_key(seq);
        let gone = inbox
            .iter()
            .all(|seq| *seq > this.acknowledged && shown(seq));
        self.look(Judge::InboxTidy, gone, || {
            let unseen: Vec<u64> = (inbox.iter())
                .filter(|seq| **seq <= this.acknowledged || !shown(seq))
                .map(|seq| seq.0)
                .collect();
            format!(
                "events {unseen:?} are kept; acknowledged up to {}",
                this.acknowledged.0
            )
        });
    }
}

impl Case<'_> {
    /// What was sent is there to be sent again, as somebody asked for it.
    fn sent(&mut self, kept: &BTreeMap<String, Vec<u8>>) {
        let world = self.world;
        // What a database has lost cannot be sent again.
        if world.ledger.losses() > 0 {
            return;
        }
        let events = world.accounts[self.account].events.values();
        let told: BTreeSet<&str> = (events)
            .filter_map(|event| match event {
                Event::Sent { id, .. } => Some(id.as_str()),
                _ => None,
            })
            .collect();
        for (from, _, id, text) in &world.asked {
            if *from != self.account || !told.contains(id.as_str()) {
                continue;
            }
            let content = kept.get(id).map(Vec::as_slice);
            let message = content.and_then(|bytes| e2e::Message::decode(bytes).ok());
            let whole = message.is_some_and(|message| message.conversation.as_ref() == Some(text));
            self.look(Judge::SentKept, whole, || {
                format!("{id} was sent, and is not kept as it was asked for")
            });
        }
    }
}

/// Everything that a store has of an account.
fn all_rows(store: &MemoryStore, account: &baton_core::state::AccountId) -> Vec<(Key, Record)> {
    use baton_core::state::Scan;
    let mut all = Vec::new();
    for table in Table::ALL {
        let mut after = None;
        loop {
            let scan = Scan {
                table: *table,
                after: after.clone(),
                limit: 10_000,
            };
            let rows = ready(store.scan(account, scan)).unwrap_or_default();
            let Some((last, _)) = rows.last() else { break };
            after = Some(last.clone());
            all.extend(rows.into_iter().filter_map(|(key, row)| match row {
                Row::Present(row) => Some((key, row)),
                _ => None,
            }));
        }
    }
    all
}

/// Whether a row is what its table holds.
fn decodes(key: &Key, row: &Record) -> bool {
    fn is<M: prost::Message + Default>(row: &Record) -> bool {
        codec::decode::<M>(row).is_ok()
    }
    match key.table() {
        Table::Device => is::<record::Device>(row),
        Table::Counters => is::<record::Counters>(row),
        Table::Identity => is::<record::Identity>(row),
        Table::Session => {
            codec::payload(row).is_ok_and(|bytes| SessionRecord::decode(bytes).is_ok())
        }
        Table::PreKey => is::<record::PreKey>(row),
        Table::AppStateMutationMac => is::<record::Setting>(row),
        Table::Contact => is::<record::Contact>(row),
        Table::ChatSettings => is::<record::ChatSettings>(row),
        Table::LidMap => is::<record::LidMapping>(row),
        Table::Inbox => is::<record::Event>(row),
        Table::Seen => is::<record::Seen>(row),
        Table::Outbox | Table::Sent => is::<record::Outbound>(row),
        Table::DeviceList => is::<record::DeviceList>(row),
        Table::Mailbox => is::<record::Mailbox>(row),
        _ => codec::payload(row).is_ok(),
    }
}
