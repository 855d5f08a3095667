//! One door to the store for the commits of all engines of a host.
//!
//! Commits that wait at the same time leave together: the store syncs once for all of them. The first may be held back
//! for a moment ([`CommitOptions::linger`]), and while calls are under way everything else collects behind them, so
//! load sets the size of a group and an idle host adds no delay.
//!
//! An account never has two commits here at once (its driver sees to that), so calls that overtake each other cannot
//! reorder an account's batches. A call that fails is answered to everybody in it; each driver sends its own batches
//! again until its lease ends, and they meet here again.

use crate::Env;
use baton_core::state::{Batch, Micros, Outcome, Store, StoreError};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};
use tokio::sync::{Notify, Semaphore, oneshot};

/// How commits are collected.
#[derive(Clone, Copy, Debug)]
pub struct CommitOptions {
    /// How long the first of a group may be held back for others to come. Runtimes round it up to what their timers
    /// can do; 0 takes what is there once every task that can run has run.
    pub linger: Micros,
    /// Batches in one call at most.
    pub group: usize,
    /// Calls under way at the same time. One that takes long (an account whose fence is locked) holds up only what is
    /// in it.
    pub calls: usize,
    /// Batches that may wait for a call. Beyond that a commit waits to be let in, and the engine behind it takes in
    /// less (see [`Appetite`](baton_core::engine::Appetite)).
    pub waiting: usize,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self {
            linger: Micros(0),
            group: 512,
            calls: 4,
            waiting: 8192,
        }
    }
}

/// What has gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Calls of the store.
    pub calls: u64,
    /// Batches in them.
    pub batches: u64,
    /// Calls that failed as a whole.
    pub failed: u64,
}

/// The commits of a host. Clones are the same door; somebody has to [`run`](Self::run) it.
#[derive(Clone, Debug)]
pub struct Commits<S, E> {
    store: S,
    env: E,
    options: CommitOptions,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    room: Semaphore,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    batches: usize,
    stats: CommitStats,
}

#[derive(Debug)]
struct Job {
    batches: Vec<Batch>,
    answer: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

impl<S: Store, E: Env> Commits<S, E> {
    /// A door to `store`.
    pub fn new(store: S, env: E, options: CommitOptions) -> Self {
        Self {
            store,
            env,
            options,
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                room: Semaphore::new(options.waiting.clamp(1, Semaphore::MAX_PERMITS)),
                arrived: Notify::new(),
            }),
        }
    }

    /// The store behind it.
    #[must_use]
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// What has gone through so far.
    #[must_use]
    pub fn stats(&self) -> CommitStats {
        self.queue().stats
    }

    /// Commits batches of one account. Not before the account's last commit has been answered; dropping the future
    /// leaves the batches on their way.
    pub async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let most = self.options.waiting.clamp(1, Semaphore::MAX_PERMITS);
        let size = u32::try_from(batches.len().min(most)).unwrap_or(u32::MAX);
        let closed = || StoreError::Unavailable("nobody commits any more".to_owned());
        let room = self.shared.room.acquire_many(size).await;
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue();
            queue.batches += batches.len();
            queue.jobs.push_back(Job { batches, answer });
        }
        self.shared.arrived.notify_one();
        let answer = answered.await.unwrap_or_else(|_| Err(closed()));
        drop(room);
        answer
    }

    /// Makes the calls, for ever. Poll it beside the accounts, once per host.
    pub async fn run(&self) -> Infallible {
        let mut calls: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            let may_start = calls.len() < self.options.calls.max(1);
            tokio::select! { biased;
                Some(()) = calls.next() => {}
                group = self.group(), if may_start => calls.push(self.call(group).boxed()),
            }
        }
    }

    /// The next group, when there is one. Takes nothing before it is complete, so it can be dropped.
    async fn group(&self) -> Vec<Job> {
        while self.queue().jobs.is_empty() {
            self.shared.arrived.notified().await;
        }
        if self.queue().batches < self.options.group {
            if self.options.linger == Micros(0) {
                let_others_run().await;
            } else {
                let until = self.env.now().mono.plus(self.options.linger);
                self.env.sleep_until(until).await;
            }
        }
        let mut queue = self.queue();
        let mut group = Vec::new();
        let mut size = 0;
        while let Some(job) = queue.jobs.front() {
            size += job.batches.len();
            if size > self.options.group && !group.is_empty() {
                break;
            }
            let Some(job) = queue.jobs.pop_front() else {
                break;
            };
            queue.batches -= job.batches.len();
            group.push(job);
        }
        if !queue.jobs.is_empty() {
            self.shared.arrived.notify_one();
        }
        group
    }

    async fn call(&self, group: Vec<Job>) {
        let mut batches = Vec::new();
        let mut waiting = Vec::new();
        for job in group {
            waiting.push((job.batches.len(), job.answer));
            batches.extend(job.batches);
        }
        let count = batches.len();
        let result = self.store.commit(batches).await;
        {
            let stats = &mut self.queue().stats;
            stats.calls += 1;
            stats.batches += count as u64;
            stats.failed += u64::from(result.is_err());
        }
        let mut outcomes = result.map(VecDeque::from);
        for (size, answer) in waiting {
            // Nobody may be waiting any more.
            let _ = answer.send(match &mut outcomes {
                Ok(outcomes) => Ok(outcomes.drain(..size.min(outcomes.len())).collect()),
                Err(error) => Err(error.clone()),
            });
        }
    }

    /// Every use is one short section that leaves the queue whole, so a poisoned lock is still good.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Comes back when every task that can run now has run: the commits that are about to be made are made by then.
async fn let_others_run() {
    let mut came_back = false;
    poll_fn(|context| {
        if came_back {
            return Poll::Ready(());
        }
        came_back = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
