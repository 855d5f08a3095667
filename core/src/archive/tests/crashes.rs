//! Crashes at every call of the store and of the file: never two owners, never none.

use super::*;

/// A store whose process ends at call `at`: that one and all later ones fail, before or after their effect.
fn dying(store: &MemoryStore, at: u64, moment: Moment) -> Hooked<MemoryStore> {
    let calls = AtomicU64::new(0);
    Hooked::new(store.clone(), move |_, when| {
        let call = match when {
            Moment::Before => calls.fetch_add(1, Ordering::SeqCst),
            Moment::After => calls.load(Ordering::SeqCst) - 1,
        };
        let dead = call > at || (call == at && when == moment);
        if dead {
            Err(StoreError::Unavailable("killed".to_owned()))
        } else {
            Ok(())
        }
    })
}

/// Lets the host of a dead process be declared dead, as a fleet does.
async fn bury(store: &MemoryStore, clock: &AtomicU64) {
    let judge = join(store, "judge", LONG).await;
    for host in store.hosts().await.unwrap() {
        if host.who != judge && host.state.is_live() {
            store.declare_dead(judge, host.who).await.unwrap();
        }
    }
    store.leave(judge).await.unwrap();
    clock.fetch_add(1, Ordering::SeqCst);
}

/// Ends an export with whatever is left, and shows that there is one owner in the end.
async fn one_owner(
    from: &MemoryStore,
    clock: &AtomicU64,
    id: &AccountId,
    bytes: &[u8],
    context: &str,
) {
    let before = rows(from, id).await;
    bury(from, clock).await;
    let runs = can_run(from, id).await;
    let to = memory();
    match import_from(&to, bytes).await {
        Ok(imported) => {
            assert!(!runs, "two owners: {context}");
            assert_eq!(rows(&to, &imported.account).await, before, "{context}");
        }
        Err(_) => {
            assert_eq!(accounts(&to).await, [], "{context}");
            // Begun again: the file is complete, wherever the first one ended.
            let mut file = File::default();
            export_to(from, "main", &mut file, |options| options.again = !runs)
                .await
                .unwrap_or_else(|error| panic!("no owner: {context}: {error}"));
            assert!(!can_run(from, id).await);
            let imported = import_from(&to, &file.bytes).await.unwrap();
            assert_eq!(rows(&to, &imported.account).await, before, "{context}");
        }
    }
}

#[test]
fn an_export_that_dies_at_any_call_leaves_one_owner() {
    let mut finished = 0;
    for moment in [Moment::Before, Moment::After] {
        for at in 0..60 {
            block_on(async {
                let (from, clock) = clocked();
                let id = furnish(&from, "main", JID).await;
                let mut file = File::default();
                let done = export_to(&dying(&from, at, moment), "main", &mut file, |_| ()).await;
                finished += u32::from(done.is_ok());
                one_owner(
                    &from,
                    &clock,
                    &id,
                    &file.bytes,
                    &format!("{at} {moment:?} {done:?}"),
                )
                .await;
            });
        }
    }
    assert!(
        (10..110).contains(&finished),
        "the calls of an export are not all among these: {finished}"
    );
}

/// What was written but not kept is lost with the power; what was kept is there.
#[test]
fn an_export_whose_file_fails_at_any_call_leaves_one_owner() {
    for calls in 0..12 {
        for kept_only in [false, true] {
            block_on(async {
                let (from, clock) = clocked();
                let id = furnish(&from, "main", JID).await;
                let mut file = File {
                    calls_left: Some(calls),
                    ..File::default()
                };
                let done = export_to(&from, "main", &mut file, |_| ()).await;
                assert_eq!(
                    done.is_ok(),
                    calls >= 7,
                    "prelude, header, rows, end, keep, release, keep"
                );
                let end = if kept_only {
                    file.kept
                } else {
                    file.bytes.len()
                };
                let context = format!("{calls} {kept_only} {done:?}");
                one_owner(&from, &clock, &id, &file.bytes[..end], &context).await;
            });
        }
    }
}

