//! Work for a thread, in order of arrival, bounded.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Shared by those who bring work and those who do it.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    /// Rings when there is work or the queue closes.
    bell: Condvar,
    bound: usize,
}

struct State<T> {
    items: VecDeque<T>,
    closing: bool,
    /// Nobody is left to take anything.
    dead: bool,
}

/// Why work was not taken; it comes back.
pub(crate) enum Refused<T> {
    Full(T),
    Stopped(T),
}

impl<T> Queue<T> {
    pub(crate) fn new(bound: usize) -> Arc<Self> {
        let state = State {
            items: VecDeque::new(),
            closing: false,
            dead: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            bell: Condvar::new(),
            bound,
        })
    }

    pub(crate) fn push(&self, item: T) -> Result<(), Refused<T>> {
        let mut state = self.lock();
        if state.closing || state.dead {
            return Err(Refused::Stopped(item));
        }
        if state.items.len() >= self.bound {
            return Err(Refused::Full(item));
        }
        state.items.push_back(item);
        drop(state);
        self.bell.notify_one();
        Ok(())
    }

    /// Sleeps until there is work, takes at most `most`. Empty once the queue is closed and everything is done.
    pub(crate) fn take(&self, most: usize) -> Vec<T> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.closing {
            state = self
                .bell
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let count = state.items.len().min(most);
        state.items.drain(..count).collect()
    }

    /// No more work; what is here is still done.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.bell.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a working thread. However the thread ends, what is left in the queue is dropped, so that nobody waits for
/// an answer that cannot come.
pub(crate) struct Worker<T>(pub(crate) Arc<Queue<T>>);

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.dead = true;
        let abandoned = std::mem::take(&mut state.items);
        drop(state);
        // Outside the lock: dropping wakes those who wait.
        drop(abandoned);
    }
}
