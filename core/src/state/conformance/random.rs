//! Random histories against a model.
//!
//! The model says what [`Store`] promises in as few words as possible. A history is a list of steps drawn from a
//! seed; it is played on the model and on the store, every answer is compared, and at the end every row is. A history
//! that disagrees is shortened before it is shown, so what a failing test prints is what to look at.
//!
//! Time does not pass in a history: a lease either outlives it or is over at once.

use super::*;
use crate::state::{EventSeq, Renewal};
use std::collections::BTreeMap;

/// Plays random histories, a database for many of them.
pub async fn histories_agree_with_the_model<H: Harness>(harness: H) {
    for seed in 0..24 {
        let mut dice = Dice(seed);
        let steps: Vec<Step> = (0..60).map(|_| dice.step()).collect();
        // Each run has a tenant of its own, so that one database serves them all.
        let mut runs = 0;
        let mut play = |steps: &[Step]| {
            runs += 1;
            block_on(play(&harness, &format!("run-{seed}-{runs}"), steps))
        };
        if let Err(first) = play(&steps) {
            let (steps, why) = shorten(steps, first, &mut play);
            panic!("seed {seed}: {why}\nshortest history found: {steps:#?}");
        }
    }
}

/// One call of a random history. Accounts, holders, keys and values are small numbers, so that they meet often.
#[derive(Clone, Debug)]
enum Step {
    /// A claim; `lasting` outlives the history, otherwise the lease is over at once.
    Claim {
        account: usize,
        who: u64,
        lasting: bool,
    },
    /// A renewal under the epoch in force, less `stale`.
    Renew {
        account: usize,
        who: u64,
        stale: u64,
        lasting: bool,
    },
    /// A release under the epoch in force, less `stale`.
    Release {
        account: usize,
        who: u64,
        stale: u64,
    },
    /// One call with these batches.
    Commit(Vec<Draft>),
    /// A request left for the owner.
    Enqueue {
        account: usize,
        key: usize,
        value: u8,
        at: i64,
    },
    /// Deletion by age.
    Retain {
        account: usize,
        table: Table,
        before: i64,
        limit: u32,
    },
    /// Loads some keys and one page of a table.
    Read {
        account: usize,
        table: Table,
        page: u32,
    },
    /// The process ends and comes back.
    Restart,
}

/// A batch, numbers relative to what is right.
#[derive(Clone, Debug)]
struct Draft {
    account: usize,
    /// Added to the epoch in force.
    epoch: i64,
    /// Added to the number of the last applied batch.
    seq: i64,
    at: i64,
    rows: Vec<(usize, Option<u8>)>,
}

const ACCOUNTS: usize = 3;

/// Few keys, of tables with and without retention.
fn pool() -> Vec<Key> {
    let mut keys = vec![
        Key::Device,
        Key::Counters,
        Key::PreKey(1),
        Key::Inbox(EventSeq(1)),
        Key::Inbox(EventSeq(2)),
    ];
    for n in 0..3 {
        keys.push(Key::Seen([n; 32]));
        keys.push(Key::Sent(format!("s{n}").into()));
        keys.push(Key::Mailbox(format!("m{n}").into()));
    }
    keys.extend(samples::keys(Table::Session).into_iter().take(4));
    keys
}

/// What the trait promises, for one account.
#[derive(Default)]
struct Model {
    epoch: u64,
    applied: u64,
    /// Who holds it and whether the lease outlives the history.
    holder: Option<(u64, bool)>,
    /// A restart may prove the holder dead; the store need not notice.
    doubtful: bool,
    rows: BTreeMap<Key, (Record, i64)>,
}

impl Model {
    fn commit(&mut self, batch: &Batch) -> Outcome {
        let (epoch, seq) = (batch.epoch.0, batch.seq.0);
        if epoch == 0 || seq == 0 || epoch > self.epoch {
            return Outcome::Rejected(String::new());
        }
        if epoch < self.epoch {
            return Outcome::Fenced {
                by: Epoch(self.epoch),
            };
        }
        if seq > self.applied + 1 {
            return Outcome::Rejected(String::new());
        }
        if seq == self.applied + 1 {
            self.applied = seq;
            for (key, record) in &batch.rows {
                match record {
                    Some(record) => self.rows.insert(key.clone(), (record.clone(), batch.at.0)),
                    None => self.rows.remove(key),
                };
            }
        }
        Outcome::Committed
    }

