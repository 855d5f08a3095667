//! Events on their way to the consumer.
//!
//! Every event is a row until the consumer acknowledges its number. Events are shown in order; when the consumer is
//! slow, at most a window of them is out and the rest waits in the store, so that memory stays bounded however long
//! somebody sleeps. A new engine starts by showing what was never acknowledged.

use super::{CommandError, Context, Event, Message};
use crate::{
    jid::Jid,
    proto::{e2e, record},
    state::{
        EventSeq, Key, MessageId, Record, Row,
        codec::{self, RowError},
    },
};
use prost::Message as _;
use std::collections::VecDeque;

/// What has been shown and what has been acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// The last event shown, or skipped because the store has lost it.
    shown: EventSeq,
    /// Shown and not acknowledged, oldest first: no more than the window.
    out: VecDeque<EventSeq>,
    /// A scan for more is under way.
    pub(crate) scanning: bool,
}

impl Inbox {
    /// Whether `seq` may be shown right now; notes it as shown if so.
    pub(crate) fn takes(&mut self, seq: EventSeq, window: u32) -> bool {
        let next = !self.scanning && seq == self.shown.next();
        let takes = next && self.has_room(window);
        if takes {
            self.shown = seq;
            self.out.push_back(seq);
        }
        takes
    }

    /// Whether everything up to `upto` was shown.
    pub(crate) fn has_shown(&self, upto: EventSeq) -> bool {
        upto <= self.shown
    }

    fn has_room(&self, window: u32) -> bool {
        u64::try_from(self.out.len()).is_ok_and(|out| out < u64::from(window))
    }
}

/// The number after the last event there is.
fn end(cx: &Context) -> EventSeq {
    EventSeq(cx.counters.next_event.unwrap_or(1).max(1))
}

/// The rows that are events of this account: a store that makes some up is not believed.
fn genuine(cx: &mut Context, rows: Vec<(Key, Row)>) -> Vec<(EventSeq, Row)> {
    let (first, end) = (cx.inbox.shown, end(cx));
    let mut events = Vec::new();
    for (key, row) in rows {
        match key {
            Key::Inbox(seq) if seq > first && seq < end => events.push((seq, row)),
            key => cx.corrupt(key),
        }
    }
    events.sort_by_key(|(seq, _)| *seq);
    events.dedup_by_key(|(seq, _)| *seq);
    events
}

/// Takes in the rows that a previous owner left, and shows the first of them.
pub(crate) fn start(cx: &mut Context, rows: Vec<(Key, Row)>) {
    cx.inbox = Inbox::default();
    let rows = genuine(cx, rows);
    let first = next_of(cx, &rows);
    cx.inbox.shown = EventSeq(first.0 - 1);
    take(cx, rows);
}

/// The first event behind those that were shown, of those in `rows` and those at hand: what has just been written need
/// not be in the store yet.
fn next_of(cx: &Context, rows: &[(EventSeq, Row)]) -> EventSeq {
    let at_hand = match cx.rows.known_after(&Key::Inbox(cx.inbox.shown)) {
        Some(Key::Inbox(seq)) => Some(*seq),
        _ => None,
    };
    let found = rows.first().map(|(seq, _)| *seq);
    [found, at_hand]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(end(cx))
}

/// Takes in the answer to a scan. Rows that should be there and are not were lost by the store: their numbers are
/// skipped, and said so, rather than waited for. Numbers that were skipped on purpose have an event behind them that
/// says it to everybody.
pub(crate) fn scanned(cx: &mut Context, rows: Vec<(Key, Row)>) {
    cx.inbox.scanning = false;
    let rows = genuine(cx, rows);
    let next = next_of(cx, &rows);
    if next > cx.inbox.shown.next() {
        if !is_after_a_gap(cx, &rows, next) {
            cx.corrupt(Key::Inbox(cx.inbox.shown.next()));
        }
        cx.inbox.shown = EventSeq(next.0 - 1);
    }
    take(cx, rows);
}

/// Whether the event says itself that the numbers between the last shown one and its own were never given.
fn is_after_a_gap(cx: &mut Context, rows: &[(EventSeq, Row)], seq: EventSeq) -> bool {
    let key = Key::Inbox(seq);
    let record = match rows.first() {
        Some((found, Row::Present(record))) if *found == seq => Some(record),
        _ if cx.rows.knows(&key) => cx.rows.get(&key),
        _ => None,
    };
    let event = record.and_then(|record| codec::decode(record).and_then(from_row).ok());
    matches!(event, Some(Event::HistoryLost { after, .. }) if after <= cx.inbox.shown)
}

