//! Settings and history of a simulated world: what owners and programs change, what phones hand over, and the judge of
//! it all. The judge of settings serves worlds of either tier.
//!
//! The phone is the truth: it has read every patch the moment it was accepted. While the world runs, every row that a
//! store takes is compared with what the phone knows of that version; at the end, everything is.

use super::{Verdict, World, account::ready};
use crate::service::{
    Service,
    history::{Chunk, Told},
    settings::{COLLECTIONS, Change, SettingChange, collection_of},
};
use baton_core::{
    appstate::{Mutation, Operation, action::Action},
    flow::{CommandError, CommandId, Event, Reply},
    jid::Jid,
    proto::{history::WebMessageInfo, record, sync::SyncActionData},
    state::{Batch, Key, Record, Row, Scan, Store as _, Table, codec},
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// What somebody asked an engine to change.
#[derive(Debug)]
pub(crate) struct Asked {
    /// In which life, under which number.
    pub(crate) life: u64,
    pub(crate) id: CommandId,
    /// Unix milliseconds.
    pub(crate) at: i64,
    pub(crate) changes: Vec<Change>,
    pub(crate) result: Option<Result<Reply, CommandError>>,
}

/// Where the store has the collections of an account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    now: BTreeMap<&'static str, Place>,
    /// Every state that the store has had since somebody asked: name, version, hash.
    had: BTreeSet<(&'static str, u64, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    version: u64,
    fetched: bool,
    diverged: bool,
    /// Changes of ours that the service has not taken, and whether they are on their way.
    pending: usize,
    in_flight: bool,
    /// When something was found wrong with it last.
    evidence: Option<i64>,
}

impl Places {
    /// A store has taken a batch. Says what is wrong with it.
    pub(crate) fn watch(&mut self, batch: &Batch) -> Vec<String> {
        let mut complaints = Vec::new();
        for (key, row) in &batch.rows {
            let Key::AppStateVersion(name) = key else {
                continue;
            };
            let Some(name) = collection_of(name) else {
                continue;
            };
            let Some(row) = row else {
                // Linked anew: everything begins again.
                self.now.remove(name);
                continue;
            };
            if let Some(complaint) = self.moved(name, row) {
                complaints.push(format!("appstate-no-fork: {name}: {complaint}"));
            }
        }
        complaints
    }

    fn moved(&mut self, name: &'static str, row: &Record) -> Option<String> {
        let Ok(row) = codec::decode::<record::Collection>(row) else {
            return Some("a row that does not decode".into());
        };
        // Several patches may be in one batch, and a snapshot may lead anywhere but back. A short history that is told
        // from its beginning, page by page, may come instead of one; then there is evidence why.
        let place = Place {
            version: row.version.unwrap_or(0),
            fetched: row.fetched(),
            diverged: row.diverged(),
            pending: row.pending.len(),
            in_flight: row.in_flight.is_some(),
            evidence: row.evidence.last().and_then(|last| last.at),
        };
        let before = self.now.insert(name, place).unwrap_or_default();
        let hash = row.hash.unwrap_or_else(|| vec![0; 128]);
        self.had.insert((name, place.version, hash));
        let reason = before.diverged || place.diverged || before.evidence != place.evidence;
        (place.version < before.version && !reason)
            .then(|| format!("from version {} back to {}", before.version, place.version))
    }

    /// Which of the states that the store has had, since this was asked last, the phone has never had.
    pub(crate) fn forks(&mut self, service: &Service, phone: &str) -> Vec<String> {
        let had = std::mem::take(&mut self.had).into_iter();
        let forks = had.filter(|(name, version, hash)| {
            let hash_there = service.settings_hash(phone, name, *version);
            hash_there.is_none_or(|there| there.as_slice() != hash.as_slice())
        });
        forks
            .map(|(name, version, _)| {
                format!(
                    "appstate-no-fork: {name}: a state at version {version} that nobody else has"
                )
            })
            .collect()
    }

    /// Which collections are still on their way to where the phone has them.
    pub(crate) fn unfinished<'a>(
        &'a self,
        service: &'a Service,
        phone: &'a str,
    ) -> impl Iterator<Item = String> + 'a {
        let open = COLLECTIONS.into_iter().filter(move |name| {
            let place = self.now.get(name).copied().unwrap_or_default();
            let there = place.version == service.settings_version(phone, name);
            !there || !place.fetched || place.diverged || place.pending > 0 || place.in_flight
        });
        open.map(move |name| format!("{name} of {phone}: {:?}", self.now.get(name)))
    }

    /// Whether a patch of the account's own may be on its way.
    #[cfg(feature = "tier-b")]
    pub(crate) fn announces(&self) -> bool {
        self.now.values().any(|place| place.in_flight)
    }

    /// The database has gone back.
    pub(crate) fn forget(&mut self) {
        self.now.clear();
    }
}

