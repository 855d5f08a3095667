//! Rows: every key shape comes back, in order, and nobody sees a row that is not theirs.

use super::*;
use crate::state::Placement;
use bytes::Bytes;
use std::collections::BTreeMap;

/// A row under every sample key of every table, all at once; then each is loaded by its name.
pub async fn every_key_shape_comes_back<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let rows = one_row_per_sample();
    for key in rows.keys() {
        assert_eq!(
            owner.load(key).await,
            Row::Absent,
            "{key:?} before it was written"
        );
    }
    owner
        .write(
            rows.iter()
                .map(|(key, record)| (key.clone(), Some(record.clone()))),
        )
        .await;
    let found = load(&store, &owner.id, rows.keys().cloned()).await;
    for ((key, record), row) in rows.iter().zip(found) {
        assert_eq!(row, Row::Present(record.clone()), "{key:?}");
    }
    // The answers are in the order of the question, also when a key is asked for twice.
    let keys: Vec<_> = rows
        .keys()
        .rev()
        .chain(rows.keys().take(2))
        .cloned()
        .collect();
    let found = load(&store, &owner.id, keys.clone()).await;
    for (key, row) in keys.iter().zip(found) {
        assert_eq!(row, Row::Present(rows[key].clone()), "{key:?}");
    }
}

/// Whatever the page size, a scan gives the rows of one table in the order of [`Key`].
pub async fn scans_are_in_key_order_and_page_without_gaps<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let rows = one_row_per_sample();
    owner
        .write(
            rows.iter()
                .map(|(key, record)| (key.clone(), Some(record.clone()))),
        )
        .await;
    // A neighbour of the same tenant whose rows must not show up.
    let mut neighbour = Owner::create(&store, &business("acme"), "other").await;
    neighbour
        .write(
            rows.keys()
                .map(|key| (key.clone(), Some(record("neighbour")))),
        )
        .await;

    for &table in Table::ALL {
        let expected: Vec<_> = rows
            .iter()
            .filter(|(key, _)| key.table() == table)
            .map(|(key, record)| (key.clone(), Row::Present(record.clone())))
            .collect();
        assert!(!expected.is_empty(), "no samples of {}", table.name());
        for page in [1, 2, 3, 7, 1000] {
            let found = whole_table(&store, &owner.id, table, page).await;
            assert_eq!(found, expected, "{} in pages of {page}", table.name());
        }
        let none = store
            .scan(
                &owner.id,
                Scan {
                    table,
                    after: None,
                    limit: 0,
                },
            )
            .await
            .expect("scan");
        assert_eq!(none, [], "a page of no rows");
        // Behind a key that has no row of its own.
        let (first, _) = expected[0].clone();
        owner.write([(first.clone(), None)]).await;
        let behind = store
            .scan(
                &owner.id,
                Scan {
                    table,
                    after: Some(first),
                    limit: 1000,
                },
            )
            .await
            .expect("scan");
        assert_eq!(
            behind,
            expected[1..],
            "{} behind a deleted row",
            table.name()
        );
    }
}

/// Empty, every byte value, larger than a database page, larger than a megabyte.
pub async fn records_of_every_size_come_back<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let sizes = [0, 1, 255, 256, 4095, 4096, 4097, 70_000, 3 << 20];
    let content = |size: usize| {
        Record(Bytes::from(
            (0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>(),
        ))
    };
    let keys = |i: usize| {
        [
            Key::PreKey(i as u32 + 1),
            Key::Outbox(format!("m{i}").into()),
        ]
    };
    let rows: Vec<_> = (0..sizes.len())
        .flat_map(|i| keys(i).map(|key| (key, Some(content(sizes[i])))))
        .collect();
    owner.write(rows.clone()).await;
    for (key, record) in rows {
        assert_eq!(
            Row::Present(record.unwrap_or_else(|| content(0))),
            owner.load(&key).await,
            "{key:?}"
        );
    }
    let too_large = Record(Bytes::from(vec![0; Record::MAX_STORED_BYTES + 1]));
    let batch = owner.batch([(Key::Counters, Some(too_large))]);
    assert!(is_rejected(&commit(&store, [batch]).await[0]));
    owner.seq = Seq(owner.seq.0 - 1);
    owner
        .write([(
            Key::Counters,
            Some(Record(Bytes::from(vec![1; Record::MAX_BYTES]))),
        )])
        .await;
}

