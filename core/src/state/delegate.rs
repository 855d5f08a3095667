//! A store on top of another: what it does not change, it passes on.

/// Passes calls of [`Store`](crate::state::Store) on to a field, inside an `impl Store for` block. The calls are named, so
/// that a new one has to be decided about:
///
/// ```ignore
/// impl<S: Store> Store for Counting<S> {
///     async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> { /* counts */ }
///     baton_core::delegate_store!(inner: load scan confirm create_account /* and so on */);
/// }
/// ```
#[macro_export]
macro_rules! delegate_store {
    ($inner:ident: $($call:ident)*) => {
        $($crate::delegate_store! { @ $inner $call })*
    };
    (@ $inner:ident load) => {
        fn load(&self, account: &$crate::state::AccountId, keys: ::std::vec::Vec<$crate::state::Key>) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::Row>, $crate::state::StoreError>> + Send {
            $crate::state::Store::load(&self.$inner, account, keys)
        }
    };
    (@ $inner:ident scan) => {
        fn scan(&self, account: &$crate::state::AccountId, scan: $crate::state::Scan) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<($crate::state::Key, $crate::state::Row)>, $crate::state::StoreError>> + Send {
            $crate::state::Store::scan(&self.$inner, account, scan)
        }
    };
    (@ $inner:ident commit) => {
        fn commit(&self, batches: ::std::vec::Vec<$crate::state::Batch>) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::Outcome>, $crate::state::StoreError>> + Send {
            $crate::state::Store::commit(&self.$inner, batches)
        }
    };
    (@ $inner:ident confirm) => {
        fn confirm(&self, terms: ::std::vec::Vec<($crate::state::AccountId, $crate::state::Term)>) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::Outcome>, $crate::state::StoreError>> + Send {
            $crate::state::Store::confirm(&self.$inner, terms)
        }
    };
    (@ $inner:ident create_account) => {
        fn create_account(&self, business: &$crate::state::BusinessId, name: &str) -> impl ::std::future::Future<Output = ::std::result::Result<$crate::state::AccountId, $crate::state::StoreError>> + Send {
            $crate::state::Store::create_account(&self.$inner, business, name)
        }
    };
    (@ $inner:ident delete_account) => {
        fn delete_account(&self, account: &$crate::state::AccountId) -> impl ::std::future::Future<Output = ::std::result::Result<(), $crate::state::StoreError>> + Send {
            $crate::state::Store::delete_account(&self.$inner, account)
        }
    };
    (@ $inner:ident accounts) => {
        fn accounts(&self, business: &$crate::state::BusinessId) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::AccountInfo>, $crate::state::StoreError>> + Send {
            $crate::state::Store::accounts(&self.$inner, business)
        }
    };
    (@ $inner:ident tenants) => {
        fn tenants(&self) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::BusinessId>, $crate::state::StoreError>> + Send {
            $crate::state::Store::tenants(&self.$inner)
        }
    };
    (@ $inner:ident enqueue) => {
        fn enqueue(&self, account: &$crate::state::AccountId, id: $crate::state::MessageId, request: $crate::state::Record, at: $crate::state::UnixMillis) -> impl ::std::future::Future<Output = ::std::result::Result<bool, $crate::state::StoreError>> + Send {
            $crate::state::Store::enqueue(&self.$inner, account, id, request, at)
        }
    };
    (@ $inner:ident retain) => {
        fn retain(&self, account: &$crate::state::AccountId, table: $crate::state::Table, before: $crate::state::UnixMillis, limit: u32) -> impl ::std::future::Future<Output = ::std::result::Result<u32, $crate::state::StoreError>> + Send {
            $crate::state::Store::retain(&self.$inner, account, table, before, limit)
        }
    };
    (@ $inner:ident join) => {
        fn join(&self, who: $crate::state::Incarnation, info: $crate::state::HostInfo, ttl: $crate::state::Micros) -> impl ::std::future::Future<Output = ::std::result::Result<u16, $crate::state::StoreError>> + Send {
            $crate::state::Store::join(&self.$inner, who, info, ttl)
        }
    };
    (@ $inner:ident beat) => {
        fn beat(&self, who: $crate::state::Incarnation, beat: $crate::state::Beat) -> impl ::std::future::Future<Output = ::std::result::Result<$crate::state::Beaten, $crate::state::StoreError>> + Send {
            $crate::state::Store::beat(&self.$inner, who, beat)
        }
    };
    (@ $inner:ident hosts) => {
        fn hosts(&self) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::HostView>, $crate::state::StoreError>> + Send {
            $crate::state::Store::hosts(&self.$inner)
        }
    };
    (@ $inner:ident drain) => {
        fn drain(&self, who: $crate::state::Incarnation, drain: bool) -> impl ::std::future::Future<Output = ::std::result::Result<bool, $crate::state::StoreError>> + Send {
            $crate::state::Store::drain(&self.$inner, who, drain)
        }
    };
    (@ $inner:ident declare_dead) => {
        fn declare_dead(&self, by: $crate::state::Incarnation, dead: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<bool, $crate::state::StoreError>> + Send {
            $crate::state::Store::declare_dead(&self.$inner, by, dead)
        }
    };
    (@ $inner:ident leave) => {
        fn leave(&self, who: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<(), $crate::state::StoreError>> + Send {
            $crate::state::Store::leave(&self.$inner, who)
        }
    };
    (@ $inner:ident claim) => {
        fn claim(&self, who: $crate::state::Incarnation, accounts: ::std::vec::Vec<$crate::state::AccountId>) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::Claim>, $crate::state::StoreError>> + Send {
            $crate::state::Store::claim(&self.$inner, who, accounts)
        }
    };
    (@ $inner:ident release) => {
        fn release(&self, who: $crate::state::Incarnation, accounts: ::std::vec::Vec<($crate::state::AccountId, $crate::state::Epoch)>) -> impl ::std::future::Future<Output = ::std::result::Result<(), $crate::state::StoreError>> + Send {
            $crate::state::Store::release(&self.$inner, who, accounts)
        }
    };
    (@ $inner:ident hand_over) => {
        fn hand_over(&self, who: $crate::state::Incarnation, account: &$crate::state::AccountId, epoch: $crate::state::Epoch, to: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<$crate::state::HandOver, $crate::state::StoreError>> + Send {
            $crate::state::Store::hand_over(&self.$inner, who, account, epoch, to)
        }
    };
    (@ $inner:ident held) => {
        fn held(&self, who: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<($crate::state::AccountId, $crate::state::Lease)>, $crate::state::StoreError>> + Send {
            $crate::state::Store::held(&self.$inner, who)
        }
    };
    (@ $inner:ident orphans) => {
        fn orphans(&self, after: ::std::option::Option<$crate::state::AccountId>, limit: u32) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::Orphan>, $crate::state::StoreError>> + Send {
            $crate::state::Store::orphans(&self.$inner, after, limit)
        }
    };
    (@ $inner:ident misplaced) => {
        fn misplaced(&self, who: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<($crate::state::AccountId, $crate::state::Placement)>, $crate::state::StoreError>> + Send {
            $crate::state::Store::misplaced(&self.$inner, who)
        }
    };
    (@ $inner:ident mail) => {
        fn mail(&self, who: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<$crate::state::AccountId>, $crate::state::StoreError>> + Send {
            $crate::state::Store::mail(&self.$inner, who)
        }
    };
    (@ $inner:ident place) => {
        fn place(&self, account: &$crate::state::AccountId, placement: $crate::state::Placement) -> impl ::std::future::Future<Output = ::std::result::Result<(), $crate::state::StoreError>> + Send {
            $crate::state::Store::place(&self.$inner, account, placement)
        }
    };
    (@ $inner:ident retire) => {
        fn retire(&self, who: $crate::state::Incarnation, account: &$crate::state::AccountId, epoch: $crate::state::Epoch) -> impl ::std::future::Future<Output = ::std::result::Result<bool, $crate::state::StoreError>> + Send {
            $crate::state::Store::retire(&self.$inner, who, account, epoch)
        }
    };
    (@ $inner:ident history) => {
        fn history(&self) -> impl ::std::future::Future<Output = ::std::result::Result<$crate::state::Seal, $crate::state::StoreError>> + Send {
            $crate::state::Store::history(&self.$inner)
        }
    };
    (@ $inner:ident renew_history) => {
        fn renew_history(&self, now: $crate::state::Seal) -> impl ::std::future::Future<Output = ::std::result::Result<$crate::state::Seal, $crate::state::StoreError>> + Send {
            $crate::state::Store::renew_history(&self.$inner, now)
        }
    };
    (@ $inner:ident watch) => {
        fn watch(&self, who: $crate::state::Incarnation) -> impl ::std::future::Future<Output = ::std::result::Result<$crate::state::Change, $crate::state::StoreError>> + Send {
            $crate::state::Store::watch(&self.$inner, who)
        }
    };
    (@ $inner:ident vault) => {
        fn vault(&self, business: &$crate::state::BusinessId) -> impl ::std::future::Future<Output = ::std::result::Result<::std::vec::Vec<(u32, $crate::state::Record)>, $crate::state::StoreError>> + Send {
            $crate::state::Store::vault(&self.$inner, business)
        }
    };
    (@ $inner:ident swap_vault) => {
        fn swap_vault(&self, business: &$crate::state::BusinessId, number: u32, old: ::std::option::Option<$crate::state::Record>, new: ::std::option::Option<$crate::state::Record>) -> impl ::std::future::Future<Output = ::std::result::Result<bool, $crate::state::StoreError>> + Send {
            $crate::state::Store::swap_vault(&self.$inner, business, number, old, new)
        }
    };
    (@ $inner:ident swap_records) => {
        fn swap_records(&self, account: &$crate::state::AccountId, records: ::std::vec::Vec<($crate::state::Key, $crate::state::Record, $crate::state::Record)>) -> impl ::std::future::Future<Output = ::std::result::Result<u32, $crate::state::StoreError>> + Send {
            $crate::state::Store::swap_records(&self.$inner, account, records)
        }
    };
}

#[cfg(test)]
mod tests {
    use crate::state::{Micros, Store, memory::MemoryStore};

    #[derive(Clone)]
    struct Named {
        inner: MemoryStore,
    }

    impl Store for Named {
        crate::delegate_store!(inner: load scan commit confirm create_account delete_account accounts tenants enqueue
            retain join beat hosts drain declare_dead leave claim release hand_over held orphans misplaced mail place retire history
            renew_history watch vault swap_vault swap_records);
    }

    #[test]
    fn a_store_that_passes_everything_on_is_the_store() {
        let named = Named {
            inner: MemoryStore::new(|| Micros(0)),
        };
        let business = crate::state::BusinessId::default();
        let block_on =
            |name: &str| crate::state::conformance::block_on(named.create_account(&business, name));
        let id = block_on("main").unwrap();
        assert_eq!(id.device, 1);
        assert_eq!(block_on("main"), Err(crate::state::StoreError::Exists));
    }
}
