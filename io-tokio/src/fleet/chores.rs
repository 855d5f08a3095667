//! What a host does by the clock, once for all its accounts: looks for mail, and lets old rows leave.

use super::{Fleet, calls};
use crate::{Connector, Env};
use baton_core::{
    cluster::host,
    flow::Config,
    state::{AccountId, Micros, Store, Table, UnixMillis},
};
use futures_util::FutureExt as _;
use std::ops::Bound;

impl<S, C, E, F> Fleet<S, C, E, F>
where
    S: Store,
    C: Connector,
    E: Env,
    F: FnMut(&AccountId) -> Config + Send,
{
    /// The time has come that the loop slept until.
    pub(super) fn time_passed(&mut self) {
        let now = self.env.now().mono;
        self.host(host::Input::Tick);
        let healthy = self.machine.host().is_healthy();
        let within = self.options.timing.call;
        if self.mail_at.is_some_and(|at| at <= now) {
            if healthy && !self.rooms.is_empty() {
                self.mail_at = None;
                let (store, env) = (self.store.clone(), self.env.clone());
                let who = self.machine.host().who();
                self.asking
                    .push(calls::mail(store, env, within, who).boxed());
            } else {
                self.mail_at = self.options.drive.mailbox.map(|every| now.plus(every));
            }
        }
        if self.retain_at <= now {
            self.retain_at = now.plus(self.retain_pause());
            if healthy && let Some((account, table, before)) = self.next_to_retain() {
                // Until it is answered.
                self.retain_at = Micros(u64::MAX);
                let (store, env) = (self.store.clone(), self.env.clone());
                let retain = calls::retain(store, env, within, account, table, before);
                self.asking.push(retain.boxed());
            }
        }
    }

    /// Every account and table once in [`Retention::every`]; but never more than two calls a second, however many there
    /// are: then a round takes longer, which rows that are kept for weeks do not mind.
    fn retain_pause(&self) -> Micros {
        const FASTEST: u64 = 500_000;
        let places = u64::try_from(self.rooms.len() * 3).unwrap_or(u64::MAX);
        Micros((self.options.retention.every.0 / places.max(1)).max(FASTEST))
    }

    fn next_to_retain(&mut self) -> Option<(AccountId, Table, UnixMillis)> {
        let retention = &self.options.retention;
        let tables = [
            (Table::Seen, retention.seen),
            (Table::Sent, retention.sent),
            (Table::MessageSecret, retention.message_secrets),
        ];
        let (account, at) = std::mem::take(&mut self.retain_next);
        let account = match account.filter(|_| at < tables.len()) {
            Some(account) => account,
            None => self.rooms.keys().next()?.clone(),
        };
        let (table, age) = *tables.get(at).or(tables.first())?;
        let age = i64::try_from(age.0 / 1000).unwrap_or(i64::MAX);
        let before = UnixMillis(self.env.now().unix.0.saturating_sub(age));
        self.retain_next = (Some(account.clone()), at);
        Some((account, table, before))
    }

    /// Some rows have left; whether there may be more.
    pub(super) fn retained(&mut self, more: bool) {
        self.retain_at = self.env.now().mono.plus(self.retain_pause());
        let (Some(account), at) = &mut self.retain_next else {
            return;
        };
        if more {
            return;
        }
        *at += 1;
        if *at >= 3 {
            let behind = (Bound::Excluded(account.clone()), Bound::Unbounded);
            let next = self.rooms.range(behind).next();
            self.retain_next = (next.map(|(account, _)| account.clone()), 0);
        }
    }
}