/// The last write wins; what is deleted is gone, and deleting it again is no error.
pub async fn writing_again_replaces_and_deleting_removes<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    for &table in Table::ALL {
        let keys = samples::keys(table);
        let all = |content: Option<Record>| {
            keys.clone()
                .into_iter()
                .map(move |key| (key, content.clone()))
        };
        owner.write(all(Some(record("one")))).await;
        owner.write(all(Some(record("two")))).await;
        for (key, row) in keys.iter().zip(load(&store, &owner.id, keys.clone()).await) {
            assert_eq!(row, Row::Present(record("two")), "{key:?}");
        }
        // One goes alone and takes no other with it.
        let victim = keys[keys.len() / 3].clone();
        owner.write([(victim.clone(), None)]).await;
        for (key, row) in keys.iter().zip(load(&store, &owner.id, keys.clone()).await) {
            assert_eq!(row == Row::Absent, *key == victim, "{key:?} is {row:?}");
        }
        owner.write(all(None)).await;
        owner.write(all(None)).await;
        assert_eq!(owner.table(table).await, [], "{}", table.name());
    }
}

/// A key that does not fit is rejected with its whole batch, before anything is written.
pub async fn keys_beyond_the_limits_are_rejected<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    for key in samples::bad_keys() {
        let batch = owner.batch([
            (Key::Counters, Some(record("good"))),
            (key.clone(), Some(record("bad"))),
        ]);
        let outcome = commit(&store, [batch]).await.remove(0);
        assert!(is_rejected(&outcome), "{key:?} gave {outcome:?}");
        assert_eq!(
            owner.load(&Key::Counters).await,
            Row::Absent,
            "half a batch was written"
        );
        owner.seq = Seq(owner.seq.0 - 1);
    }
    owner.write([(Key::Counters, Some(record("good")))]).await;
}

/// Asking for the wrong thing is an error, not an empty answer.
pub async fn a_cursor_of_another_table_is_refused<H: Harness>(harness: H) {
    let store = harness.open();
    let owner = Owner::create(&store, &business("acme"), "main").await;
    let scan = Scan {
        table: Table::PreKey,
        after: Some(Key::Counters),
        limit: 10,
    };
    let answer = store.scan(&owner.id, scan).await;
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
}

/// Damage stays where it is: neighbours are readable, scans go on, and a write heals the row.
pub async fn a_damaged_row_affects_only_itself<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    for &table in Table::ALL {
        let keys = samples::keys(table);
        owner
            .write(keys.iter().map(|key| (key.clone(), Some(record("sound")))))
            .await;
        let victim = keys[keys.len() / 2].clone();
        if !harness.corrupt(&owner.id, &victim) {
            return; // This store cannot be damaged on purpose.
        }
        let expect = |key: &Key| {
            if *key == victim {
                Row::Corrupt
            } else {
                Row::Present(record("sound"))
            }
        };
        for (key, row) in keys.iter().zip(load(&store, &owner.id, keys.clone()).await) {
            assert_eq!(row, expect(key), "{key:?}");
        }
        let mut expected: Vec<_> = keys.iter().map(|key| (key.clone(), expect(key))).collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(owner.table(table).await, expected, "{}", table.name());
        if table == Table::Device {
            let listed = store.accounts(&owner.id.business).await.expect("accounts");
            assert_eq!(listed[0].device, Row::Corrupt);
        }
        owner
            .write([(victim.clone(), Some(record("healed")))])
            .await;
        assert_eq!(owner.load(&victim).await, Row::Present(record("healed")));
    }
}

/// Rows, names, epochs and the position in the history outlive the process.
pub async fn everything_is_there_after_a_restart<H: Harness>(harness: H) {
    let mut store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let rows = one_row_per_sample();
    owner
        .write(
            rows.iter()
                .map(|(key, record)| (key.clone(), Some(record.clone()))),
        )
        .await;
    owner.write([(Key::Counters, None)]).await;
    let (id, epoch, seq) = (owner.id.clone(), owner.epoch(), owner.seq);
    drop(owner);
    for _ in 0..3 {
        store = harness.restart(store);
        let listed = store.accounts(&id.business).await.expect("accounts");
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (&listed[0].id, listed[0].name.as_str(), listed[0].epoch),
            (&id, "main", epoch)
        );
        for (key, record) in &rows {
            let expected = if *key == Key::Counters {
                Row::Absent
            } else {
                Row::Present(record.clone())
            };
            assert_eq!(
                load(&store, &id, [key.clone()]).await,
                [expected],
                "{key:?}"
            );
        }
    }
    // The next holder goes on where the history stopped.
    let mut owner = Owner::seize(&store, &id).await;
    assert_eq!((owner.epoch(), owner.seq), (Epoch(epoch.0 + 1), seq));
    owner.write([(Key::Counters, Some(record("again")))]).await;
}

