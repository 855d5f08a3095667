//! Settings and history of a simulated world: what owners and programs change, what phones hand over, and the judge of
//! it all.
//!
//! The phone is the truth: it has read every patch the moment it was accepted. While the world runs, every row that a
//! store takes is compared with what the phone knows of that version; at the end, everything is.

use super::{Verdict, World, account::ready};
use crate::service::{
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
    pub(super) life: u64,
    pub(super) id: CommandId,
    /// Unix milliseconds.
    pub(super) at: i64,
    pub(super) changes: Vec<Change>,
    pub(super) result: Option<Result<Reply, CommandError>>,
}

/// Where the store has a collection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    version: u64,
    diverged: bool,
    /// When something was found wrong with it last.
    evidence: Option<i64>,
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
        for (key, row) in &batch.rows {
            let Key::AppStateVersion(name) = key else {
                continue;
            };
            let Some(name) = collection_of(name) else {
                continue;
            };
            let Some(row) = row else {
                // Linked anew: everything begins again.
                self.accounts[account].places.remove(name);
                continue;
            };
            if let Some(complaint) = self.judge_place(account, name, row) {
                let complaint = format!("appstate-no-fork: {name}: {complaint}");
                self.accounts[account].complaints.push(complaint);
            }
        }
    }

    fn judge_place(&mut self, account: usize, name: &'static str, row: &Record) -> Option<String> {
        let Ok(row) = codec::decode::<record::Collection>(row) else {
            return Some("a row that does not decode".into());
        };
        let this = &mut self.accounts[account];
        let version = row.version.unwrap_or(0);
        // Several patches may be in one batch, and a snapshot may lead anywhere but back. A short history that is told
        // from its beginning, page by page, may come instead of one; then there is evidence why.
        let place = Place {
            version,
            diverged: row.diverged(),
            evidence: row.evidence.last().and_then(|last| last.at),
        };
        let before = this.places.insert(name, place).unwrap_or_default();
        let reason = before.diverged || place.diverged || before.evidence != place.evidence;
        if version < before.version && !reason {
            let before = before.version;
            return Some(format!("from version {before} back to {version}"));
        }
        let hash = self
            .service
            .settings_hash(&self.accounts[account].phone, name, version);
        let has = row.hash.unwrap_or_else(|| vec![0; 128]);
        (hash.map(|hash| hash.to_vec()) != Some(has))
            .then(|| format!("a state at version {version} that nobody else has"))
    }

    fn row<M: prost::Message + Default>(&self, account: usize, key: Key) -> M {
        let rows = ready(self.store.load(&self.accounts[account].id, vec![key]));
        match rows.unwrap_or_default().first() {
            Some(Row::Present(row)) => codec::decode(row).unwrap_or_default(),
            _ => M::default(),
        }
    }

    fn table(&self, account: usize, table: Table) -> Vec<(Key, Record)> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let scan = Scan {
                table,
                after: after.clone(),
                limit: 1000,
            };
            let rows = ready(self.store.scan(&self.accounts[account].id, scan)).unwrap_or_default();
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
}

/// Adds to the verdict what is wrong with settings and history.
pub(super) fn judge(world: &World, verdict: &mut Verdict) {
    for account in 0..world.accounts.len() {
        // An account that was never linked, or is not any more, has nothing to arrive at.
        if !world.accounts[account].online {
            continue;
        }
        let mut complaints = Vec::new();
        collections(world, account, &mut complaints);
        meanings(world, account, &mut complaints);
        verdict.settings += changes(world, account, &mut complaints);
        verdict.history += history(world, account, &mut complaints);
        let phone = &world.accounts[account].phone;
        let complaints = complaints
            .into_iter()
            .map(|text| format!("{phone}: {text}"));
        verdict.complaints.extend(complaints);
    }
}

/// Version, hash and value MACs of all five are the phone's, and nothing waits.
fn collections(world: &World, account: usize, complaints: &mut Vec<String>) {
    let phone = &world.accounts[account].phone;
    let mut stored: BTreeMap<&str, BTreeMap<[u8; 32], record::Setting>> = BTreeMap::new();
    for (key, row) in world.table(account, Table::AppStateMutationMac) {
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
    for name in COLLECTIONS {
        let row: record::Collection = world.row(account, Key::AppStateVersion(name.into()));
        let version = world.service.settings_version(phone, name);
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
        if macs.collect::<BTreeMap<[u8; 32], [u8; 32]>>() != world.service.setting_macs(phone, name)
        {
            complaints.push(format!("{name}: the value MACs are not the phone's"));
        }
        let truth: BTreeMap<Vec<u8>, Vec<u8>> =
            world.service.settings(phone, name).into_iter().collect();
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
fn meanings(world: &World, account: usize, complaints: &mut Vec<String>) {
    let phone = &world.accounts[account].phone;
    let mut contacts: BTreeMap<Jid, record::Contact> = BTreeMap::new();
    let mut chats: BTreeMap<Jid, record::ChatSettings> = BTreeMap::new();
    for name in COLLECTIONS {
        for (index, data) in world.service.settings(phone, name) {
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
    for (key, row) in world.table(account, Table::Contact) {
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
    for (key, row) in world.table(account, Table::ChatSettings) {
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
fn changes(world: &World, account: usize, complaints: &mut Vec<String>) -> usize {
    let this = &world.accounts[account];
    let log = world.service.setting_changes(&this.phone);
    let own: Vec<&SettingChange> = log.iter().filter(|change| !change.by.is_phone()).collect();
    let mut once = BTreeSet::new();
    for change in &own {
        // A database that has lost that it was said may have it said again.
        let again = !once.insert((&change.index, &change.data, change.removed));
        if again && world.ledger.losses() == 0 {
            let name = String::from_utf8_lossy(&change.index);
            complaints.push(format!("{name} was announced twice"));
        }
    }
    // By setting: what was asked, in order, and whether it was accepted.
    let mut asked: BTreeMap<Vec<u8>, Vec<(i64, bool, bool)>> = BTreeMap::new();
    for command in &this.asked_changes {
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
            // What is not there need not be removed.
            said || *removed
        });
        if !announced && world.ledger.losses() == 0 {
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
