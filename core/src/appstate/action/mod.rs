//! What settings mean (fact sheet 08.9): typed actions, to and from the name and value of a mutation.
//!
//! A setting is told by the first word of its name and by its value, never by its collection: other clients put some
//! into another one. A kind that is not known here, or whose parts do not fit together, is [`Action::Unknown`] and keeps
//! its bytes.

mod index;

pub use index::{parse_index, write_index};

use super::{Change, Collection, Mutation, Operation};
use crate::{
    jid::Jid,
    proto::{
        e2e,
        sync::{
            self, ArchiveChatAction, ClearChatAction, ContactAction, DeleteChatAction,
            DeleteMessageForMeAction, LabelAssociationAction, LabelEditAction, LidContactAction,
            LocaleSetting, LockChatAction, MarkChatAsReadAction, MuteAction, NctSaltSyncAction,
            PinAction, PnForLidChatAction, PrivacySettingDisableLinkPreviewsAction,
            PushNameSetting, StarAction, SyncActionData, SyncActionMessage, SyncActionMessageRange,
            SyncActionValue, UnarchiveChatsSetting, UserStatusMuteAction,
        },
    },
};
use bytes::Bytes;
use prost::Message as _;
use smol_str::SmolStr;
use std::fmt;

/// Most messages in a range that are looked at; other clients name the last few.
const RANGE: usize = 1024;

/// Which message an action is about.
#[derive(Clone, PartialEq, Eq)]
pub struct MessageRef {
    /// The chat it is in.
    pub chat: Jid,
    /// Its id.
    pub id: SmolStr,
    /// Written by the account.
    pub from_me: bool,
    /// Its author, for messages of others in groups.
    pub participant: Option<Jid>,
}

/// Up to where an action on a chat reaches.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct MessageRange {
    /// Time of the last message, unix seconds.
    pub last: i64,
    /// Time of the last system message, unix seconds.
    pub last_system: Option<i64>,
    /// The last messages, with their times in unix seconds.
    pub messages: Vec<(MessageRef, i64)>,
}

/// An entry of the address book.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ContactCard {
    /// Name and surname.
    pub full_name: Option<String>,
    /// Name.
    pub first_name: Option<String>,
    /// What they call themselves in public.
    pub username: Option<String>,
    /// The contact's LID, if the entry is filed under the phone number.
    pub lid: Option<Jid>,
    /// The contact's phone number, if the entry is filed under the LID.
    pub pn: Option<Jid>,
    /// Kept in the phone's own address book too.
    pub on_phone: bool,
}

/// Until when a chat is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuteEnd {
    /// Until somebody changes it.
    Never,
    /// Unix milliseconds.
    At(i64),
}

/// A label.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// Index of its colour.
    pub color: i32,
    /// Set for labels that every account has.
    pub predefined: Option<i32>,
    /// Place among the others.
    pub order: Option<i32>,
}

