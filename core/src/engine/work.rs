//! Work that needs rows, in the order in which it was accepted.
//!
//! Each piece states the rows it needs; all of them are asked for at once when it is queued, and the head is asked
//! again before it runs, because what was found can decide what else is needed. Nothing overtakes the head: what a
//! stanza does to the account never depends on how fast the database was.

use crate::{
    flow::{
        CommandId, Content, Context, SendRequest, devices, pre_keys,
        query::Answer,
        receive,
        retry::{Asked, Retries},
        send::{self, Sends},
        sync::{Sync, SyncWork},
    },
    jid::Jid,
    state::{Key, MessageId, Row},
    wire::node::Node,
};
use std::collections::VecDeque;

/// Rows are wanted ahead of need while the next load has fewer than this.
const WANTED: usize = crate::limits::ROWS_AHEAD;

/// One piece of work.
#[derive(Debug)]
pub(super) enum Work {
    Message(Node),
    /// What is left of a receipt behind so many of its ids.
    Receipt(Node, usize),
    Retry {
        stanza: Node,
        asked: Asked,
    },
    Accept(Option<CommandId>, SendRequest),
    /// The next step of a send.
    Send(MessageId),
    UploadPreKeys,
    DevicesAnswered(Vec<Jid>, Answer),
    BundlesAnswered(Vec<Jid>, Answer),
    /// Settings and history.
    Sync(SyncWork),
}

/// The machines that know what work needs.
#[derive(Clone, Copy)]
pub(super) struct Machines<'a> {
    pub(super) sends: &'a Sends,
    pub(super) retries: &'a Retries,
    pub(super) sync: &'a Sync,
}

impl Work {
    fn needs(&self, cx: &mut Context, machines: Machines<'_>) -> Vec<Key> {
        let Machines {
            sends,
            retries,
            sync,
        } = machines;
        match self {
            Self::Message(stanza) => receive::needs(cx, stanza),
            Self::Receipt(stanza, from) => sends.receipt_needs(stanza, *from),
            Self::Retry { stanza, .. } => retries.needs(cx, sends, stanza),
            Self::Accept(_, request) => Sends::accept_needs(request),
            Self::Send(id) => sends.needs(cx, id),
            Self::UploadPreKeys => pre_keys::needs(cx),
            Self::DevicesAnswered(..) => Vec::new(),
            Self::BundlesAnswered(devices, _) => devices::bundle_needs(devices),
            Self::Sync(work) => sync.needs(cx, work),
        }
    }
}

impl Work {
    /// What it holds in memory, roughly.
    fn bytes(&self) -> usize {
        match self {
            Self::Message(stanza)
            | Self::Receipt(stanza, _)
            | Self::Retry { stanza, .. }
            | Self::DevicesAnswered(_, Answer::Result(stanza))
            | Self::BundlesAnswered(_, Answer::Result(stanza))
            | Self::Sync(
                SyncWork::Answered(_, _, Answer::Result(stanza))
                | SyncWork::PhoneRetry(stanza)
                | SyncWork::Reuploaded(_, Some(stanza)),
            ) => weight(stanza),
            Self::Accept(_, request) => match &request.content {
                Content::Text(text) => NODE + text.len(),
                Content::Message(bytes) => NODE + bytes.len(),
            },
            _ => NODE,
        }
    }
}

/// What a node or an attribute costs beside its content.
const NODE: usize = 100;
const ATTRIBUTE: usize = 60;

fn weight(node: &Node) -> usize {
    let content = node.data().map_or(0, <[u8]>::len);
    let children: usize = node.nodes().iter().map(weight).sum();
    NODE + ATTRIBUTE * node.attrs.len() + content + children
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    queue: VecDeque<(Work, usize)>,
    bytes: usize,
}

impl WorkQueue {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What the stanzas and requests in it hold, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Accepts work, and asks for the rows it is known to need as long as there is room for them.
    pub(super) fn push(&mut self, cx: &mut Context, work: Work, machines: Machines<'_>) {
        if cx.rows.has_room() && cx.wanted.len() < WANTED {
            let needs = work.needs(cx, machines);
            want(cx, needs);
        }
        self.push_back(work);
    }

    fn push_back(&mut self, work: Work) {
        let bytes = work.bytes();
        self.bytes += bytes;
        self.queue.push_back((work, bytes));
    }

    /// Puts the rest of the head back: nothing comes between the two.
    pub(super) fn push_front(&mut self, work: Work) {
        let bytes = work.bytes();
        self.bytes += bytes;
        self.queue.push_front((work, bytes));
    }

    fn pop(&mut self) -> Option<Work> {
        let (work, bytes) = self.queue.pop_front()?;
        self.bytes -= bytes;
        Some(work)
    }

    /// Gives everything up; returns the commands among it.
    pub(super) fn abandon(&mut self) -> Vec<CommandId> {
        let asked = |(work, _): &(Work, usize)| match work {
            Work::Accept(command, _) => *command,
            Work::Sync(SyncWork::Change(command, ..)) => Some(*command),
            _ => None,
        };
        let commands = self.queue.iter().filter_map(asked).collect();
        *self = Self::default();
        commands
    }

    /// Accepts the next step of a send, once.
    pub(super) fn push_send(&mut self, cx: &mut Context, id: MessageId, machines: Machines<'_>) {
        let queued = self
            .queue
            .iter()
            .any(|(work, _)| matches!(work, Work::Send(other) if *other == id));
        if !queued {
            self.push(cx, Work::Send(id), machines);
        }
    }

    /// Whether requests from the mailbox are waiting here: it need not be read again yet.
    pub(super) fn has_mail(&self) -> bool {
        self.queue
            .iter()
            .any(|(work, _)| matches!(work, Work::Accept(None, _)))
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
            if cx.rows.has_room() && cx.wanted.len() < WANTED {
                want(cx, Sends::accept_needs(&request));
            }
            self.push_back(Work::Accept(None, request));
        }
    }

    /// The head, if everything it needs is at hand; else what is missing is asked for.
    pub(super) fn next(&mut self, cx: &mut Context, machines: Machines<'_>) -> Option<Work> {
        let (head, _) = self.queue.front()?;
        let needs = head.needs(cx, machines);
        if needs.iter().all(|key| cx.rows.knows(key)) {
            return self.pop();
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
