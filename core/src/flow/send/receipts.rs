//! What recipients say of messages of ours.

use super::Sends;
use crate::{
    flow::{Context, Event},
    jid::Jid,
    proto::record::{Outbound, outbound::State},
    state::{Key, MessageId, codec, rules},
    wire::node::Node,
};

/// Ids of a receipt that are looked at in one step.
const RECEIPT_IDS: usize = 16;

impl Sends {
    /// Rows that [`receipt`](Self::receipt) reads.
    pub(crate) fn receipt_needs(&self, stanza: &Node, from: usize) -> Vec<Key> {
        receipt_ids(stanza)
            .skip(from)
            .take(RECEIPT_IDS)
            .filter(|id| !self.jobs.contains_key(id))
            .map(Key::Sent)
            .collect()
    }

    /// `<receipt>` of a recipient: so many ids from `from` on, lest a long list bring all its rows into memory at once.
    /// Returns where to go on; the receipt is acknowledged when nothing is left.
    pub(crate) fn receipt(
        &mut self,
        cx: &mut Context,
        stanza: &Node,
        from: usize,
    ) -> Option<usize> {
        let by = stanza
            .get_jid("participant")
            .or_else(|| stanza.get_jid("from"));
        let state = match stanza.get_string("type").as_deref() {
            None | Some("" | "inactive" | "delivery") => Some(State::Delivered),
            Some("read" | "played") => Some(State::Read),
            _ => None,
        };
        // What our own devices received or read says nothing about the recipient.
        if let (Some(by), Some(state)) = (by.filter(|by| !cx.account.is_mine(by)), state) {
            let at = stanza
                .get_u64("t")
                .and_then(|t| i64::try_from(t).ok())
                .unwrap_or_else(|| cx.unix());
            for id in receipt_ids(stanza).skip(from).take(RECEIPT_IDS) {
                self.progress(cx, &id, &by, state, at);
            }
            let next = from + RECEIPT_IDS;
            if receipt_ids(stanza).nth(next).is_some() {
                return Some(next);
            }
        }
        cx.acknowledge(stanza, None);
        None
    }

    fn progress(&mut self, cx: &mut Context, id: &MessageId, by: &Jid, state: State, at: i64) {
        // A receipt proves that the service had the message, even if its ack was lost.
        if self
            .jobs
            .get(id)
            .is_some_and(|job| job.row.state() == State::Sealed)
        {
            self.sent(cx, id, at);
        }
        let key = Key::Sent(id.clone());
        if !cx.rows.knows(&key) {
            return;
        }
        let Some(mut row) = cx.read::<Outbound>(&key) else {
            return;
        };
        let news = matches!(
            (row.state(), state),
            (State::Sent, State::Delivered | State::Read) | (State::Delivered, State::Read)
        );
        if !news {
            return;
        }
        row.state = Some(state.into());
        cx.put(key, codec::encode(&row));
        let (id, by) = (id.clone(), by.clone());
        cx.emit(match state {
            State::Read => Event::Read { id, by, at },
            _ => Event::Delivered { id, by, at },
        });
    }
}

/// All ids that a receipt speaks of: the attribute, then the list.
fn receipt_ids(stanza: &Node) -> impl Iterator<Item = MessageId> {
    let listed = stanza
        .find("list")
        .into_iter()
        .flat_map(|list| list.find_all("item"));
    stanza
        .get_string("id")
        .into_iter()
        .chain(listed.filter_map(|item| item.get_string("id")))
        .take(1024)
        .map(MessageId::from)
        // Others are not ours: we never used one that no store takes.
        .filter(|id| rules::key(&Key::Sent(id.clone())).is_ok())
}