/// A setting and its value.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// An entry of the address book, by phone number or LID; `None` if it was removed.
    Contact {
        /// Who.
        user: Jid,
        /// What is known.
        card: Option<ContactCard>,
    },
    /// An entry for somebody whose phone number is not known; `None` if it was removed.
    LidContact {
        /// Who.
        user: Jid,
        /// What is known: names only.
        card: Option<ContactCard>,
    },
    /// A chat is silent; `None` if it is not.
    Mute {
        /// Which.
        chat: Jid,
        /// Until when.
        until: Option<MuteEnd>,
    },
    /// A chat stands at the top of the list.
    Pin {
        /// Which.
        chat: Jid,
        /// Does it?
        pinned: bool,
    },
    /// A chat is out of the way.
    Archive {
        /// Which.
        chat: Jid,
        /// Is it?
        archived: bool,
        /// Up to which message.
        range: Option<MessageRange>,
    },
    /// A chat was read, or marked as unread.
    MarkRead {
        /// Which.
        chat: Jid,
        /// Read?
        read: bool,
        /// Up to which message.
        range: Option<MessageRange>,
    },
    /// A chat can be opened only with the owner's proof.
    Lock {
        /// Which.
        chat: Jid,
        /// Can it?
        locked: bool,
    },
    /// A message is starred.
    Star {
        /// Which.
        message: MessageRef,
        /// Is it?
        starred: bool,
    },
    /// A message was deleted on this account's devices.
    DeleteForMe {
        /// Which.
        message: MessageRef,
        /// With its media.
        media: bool,
        /// Its time, unix seconds.
        at: i64,
    },
    /// All messages of a chat were deleted.
    ClearChat {
        /// Which.
        chat: Jid,
        /// The starred ones too.
        starred: bool,
        /// Media too.
        media: bool,
        /// Up to which message.
        range: Option<MessageRange>,
    },
    /// A chat was deleted.
    DeleteChat {
        /// Which.
        chat: Jid,
        /// Media too.
        media: bool,
        /// Up to which message.
        range: Option<MessageRange>,
    },
    /// What the account calls itself.
    PushName(String),
    /// Language and region, such as `de_DE`.
    Locale(String),
    /// Whether a new message takes a chat out of the archive.
    UnarchiveChats(bool),
    /// Whether links are sent without a preview.
    NoLinkPreviews(bool),
    /// A label; `None` if it was deleted.
    Label {
        /// Which, a decimal number.
        id: String,
        /// What it is.
        label: Option<Label>,
    },
    /// A chat has a label.
    LabelChat {
        /// Which label.
        label: String,
        /// Which chat.
        chat: Jid,
        /// Has it?
        labeled: bool,
    },
    /// A message has a label.
    LabelMessage {
        /// Which label.
        label: String,
        /// Which chat.
        chat: Jid,
        /// Which message.
        id: SmolStr,
        /// Has it?
        labeled: bool,
    },
    /// Somebody's status updates are not shown.
    StatusMute {
        /// Whose.
        user: Jid,
        /// Are they not?
        muted: bool,
    },
    /// The phone number behind the LID of a chat; `None` if it was taken back.
    PnForLid {
        /// The chat.
        lid: Jid,
        /// Its phone number.
        pn: Option<Jid>,
    },
    /// Secret of the tokens that stand in for privacy tokens; `None` clears it.
    NctSalt(Option<Bytes>),
    /// Anything else.
    Unknown {
        /// Name of the setting, exactly these bytes.
        index: Bytes,
        /// The serialized `SyncActionData`.
        data: Bytes,
        /// It was removed.
        removed: bool,
    },
}

/// Which kind, never whom it is about or what it says.
impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Action({})", self.kind())
    }
}

macro_rules! silent {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )*};
}

silent!(MessageRef, MessageRange, ContactCard, Label);

impl Action {
    /// What the mutation says.
    #[must_use]
    pub fn of(mutation: &Mutation) -> Self {
        read(mutation).unwrap_or_else(|| Self::Unknown {
            index: mutation.index.clone(),
            data: mutation.data.clone(),
            removed: mutation.operation == Operation::Remove,
        })
    }

    /// As it is kept: whether it removes, its name, and its serialized `SyncActionData`. `at` as in
    /// [`change`](Self::change).
    pub(crate) fn to_parts(&self, at: i64) -> (bool, Vec<u8>, Vec<u8>) {
        if let Self::Unknown {
            index,
            data,
            removed,
        } = self
        {
            return (*removed, index.to_vec(), data.to_vec());
        }
        let Some((_, change)) = self.change(at) else {
            return (false, Vec::new(), Vec::new());
        };
        let data = SyncActionData {
            index: Some(change.index.clone()),
            value: Some(change.value),
            padding: None,
            version: Some(change.version),
        };
        let removed = change.operation == Operation::Remove;
        (removed, change.index, data.encode_to_vec())
    }

    /// What [`to_parts`](Self::to_parts) has taken apart.
    pub(crate) fn from_parts(removed: bool, index: Vec<u8>, data: Vec<u8>) -> Self {
        Self::of(&Mutation {
            operation: if removed {
                Operation::Remove
            } else {
                Operation::Set
            },
            index_mac: [0; 32],
            value_mac: [0; 32],
            index: index.into(),
            data: data.into(),
        })
    }