fn take(cx: &mut Context, rows: Vec<(EventSeq, Row)>) {
    let window = cx.config.limits.events_in_flight.get();
    for (seq, row) in rows {
        if seq != cx.inbox.shown.next() || !cx.inbox.takes(seq, window) {
            continue;
        }
        match row {
            Row::Present(record) => show(cx, seq, &record),
            Row::Absent | Row::Corrupt => cx.corrupt(Key::Inbox(seq)),
        }
    }
}

/// Shows one stored event. If the row is unreadable its number is skipped, and said so: consumers see a gap only then.
fn show(cx: &mut Context, seq: EventSeq, record: &Record) {
    match codec::decode(record).and_then(from_row) {
        Ok(event) => cx.show(seq, event),
        Err(_) => cx.corrupt(Key::Inbox(seq)),
    }
}

/// Shows what there is room for. Returns `true` if the store has to be asked for it.
pub(crate) fn advance(cx: &mut Context) -> bool {
    let window = cx.config.limits.events_in_flight.get();
    loop {
        let seq = cx.inbox.shown.next();
        if seq >= end(cx) || cx.inbox.scanning || !cx.inbox.has_room(window) {
            return false;
        }
        let key = Key::Inbox(seq);
        if !cx.rows.knows(&key) {
            // Rows leave memory only when they are durable, so the store has it.
            return true;
        }
        let record = cx.rows.get(&key).cloned();
        if !cx.inbox.takes(seq, window) {
            return false;
        }
        match record {
            Some(record) => show(cx, seq, &record),
            None => cx.corrupt(key),
        }
    }
}

/// Where the next scan starts.
pub(crate) fn scan_from(cx: &mut Context) -> Option<Key> {
    cx.inbox.scanning = true;
    (cx.inbox.shown.0 > 0).then_some(Key::Inbox(cx.inbox.shown))
}

/// The consumer has everything up to `upto`.
pub(crate) fn acknowledge(cx: &mut Context, upto: EventSeq) -> Result<(), CommandError> {
    if !cx.inbox.has_shown(upto) {
        return Err(CommandError::Invalid(
            "an event that was not shown cannot be acknowledged",
        ));
    }
    while let Some(seq) = cx.inbox.out.front().copied().filter(|seq| *seq <= upto) {
        cx.inbox.out.pop_front();
        cx.delete(Key::Inbox(seq));
    }
    Ok(())
}

/// The row of an event.
pub(crate) fn to_row(event: &Event) -> record::Event {
    let progress = |id: &MessageId, jid: &Jid, at: i64, code: u16| {
        Some(record::Progress {
            id: Some(id.to_string()),
            jid: Some(jid.to_string()),
            other: None,
            at: Some(at),
            code: Some(code.into()),
        })
    };
    let mut row = record::Event::default();
    match event {
        Event::Linked { jid, lid, platform } => {
            row.linked = Some(record::Linked {
                jid: Some(jid.to_string()),
                lid: lid.as_ref().map(ToString::to_string),
                platform: Some(platform.clone()),
            });
        }
        Event::LoggedOut { code } => row.logged_out = Some((*code).into()),
        Event::Message(message) => {
            row.received = Some(record::Received {
                id: Some(message.id.to_string()),
                chat: Some(message.chat.to_string()),
                sender: Some(message.sender.to_string()),
                sender_alt: message.sender_alt.as_ref().map(ToString::to_string),
                from_me: Some(message.from_me),
                at: Some(message.at),
                push_name: message.push_name.clone(),
                offline: Some(message.offline),
                peer: Some(message.peer),
                content: Some(message.content.to_vec()),
            });
        }
        Event::Sent { id, to, at } => row.sent = progress(id, to, *at, 0),
        Event::Failed { id, to, code } => row.failed = progress(id, to, 0, *code),
        Event::Delivered { id, by, at } => row.delivered = progress(id, by, *at, 0),
        Event::Read { id, by, at } => row.read = progress(id, by, *at, 0),
        Event::Undecryptable { id, chat, sender } => {
            row.undecryptable = progress(id, chat, 0, 0).map(|mut progress| {
                progress.other = Some(sender.to_string());
                progress
            });
        }
        Event::IdentityChanged { user } => row.identity_changed = Some(user.to_string()),
        Event::Setting(..)
        | Event::SettingsReplaced { .. }
        | Event::SyncFailed { .. }
        | Event::History(..)
        | Event::HistoryEnded { .. } => super::sync::to_row(event, &mut row),
        Event::HistoryLost { after, losses } => {
            row.history_lost = Some(record::HistoryLost {
                after: Some(after.0),
                losses: Some(*losses),
            });
        }
    }
    row
}