/// One account, as the judge of settings sees it.
pub(crate) struct Case<'a> {
    pub(crate) phone: &'a str,
    pub(crate) service: &'a Service,
    /// All rows that the store has in a table of the account.
    pub(crate) table: &'a dyn Fn(Table) -> Vec<(Key, Record)>,
    /// What its engines were asked to change, in order.
    pub(crate) asked: &'a [&'a Asked],
    /// Whether the database has lost commits.
    pub(crate) lossy: bool,
}

/// A change as an engine is asked for it; none if it cannot be.
#[must_use]
pub fn action_of(change: &Change) -> Option<Action> {
    let (_, removed, index, data) = change.clear(1)?;
    let action = Action::of(&Mutation {
        operation: if removed {
            Operation::Remove
        } else {
            Operation::Set
        },
        index_mac: [0; 32],
        value_mac: [0; 32],
        index: index.into(),
        data: data.into(),
    });
    (!matches!(action, Action::Unknown { .. })).then_some(action)
}

impl World {
    /// A store has taken a batch: is what it says of collections what the phone knows of them?
    pub(super) fn watch_settings(&mut self, account: usize, batch: &Batch) {
        let this = &mut self.accounts[account];
        let mut complaints = this.places.watch(batch);
        complaints.extend(this.places.forks(&self.service, &this.phone));
        for words in complaints {
            let which = self.accounts[account].complaints.len();
            self.mark(|recorder| {
                recorder.finds(account, which, super::judges::Judge::of(&words), &words)
            });
            self.accounts[account].complaints.push(words);
        }
    }

    fn table(&self, account: usize, table: Table) -> Vec<(Key, Record)> {
        every_row(table, |scan| {
            ready(self.store.scan(&self.accounts[account].id, scan)).unwrap_or_default()
        })
    }
}

/// All rows of a table, page by page.
pub(crate) fn every_row(
    table: Table,
    mut scan: impl FnMut(Scan) -> Vec<(Key, Row)>,
) -> Vec<(Key, Record)> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let rows = scan(Scan {
            table,
            after: after.clone(),
            limit: 1000,
        });
        let Some((last, _)) = rows.last() else {
            return all;
        };
        after = Some(last.clone());
        all.extend(rows.into_iter().filter_map(|(key, row)| match row {
            Row::Present(row) => Some((key, row)),
            _ => None,
        }));
    }
}

/// Adds to the verdict what is wrong with settings and history.
pub(super) fn judge(world: &World, verdict: &mut Verdict) {
    for account in 0..world.accounts.len() {
        // An account that was never linked, or is not any more, has nothing to arrive at.
        if !world.accounts[account].online {
            continue;
        }
        let this = &world.accounts[account];
        weigh(
            &Case {
                phone: &this.phone,
                service: &world.service,
                table: &|table| world.table(account, table),
                asked: &this.asked_changes.iter().collect::<Vec<_>>(),
                lossy: world.ledger.losses() > 0,
            },
            verdict,
        );
        let mut complaints = Vec::new();
        verdict.history += history(world, account, &mut complaints);
        let named = |text: String| format!("{}: {text}", this.phone);
        verdict.complaints.extend(complaints.into_iter().map(named));
    }
}

