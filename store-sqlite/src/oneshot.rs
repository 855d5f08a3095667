//! One answer from a thread to a future, whatever runs the future.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

/// A place for one answer.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Mutex::new(Slot {
        state: State::Open,
        waker: None,
    }));
    (
        Sender {
            slot: Arc::clone(&slot),
        },
        Receiver { slot },
    )
}

/// Gives the answer, or takes the hope of one away by being dropped.
pub(crate) struct Sender<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

/// The answer to come; `None` if nobody is left to give it.
pub(crate) struct Receiver<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

struct Slot<T> {
    state: State<T>,
    waker: Option<Waker>,
}

enum State<T> {
    Open,
    Answered(T),
    Closed,
}

impl<T> Sender<T> {
    pub(crate) fn send(self, answer: T) {
        settle(&self.slot, State::Answered(answer));
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        settle(&self.slot, State::Closed);
    }
}

/// The first state to come stays. Wakes outside the lock: a waker may run whatever it likes.
fn settle<T>(slot: &Mutex<Slot<T>>, state: State<T>) {
    let mut guard = lock(slot);
    if !matches!(guard.state, State::Open) {
        return;
    }
    guard.state = state;
    let waker = guard.waker.take();
    drop(guard);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = lock(&self.slot);
        match std::mem::replace(&mut slot.state, State::Closed) {
            State::Answered(answer) => Poll::Ready(Some(answer)),
            State::Closed => Poll::Ready(None),
            State::Open => {
                slot.state = State::Open;
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Receiver<T> {
    /// Waits on this thread.
    pub(crate) fn wait(mut self) -> Option<T> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(answer) => return answer,
                Poll::Pending => thread::park(),
            }
        }
    }
}

fn lock<T>(slot: &Mutex<Slot<T>>) -> MutexGuard<'_, Slot<T>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::conformance::block_on;
    use std::{thread, time::Duration};

    #[test]
    fn an_answer_arrives_before_and_after_the_question_is_polled() {
        let (sender, receiver) = channel();
        sender.send(1);
        assert_eq!(block_on(receiver), Some(1));
        let (sender, receiver) = channel();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            sender.send(2);
        });
        assert_eq!(block_on(receiver), Some(2));
        late.join().unwrap();
    }

    #[test]
    fn a_dropped_sender_is_an_answer_too() {
        let (sender, receiver) = channel::<u8>();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            drop(sender);
        });
        assert_eq!(block_on(receiver), None);
        late.join().unwrap();
    }
}
