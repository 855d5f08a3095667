//! The wall between tenants, call by call.

use super::*;
use baton_core::state::{
    Claim, Epoch, HandOver, MessageId, Outcome, Placement, Scan, StoreError, Table,
    conformance::samples,
};
use proptest::prelude::*;

/// Everything of one tenant that can be read.
fn everything(store: &SqliteStore, tenant: &BusinessId, id: &AccountId) -> String {
    let tables: Vec<_> = Table::ALL
        .iter()
        .map(|&table| {
            let scan = Scan {
                table,
                after: None,
                limit: 1000,
            };
            let rows = block_on(store.scan(id, scan)).unwrap();
            rows.into_iter()
                .map(|(key, row)| match row {
                    Row::Present(record) => (key, record.0.to_vec()),
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let info = block_on(store.accounts(tenant)).unwrap();
    let vault = block_on(store.vault(tenant)).unwrap();
    let keys: Vec<_> = vault.iter().map(|(n, key)| (n, key.0.to_vec())).collect();
    let term: Vec<_> = block_on(store.held(BOB)).unwrap();
    format!("{tables:?} {info:?} {keys:?} {term:?}")
}

/// One call for an account that is the other tenant's, or for the tenant that is not its own.
fn trespass(
    store: &SqliteStore,
    call: usize,
    wrong: &AccountId,
    term: Term,
    key: Key,
    content: u8,
) -> Result<(), TestCaseError> {
    let record = || Record(Bytes::from(vec![content]));
    let victims = || Record(Bytes::from_static(b"victim"));
    let missing = |answer: Option<StoreError>| {
        prop_assert_eq!(answer, Some(StoreError::NoAccount), "call {}", call);
        Ok(())
    };
    let run = Placement {
        run: true,
        pin: Some("thief".into()),
        ..Placement::default()
    };
    match call {
        0 => missing(block_on(store.load(wrong, vec![key])).err()),
        1 => {
            let scan = Scan {
                table: key.table(),
                after: Some(key),
                limit: 10,
            };
            missing(block_on(store.scan(wrong, scan)).err())
        }
        2 => {
            let mut batch = batch(wrong, term, 2, []);
            batch.reseal = content.is_multiple_of(2);
            batch.rows.insert(key, Some(record()));
            let outcomes = block_on(store.commit(vec![batch])).unwrap();
            prop_assert!(matches!(outcomes[..], [Outcome::Rejected(_)]));
            Ok(())
        }
        3 => {
            let outcomes = block_on(store.confirm(vec![(wrong.clone(), term)])).unwrap();
            prop_assert!(matches!(outcomes[..], [Outcome::Rejected(_)]));
            Ok(())
        }
        4 => missing(block_on(store.delete_account(wrong)).err()),
        5 => {
            let id = MessageId::from("stolen");
            missing(block_on(store.enqueue(wrong, id, record(), UnixMillis(0))).err())
        }
        6 => {
            let far = UnixMillis(i64::MAX);
            missing(block_on(store.retain(wrong, Table::Seen, far, 100)).err())
        }
        7 => {
            let claims = block_on(store.claim(ALICE, vec![wrong.clone()])).unwrap();
            prop_assert_eq!(claims, [Claim::Missing]);
            Ok(())
        }
        8 => {
            block_on(store.release(BOB, vec![(wrong.clone(), term.epoch)])).unwrap();
            Ok(())
        }
        9 => missing(block_on(store.hand_over(BOB, wrong, term.epoch, ALICE)).err()),
        10 => missing(block_on(store.place(wrong, run)).err()),
        11 => missing(block_on(store.retire(BOB, wrong, term.epoch)).err()),
        12 => {
            let swaps = vec![(key, victims(), record())];
            missing(block_on(store.swap_records(wrong, swaps)).err())
        }
        // Calls that name a tenant only: they act on what is that tenant's own.
        13 => {
            let old = Some(victims());
            let swapped = block_on(store.swap_vault(&wrong.business, 1, old, None));
            prop_assert_eq!(swapped, Ok(false));
            Ok(())
        }
        14 => {
            let seen = block_on(store.vault(&wrong.business)).unwrap();
            prop_assert!(seen.iter().all(|(_, key)| key.0 != victims().0));
            Ok(())
        }
        15 => {
            let seen = block_on(store.accounts(&wrong.business)).unwrap();
            prop_assert!(seen.iter().all(|info| info.id.device != wrong.device));
            Ok(())
        }
        _ => {
            let name = format!("n{content}");
            match block_on(store.create_account(&wrong.business, &name)) {
                Ok(_) | Err(StoreError::Exists) => Ok(()),
                Err(error) => Err(TestCaseError::fail(error.to_string())),
            }
        }
    }
}

const CALLS: usize = 17;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is called in the name of one business, nothing of another is read or changed: not by its account
    /// number, not with its very term.
    #[test]
    fn no_call_for_one_business_touches_another(
        calls in prop::collection::vec((0..CALLS, 0..2_usize, any::<u8>(), any::<prop::sample::Index>()), 1..60)
    ) {
        let harness = OnDisk::new();
        let store = harness.open();
        let victim = BusinessId::new("victim").unwrap();
        // Names that a sloppy comparison would take for the victim's.
        let thieves = ["victi", "victim_"].map(|name| BusinessId::new(name).unwrap());
        let id = block_on(store.create_account(&victim, "main")).unwrap();
        for thief in &thieves {
            block_on(store.create_account(thief, "main")).unwrap();
        }
        join(&store, ALICE, HOUR);
        let term = owned(&store, BOB, &id);
        let keys: Vec<Key> = Table::ALL.iter().flat_map(|&table| samples::keys(table)).collect();
        let rows = keys.iter().map(|key| (key.clone(), b"victim".to_vec()));
        let outcomes = block_on(store.commit(vec![batch(&id, term, 1, rows)])).unwrap();
        prop_assert_eq!(outcomes, [Outcome::Committed]);
        let wrapped = Some(Record(Bytes::from_static(b"victim")));
        block_on(store.swap_vault(&victim, 1, None, wrapped)).unwrap();
        let before = everything(&store, &victim, &id);

        for (call, thief, content, key) in calls {
            let wrong = AccountId { business: thieves[thief].clone(), device: id.device };
            trespass(&store, call, &wrong, term, key.get(&keys).clone(), content)?;
        }
        prop_assert_eq!(before, everything(&store, &victim, &id));
        // And the victim goes on where it was.
        let outcomes = block_on(store.commit(vec![batch(&id, term, 2, [])])).unwrap();
        prop_assert_eq!(outcomes, [Outcome::Committed]);
        let handed = block_on(store.hand_over(BOB, &id, term.epoch, ALICE)).unwrap();
        prop_assert_eq!(handed, HandOver::Done { epoch: Epoch(term.epoch.0 + 1) });
    }
}
