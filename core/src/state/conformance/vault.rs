//! Keys of tenants, and records that say the same under another key.

use super::*;

/// Numbered, compared before they are replaced, of one tenant each; a tenant can have keys before it has accounts.
pub async fn keys_of_tenants_are_swapped_not_overwritten<H: Harness>(harness: H) {
    let store = harness.open();
    let (acme, other) = (business("acme"), business("other"));
    assert_eq!(store.vault(&acme).await, Ok(vec![]));
    assert_eq!(store.tenants().await, Ok(vec![]));
    let (one, two) = (record("one"), record("two"));
    let swap = |number, old: Option<&Record>, new: Option<&Record>| {
        store.swap_vault(&acme, number, old.cloned(), new.cloned())
    };
    assert_eq!(
        swap(1, Some(&one), Some(&two)).await,
        Ok(false),
        "no key yet"
    );
    assert_eq!(swap(1, None, Some(&one)).await, Ok(true));
    assert_eq!(swap(1, None, Some(&two)).await, Ok(false), "there is one");
    assert_eq!(swap(1, Some(&two), None).await, Ok(false), "another one");
    assert_eq!(swap(7, None, Some(&two)).await, Ok(true));
    let there = vec![(1, one.clone()), (7, two.clone())];
    assert_eq!(harness.open().vault(&acme).await, Ok(there));
    assert_eq!(store.vault(&other).await, Ok(vec![]));
    assert_eq!(store.tenants().await, Ok(vec![acme.clone()]));
    store.create_account(&other, "main").await.expect("create");
    assert_eq!(store.tenants().await, Ok(vec![acme.clone(), other.clone()]));

    assert_eq!(swap(1, Some(&one), Some(&two)).await, Ok(true));
    assert_eq!(swap(7, Some(&two), None).await, Ok(true));
    assert_eq!(swap(7, None, None).await, Ok(true), "none is what it was");
    let store = harness.restart(store.clone());
    assert_eq!(store.vault(&acme).await, Ok(vec![(1, two)]));
    let long = Record(vec![7; 4097].into());
    for (number, key) in [(0, one.clone()), (u32::MAX, one), (2, long)] {
        let answer = store.swap_vault(&acme, number, None, Some(key)).await;
        assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    }
}

/// In every table: a record is replaced only if it is still what the caller has read, whoever owns the account, and
/// its age stays.
pub async fn records_are_swapped_only_for_what_they_were<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let mut other = Owner::create(&store, &business("acme"), "other").await;
    let keys: Vec<_> = Table::ALL
        .iter()
        .flat_map(|&table| samples::keys(table))
        .collect();
    let old = || keys.iter().map(|key| (key.clone(), Some(record("old"))));
    owner.write(old()).await;
    other.write(old()).await;
    // Every other row is written by its owner meanwhile.
    let moved = keys.iter().step_by(2).cloned();
    owner
        .write(moved.map(|key| (key, Some(record("newer")))))
        .await;
    let absent = Key::PreKey(0xff_fffe);
    let swaps: Vec<_> = keys
        .iter()
        .cloned()
        .chain([absent.clone()])
        .map(|key| (key, record("old"), record("same")))
        .collect();
    let swapped = store.swap_records(&owner.id, swaps.clone()).await;
    assert_eq!(swapped, Ok((keys.len() / 2) as u32));
    let again = store.swap_records(&owner.id, swaps.clone()).await;
    assert_eq!(again, Ok(0));
    let rows = load(&store, &owner.id, keys.clone()).await;
    for (n, row) in rows.into_iter().enumerate() {
        let expected = if n % 2 == 0 { "newer" } else { "same" };
        assert_eq!(row, Row::Present(record(expected)), "{:?}", keys[n]);
    }
    assert_eq!(owner.load(&absent).await, Row::Absent);
    for row in load(&store, &other.id, keys.clone()).await {
        assert_eq!(row, Row::Present(record("old")), "the neighbour's");
    }
    // The age is the one of the batch, and the owner goes on.
    let aged = UnixMillis(1_700_000_000_000);
    let young = store.retain(&owner.id, Table::Seen, aged, 100).await;
    assert_eq!(young, Ok(0));
    owner.write([]).await;
    let mut wrong = owner.id.clone();
    wrong.business = business("thief");
    let stolen = store.swap_records(&wrong, swaps).await;
    assert_eq!(stolen, Err(StoreError::NoAccount));
    assert_eq!(store.swap_records(&owner.id, vec![]).await, Ok(0));
}
