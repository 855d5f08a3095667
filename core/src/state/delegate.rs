//! A store on top of another: what it does not change, it passes on.

/// Passes calls of [`Store`](crate::state::Store) on, inside an `impl Store for` block. The calls are named, so that a new
/// one has to be decided about; `all` are all of them.
///
/// - `delegate_store!(inner: load scan)`: to a field;
/// - `delegate_store!(inner through call: load scan)`: the same, each inside
///   `self.call("load", future)`, an asynchronous method that awaits the call, or does not;
/// - `delegate_store!(with each: load scan)`: to a macro, which is given the signature,
///   `load(account: &AccountId, keys: Vec<Key>) -> Vec<Row>`, and defines the function.
///
/// ```ignore
/// impl<S: Store> Store for Counting<S> {
///     async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> { /* counts */ }
///     baton_core::delegate_store!(inner: load scan confirm create_account /* and so on */);
/// }
/// ```
#[macro_export]
macro_rules! delegate_store {
    (with $macro:ident: $($name:ident)*) => {
        $crate::delegate_store! { @some (with $macro) $($name)* }
    };
    ($inner:ident through $call:ident: $($name:ident)*) => {
        $crate::delegate_store! { @some (through $inner $call) $($name)* }
    };
    ($inner:ident: $($name:ident)*) => {
        $crate::delegate_store! { @some (to $inner) $($name)* }
    };
    (@some $how:tt all) => {
        $crate::delegate_store! {
            @some $how
            load scan commit confirm create_account delete_account accounts tenants enqueue retain join beat
            hosts drain declare_dead leave claim release hand_over held orphans misplaced mail place retire
            history renew_history watch vault swap_vault swap_records
        }
    };
    (@some $how:tt $($name:ident)*) => {
        $($crate::delegate_store! { @ $how $name })*
    };
    (@define (to $inner:ident) $name:ident($($arg:ident: $kind:ty),*) -> $answer:ty) => {
        fn $name(&self, $($arg: $kind),*) -> impl ::std::future::Future<Output = ::std::result::Result<$answer, $crate::state::StoreError>> + Send {
            $crate::state::Store::$name(&self.$inner, $($arg),*)
        }
    };
    (@define (through $inner:ident $call:ident) $name:ident($($arg:ident: $kind:ty),*) -> $answer:ty) => {
        fn $name(&self, $($arg: $kind),*) -> impl ::std::future::Future<Output = ::std::result::Result<$answer, $crate::state::StoreError>> + Send {
            self.$call(stringify!($name), $crate::state::Store::$name(&self.$inner, $($arg),*))
        }
    };
    (@define (with $macro:ident) $($signature:tt)*) => {
        $macro! { $($signature)* }
    };
    (@ $how:tt load) => {
        $crate::delegate_store! { @define $how load(account: &$crate::state::AccountId, keys: ::std::vec::Vec<$crate::state::Key>) -> ::std::vec::Vec<$crate::state::Row> }
    };
    (@ $how:tt scan) => {
        $crate::delegate_store! { @define $how scan(account: &$crate::state::AccountId, scan: $crate::state::Scan) -> ::std::vec::Vec<($crate::state::Key, $crate::state::Row)> }
    };
    (@ $how:tt commit) => {
        $crate::delegate_store! { @define $how commit(batches: ::std::vec::Vec<$crate::state::Batch>) -> ::std::vec::Vec<$crate::state::Outcome> }
    };
    (@ $how:tt confirm) => {
        $crate::delegate_store! { @define $how confirm(terms: ::std::vec::Vec<($crate::state::AccountId, $crate::state::Term)>) -> ::std::vec::Vec<$crate::state::Outcome> }
    };
    (@ $how:tt create_account) => {
        $crate::delegate_store! { @define $how create_account(business: &$crate::state::BusinessId, name: &str) -> $crate::state::AccountId }
    };
    (@ $how:tt delete_account) => {
        $crate::delegate_store! { @define $how delete_account(account: &$crate::state::AccountId) -> () }
    };
    (@ $how:tt accounts) => {
        $crate::delegate_store! { @define $how accounts(business: &$crate::state::BusinessId) -> ::std::vec::Vec<$crate::state::AccountInfo> }
    };
    (@ $how:tt tenants) => {
        $crate::delegate_store! { @define $how tenants() -> ::std::vec::Vec<$crate::state::BusinessId> }
    };
    (@ $how:tt enqueue) => {
        $crate::delegate_store! { @define $how enqueue(account: &$crate::state::AccountId, id: $crate::state::MessageId, request: $crate::state::Record, at: $crate::state::UnixMillis) -> bool }
    };
    (@ $how:tt retain) => {
        $crate::delegate_store! { @define $how retain(account: &$crate::state::AccountId, table: $crate::state::Table, before: $crate::state::UnixMillis, limit: u32) -> u32 }
    };
    (@ $how:tt join) => {
        $crate::delegate_store! { @define $how join(who: $crate::state::Incarnation, info: $crate::state::HostInfo, ttl: $crate::state::Micros) -> u16 }
    };
    (@ $how:tt beat) => {
        $crate::delegate_store! { @define $how beat(who: $crate::state::Incarnation, beat: $crate::state::Beat) -> $crate::state::Beaten }
    };
    (@ $how:tt hosts) => {
        $crate::delegate_store! { @define $how hosts() -> ::std::vec::Vec<$crate::state::HostView> }
    };
    (@ $how:tt drain) => {
        $crate::delegate_store! { @define $how drain(who: $crate::state::Incarnation, drain: bool) -> bool }
    };
    (@ $how:tt declare_dead) => {
        $crate::delegate_store! { @define $how declare_dead(by: $crate::state::Incarnation, dead: $crate::state::Incarnation) -> bool }
    };
    (@ $how:tt leave) => {
        $crate::delegate_store! { @define $how leave(who: $crate::state::Incarnation) -> () }
    };
    (@ $how:tt claim) => {
        $crate::delegate_store! { @define $how claim(who: $crate::state::Incarnation, accounts: ::std::vec::Vec<$crate::state::AccountId>) -> ::std::vec::Vec<$crate::state::Claim> }
    };
    (@ $how:tt release) => {
        $crate::delegate_store! { @define $how release(who: $crate::state::Incarnation, accounts: ::std::vec::Vec<($crate::state::AccountId, $crate::state::Epoch)>) -> () }
    };
    (@ $how:tt hand_over) => {
        $crate::delegate_store! { @define $how hand_over(who: $crate::state::Incarnation, account: &$crate::state::AccountId, epoch: $crate::state::Epoch, to: $crate::state::Incarnation) -> $crate::state::HandOver }
    };
    (@ $how:tt held) => {
        $crate::delegate_store! { @define $how held(who: $crate::state::Incarnation) -> ::std::vec::Vec<($crate::state::AccountId, $crate::state::Lease)> }
    };
    (@ $how:tt orphans) => {
        $crate::delegate_store! { @define $how orphans(after: ::std::option::Option<$crate::state::AccountId>, limit: u32) -> ::std::vec::Vec<$crate::state::Orphan> }
    };
    (@ $how:tt misplaced) => {
        $crate::delegate_store! { @define $how misplaced(who: $crate::state::Incarnation) -> ::std::vec::Vec<($crate::state::AccountId, $crate::state::Placement)> }
    };
    (@ $how:tt mail) => {
        $crate::delegate_store! { @define $how mail(who: $crate::state::Incarnation) -> ::std::vec::Vec<$crate::state::AccountId> }
    };
    (@ $how:tt place) => {
        $crate::delegate_store! { @define $how place(account: &$crate::state::AccountId, placement: $crate::state::Placement) -> () }
    };
    (@ $how:tt retire) => {
        $crate::delegate_store! { @define $how retire(who: $crate::state::Incarnation, account: &$crate::state::AccountId, epoch: $crate::state::Epoch) -> bool }
    };
    (@ $how:tt history) => {
        $crate::delegate_store! { @define $how history() -> $crate::state::Seal }
    };
    (@ $how:tt renew_history) => {
        $crate::delegate_store! { @define $how renew_history(now: $crate::state::Seal) -> $crate::state::Seal }
    };
    (@ $how:tt watch) => {
        $crate::delegate_store! { @define $how watch(who: $crate::state::Incarnation) -> $crate::state::Change }
    };
    (@ $how:tt vault) => {
        $crate::delegate_store! { @define $how vault(business: &$crate::state::BusinessId) -> ::std::vec::Vec<(u32, $crate::state::Record)> }
    };
    (@ $how:tt swap_vault) => {
        $crate::delegate_store! { @define $how swap_vault(business: &$crate::state::BusinessId, number: u32, old: ::std::option::Option<$crate::state::Record>, new: ::std::option::Option<$crate::state::Record>) -> bool }
    };
    (@ $how:tt swap_records) => {
        $crate::delegate_store! { @define $how swap_records(account: &$crate::state::AccountId, records: ::std::vec::Vec<($crate::state::Key, $crate::state::Record, $crate::state::Record)>) -> u32 }
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
        crate::delegate_store!(inner: all);
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
