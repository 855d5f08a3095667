//! Records at rest: nothing in the clear, nothing that reads as something else.

use super::*;
use proptest::prelude::*;

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn nothing_below_holds_a_record_in_the_clear() {
    block_on(async {
        let below = memory();
        let sealed = open(&below);
        let mut owner = Owner::create(&sealed, &acme(), "main").await;
        let rows = all_keys().into_iter().map(|key| (key, Some(secret(""))));
        owner.write(rows).await;
        let request = Key::Mailbox("asked".into());
        let at = NOW;
        assert_eq!(
            sealed
                .enqueue(&owner.id, "asked".into(), secret("request"), at)
                .await,
            Ok(true)
        );
        assert_eq!(owner.load(&request).await, Row::Present(secret("request")));

        let mut seen = 0;
        let mut judge = |record: &Record| {
            assert!(!contains(&record.0, SECRET));
            assert!(!contains(&record.0, &[1; 16]), "the master key");
            seen += 1;
        };
        let present = |row: Row| match row {
            Row::Present(record) => record,
            other => panic!("{other:?}"),
        };
        for (_, row) in stored(&below, &owner.id) {
            judge(&present(row));
        }
        for account in below.accounts(&acme()).await.unwrap() {
            judge(&present(account.device));
        }
        for (_, key) in below.vault(&acme()).await.unwrap() {
            judge(&key);
        }
        assert_eq!(
            seen,
            all_keys().len() + 1 + 1 + 1,
            "rows, request, account, key"
        );
        // The same through the store: the scan above would have found it.
        let clear = stored(&sealed, &owner.id);
        assert!(
            clear
                .into_iter()
                .all(|(_, row)| contains(&present(row).0, SECRET))
        );
    });
}

#[test]
fn the_same_record_is_never_encrypted_the_same_way() {
    block_on(async {
        let below = memory();
        let mut owner = Owner::create(&open(&below), &acme(), "main").await;
        let mut forms = std::collections::BTreeSet::new();
        for _ in 0..50 {
            owner.write([(Key::Counters, Some(secret("")))]).await;
            // A process of its own.
            owner.store = open(&below);
            let rows = below.load(&owner.id, vec![Key::Counters]).await.unwrap();
            let [Row::Present(record)] = &rows[..] else {
                panic!("{rows:?}")
            };
            forms.insert(record.0.to_vec());
        }
        assert_eq!(forms.len(), 50);
    });
}

/// The limit of the engine is the same with and without encryption, and one byte more is refused here already.
#[test]
fn the_largest_record_fits_and_a_larger_one_is_rejected_alone() {
    block_on(async {
        let below = memory();
        let sealed = open(&below);
        let mut owner = Owner::create(&sealed, &acme(), "main").await;
        let of = |bytes: usize| Record(Bytes::from(vec![1; bytes]));
        let largest = owner.batch([(Key::Device, Some(of(Record::MAX_BYTES)))]);
        let too_large = owner.batch([(Key::Device, Some(of(Record::MAX_BYTES + 1)))]);
        let next = owner.batch([(Key::Counters, None)]);
        let next = crate::state::Batch {
            seq: too_large.seq,
            ..next
        };
        let outcomes = sealed.commit(vec![largest, too_large, next]).await.unwrap();
        assert!(
            matches!(
                &outcomes[..],
                [Outcome::Committed, Outcome::Rejected(_), Outcome::Committed]
            ),
            "{outcomes:?}"
        );
        assert_eq!(
            owner.load(&Key::Device).await,
            Row::Present(of(Record::MAX_BYTES))
        );
        let refused = sealed
            .enqueue(&owner.id, "m".into(), of(Record::MAX_BYTES + 1), NOW)
            .await;
        assert!(matches!(refused, Err(StoreError::Refused(_))));
    });
}

