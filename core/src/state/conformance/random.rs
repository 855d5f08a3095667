//! Random histories against a model.
//!
//! The model says what [`Store`] promises in as few words as possible. A history is a list of steps drawn from a
//! seed; it is played on the model and on the store, every answer is compared, and at the end every row is. A history
//! that disagrees is shortened before it is shown, so what a failing test prints is what to look at.
//!
//! Time does not pass in a history: hosts leave or are declared dead, they do not run out.

use super::*;
use crate::state::{EventSeq, HandOver};
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
    /// A claim by the present life of this host, who joins if it does not live.
    Claim { account: usize, who: usize },
    /// A release under the epoch in force, less `stale`.
    Release {
        account: usize,
        who: usize,
        stale: u64,
    },
    /// A hand-over under the epoch in force, less `stale`.
    HandOver {
        account: usize,
        who: usize,
        stale: u64,
        to: usize,
    },
    /// A host leaves, or is declared dead by another.
    End { who: usize, by: Option<usize> },
    /// The database may have lost commits: a new generation.
    Lose,
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
    /// Under the name of this host's present life instead of the holder's.
    thief: Option<usize>,
    /// In the history before the present one.
    outdated: bool,
    reseal: bool,
    at: i64,
    rows: Vec<(usize, Option<u8>)>,
}

const ACCOUNTS: usize = 3;
const HOSTS: usize = 3;

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
    /// Who it was given to last.
    holder: Option<Incarnation>,
    sealed: Seal,
    rows: BTreeMap<Key, (Record, i64)>,
}

/// The hosts of one history: of each its present life, if it lives.
type Lives = [Option<Incarnation>; HOSTS];