    fn row(&self, key: &Key) -> Row {
        self.rows
            .get(key)
            .map_or(Row::Absent, |(record, _)| Row::Present(record.clone()))
    }

    fn table(&self, table: Table) -> Vec<(Key, Row)> {
        let rows = self.rows.keys().filter(|key| key.table() == table);
        rows.map(|key| (key.clone(), self.row(key))).collect()
    }

    /// Rows that `retain` may delete.
    fn old(&self, table: Table, before: i64) -> Vec<Key> {
        let old = self
            .rows
            .iter()
            .filter(|(key, (_, at))| key.table() == table && *at < before);
        old.map(|(key, _)| key.clone()).collect()
    }
}

/// Plays one history in tenants of its own. `Err` says where store and model disagree.
async fn play<H: Harness>(harness: &H, run: &str, steps: &[Step]) -> Result<(), String> {
    let mut store = harness.open();
    let keys = pool();
    let mut ids = Vec::new();
    for n in 0..ACCOUNTS {
        // The first two share a tenant.
        let tenant = business(&format!("{run}-{}", n / 2));
        ids.push(
            store
                .create_account(&tenant, &format!("a{n}"))
                .await
                .map_err(|e| e.to_string())?,
        );
    }
    let mut models: Vec<Model> = (0..ACCOUNTS).map(|_| Model::default()).collect();
    for (position, step) in steps.iter().enumerate() {
        let result = play_step(harness, &mut store, &ids, &keys, &mut models, step).await;
        result.map_err(|why| format!("step {position}, {step:?}: {why}"))?;
    }
    for (id, model) in ids.iter().zip(&models) {
        for &table in Table::ALL {
            let found = whole_table(&store, id, table, 2).await;
            agree("rows at the end", &found, &model.table(table))?;
        }
        let listed = store
            .accounts(&id.business)
            .await
            .map_err(|e| e.to_string())?;
        let listed = listed
            .iter()
            .find(|account| account.id == *id)
            .ok_or("the account is not listed")?;
        agree("the epoch at the end", &listed.epoch, &Epoch(model.epoch))?;
        agree(
            "the device row at the end",
            &listed.device,
            &model.row(&Key::Device),
        )?;
    }
    Ok(())
}

