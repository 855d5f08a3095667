//! Keys: the wrong one, a new one, none any more.

use super::*;
use proptest::prelude::*;

/// An account with a record under every key of the samples.
async fn furnish<S: Store>(store: &S, name: &str) -> Owner<S> {
    let mut owner = Owner::create(store, &acme(), name).await;
    let rows = all_keys().into_iter().map(|key| (key, Some(secret(name))));
    owner.write(rows).await;
    owner
}

async fn assert_furnished<S: Store>(store: &S, account: &AccountId, name: &str) {
    let rows = store.load(account, all_keys()).await.unwrap();
    assert!(rows.iter().all(|row| *row == Row::Present(secret(name))));
}

#[test]
fn the_wrong_master_key_is_one_clear_error_and_never_a_corrupt_row() {
    block_on(async {
        let below = memory();
        furnish(&open(&below), "main").await;
        let wrong = open_with(&below, MasterKeys::new(master(2)), PlainRows::Refuse);
        let error = wrong.expect_err("the wrong key").to_string();
        assert_eq!(
            error,
            format!(
                "tenant acme is encrypted under master key {}, given {}",
                master(1).id(),
                master(2).id()
            )
        );
        // A tenant that came later, or is not among those that are tried.
        let below = memory();
        let wrong = open_with(&below, MasterKeys::new(master(2)), PlainRows::Refuse).unwrap();
        let mut owner = furnish(&open(&below), "main").await;
        let refused = Err(StoreError::Refused(error.clone()));
        assert_eq!(wrong.load(&owner.id, vec![Key::Device]).await, refused);
        assert!(wrong.accounts(&acme()).await.is_err());
        let batch = owner.batch([(Key::Counters, Some(secret("")))]);
        let outcomes = wrong.commit(vec![batch]).await;
        assert_eq!(outcomes, Ok(vec![Outcome::Rejected(error)]));
    });
}

#[test]
fn a_damaged_data_key_is_its_tenants_trouble_alone() {
    block_on(async {
        let below = memory();
        let sealed = open(&below);
        let owner = furnish(&sealed, "main").await;
        let other = BusinessId::new("other").unwrap();
        let mut neighbour = Owner::create(&sealed, &other, "main").await;
        let (number, whole) = below.vault(&acme()).await.unwrap().remove(0);
        let mut now = whole.clone();
        for bit in 0..whole.0.len() * 8 {
            let mut bytes = whole.0.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let damaged = Record(bytes.into());
            let swapped = below
                .swap_vault(&acme(), number, Some(now), Some(damaged.clone()))
                .await;
            assert_eq!(swapped, Ok(true));
            now = damaged;
            match open_with(&below, MasterKeys::new(master(1)), PlainRows::Refuse) {
                // The id of the master key is in there too.
                Err(OpenError::OtherMaster { .. }) => assert!((16..80).contains(&bit)),
                Err(other) => panic!("{other:?}"),
                Ok(sealed) => {
                    let row = sealed.load(&owner.id, vec![Key::Device]).await;
                    assert!(
                        matches!(row, Err(StoreError::Refused(_))),
                        "bit {bit}: {row:?}"
                    );
                    neighbour.store = sealed;
                    neighbour.write([(Key::Device, Some(secret("fine")))]).await;
                }
            }
        }
    });
}

#[test]
fn a_wrapped_key_fits_no_other_number_and_no_other_tenant() {
    block_on(async {
        let below = memory();
        furnish(&open(&below), "main").await;
        let (_, one) = below.vault(&acme()).await.unwrap().remove(0);
        let other = BusinessId::new("other").unwrap();
        let id = below.create_account(&other, "main").await.unwrap();
        for (business, number) in [(&acme(), 2), (&other, 1)] {
            let moved = below.swap_vault(business, number, None, Some(one.clone()));
            assert_eq!(moved.await, Ok(true));
            let id = AccountId {
                business: business.clone(),
                ..id
            };
            let left = open(&below).enqueue(&id, "m".into(), secret(""), NOW).await;
            assert!(
                matches!(&left, Err(StoreError::Refused(why)) if why.contains("damaged")),
                "{left:?}"
            );
        }
    });
}

