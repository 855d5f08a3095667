//! Settings of accounts, "app state" (chapter 08): what the service keeps of them, and what the phone makes of them.
//!
//! The service has logs of sealed records and counts versions; it can verify nothing (`collections`). The phone has
//! the keys, reads every patch the moment it is accepted, and is the judge's truth (`primary`).

mod collections;
mod primary;

pub(super) use collections::{Collections, SavedLog};
pub use primary::{PhoneSettingError, SettingChange};
pub(super) use primary::{Primary, RECOVERY, SharedKey};

use baton_core::crypto::Rng;
use baton_core::proto::sync::{
    ArchiveChatAction, ContactAction, DeleteChatAction, DeleteMessageForMeAction,
    LabelAssociationAction, LabelEditAction, LocaleSetting, LockChatAction, MarkChatAsReadAction,
    MuteAction, PinAction, PnForLidChatAction, PushNameSetting, QuickReplyAction, StarAction,
    SyncActionData, SyncActionValue, UserStatusMuteAction,
};
use serde::{Deserialize, Serialize};

/// The five collections.
pub const COLLECTIONS: [&str; 5] = [
    "critical_block",
    "critical_unblock_low",
    "regular_high",
    "regular",
    "regular_low",
];

/// The collection of this name, if there is one.
#[must_use]
pub fn collection_of(name: &str) -> Option<&'static str> {
    COLLECTIONS.into_iter().find(|known| *known == name)
}

/// Something that the phone's owner changes. In JSON: `{"change": "mute", "chat": "1555…@s.whatsapp.net", "until": -1}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// An entry of the address book, or its end.
    Contact {
        /// JID.
        user: String,
        /// Full name; none removes the entry.
        name: Option<String>,
    },
    /// A chat is silent.
    Mute {
        /// JID.
        chat: String,
        /// Unix milliseconds, -1 for ever; none if it is not silent.
        until: Option<i64>,
    },
    /// A chat stands at the top.
    Pin {
        /// JID.
        chat: String,
        /// Does it?
        pinned: bool,
    },
    /// A chat is out of the way.
    Archive {
        /// JID.
        chat: String,
        /// Is it?
        archived: bool,
    },
    /// A chat was read, or marked as unread.
    Read {
        /// JID.
        chat: String,
        /// Was it?
        read: bool,
    },
    /// A chat is locked.
    Lock {
        /// JID.
        chat: String,
        /// Is it?
        locked: bool,
    },
    /// A message is starred.
    Star {
        /// JID.
        chat: String,
        /// Of the message.
        id: String,
        /// Is it?
        starred: bool,
    },
    /// A message was deleted here.
    DeleteForMe {
        /// JID.
        chat: String,
        /// Of the message.
        id: String,
    },
    /// A chat was deleted.
    DeleteChat {
        /// JID.
        chat: String,
    },
    /// What the account calls itself.
    PushName {
        /// The name.
        name: String,
    },
    /// Language and region.
    Locale {
        /// `de_DE`, for example.
        locale: String,
    },
    /// A label, or its end.
    Label {
        /// A decimal number.
        id: String,
        /// None deletes it.
        name: Option<String>,
    },
    /// A chat has a label.
    LabelChat {
        /// The label's id.
        label: String,
        /// JID.
        chat: String,
        /// Has it?
        labeled: bool,
    },
    /// Somebody's status is not shown.
    StatusMute {
        /// JID.
        user: String,
        /// Is it not?
        muted: bool,
    },
    /// The phone number behind a LID.
    PnForLid {
        /// JID.
        lid: String,
        /// JID.
        pn: String,
    },
    /// Something that a client need not know.
    Other {
        /// Any of the five.
        collection: String,
        /// Words of its name.
        index: Vec<String>,
        /// Remove it, whether it is there or not.
        #[serde(default)]
        remove: bool,
    },
}

impl Change {
    /// Collection, whether it is a removal, name and serialized `SyncActionData`, made at this time (unix milliseconds).
    /// None if there is no such collection.
    #[must_use]
    pub fn clear(&self, at: i64) -> Option<(&'static str, bool, Vec<u8>, Vec<u8>)> {
        use prost::Message as _;
        let (collection, removed, data) = self.mutation(at)?;
        Some((
            collection,
            removed,
            data.index.clone()?,
            data.encode_to_vec(),
        ))
    }

