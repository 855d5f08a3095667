//! Events as JSON and as lines for people; QR codes.

use baton_core::{
    flow::{Connection, Event, Notice},
    state::EventSeq,
};
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Write as _};

/// An event as a JSON object. Every event has `account`, `seq` and `event`; the rest depends on the kind.
#[must_use]
pub fn event_json(account: &str, seq: EventSeq, event: &Event) -> Value {
    let mut object = match event {
        Event::Linked { jid, lid, platform } => {
            json!({ "event": "linked", "jid": jid.to_string(), "lid": lid.as_ref().map(ToString::to_string),
                    "platform": platform })
        }
        Event::LoggedOut { code } => json!({ "event": "logged_out", "code": code }),
        Event::Message(message) => json!({
            "event": "message",
            "id": message.id.as_str(),
            "chat": message.chat.to_string(),
            "sender": message.sender.to_string(),
            "sender_alt": message.sender_alt.as_ref().map(ToString::to_string),
            "from_me": message.from_me,
            "at": message.at,
            "push_name": message.push_name,
            "offline": message.offline,
            "peer": message.peer,
            "text": message.text,
        }),
        Event::Sent { id, to, at } => {
            json!({ "event": "sent", "id": id.as_str(), "to": to.to_string(), "at": at })
        }
        Event::Failed { id, to, code } => {
            json!({ "event": "failed", "id": id.as_str(), "to": to.to_string(), "code": code })
        }
        Event::Delivered { id, by, at } => {
            json!({ "event": "delivered", "id": id.as_str(), "by": by.to_string(), "at": at })
        }
        Event::Read { id, by, at } => {
            json!({ "event": "read", "id": id.as_str(), "by": by.to_string(), "at": at })
        }
        Event::Undecryptable { id, chat, sender } => {
            json!({ "event": "undecryptable", "id": id.as_str(), "chat": chat.to_string(),
                    "sender": sender.to_string() })
        }
        Event::IdentityChanged { user } => {
            json!({ "event": "identity_changed", "user": user.to_string() })
        }
        Event::HistoryLost { after, losses } => {
            json!({ "event": "history_lost", "after": after.0, "losses": losses })
        }
        Event::Setting(setting) => json!({
            "event": "setting",
            "collection": setting.collection.as_str(),
            "kind": setting.action.kind(),
            "at": setting.at,
            "own": setting.own,
        }),
        Event::SettingsReplaced {
            collection,
            version,
            settings,
        } => json!({
            "event": "settings_replaced",
            "collection": collection.as_str(),
            "version": version,
            "settings": settings,
        }),
        Event::SyncFailed { collection, why } => {
            json!({ "event": "sync_failed", "collection": collection.as_str(), "why": why })
        }
        Event::History(part) => json!({
            "event": "history",
            "source": part.source.as_str(),
            "part": part.part,
            "messages": part.messages.len(),
        }),
        Event::HistoryEnded {
            source, items, why, ..
        } => {
            json!({ "event": "history_ended", "source": source.as_str(), "items": items, "why": why })
        }
        _ => json!({ "event": "other" }),
    };
    object["account"] = account.into();
    object["seq"] = seq.0.into();
    object
}

/// An event as a line for people.
#[must_use]
pub fn event_line(seq: EventSeq, event: &Event) -> String {
    let line = match event {
        Event::Linked { jid, .. } => format!("linked       {jid}"),
        Event::LoggedOut { code } => format!("logged out   code {code}"),
        Event::Message(message) => {
            let text = message.text.as_deref().unwrap_or("(not text)");
            let direction = if message.from_me { "to" } else { "from" };
            format!(
                "message      {direction} {}: {}",
                message.chat,
                printable(text)
            )
        }
        Event::Sent { id, to, .. } => format!("sent         {id} to {to}"),
        Event::Failed { id, to, code } => format!("failed       {id} to {to}, code {code}"),
        Event::Delivered { id, by, .. } => format!("delivered    {id} to {by}"),
        Event::Read { id, by, .. } => format!("read         {id} by {by}"),
        Event::Undecryptable { id, sender, .. } => format!("unreadable   {id} from {sender}"),
        Event::IdentityChanged { user } => format!("new identity {user}"),
        Event::HistoryLost { after, .. } => format!(
            "history lost the database went back in time; numbers up to {} are whole",
            after.0
        ),
        _ => "something new".to_owned(),
    };
    format!("{:>6}  {line}", seq.0)
}

