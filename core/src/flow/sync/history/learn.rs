//! What items of history do to rows: secrets of messages, chats, names, addresses.

use super::super::{HistoryMessage, settings};
use crate::{
    flow::Context,
    history::Piece,
    jid::Jid,
    proto::{e2e, history::WebMessageInfo, record},
    state::{Key, codec, rules},
};
use prost::Message as _;

/// Length of the secret of a message.
const SECRET_BYTES: usize = 32;

/// Longest name that is kept.
const NAME_BYTES: usize = 255;

/// Takes in one item.
pub(super) fn learn(cx: &mut Context, piece: Piece, messages: &mut Vec<HistoryMessage>) {
    match piece {
        Piece::Message(chat, info) => {
            let Some(chat) = address(Some(&chat)) else {
                cx.stats.sync.history_skipped += 1;
                return;
            };
            let Ok(decoded) = WebMessageInfo::decode(info.clone()) else {
                cx.stats.sync.history_skipped += 1;
                return;
            };
            secret(cx, &chat, &decoded);
            messages.push(HistoryMessage { chat, info });
        }
        Piece::Chat(chat) => {
            let Some(jid) = address(chat.id.as_deref()) else {
                cx.stats.sync.history_skipped += 1;
                return;
            };
            let other = |text: &Option<String>| address(text.as_deref());
            settings::learn(
                cx,
                &jid,
                other(&chat.lid_jid).or(other(&chat.pn_jid)).as_ref(),
            );
            settings::chat(cx, &jid, |row| {
                // What settings say is newer than what the phone remembers.
                if row.muted_until.is_none() {
                    let end = chat.mute_end_time.filter(|end| *end > 0);
                    row.muted_until = end.map(|end| i64::try_from(end).unwrap_or(-1));
                }
                row.pinned = row.pinned.or(chat.pinned.map(|at| at > 0));
                row.archived = row.archived.or(chat.archived);
                let name = chat.name.clone().filter(|name| name.len() <= NAME_BYTES);
                row.name = name.or(row.name.take());
                row.unread = chat.unread_count.or(row.unread);
                row.expiration = chat.ephemeral_expiration.or(row.expiration);
                let last = chat
                    .conversation_timestamp
                    .and_then(|at| i64::try_from(at).ok());
                row.last_at = row.last_at.max(last);
            });
        }
        Piece::Name(name) => {
            let user = address(name.id.as_deref()).filter(Jid::is_user);
            let text = name
                .pushname
                .filter(|text| !text.is_empty() && text.len() <= NAME_BYTES);
            if let (Some(user), Some(text)) = (user, text) {
                settings::contact(cx, &user, |row| row.push_name = Some(text));
            }
        }
        Piece::Lid(pair) => {
            let pn = address(pair.pn_jid.as_deref()).filter(Jid::is_pn);
            let lid = address(pair.lid_jid.as_deref()).filter(Jid::is_lid);
            if let (Some(pn), Some(lid)) = (pn, lid) {
                settings::learn(cx, &pn, Some(&lid));
            }
        }
    }
}

/// Keeps the secret of a message: votes, reactions and edits that come later refer to it.
fn secret(cx: &mut Context, chat: &Jid, info: &WebMessageInfo) {
    let Some(key) = &info.key else { return };
    let inner = || {
        let message = e2e::Message::decode(info.message.as_deref()?).ok()?;
        secret_in(&message)
    };
    let secret = info.message_secret.clone().or_else(inner);
    let Some(secret) = secret else { return };
    let participant = key.participant.as_deref().or(info.participant.as_deref());
    let sender = if key.from_me() {
        cx.account.address().map(Jid::bare)
    } else if participant.is_some() {
        address(participant)
    } else {
        Some(chat.clone())
    };
    let (Some(sender), Some(id)) = (sender, key.id.as_deref()) else {
        return;
    };
    keep_secret(cx, chat, &sender, id, secret);
}

/// The secret that a message carries: votes, reactions and edits that come later refer to it.
pub(in super::super) fn secret_in(message: &e2e::Message) -> Option<Vec<u8>> {
    let context = message.message_context_info.as_deref()?;
    let context = e2e::MessageContextInfo::decode(context).ok()?;
    context.message_secret
}

/// Writes the row of a secret; one of another length than theirs is none.
pub(in super::super) fn keep_secret(
    cx: &mut Context,
    chat: &Jid,
    sender: &Jid,
    id: &str,
    secret: Vec<u8>,
) {
    let key = Key::MessageSecret {
        chat: chat.bare(),
        sender: sender.bare(),
        id: id.into(),
    };
    if secret.len() == SECRET_BYTES && rules::key(&key).is_ok() {
        let secret = record::MessageSecret {
            secret: Some(secret),
        };
        cx.put(key, codec::encode(&secret));
    }
}

/// An address that a row can have.
pub(super) fn address(text: Option<&str>) -> Option<Jid> {
    let jid: Jid = text?.parse().ok()?;
    let jid = jid.bare();
    rules::key(&Key::ChatSettings(jid.clone()))
        .is_ok()
        .then_some(jid)
}
