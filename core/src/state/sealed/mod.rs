//! Encryption at rest: a store over any store, under which no record is kept in the clear.
//!
//! Think of a safe-deposit hall. The *master key* is the banker's: it comes from outside, opens nothing but key boxes,
//! and is never written down here. Every tenant has a box ([`Store::vault`]) with *data keys*, and the data key locks
//! the records. To change the master key is to lock the boxes anew, not the records; to destroy a tenant is to destroy
//! its box.
//!
//! * [`Sealed`] is the store. What goes in as a record is encrypted with XChaCha20-Poly1305 on its way down and
//!   decrypted on its way up; everything else (fences, leases, names) passes through.
//! * A record is bound to its business, account, table and key: one that was moved elsewhere, or in which a bit was
//!   changed, is [`Row::Corrupt`](super::Row::Corrupt), never another record. A record of the same row as it was
//!   earlier is not told from the present one.
//! * *Keys of rows* are not encrypted, as databases search by them. Phone numbers are in them.
//! * [`MasterKeys`]: the master key, and earlier ones while they are being replaced ([`Sealed::rewrap`]).
//! * [`Pass`]: the background work, in slices: after [`Sealed::rotate`] every row moves to the new data key, and in a
//!   database that was kept in the clear so far, every row is encrypted.
//!
//! `docs/encryption.md` has the format byte by byte, what is and is not protected, and how to rotate.

mod master;
mod pass;
mod ring;
mod row;
mod store;
mod vault;

#[cfg(test)]
mod tests;

pub use master::{MasterKey, MasterKeyId, MasterKeys};
pub use pass::{GRACE, Pass, Progress};
pub use vault::{DataKeyInfo, is_encrypted};

use super::{BusinessId, Store, StoreError, UnixMillis};
use crate::crypto::{Rng, XChaCha};
use ring::Ring;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A store that encrypts every record before it reaches `S`. Cheap to clone; clones share keys and cache.
///
/// Data keys are made when the first record of a tenant is written, read when the first one is needed, and kept in
/// memory, wiped when the last clone is dropped. Every handle looks at the keys of a tenant again when the wall clock of
/// what it writes ([`Batch::at`](super::Batch::at)) has moved on by a minute, so that a rotation elsewhere is noticed.
#[derive(Clone)]
pub struct Sealed<S> {
    inner: S,
    shared: Arc<Shared>,
}

struct Shared {
    masters: MasterKeys,
    plain: PlainRows,
    rng: Mutex<Rng>,
    rings: Mutex<BTreeMap<BusinessId, Arc<Ring>>>,
}

/// What to make of a tenant whose rows are not encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainRows {
    /// An error: rows in the clear are nobody's, or somebody has forgotten to convert the database.
    #[default]
    Refuse,
    /// They are read as they are until a [`Pass`] has encrypted all of them; from then on, they are corrupt.
    Convert,
}

/// Why a sealed store does not open. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The database itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not the key of this database.
    #[error("tenant {business} is encrypted under master key {found}, given {given}")]
    OtherMaster {
        /// Whose keys were tried.
        business: BusinessId,
        /// What it takes.
        found: MasterKeyId,
        /// What there is.
        given: MasterKeyId,
    },
    /// The database is in use without encryption.
    #[error(
        "tenant {0} is not encrypted; convert the database, or say that it is to stay as it is"
    )]
    Plain(BusinessId),
}

impl<S: Store> Sealed<S> {
    /// Tenants whose keys are tried when opening. Those of others are tried at their first use.
    pub const TRIED: usize = 256;

    /// Opens `inner`, and shows that the keys are the right ones by unwrapping those of the first tenants.
    ///
    /// `seed` is 32 bytes of the operating system's randomness, fresh for every opening: two handles with the same seed
    /// would encrypt different records under the same nonces, which reveals both.
    pub async fn open(
        inner: S,
        masters: MasterKeys,
        seed: [u8; 32],
        plain: PlainRows,
    ) -> Result<Self, OpenError> {
        let sealed = Self {
            inner,
            shared: Arc::new(Shared {
                masters,
                plain,
                rng: Mutex::new(Rng::from_seed(seed)),
                rings: Mutex::default(),
            }),
        };
        for business in sealed.inner.tenants().await?.iter().take(Self::TRIED) {
            sealed.try_tenant(business).await?;
        }
        Ok(sealed)
    }

    async fn try_tenant(&self, business: &BusinessId) -> Result<(), OpenError> {
        match self.look(business, None).await? {
            // A damaged key is its tenant's trouble, and told when it is used.
            Some(ring) => match ring.missing_master() {
                Some(found) => Err(OpenError::OtherMaster {
                    business: business.clone(),
                    found,
                    given: self.shared.masters.current().id(),
                }),
                None => Ok(()),
            },
            None if self.shared.plain == PlainRows::Refuse
                && self.kept(business).await?.has_plain =>
            {
                Err(OpenError::Plain(business.clone()))
            }
            None => Ok(()),
        }
    }

    /// The store below, for what this one does not offer. Records in it are encrypted.
    #[must_use]
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Mixes fresh randomness into what nonces and keys are drawn from.
    pub fn reseed(&self, fresh: [u8; 32]) {
        self.rng().reseed(fresh);
    }

    fn nonce(&self) -> [u8; XChaCha::NONCE] {
        self.rng().bytes()
    }

    /// Drawing numbers leaves the stream whole, so a poisoned lock is still good.
    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.shared
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A map of complete entries, so a poisoned lock is still good.
    fn rings(&self) -> MutexGuard<'_, BTreeMap<BusinessId, Arc<Ring>>> {
        self.shared
            .rings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, business: &BusinessId) -> Option<Arc<Ring>> {
        self.rings().get(business).cloned()
    }

    /// Reads the keys of a tenant anew. `None` if it has none. `at` is the moment, for whoever asks later.
    async fn look(
        &self,
        business: &BusinessId,
        at: Option<UnixMillis>,
    ) -> Result<Option<Arc<Ring>>, StoreError> {
        let vault = self.inner.vault(business).await?;
        let before = self.cached(business);
        let masters = &self.shared.masters;
        let ring = Ring::read(business, &vault, masters, before.as_deref(), at).map(Arc::new);
        let mut rings = self.rings();
        match &ring {
            Some(ring) => rings.insert(business.clone(), Arc::clone(ring)),
            None => rings.remove(business),
        };
        Ok(ring)
    }
}

/// Tells nothing of keys or rows.
impl<S: fmt::Debug> fmt::Debug for Sealed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("inner", &self.inner)
            .field("master", &self.shared.masters.current().id())
            .finish_non_exhaustive()
    }
}
