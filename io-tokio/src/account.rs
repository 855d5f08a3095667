//! The embedder's two ends of an account: commands go into [`Account`], events come out of [`Inbox`].

use crate::{App, Effect, Ownership};
use baton_core::{
    flow::{Command, CommandError, CommandId, Event, Notice, Reply, SendRequest},
    jid::Jid,
    state::{EventSeq, MessageId},
};
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Commands that may wait for an engine; more make the caller wait.
const COMMANDS: usize = 256;

/// Notices the consumer may be behind; more are dropped.
const PASSING: u32 = 256;

/// Pause before a command whose outcome is unknown is given to the next engine.
const AGAIN: Duration = Duration::from_millis(50);

type Answer = Result<Reply, CommandError>;

/// Gives commands to an account, whichever engine serves it at the moment. When the last clone is dropped, the account
/// shuts down.
///
/// While another process owns the account, commands wait.
#[derive(Clone, Debug)]
pub struct Account {
    commands: mpsc::Sender<(Command, oneshot::Sender<Answer>)>,
    stop: watch::Sender<bool>,
}

impl Account {
    /// Hands a command over; the answer comes later. Commands are carried out in the order in which they were posted.
    pub async fn post(&self, command: Command) -> Posted {
        let (answer, answered) = oneshot::channel();
        // If nobody is there to take it, the sender of the answer goes with it, which is the answer.
        let _ = self.commands.send((command, answer)).await;
        Posted(answered)
    }

    /// Carries out one command. [`CommandError::Unknown`] means that the engine stopped before the outcome was known;
    /// the methods below deal with that themselves.
    pub async fn command(&self, command: Command) -> Result<Reply, CommandError> {
        self.post(command).await.await
    }

    /// Links the account if it is not linked. [`Notice::Qr`] brings the codes to show meanwhile. Returns its addresses.
    pub async fn link(&self) -> Result<(Jid, Option<Jid>), CommandError> {
        match self.insist(Command::Link).await? {
            Reply::Linked { jid, lid } => Ok((jid, lid)),
            _ => Err(CommandError::Unknown),
        }
    }

    /// Hands a message over. When this returns, the message is durable and will be sent, once, whatever crashes.
    pub async fn send(&self, request: SendRequest) -> Result<MessageId, CommandError> {
        // Without an id of the caller's, a second try could be a second message.
        let answer = match request.id {
            Some(_) => self.insist(Command::Send(request)).await?,
            None => self.command(Command::Send(request)).await?,
        };
        match answer {
            Reply::Accepted { id } => Ok(id),
            _ => Err(CommandError::Unknown),
        }
    }

    /// All events up to this one are dealt with and will not be shown again.
    pub async fn acknowledge(&self, seq: EventSeq) -> Result<(), CommandError> {
        self.insist(Command::Acknowledge(seq)).await.map(drop)
    }

    /// Finishes what is in flight, closes the connection, gives the account back.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// For commands that may be repeated: until an engine has answered, or there will be none.
    async fn insist(&self, command: Command) -> Answer {
        loop {
            match self.command(command.clone()).await {
                Err(CommandError::Unknown | CommandError::Busy)
                    if !self.commands.is_closed() && !*self.stop.borrow() =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                answer => return answer,
            }
        }
    }
}

/// The answer to a command, when it is there.
#[derive(Debug)]
pub struct Posted(oneshot::Receiver<Answer>);

impl Future for Posted {
    type Output = Result<Reply, CommandError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(CommandError::Unknown)))
    }
}

/// What comes out of an account.
#[derive(Debug)]
#[non_exhaustive]
pub enum Item {
    /// Durable and numbered without gaps. Acknowledge it when it is dealt with; until then it is shown again after a
    /// restart.
    Event(EventSeq, Event),
    /// Worth knowing now.
    Notice(Notice),
    /// Who owns the account.
    Ownership(Ownership),
}

/// Takes what comes out of an account. Each event is shown once per inbox, however many engines come and go.
///
/// It holds at most as many events as the engine hands out unacknowledged
/// ([`Limits::events_in_flight`](baton_core::flow::Limits)); notices that nobody takes are dropped.
#[derive(Debug)]
pub struct Inbox {
    items: mpsc::UnboundedReceiver<Item>,
    passing: Arc<AtomicU32>,
}