/// Two handles write their first record at the same moment: one makes the key, both use it.
#[test]
fn the_first_key_is_made_once() {
    block_on(async {
        let below = memory();
        let owner = Owner::create(&below, &acme(), "main").await;
        let meddles = AtomicBool::new(true);
        let rival = open(&below);
        let id = owner.id.clone();
        let slow = Hooked::new(below.clone(), move |call, moment| {
            if call == "swap_vault"
                && moment == Moment::Before
                && meddles.swap(false, Ordering::SeqCst)
            {
                let left = rival.enqueue(&id, "rival".into(), secret("rival"), NOW);
                assert_eq!(block_on(left), Ok(true));
            }
            Ok(())
        });
        let sealed = open(&slow);
        assert_eq!(
            sealed
                .enqueue(&owner.id, "mine".into(), secret("mine"), NOW)
                .await,
            Ok(true)
        );
        assert_eq!(numbers(&sealed), [1]);
        let keys = vec![Key::Mailbox("rival".into()), Key::Mailbox("mine".into())];
        let expected = vec![Row::Present(secret("rival")), Row::Present(secret("mine"))];
        for handle in [open(&below), open(&below)] {
            assert_eq!(
                handle.load(&owner.id, keys.clone()).await.as_ref(),
                Ok(&expected)
            );
        }
        assert_eq!(sealed.load(&owner.id, keys).await, Ok(expected));
    });
}

