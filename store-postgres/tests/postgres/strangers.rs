//! The wall between tenants, seen from the calls: whatever is asked in the name of one tenant, the rows of the other are
//! as they were, and none of them comes out.
//!
//! Two watchmen stand in the database. Each row of the tables of accounts is only ever looked at in a transaction that is
//! not the fleet's: the policy asks, and raises an error otherwise. And everything of the other tenant is compared, byte
//! by byte, before and after.

use crate::{
    cluster::{Db, options},
    rows::{HOUR, Owner, business, join, record},
};
use baton_core::state::{
    AccountId, Batch, BusinessId, Epoch, HostInfo, Incarnation, Key, Micros, Outcome, Placement,
    Row, Scan, Seal, Seq, Store, StoreError, Table, Term, UnixMillis,
    conformance::{block_on, samples},
};
use baton_store_postgres::{Options, PgStore};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sqlx::Row as _;

/// A call in the name of `acme`. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Call {
    Load(usize, usize),
    Scan(usize, usize),
    Commit {
        account: usize,
        term: usize,
        seq: u64,
        table: usize,
        put: bool,
        reseal: bool,
    },
    Confirm(usize, usize),
    Create(u8),
    Delete(usize),
    Accounts,
    Enqueue(usize),
    Retain(usize, usize),
    Claim(Vec<usize>),
    Release(usize, usize),
    HandOver(usize, usize),
    Place(usize, bool),
    Retire(usize, usize),
    Vault,
    SwapVault {
        number: u32,
        old: u8,
        new: u8,
    },
    SwapRecords(usize, usize),
    // Calls of hosts name no tenant.
    Join,
    Beat,
    Hosts,
    Held,
    Orphans,
    History,
    Tenants,
}

fn calls() -> impl Strategy<Value = Call> {
    let n = 0..1000_usize;
    prop_oneof![
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::Load(a, t)),
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::Scan(a, t)),
        (
            n.clone(),
            n.clone(),
            0..6_u64,
            n.clone(),
            any::<bool>(),
            any::<bool>()
        )
            .prop_map(|(account, term, seq, table, put, reseal)| Call::Commit {
                account,
                term,
                seq,
                table,
                put,
                reseal
            }),
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::Confirm(a, t)),
        any::<u8>().prop_map(Call::Create),
        n.clone().prop_map(Call::Delete),
        Just(Call::Accounts),
        n.clone().prop_map(Call::Enqueue),
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::Retain(a, t)),
        vec(n.clone(), 0..5).prop_map(Call::Claim),
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::Release(a, t)),
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::HandOver(a, t)),
        (n.clone(), any::<bool>()).prop_map(|(a, run)| Call::Place(a, run)),
        (n.clone(), n.clone()).prop_map(|(a, t)| Call::Retire(a, t)),
        Just(Call::Vault),
        (1..4_u32, 0..3_u8, 0..3_u8).prop_map(|(number, old, new)| Call::SwapVault {
            number,
            old,
            new
        }),
        (n.clone(), n).prop_map(|(a, t)| Call::SwapRecords(a, t)),
        Just(Call::Join),
        Just(Call::Beat),
        Just(Call::Hosts),
        Just(Call::Held),
        Just(Call::Orphans),
        Just(Call::History),
        Just(Call::Tenants),
    ]
}

/// Everything of a tenant, as text.
fn everything(db: &Db, tenant: &str) -> Vec<String> {
    let mut tables: Vec<String> = Table::ALL
        .iter()
        .map(|table| table.name().to_owned())
        .collect();
    tables.extend(["tenant", "fence", "placement", "vault"].map(str::to_owned));
    let parts: Vec<String> = tables
        .iter()
        .map(|table| {
            format!(
                "SELECT '{table} ' || t::text FROM baton_{table} t WHERE business_id = '{tenant}'"
            )
        })
        .collect();
    let rows = db.sql(&format!("{} ORDER BY 1", parts.join(" UNION ALL ")));
    rows.iter().map(|row| row.try_get(0).unwrap()).collect()
}

/// Rows of accounts and keys of tenants are not the fleet's business, not even to look at.
fn post_watchmen(db: &Db) {
    db.sql(
        "CREATE FUNCTION watchman(business text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
           IF current_setting('baton.fleet', true) = 'on' THEN RAISE EXCEPTION 'the fleet looks at %', business; END IF;
           IF current_setting('baton.businesses', true) LIKE '%,%' THEN RAISE EXCEPTION 'a crowd looks at %', business; END IF;
           RETURN business = current_setting('baton.businesses', true);
         END $$;
         DO $$ DECLARE t text; BEGIN
           FOR t IN SELECT c.relname FROM pg_class c WHERE c.relkind = 'r' AND c.relname ~ '^baton_' AND c.relname NOT IN
             ('baton_schema_migrations', 'baton_host', 'baton_cluster', 'baton_tenant', 'baton_fence', 'baton_placement')
           LOOP EXECUTE format('ALTER POLICY baton_wall ON %s USING (watchman(business_id))', t); END LOOP;
         END $$",
    );
}