/// The event of a row.
pub(crate) fn from_row(row: record::Event) -> Result<Event, RowError> {
    struct Parts {
        id: MessageId,
        jid: Jid,
        other: Option<Jid>,
        at: i64,
        code: u16,
    }
    fn jid(text: Option<String>) -> Result<Jid, RowError> {
        text.and_then(|text| text.parse().ok())
            .ok_or(RowError::Malformed)
    }
    fn maybe(text: Option<String>) -> Result<Option<Jid>, RowError> {
        text.map(|text| text.parse().map_err(|_| RowError::Malformed))
            .transpose()
    }
    fn parts(progress: record::Progress) -> Result<Parts, RowError> {
        Ok(Parts {
            id: progress.id.ok_or(RowError::Malformed)?.into(),
            jid: jid(progress.jid)?,
            other: maybe(progress.other)?,
            at: progress.at.unwrap_or(0),
            code: progress
                .code
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
        })
    }
    Ok(if let Some(linked) = row.linked {
        Event::Linked {
            jid: jid(linked.jid)?,
            lid: maybe(linked.lid)?,
            platform: linked.platform.unwrap_or_default(),
        }
    } else if let Some(code) = row.logged_out {
        Event::LoggedOut {
            code: u16::try_from(code).unwrap_or(0),
        }
    } else if let Some(received) = row.received {
        let content = received.content.unwrap_or_default();
        Event::Message(Box::new(Message {
            id: received.id.ok_or(RowError::Malformed)?.into(),
            chat: jid(received.chat)?,
            sender: jid(received.sender)?,
            sender_alt: maybe(received.sender_alt)?,
            from_me: received.from_me.unwrap_or(false),
            at: received.at.unwrap_or(0),
            push_name: received.push_name,
            offline: received.offline.unwrap_or(false),
            peer: received.peer.unwrap_or(false),
            text: text_of(&content),
            content: content.into(),
        }))
    } else if let Some(progress) = row.sent {
        let Parts { id, jid, at, .. } = parts(progress)?;
        Event::Sent { id, to: jid, at }
    } else if let Some(progress) = row.failed {
        let Parts { id, jid, code, .. } = parts(progress)?;
        Event::Failed { id, to: jid, code }
    } else if let Some(progress) = row.delivered {
        let Parts { id, jid, at, .. } = parts(progress)?;
        Event::Delivered { id, by: jid, at }
    } else if let Some(progress) = row.read {
        let Parts { id, jid, at, .. } = parts(progress)?;
        Event::Read { id, by: jid, at }
    } else if let Some(progress) = row.undecryptable {
        let Parts { id, jid, other, .. } = parts(progress)?;
        Event::Undecryptable {
            id,
            chat: jid,
            sender: other.ok_or(RowError::Malformed)?,
        }
    } else if let Some(user) = row.identity_changed {
        Event::IdentityChanged {
            user: user.parse().map_err(|_| RowError::Malformed)?,
        }
    } else if let Some(lost) = row.history_lost {
        Event::HistoryLost {
            after: EventSeq(lost.after.ok_or(RowError::Malformed)?),
            losses: lost.losses.unwrap_or(1),
        }
    } else {
        return super::sync::from_row(row);
    })
}

