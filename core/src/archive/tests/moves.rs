//! Accounts that arrive whole, and once.

use super::*;
use proptest::prelude::*;

fn stores() -> [(&'static str, bool, bool); 4] {
    [
        ("clear to clear", false, false),
        ("clear to sealed", false, true),
        ("sealed to clear", true, false),
        ("sealed to sealed", true, true),
    ]
}

/// A random account: any keys, any contents, of sizes around those of a chunk.
fn random_rows() -> impl Strategy<Value = Vec<(Key, Record)>> {
    let keys: Vec<Key> = Table::ALL
        .iter()
        .filter(|table| !matches!(table, Table::Device | Table::Counters))
        .flat_map(|&table| samples::keys(table))
        .collect();
    let size = prop_oneof![4 => 0..40usize, 2 => 30_000..70_000usize];
    let row = (prop::sample::select(keys), size, any::<u8>());
    let row = row.prop_map(|(key, size, byte)| (key, codec::wrap(&vec![byte; size])));
    proptest::collection::vec(row, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_row_arrives(content in random_rows(), kind in 0..4usize) {
        async fn go<A: Store, B: Store>(from: &A, to: &B, content: Vec<(Key, Record)>) {
            let mut owner = Owner::create(from, &acme(), "main").await;
            let kept = [(Key::Device, device(JID)), (Key::Counters, counters())];
            let all = content.into_iter().chain(kept);
            owner.write(all.map(|(key, record)| (key, Some(record)))).await;
            from.leave(owner.who()).await.unwrap();
            let before = rows(from, &owner.id).await;

            let bytes = exported(from, "main").await;
            let imported = import_from(to, &bytes).await.unwrap();
            assert_eq!(imported.manifest.rows, before.len() as u64 + 1);
            assert_eq!(rows(to, &imported.account).await, before);
            assert!(can_run(to, &imported.account).await);
            assert!(!can_run(from, &owner.id).await);
        }
        let (_, from, to) = stores()[kind];
        let (a, b) = (memory(), memory());
        block_on(async {
            match (from, to) {
                (false, false) => go(&a, &b, content).await,
                (false, true) => go(&a, &sealed(&b), content).await,
                (true, false) => go(&sealed(&a), &b, content).await,
                (true, true) => go(&sealed(&a), &sealed(&b), content).await,
            }
        });
    }
}

#[test]
fn more_rows_than_fit_a_page_and_a_batch() {
    block_on(async {
        let (from, to) = (memory(), memory());
        let mut owner = Owner::create(&from, &acme(), "main").await;
        let id = |i: u32| Key::PreKey(i + 1);
        let many = (0..2 * PAGE + 7).map(|i| (id(i), Some(codec::wrap(&i.to_be_bytes()))));
        owner.write(many).await;
        // One row fills whole chunks and batches, and is as large as any.
        let large = Record(vec![1; Record::MAX_BYTES].into());
        let device = (Key::Device, Some(device(JID)));
        owner
            .write([(Key::Counters, Some(counters())), device])
            .await;
        owner
            .write([(Key::Outbox("large".into()), Some(large))])
            .await;
        from.leave(owner.who()).await.unwrap();
        let before = rows(&from, &owner.id).await;
        // Exactly one page in a table, too.
        let bytes = exported(&from, "main").await;
        let imported = import_from(&to, &bytes).await.unwrap();
        assert_eq!(rows(&to, &imported.account).await, before);
    });
}

#[test]
fn the_account_goes_on_where_it_was_but_under_new_keys() {
    block_on(async {
        let from = memory();
        let id = furnish(&from, "main", JID).await;
        let bytes = exported(&from, "main").await;
        let was = counters_of(&from, &id).await;
        let mut places = Vec::new();
        for _ in 0..2 {
            let to = memory();
            let imported = import_from(&to, &bytes).await.unwrap();
            let is = counters_of(&to, &imported.account).await;
            assert_eq!(
                (is.next_event, is.next_order),
                (was.next_event, was.next_order)
            );
            assert!(
                is.burn.unwrap() > crate::signal::MAX_SKIP,
                "further than any chain can be skipped: every session is made anew"
            );
            let ids = (is.next_pre_key.unwrap(), is.next_signed_pre_key.unwrap());
            assert!(ids.0 > 813 + 10_000 && ids.1 > 4 + 10_000);
            assert_eq!(is.first_unconfirmed_pre_key, is.next_pre_key);
            assert_eq!(is.pre_keys_due, Some(true));
            places.push(ids);
        }
        // Two imports of one file, in databases that do not know of each other.
        let apart = |a: u32, b: u32| a.abs_diff(b) > 10_000;
        let [a, b] = places[..] else { panic!() };
        assert!(apart(a.0, b.0) && apart(a.1, b.1), "{places:?}");
    });
}

#[test]
fn an_account_that_runs_is_not_exported() {
    block_on(async {
        let from = memory();
        let id = furnish(&from, "main", JID).await;
        let who = join(&from, "engine", LONG).await;
        assert!(matches!(claim(&from, &id, who).await, Claim::Granted(_)));
        let mut file = File::default();
        let refused = export_to(&from, "main", &mut file, |_| ()).await;
        assert_eq!(refused, Err(ExportError::Held));
        assert!(file.bytes.is_empty());
        let unknown = export_to(&from, "nobody", &mut file, |_| ()).await;
        assert_eq!(unknown, Err(ExportError::NoAccount));
        let again = export_to(&from, "main", &mut file, |options| options.again = true).await;
        assert_eq!(again, Err(ExportError::NotRetired));
    });
}

/// Whoever takes the account while it is exported has it; the file is worthless.
#[test]
fn an_account_that_was_taken_meanwhile_stays_where_it_is() {
    block_on(async {
        let from = memory();
        let id = furnish(&from, "main", JID).await;
        let (robbed, account) = (from.clone(), id.clone());
        let meddling = Hooked::new(from.clone(), move |call, moment| {
            if (call, moment) == ("retire", Moment::Before) {
                block_on(Owner::seize(&robbed, &account));
            }
            Ok(())
        });
        let mut file = File::default();
        let taken = export_to(&meddling, "main", &mut file, |_| ()).await;
        assert_eq!(taken, Err(ExportError::Taken));
        let refused = import_from(&memory(), &file.bytes).await;
        assert_eq!(refused, Err(ImportError::Unreleased));
        assert!(!accounts(&from).await[0].2, "not retired");
    });
}

#[test]
fn a_request_that_is_left_at_the_last_moment_comes_along() {
    block_on(async {
        let (from, to) = (memory(), memory());
        let id = furnish(&from, "main", JID).await;
        let (left, account) = (from.clone(), id.clone());
        let request = || codec::wrap(b"send this");
        let meddling = Hooked::new(from.clone(), move |call, moment| {
            if (call, moment) == ("retire", Moment::Before) {
                let late = left.enqueue(&account, "late".into(), request(), NOW);
                assert_eq!(block_on(late), Ok(true));
            }
            Ok(())
        });
        let bytes = exported(&meddling, "main").await;
        let imported = import_from(&to, &bytes).await.unwrap();
        assert_eq!(rows(&to, &imported.account).await, rows(&from, &id).await);
        let row = to.load(&imported.account, vec![Key::Mailbox("late".into())]);
        assert_eq!(row.await, Ok(vec![Row::Present(request())]));
    });
}

#[test]
fn rows_that_cannot_be_read_are_refused_or_counted() {
    block_on(async {
        let (from, to) = (memory(), memory());
        let id = furnish(&from, "main", JID).await;
        let session = samples::keys(Table::Session).remove(0);
        assert!(from.corrupt(&id, &session));
        let refused = export_to(&from, "main", &mut File::default(), |_| ()).await;
        assert_eq!(refused, Err(ExportError::Corrupt("sessions")));
        assert!(can_run(&from, &id).await);
        let mut file = File::default();
        let done = export_to(&from, "main", &mut file, |options| {
            options.leave_out_corrupt = true
        });
        assert_eq!(done.await.unwrap().left_out, 1);
        let imported = import_from(&to, &file.bytes).await.unwrap();
        assert_eq!(imported.manifest.left_out, 1);
        let row = to.load(&imported.account, vec![session]).await;
        assert_eq!(row, Ok(vec![Row::Absent]));

        // Without its device row it would be no account.
        let id = furnish(&from, "other", OTHER).await;
        assert!(from.corrupt(&id, &Key::Device));
        let refused = export_to(&from, "other", &mut file, |options| {
            options.leave_out_corrupt = true
        });
        assert_eq!(refused.await, Err(ExportError::Corrupt("device")));
    });
}

/// An account that was never linked has nothing to lose, and moves all the same.
#[test]
fn an_account_without_a_phone_moves_too() {
    block_on(async {
        let (from, to) = (memory(), memory());
        from.create_account(&acme(), "main").await.unwrap();
        let bytes = exported(&from, "main").await;
        let imported = import_from(&to, &bytes).await.unwrap();
        assert!(!imported.manifest.linked);
        assert_eq!(rows(&to, &imported.account).await, BTreeMap::new());
    });
}

#[test]
fn a_second_owner_is_refused_in_every_order() {
    block_on(async {
        let [a, b, c] = [memory(), memory(), memory()];
        let at_a = furnish(&a, "main", JID).await;
        let to_b = exported(&a, "main").await;
        let b_as = async |name: &'static str, bytes: &[u8]| {
            import_with(&b, bytes, |options| options.name = Some(name)).await
        };

        // Out of A, into B, once.
        let at_b = import_from(&b, &to_b).await.unwrap().account;
        for name in ["main", "other"] {
            let twice = b_as(name, &to_b).await;
            assert_eq!(twice, Err(ImportError::AlreadyImported(at_b.clone())));
        }
        // Another file of the same device: the one that was written again.
        let mut again = File::default();
        assert_eq!(
            export_to(&a, "main", &mut again, |_| ()).await,
            Err(ExportError::Retired)
        );
        export_to(&a, "main", &mut again, |options| options.again = true)
            .await
            .unwrap();
        let again = again.bytes;
        assert_eq!(
            b_as("other", &again).await,
            Err(ImportError::SameDevice(at_b.clone()))
        );
        // In another tenant of the same database, too.
        let key = key();
        let options = ImportOptions::new(FileKey::Key(&key));
        let other = BusinessId::new("other").unwrap();
        let mut source = Reading {
            bytes: &to_b,
            at: 0,
        };
        assert_eq!(
            import(&b, &other, &mut source, options, &mut rng(), NOW).await,
            Err(ImportError::AlreadyImported(at_b.clone()))
        );

        // On to C. B has had it: nothing older comes back.
        let to_c = exported(&b, "main").await;
        assert_eq!(
            b_as("other", &to_b).await,
            Err(ImportError::AlreadyImported(at_b.clone()))
        );
        assert_eq!(
            b_as("other", &again).await,
            Err(ImportError::Outdated(at_b.clone()))
        );
        let at_c = import_from(&c, &to_c).await.unwrap();
        assert_eq!(at_c.manifest.moves, 2);
        assert_eq!(
            import_with(&c, &to_b, |options| options.name = Some("old")).await,
            Err(ImportError::SameDevice(at_c.account.clone()))
        );

        // And back to A, where it began: a name that is retired is replaced only on request.
        let to_a = exported(&c, "main").await;
        assert_eq!(import_from(&a, &to_a).await, Err(ImportError::NameRetired));
        let back = import_with(&a, &to_a, |options| options.replace = true)
            .await
            .unwrap();
        assert_ne!(back.account, at_a);
        assert_eq!(
            accounts(&a).await,
            [(back.account.clone(), "main".to_owned(), false)]
        );
        for old in [&to_b, &again, &to_c] {
            assert_eq!(
                import_with(&a, old, |options| options.name = Some("old")).await,
                Err(ImportError::SameDevice(back.account.clone()))
            );
        }
        let runs = [(&a, &back.account), (&b, &at_b), (&c, &at_c.account)];
        for (store, account) in runs {
            assert_eq!(
                can_run(store, account).await,
                account == &back.account && std::ptr::eq(store, &a)
            );
        }
    });
}

#[test]
fn names_are_nobody_elses() {
    block_on(async {
        let (from, to) = (memory(), memory());
        furnish(&from, "main", JID).await;
        let bytes = exported(&from, "main").await;
        let taken = furnish(&to, "main", OTHER).await;
        for replace in [false, true] {
            let refused = import_with(&to, &bytes, |options| options.replace = replace).await;
            assert_eq!(refused, Err(ImportError::NameTaken));
        }
        let bad = import_with(&to, &bytes, |options| options.name = Some("a b")).await;
        assert!(matches!(
            bad,
            Err(ImportError::Store(StoreError::Refused(_)))
        ));
        // One that somebody has made and nobody has used is as good as none; what was left for it stays.
        let blank = to.create_account(&acme(), "second").await.unwrap();
        let request = codec::wrap(b"waiting");
        to.enqueue(&blank, "waiting".into(), request.clone(), NOW)
            .await
            .unwrap();
        let imported = import_with(&to, &bytes, |options| options.name = Some("second")).await;
        let imported = imported.unwrap();
        assert_eq!(imported.account, blank);
        let row = to.load(&blank, vec![Key::Mailbox("waiting".into())]).await;
        assert_eq!(row, Ok(vec![Row::Present(request)]));
        assert!(can_run(&to, &taken).await && can_run(&to, &imported.account).await);
    });
}

/// Both see that the other has begun, whatever the moment: never do both go on.
#[test]
fn two_imports_at_the_same_moment_make_no_two_accounts() {
    let calls = [
        "tenants",
        "accounts",
        "create_account",
        "claim",
        "load",
        "commit",
        "release",
        "leave",
    ];
    for call in calls {
        for moment in [Moment::Before, Moment::After] {
            for same_file in [true, false] {
                block_on(async {
                    let (from, to) = (memory(), memory());
                    furnish(&from, "main", JID).await;
                    let one = exported(&from, "main").await;
                    let mut again = File::default();
                    export_to(&from, "main", &mut again, |options| options.again = true)
                        .await
                        .unwrap();
                    let two = if same_file { one.clone() } else { again.bytes };
                    let (rival, pending) = (to.clone(), AtomicU64::new(1));
                    let meddling = Hooked::new(to.clone(), move |at, when| {
                        if (at, when) == (call, moment) && pending.swap(0, Ordering::SeqCst) == 1 {
                            let import =
                                import_with(&rival, &two, |options| options.name = Some("two"));
                            let _ = block_on(import);
                        }
                        Ok(())
                    });
                    let _ = import_from(&meddling, &one).await;
                    let mut running = 0;
                    for (id, ..) in accounts(&to).await {
                        running += u32::from(can_run(&to, &id).await);
                    }
                    assert!(running <= 1, "{call} {moment:?} {same_file}");
                    // Whoever asks again gets the account, or hears that it is there.
                    let last = import_from(&to, &one).await;
                    match (&last, running) {
                        (Ok(_), 0) => {}
                        (Err(ImportError::AlreadyImported(_) | ImportError::SameDevice(_)), 1) => {}
                        other => panic!("{call} {moment:?} {same_file}: {other:?}"),
                    }
                });
            }
        }
    }
}
