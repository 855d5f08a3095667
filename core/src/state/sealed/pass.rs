//! The background work on a tenant's rows: each is brought under the newest data key, in slices, beside running engines.
//!
//! A row is replaced only if it is still what was read ([`Store::swap_records`]); if its owner was faster, what the owner
//! wrote is under the newest key already. When everything was looked at, the old keys are removed, and rows in the clear
//! are accepted no more.
//!
//! That last step must not overtake a handle that still writes with an old key. Handles look for a new key every minute,
//! so it is taken only by a pass that began [`GRACE`] after the newest key was made.

use super::{
    Sealed,
    ring::{self, About, Held, Ring},
    row::{self, Form},
    vault::Trouble,
};
use crate::state::{
    AccountId, BusinessId, Key, Micros, Row, Scan, Store, StoreError, Table, UnixMillis,
};

/// How old a data key has to be before a pass may remove the ones before it: far longer than the minute after which
/// every handle knows it, so that clocks may differ by nearly an hour. Where no other process has the database open,
/// [`Sealed::pass`] may be given none.
pub const GRACE: Micros = Micros::from_secs(3600);

/// How far the work on one tenant has come. Plain data: one that is lost is begun again, and finds less to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    business: BusinessId,
    /// The newest key when it began.
    target: u32,
    /// Whether the target was old enough then.
    may_finish: bool,
    /// Accounts not looked at yet, in descending order: the last is next.
    accounts: Vec<AccountId>,
    /// Where in the next account to go on: index of the table, and behind which key.
    table: usize,
    after: Option<Key>,
    /// Rows looked at.
    pub looked_at: u64,
    /// Rows that were encrypted anew.
    pub rewritten: u64,
    /// Rows that could not be read: they stay as they are.
    pub unreadable: u64,
    /// Rows that only a later release can read: while there are any, no key is removed.
    foreign: bool,
}

/// The answer to [`Sealed::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    More,
    /// Every row is under one key; this many old keys were removed.
    Finished {
        /// Data keys that are gone.
        removed: u32,
    },
    /// Every row was looked at, but the newest key is too young to remove the others: begin another pass later.
    TooEarly,
    /// There are rows of a later release; nothing was removed.
    Foreign,
}

impl<S: Store> Sealed<S> {
    /// Whether there is anything for a pass to do.
    pub async fn wants_pass(&self, business: &BusinessId) -> Result<bool, StoreError> {
        match self.look(business, None).await? {
            Some(ring) => Ok(ring.keys.len() > 1 || ring.accepts_plain_rows()),
            None => Ok(self.kept(business).await?.has_plain),
        }
    }

    /// Begins to bring the rows of a tenant under its newest key; makes the first key for a tenant whose rows are in the
    /// clear. `grace` is [`GRACE`] unless nobody else has the database open.
    pub async fn pass(
        &self,
        business: &BusinessId,
        now: UnixMillis,
        grace: Micros,
    ) -> Result<Pass, StoreError> {
        let ring = self.writing(business, now).await?;
        let (target, key) = ring.current();
        let made_at = match key {
            Ok(key) => key.about.made_at,
            Err(fault) => return Err(self.trouble(business, target, fault).into()),
        };
        let age = u64::try_from(now.0.saturating_sub(made_at.0)).unwrap_or(0);
        let accounts = self.inner.accounts(business).await?;
        let mut accounts: Vec<_> = accounts.into_iter().map(|account| account.id).collect();
        accounts.sort_by(|a, b| b.cmp(a));
        Ok(Pass {
            business: business.clone(),
            target,
            may_finish: Micros::from_millis(age) >= grace,
            accounts,
            table: 0,
            after: None,
            looked_at: 0,
            rewritten: 0,
            unreadable: 0,
            foreign: false,
        })
    }

