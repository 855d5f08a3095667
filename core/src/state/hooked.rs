//! A store for tests that somebody meddles with: before and after each call, a hook may do something else or let the
//! call fail.

use super::{Store, StoreError};
use std::{future::Future, sync::Arc};

/// When the hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// An error: the call is not made.
    Before,
    /// An error: the call was made, but nobody learns of it.
    After,
}

type Hook = dyn Fn(&'static str, Moment) -> Result<(), StoreError> + Send + Sync;

#[derive(Clone)]
pub(crate) struct Hooked<S> {
    inner: S,
    hook: Arc<Hook>,
}

impl<S: Store> Hooked<S> {
    pub(crate) fn new(
        inner: S,
        hook: impl Fn(&'static str, Moment) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            hook: Arc::new(hook),
        }
    }

    async fn call<T: Send>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        (self.hook)(name, Moment::Before)?;
        let answer = call.await?;
        (self.hook)(name, Moment::After)?;
        Ok(answer)
    }
}

impl<S: Store> Store for Hooked<S> {
    crate::delegate_store!(inner through call: all);
}
