//! The driver: drains the engine, carries out what it wants, waits for exactly one thing, hands it in.

use crate::{Commits, Connector, Env, Link, Moved, Recorded, Tenure, Word, fetch::Fetches};
use baton_core::{
    engine::{Grant, Input, Output},
    flow::{Command, CommandError, CommandId, Connection, Event, Notice, Reply, StopReason},
    state::{Batch, EventSeq, Micros, Outcome, Seq, Store, StoreError},
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};
use tracing::{debug, info, trace, warn};

/// What an account has for its consumer.
#[derive(Debug)]
pub enum Effect {
    /// Durable and numbered; acknowledge it with [`Command::Acknowledge`].
    Event(EventSeq, Event),
    /// Passing.
    Notice(Notice),
    /// The answer to a command.
    Reply(CommandId, Result<Reply, CommandError>),
}

/// The consumer's side of a driver.
pub trait App: Send {
    /// Takes what there is, without waiting. The engine hands out at most
    /// [`Limits::events_in_flight`](baton_core::flow::Limits) events that were not acknowledged, so a queue behind this
    /// needs no other bound.
    fn take(&mut self, effect: Effect);

    /// The next command. Numbers from 2^63 on are the driver's own. Dropping the future must lose no command.
    fn command(&mut self) -> impl Future<Output = (CommandId, Command)> + Send;
}

/// What a driver does on its own account.
#[derive(Clone, Copy, Debug)]
pub struct DriveOptions {
    /// How often to look for requests of other processes while logged in; `None` is never. In a
    /// [`Fleet`](crate::Fleet) one look serves all accounts.
    pub mailbox: Option<Micros>,
    /// How often to give the engine fresh entropy.
    pub reseed: Micros,
    /// First and longest pause before a store call that failed is made again.
    pub retry: (Micros, Micros),
}

impl Default for DriveOptions {
    fn default() -> Self {
        Self {
            mailbox: Some(Micros::from_millis(250)),
            reseed: Micros::from_secs(600),
            retry: (Micros::from_millis(20), Micros::from_millis(500)),
        }
    }
}

/// The driver's own commands have numbers from here on.
const OWN: u64 = 1 << 63;

/// How long a stopped engine's last words may take to leave.
const LAST_WORDS: Micros = Micros::from_millis(1500);