    /// Looks at the next `slice` rows at most. After an error call again with the same pass.
    pub async fn advance(&self, pass: &mut Pass, slice: u32) -> Result<Progress, StoreError> {
        let mut budget = slice.max(1);
        // Most tables of most accounts are empty: an empty one is not a slice.
        while budget > 0 {
            let Some(account) = pass.accounts.last().cloned() else {
                return self.finish(pass).await;
            };
            let Some(&table) = Table::ALL.get(pass.table) else {
                pass.next_account();
                continue;
            };
            let scan = Scan {
                table,
                after: pass.after.clone(),
                limit: budget,
            };
            let rows = match self.inner.scan(&account, scan).await {
                Err(StoreError::NoAccount) => {
                    pass.next_account();
                    continue;
                }
                rows => rows?,
            };
            let found = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            let last = rows.last().map(|(key, _)| key.clone());
            match self.rewrite(pass, &account, rows).await {
                Err(StoreError::NoAccount) => {
                    pass.next_account();
                    continue;
                }
                done => done?,
            }
            pass.looked_at += u64::from(found);
            if found < budget {
                pass.table += 1;
                pass.after = None;
            } else {
                pass.after = last;
            }
            budget = budget.saturating_sub(found.max(1));
        }
        Ok(Progress::More)
    }

    async fn rewrite(
        &self,
        pass: &mut Pass,
        account: &AccountId,
        rows: Vec<(Key, Row)>,
    ) -> Result<(), StoreError> {
        // The newest key can be newer than the target by now: all the better.
        let Some(ring) = self.look(&pass.business, None).await? else {
            return Err(Trouble::Forgotten(pass.business.clone()).into());
        };
        let mut swaps = Vec::new();
        let (mut unreadable, mut foreign) = (0, false);
        for (key, row) in rows {
            let Row::Present(stored) = row else { continue };
            match row::form(&stored) {
                Form::Sealed(number) if number >= pass.target => continue,
                Form::Sealed(_) | Form::Plain | Form::Damaged => {}
                Form::Foreign => foreign = true,
            }
            match self.unseal_row(account, &key, stored.clone(), Some(&ring))? {
                Row::Present(record) => {
                    let sealed = self.seal_row(account, &key, &record, &ring)?;
                    swaps.push((key, stored, sealed));
                }
                Row::Absent | Row::Corrupt => unreadable += 1,
            }
        }
        if !swaps.is_empty() {
            let done = self.inner.swap_records(account, swaps).await?;
            pass.rewritten += u64::from(done);
        }
        pass.unreadable += unreadable;
        pass.foreign |= foreign;
        Ok(())
    }

    /// Every row is under the target or a newer key now, or unreadable.
    async fn finish(&self, pass: &Pass) -> Result<Progress, StoreError> {
        if !pass.may_finish {
            return Ok(Progress::TooEarly);
        }
        if pass.foreign {
            return Ok(Progress::Foreign);
        }
        self.close_to_plain_rows(pass).await?;
        let Some(ring) = self.look(&pass.business, None).await? else {
            return Ok(Progress::Finished { removed: 0 });
        };
        let mut removed = 0;
        let vault = self.inner.vault(&pass.business).await?;
        for (number, wrapped) in vault {
            // A key that we cannot use may be the only one for rows that we could not read.
            if number < pass.target && is_usable(&ring, number) {
                let gone = self
                    .inner
                    .swap_vault(&pass.business, number, Some(wrapped), None)
                    .await?;
                removed += u32::from(gone);
            }
        }
        self.look(&pass.business, None).await?;
        Ok(Progress::Finished { removed })
    }

    /// If the target is not the newest key any more, the one that is carries the mark on, for the pass that it needs.
    async fn close_to_plain_rows(&self, pass: &Pass) -> Result<(), StoreError> {
        let masters = &self.shared.masters;
        // Again if the key was wrapped anew in between.
        loop {
            let vault = self.inner.vault(&pass.business).await?;
            let target = vault.into_iter().find(|(number, _)| *number == pass.target);
            let Some((number, wrapped)) = target else {
                return Ok(());
            };
            let (secret, about) = ring::unwrap(&pass.business, number, &wrapped, masters)
                .map_err(|fault| self.trouble(&pass.business, number, fault))?;
            if !about.plain_rows {
                return Ok(());
            }
            let about = About {
                master: masters.current().id(),
                plain_rows: false,
                ..about
            };
            let closed = self.wrap(&pass.business, number, &secret, about);
            if self
                .inner
                .swap_vault(&pass.business, number, Some(wrapped), Some(closed))
                .await?
            {
                return Ok(());
            }
        }
    }
}

fn is_usable(ring: &Ring, number: u32) -> bool {
    matches!(ring.keys.get(&number), Some(Held::Usable(_)))
}

impl Pass {
    fn next_account(&mut self) {
        self.accounts.pop();
        self.table = 0;
        self.after = None;
    }
}