/// Text from strangers must not move the cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A notice as a JSON object with `account` and `event`, where it is of use to programs.
#[must_use]
pub fn notice_json(account: &str, notice: &Notice) -> Option<Value> {
    let mut object = match notice {
        Notice::Qr { text, valid } => {
            json!({ "event": "qr", "qr": text, "valid_seconds": valid.0 / 1_000_000 })
        }
        Notice::Connection(state) => {
            let mut object = json!({ "event": "connection", "state": connection(state) });
            if let Connection::Waiting { pause, why } = state {
                object["why"] = (*why).into();
                object["seconds"] = (pause.0 as f64 / 1e6).into();
            }
            object
        }
        Notice::CorruptRow(key) => json!({ "event": "corrupt_row", "row": format!("{key:?}") }),
        Notice::RetryAsked { id, reason, count } => {
            json!({ "event": "retry_asked", "id": id.as_str(), "reason": reason, "count": count })
        }
        Notice::Protocol(what) => json!({ "event": "protocol", "what": what }),
        _ => return None,
    };
    object["account"] = account.into();
    Some(object)
}

/// One word for a state of the connection.
#[must_use]
pub const fn connection(state: &Connection) -> &'static str {
    match state {
        Connection::Connecting => "connecting",
        Connection::Linking => "linking",
        Connection::LoggedIn => "logged_in",
        Connection::Online => "online",
        Connection::Waiting { .. } => "waiting",
        _ => "other",
    }
}

/// Writes one line to standard output. An error means that nobody reads any more.
pub fn line(text: impl std::fmt::Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Writes columns, each as wide as its widest cell.
pub fn table<const N: usize>(rows: &[[String; N]]) -> std::io::Result<()> {
    let width = |n: usize| {
        let cells = rows.iter().filter_map(|row| row.get(n));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let text = cells.map(|(cell, width)| format!("{cell:<width$}"));
        let text: Vec<String> = text.collect();
        line(text.join("  ").trim_end())?;
    }
    Ok(())
}

/// Draws QR codes on the terminal, each in the place of the one before.
#[derive(Debug, Default)]
pub struct QrScreen {
    lines: usize,
}

impl QrScreen {
    /// Draws `text`, with `caption` below.
    pub fn show(&mut self, text: &str, caption: &str) -> std::io::Result<()> {
        let drawing = match QrCode::with_error_correction_level(text, EcLevel::L) {
            // Light modules are drawn: most terminals are dark, and the quiet zone has to be light.
            Ok(code) => code
                .render::<Dense1x2>()
                .dark_color(Dense1x2::Light)
                .light_color(Dense1x2::Dark)
                .build(),
            Err(error) => format!("(the code cannot be drawn: {error})\n{text}"),
        };
        if self.lines > 0 && std::io::stdout().is_terminal() {
            // Up to where the last one began, and clear from there.
            line(format_args!(
                "\x1b[{}A\x1b[J{drawing}\n{caption}",
                self.lines
            ))?;
        } else {
            line(format_args!("{drawing}\n{caption}"))?;
        }
        self.lines = drawing.lines().count() + caption.lines().count();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::flow::Message;

    #[test]
    fn text_of_strangers_cannot_move_the_cursor() {
        let message = Message {
            id: "A".into(),
            chat: "15550000001@s.whatsapp.net".parse().unwrap(),
            sender: "15550000001:3@s.whatsapp.net".parse().unwrap(),
            sender_alt: None,
            from_me: false,
            at: 0,
            push_name: None,
            offline: false,
            peer: false,
            text: Some("a\x1b[2Jb\nc".into()),
            content: Default::default(),
        };
        let line = event_line(EventSeq(7), &Event::Message(Box::new(message)));
        assert_eq!(
            line,
            "     7  message      from 15550000001@s.whatsapp.net: a [2Jb c"
        );
    }
}