    /// Collection, whether it is a removal, and the mutation in clear.
    pub(super) fn mutation(&self, at: i64) -> Option<(&'static str, bool, SyncActionData)> {
        let mut value = SyncActionValue {
            timestamp: Some(at),
            ..Default::default()
        };
        let mut removed = false;
        let (collection, version, index): (&str, i32, Vec<&str>) = match self {
            Self::Contact { user, name } => {
                removed = name.is_none();
                value.contact_action = Some(ContactAction {
                    full_name: name.clone(),
                    first_name: name
                        .as_ref()
                        .and_then(|n| n.split(' ').next().map(Into::into)),
                    ..Default::default()
                });
                ("critical_unblock_low", 2, vec!["contact", user])
            }
            Self::Mute { chat, until } => {
                value.mute_action = Some(MuteAction {
                    muted: Some(until.is_some()),
                    mute_end_timestamp: *until,
                    auto_muted: None,
                });
                ("regular_high", 2, vec!["mute", chat])
            }
            Self::Pin { chat, pinned } => {
                value.pin_action = Some(PinAction {
                    pinned: Some(*pinned),
                });
                ("regular_low", 5, vec!["pin_v1", chat])
            }
            Self::Archive { chat, archived } => {
                value.archive_chat_action = Some(ArchiveChatAction {
                    archived: Some(*archived),
                    message_range: None,
                });
                ("regular_low", 3, vec!["archive", chat])
            }
            Self::Read { chat, read } => {
                value.mark_chat_as_read_action = Some(MarkChatAsReadAction {
                    read: Some(*read),
                    message_range: None,
                });
                ("regular_low", 3, vec!["markChatAsRead", chat])
            }
            Self::Lock { chat, locked } => {
                value.lock_chat_action = Some(LockChatAction {
                    locked: Some(*locked),
                });
                ("regular_low", 7, vec!["lock", chat])
            }
            Self::Star { chat, id, starred } => {
                value.star_action = Some(StarAction {
                    starred: Some(*starred),
                });
                ("regular_high", 2, vec!["star", chat, id, "0", "0"])
            }
            Self::DeleteForMe { chat, id } => {
                value.delete_message_for_me_action = Some(DeleteMessageForMeAction {
                    delete_media: Some(false),
                    message_timestamp: Some(at / 1000),
                });
                (
                    "regular_high",
                    3,
                    vec!["deleteMessageForMe", chat, id, "0", "0"],
                )
            }
            Self::DeleteChat { chat } => {
                value.delete_chat_action = Some(DeleteChatAction {
                    message_range: None,
                });
                ("regular_high", 6, vec!["deleteChat", chat, "0"])
            }
            Self::PushName { name } => {
                value.push_name_setting = Some(PushNameSetting {
                    name: Some(name.clone()),
                });
                ("critical_block", 1, vec!["setting_pushName"])
            }
            Self::Locale { locale } => {
                value.locale_setting = Some(LocaleSetting {
                    locale: Some(locale.clone()),
                });
                ("critical_block", 3, vec!["setting_locale"])
            }
            Self::Label { id, name } => {
                value.label_edit_action = Some(LabelEditAction {
                    name: Some(name.clone().unwrap_or_default()),
                    color: Some(3),
                    deleted: Some(name.is_none()),
                    ..Default::default()
                });
                ("regular", 3, vec!["label_edit", id])
            }
            Self::LabelChat {
                label,
                chat,
                labeled,
            } => {
                value.label_association_action = Some(LabelAssociationAction {
                    labeled: Some(*labeled),
                });
                ("regular", 3, vec!["label_jid", label, chat])
            }
            Self::StatusMute { user, muted } => {
                value.user_status_mute_action = Some(UserStatusMuteAction {
                    muted: Some(*muted),
                });
                ("regular_high", 7, vec!["userStatusMute", user])
            }
            Self::PnForLid { lid, pn } => {
                value.pn_for_lid_chat_action = Some(PnForLidChatAction {
                    pn_jid: Some(pn.clone()),
                });
                ("regular", 8, vec!["pnForLidChat", lid])
            }
            Self::Other {
                collection,
                index,
                remove,
            } => {
                removed = *remove;
                value.quick_reply_action = Some(QuickReplyAction {
                    shortcut: Some("later".into()),
                    ..Default::default()
                });
                (collection, 2, index.iter().map(String::as_str).collect())
            }
        };
        let data = SyncActionData {
            index: Some(serde_json::to_vec(&index).ok()?),
            value: Some(value),
            padding: Some(Vec::new()),
            version: Some(version),
        };
        Some((collection_of(collection)?, removed, data))
    }

    /// Something that an owner might do, about one of a few people so that changes meet.
    pub fn draw(rng: &mut Rng) -> Self {
        let user = format!("{}@s.whatsapp.net", 15_559_990_000 + rng.below(6));
        let chat = user.clone();
        let flag = rng.below(3) > 0;
        let id = format!("3EB0{:04}", rng.below(8));
        let number = rng.below(4).to_string();
        match rng.below(16) {
            0..3 => Self::Contact {
                user,
                name: flag.then(|| format!("Contact {}", rng.below(100))),
            },
            3 | 4 => Self::Mute {
                chat,
                until: flag
                    .then(|| 1_800_000_000_000 + i64::try_from(rng.below(1000)).unwrap_or(0)),
            },
            5 => Self::Pin { chat, pinned: flag },
            6 => Self::Archive {
                chat,
                archived: flag,
            },
            7 => Self::Read { chat, read: flag },
            8 => Self::Star {
                chat,
                id,
                starred: flag,
            },
            9 => Self::DeleteForMe { chat, id },
            10 => Self::Lock { chat, locked: flag },
            11 => Self::Label {
                id: number,
                name: flag.then(|| format!("Label {}", rng.below(100))),
            },
            12 => Self::LabelChat {
                label: number,
                chat,
                labeled: flag,
            },
            13 => Self::StatusMute { user, muted: flag },
            14 => Self::PushName {
                name: format!("Phone {}", rng.below(100)),
            },
            _ => Self::Other {
                collection: COLLECTIONS[usize::try_from(rng.below(5)).unwrap_or(0)].into(),
                index: vec!["from_the_future".into(), number],
                remove: !flag && rng.below(2) == 0,
            },
        }
    }
}