/// The text of a serialized message, if it is one: plain, extended, or inside the wrappers that timers and edits use.
pub(crate) fn text_of(content: &[u8]) -> Option<String> {
    let mut message = e2e::Message::decode(content).ok()?;
    // A wrapper in a wrapper in a wrapper is as deep as clients go.
    for _ in 0..4 {
        if let Some(text) = message.conversation.filter(|text| !text.is_empty()) {
            return Some(text);
        }
        if let Some(text) = message
            .extended_text_message
            .and_then(|extended| extended.text)
        {
            return Some(text);
        }
        let wrapped = [
            message.ephemeral_message,
            message.view_once_message,
            message.view_once_message_v2,
            message.view_once_message_v2_extension,
            message.document_with_caption_message,
        ];
        message = *wrapped
            .into_iter()
            .flatten()
            .find_map(|wrapper| wrapper.message)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appstate::{
        Collection,
        action::{Action, MuteEnd},
    };
    use crate::flow::{HistoryKind, HistoryMessage, HistoryPart, Setting};

    fn text(text: &str) -> Vec<u8> {
        e2e::Message {
            conversation: Some(text.into()),
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn every_event_survives_its_row() {
        let jid: Jid = "15550000001:1@s.whatsapp.net".parse().unwrap();
        let lid: Jid = "100000000000001:1@lid".parse().unwrap();
        let id = MessageId::from("3EB0");
        let message = Message {
            id: id.clone(),
            chat: lid.bare(),
            sender: lid.clone(),
            sender_alt: Some(jid.bare()),
            from_me: true,
            at: 5,
            push_name: Some("Zoë".into()),
            offline: true,
            peer: false,
            text: Some("hi".into()),
            content: text("hi").into(),
        };
        for event in [
            Event::Linked {
                jid: jid.clone(),
                lid: Some(lid.clone()),
                platform: "android".into(),
            },
            Event::LoggedOut { code: 401 },
            Event::Message(Box::new(message)),
            Event::Sent {
                id: id.clone(),
                to: jid.bare(),
                at: 7,
            },
            Event::Failed {
                id: id.clone(),
                to: jid.bare(),
                code: 463,
            },
            Event::Delivered {
                id: id.clone(),
                by: jid.clone(),
                at: 8,
            },
            Event::Read {
                id: id.clone(),
                by: jid.clone(),
                at: 9,
            },
            Event::Undecryptable {
                id,
                chat: lid.bare(),
                sender: lid.clone(),
            },
            Event::IdentityChanged { user: lid.clone() },
            Event::Setting(Box::new(Setting {
                collection: Collection::RegularHigh,
                action: Action::Mute {
                    chat: lid.bare(),
                    until: Some(MuteEnd::At(5)),
                },
                at: 7,
                own: true,
            })),
            Event::Setting(Box::new(Setting {
                collection: Collection::CriticalUnblockLow,
                action: Action::Contact {
                    user: lid.bare(),
                    card: None,
                },
                at: 7,
                own: false,
            })),
            Event::Setting(Box::new(Setting {
                collection: Collection::Regular,
                action: Action::Unknown {
                    index: b"[\"nux\"]".to_vec().into(),
                    data: vec![0x12, 0x02, 0x08, 0x09].into(),
                    removed: true,
                },
                at: 9,
                own: false,
            })),
            Event::SettingsReplaced {
                collection: Collection::Regular,
                version: 7,
                settings: 9,
            },
            Event::SyncFailed {
                collection: Collection::Regular,
                why: "a reason".into(),
            },
            Event::History(Box::new(HistoryPart {
                source: "3EB0".into(),
                kind: HistoryKind::Recent,
                part: 3,
                messages: vec![HistoryMessage {
                    chat: lid.bare(),
                    info: vec![1, 2, 3].into(),
                }],
            })),
            Event::HistoryEnded {
                source: "3EB0".into(),
                kind: HistoryKind::Other(99),
                items: 7,
                why: Some("a reason".into()),
            },
            Event::HistoryLost {
                after: EventSeq(0),
                losses: 2,
            },
        ] {
            assert_eq!(from_row(to_row(&event)), Ok(event));
        }
        assert_eq!(from_row(record::Event::default()), Err(RowError::Malformed));
    }

    #[test]
    fn text_is_found_inside_wrappers_but_not_for_ever() {
        assert_eq!(text_of(&text("plain")).as_deref(), Some("plain"));
        let wrap = |inner: e2e::Message| e2e::Message {
            ephemeral_message: Some(Box::new(e2e::FutureProofMessage {
                message: Some(Box::new(inner)),
            })),
            ..Default::default()
        };
        let mut message = e2e::Message {
            conversation: Some("deep".into()),
            ..Default::default()
        };
        for _ in 0..3 {
            message = wrap(message);
        }
        assert_eq!(text_of(&message.encode_to_vec()).as_deref(), Some("deep"));
        message = wrap(message);
        assert_eq!(text_of(&message.encode_to_vec()), None);
        assert_eq!(text_of(b"\xff\xff"), None);
    }
}