impl Inbox {
    /// The next item, or `None` when the account has ended. May be dropped at any time.
    pub async fn next(&mut self) -> Option<Item> {
        let item = self.items.recv().await?;
        if !matches!(item, Item::Event(..)) {
            self.passing.fetch_sub(1, Ordering::Relaxed);
        }
        Some(item)
    }

    /// The next event, skipping everything else.
    pub async fn event(&mut self) -> Option<(EventSeq, Event)> {
        loop {
            if let Item::Event(seq, event) = self.next().await? {
                return Some((seq, event));
            }
        }
    }
}

/// The driver's end of both.
#[derive(Debug)]
pub(crate) struct Desk {
    commands: mpsc::Receiver<(Command, oneshot::Sender<Answer>)>,
    waiting: BTreeMap<CommandId, oneshot::Sender<Answer>>,
    next_id: u64,
    stop: watch::Receiver<bool>,
    stop_told: bool,
    items: mpsc::UnboundedSender<Item>,
    passing: Arc<AtomicU32>,
    shown: EventSeq,
}

/// A new account's three ends.
pub(crate) fn ends() -> (Account, Inbox, Desk) {
    let (commands, commanded) = mpsc::channel(COMMANDS);
    let (stop, stopped) = watch::channel(false);
    let (items, taken) = mpsc::unbounded_channel();
    let passing = Arc::new(AtomicU32::new(0));
    let desk = Desk {
        commands: commanded,
        waiting: BTreeMap::new(),
        next_id: 0,
        stop: stopped,
        stop_told: false,
        items,
        passing: Arc::clone(&passing),
        shown: EventSeq(0),
    };
    (
        Account { commands, stop },
        Inbox {
            items: taken,
            passing,
        },
        desk,
    )
}

impl Desk {
    /// Completes when the embedder wants no more. May be dropped at any time.
    pub(crate) async fn stopping(&mut self) {
        wished(&mut self.stop).await;
    }

    /// The engine has stopped: what it has not answered, nobody will. The next engine is new.
    pub(crate) fn engine_stopped(&mut self) {
        for (_, answer) in std::mem::take(&mut self.waiting) {
            let _ = answer.send(Err(CommandError::Unknown));
        }
        self.stop_told = false;
    }

    pub(crate) fn ownership(&mut self, ownership: Ownership) {
        self.pass(Item::Ownership(ownership));
    }

    fn pass(&mut self, item: Item) {
        if self.passing.load(Ordering::Relaxed) < PASSING {
            self.passing.fetch_add(1, Ordering::Relaxed);
            let _ = self.items.send(item);
        }
    }
}

impl App for Desk {
    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::Event(seq, event) => {
                // A new engine shows again what was not acknowledged; this consumer has it already.
                if seq > self.shown {
                    self.shown = seq;
                    let _ = self.items.send(Item::Event(seq, event));
                }
            }
            Effect::Notice(notice) => self.pass(Item::Notice(notice)),
            Effect::Reply(id, answer) => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    let _ = waiting.send(answer);
                }
            }
        }
    }

    async fn command(&mut self) -> (CommandId, Command) {
        if self.stop_told {
            // The engine is stopping; what still comes is for the next one.
            return std::future::pending().await;
        }
        let stopping = self.commands.is_closed();
        let request = tokio::select! { biased;
            request = self.commands.recv() => request,
            () = wished(&mut self.stop), if !stopping => {
                // What was posted before is still carried out, nothing new is taken.
                self.commands.close();
                self.commands.recv().await
            }
        };
        self.next_id = self.next_id.wrapping_add(1);
        let id = CommandId(self.next_id);
        let command = match request {
            Some((command, answer)) => {
                self.waiting.insert(id, answer);
                command
            }
            // Shutting down was asked for, or there is nobody left to ask for anything.
            None => {
                self.stop_told = true;
                Command::Shutdown
            }
        };
        (id, command)
    }
}

async fn wished(stop: &mut watch::Receiver<bool>) {
    // An error means that the last handle is gone, which is the same wish.
    let _ = stop.wait_for(|stop| *stop).await;
}