/// Drives an engine until it stops.
///
/// At most one commit is under way; batches that come meanwhile go out together with the next one. A store that cannot
/// be reached is asked again with the same batches until it answers or the lease ends: applying a batch twice changes
/// nothing, so the outcome of the first try need not be known.
pub async fn drive<S: Store, C: Connector, E: Env, A: App, T: Tenure>(
    engine: impl Into<Recorded>,
    env: &E,
    commits: &Commits<S, E>,
    tenure: &mut T,
    link: &mut Link<C, E>,
    app: &mut A,
    options: DriveOptions,
) -> StopReason {
    let mut engine = engine.into();
    let account = tenure.account().clone();
    let mut wire = Vec::new();
    let mut sealed = Vec::new();
    let mut storage: FuturesUnordered<BoxFuture<'static, Answer>> = FuturesUnordered::new();
    let mut committing = false;
    let mut fetches = Fetches::new(link.connector().clone());
    let mut chores = Chores::new(env, options);
    // Whether the link had the last word: then the consumer is asked first, so that neither can starve the other.
    let mut link_last = false;
    let mut inputs = VecDeque::new();
    // The connection that waits for its turn.
    let mut wanted = None;
    link.granted_until(tenure.grant().until);
    // What was asked for before the engine has read anything: an account that is logged out lives only if somebody
    // wants to link it again.
    while engine.appetite().commands > 0
        && let Some((id, command)) = app.command().now_or_never()
    {
        engine.handle(Input::Command(id, command), env.now());
    }

    loop {
        // Drain without awaiting: every effect the engine has released, in the engine's order.
        let wake = loop {
            match engine.poll(&mut wire) {
                Output::Commit(batch) => sealed.push(batch),
                Output::Load(id, keys) => {
                    let (store, account) = (commits.store().clone(), account.clone());
                    let retry = Retry::new(env, options);
                    storage.push(
                        async move {
                            match retry
                                .until_known(|| store.load(&account, keys.clone()))
                                .await
                            {
                                Ok(rows) => Answer::of(Input::Loaded(id, rows)),
                                Err(refused) => Answer::of(Input::StoreRefused(refused)),
                            }
                        }
                        .boxed(),
                    );
                }
                Output::Scan(id, scan) => {
                    let (store, account) = (commits.store().clone(), account.clone());
                    let retry = Retry::new(env, options);
                    storage.push(
                        async move {
                            match retry
                                .until_known(|| store.scan(&account, scan.clone()))
                                .await
                            {
                                Ok(rows) => Answer::of(Input::Scanned(id, rows)),
                                Err(refused) => Answer::of(Input::StoreRefused(refused)),
                            }
                        }
                        .boxed(),
                    );
                }
                Output::Open(endpoint) => {
                    wanted = Some(endpoint);
                    tenure.wants_connection();
                }
                Output::Transmit => link.queue(&mut wire),
                Output::KeepAlive => link.keep_alive(&mut wire),
                Output::Close => {
                    wanted = None;
                    link.close();
                }
                Output::Fetch(id, request) => fetches.start(id, request),
                Output::FetchMore(id) => fetches.more(id),
                Output::StopFetch(id) => fetches.stop(id),
                Output::Event(seq, event) => app.take(Effect::Event(seq, event)),
                Output::Notice(notice) => {
                    chores.notice(&notice, env);
                    app.take(Effect::Notice(notice));
                }
                Output::Reply(id, _) if id.0 >= OWN => chores.answered(env),
                Output::Reply(id, answer) => app.take(Effect::Reply(id, answer)),
                Output::Idle { wake, why } => {
                    trace!(%account, why, ?wake, "idle");
                    break wake;
                }
                Output::Stopped(reason) => {
                    info!(%account, %reason, "engine stopped");
                    farewell(link, env).await;
                    return reason;
                }
            }
        };
        if !committing && !sealed.is_empty() {
            committing = true;
            storage.push(
                commit(
                    commits.clone(),
                    std::mem::take(&mut sealed),
                    Retry::new(env, options),
                )
                .boxed(),
            );
        }
        if let Some(input) = inputs.pop_front() {
            engine.handle(input, env.now());
            continue;
        }

        // Wait for exactly one thing. `biased` fixes the order, so that a simulation can replay it.
        let appetite = engine.appetite();
        let (moved, step);
        let input = tokio::select! { biased;
            word = tenure.next(wanted.is_some(), chores.takes_mail()) => match word {
                Word::Until(until) => {
                    link.granted_until(until);
                    Input::Granted(Grant { until, ..tenure.grant() })
                }
                // Nobody can say who has it now; whoever it is, it is under a later epoch.
                Word::Lost => Input::Fenced { by: tenure.grant().lease.term.epoch },
                Word::Connect => {
                    if let Some(endpoint) = wanted.take() {
                        fetches.speak_as(&endpoint);
                        link.open(endpoint);
                    }
                    continue;
                }
                Word::Mail => Input::Command(chores.fetch(), Command::CheckMailbox),
            },
            Some(answer) = storage.next() => {
                committing &= !answer.is_commit;
                inputs.extend(answer.inputs);
                continue;
            }
            () = until(env, wake) => Input::Tick,
            chore = chores.due(env) => match chore {
                Chore::Reseed => Input::Reseed(env.entropy()),
                Chore::Mailbox(id) => Input::Command(id, Command::CheckMailbox),
            },
            (id, fetched) = fetches.next() => {
                step = fetched;
                Input::Fetched(id, step.fetched())
            }
            next = either(link_last, app.command(), appetite.commands > 0, link.next(appetite.bytes)) => match next {
                Next::Command(id, command) => {
                    link_last = false;
                    Input::Command(id, command)
                }
                Next::Moved(happened) => {
                    link_last = true;
                    moved = happened;
                    match &moved {
                        Moved::Opened => Input::Opened,
                        Moved::Received(bytes) => Input::Received(bytes),
                        Moved::Closed(why) => {
                            debug!(%account, why, "connection closed");
                            Input::Closed
                        }
                    }
                }
            },
        };
        engine.handle(input, env.now());
    }
}

/// What a store call amounts to.
struct Answer {
    inputs: Vec<Input<'static>>,
    is_commit: bool,
}

impl Answer {
    fn of(input: Input<'static>) -> Self {
        Self {
            inputs: vec![input],
            is_commit: false,
        }
    }
}

async fn commit<S: Store, E: Env>(
    commits: Commits<S, E>,
    batches: Vec<Batch>,
    retry: Retry<E>,
) -> Answer {
    // One account, one engine: all batches of a call are of one epoch.
    let epoch = batches
        .first()
        .map(|batch| batch.term.epoch)
        .unwrap_or_default();
    let numbers: Vec<Seq> = batches.iter().map(|batch| batch.seq).collect();
    let inputs = match retry.until_known(|| commits.commit(batches.clone())).await {
        Ok(outcomes) => {
            let durable = outcomes
                .iter()
                .take_while(|outcome| **outcome == Outcome::Committed)
                .count();
            let committed = durable
                .checked_sub(1)
                .and_then(|last| numbers.get(last))
                .map(|&upto| Input::Committed { epoch, upto });
            let refused = match outcomes.into_iter().nth(durable) {
                Some(Outcome::Fenced { by }) => Some(Input::Fenced { by }),
                Some(Outcome::Unsealed { history }) => Some(Input::Unsealed { history }),
                Some(Outcome::Rejected(why)) => Some(Input::StoreRefused(why)),
                Some(Outcome::Committed) => None,
                None if durable < numbers.len() => {
                    Some(Input::StoreRefused("outcomes are missing".into()))
                }
                None => None,
            };
            committed.into_iter().chain(refused).collect()
        }
        Err(refused) => vec![Input::StoreRefused(refused)],
    };
    Answer {
        inputs,
        is_commit: true,
    }
}