async fn play_step<H: Harness>(
    harness: &H,
    store: &mut H::Store,
    ids: &[AccountId],
    keys: &[Key],
    models: &mut [Model],
    step: &Step,
) -> Result<(), String> {
    let ttl = |lasting: bool| if lasting { LONG } else { Micros(0) };
    let failed = |error: crate::state::StoreError| error.to_string();
    match step {
        Step::Claim {
            account,
            who,
            lasting,
        } => {
            let model = &mut models[*account];
            let answer = store
                .claim(&ids[*account], Incarnation(*who), ttl(*lasting))
                .await
                .map_err(failed)?;
            let held = model.holder.filter(|(by, lasting)| by != who && *lasting);
            match (answer, held) {
                (Claim::Held { by, .. }, Some((holder, _))) => agree("the holder", &by.0, &holder)?,
                (Claim::Granted(_), Some(_)) if !model.doubtful => {
                    return Err("granted while held".into());
                }
                (Claim::Held { .. }, None) => return Err("held while free".into()),
                (Claim::Granted(lease), _) => {
                    *model = Model {
                        epoch: model.epoch + 1,
                        holder: Some((*who, *lasting)),
                        doubtful: false,
                        ..std::mem::take(model)
                    };
                    agree("the granted epoch", &lease.epoch, &Epoch(model.epoch))?;
                    agree("the last batch", &lease.applied, &Seq(model.applied))?;
                }
            }
        }
        Step::Renew {
            account,
            who,
            stale,
            lasting,
        } => {
            let model = &mut models[*account];
            let epoch = model.epoch.saturating_sub(*stale);
            let lease = vec![(ids[*account].clone(), Epoch(epoch))];
            let answer = store
                .renew(Incarnation(*who), lease, ttl(*lasting))
                .await
                .map_err(failed)?;
            let expected = match &mut model.holder {
                Some((holder, lease)) if holder == who && epoch == model.epoch => {
                    *lease = *lasting;
                    Renewal::Renewed
                }
                _ => Renewal::Lost {
                    by: Epoch(model.epoch),
                },
            };
            agree("the renewal", &answer, &vec![expected])?;
        }
        Step::Release {
            account,
            who,
            stale,
        } => {
            let model = &mut models[*account];
            let epoch = model.epoch.saturating_sub(*stale);
            store
                .release(&ids[*account], Incarnation(*who), Epoch(epoch))
                .await
                .map_err(failed)?;
            if epoch == model.epoch && model.holder.is_some_and(|(holder, _)| holder == *who) {
                model.holder = None;
            }
        }
        Step::Commit(drafts) => {
            let mut batches = Vec::new();
            let mut expected = Vec::new();
            for draft in drafts {
                let model = &mut models[draft.account];
                let rows = draft.rows.iter().map(|(key, value)| {
                    let value = value
                        .map(|value| Record(bytes::Bytes::from(vec![value; usize::from(value)])));
                    (keys[*key % keys.len()].clone(), value)
                });
                let batch = Batch {
                    account: ids[draft.account].clone(),
                    epoch: Epoch(model.epoch.saturating_add_signed(draft.epoch)),
                    seq: Seq(model.applied.saturating_add_signed(draft.seq)),
                    at: UnixMillis(draft.at),
                    rows: rows.collect(),
                };
                expected.push(model.commit(&batch));
                batches.push(batch);
            }
            let mut outcomes = store.commit(batches).await.map_err(failed)?;
            for outcome in &mut outcomes {
                // The words of a rejection are the store's own.
                if let Outcome::Rejected(why) = outcome {
                    why.clear();
                }
            }
            agree("the outcomes", &outcomes, &expected)?;
        }
        Step::Enqueue {
            account,
            key,
            value,
            at,
        } => {
            let model = &mut models[*account];
            let id = crate::state::MessageId::from(format!("m{key}"));
            let request = Record(bytes::Bytes::from(vec![*value]));
            let store = &*store;
            let left = store
                .enqueue(&ids[*account], id.clone(), request.clone(), UnixMillis(*at))
                .await;
            let key = Key::Mailbox(id);
            agree(
                "whether the request was new",
                &left.map_err(failed)?,
                &!model.rows.contains_key(&key),
            )?;
            model.rows.entry(key).or_insert((request, *at));
        }
        Step::Retain {
            account,
            table,
            before,
            limit,
        } => {
            let model = &mut models[*account];
            let old = model.old(*table, *before);
            let deleted = store
                .retain(&ids[*account], *table, UnixMillis(*before), *limit)
                .await
                .map_err(failed)?;
            agree(
                "how many rows went",
                &deleted,
                &(old.len() as u32).min(*limit),
            )?;
            // Which of the old ones went is the store's choice; that nothing else did is not.
            let left = whole_table(store, &ids[*account], *table, 100).await;
            for key in old {
                if !left.iter().any(|(other, _)| *other == key) {
                    model.rows.remove(&key);
                }
            }
            agree("what is left", &left, &model.table(*table))?;
        }
        Step::Read {
            account,
            table,
            page,
        } => {
            let model = &models[*account];
            agree(
                "a scan",
                &whole_table(store, &ids[*account], *table, *page).await,
                &model.table(*table),
            )?;
            let rows = load(store, &ids[*account], keys.iter().cloned()).await;
            agree(
                "a load",
                &rows,
                &keys.iter().map(|key| model.row(key)).collect(),
            )?;
        }
        Step::Restart => {
            *store = harness.restart(store.clone());
            for model in models {
                model.doubtful = true;
            }
        }
    }
    Ok(())
}

fn agree<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:?} instead of {expected:?}"))
    }
}

/// Leaves out steps as long as the rest still fails: halves first, then single ones.
fn shorten(
    mut steps: Vec<Step>,
    mut why: String,
    play: &mut impl FnMut(&[Step]) -> Result<(), String>,
) -> (Vec<Step>, String) {
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + size).min(steps.len()));
            match play(&fewer) {
                Err(reason) => (steps, why) = (fewer, reason),
                Ok(()) => start += size,
            }
        }
        size /= 2;
    }
    (steps, why)
}