    /// The first word of its name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.facts().map_or("unknown", |(kind, ..)| kind)
    }

    /// Where it belongs. `None` for what is unknown.
    #[must_use]
    pub fn collection(&self) -> Option<Collection> {
        self.facts().map(|(_, collection, _)| collection)
    }

    /// Word, collection and version of each kind (vectors/appstate-actions.json).
    const fn facts(&self) -> Option<(&'static str, Collection, i32)> {
        use Collection as C;
        Some(match self {
            Self::Contact { .. } => ("contact", C::CriticalUnblockLow, 2),
            Self::LidContact { .. } => ("lid_contact", C::CriticalUnblockLow, 1),
            Self::Mute { .. } => ("mute", C::RegularHigh, 2),
            Self::Pin { .. } => ("pin_v1", C::RegularLow, 5),
            Self::Archive { .. } => ("archive", C::RegularLow, 3),
            Self::MarkRead { .. } => ("markChatAsRead", C::RegularLow, 3),
            Self::Lock { .. } => ("lock", C::RegularLow, 7),
            Self::Star { .. } => ("star", C::RegularHigh, 2),
            Self::DeleteForMe { .. } => ("deleteMessageForMe", C::RegularHigh, 3),
            Self::ClearChat { .. } => ("clearChat", C::RegularHigh, 6),
            Self::DeleteChat { .. } => ("deleteChat", C::RegularHigh, 6),
            Self::PushName(_) => ("setting_pushName", C::CriticalBlock, 1),
            Self::Locale(_) => ("setting_locale", C::CriticalBlock, 3),
            Self::UnarchiveChats(_) => ("setting_unarchiveChats", C::RegularLow, 4),
            Self::NoLinkPreviews(_) => ("setting_disableLinkPreviews", C::Regular, 8),
            Self::Label { .. } => ("label_edit", C::Regular, 3),
            Self::LabelChat { .. } => ("label_jid", C::Regular, 3),
            Self::LabelMessage { .. } => ("label_message", C::Regular, 3),
            Self::StatusMute { .. } => ("userStatusMute", C::RegularHigh, 7),
            Self::PnForLid { .. } => ("pnForLidChat", C::Regular, 8),
            Self::NctSalt(_) => ("nct_salt_sync", C::RegularHigh, 1),
            Self::Unknown { .. } => return None,
        })
    }

    /// The change that announces it, at this time (unix milliseconds), and the collection it goes into. `None` for what
    /// is unknown: what we do not understand we do not write.
    #[must_use]
    pub fn change(&self, at: i64) -> Option<(Collection, Change)> {
        let (kind, collection, version) = self.facts()?;
        let mut value = SyncActionValue {
            timestamp: Some(at),
            ..Default::default()
        };
        let mut operation = Operation::Set;
        let flag = |flag: bool| if flag { "1" } else { "0" };
        let index = match self {
            Self::Contact { user, card } => {
                operation = if card.is_some() {
                    Operation::Set
                } else {
                    Operation::Remove
                };
                let card = card.clone().unwrap_or_default();
                value.contact_action = Some(ContactAction {
                    full_name: card.full_name,
                    first_name: card.first_name,
                    lid_jid: card.lid.map(|jid| jid.to_string()),
                    save_on_primary_addressbook: card.on_phone.then_some(true),
                    pn_jid: card.pn.map(|jid| jid.to_string()),
                    username: card.username,
                });
                write_index(&[kind, &user.to_string()])
            }
            Self::LidContact { user, card } => {
                operation = if card.is_some() {
                    Operation::Set
                } else {
                    Operation::Remove
                };
                let card = card.clone().unwrap_or_default();
                value.lid_contact_action = Some(LidContactAction {
                    full_name: card.full_name,
                    first_name: card.first_name,
                    username: card.username,
                });
                write_index(&[kind, &user.to_string()])
            }
            Self::Mute { chat, until } => {
                value.mute_action = Some(MuteAction {
                    muted: Some(until.is_some()),
                    mute_end_timestamp: until.map(|until| match until {
                        MuteEnd::Never => -1,
                        MuteEnd::At(at) => at,
                    }),
                    auto_muted: None,
                });
                write_index(&[kind, &chat.to_string()])
            }
            Self::Pin { chat, pinned } => {
                value.pin_action = Some(PinAction {
                    pinned: Some(*pinned),
                });
                write_index(&[kind, &chat.to_string()])
            }
            Self::Archive {
                chat,
                archived,
                range,
            } => {
                value.archive_chat_action = Some(ArchiveChatAction {
                    archived: Some(*archived),
                    message_range: range.as_ref().map(write_range),
                });
                write_index(&[kind, &chat.to_string()])
            }
            Self::MarkRead { chat, read, range } => {
                value.mark_chat_as_read_action = Some(MarkChatAsReadAction {
                    read: Some(*read),
                    message_range: range.as_ref().map(write_range),
                });
                write_index(&[kind, &chat.to_string()])
            }
            Self::Lock { chat, locked } => {
                value.lock_chat_action = Some(LockChatAction {
                    locked: Some(*locked),
                });
                write_index(&[kind, &chat.to_string()])
            }
            Self::Star { message, starred } => {
                value.star_action = Some(StarAction {
                    starred: Some(*starred),
                });
                message_index(kind, message)
            }
            Self::DeleteForMe { message, media, at } => {
                value.delete_message_for_me_action = Some(DeleteMessageForMeAction {
                    delete_media: Some(*media),
                    message_timestamp: Some(*at),
                });
                message_index(kind, message)
            }
            Self::ClearChat {
                chat,
                starred,
                media,
                range,
            } => {
                value.clear_chat_action = Some(ClearChatAction {
                    message_range: range.as_ref().map(write_range),
                });
                write_index(&[kind, &chat.to_string(), flag(*starred), flag(*media)])
            }
            Self::DeleteChat { chat, media, range } => {
                value.delete_chat_action = Some(DeleteChatAction {
                    message_range: range.as_ref().map(write_range),
                });
                write_index(&[kind, &chat.to_string(), flag(*media)])
            }
            Self::PushName(name) => {
                value.push_name_setting = Some(PushNameSetting {
                    name: Some(name.clone()),
                });
                write_index(&[kind])
            }
            Self::Locale(locale) => {
                value.locale_setting = Some(LocaleSetting {
                    locale: Some(locale.clone()),
                });
                write_index(&[kind])
            }
            Self::UnarchiveChats(unarchive) => {
                value.unarchive_chats_setting = Some(UnarchiveChatsSetting {
                    unarchive_chats: Some(*unarchive),
                });
                write_index(&[kind])
            }
            Self::NoLinkPreviews(disabled) => {
                value.privacy_setting_disable_link_previews_action =
                    Some(PrivacySettingDisableLinkPreviewsAction {
                        is_previews_disabled: Some(*disabled),
                    });
                write_index(&[kind])
            }
            Self::Label { id, label } => {
                let deleted = label.is_none();
                let label = label.clone().unwrap_or_default();
                value.label_edit_action = Some(LabelEditAction {
                    name: Some(label.name),
                    color: Some(label.color),
                    predefined_id: label.predefined,
                    deleted: Some(deleted),
                    order_index: label.order,
                });
                write_index(&[kind, id])
            }
            Self::LabelChat {
                label,
                chat,
                labeled,
            } => {
                value.label_association_action = Some(LabelAssociationAction {
                    labeled: Some(*labeled),
                });
                write_index(&[kind, label, &chat.to_string()])
            }
            Self::LabelMessage {
                label,
                chat,
                id,
                labeled,
            } => {
                value.label_association_action = Some(LabelAssociationAction {
                    labeled: Some(*labeled),
                });
                write_index(&[kind, label, &chat.to_string(), id, "0", "0"])
            }
            Self::StatusMute { user, muted } => {
                value.user_status_mute_action = Some(UserStatusMuteAction {
                    muted: Some(*muted),
                });
                write_index(&[kind, &user.to_string()])
            }
            Self::PnForLid { lid, pn } => {
                operation = if pn.is_some() {
                    Operation::Set
                } else {
                    Operation::Remove
                };
                value.pn_for_lid_chat_action = Some(PnForLidChatAction {
                    pn_jid: pn.as_ref().map(ToString::to_string),
                });
                write_index(&[kind, &lid.to_string()])
            }
            Self::NctSalt(salt) => {
                operation = if salt.is_some() {
                    Operation::Set
                } else {
                    Operation::Remove
                };
                value.nct_salt_sync_action = Some(NctSaltSyncAction {
                    salt: salt.as_ref().map(|salt| salt.to_vec()),
                });
                write_index(&[kind])
            }
            Self::Unknown { .. } => return None,
        };
        let change = Change {
            operation,
            index,
            value,
            version,
        };
        Some((collection, change))
    }
}

