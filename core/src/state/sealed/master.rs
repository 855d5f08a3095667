//! The keys that come from outside and open nothing but boxes of data keys.

use crate::crypto::{SecretKey, XChaCha, hkdf_sha256};
use std::{fmt, sync::Arc};

/// Names a master key without telling anything of it: 8 bytes that are derived from it, printed as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasterKeyId(pub [u8; 8]);

impl fmt::Display for MasterKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MasterKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKeyId({self})")
    }
}

/// A key that wraps data keys. What is kept of the secret is derived from it and wiped on drop.
#[derive(Clone)]
pub struct MasterKey {
    id: MasterKeyId,
    wrap: Arc<XChaCha>,
}

impl MasterKey {
    /// The master key of this secret.
    #[must_use]
    pub fn new(secret: &SecretKey) -> Self {
        let derive = |info| hkdf_sha256::<32>(b"Baton master key", secret.as_bytes(), info);
        let [a, b, c, d, e, f, g, h, ..] = *derive(b"id");
        Self {
            id: MasterKeyId([a, b, c, d, e, f, g, h]),
            wrap: Arc::new(XChaCha::new(&derive(b"wrap"))),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> MasterKeyId {
        self.id
    }

    pub(super) fn wrap(&self) -> &XChaCha {
        &self.wrap
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({}, ..)", self.id)
    }
}

/// The master key, and those that it replaces.
#[derive(Clone, Debug)]
pub struct MasterKeys {
    current: MasterKey,
    earlier: Vec<MasterKey>,
}

impl MasterKeys {
    /// One key for everything.
    #[must_use]
    pub const fn new(current: MasterKey) -> Self {
        Self {
            current,
            earlier: Vec::new(),
        }
    }

    /// Also opens what `earlier` has wrapped. Needed until everything is [re-wrapped](super::Sealed::rewrap).
    #[must_use]
    pub fn and(mut self, earlier: MasterKey) -> Self {
        self.earlier.push(earlier);
        self
    }

    /// What new data keys are wrapped with.
    #[must_use]
    pub const fn current(&self) -> &MasterKey {
        &self.current
    }

    pub(super) fn get(&self, id: MasterKeyId) -> Option<&MasterKey> {
        [&self.current]
            .into_iter()
            .chain(&self.earlier)
            .find(|key| key.id == id)
    }
}