impl Model {
    fn commit(&mut self, batch: &Batch, history: Seal) -> Outcome {
        let (epoch, seq) = (batch.term.epoch.0, batch.seq.0);
        if epoch == 0 || seq == 0 {
            return Outcome::Rejected(String::new());
        }
        let outdated = batch.term.history != history;
        if epoch > self.epoch && !outdated {
            return Outcome::Rejected(String::new());
        }
        if epoch < self.epoch || (epoch == self.epoch && self.holder != Some(batch.term.holder)) {
            return Outcome::Fenced {
                by: Epoch(self.epoch),
            };
        }
        if outdated || (self.sealed != history && !batch.reseal) {
            return Outcome::Unsealed { history };
        }
        if seq > self.applied + 1 {
            return Outcome::Rejected(String::new());
        }
        if seq == self.applied + 1 {
            self.applied = seq;
            self.sealed = history;
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
    let history = store.history().await.map_err(|e| e.to_string())?;
    let model = || Model {
        sealed: history,
        ..Model::default()
    };
    let mut models: Vec<Model> = (0..ACCOUNTS).map(|_| model()).collect();
    let mut fleet = Fleet {
        lives: [None; HOSTS],
        history,
        before: history,
    };
    for (position, step) in steps.iter().enumerate() {
        let result = play_step(
            harness,
            &mut store,
            &ids,
            &keys,
            &mut models,
            &mut fleet,
            step,
        );
        result
            .await
            .map_err(|why| format!("step {position}, {step:?}: {why}"))?;
    }
    for who in fleet.lives.into_iter().flatten() {
        store.leave(who).await.map_err(|e| e.to_string())?;
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

/// Who lives, and which history it is.
struct Fleet {
    lives: Lives,
    history: Seal,
    before: Seal,
}

impl Fleet {
    /// The present life of a host, a new one if it has none.
    async fn life<S: Store>(&mut self, store: &S, who: usize) -> Result<Incarnation, String> {
        if let Some(life) = self.lives[who] {
            return Ok(life);
        }
        let life = new_life();
        let joined = store.join(life, HostInfo::named(&format!("h{who}")), LONG);
        joined.await.map_err(|error| error.to_string())?;
        self.lives[who] = Some(life);
        Ok(life)
    }

    fn is_live(&self, who: Incarnation) -> bool {
        self.lives.contains(&Some(who))
    }

    fn end(&mut self, life: Incarnation) {
        for host in &mut self.lives {
            if *host == Some(life) {
                *host = None;
            }
        }
    }
}

async fn play_step<H: Harness>(
    harness: &H,
    store: &mut H::Store,
    ids: &[AccountId],
    keys: &[Key],
    models: &mut [Model],
    fleet: &mut Fleet,
    step: &Step,
) -> Result<(), String> {
    let failed = |error: crate::state::StoreError| error.to_string();
    match step {
        Step::Claim { account, who } => {
            let who = fleet.life(store, *who).await?;
            let model = &mut models[*account];
            let held = model.holder.filter(|&by| by != who && fleet.is_live(by));
            let answer = store
                .claim(who, vec![ids[*account].clone()])
                .await
                .map_err(failed)?;
            let expected = match held {
                Some(by) => Claim::Held { by },
                None => {
                    let floor = fleet.history.epoch_floor().0;
                    model.epoch = floor.max(model.epoch + 1);
                    model.holder = Some(who);
                    Claim::Granted(Lease {
                        term: Term {
                            epoch: Epoch(model.epoch),
                            holder: who,
                            history: fleet.history,
                        },
                        applied: Seq(model.applied),
                        sealed: model.sealed,
                    })
                }
            };
            agree("the claim", &answer, &vec![expected])?;
        }
        Step::Release {
            account,
            who,
            stale,
        } => {
            let who = fleet.life(store, *who).await?;
            let model = &mut models[*account];
            let epoch = model.epoch.saturating_sub(*stale);
            store
                .release(who, vec![(ids[*account].clone(), Epoch(epoch))])
                .await
                .map_err(failed)?;
            if epoch == model.epoch && model.holder == Some(who) {
                model.holder = None;
            }
        }
        Step::HandOver {
            account,
            who,
            stale,
            to,
        } => {
            let who = fleet.life(store, *who).await?;
            let model = &mut models[*account];
            let epoch = model.epoch.saturating_sub(*stale);
            let to = fleet.lives[*to].unwrap_or_else(new_life);
            let answer = store
                .hand_over(who, &ids[*account], Epoch(epoch), to)
                .await
                .map_err(failed)?;
            let expected = if !fleet.is_live(to) {
                HandOver::Refused
            } else if epoch == model.epoch && model.holder == Some(who) {
                model.epoch += 1;
                model.holder = Some(to);
                HandOver::Done {
                    epoch: Epoch(model.epoch),
                }
            } else {
                HandOver::Fenced {
                    by: Epoch(model.epoch),
                }
            };
            agree("the hand-over", &answer, &expected)?;
        }
        Step::End { who, by } => {
            let who = fleet.life(store, *who).await?;
            match by {
                Some(by) => {
                    let by = fleet.life(store, *by).await?;
                    let ended = store.declare_dead(by, who).await.map_err(failed)?;
                    agree("whether somebody died", &ended, &(by != who))?;
                    if ended {
                        fleet.end(who);
                    }
                }
                None => {
                    store.leave(who).await.map_err(failed)?;
                    fleet.end(who);
                    for model in models {
                        // Freed by leaving, which is the same as held by somebody who is gone.
                        model.holder = model.holder.filter(|&holder| holder != who);
                    }
                }
            }
        }
        Step::Lose => {
            fleet.before = fleet.history;
            fleet.history = store.renew_history(fleet.history).await.map_err(failed)?;
            if fleet.history.losses_until(fleet.before) != 1 {
                return Err(format!("{:?} after {:?}", fleet.history, fleet.before));
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
                let holder = match draft.thief {
                    Some(thief) => fleet.lives[thief],
                    None => model.holder,
                };
                let batch = Batch {
                    account: ids[draft.account].clone(),
                    term: Term {
                        epoch: Epoch(model.epoch.saturating_add_signed(draft.epoch)),
                        holder: holder.unwrap_or(Incarnation(77)),
                        history: if draft.outdated {
                            fleet.before
                        } else {
                            fleet.history
                        },
                    },
                    reseal: draft.reseal,
                    seq: Seq(model.applied.saturating_add_signed(draft.seq)),
                    at: UnixMillis(draft.at),
                    rows: rows.collect(),
                };
                expected.push(model.commit(&batch, fleet.history));
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
            // The database outlives the process, and so does its roster: whoever lived has to be declared dead, unless
            // the store can prove it (some can).
            *store = harness.restart(store.clone());
            let dead = std::mem::take(&mut fleet.lives);
            let judge = fleet.life(store, 0).await?;
            for who in dead.into_iter().flatten() {
                store.declare_dead(judge, who).await.map_err(failed)?;
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
        let who = self.below(HOSTS);
        let stale = usize::from(self.chance(30)) as u64;
        let aged = [Table::Seen, Table::Sent, Table::MessageSecret];
        match self.below(22) {
            0..=3 => Step::Claim { account, who },
            4 => Step::HandOver {
                account,
                who,
                stale,
                to: self.below(HOSTS),
            },
            5 => Step::Release {
                account,
                who,
                stale,
            },
            10 => Step::End {
                who,
                by: self.chance(60).then(|| self.below(HOSTS)),
            },
            11 if self.chance(40) => Step::Lose,
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
            thief: self.chance(8).then(|| self.below(HOSTS)),
            outdated: self.chance(8),
            reseal: self.chance(30),
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
        let mut seen = [0; 4];
        for seed in 0..24 {
            let mut dice = Dice(seed);
            let mut history = Seal::FIRST;
            let mut before = history;
            let mut model = Model {
                sealed: history,
                ..Model::default()
            };
            for _ in 0..60 {
                match dice.step() {
                    Step::Claim { account: 0, who } => {
                        model.epoch += 1;
                        model.holder = Some(Incarnation(who as u64));
                    }
                    Step::Lose => {
                        before = history;
                        history.generation += 1;
                    }
                    Step::Commit(drafts) => {
                        for draft in drafts.iter().filter(|draft| draft.account == 0) {
                            let batch = Batch {
                                account: AccountId {
                                    business: business("x"),
                                    device: 1,
                                },
                                term: Term {
                                    epoch: Epoch(model.epoch.saturating_add_signed(draft.epoch)),
                                    holder: match draft.thief {
                                        Some(thief) => Incarnation(thief as u64),
                                        None => model.holder.unwrap_or(Incarnation(77)),
                                    },
                                    history: if draft.outdated { before } else { history },
                                },
                                reseal: draft.reseal,
                                seq: Seq(model.applied.saturating_add_signed(draft.seq)),
                                at: UnixMillis(0),
                                rows: BTreeMap::new(),
                            };
                            match model.commit(&batch, history) {
                                Outcome::Committed => seen[0] += 1,
                                Outcome::Fenced { .. } => seen[1] += 1,
                                Outcome::Rejected(_) => seen[2] += 1,
                                Outcome::Unsealed { .. } => seen[3] += 1,
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        assert!(
            seen.iter().all(|&count| count > 30),
            "committed, fenced, rejected, unsealed: {seen:?}"
        );
    }

    #[test]
    fn a_failing_history_is_shortened_to_what_matters() {
        let mut dice = Dice(7);
        let mut steps: Vec<Step> = (0..60).map(|_| dice.step()).collect();
        steps.retain(|step| !matches!(step, Step::Restart | Step::Lose));
        steps.insert(20, Step::Restart);
        steps.insert(40, Step::Lose);
        let mut play = |steps: &[Step]| {
            let restart = steps.iter().position(|step| matches!(step, Step::Restart));
            let lose = steps.iter().rposition(|step| matches!(step, Step::Lose));
            if restart.is_some() && restart < lose {
                Err("both".to_owned())
            } else {
                Ok(())
            }
        };
        let (steps, _) = shorten(steps, String::new(), &mut play);
        assert!(
            matches!(steps[..], [Step::Restart, Step::Lose]),
            "{steps:?}"
        );
    }
}