fn message_index(kind: &str, message: &MessageRef) -> Vec<u8> {
    let participant = message.participant.as_ref().map(ToString::to_string);
    write_index(&[
        kind,
        &message.chat.to_string(),
        &message.id,
        if message.from_me { "1" } else { "0" },
        participant.as_deref().unwrap_or("0"),
    ])
}

fn read(mutation: &Mutation) -> Option<Action> {
    let parts = parse_index(&mutation.index)?;
    let (kind, parts) = parts.split_first()?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let data = SyncActionData::decode(mutation.data.clone()).ok()?;
    let set = mutation.operation == Operation::Set;
    // A removed setting is one that has its first value again.
    let value = if set {
        data.value?
    } else {
        SyncActionValue::default()
    };
    let jid = |text: &str| text.parse::<Jid>().ok().map(|jid| jid.bare());
    Some(match (kind.as_str(), parts.as_slice()) {
        ("contact", [user]) => {
            let card = if set {
                let contact = value.contact_action?;
                let address = |text: Option<String>| text.as_deref().and_then(jid);
                Some(ContactCard {
                    full_name: contact.full_name,
                    first_name: contact.first_name,
                    username: contact.username,
                    lid: address(contact.lid_jid).filter(Jid::is_lid),
                    pn: address(contact.pn_jid).filter(Jid::is_pn),
                    on_phone: contact.save_on_primary_addressbook.unwrap_or(false),
                })
            } else {
                None
            };
            Action::Contact {
                user: jid(user).filter(Jid::is_user)?,
                card,
            }
        }
        ("lid_contact", [user]) => {
            let card = if set {
                let contact = value.lid_contact_action?;
                Some(ContactCard {
                    full_name: contact.full_name,
                    first_name: contact.first_name,
                    username: contact.username,
                    ..Default::default()
                })
            } else {
                None
            };
            Action::LidContact {
                user: jid(user).filter(Jid::is_lid)?,
                card,
            }
        }
        ("mute", [chat]) => {
            let mute = value.mute_action;
            if set && mute.is_none() {
                return None;
            }
            let until = mute.filter(|mute| mute.muted()).map(|mute| {
                // Absent, 0 and below: without end.
                match mute.mute_end_timestamp() {
                    at if at > 0 => MuteEnd::At(at),
                    _ => MuteEnd::Never,
                }
            });
            Action::Mute {
                chat: jid(chat)?,
                until,
            }
        }
        ("pin_v1", [chat]) => Action::Pin {
            chat: jid(chat)?,
            pinned: given(set, value.pin_action)?.pinned(),
        },
        ("archive", [chat]) => {
            let archive = given(set, value.archive_chat_action)?;
            Action::Archive {
                chat: jid(chat)?,
                archived: archive.archived(),
                range: archive.message_range.and_then(read_range),
            }
        }
        ("markChatAsRead", [chat]) => {
            let mark = given(set, value.mark_chat_as_read_action)?;
            Action::MarkRead {
                chat: jid(chat)?,
                // What is not marked as unread any more counts as read.
                read: mark.read.unwrap_or(true),
                range: mark.message_range.and_then(read_range),
            }
        }
        ("lock", [chat]) => Action::Lock {
            chat: jid(chat)?,
            locked: given(set, value.lock_chat_action)?.locked(),
        },
        ("star", [chat, id, from_me, participant]) => Action::Star {
            message: message(chat, id, from_me, participant)?,
            starred: given(set, value.star_action)?.starred(),
        },
        ("deleteMessageForMe", [chat, id, from_me, participant]) if set => {
            let delete = value.delete_message_for_me_action?;
            Action::DeleteForMe {
                message: message(chat, id, from_me, participant)?,
                media: delete.delete_media(),
                at: delete.message_timestamp(),
            }
        }
        ("clearChat", [chat, starred, media]) if set => Action::ClearChat {
            chat: jid(chat)?,
            starred: *starred == "1",
            media: *media == "1",
            range: value.clear_chat_action?.message_range.and_then(read_range),
        },
        ("deleteChat", [chat, media]) if set => Action::DeleteChat {
            chat: jid(chat)?,
            media: *media == "1",
            range: value.delete_chat_action?.message_range.and_then(read_range),
        },
        ("setting_pushName", []) if set => Action::PushName(value.push_name_setting?.name?),
        ("setting_locale", []) if set => Action::Locale(value.locale_setting?.locale?),
        ("setting_unarchiveChats", []) => {
            Action::UnarchiveChats(given(set, value.unarchive_chats_setting)?.unarchive_chats())
        }
        ("setting_disableLinkPreviews", []) => Action::NoLinkPreviews(
            given(set, value.privacy_setting_disable_link_previews_action)?.is_previews_disabled(),
        ),
        ("label_edit", [id]) => {
            let label = if set {
                let label = value.label_edit_action?;
                (!label.deleted()).then(|| Label {
                    color: label.color(),
                    predefined: label.predefined_id,
                    order: label.order_index,
                    name: label.name.unwrap_or_default(),
                })
            } else {
                None
            };
            Action::Label {
                id: (*id).to_owned(),
                label,
            }
        }
        ("label_jid", [label, chat]) => Action::LabelChat {
            label: (*label).to_owned(),
            chat: jid(chat)?,
            labeled: given(set, value.label_association_action)?.labeled(),
        },
        ("label_message", [label, chat, id, ..]) => Action::LabelMessage {
            label: (*label).to_owned(),
            chat: jid(chat)?,
            id: message_id(id)?,
            labeled: given(set, value.label_association_action)?.labeled(),
        },
        ("userStatusMute", [user]) => Action::StatusMute {
            user: jid(user)?,
            muted: given(set, value.user_status_mute_action)?.muted(),
        },
        ("pnForLidChat", [lid]) => {
            let pn = if set {
                let pn = value.pn_for_lid_chat_action?.pn_jid?;
                Some(jid(&pn).filter(Jid::is_pn)?)
            } else {
                None
            };
            Action::PnForLid {
                lid: jid(lid).filter(Jid::is_lid)?,
                pn,
            }
        }
        ("nct_salt_sync", []) => {
            let salt = if set {
                Some(value.nct_salt_sync_action?.salt?.into())
            } else {
                None
            };
            Action::NctSalt(salt)
        }
        _ => return None,
    })
}

