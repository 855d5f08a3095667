//! [`Store`] for [`Sealed`]: records are encrypted on their way down and decrypted on their way up.

use super::{
    PlainRows, Sealed,
    ring::{Held, Ring},
    row::{self, Form},
    vault::Trouble,
};
use crate::state::{
    AccountId, AccountInfo, Batch, BusinessId, Key, MessageId, Outcome, Record, Row, Scan, Store,
    StoreError, Table, UnixMillis, rules,
};
use std::sync::Arc;

/// The vault of a sealed store is where its own keys are: [`Store::vault`] and [`Store::swap_vault`] show them, wrapped,
/// and are for tools that copy a whole database.
impl<S: Store> Store for Sealed<S> {
    async fn load(&self, account: &AccountId, keys: Vec<Key>) -> Result<Vec<Row>, StoreError> {
        let rows = self.inner.load(account, keys.clone()).await?;
        let rows: Vec<_> = keys.into_iter().zip(rows).collect();
        let rows = self.unseal(account, rows).await?;
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    async fn scan(&self, account: &AccountId, scan: Scan) -> Result<Vec<(Key, Row)>, StoreError> {
        let rows = self.inner.scan(account, scan).await?;
        self.unseal(account, rows).await
    }

    async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(batches.len());
        let mut sealed = Vec::with_capacity(batches.len());
        for batch in batches {
            outcomes.push(match self.seal(batch).await {
                Ok(batch) => {
                    sealed.push(batch);
                    None
                }
                Err(trouble) => Some(trouble.outcome()?),
            });
        }
        let mut below = self.inner.commit(sealed).await?.into_iter();
        let missing = || StoreError::Unavailable("an outcome is missing".to_owned());
        outcomes
            .into_iter()
            .map(|outcome| outcome.or_else(|| below.next()).ok_or_else(missing))
            .collect()
    }

    async fn accounts(&self, business: &BusinessId) -> Result<Vec<AccountInfo>, StoreError> {
        let mut accounts = self.inner.accounts(business).await?;
        for account in &mut accounts {
            let device = std::mem::replace(&mut account.device, Row::Absent);
            let rows = self
                .unseal(&account.id, vec![(Key::Device, device)])
                .await?;
            account.device = rows
                .into_iter()
                .next()
                .map_or(Row::Corrupt, |(_, device)| device);
        }
        Ok(accounts)
    }

    async fn enqueue(
        &self,
        account: &AccountId,
        id: MessageId,
        request: Record,
        at: UnixMillis,
    ) -> Result<bool, StoreError> {
        rules::content(Table::Mailbox, &request)?;
        let ring = self.writing(&account.business, at).await?;
        let key = Key::Mailbox(id.clone());
        let request = self.seal_row(account, &key, &request, &ring)?;
        self.inner.enqueue(account, id, request, at).await
    }

    /// Compares what the records say, not how they are encrypted at the moment.
    async fn swap_records(
        &self,
        account: &AccountId,
        records: Vec<(Key, Record, Record)>,
    ) -> Result<u32, StoreError> {
        for (key, _, new) in &records {
            rules::key(key)?;
            rules::content(key.table(), new)?;
        }
        let mut swapped = 0;
        let mut left = records;
        // Once more if a row was encrypted anew in between. Every round fails only because somebody else got on.
        loop {
            let keys = left.iter().map(|(key, ..)| key.clone()).collect();
            let stored = self.inner.load(account, keys).await?;
            let mut rows = Vec::with_capacity(left.len());
            for ((key, ..), row) in left.iter().zip(&stored) {
                rows.push((key.clone(), row.clone()));
            }
            let rows = self.unseal(account, rows).await?;
            let pairs = left.into_iter().zip(stored.into_iter().zip(rows));
            let same: Vec<_> = pairs
                .filter_map(|((key, old, new), (stored, (_, row)))| match stored {
                    Row::Present(stored) if row == Row::Present(old.clone()) => {
                        Some((key, old, new, stored))
                    }
                    _ => None,
                })
                .collect();
            if same.is_empty() {
                return Ok(swapped);
            }
            let Some(ring) = self.look(&account.business, None).await? else {
                return Ok(swapped);
            };
            left = Vec::new();
            for (key, old, new, stored) in same {
                let sealed = self.seal_row(account, &key, &new, &ring)?;
                let swap = vec![(key.clone(), stored, sealed)];
                match self.inner.swap_records(account, swap).await? {
                    0 => left.push((key, old, new)),
                    one => swapped += one,
                }
            }
        }
    }

