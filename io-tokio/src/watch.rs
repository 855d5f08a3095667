//! One value that many wait for.
//!
//! As `tokio::sync::watch`, with one difference: receivers wake in the order in which they began to wait. tokio's wake in
//! an order that its random generator decides, so accounts that wait for the same news would go on in another order in
//! each replay of a simulation.

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;

/// Changes the value. The receivers learn when it is dropped.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Sees the latest value.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The sender is gone: the value will not change any more.
#[derive(Debug)]
pub(crate) struct Closed;

/// The value, locked. Not to be held across an await.
#[derive(Debug)]
pub(crate) struct Ref<'a, T>(MutexGuard<'a, State<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    senders: AtomicUsize,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Shared<T> {
    /// Every use is one short section that leaves the state whole, so a poisoned lock is still good.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        let shared = Shared {
            state: Mutex::new(State { value, version: 0 }),
            changed: Notify::new(),
            senders: AtomicUsize::new(1),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.state())
    }

    /// A receiver that has seen the present value.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        Receiver {
            seen: self.shared.state().version,
            shared: Arc::clone(&self.shared),
        }
    }

    pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
        {
            let mut state = self.shared.state();
            change(&mut state.value);
            state.version += 1;
        }
        self.shared.changed.notify_waiters();
    }

    pub(crate) fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.senders.fetch_sub(1, Ordering::Release);
        self.shared.changed.notify_waiters();
    }
}

impl<T> Receiver<T> {
    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.state())
    }

    /// Another receiver, which has seen what this one has.
    pub(crate) fn fork(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            seen: self.seen,
        }
    }

    pub(crate) fn mark_unchanged(&mut self) {
        self.seen = self.shared.state().version;
    }

    /// Waits for a value that was not seen. May be dropped at any time.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Made before the look, so that no change falls in between.
            let changed = self.shared.changed.notified();
            let version = self.shared.state().version;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.senders.load(Ordering::Acquire) == 0 {
                return Err(Closed);
            }
            changed.await;
        }
    }

    /// Waits until the value is as wished, which it may be already.
    pub(crate) async fn wait_for(
        &mut self,
        mut wished: impl FnMut(&T) -> bool,
    ) -> Result<Ref<'_, T>, Closed> {
        loop {
            let found = {
                let state = self.shared.state();
                self.seen = state.version;
                wished(&state.value)
            };
            if found {
                return Ok(self.borrow());
            }
            self.changed().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};

    #[tokio::test]
    async fn receivers_wake_in_the_order_in_which_they_began_to_wait() {
        for _ in 0..20 {
            let sender = Sender::new(0);
            let mut waiting = FuturesUnordered::new();
            for n in 0..20 {
                let mut receiver = sender.subscribe();
                waiting.push(async move { receiver.changed().await.map(|()| n) });
            }
            assert!(waiting.next().now_or_never().is_none(), "all wait");
            sender.send_replace(1);
            let mut order = Vec::new();
            while let Some(n) = waiting.next().await {
                order.push(n.unwrap());
            }
            assert!(order.is_sorted(), "{order:?}");
        }
    }

    #[tokio::test]
    async fn values_are_seen_once() {
        let sender = Sender::new(1);
        let mut receiver = sender.subscribe();
        assert!(receiver.changed().now_or_never().is_none());
        assert_eq!(sender.send_replace(2), 1);
        sender.send_modify(|n| *n += 1);
        assert!(matches!(receiver.changed().now_or_never(), Some(Ok(()))));
        assert_eq!(*receiver.borrow(), 3);
        assert!(receiver.changed().now_or_never().is_none());
        sender.send_replace(4);
        receiver.mark_unchanged();
        assert!(receiver.changed().now_or_never().is_none());
        assert_eq!(receiver.wait_for(|n| *n == 4).await.map(|n| *n).unwrap(), 4);
        assert!(receiver.wait_for(|n| *n == 5).now_or_never().is_none());
        drop(sender);
        assert!(matches!(receiver.changed().await, Err(Closed)));
    }
}
