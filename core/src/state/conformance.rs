//! The suite that every store runs, ours or anybody else's.
//!
//! A store says how to open it and how to let time pass ([`Harness`]); [`store_conformance!`](crate::store_conformance)
//! turns that into one `#[test]` per promise of [`Store`]:
//!
//! ```ignore
//! struct Mine { directory: TempDir }
//! impl Harness for Mine {
//!     type Store = MyStore;
//!     fn open(&self) -> MyStore { MyStore::open(self.directory.path()) }
//!     fn advance(&self, by: Micros) { std::thread::sleep(Duration::from_micros(by.0)) }
//! }
//! baton_core::store_conformance!(Mine { directory: TempDir::new() });
//! ```
//!
//! The expression is evaluated once per test and has to give a harness with an empty database. No runtime is needed:
//! futures are driven by [`block_on`], which parks the thread until the store wakes it.
//!
//! * [`tables`]: every key shape of every table comes back, in order, and nothing else does.
//! * [`history`]: batches are whole, in order, fenced; neighbours do not suffer.
//! * [`leases`]: who may claim, renew, release, and when.
//! * [`random`]: long random histories against a model.
//! * [`race`]: processes that fight for one account.
//!
//! Panicking is how a test fails; nothing outside tests uses this module.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    reason = "a suite of tests"
)]

pub mod history;
pub mod leases;
pub mod race;
pub mod random;
pub mod samples;
pub mod tables;

use super::{
    AccountId, Batch, BusinessId, Claim, Epoch, Incarnation, Key, Lease, Micros, Outcome, Record,
    Row, Scan, Seq, Store, Table, UnixMillis,
};
use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

/// One database, empty at first, and the means to treat it badly.
pub trait Harness {
    /// The store under test.
    type Store: Store;

    /// A handle such as a further process would have: another connection to the same data, beside those that are open.
    fn open(&self) -> Self::Store;

    /// The process of `store` ends and another takes its place. What was committed must be there.
    fn restart(&self, store: Self::Store) -> Self::Store {
        drop(store);
        self.open()
    }

    /// Lets this much time pass for leases: turns a clock, or sleeps. The suite asks for a tenth of a second at most.
    fn advance(&self, by: Micros);

    /// Damages the row so that it exists but cannot be read. `false` if this store has no way to do that.
    fn corrupt(&self, account: &AccountId, key: &Key) -> bool {
        let _ = (account, key);
        false
    }
}

/// Expands to the tests. The argument is an expression that gives a fresh [`Harness`].
#[macro_export]
macro_rules! store_conformance {
    ($harness:expr) => {
        $crate::store_conformance! { @tests $harness;
            tables::every_key_shape_comes_back
            tables::scans_are_in_key_order_and_page_without_gaps
            tables::records_of_every_size_come_back
            tables::writing_again_replaces_and_deleting_removes
            tables::keys_beyond_the_limits_are_rejected
            tables::a_cursor_of_another_table_is_refused
            tables::a_damaged_row_affects_only_itself
            tables::everything_is_there_after_a_restart
            tables::account_names_are_checked_and_unique
            tables::a_tenant_sees_only_its_own
            tables::another_business_cannot_reach_an_account
            tables::retention_is_bounded_and_by_age
            tables::retention_spares_rows_that_do_not_age
            tables::requests_are_left_once
            history::a_batch_applies_whole_or_not_at_all
            history::a_batch_sent_again_changes_nothing
            history::a_gap_is_rejected
            history::batches_of_one_account_follow_each_other_in_one_call
            history::a_fenced_batch_does_not_fail_its_neighbours
            history::an_old_epoch_is_fenced_even_for_a_number_it_knows
            history::an_epoch_that_was_never_granted_is_rejected
            history::an_account_that_does_not_exist_takes_nothing
            history::concurrent_calls_are_all_answered
            leases::an_account_is_claimed_by_one
            leases::a_lease_runs_out
            leases::renewal_prolongs_and_tells_who_has_lost
            leases::release_frees_and_keeps_the_epoch
            leases::epochs_only_grow
            leases::a_claim_tells_how_far_the_history_has_come
            leases::accounts_show_who_holds_them
            random::histories_agree_with_the_model
            race::racing_processes_write_one_history
        }
    };
    (@tests $harness:expr; $($module:ident::$case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::state::conformance::block_on($crate::state::conformance::$module::$case($harness));
            }
        )*
    };
}

/// Runs a future on this thread, sleeping until whoever completes it says so.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Longer than any test takes.
pub(crate) const LONG: Micros = Micros::from_secs(3600);
/// Over as soon as [`Harness::advance`] has been asked for [`PAUSE`].
pub(crate) const SHORT: Micros = Micros::from_millis(40);
pub(crate) const PAUSE: Micros = Micros::from_millis(80);

pub(crate) const ALICE: Incarnation = Incarnation(0xa11c_e000_0000_0001);
pub(crate) const BOB: Incarnation = Incarnation(0x0b0b);

