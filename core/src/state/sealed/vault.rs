//! What becomes of data keys: made at the first write, changed, wrapped anew, destroyed.

use super::{
    MasterKeyId, PlainRows, Sealed,
    ring::{self, About, Fault, Held, Ring},
    row::{self, Form},
};
use crate::{
    crypto::SecretKey,
    state::{BusinessId, Outcome, Record, Row, Store, StoreError, UnixMillis, rules},
};
use std::sync::Arc;

/// One data key of a tenant, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataKeyInfo {
    /// Its number; rows name it.
    pub number: u32,
    /// Whether new rows are encrypted with it.
    pub current: bool,
    /// What it is wrapped with; `None` if the entry cannot be read.
    pub master: Option<MasterKeyId>,
    /// When it was made; `None` if it cannot be unwrapped.
    pub made_at: Option<UnixMillis>,
    /// Whether rows of the tenant may still be in the clear; only said of the current key.
    pub plain_rows: bool,
}

/// Whether anything in `store` is encrypted. What is opened without keys has to ask first: rows that are written in the
/// clear between encrypted ones cannot be read by anybody who has the keys.
pub async fn is_encrypted<S: Store>(store: &S) -> Result<bool, StoreError> {
    for business in store.tenants().await? {
        if !store.vault(&business).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl<S: Store> Sealed<S> {
    /// Makes a new data key for what is written from now on; returns its number. Every handle uses it within a minute
    /// or so; rows move to it by a [`Pass`](super::Pass), which removes the old keys.
    ///
    /// If somebody else makes one at the same moment, theirs is it.
    pub async fn rotate(&self, business: &BusinessId, now: UnixMillis) -> Result<u32, StoreError> {
        let Some(ring) = self.look(business, Some(now)).await? else {
            let ring = self.make_first(business, now).await?;
            return Ok(ring.current().0);
        };
        let (number, current) = ring.current();
        let current = current.map_err(|fault| self.trouble(business, number, fault))?;
        let plain_rows = current.about.plain_rows;
        self.make(business, number.saturating_add(1), plain_rows, now)
            .await?;
        let ring = self.look(business, Some(now)).await?;
        Ok(ring.map_or(number, |ring| ring.current().0))
    }

    /// Wraps every data key of a tenant with the current master key, where it is not yet; returns how many were. Once
    /// this is done for all tenants, the earlier master key is no longer needed. Rows are not touched.
    pub async fn rewrap(&self, business: &BusinessId) -> Result<u32, StoreError> {
        let masters = &self.shared.masters;
        let mut done = 0;
        for (number, wrapped) in self.inner.vault(business).await? {
            let (secret, about) = ring::unwrap(business, number, &wrapped, masters)
                .map_err(|fault| self.trouble(business, number, fault))?;
            if about.master == masters.current().id() {
                continue;
            }
            let about = About {
                master: masters.current().id(),
                ..about
            };
            let new = self.wrap(business, number, &secret, about);
            // Somebody else did it, or the key is gone: either way nothing is left to do.
            let swapped = self
                .inner
                .swap_vault(business, number, Some(wrapped), Some(new))
                .await?;
            done += u32::from(swapped);
        }
        self.look(business, None).await?;
        Ok(done)
    }

    /// [`rewrap`](Self::rewrap) for every tenant.
    pub async fn rewrap_all(&self) -> Result<u32, StoreError> {
        let mut done = 0;
        for business in self.inner.tenants().await? {
            done += self.rewrap(&business).await?;
        }
        Ok(done)
    }

    /// Destroys a tenant's data keys: nothing that it has stored can be read ever again, here or in a copy of the
    /// database that was made later. [`StoreError::Held`] while a live host has one of its accounts. The rows stay, as
    /// noise, until the accounts are deleted; before that, nothing new can be written either.
    ///
    /// A process that has the tenant's keys in memory can read until it looks again (a minute, if it writes). An older
    /// copy of the database, together with the master key, still opens.
    pub async fn forget_tenant(&self, business: &BusinessId) -> Result<(), StoreError> {
        let accounts = self.inner.accounts(business).await?;
        if accounts.iter().any(|account| account.holder.is_some()) {
            return Err(StoreError::Held);
        }
        // Lowest number first, so that no older key becomes the newest in between. Again, as a key can be made or
        // wrapped anew meanwhile.
        loop {
            let vault = self.inner.vault(business).await?;
            if vault.is_empty() {
                break;
            }
            for (number, wrapped) in vault {
                self.inner
                    .swap_vault(business, number, Some(wrapped), None)
                    .await?;
            }
        }
        self.rings().remove(business);
        Ok(())
    }

    /// The data keys of a tenant, oldest first; none if nothing of it is encrypted, or its keys were destroyed.
    pub async fn data_keys(&self, business: &BusinessId) -> Result<Vec<DataKeyInfo>, StoreError> {
        let Some(ring) = self.look(business, None).await? else {
            return Ok(Vec::new());
        };
        let current = ring.current().0;
        let info = |(&number, held): (&u32, &Held)| DataKeyInfo {
            number,
            current: number == current,
            master: match held {
                Held::Usable(key) => Some(key.about.master),
                Held::Unusable(Fault::OtherMaster(id)) => Some(*id),
                Held::Unusable(_) => None,
            },
            made_at: match held {
                Held::Usable(key) => Some(key.about.made_at),
                Held::Unusable(_) => None,
            },
            plain_rows: number == current && ring.accepts_plain_rows(),
        };
        Ok(ring.keys.iter().map(info).collect())
    }

    /// The keys to write with at `at`; makes the first one if there is none.
    pub(super) async fn writing(
        &self,
        business: &BusinessId,
        at: UnixMillis,
    ) -> Result<Arc<Ring>, Trouble> {
        let ring = match self.cached(business).filter(|ring| ring.is_fresh(at)) {
            Some(ring) => ring,
            None => match self.look(business, Some(at)).await? {
                Some(ring) => ring,
                None => self.make_first(business, at).await?,
            },
        };
        match ring.current() {
            (_, Ok(_)) => Ok(ring),
            (number, Err(fault)) => Err(self.trouble(business, number, fault)),
        }
    }

    pub(super) fn trouble(&self, business: &BusinessId, number: u32, fault: Fault) -> Trouble {
        fault.explain(business, number, self.shared.masters.current().id())
    }

    async fn make_first(
        &self,
        business: &BusinessId,
        now: UnixMillis,
    ) -> Result<Arc<Ring>, Trouble> {
        let kept = self.kept(business).await?;
        if kept.accounts == 0 {
            return Err(Trouble::NoAccount);
        }
        if kept.has_sealed {
            return Err(Trouble::Forgotten(business.clone()));
        }
        let converts = self.shared.plain == PlainRows::Convert;
        if kept.has_plain && !converts {
            return Err(Trouble::Plain(business.clone()));
        }
        self.make(business, 1, converts, now).await?;
        self.look(business, Some(now))
            .await?
            .ok_or_else(|| Trouble::Forgotten(business.clone()))
    }

    /// Makes a key of this number, unless there is one.
    async fn make(
        &self,
        business: &BusinessId,
        number: u32,
        plain_rows: bool,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let secret = SecretKey::generate(&mut self.rng());
        let about = About {
            master: self.shared.masters.current().id(),
            plain_rows,
            made_at: now,
        };
        let wrapped = self.wrap(business, number, &secret, about);
        self.inner
            .swap_vault(business, number, None, Some(wrapped))
            .await?;
        Ok(())
    }

    pub(super) fn wrap(
        &self,
        business: &BusinessId,
        number: u32,
        secret: &SecretKey,
        about: About,
    ) -> Record {
        let master = self.shared.masters.current();
        ring::wrap(business, number, secret, about, master, &self.nonce())
    }

    /// What a tenant without keys has, judged by the device rows of its accounts.
    pub(super) async fn kept(&self, business: &BusinessId) -> Result<Kept, StoreError> {
        let accounts = self.inner.accounts(business).await?;
        let has = |wanted: fn(Form) -> bool| {
            accounts.iter().any(|account| match &account.device {
                Row::Present(record) => wanted(row::form(record)),
                Row::Absent | Row::Corrupt => false,
            })
        };
        Ok(Kept {
            accounts: accounts.len(),
            has_plain: has(|form| form == Form::Plain),
            has_sealed: has(|form| form != Form::Plain),
        })
    }
}

/// See [`Sealed::kept`].
pub(super) struct Kept {
    accounts: usize,
    pub(super) has_plain: bool,
    has_sealed: bool,
}

/// Why records of a tenant cannot be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    TooLarge(#[from] rules::Refusal),
    /// No account has this number: its tenant has none at all.
    #[error("no such account")]
    NoAccount,
    #[error("tenant {business} is encrypted under master key {found}, given {given}")]
    OtherMaster {
        business: BusinessId,
        found: MasterKeyId,
        given: MasterKeyId,
    },
    #[error("data key {number} of tenant {business} {fault}")]
    DataKey {
        business: BusinessId,
        number: u32,
        fault: &'static str,
    },
    #[error("tenant {0} is not encrypted; convert the database first")]
    Plain(BusinessId),
    #[error("the data keys of tenant {0} were deleted: its accounts cannot be read, only deleted")]
    Forgotten(BusinessId),
}

impl Trouble {
    /// What to answer to the batch that it concerns; `Err` if it concerns all of them.
    pub(super) fn outcome(self) -> Result<Outcome, StoreError> {
        match self {
            Self::Store(error) => Err(error),
            other => Ok(Outcome::Rejected(other.to_string())),
        }
    }
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Store(error) => error,
            Trouble::NoAccount => Self::NoAccount,
            other => Self::Refused(other.to_string()),
        }
    }
}