/// Names are 1 to 64 plain characters, unique within a business, and any business may use them.
pub async fn account_names_are_checked_and_unique<H: Harness>(harness: H) {
    let store = harness.open();
    let (acme, other) = (business("acme"), business("other"));
    let long = "n".repeat(64);
    for name in ["a", "A", "main-1_x.y", ".", long.as_str()] {
        store.create_account(&acme, name).await.expect(name);
        assert_eq!(
            store.create_account(&acme, name).await,
            Err(StoreError::Exists),
            "{name:?} twice"
        );
        store
            .create_account(&other, name)
            .await
            .expect("the name in another business");
    }
    for name in ["", "a b", "ä", "a/b", "a\0", "n\n", &"n".repeat(65)] {
        let answer = store.create_account(&acme, name).await;
        assert!(
            matches!(answer, Err(StoreError::Refused(_))),
            "{name:?} gave {answer:?}"
        );
    }
    let listed: Vec<_> = store
        .accounts(&acme)
        .await
        .expect("accounts")
        .into_iter()
        .map(|a| a.name)
        .collect();
    assert_eq!(
        listed,
        [".", "A", "a", "main-1_x.y", &long],
        "by name, in the order of bytes"
    );
}

/// The list of one business has its own accounts only, and numbers are never shared.
pub async fn a_tenant_sees_only_its_own<H: Harness>(harness: H) {
    let store = harness.open();
    let tenants = ["acme", "Acme", "acm", "acme_", "acme-"].map(business);
    let mut all = BTreeMap::new();
    for tenant in &tenants {
        for name in ["one", "two"] {
            let id = store.create_account(tenant, name).await.expect("create");
            assert_eq!(id.business, *tenant);
            assert!(
                all.insert(id.device, id).is_none(),
                "two accounts of one number"
            );
        }
    }
    for tenant in &tenants {
        let listed = store.accounts(tenant).await.expect("accounts");
        assert_eq!(listed.len(), 2, "{tenant}");
        assert!(
            listed
                .iter()
                .all(|account| account.id.business == *tenant && account.device == Row::Absent)
        );
    }
    assert_eq!(
        store.accounts(&business("nobody")).await.expect("accounts"),
        []
    );
}

/// The right number under the wrong business reads nothing and changes nothing, in every call there is.
pub async fn another_business_cannot_reach_an_account<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    store
        .create_account(&business("thief"), "main")
        .await
        .expect("create");
    let (secret, aged) = (Key::Sent("m".into()), UnixMillis(i64::MAX));
    owner
        .write([(secret.clone(), Some(record("secret")))])
        .await;

    let wrong = AccountId {
        business: business("thief"),
        device: owner.id.device,
    };
    let none = StoreError::NoAccount;
    assert_eq!(
        store.load(&wrong, vec![secret.clone()]).await,
        Err(none.clone())
    );
    let scan = Scan {
        table: Table::Sent,
        after: None,
        limit: 10,
    };
    assert_eq!(store.scan(&wrong, scan).await, Err(none.clone()));
    assert_eq!(
        store.enqueue(&wrong, "m".into(), record("r"), aged).await,
        Err(none.clone())
    );
    assert_eq!(
        store.retain(&wrong, Table::Sent, aged, 10).await,
        Err(none.clone())
    );
    let swap = vec![(secret.clone(), record("secret"), record("stolen"))];
    assert_eq!(store.swap_records(&wrong, swap).await, Err(none.clone()));
    let (who, epoch) = (owner.who(), owner.epoch());
    assert_eq!(claim(&store, &wrong, who).await, Claim::Missing);
    let released = store.release(who, vec![(wrong.clone(), epoch)]).await;
    assert_eq!(released, Ok(()), "there is nothing to release");
    let to = join(&store, "to", LONG).await;
    let handed = store.hand_over(who, &wrong, epoch, to).await;
    assert_eq!(handed, Err(none.clone()));
    assert_eq!(store.retire(who, &wrong, epoch).await, Err(none.clone()));
    assert_eq!(
        store.place(&wrong, Placement::default()).await,
        Err(none.clone())
    );
    assert_eq!(store.delete_account(&wrong).await, Err(none));
    let confirmed = store.confirm(vec![(wrong.clone(), owner.term)]).await;
    assert!(is_rejected(&confirmed.expect("confirm")[0]));
    let mut batch = owner.batch([(secret.clone(), Some(record("stolen")))]);
    batch.account = wrong;
    assert!(is_rejected(&commit(&store, [batch]).await[0]));

    owner.seq = Seq(owner.seq.0 - 1);
    assert_eq!(
        owner.table(Table::Sent).await,
        [(secret, Row::Present(record("secret")))]
    );
    assert_eq!(owner.table(Table::Mailbox).await, []);
    owner.write([]).await;
}