#[test]
fn an_account_that_does_not_exist_makes_no_tenant() {
    block_on(async {
        let below = memory();
        let sealed = open(&below);
        let nobody = AccountId {
            business: acme(),
            device: 7,
        };
        let left = sealed.enqueue(&nobody, "m".into(), secret(""), NOW).await;
        assert_eq!(left, Err(StoreError::NoAccount));
        assert_eq!(
            sealed.rotate(&acme(), NOW).await,
            Err(StoreError::NoAccount)
        );
        assert_eq!(below.tenants().await, Ok(vec![]));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Rows move to the new key slice by slice, in front of an engine that reads and writes with a handle of its own, and
    /// of a second rotator; every row keeps its content, and the old key goes when nobody needs it.
    #[test]
    fn rotation_runs_beside_an_engine_and_a_second_rotator(
        slice in 1..60u32,
        writes in proptest::collection::vec((any::<prop::sample::Index>(), 0..4u8), 0..40),
    ) {
        block_on(async {
            let below = memory();
            let keys = all_keys();
            let mut engine = furnish(&open(&below), "main").await;
            let quiet = furnish(&open(&below), "quiet").await;
            let mut expected: std::collections::BTreeMap<_, _> =
                keys.iter().map(|key| (key.clone(), Some(secret("main")))).collect();

            let rotators = [open(&below), open(&below)];
            prop_assert_eq!(rotators[0].rotate(&acme(), after(1)).await, Ok(2));
            let begin = async |rotator: &Sealed<_>| rotator.pass(&acme(), after(62), GRACE).await.unwrap();
            let mut passes = [begin(&rotators[0]).await, begin(&rotators[1]).await];
            let mut ends = [Progress::More; 2];
            let mut writes = writes.into_iter();
            while ends.contains(&Progress::More) {
                for rotator in 0..2 {
                    if ends[rotator] == Progress::More {
                        ends[rotator] = rotators[rotator].advance(&mut passes[rotator], slice).await.unwrap();
                    }
                }
                if let Some((key, content)) = writes.next() {
                    let key = key.get(&keys).clone();
                    let record = (content > 0).then(|| secret(&content.to_string()));
                    let mut batch = engine.batch([(key.clone(), record.clone())]);
                    batch.at = after(62);
                    assert_eq!(engine.store.commit(vec![batch]).await, Ok(vec![Outcome::Committed]));
                    expected.insert(key, record);
                }
            }
            prop_assert!(ends.iter().all(|end| matches!(end, Progress::Finished { .. })), "{:?}", ends);
            prop_assert_eq!(numbers(&rotators[1]), [2]);
            prop_assert_eq!(names(&below, &engine.id), [row::Form::Sealed(2)].into());
            prop_assert_eq!(names(&below, &quiet.id), [row::Form::Sealed(2)].into());
            for (key, record) in expected {
                let expected = record.map_or(Row::Absent, Row::Present);
                assert_eq!(engine.load(&key).await, expected);
                assert_eq!(open(&below).load(&engine.id, vec![key]).await, Ok(vec![expected]));
            }
            assert_furnished(&open(&below), &quiet.id, "quiet").await;
            Ok(())
        })?;
    }
}

#[test]
fn a_handle_notices_a_rotation_within_a_minute_of_what_it_writes() {
    block_on(async {
        let below = memory();
        let mut engine = furnish(&open(&below), "main").await;
        open(&below).rotate(&acme(), NOW).await.unwrap();
        let name = |below: &MemoryStore, id: &AccountId| {
            let rows = block_on(below.load(id, vec![Key::Counters])).unwrap();
            match &rows[..] {
                [Row::Present(record)] => row::form(record),
                other => panic!("{other:?}"),
            }
        };
        let mut write = async |at: UnixMillis| {
            let mut batch = engine.batch([(Key::Counters, Some(secret("")))]);
            batch.at = at;
            let outcomes = engine.store.commit(vec![batch]).await;
            assert_eq!(outcomes, Ok(vec![Outcome::Committed]));
            name(&below, &engine.id)
        };
        assert_eq!(
            write(UnixMillis(NOW.0 + 59_999)).await,
            row::Form::Sealed(1)
        );
        assert_eq!(
            write(UnixMillis(NOW.0 + 60_000)).await,
            row::Form::Sealed(2)
        );
        // A clock that was set back by a day counts as one that has moved.
        open(&below).rotate(&acme(), NOW).await.unwrap();
        assert_eq!(write(after(-1440)).await, row::Form::Sealed(3));
    });
}

/// Whoever still writes with the old key must find it: it is not removed before everybody has had time to notice.
#[test]
fn an_old_key_stays_until_every_handle_knows_the_new_one() {
    block_on(async {
        let below = memory();
        let mut slow = furnish(&open(&below), "main").await;
        let rotator = open(&below);
        rotator.rotate(&acme(), after(0)).await.unwrap();
        let early = rotator.pass(&acme(), after(59), GRACE).await.unwrap();
        let (_, end) = run(&rotator, early, 100).await;
        assert_eq!(end, Progress::TooEarly);
        slow.write([(Key::Counters, Some(secret("late")))]).await;
        assert_eq!(numbers(&rotator), [1, 2]);
        assert_eq!(rotator.wants_pass(&acme()).await, Ok(true));

        let pass = rotator.pass(&acme(), after(60), GRACE).await.unwrap();
        let (pass, end) = run(&rotator, pass, 100).await;
        assert_eq!(end, Progress::Finished { removed: 1 });
        assert_eq!(
            (pass.rewritten, pass.unreadable),
            (1, 0),
            "only the late one was left"
        );
        assert_eq!(rotator.wants_pass(&acme()).await, Ok(false));
        let row = open(&below).load(&slow.id, vec![Key::Counters]).await;
        assert_eq!(row, Ok(vec![Row::Present(secret("late"))]));
    });
}

#[test]
fn a_pass_that_died_is_begun_again_and_finds_less_to_do() {
    block_on(async {
        let below = memory();
        let owner = furnish(&open(&below), "main").await;
        let dies = Arc::new(AtomicU64::new(3));
        let countdown = Arc::clone(&dies);
        let failing = Hooked::new(below.clone(), move |call, moment| {
            let is_it = call == "swap_records"
                && moment == Moment::After
                && countdown.fetch_sub(1, Ordering::SeqCst) == 0;
            if is_it {
                Err(StoreError::Unavailable("pulled".into()))
            } else {
                Ok(())
            }
        });
        let rotator = open(&failing);
        rotator.rotate(&acme(), NOW).await.unwrap();
        let mut pass = rotator.pass(&acme(), NOW, NO_GRACE).await.unwrap();
        let error = loop {
            match rotator.advance(&mut pass, 10).await {
                Ok(Progress::More) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert!(error.is_retryable());
        // The same pass goes on, and so would a new one: what was swapped is not swapped again.
        let all = all_keys().len() as u64;
        let again = open(&below).pass(&acme(), NOW, NO_GRACE).await.unwrap();
        let (again, end) = run(&open(&below), again, 7).await;
        assert_eq!(end, Progress::Finished { removed: 1 });
        assert_eq!(again.looked_at, all);
        assert!((1..all).contains(&again.rewritten), "{again:?}");
        let (pass, end) = run(&rotator, pass, 10).await;
        assert_eq!(
            (pass.unreadable, end),
            (0, Progress::Finished { removed: 0 })
        );
        assert_furnished(&open(&below), &owner.id, "main").await;
    });
}

#[test]
fn a_database_in_the_clear_is_converted_and_closed() {
    block_on(async {
        let below = memory();
        let mut engine = furnish(&below, "main").await;
        let refused = open_with(&below, MasterKeys::new(master(1)), PlainRows::Refuse);
        assert_eq!(refused.err(), Some(OpenError::Plain(acme())));
        assert_eq!(is_encrypted(&below).await, Ok(false));

        let converting = open_with(&below, MasterKeys::new(master(1)), PlainRows::Convert).unwrap();
        assert_furnished(&converting, &engine.id, "main").await;
        assert_eq!(converting.wants_pass(&acme()).await, Ok(true));
        // The engine goes on with encryption: new rows are encrypted at once, old ones are read as they are.
        let mut sealed = Owner {
            store: converting.clone(),
            id: engine.id.clone(),
            term: engine.term,
            seq: engine.seq,
        };
        sealed.write([(Key::Counters, Some(secret("main")))]).await;
        engine.seq = sealed.seq;
        assert_furnished(&converting, &engine.id, "main").await;
        assert_eq!(
            names(&below, &engine.id),
            [row::Form::Plain, row::Form::Sealed(1)].into()
        );
        assert_eq!(is_encrypted(&below).await, Ok(true));
        assert!(converting.data_keys(&acme()).await.unwrap()[0].plain_rows);

        // A rotation in between does not lose the mark.
        assert_eq!(converting.rotate(&acme(), NOW).await, Ok(2));
        let pass = converting.pass(&acme(), after(100), GRACE).await.unwrap();
        let (pass, end) = run(&converting, pass, 5).await;
        assert_eq!(end, Progress::Finished { removed: 1 });
        assert_eq!(pass.rewritten, all_keys().len() as u64);
        assert_eq!(converting.wants_pass(&acme()).await, Ok(false));
        assert!(!converting.data_keys(&acme()).await.unwrap()[0].plain_rows);
        assert_furnished(&open(&below), &engine.id, "main").await;

        // From now on a row in the clear is a foreign body, even for who would have converted it.
        engine
            .write([(Key::Device, Some(secret("smuggled")))])
            .await;
        for plain in [PlainRows::Refuse, PlainRows::Convert] {
            let sealed = open_with(&below, MasterKeys::new(master(1)), plain).unwrap();
            assert_eq!(
                sealed.load(&engine.id, vec![Key::Device]).await,
                Ok(vec![Row::Corrupt])
            );
            assert_eq!(
                sealed.accounts(&acme()).await.unwrap()[0].device,
                Row::Corrupt
            );
        }
    });
}

#[test]
fn the_master_key_is_changed_by_wrapping_data_keys_anew() {
    block_on(async {
        let below = memory();
        let owner = furnish(&open(&below), "main").await;
        open(&below).rotate(&acme(), NOW).await.unwrap();
        let rows = stored(&below, &owner.id);
        let both = MasterKeys::new(master(2)).and(master(1));
        let sealed = open_with(&below, both, PlainRows::Refuse).unwrap();
        assert_furnished(&sealed, &owner.id, "main").await;
        // In the middle of it, both are needed and both work.
        assert_eq!(sealed.rotate(&acme(), NOW).await, Ok(3));
        let masters: Vec<_> = sealed
            .data_keys(&acme())
            .await
            .unwrap()
            .iter()
            .map(|key| key.master)
            .collect();
        let (one, two) = (Some(master(1).id()), Some(master(2).id()));
        assert_eq!(masters, [one, one, two]);
        for alone in [1, 2] {
            let opened = open_with(&below, MasterKeys::new(master(alone)), PlainRows::Refuse);
            assert!(matches!(opened, Err(OpenError::OtherMaster { .. })));
        }
        assert_eq!(sealed.rewrap_all().await, Ok(2));
        assert_eq!(sealed.rewrap_all().await, Ok(0));
        let new = open_with(&below, MasterKeys::new(master(2)), PlainRows::Refuse).unwrap();
        assert_furnished(&new, &owner.id, "main").await;
        assert!(open_with(&below, MasterKeys::new(master(1)), PlainRows::Refuse).is_err());
        assert_eq!(stored(&below, &owner.id), rows, "no row was touched");
    });
}

/// A process that was not told goes on with the data key that it has; a new one is none of its.
#[test]
fn a_process_with_the_old_master_key_goes_on_with_what_it_knows() {
    block_on(async {
        let below = memory();
        let mut engine = furnish(&open(&below), "main").await;
        let both = MasterKeys::new(master(2)).and(master(1));
        let sealed = open_with(&below, both, PlainRows::Refuse).unwrap();
        sealed.rewrap_all().await.unwrap();
        let mut batches = |at: UnixMillis| {
            let mut batch = engine.batch([(Key::Counters, Some(secret("later")))]);
            batch.at = at;
            (engine.store.clone(), batch)
        };
        let (store, batch) = batches(after(10));
        assert_eq!(
            store.commit(vec![batch]).await,
            Ok(vec![Outcome::Committed])
        );
        let keys = || vec![Key::Counters];
        let expected = Ok(vec![Row::Present(secret("later"))]);
        let id = store.accounts(&acme()).await.unwrap().remove(0).id;
        assert_eq!(store.load(&id, keys()).await, expected);
        assert_eq!(sealed.load(&id, keys()).await, expected);

        sealed.rotate(&acme(), after(11)).await.unwrap();
        let (store, batch) = batches(after(20));
        let outcomes = store.commit(vec![batch]).await.unwrap();
        assert!(
            matches!(&outcomes[..], [Outcome::Rejected(why)] if why.contains("master key")),
            "{outcomes:?}"
        );
    });
}

#[test]
fn a_tenant_without_keys_is_gone() {
    block_on(async {
        let below = memory();
        let sealed = open(&below);
        let owner = furnish(&sealed, "main").await;
        sealed.rotate(&acme(), NOW).await.unwrap();
        assert_eq!(sealed.forget_tenant(&acme()).await, Err(StoreError::Held));
        assert_eq!(numbers(&sealed), [1, 2]);
        sealed.leave(owner.who()).await.unwrap();
        sealed.forget_tenant(&acme()).await.unwrap();
        assert_eq!(below.vault(&acme()).await, Ok(vec![]));
        for handle in [&sealed, &open(&below)] {
            let rows = handle.load(&owner.id, all_keys()).await.unwrap();
            assert!(rows.iter().all(|row| *row == Row::Corrupt));
            assert_eq!(
                handle.accounts(&acme()).await.unwrap()[0].device,
                Row::Corrupt
            );
            // A new key would hide that the others are gone.
            let left = handle.enqueue(&owner.id, "m".into(), secret(""), NOW).await;
            assert!(matches!(left, Err(StoreError::Refused(_))), "{left:?}");
        }
        assert!(numbers(&sealed).is_empty());
        sealed.delete_account(&owner.id).await.unwrap();
        furnish(&sealed, "again").await;
        assert_eq!(numbers(&sealed), [1]);
    });
}

/// Its fence does not know of keys; the keys do.
#[test]
fn a_handle_that_did_not_see_its_tenant_go_stops_writing() {
    block_on(async {
        let below = memory();
        let mut engine = furnish(&open(&below), "main").await;
        below.leave(engine.who()).await.unwrap();
        open(&below).forget_tenant(&acme()).await.unwrap();
        let mut batch = engine.batch([(Key::Counters, Some(secret("")))]);
        batch.at = after(2);
        let outcomes = engine.store.commit(vec![batch]).await.unwrap();
        assert!(
            matches!(&outcomes[..], [Outcome::Rejected(_)]),
            "{outcomes:?}"
        );
    });
}

#[test]
fn nothing_secret_is_printed() {
    let key = master(3);
    let masters = MasterKeys::new(key.clone()).and(master(4));
    let sealed = open_with(&memory(), masters.clone(), PlainRows::Refuse).unwrap();
    let id = key.id().to_string();
    assert_eq!(id.len(), 16);
    assert_eq!(format!("{key:?}"), format!("MasterKey({id}, ..)"));
    assert!(!format!("{masters:?}{sealed:?}").contains("0303"));
    assert_ne!(master(3).id(), master(4).id());
}