/// Adds to the verdict what is wrong with the settings of an account.
pub(crate) fn weigh(case: &Case<'_>, verdict: &mut Verdict) {
    let mut complaints = Vec::new();
    collections(case, &mut complaints);
    meanings(case, &mut complaints);
    verdict.settings += changes(case, &mut complaints);
    let named = |text: String| format!("{}: {text}", case.phone);
    verdict.complaints.extend(complaints.into_iter().map(named));
}

/// Version, hash and value MACs of all five are the phone's, and nothing waits.
fn collections(case: &Case<'_>, complaints: &mut Vec<String>) {
    let (phone, service) = (case.phone, case.service);
    let mut stored: BTreeMap<&str, BTreeMap<[u8; 32], record::Setting>> = BTreeMap::new();
    for (key, row) in (case.table)(Table::AppStateMutationMac) {
        let Key::AppStateMutationMac {
            collection,
            index_mac,
        } = key
        else {
            continue;
        };
        let setting: record::Setting = codec::decode(&row).unwrap_or_default();
        let name = collection_of(&collection).unwrap_or("none of the five");
        stored.entry(name).or_default().insert(index_mac, setting);
    }
    let rows: BTreeMap<Key, Record> = (case.table)(Table::AppStateVersion).into_iter().collect();
    for name in COLLECTIONS {
        let row = rows.get(&Key::AppStateVersion(name.into()));
        let row = row.and_then(|row| codec::decode::<record::Collection>(row).ok());
        let row = row.unwrap_or_default();
        let version = service.settings_version(phone, name);
        if row.version.unwrap_or(0) != version || !row.fetched() || row.diverged() {
            complaints.push(format!(
                "{name} is at {:?} (fetched {:?}, diverged {:?}), the phone at {version}",
                row.version, row.fetched, row.diverged
            ));
            continue;
        }
        if !row.pending.is_empty() || row.in_flight.is_some() {
            complaints.push(format!(
                "{name}: {} changes wait for ever",
                row.pending.len()
            ));
        }
        let here = stored.remove(name).unwrap_or_default();
        let macs = here.iter().filter_map(|(name, setting)| {
            Some((*name, setting.value_mac.as_deref()?.try_into().ok()?))
        });
        if macs.collect::<BTreeMap<[u8; 32], [u8; 32]>>() != service.setting_macs(phone, name) {
            complaints.push(format!("{name}: the value MACs are not the phone's"));
        }
        let truth: BTreeMap<Vec<u8>, Vec<u8>> = service.settings(phone, name).into_iter().collect();
        for setting in here.into_values() {
            let index = setting.index.unwrap_or_default();
            let text = String::from_utf8_lossy(&index).into_owned();
            match (truth.get(&index), setting.data) {
                (None, _) => complaints.push(format!("{name}: {text} is not there")),
                (Some(truth), Some(data)) if *truth != data => {
                    complaints.push(format!("{name}: {text} says something else"));
                }
                _ => {}
            }
        }
    }
}