/// A small generator of our own (SplitMix64): the suite has no dependencies and its seeds mean the same for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    /// True `percent` times out of a hundred.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn step(&mut self) -> Step {
        let account = self.below(ACCOUNTS);
        let who = self.below(3) as u64 + 1;
        let stale = usize::from(self.chance(30)) as u64;
        let lasting = self.chance(40);
        let aged = [Table::Seen, Table::Sent, Table::MessageSecret];
        match self.below(20) {
            0..=3 => Step::Claim {
                account,
                who,
                lasting,
            },
            4 => Step::Renew {
                account,
                who,
                stale,
                lasting,
            },
            5 => Step::Release {
                account,
                who,
                stale,
            },
            6 => Step::Enqueue {
                account,
                key: self.below(3),
                value: self.below(4) as u8,
                at: self.below(50) as i64,
            },
            7 => Step::Retain {
                account,
                table: aged[self.below(3)],
                before: self.below(60) as i64,
                limit: self.below(4) as u32,
            },
            8 => Step::Read {
                account,
                table: Table::ALL[self.below(Table::ALL.len())],
                page: self.below(3) as u32 + 1,
            },
            9 => Step::Restart,
            _ => Step::Commit((0..=self.below(4)).map(|_| self.draft()).collect()),
        }
    }

    fn draft(&mut self) -> Draft {
        Draft {
            account: self.below(ACCOUNTS),
            epoch: if self.chance(30) {
                self.below(3) as i64 - 1
            } else {
                0
            },
            seq: if self.chance(20) {
                self.below(4) as i64 - 1
            } else {
                1
            },
            at: self.below(50) as i64,
            rows: (0..self.below(5))
                .map(|_| {
                    (
                        self.below(100),
                        (!self.chance(30)).then(|| self.below(4) as u8),
                    )
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The histories must reach what they are there for.
    #[test]
    fn random_histories_meet_every_outcome() {
        let mut seen = [0; 3];
        for seed in 0..24 {
            let mut dice = Dice(seed);
            let mut model = Model::default();
            for _ in 0..60 {
                match dice.step() {
                    Step::Claim { account: 0, .. } => model.epoch += 1,
                    Step::Commit(drafts) => {
                        for draft in drafts.iter().filter(|draft| draft.account == 0) {
                            let batch = Batch {
                                account: AccountId {
                                    business: business("x"),
                                    device: 1,
                                },
                                epoch: Epoch(model.epoch.saturating_add_signed(draft.epoch)),
                                seq: Seq(model.applied.saturating_add_signed(draft.seq)),
                                at: UnixMillis(0),
                                rows: BTreeMap::new(),
                            };
                            match model.commit(&batch) {
                                Outcome::Committed => seen[0] += 1,
                                Outcome::Fenced { .. } => seen[1] += 1,
                                Outcome::Rejected(_) => seen[2] += 1,
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        assert!(
            seen.iter().all(|&count| count > 30),
            "committed, fenced, rejected: {seen:?}"
        );
    }

    #[test]
    fn a_failing_history_is_shortened_to_what_matters() {
        let mut dice = Dice(7);
        let mut steps: Vec<Step> = (0..60).map(|_| dice.step()).collect();
        steps.retain(|step| !matches!(step, Step::Restart | Step::Renew { .. }));
        steps.insert(20, Step::Restart);
        steps.insert(
            40,
            Step::Renew {
                account: 0,
                who: 1,
                stale: 0,
                lasting: true,
            },
        );
        let mut play = |steps: &[Step]| {
            let restart = steps.iter().position(|step| matches!(step, Step::Restart));
            let renew = steps
                .iter()
                .rposition(|step| matches!(step, Step::Renew { .. }));
            if restart.is_some() && restart < renew {
                Err("both".to_owned())
            } else {
                Ok(())
            }
        };
        let (steps, _) = shorten(steps, String::new(), &mut play);
        assert!(
            matches!(steps[..], [Step::Restart, Step::Renew { .. }]),
            "{steps:?}"
        );
    }
}
