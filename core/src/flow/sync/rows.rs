//! Rows of settings and history: events, the collections' own, pages of tables.

use super::{Contact, HistoryKind, HistoryMessage, HistoryPart, Setting, settings};
use crate::{
    appstate::{Collection, LtHash, State, action::Action},
    flow::{CommandId, Context, Event, Reply},
    jid::Jid,
    proto::{record, sync::SyncActionData},
    state::{
        Key, Row, Scan, Table,
        codec::{self, RowError},
    },
};
use prost::Message as _;

/// Most rows of one page.
pub(super) const PAGE: u32 = 1024;

/// Rows per scan when a table is read whole.
pub(super) const SCAN_ROWS: u32 = 1024;

/// Under this in front of their ids, announcements of history stand in the table of versions. No collection's name
/// begins so.
pub(super) const HISTORY: &str = "history/";

/// A slice of a table, and what it is for.
#[derive(Clone, Debug)]
pub(crate) enum SyncScan {
    /// Announcements of history, behind this one.
    Jobs(Option<Key>),
    /// Keys.
    Keys(Option<Key>),
    /// All of a collection.
    Macs(Collection, Option<Key>),
    /// For somebody who asked.
    Contacts(CommandId, Option<Jid>, u32),
    /// As above.
    Chats(CommandId, Option<Jid>, u32),
    /// As above.
    Settings(CommandId, Collection, Option<[u8; 32]>, u32),
}

impl SyncScan {
    /// What to ask the store for.
    pub(crate) fn scan(&self) -> Scan {
        let (table, after, limit) = match self {
            Self::Jobs(after) => {
                let start = Key::AppStateVersion(HISTORY.into());
                let after = Some(after.clone().unwrap_or(start));
                (Table::AppStateVersion, after, SCAN_ROWS)
            }
            Self::Keys(after) => (Table::AppStateSyncKey, after.clone(), SCAN_ROWS),
            Self::Macs(collection, after) => {
                let after = after
                    .clone()
                    .unwrap_or_else(|| mac_key(*collection, [0; 32]));
                (Table::AppStateMutationMac, Some(after), SCAN_ROWS)
            }
            Self::Contacts(_, after, limit) => {
                (Table::Contact, after.clone().map(Key::Contact), *limit)
            }
            Self::Chats(_, after, limit) => (
                Table::ChatSettings,
                after.clone().map(Key::ChatSettings),
                *limit,
            ),
            Self::Settings(_, collection, after, limit) => {
                // A MAC of zeros does not occur.
                let after = mac_key(*collection, after.unwrap_or_default());
                (Table::AppStateMutationMac, Some(after), *limit)
            }
        };
        Scan {
            table,
            after,
            limit,
        }
    }

    /// The command that waits for it.
    pub(crate) fn command(&self) -> Option<CommandId> {
        match self {
            Self::Contacts(id, ..) | Self::Chats(id, ..) | Self::Settings(id, ..) => Some(*id),
            Self::Jobs(_) | Self::Keys(_) | Self::Macs(..) => None,
        }
    }
}

pub(super) fn mac_key(collection: Collection, index_mac: [u8; 32]) -> Key {
    Key::AppStateMutationMac {
        collection: collection.name(),
        index_mac,
    }
}

/// Answers somebody who asked for a page.
pub(super) fn page(cx: &mut Context, scan: &SyncScan, rows: Vec<(Key, Row)>) -> Option<Reply> {
    let limit = scan.scan().limit as usize;
    let full = rows.len() >= limit;
    let last = rows.last().map(|(key, _)| key.clone()).filter(|_| full);
    Some(match scan {
        SyncScan::Contacts(..) => {
            let mut contacts: Vec<Contact> = Vec::new();
            for (key, row) in rows {
                if let Some((Key::Contact(user), row)) = readable(cx, key, &row) {
                    contacts.push(settings::read_contact(user, row));
                }
            }
            let next = last.and_then(|key| match key {
                Key::Contact(user) => Some(user),
                _ => None,
            });
            Reply::Contacts { contacts, next }
        }
        SyncScan::Chats(..) => {
            let mut chats = Vec::new();
            for (key, row) in rows {
                if let Some((Key::ChatSettings(chat), row)) = readable(cx, key, &row) {
                    chats.push(settings::read_chat(chat, row));
                }
            }
            let next = last.and_then(|key| match key {
                Key::ChatSettings(chat) => Some(chat),
                _ => None,
            });
            Reply::Chats { chats, next }
        }
        SyncScan::Settings(_, wanted, ..) => {
            let mut settings = Vec::new();
            let name = wanted.name();
            let here = |key: &Key| matches!(key, Key::AppStateMutationMac { collection, .. } if *collection == name);
            for (key, row) in rows.into_iter().filter(|(key, _)| here(key)) {
                let Some((_, row)) = readable::<record::Setting>(cx, key, &row) else {
                    continue;
                };
                // What has no value here has it in the row of a contact or a chat.
                if let (Some(index), Some(data)) = (row.index, row.data) {
                    settings.push(setting_of(*wanted, false, index, data, false));
                }
            }
            let next = last.filter(here).and_then(|key| match key {
                Key::AppStateMutationMac { index_mac, .. } => Some(index_mac),
                _ => None,
            });
            Reply::Settings { settings, next }
        }
        SyncScan::Jobs(_) | SyncScan::Keys(_) | SyncScan::Macs(..) => return None,
    })
}