    crate::delegate_store!(inner:
        confirm create_account delete_account tenants retain
        join beat hosts drain declare_dead leave
        claim release hand_over held orphans misplaced mail place retire history renew_history watch
        vault swap_vault
    );
}

impl<S: Store> Sealed<S> {
    async fn seal(&self, mut batch: Batch) -> Result<Batch, Trouble> {
        for (key, record) in &batch.rows {
            if let Some(record) = record {
                rules::content(key.table(), record)?;
            }
        }
        // A batch that only deletes needs no key.
        if batch.rows.values().flatten().next().is_none() {
            return Ok(batch);
        }
        let ring = self.writing(&batch.account.business, batch.at).await?;
        for (key, record) in &mut batch.rows {
            if let Some(record) = record {
                *record = self.seal_row(&batch.account, key, record, &ring)?;
            }
        }
        Ok(batch)
    }

    pub(super) fn seal_row(
        &self,
        account: &AccountId,
        key: &Key,
        record: &Record,
        ring: &Ring,
    ) -> Result<Record, Trouble> {
        match ring.current() {
            (number, Ok(with)) => Ok(row::seal(
                account,
                key,
                record,
                (number, with),
                &self.nonce(),
            )),
            (number, Err(fault)) => Err(self.trouble(&account.business, number, fault)),
        }
    }

    /// Rows as they were before they were sealed. An error if the tenant's keys cannot be used: a row that only we cannot
    /// read must not pass for a damaged one, which may be overwritten.
    pub(super) async fn unseal(
        &self,
        account: &AccountId,
        rows: Vec<(Key, Row)>,
    ) -> Result<Vec<(Key, Row)>, StoreError> {
        let forms = || {
            rows.iter().filter_map(|(_, row)| match row {
                Row::Present(stored) => Some(row::form(stored)),
                Row::Absent | Row::Corrupt => None,
            })
        };
        if forms().next().is_none() {
            return Ok(rows);
        }
        let business = &account.business;
        let is_new = |ring: &Arc<Ring>, form| match form {
            Form::Sealed(number) => !ring.knows(number),
            Form::Plain | Form::Foreign | Form::Damaged => false,
        };
        let ring = match self.cached(business) {
            Some(ring) if !forms().any(|form| is_new(&ring, form)) => Some(ring),
            // Perhaps there is a key that is newer than our look at them.
            _ => self.look(business, None).await?,
        };
        rows.into_iter()
            .map(|(key, row)| {
                let row = match row {
                    Row::Present(stored) => {
                        self.unseal_row(account, &key, stored, ring.as_deref())?
                    }
                    other => other,
                };
                Ok((key, row))
            })
            .collect()
    }

    pub(super) fn unseal_row(
        &self,
        account: &AccountId,
        key: &Key,
        stored: Record,
        ring: Option<&Ring>,
    ) -> Result<Row, StoreError> {
        let business = &account.business;
        let held = |number: u32| ring.and_then(|ring| ring.keys.get(&number));
        match row::form(&stored) {
            Form::Foreign | Form::Damaged => Ok(Row::Corrupt),
            Form::Sealed(number) => match held(number) {
                Some(Held::Usable(with)) => {
                    Ok(row::open(account, key, &stored, with).map_or(Row::Corrupt, Row::Present))
                }
                Some(Held::Unusable(fault)) => Err(self.trouble(business, number, *fault).into()),
                // A number that was never given, or a key that was destroyed.
                None => Ok(Row::Corrupt),
            },
            Form::Plain => match ring {
                Some(ring) => match ring.current() {
                    (_, Ok(newest)) if newest.about.plain_rows => Ok(Row::Present(stored)),
                    (_, Ok(_)) => Ok(Row::Corrupt),
                    (number, Err(fault)) => Err(self.trouble(business, number, fault).into()),
                },
                None if self.shared.plain == PlainRows::Convert => Ok(Row::Present(stored)),
                None => Err(Trouble::Plain(business.clone()).into()),
            },
        }
    }
}