/// Two tenants, three accounts, a few rows in every table, all with different contents. Under `Convert` rows in the clear
/// are still accepted.
fn world(plain: PlainRows) -> (MemoryStore, Vec<(AccountId, Key, Record)>) {
    block_on(async {
        let below = memory();
        let sealed = open_with(&below, MasterKeys::new(master(1)), plain).unwrap();
        let mut rows = Vec::new();
        for (business, name) in [("acme", "one"), ("acme", "two"), ("other", "one")] {
            let business = BusinessId::new(business).unwrap();
            let mut owner = Owner::create(&sealed, &business, name).await;
            let keys: Vec<_> = Table::ALL
                .iter()
                .flat_map(|&table| samples::keys(table).into_iter().take(3))
                .collect();
            let of = |key: &Key| secret(&format!("{} {:?}", owner.id, key.to_bytes()));
            let written: Vec<_> = keys.iter().map(|key| (key.clone(), of(key))).collect();
            for (key, record) in &written {
                rows.push((owner.id.clone(), key.clone(), record.clone()));
            }
            owner
                .write(written.into_iter().map(|(key, record)| (key, Some(record))))
                .await;
        }
        (below, rows)
    })
}

async fn raw(below: &MemoryStore, (account, key, _): &(AccountId, Key, Record)) -> Record {
    match below
        .load(account, vec![key.clone()])
        .await
        .unwrap()
        .remove(0)
    {
        Row::Present(record) => record,
        other => panic!("{other:?}"),
    }
}

/// Puts other bytes under a row, as whoever can write to the database could.
async fn replace(below: &MemoryStore, row: &(AccountId, Key, Record), by: Record) {
    let old = raw(below, row).await;
    let (account, key, _) = row;
    let swap = vec![(key.clone(), old, by)];
    assert_eq!(below.swap_records(account, swap).await, Ok(1));
}

async fn read<S: Store>(store: &S, (account, key, _): &(AccountId, Key, Record)) -> Row {
    let loaded = store.load(account, vec![key.clone()]).await.unwrap();
    let scan = Scan {
        table: key.table(),
        after: None,
        limit: 100,
    };
    let scanned = store.scan(account, scan).await.unwrap();
    let found = scanned.into_iter().find(|(found, _)| found == key);
    assert_eq!(loaded.first(), found.as_ref().map(|(_, row)| row));
    found.unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_is_corrupt_and_nothing_else_is(row: prop::sample::Index, bit: prop::sample::Index, convert: bool) {
        let (below, rows) = world(if convert { PlainRows::Convert } else { PlainRows::Refuse });
        let row = row.get(&rows);
        block_on(async {
            let mut bytes = raw(&below, row).await.0.to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            replace(&below, row, Record(bytes.into())).await;
            let sealed = open(&below);
            for other in &rows {
                let expected = if other == row { Row::Corrupt } else { Row::Present(other.2.clone()) };
                assert_eq!(read(&sealed, other).await, expected);
            }
        });
    }

    #[test]
    fn rows_that_were_moved_are_corrupt(from: prop::sample::Index, to: prop::sample::Index, swap: bool) {
        let (below, rows) = world(PlainRows::Refuse);
        let (from, to) = (from.get(&rows), to.get(&rows));
        prop_assume!(from != to);
        block_on(async {
            let (moved, replaced) = (raw(&below, from).await, raw(&below, to).await);
            replace(&below, to, moved).await;
            if swap {
                replace(&below, from, replaced).await;
            }
            let sealed = open(&below);
            for row in &rows {
                let is_moved = row == to || (swap && row == from);
                let expected = if is_moved { Row::Corrupt } else { Row::Present(row.2.clone()) };
                assert_eq!(read(&sealed, row).await, expected);
            }
        });
    }

    #[test]
    fn a_row_that_was_cut_off_is_corrupt(row: prop::sample::Index, cut: prop::sample::Index) {
        let (below, rows) = world(PlainRows::Refuse);
        let row = row.get(&rows);
        block_on(async {
            let whole = raw(&below, row).await;
            let cut = whole.0.slice(..cut.index(whole.0.len()));
            replace(&below, row, Record(cut)).await;
            assert_eq!(read(&open(&below), row).await, Row::Corrupt);
        });
    }
}