fn readable<M: prost::Message + Default>(
    cx: &mut Context,
    key: Key,
    row: &Row,
) -> Option<(Key, M)> {
    match row {
        Row::Present(record) => match codec::decode(record) {
            Ok(decoded) => return Some((key, decoded)),
            Err(_) => cx.corrupt(key),
        },
        Row::Corrupt => cx.corrupt(key),
        Row::Absent => {}
    }
    None
}

/// A setting out of its stored parts.
pub(super) fn setting_of(
    collection: Collection,
    removed: bool,
    index: Vec<u8>,
    data: Vec<u8>,
    own: bool,
) -> Setting {
    let at = timestamp(data.as_slice());
    Setting {
        collection,
        action: Action::from_parts(removed, index, data),
        at,
        own,
    }
}

/// When a mutation was made, by its `SyncActionData`: as the device says that made it.
pub(super) fn timestamp(data: impl prost::bytes::Buf) -> i64 {
    SyncActionData::decode(data)
        .ok()
        .and_then(|data| data.value?.timestamp)
        .unwrap_or(0)
}

/// Where a collection stands, by its row.
pub(super) fn state_of(row: &record::Collection) -> Option<State> {
    let hash: Option<[u8; LtHash::BYTES]> =
        row.hash.as_deref().and_then(|hash| hash.try_into().ok());
    match (row.version.unwrap_or(0), hash) {
        (version, Some(hash)) => Some(State {
            version,
            hash: LtHash::from_bytes(&hash),
        }),
        (0, None) => Some(State::default()),
        // A version without a hash cannot be gone on with.
        (_, None) => None,
    }
}

/// The row of an event about settings or history. (A setting that is announced keeps the bytes that it came with; what
/// it means is read from them again.)
pub(crate) fn to_row(event: &Event, row: &mut record::Event) {
    match event {
        Event::Setting(setting) => {
            let (removed, index, data) = setting.action.to_parts(setting.at);
            row.setting = Some(record::ShownSetting {
                collection: Some(setting.collection.to_string()),
                removed: Some(removed),
                index: Some(index),
                data: Some(data),
                own: Some(setting.own),
            });
        }
        Event::SettingsReplaced {
            collection,
            version,
            settings,
        } => {
            row.settings_replaced = Some(record::SettingsReplaced {
                collection: Some(collection.to_string()),
                version: Some(*version),
                settings: Some(*settings),
            });
        }
        Event::SyncFailed { collection, why } => {
            row.sync_failed = Some(record::SyncFailed {
                collection: Some(collection.to_string()),
                why: Some(why.clone()),
            });
        }
        Event::History(part) => {
            row.history = Some(record::HistoryPart {
                source: Some(part.source.to_string()),
                kind: Some(part.kind.wire()),
                part: Some(part.part),
                messages: part
                    .messages
                    .iter()
                    .map(|message| record::HistoryMessage {
                        chat: Some(message.chat.to_string()),
                        info: Some(message.info.to_vec()),
                    })
                    .collect(),
            });
        }
        Event::HistoryEnded {
            source,
            kind,
            items,
            why,
        } => {
            row.history_ended = Some(record::HistoryEnded {
                source: Some(source.to_string()),
                kind: Some(kind.wire()),
                items: Some(*items),
                why: why.clone(),
            });
        }
        _ => {}
    }
}

/// The event of such a row.
pub(crate) fn from_row(row: record::Event) -> Result<Event, RowError> {
    fn collection(name: Option<String>) -> Result<Collection, RowError> {
        name.and_then(|name| name.parse().ok())
            .ok_or(RowError::Malformed)
    }
    Ok(if let Some(setting) = row.setting {
        let removed = setting.removed();
        let own = setting.own();
        Event::Setting(Box::new(setting_of(
            collection(setting.collection)?,
            removed,
            setting.index.ok_or(RowError::Malformed)?,
            setting.data.unwrap_or_default(),
            own,
        )))
    } else if let Some(replaced) = row.settings_replaced {
        Event::SettingsReplaced {
            version: replaced.version(),
            settings: replaced.settings(),
            collection: collection(replaced.collection)?,
        }
    } else if let Some(failed) = row.sync_failed {
        Event::SyncFailed {
            collection: collection(failed.collection)?,
            why: failed.why.unwrap_or_default(),
        }
    } else if let Some(part) = row.history {
        let read = |message: record::HistoryMessage| {
            let chat = message.chat.and_then(|chat| chat.parse().ok());
            Ok(HistoryMessage {
                chat: chat.ok_or(RowError::Malformed)?,
                info: message.info.unwrap_or_default().into(),
            })
        };
        Event::History(Box::new(HistoryPart {
            kind: HistoryKind::of(part.kind()),
            part: part.part(),
            source: part.source.ok_or(RowError::Malformed)?.into(),
            messages: part
                .messages
                .into_iter()
                .map(read)
                .collect::<Result<_, RowError>>()?,
        }))
    } else if let Some(ended) = row.history_ended {
        Event::HistoryEnded {
            kind: HistoryKind::of(ended.kind()),
            items: ended.items(),
            source: ended.source.ok_or(RowError::Malformed)?.into(),
            why: ended.why,
        }
    } else {
        return Err(RowError::Malformed);
    })
}