/// The rows of contacts and chats say what the phone's settings say, by a reading of our own.
fn meanings(case: &Case<'_>, complaints: &mut Vec<String>) {
    let mut contacts: BTreeMap<Jid, record::Contact> = BTreeMap::new();
    let mut chats: BTreeMap<Jid, record::ChatSettings> = BTreeMap::new();
    for name in COLLECTIONS {
        for (index, data) in case.service.settings(case.phone, name) {
            let words: Vec<String> = serde_json::from_slice(&index).unwrap_or_default();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let value = SyncActionData::decode(&*data)
                .ok()
                .and_then(|data| data.value);
            let value = value.unwrap_or_default();
            let jid = |text: &str| text.parse::<Jid>().unwrap_or_else(|_| Jid::service());
            match words[..] {
                ["contact", user] => {
                    let contact = contacts.entry(jid(user)).or_default();
                    contact.saved = Some(true);
                    contact.full_name = value.contact_action.and_then(|action| action.full_name);
                }
                ["userStatusMute", user] => {
                    let muted = value
                        .user_status_mute_action
                        .is_some_and(|action| action.muted());
                    contacts.entry(jid(user)).or_default().status_muted = Some(muted);
                }
                ["mute", chat] => {
                    let mute = value.mute_action.unwrap_or_default();
                    let until = if mute.muted() {
                        mute.mute_end_timestamp()
                    } else {
                        0
                    };
                    chats.entry(jid(chat)).or_default().muted_until = Some(until);
                }
                ["pin_v1", chat] => {
                    let pinned = value.pin_action.is_some_and(|action| action.pinned());
                    chats.entry(jid(chat)).or_default().pinned = Some(pinned);
                }
                ["archive", chat] => {
                    let archived = value
                        .archive_chat_action
                        .is_some_and(|action| action.archived());
                    chats.entry(jid(chat)).or_default().archived = Some(archived);
                }
                ["markChatAsRead", chat] => {
                    let read = value
                        .mark_chat_as_read_action
                        .is_some_and(|action| action.read());
                    chats.entry(jid(chat)).or_default().marked_unread = Some(!read);
                }
                ["lock", chat] => {
                    let locked = value.lock_chat_action.is_some_and(|action| action.locked());
                    chats.entry(jid(chat)).or_default().locked = Some(locked);
                }
                ["label_jid", label, chat] => {
                    let chat = chats.entry(jid(chat)).or_default();
                    if value
                        .label_association_action
                        .is_some_and(|action| action.labeled())
                    {
                        chat.labels.push(label.to_owned());
                        chat.labels.sort();
                    }
                }
                _ => {}
            }
        }
    }
    for (key, row) in (case.table)(Table::Contact) {
        let Key::Contact(user) = key else { continue };
        let row: record::Contact = codec::decode(&row).unwrap_or_default();
        let truth = contacts.remove(&user).unwrap_or_default();
        let says = |row: &record::Contact| (row.saved(), row.full_name.clone(), row.status_muted());
        if says(&row) != says(&truth) {
            complaints.push(format!(
                "contact {user} is {:?}, not {:?}",
                says(&row),
                says(&truth)
            ));
        }
    }
    for (user, truth) in contacts {
        if truth.saved() || truth.status_muted() {
            complaints.push(format!("contact {user} is missing"));
        }
    }
    type Says = (i64, [bool; 4], Vec<String>);
    let says = |row: &record::ChatSettings| -> Says {
        let flags = [
            row.pinned(),
            row.archived(),
            row.marked_unread(),
            row.locked(),
        ];
        (row.muted_until(), flags, row.labels.clone())
    };
    let empty = says(&record::ChatSettings::default());
    for (key, row) in (case.table)(Table::ChatSettings) {
        let Key::ChatSettings(chat) = key else {
            continue;
        };
        let row: record::ChatSettings = codec::decode(&row).unwrap_or_default();
        let truth = chats.remove(&chat).unwrap_or_default();
        if says(&row) != says(&truth) {
            complaints.push(format!(
                "chat {chat} is {:?}, not {:?}",
                says(&row),
                says(&truth)
            ));
        }
    }
    for (chat, truth) in chats {
        if says(&truth) != empty {
            complaints.push(format!("the settings of chat {chat} are missing"));
        }
    }
}