/// What is of whom, and the calls.
struct Walk {
    store: PgStore,
    who: Incarnation,
    friend: Incarnation,
    acme: BusinessId,
    /// Accounts of acme; those of the other tenant under acme's name; and one that is nobody's.
    accounts: Vec<AccountId>,
    terms: Vec<Term>,
    created: u32,
}

impl Walk {
    fn key(&self, n: usize) -> Key {
        let table = Table::ALL[n % Table::ALL.len()];
        let keys = samples::keys(table);
        keys[n / Table::ALL.len() % keys.len()].clone()
    }

    fn account(&self, n: usize) -> &AccountId {
        &self.accounts[n % self.accounts.len()]
    }

    fn term(&self, n: usize) -> Term {
        self.terms[n % self.terms.len()]
    }

    fn batch(&self, call: &Call) -> Option<Batch> {
        let Call::Commit {
            account,
            term,
            seq,
            table,
            put,
            reseal,
        } = call
        else {
            return None;
        };
        Some(Batch {
            account: self.account(*account).clone(),
            term: self.term(*term),
            seq: Seq(*seq),
            reseal: *reseal,
            at: UnixMillis(5),
            rows: [(self.key(*table), put.then(|| record("of acme")))].into(),
        })
    }

    /// Makes the call; panics if the answer has anything of the other tenant.
    fn make(&mut self, call: &Call) {
        let store = self.store.clone();
        let innocent = |row: &Row| match row {
            Row::Present(record) => assert!(!record.0.starts_with(b"secret"), "{call:?}"),
            Row::Absent => {}
            Row::Corrupt => panic!("{call:?} found a damaged row"),
        };
        let checked = |answer: Result<(), StoreError>| match answer {
            Err(StoreError::Refused(why)) => assert!(!why.contains("looks at"), "{call:?}: {why}"),
            Err(StoreError::Unavailable(why)) => panic!("{call:?}: {why}"),
            _ => {}
        };
        match call {
            Call::Load(a, k) => checked(
                block_on(store.load(self.account(*a), vec![self.key(*k)]))
                    .map(|rows| rows.iter().for_each(innocent)),
            ),
            Call::Scan(a, t) => {
                let scan = Scan {
                    table: Table::ALL[t % Table::ALL.len()],
                    after: None,
                    limit: 100,
                };
                checked(
                    block_on(store.scan(self.account(*a), scan))
                        .map(|rows| rows.iter().for_each(|(_, row)| innocent(row))),
                );
            }
            Call::Commit { .. } => {
                let batch = self.batch(call).unwrap();
                let answer = block_on(store.commit(vec![batch]));
                if let Ok([Outcome::Rejected(why)]) = answer.as_deref() {
                    assert!(!why.contains("looks at"), "{why}");
                }
                checked(answer.map(|_| ()));
            }
            Call::Confirm(a, t) => {
                let terms = vec![(self.account(*a).clone(), self.term(*t))];
                checked(block_on(store.confirm(terms)).map(|_| ()));
            }
            Call::Create(n) => {
                // Not without end.
                if self.created < 20 {
                    self.created += 1;
                    let created = block_on(store.create_account(&self.acme, &format!("a{n}")));
                    if let Ok(id) = &created {
                        self.accounts.push(id.clone());
                    }
                    checked(created.map(|_| ()));
                }
            }
            Call::Delete(a) => checked(block_on(store.delete_account(self.account(*a)))),
            Call::Accounts => {
                let accounts = block_on(store.accounts(&self.acme)).unwrap();
                for account in accounts {
                    assert_eq!(account.id.business, self.acme);
                    assert_ne!(account.name, "theirs");
                    innocent(&account.device);
                }
            }
            Call::Enqueue(a) => {
                let request = record("of acme");
                let queued = store.enqueue(self.account(*a), "m1".into(), request, UnixMillis(1));
                checked(block_on(queued).map(|_| ()));
            }
            Call::Retain(a, t) => {
                let table = [Table::Seen, Table::Sent, Table::MessageSecret][t % 3];
                let retained = store.retain(self.account(*a), table, UnixMillis(i64::MAX), 1000);
                checked(block_on(retained).map(|_| ()));
            }
            Call::Claim(accounts) => {
                let ids = accounts.iter().map(|&a| self.account(a).clone()).collect();
                let claims = block_on(store.claim(self.who, ids)).unwrap();
                for claim in claims {
                    if let baton_core::state::Claim::Granted(lease) = claim {
                        self.terms.push(lease.term);
                    }
                }
            }
            Call::Release(a, t) => {
                let term = self.term(*t);
                let mine = vec![(self.account(*a).clone(), term.epoch)];
                checked(block_on(store.release(term.holder, mine)));
            }
            Call::HandOver(a, t) => {
                let term = self.term(*t);
                let given = store.hand_over(term.holder, self.account(*a), term.epoch, self.friend);
                checked(block_on(given).map(|_| ()));
            }
            Call::Place(a, run) => {
                let wish = Placement {
                    run: *run,
                    ..Placement::default()
                };
                checked(block_on(store.place(self.account(*a), wish)));
            }
            Call::Retire(a, t) => {
                let term = self.term(*t);
                let retired = store.retire(term.holder, self.account(*a), term.epoch);
                checked(block_on(retired).map(|_| ()));
            }
            Call::Vault => {
                for (_, key) in block_on(store.vault(&self.acme)).unwrap() {
                    assert!(!key.0.starts_with(b"secret"));
                }
            }
            Call::SwapVault { number, old, new } => {
                let key = |n: &u8| (*n > 0).then(|| record(format!("key {n}")));
                let swapped = store.swap_vault(&self.acme, *number, key(old), key(new));
                checked(block_on(swapped).map(|_| ()));
            }
            Call::SwapRecords(a, k) => {
                let key = self.key(*k);
                let swaps = vec![
                    (key.clone(), record("secret"), record("stolen")),
                    (key, record("of acme"), record("of acme too")),
                ];
                checked(block_on(store.swap_records(self.account(*a), swaps)).map(|_| ()));
            }
            Call::Join => {
                let joined = block_on(store.join(self.who, HostInfo::named("again"), HOUR));
                assert!(joined.is_ok());
            }
            Call::Beat => {
                crate::rows::beat(&store, self.who, HOUR);
            }
            Call::Hosts => assert!(block_on(store.hosts()).is_ok()),
            Call::Held => {
                // The store tells a host what it holds, whoever's it is. This one was never given any of the others'.
                for (id, _) in block_on(store.held(self.who)).unwrap() {
                    assert_eq!(id.business, self.acme);
                }
            }
            Call::Orphans => assert!(block_on(store.orphans(None, 100)).is_ok()),
            Call::History => assert_eq!(block_on(store.history()), Ok(Seal::FIRST)),
            Call::Tenants => assert!(block_on(store.tenants()).unwrap().contains(&self.acme)),
        }
    }
}