/// Makes a store call again until its outcome is known. The driver drops it when the lease has ended.
struct Retry<E> {
    env: E,
    pause: (Micros, Micros),
}

impl<E: Env> Retry<E> {
    fn new(env: &E, options: DriveOptions) -> Self {
        Self {
            env: env.clone(),
            pause: options.retry,
        }
    }

    async fn until_known<T, F: Future<Output = Result<T, StoreError>>>(
        self,
        mut call: impl FnMut() -> F,
    ) -> Result<T, String> {
        let (mut pause, most) = self.pause;
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_retryable() => {
                    warn!(%error, "trying again");
                    let half = Micros(pause.0 / 2);
                    self.env
                        .sleep_until(self.env.now().mono.plus(half).plus(self.env.jitter(half)))
                        .await;
                    pause = pause.plus(pause).min(most);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

enum Next {
    Command(CommandId, Command),
    Moved(Moved),
}

/// The consumer or the link, whichever has something; the consumer first if `consumer_first`, and only if `wanted`.
async fn either(
    consumer_first: bool,
    command: impl Future<Output = (CommandId, Command)>,
    wanted: bool,
    moved: impl Future<Output = Moved>,
) -> Next {
    let (mut command, mut moved) = (pin!(command), pin!(moved));
    poll_fn(|cx| {
        for consumer in [consumer_first, !consumer_first] {
            if !consumer {
                if let Poll::Ready(moved) = moved.as_mut().poll(cx) {
                    return Poll::Ready(Next::Moved(moved));
                }
            } else if wanted && let Poll::Ready((id, command)) = command.as_mut().poll(cx) {
                return Poll::Ready(Next::Command(id, command));
            }
        }
        Poll::Pending
    })
    .await
}

async fn until(env: &impl Env, wake: Option<Micros>) {
    match wake {
        Some(at) => env.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Lets the last words of a stopped engine leave, if it has closed the connection properly.
async fn farewell<C: Connector, E: Env>(link: &mut Link<C, E>, env: &E) {
    if link.is_closing() {
        tokio::select! { biased;
            _closed = link.next(false) => {}
            () = env.sleep_until(env.now().mono.plus(LAST_WORDS)) => {}
        }
    }
}

/// What the driver does by the clock.
struct Chores {
    options: DriveOptions,
    reseed_at: Micros,
    /// `None` while not logged in, or while the last look has not been answered.
    mailbox_at: Option<Micros>,
    logged_in: bool,
    /// A look at the mailbox has not been answered.
    fetching: bool,
    next_id: u64,
}

enum Chore {
    Reseed,
    Mailbox(CommandId),
}

impl Chores {
    fn new(env: &impl Env, options: DriveOptions) -> Self {
        let reseed_at = env.now().mono.plus(options.reseed);
        Self {
            options,
            reseed_at,
            mailbox_at: None,
            logged_in: false,
            fetching: false,
            next_id: OWN,
        }
    }

    fn notice(&mut self, notice: &Notice, env: &impl Env) {
        let Notice::Connection(state) = notice else {
            return;
        };
        let was = self.logged_in;
        self.logged_in = matches!(state, Connection::LoggedIn | Connection::Online);
        if self.logged_in && !was {
            // At once: something may have waited for an owner.
            self.mailbox_at = self.options.mailbox.map(|_| env.now().mono);
        } else if !self.logged_in {
            self.mailbox_at = None;
        }
    }

    /// Whether it is of use to hear of mail.
    const fn takes_mail(&self) -> bool {
        self.logged_in && !self.fetching
    }

    /// A look at the mailbox begins.
    fn fetch(&mut self) -> CommandId {
        self.mailbox_at = None;
        self.fetching = true;
        self.next_id += 1;
        CommandId(self.next_id)
    }

    fn answered(&mut self, env: &impl Env) {
        self.fetching = false;
        if self.logged_in {
            self.mailbox_at = self.options.mailbox.map(|pause| env.now().mono.plus(pause));
        }
    }

    async fn due(&mut self, env: &impl Env) -> Chore {
        let mailbox = self.mailbox_at.unwrap_or(Micros(u64::MAX));
        env.sleep_until(mailbox.min(self.reseed_at)).await;
        if mailbox <= self.reseed_at {
            Chore::Mailbox(self.fetch())
        } else {
            self.reseed_at = env.now().mono.plus(self.options.reseed);
            Chore::Reseed
        }
    }
}