/// Rows go by the age of the batch that wrote them, oldest first, never more than asked for.
pub async fn retention_is_bounded_and_by_age<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let mut neighbour = Owner::create(&store, &business("acme"), "other").await;
    let me = crate::jid::Jid::service();
    let key = |table: Table, n: u8| match table {
        Table::Seen => Key::Seen([n; 32]),
        Table::Sent => Key::Sent(format!("m{n}").into()),
        _ => Key::MessageSecret {
            chat: me.clone(),
            sender: me.clone(),
            id: format!("m{n}").into(),
        },
    };
    for table in [Table::Seen, Table::Sent, Table::MessageSecret] {
        // The later in the table and the later written, the older: age is what the batch says, nothing else.
        for (owner, oldest) in [(&mut owner, 9), (&mut neighbour, 1)] {
            for n in 0..=oldest {
                let mut batch = owner.batch([(key(table, n), Some(record("row")))]);
                batch.at = UnixMillis(1009 - i64::from(n));
                assert_eq!(commit(&store, [batch]).await, [Outcome::Committed]);
            }
        }
        // Written again: young again.
        let mut batch = owner.batch([(key(table, 9), Some(record("row")))]);
        batch.at = UnixMillis(2000);
        assert_eq!(commit(&store, [batch]).await, [Outcome::Committed]);

        let retain = |before, limit| store.retain(&owner.id, table, UnixMillis(before), limit);
        assert_eq!(retain(1001, 100).await, Ok(0), "nothing is that old");
        assert_eq!(retain(1006, 0).await, Ok(0), "no more than asked for");
        assert_eq!(retain(1006, 2).await, Ok(2), "no more than asked for");
        let left: Vec<_> = [0, 1, 2, 3, 4, 5, 6, 9].map(|n| key(table, n)).to_vec();
        assert_eq!(
            owner
                .table(table)
                .await
                .into_iter()
                .map(|row| row.0)
                .collect::<Vec<_>>(),
            left,
            "oldest first"
        );
        assert_eq!(
            retain(1006, 100).await,
            Ok(3),
            "4, 5 and 6; a row of exactly that age stays"
        );
        assert_eq!(retain(i64::MAX, 100).await, Ok(5));
        assert_eq!(
            neighbour.table(table).await.len(),
            2,
            "the neighbour's rows stay"
        );
    }
}

/// Tables whose rows mean something for ever are refused.
pub async fn retention_spares_rows_that_do_not_age<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let rows = one_row_per_sample();
    owner
        .write(
            rows.iter()
                .map(|(key, record)| (key.clone(), Some(record.clone()))),
        )
        .await;
    for &table in Table::ALL {
        if matches!(table, Table::Seen | Table::Sent | Table::MessageSecret) {
            continue;
        }
        let answer = store
            .retain(&owner.id, table, UnixMillis(i64::MAX), 1000)
            .await;
        assert!(
            matches!(answer, Err(StoreError::Refused(_))),
            "{}: {answer:?}",
            table.name()
        );
        assert_eq!(owner.table(table).await.len(), samples::keys(table).len());
    }
}

/// A request to send is left by anybody, once per id, and picked up through the table.
pub async fn requests_are_left_once<H: Harness>(harness: H) {
    let store = harness.open();
    let mut owner = Owner::create(&store, &business("acme"), "main").await;
    let visitor = harness.open();
    let at = UnixMillis(5);
    for id in ["b", "a"] {
        assert_eq!(
            visitor.enqueue(&owner.id, id.into(), record(id), at).await,
            Ok(true)
        );
        assert_eq!(
            visitor
                .enqueue(&owner.id, id.into(), record("other"), at)
                .await,
            Ok(false)
        );
    }
    let requests = ["a", "b"].map(|id| (Key::Mailbox(id.into()), Row::Present(record(id))));
    assert_eq!(owner.table(Table::Mailbox).await, requests);
    for bad in ["", &"x".repeat(256), "a\0"] {
        let answer = visitor
            .enqueue(&owner.id, bad.into(), record("r"), at)
            .await;
        assert!(
            matches!(answer, Err(StoreError::Refused(_))),
            "{bad:?}: {answer:?}"
        );
    }
    // The owner takes one; its id is free again.
    owner.write([(Key::Mailbox("a".into()), None)]).await;
    assert_eq!(
        visitor
            .enqueue(&owner.id, "a".into(), record("new"), at)
            .await,
        Ok(true)
    );
    assert_eq!(
        visitor
            .enqueue(&owner.id, "b".into(), record("new"), at)
            .await,
        Ok(false)
    );
}

/// Distinct content, so that mixed-up rows are noticed.
fn one_row_per_sample() -> BTreeMap<Key, Record> {
    let keys = Table::ALL.iter().flat_map(|&table| samples::keys(table));
    keys.enumerate()
        .map(|(i, key)| (key, record(&format!("row {i}"))))
        .collect()
}
