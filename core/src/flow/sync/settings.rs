//! What settings do to the rows of contacts and chats.

use super::{Chat, Contact};
use crate::{
    appstate::action::{Action, ContactCard, MuteEnd},
    flow::{Context, devices, login},
    jid::{Jid, Server},
    proto::record,
    state::{Key, codec},
};

/// Most labels that a chat keeps.
const LABELS: usize = 64;

/// Muted without end, in a row.
const FOR_EVER: i64 = -1;

/// The row that [`apply`] reads and writes, if the action has one. What it says stands there, so that the setting itself
/// need not keep it.
pub(super) fn row_of(action: &Action) -> Option<Key> {
    match action {
        Action::Contact { user, .. }
        | Action::LidContact { user, .. }
        | Action::StatusMute { user, .. } => Some(Key::Contact(user.clone())),
        Action::Mute { chat, .. }
        | Action::Pin { chat, .. }
        | Action::Archive { chat, .. }
        | Action::MarkRead { chat, .. }
        | Action::Lock { chat, .. }
        | Action::LabelChat { chat, .. } => Some(Key::ChatSettings(chat.clone())),
        _ => None,
    }
}

/// Carries out what a setting says, as far as rows of ours have a place for it.
pub(super) fn apply(cx: &mut Context, action: &Action) {
    match action {
        Action::Contact { user, card } => {
            if let Some(card) = card {
                learn(cx, user, card.lid.as_ref().or(card.pn.as_ref()));
            }
            contact(cx, user, |row| write_card(row, card.as_ref()));
        }
        Action::LidContact { user, card } => {
            contact(cx, user, |row| write_card(row, card.as_ref()));
        }
        Action::StatusMute { user, muted } => {
            contact(cx, user, |row| row.status_muted = muted.then_some(true));
        }
        Action::Mute { chat, until } => self::chat(cx, chat, |row| {
            row.muted_until = Some(match until {
                None => 0,
                Some(MuteEnd::Never) => FOR_EVER,
                Some(MuteEnd::At(at)) => *at,
            });
        }),
        Action::Pin { chat, pinned } => self::chat(cx, chat, |row| row.pinned = Some(*pinned)),
        Action::Archive { chat, archived, .. } => {
            self::chat(cx, chat, |row| row.archived = Some(*archived));
        }
        Action::MarkRead { chat, read, .. } => self::chat(cx, chat, |row| {
            row.marked_unread = Some(!*read);
            if *read {
                row.unread = None;
            }
        }),
        Action::Lock { chat, locked } => self::chat(cx, chat, |row| row.locked = Some(*locked)),
        Action::LabelChat {
            label,
            chat,
            labeled,
        } => self::chat(cx, chat, |row| {
            row.labels.retain(|other| other != label);
            if *labeled && row.labels.len() < LABELS {
                row.labels.push(label.clone());
                row.labels.sort();
            }
        }),
        Action::PnForLid { lid, pn: Some(pn) } => learn(cx, lid, Some(pn)),
        Action::PushName(name)
            if (1..=255).contains(&name.len()) && cx.account.push_name.as_ref() != Some(name) =>
        {
            cx.account.push_name = Some(name.clone());
            cx.save_account();
            if cx.available {
                login::announce(cx, true);
            }
        }
        _ => {}
    }
}

/// Notes that two addresses are of one user.
pub(super) fn learn(cx: &mut Context, one: &Jid, other: Option<&Jid>) {
    let Some(other) = other else { return };
    let (pn, lid) = if one.is_pn() {
        (one, other)
    } else {
        (other, one)
    };
    if let (Some(phone), true) = (pn.phone(), lid.is_lid() && lid.server() == Server::Lid) {
        devices::learn(cx, phone, lid.user());
    }
}

/// Changes the row of a contact; one that says nothing any more is deleted.
pub(super) fn contact(cx: &mut Context, user: &Jid, change: impl FnOnce(&mut record::Contact)) {
    let key = Key::Contact(user.clone());
    let old: Option<record::Contact> = cx.read(&key);
    let mut row = old.clone().unwrap_or_default();
    change(&mut row);
    if row == record::Contact::default() {
        if old.is_some() {
            cx.delete(key);
        }
    } else if old.as_ref() != Some(&row) {
        cx.put(key, codec::encode(&row));
    }
}

/// As [`contact`], for a chat.
pub(super) fn chat(cx: &mut Context, chat: &Jid, change: impl FnOnce(&mut record::ChatSettings)) {
    let key = Key::ChatSettings(chat.clone());
    let old: Option<record::ChatSettings> = cx.read(&key);
    let mut row = old.clone().unwrap_or_default();
    change(&mut row);
    if old.as_ref() != Some(&row) {
        cx.put(key, codec::encode(&row));
    }
}

fn write_card(row: &mut record::Contact, card: Option<&ContactCard>) {
    let kept = record::Contact {
        push_name: row.push_name.take(),
        status_muted: row.status_muted,
        ..Default::default()
    };
    *row = match card {
        None => kept,
        Some(card) => record::Contact {
            full_name: card.full_name.clone(),
            first_name: card.first_name.clone(),
            username: card.username.clone(),
            lid: card.lid.as_ref().map(ToString::to_string),
            pn: card.pn.as_ref().map(ToString::to_string),
            on_phone: card.on_phone.then_some(true),
            saved: Some(true),
            ..kept
        },
    };
}

/// The contact of a row.
pub(super) fn read_contact(user: Jid, row: record::Contact) -> Contact {
    let address = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let card = row.saved().then(|| ContactCard {
        full_name: row.full_name.clone(),
        first_name: row.first_name.clone(),
        username: row.username.clone(),
        lid: address(row.lid.clone()),
        pn: address(row.pn.clone()),
        on_phone: row.on_phone(),
    });
    Contact {
        user,
        card,
        status_muted: row.status_muted(),
        push_name: row.push_name,
    }
}

/// The chat of a row.
pub(super) fn read_chat(chat: Jid, row: record::ChatSettings) -> Chat {
    Chat {
        chat,
        muted: match row.muted_until() {
            0 => None,
            at if at > 0 => Some(MuteEnd::At(at)),
            _ => Some(MuteEnd::Never),
        },
        pinned: row.pinned(),
        archived: row.archived(),
        marked_unread: row.marked_unread(),
        locked: row.locked(),
        unread: row.unread(),
        expiration: row.expiration(),
        last_at: row.last_at,
        labels: row.labels,
        name: row.name,
    }
}