/// The value of a setting: what is set has one, what is removed has the first again.
fn given<T: Default>(set: bool, value: Option<T>) -> Option<T> {
    if set { value } else { Some(T::default()) }
}

fn message_id(id: &str) -> Option<SmolStr> {
    ((1..=255).contains(&id.len()) && !id.contains('\0')).then(|| id.into())
}

fn message(chat: &str, id: &str, from_me: &str, participant: &str) -> Option<MessageRef> {
    let participant = match participant {
        "0" | "" => None,
        text => Some(text.parse::<Jid>().ok()?.bare()),
    };
    Some(MessageRef {
        chat: chat.parse::<Jid>().ok()?.bare(),
        id: message_id(id)?,
        from_me: from_me == "1",
        participant,
    })
}

fn write_range(range: &MessageRange) -> SyncActionMessageRange {
    let messages = range
        .messages
        .iter()
        .map(|(message, at)| SyncActionMessage {
            key: Some(e2e::MessageKey {
                remote_jid: Some(message.chat.to_string()),
                from_me: Some(message.from_me),
                id: Some(message.id.to_string()),
                participant: message.participant.as_ref().map(ToString::to_string),
            }),
            timestamp: Some(*at),
        });
    SyncActionMessageRange {
        last_message_timestamp: Some(range.last),
        last_system_message_timestamp: range.last_system,
        messages: messages.collect(),
    }
}

/// A range that does not read is no reason to lose what it belongs to.
fn read_range(range: SyncActionMessageRange) -> Option<MessageRange> {
    let read = |message: sync::SyncActionMessage| {
        let key = message.key?;
        let from_me = if key.from_me() { "1" } else { "0" };
        let participant = key.participant.as_deref().unwrap_or("0");
        let found = self::message(
            key.remote_jid.as_deref()?,
            key.id.as_deref()?,
            from_me,
            participant,
        )?;
        Some((found, message.timestamp.unwrap_or(0)))
    };
    Some(MessageRange {
        last: range.last_message_timestamp(),
        last_system: range.last_system_message_timestamp,
        messages: range
            .messages
            .into_iter()
            .take(RANGE)
            .filter_map(read)
            .collect(),
    })
}

#[cfg(test)]
mod tests;