/// Whatever was accepted from somebody who asked has been announced, once. Returns how many mutations there were.
fn changes(case: &Case<'_>, complaints: &mut Vec<String>) -> usize {
    let log = case.service.setting_changes(case.phone);
    let own: Vec<&SettingChange> = log.iter().filter(|change| !change.by.is_phone()).collect();
    let mut once = BTreeSet::new();
    for change in &own {
        // A database that has lost that it was said may have it said again.
        let again = !once.insert((&change.index, &change.data, change.removed));
        if again && !case.lossy {
            let name = String::from_utf8_lossy(&change.index);
            complaints.push(format!("{name} was announced twice"));
        }
    }
    // By setting: what was asked, in order, and whether it was accepted.
    let mut asked: BTreeMap<Vec<u8>, Vec<(i64, bool, bool)>> = BTreeMap::new();
    for command in case.asked {
        let accepted = matches!(command.result, Some(Ok(_)));
        if let Some(Err(error)) = &command.result
            && !error.is_retryable()
            && *error != CommandError::NotLinked
        {
            complaints.push(format!("a change was refused: {error}"));
        }
        for change in &command.changes {
            if let Some((_, removed, index, _)) = change.clear(command.at) {
                asked
                    .entry(index)
                    .or_default()
                    .push((command.at, removed, accepted));
            }
        }
    }
    for (index, asked) in asked {
        let Some(last) = asked.iter().rposition(|(.., accepted)| *accepted) else {
            continue;
        };
        // A later one may have taken its place, even if nobody lived to hear that it was accepted.
        let announced = asked[last..].iter().any(|(at, removed, _)| {
            let said = own.iter().any(|change| {
                let data = SyncActionData::decode(&*change.data).unwrap_or_default();
                let stamp = data.value.and_then(|value| value.timestamp);
                change.index == index && change.removed == *removed && stamp >= Some(*at)
            });
            // Somebody has changed it later. Whether ours was taken before may be unknown: a snapshot in place of forgotten
            // patches does not say so. Announced again, it would undo the later one.
            let overtaken = log.iter().any(|change| {
                let data = SyncActionData::decode(&*change.data).unwrap_or_default();
                let stamp = data.value.and_then(|value| value.timestamp);
                change.index == index && change.by.is_phone() && stamp > Some(*at)
            });
            // What is not there need not be removed.
            said || overtaken || *removed
        });
        if !announced && !case.lossy {
            let name = String::from_utf8_lossy(&index);
            complaints.push(format!("the change of {name} at {} is lost", asked[last].0));
        }
    }
    log.len()
}

/// Every message of the past that a phone has handed over was shown once. Returns how many.
fn history(world: &World, account: usize, complaints: &mut Vec<String>) -> usize {
    let this = &world.accounts[account];
    let mut shown: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (seq, event) in &this.events {
        let Event::History(part) = event else {
            continue;
        };
        if world.ledger.lost_event(account, *seq) {
            continue;
        }
        for message in &part.messages {
            let info = WebMessageInfo::decode(&*message.info).unwrap_or_default();
            let id = info.key.and_then(|key| key.id).unwrap_or_default();
            *shown.entry((message.chat.to_string(), id)).or_default() += 1;
        }
    }
    let logs = world.service.books().histories().iter();
    let logs: Vec<_> = logs.filter(|log| log.to.phone == this.phone).collect();
    let mut chunks: Vec<(&Chunk, bool)> = Vec::new();
    for log in &logs {
        match chunks.iter_mut().find(|(known, _)| **known == log.chunk) {
            Some((_, received)) => *received |= log.received,
            None => chunks.push((&log.chunk, log.received)),
        }
    }
    // A database that has lost an announcement which the service does not have any more has lost a past.
    let whole = world.ledger.losses() == 0;
    let mut told = 0;
    for (chunk, received) in chunks {
        let what = format!(
            "{:?} {} of {}",
            chunk.history.kind, chunk.order, chunk.history.chunks
        );
        if whole && received != chunk.is_sound() {
            complaints.push(format!(
                "history {what}: sound {}, received {received}",
                chunk.is_sound()
            ));
        }
        for item in chunk.items() {
            match item {
                Told::Messages(messages) => {
                    for message in messages {
                        let times = shown.remove(&message).unwrap_or(0);
                        told += times;
                        if whole && (times > 1 || (times == 0 && chunk.is_sound())) {
                            complaints.push(format!(
                                "history {what}: {message:?} was shown {times} times"
                            ));
                        }
                    }
                }
                Told::Name(..) | Told::Lid(..) => {}
            }
        }
    }
    if !shown.is_empty() {
        complaints.push(format!(
            "{} messages of a past that nobody told",
            shown.len()
        ));
    }
    told
}