#[test]
fn no_call_for_one_tenant_touches_the_other() {
    let Some(db) = Db::new() else { return };
    // One connection: what a call leaves behind in its session, the next one finds.
    let store = db.open_with(Options {
        connections: 1,
        lanes: 1,
        ..options()
    });
    // The other tenant has a row in every table, an account that runs, one that waits, and a key.
    let guard = join(&store);
    let mut theirs = Owner::create_for(&store, "other", "theirs", guard);
    let mut full = theirs.batch("secret event");
    for &table in Table::ALL {
        for key in samples::keys(table) {
            full.rows.insert(key, Some(record("secret")));
        }
    }
    assert_eq!(
        block_on(store.commit(vec![full])),
        Ok(vec![Outcome::Committed])
    );
    let waiting = block_on(store.create_account(&business("other"), "waiting")).unwrap();
    let run = Placement {
        run: true,
        pin: Some("there".into()),
        pause: Micros(0),
    };
    block_on(store.place(&waiting, run)).unwrap();
    block_on(store.swap_vault(&business("other"), 1, None, Some(record("secret key")))).unwrap();

    let (who, friend) = (join(&store), join(&store));
    let mine = Owner::create_for(&store, "acme", "main", who);
    let acme = business("acme");
    let under_my_name = |device: u64| AccountId {
        business: acme.clone(),
        device,
    };
    let mut walk = Walk {
        accounts: vec![
            mine.id.clone(),
            under_my_name(theirs.id.device),
            under_my_name(waiting.device),
            under_my_name(u64::from(u32::MAX)),
        ],
        terms: vec![
            mine.lease.term,
            theirs.lease.term,
            Term {
                epoch: Epoch(1),
                holder: who,
                history: Seal::FIRST,
            },
        ],
        store: store.clone(),
        who,
        friend,
        acme,
        created: 0,
    };
    post_watchmen(&db);
    let before = everything(&db, "other");
    assert!(before.len() > Table::ALL.len());
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: 60,
            failure_persistence: None,
            ..Config::default()
        },
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let walk = std::cell::RefCell::new(&mut walk);
    let result = runner.run(&vec(calls(), 1..40), |calls| {
        for call in &calls {
            walk.borrow_mut().make(call);
        }
        let after = everything(&db, "other");
        prop_assert_eq!(&before, &after);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // The watchmen are awake: a transaction of the fleet that looks at rows is caught.
    let caught = db.cluster.try_sql(
        "postgres",
        &db.name,
        "BEGIN; SELECT set_config('role', 'baton_app', true), set_config('baton.fleet', 'on', true); \
         SELECT 1 FROM baton_counters",
    );
    let caught = caught.unwrap_err().to_string();
    assert!(caught.contains("the fleet looks at"), "{caught}");
}
