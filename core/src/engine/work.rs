//! Work that needs rows, in the order in which it was accepted.
//!
//! Each piece states the rows it needs; all of them are asked for at once when it is queued, and the head is asked
//! again before it runs, because what was found can decide what else is needed. Nothing overtakes the head: what a
//! stanza does to the account never depends on how fast the database was.

use crate::{
    flow::{
        CommandId, Context, SendRequest, devices, pre_keys,
        query::Answer,
        receive,
        retry::Retries,
        send::{self, Sends},
    },
    jid::Jid,
    state::{Key, MessageId, Row},
    wire::node::Node,
};
use std::collections::VecDeque;

/// One piece of work.
#[derive(Debug)]
pub(super) enum Work {
    Message(Node),
    Receipt(Node),
    Retry {
        stanza: Node,
        fetched: bool,
    },
    Accept(Option<CommandId>, SendRequest),
    /// The next step of a send.
    Send(MessageId),
    UploadPreKeys,
    DevicesAnswered(Vec<Jid>, Answer),
    BundlesAnswered(Vec<Jid>, Answer),
}

impl Work {
    fn needs(&self, cx: &mut Context, sends: &Sends, retries: &Retries) -> Vec<Key> {
        match self {
            Self::Message(stanza) => receive::needs(cx, stanza),
            Self::Receipt(stanza) => sends.receipt_needs(stanza),
            Self::Retry { stanza, .. } => retries.needs(cx, sends, stanza),
            Self::Accept(_, request) => Sends::accept_needs(request),
            Self::Send(id) => sends.needs(cx, id),
            Self::UploadPreKeys => pre_keys::needs(cx),
            Self::DevicesAnswered(..) => Vec::new(),
            Self::BundlesAnswered(devices, _) => devices::bundle_needs(devices),
        }
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    queue: VecDeque<Work>,
}

impl WorkQueue {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Accepts work, and asks for the rows it is known to need.
    pub(super) fn push(&mut self, cx: &mut Context, work: Work, sends: &Sends, retries: &Retries) {
        let needs = work.needs(cx, sends, retries);
        want(cx, needs);
        self.queue.push_back(work);
    }

    /// Accepts the next step of a send, once.
    pub(super) fn push_send(
        &mut self,
        cx: &mut Context,
        id: MessageId,
        sends: &Sends,
        retries: &Retries,
    ) {
        let queued = self
            .queue
            .iter()
            .any(|work| matches!(work, Work::Send(other) if *other == id));
        if !queued {
            self.push(cx, Work::Send(id), sends, retries);
        }
    }

    /// Whether requests from the mailbox are waiting here: it need not be read again yet.
    pub(super) fn has_mail(&self) -> bool {
        self.queue
            .iter()
            .any(|work| matches!(work, Work::Accept(None, _)))
    }

    /// Accepts requests from the mailbox, in the order in which they were made. A request that cannot be read is
    /// deleted and reported.
    pub(super) fn mailbox(&mut self, cx: &mut Context, rows: Vec<(Key, Row)>) {
        let mut requests = Vec::new();
        for (key, row) in rows {
            let Key::Mailbox(id) = &key else { continue };
            let request = match &row {
                Row::Present(record) => send::mailbox_from(id.clone(), record).ok(),
                _ => None,
            };
            match request {
                Some(request) => requests.push(request),
                None => {
                    cx.corrupt(key.clone());
                    cx.delete(key);
                }
            }
        }
        requests.sort_by_key(|(order, _)| *order);
        for (_, request) in requests {
            want(cx, Sends::accept_needs(&request));
            self.queue.push_back(Work::Accept(None, request));
        }
    }

    /// The head, if everything it needs is at hand; else what is missing is asked for.
    pub(super) fn next(
        &mut self,
        cx: &mut Context,
        sends: &Sends,
        retries: &Retries,
    ) -> Option<Work> {
        let needs = self.queue.front()?.needs(cx, sends, retries);
        if needs.iter().all(|key| cx.rows.knows(key)) {
            return self.queue.pop_front();
        }
        want(cx, needs);
        None
    }
}

fn want(cx: &mut Context, keys: Vec<Key>) {
    for key in keys {
        if !cx.rows.knows(&key) && !cx.rows.is_loading(&key) {
            cx.wanted.insert(key);
        }
    }
}
