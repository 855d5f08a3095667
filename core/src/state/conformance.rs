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
//! * [`hosts`]: who is in the roster, who is declared dead, and by whom.
//! * [`ownership`]: who may claim, hand over, release, and when.
//! * [`seals`]: what a database that lost commits does to terms.
//! * [`vault`]: keys of tenants, and records under another key.
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
pub mod hosts;
pub mod ownership;
pub mod race;
pub mod random;
pub mod samples;
pub mod seals;
pub mod tables;
pub mod vault;

use super::{
    AccountId, Batch, Beat, Beaten, BusinessId, Claim, Epoch, HostInfo, Incarnation, Key, Lease,
    Micros, Outcome, Record, Row, Scan, Seal, Seq, Store, StoreError, Table, Term, UnixMillis,
    View,
};
use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
            hosts::a_host_joins_once_and_sees_the_fleet
            hosts::the_wish_that_a_host_be_drained_is_shown
            hosts::what_a_host_says_is_checked
            hosts::an_ended_incarnation_never_comes_back
            hosts::a_host_that_falls_silent_is_declared_dead
            hosts::only_who_was_there_all_the_time_may_judge
            hosts::a_word_declares_dead_at_once
            ownership::an_account_is_claimed_by_one
            ownership::claims_are_answered_one_by_one
            ownership::a_dead_host_writes_until_somebody_claims
            ownership::release_frees_and_keeps_the_epoch
            ownership::who_leaves_frees_everything
            ownership::hand_over_leaves_no_gap
            ownership::epochs_only_grow
            ownership::a_claim_tells_how_far_the_history_has_come
            ownership::accounts_show_who_holds_them
            ownership::orphans_are_what_should_run_and_does_not
            ownership::a_host_learns_what_of_its_accounts_is_wished_elsewhere
            ownership::a_host_learns_which_of_its_accounts_have_mail
            ownership::a_retired_account_never_runs_again
            ownership::a_deleted_account_is_gone
            ownership::a_term_is_confirmed_only_while_it_is_in_force
            seals::a_new_generation_fences_every_term
            seals::an_account_is_sealed_by_a_batch_of_its_owner
            seals::a_generation_begins_once
            vault::keys_of_tenants_are_swapped_not_overwritten
            vault::records_are_swapped_only_for_what_they_were
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

/// A number that no other host of this test run has.
pub(crate) fn new_life() -> Incarnation {
    static LIVES: AtomicU64 = AtomicU64::new(0x0a11_ce00_0000_0000);
    // Large ones too: a store keeps all 64 bits.
    let life = LIVES.fetch_add(1, Ordering::Relaxed);
    Incarnation(if life.is_multiple_of(2) { life } else { !life })
}

/// A host that has just joined.
pub(crate) async fn join<S: Store>(store: &S, name: &str, ttl: Micros) -> Incarnation {
    let who = new_life();
    let slot = store
        .join(who, HostInfo::named(name), ttl)
        .await
        .expect("join");
    assert!((1..=1023).contains(&slot), "slot {slot}");
    who
}

/// Renews `who` and returns what it sees.
pub(crate) async fn beat<S: Store>(store: &S, who: Incarnation, ttl: Micros) -> View {
    let beat = Beat {
        draining: false,
        accounts: 0,
        live: 0,
        ttl,
    };
    match store.beat(who, beat).await.expect("beat") {
        Beaten::Renewed(view) => view,
        Beaten::Dead => panic!("{who:?} should live"),
    }
}

pub(crate) fn business(name: &str) -> BusinessId {
    BusinessId::new(name).expect("a name of the suite")
}

pub(crate) fn record(content: &str) -> Record {
    Record(bytes::Bytes::copy_from_slice(content.as_bytes()))
}

/// An owner of one account as an engine would be: knows its term and counts its batches.
pub(crate) struct Owner<S> {
    pub(crate) store: S,
    pub(crate) id: AccountId,
    pub(crate) term: Term,
    pub(crate) seq: Seq,
}

impl<S: Store> Owner<S> {
    /// Creates the account and claims it for a new host.
    pub(crate) async fn create(store: &S, business: &BusinessId, name: &str) -> Self {
        let id = store
            .create_account(business, name)
            .await
            .expect("create an account");
        let who = join(store, name, LONG).await;
        Self::claim(store, &id, who).await
    }

    pub(crate) async fn claim(store: &S, id: &AccountId, who: Incarnation) -> Self {
        Self::of(store, id, granted(store, id, who).await)
    }

    /// Claims for a new host, and does not take no for an answer: whoever has it is declared dead.
    pub(crate) async fn seize(store: &S, id: &AccountId) -> Self {
        let mut who = join(store, "robber", LONG).await;
        loop {
            match store.claim(who, vec![id.clone()]).await.as_deref() {
                Ok([Claim::Granted(lease)]) => return Self::of(store, id, *lease),
                Ok([Claim::Held { by }]) => {
                    store.declare_dead(who, *by).await.expect("declare dead");
                }
                Ok([Claim::Locked]) => {}
                // Somebody else was faster.
                Err(StoreError::NotMember) => who = join(store, "robber", LONG).await,
                other => panic!("a claim was answered {other:?}"),
            }
        }
    }

    pub(crate) fn of(store: &S, id: &AccountId, lease: Lease) -> Self {
        Self {
            store: store.clone(),
            id: id.clone(),
            term: lease.term,
            seq: lease.applied,
        }
    }

    /// Who it is.
    pub(crate) fn who(&self) -> Incarnation {
        self.term.holder
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.term.epoch
    }

    /// The next batch of the history.
    pub(crate) fn batch(&mut self, rows: impl IntoIterator<Item = (Key, Option<Record>)>) -> Batch {
        self.seq = self.seq.next();
        Batch {
            account: self.id.clone(),
            term: self.term,
            seq: self.seq,
            reseal: false,
            at: UnixMillis(1_700_000_000_000),
            rows: rows.into_iter().collect(),
        }
    }

    pub(crate) async fn write(&mut self, rows: impl IntoIterator<Item = (Key, Option<Record>)>) {
        let batch = self.batch(rows);
        assert_eq!(commit(&self.store, [batch]).await, [Outcome::Committed]);
    }

    pub(crate) async fn release(&self) {
        let mine = vec![(self.id.clone(), self.epoch())];
        self.store.release(self.who(), mine).await.expect("release");
    }

    pub(crate) async fn load(&self, key: &Key) -> Row {
        load(&self.store, &self.id, [key.clone()]).await.remove(0)
    }

    pub(crate) async fn table(&self, table: Table) -> Vec<(Key, Row)> {
        whole_table(&self.store, &self.id, table, 1000).await
    }
}

pub(crate) async fn claim<S: Store>(store: &S, id: &AccountId, who: Incarnation) -> Claim {
    let answers = store.claim(who, vec![id.clone()]).await.expect("claim");
    assert_eq!(answers.len(), 1, "one answer per account");
    answers[0]
}

pub(crate) async fn granted<S: Store>(store: &S, id: &AccountId, who: Incarnation) -> Lease {
    match claim(store, id, who).await {
        Claim::Granted(lease) => {
            assert_eq!(lease.term.holder, who);
            lease
        }
        other => panic!("{id} should be free for {who:?}, but: {other:?}"),
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
            ("hosts", include_str!("conformance/hosts.rs")),
            ("ownership", include_str!("conformance/ownership.rs")),
            ("seals", include_str!("conformance/seals.rs")),
            ("vault", include_str!("conformance/vault.rs")),
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
            cases > 45,
            "only {cases} cases found: has the layout of the sources changed?"
        );
    }
}