pub(crate) fn business(name: &str) -> BusinessId {
    BusinessId::new(name).expect("a name of the suite")
}

pub(crate) fn record(content: &str) -> Record {
    Record(bytes::Bytes::copy_from_slice(content.as_bytes()))
}

/// An owner of one account as an engine would be: knows its epoch and counts its batches.
pub(crate) struct Owner<S> {
    pub(crate) store: S,
    pub(crate) id: AccountId,
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
}

impl<S: Store> Owner<S> {
    /// Creates the account and claims it for [`ALICE`].
    pub(crate) async fn create(store: &S, business: &BusinessId, name: &str) -> Self {
        let id = store
            .create_account(business, name)
            .await
            .expect("create an account");
        Self::claim(store, &id, ALICE, LONG).await
    }

    pub(crate) async fn claim(store: &S, id: &AccountId, who: Incarnation, ttl: Micros) -> Self {
        let lease = granted(store, id, who, ttl).await;
        Self {
            store: store.clone(),
            id: id.clone(),
            epoch: lease.epoch,
            seq: lease.applied,
        }
    }

    /// The next batch of the history.
    pub(crate) fn batch(&mut self, rows: impl IntoIterator<Item = (Key, Option<Record>)>) -> Batch {
        self.seq = self.seq.next();
        Batch {
            account: self.id.clone(),
            epoch: self.epoch,
            seq: self.seq,
            at: UnixMillis(1_700_000_000_000),
            rows: rows.into_iter().collect(),
        }
    }

    pub(crate) async fn write(&mut self, rows: impl IntoIterator<Item = (Key, Option<Record>)>) {
        let batch = self.batch(rows);
        assert_eq!(commit(&self.store, [batch]).await, [Outcome::Committed]);
    }

    pub(crate) async fn load(&self, key: &Key) -> Row {
        load(&self.store, &self.id, [key.clone()]).await.remove(0)
    }

    pub(crate) async fn table(&self, table: Table) -> Vec<(Key, Row)> {
        whole_table(&self.store, &self.id, table, 1000).await
    }
}

pub(crate) async fn granted<S: Store>(
    store: &S,
    id: &AccountId,
    who: Incarnation,
    ttl: Micros,
) -> Lease {
    match store.claim(id, who, ttl).await.expect("claim") {
        Claim::Granted(lease) => lease,
        Claim::Held { by, .. } => panic!("{id} should be free for {who:?}, but is held by {by:?}"),
    }
}

pub(crate) async fn commit<S: Store>(
    store: &S,
    batches: impl IntoIterator<Item = Batch>,
) -> Vec<Outcome> {
    store
        .commit(batches.into_iter().collect())
        .await
        .expect("commit")
}

pub(crate) async fn load<S: Store>(
    store: &S,
    id: &AccountId,
    keys: impl IntoIterator<Item = Key>,
) -> Vec<Row> {
    let keys: Vec<_> = keys.into_iter().collect();
    let asked = keys.len();
    let rows = store.load(id, keys).await.expect("load");
    assert_eq!(rows.len(), asked, "one answer per key");
    rows
}

/// Reads a table page by page.
pub(crate) async fn whole_table<S: Store>(
    store: &S,
    id: &AccountId,
    table: Table,
    page: u32,
) -> Vec<(Key, Row)> {
    let mut rows = Vec::new();
    loop {
        let after = rows.last().map(|(key, _): &(Key, Row)| key.clone());
        let found = store
            .scan(
                id,
                Scan {
                    table,
                    after,
                    limit: page,
                },
            )
            .await
            .expect("scan");
        assert!(
            found.len() <= page as usize,
            "a page of {page} has {} rows",
            found.len()
        );
        let last = found.len() < page as usize;
        rows.extend(found);
        if last {
            return rows;
        }
    }
}

/// Whether the outcome says no without naming an epoch.
pub(crate) fn is_rejected(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Rejected(_))
}

#[cfg(test)]
mod tests {
    /// A case that nobody lists would never run anywhere.
    #[test]
    fn every_case_is_in_the_macro() {
        let suite = include_str!("conformance.rs");
        let modules = [
            ("tables", include_str!("conformance/tables.rs")),
            ("history", include_str!("conformance/history.rs")),
            ("leases", include_str!("conformance/leases.rs")),
            ("race", include_str!("conformance/race.rs")),
            ("random", include_str!("conformance/random.rs")),
        ];
        let mut cases = 0;
        for (module, source) in modules {
            for line in source.lines() {
                let Some(rest) = line.strip_prefix("pub async fn ") else {
                    continue;
                };
                let name = rest.split('<').next().unwrap();
                assert!(
                    suite.contains(&format!("            {module}::{name}\n")),
                    "{module}::{name} is not listed"
                );
                cases += 1;
            }
        }
        assert!(
            cases > 30,
            "only {cases} cases found: has the layout of the sources changed?"
        );
    }
}
