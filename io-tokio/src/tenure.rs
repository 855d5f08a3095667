//! The right to act for an account, as its driver sees it.

use crate::{AccountLease, Env, Standing};
use baton_core::{
    engine::Grant,
    state::{AccountId, Micros, Store},
};
use std::future::Future;

/// What a driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The grant lasts until then, on our clock; it may be the same as before.
    Until(Micros),
    /// The account is not ours any more.
    Lost,
    /// The connection that was [wanted](Tenure::wants_connection) may be opened.
    Connect,
    /// There are requests in the mailbox.
    Mail,
}

/// The right to act for one account. A driver lets its engine act only inside the grant, and connect only in turn.
pub trait Tenure: Send {
    /// Whose.
    fn account(&self) -> &AccountId;

    /// What the engine is built with, or given again.
    fn grant(&self) -> Grant;

    /// The engine asks for a connection; [`Word::Connect`] is the answer.
    fn wants_connection(&mut self);

    /// The next word. [`Word::Connect`] only if `connect`, [`Word::Mail`] only if `mail`. May be dropped at any time
    /// without losing anything.
    fn next(&mut self, connect: bool, mail: bool) -> impl Future<Output = Word> + Send;
}

impl<S: Store, E: Env> Tenure for AccountLease<S, E> {
    fn account(&self) -> &AccountId {
        AccountLease::account(self)
    }

    fn grant(&self) -> Grant {
        AccountLease::grant(self)
    }

    fn wants_connection(&mut self) {}

    async fn next(&mut self, connect: bool, _mail: bool) -> Word {
        tokio::select! { biased;
            standing = self.changed() => match standing {
                Standing::Until(until) => Word::Until(until),
                Standing::Lost => Word::Lost,
            },
            () = std::future::ready(()), if connect => Word::Connect,
        }
    }
}