#[test]
fn an_import_that_dies_at_any_call_is_begun_again() {
    let (mut complete, mut incomplete) = (0, 0);
    for moment in [Moment::Before, Moment::After] {
        for at in 0..25 {
            block_on(async {
                let from = memory();
                let id = furnish(&from, "main", JID).await;
                let bytes = exported(&from, "main").await;
                let before = rows(&from, &id).await;
                let (to, clock) = clocked();
                let context = format!("{at} {moment:?}");
                let first = import_from(&dying(&to, at, moment), &bytes).await;
                let mut running = Vec::new();
                for (id, ..) in accounts(&to).await {
                    // Held by the dead, at worst.
                    let device = to.load(&id, vec![Key::Device]).await.unwrap();
                    if device[0] != Row::Absent {
                        running.push(id);
                    }
                }
                bury(&to, &clock).await;
                let account = match (running.as_slice(), import_from(&to, &bytes).await) {
                    ([], Ok(imported)) => {
                        incomplete += 1;
                        imported.account
                    }
                    ([there], Err(ImportError::AlreadyImported(known))) if *there == known => {
                        complete += 1;
                        known
                    }
                    other => panic!("{context}: {first:?} {other:?}"),
                };
                assert_eq!(rows(&to, &account).await, before, "{context}");
                assert!(can_run(&to, &account).await, "{context}");
                assert_eq!(accounts(&to).await.len(), 1, "{context}");
            });
        }
    }
    assert!(complete > 5 && incomplete > 15, "{complete} {incomplete}");
}

/// An import that still goes on must not lose its account to one that thinks it was interrupted.
#[test]
fn an_import_under_way_is_not_begun_again() {
    block_on(async {
        let from = memory();
        furnish(&from, "main", JID).await;
        let bytes = exported(&from, "main").await;
        let to = memory();
        // Dies without a word behind its first batch: its host lives on for a minute.
        let dead = AtomicU64::new(0);
        let dying = Hooked::new(to.clone(), move |call, moment| {
            let dies = (call, moment) == ("commit", Moment::After);
            if dies || dead.load(Ordering::SeqCst) > 0 {
                dead.store(1, Ordering::SeqCst);
                return Err(StoreError::Unavailable("killed".to_owned()));
            }
            Ok(())
        });
        let first = import_from(&dying, &bytes).await;
        assert!(first.is_err());
        assert_eq!(accounts(&to).await.len(), 1);
        assert_eq!(import_from(&to, &bytes).await, Err(ImportError::UnderWay));
        assert_eq!(accounts(&to).await.len(), 1);
    });
}

/// The file is changed between its two readings.
#[test]
fn a_file_that_changes_meanwhile_leaves_nothing() {
    struct Changing {
        bytes: Vec<u8>,
        at: usize,
        readings: u32,
    }
    impl Source for Changing {
        fn read(&mut self, into: &mut [u8]) -> Result<usize, FileError> {
            let piece = (self.bytes.len() - self.at).min(into.len());
            into[..piece].copy_from_slice(&self.bytes[self.at..][..piece]);
            self.at += piece;
            Ok(piece)
        }
        fn rewind(&mut self) -> Result<(), FileError> {
            self.at = 0;
            self.readings += 1;
            if self.readings == 2 {
                let middle = self.bytes.len() / 2;
                self.bytes[middle] ^= 1;
            }
            Ok(())
        }
    }
    block_on(async {
        let (from, to) = (memory(), memory());
        furnish(&from, "main", JID).await;
        let bytes = exported(&from, "main").await;
        let mut source = Changing {
            bytes,
            at: 0,
            readings: 0,
        };
        let key = key();
        let options = ImportOptions::new(FileKey::Key(&key));
        let error = import(&to, &acme(), &mut source, options, &mut rng(), NOW).await;
        assert!(
            matches!(error, Err(ImportError::Read(ReadError::Damaged(_)))),
            "{error:?}"
        );
        assert_eq!(accounts(&to).await, []);
    });
}
