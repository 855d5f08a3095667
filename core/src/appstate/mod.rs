//! App state, "syncd": five collections of settings that an account's devices replicate through the service, encrypted
//! with keys that the phone shares (fact sheet 08).
//!
//! A collection is a map from the name of a setting (its *index*) to a value, and a log of patches that leads from
//! version to version. The service sees neither; it stores records and counts versions. What keeps it honest is a hash
//! over all values ([`LtHash`]), authenticated with each patch and each snapshot:
//!
//! * [`verify_patch`] takes a collection one version further, or says what is wrong with the patch;
//! * [`verify_snapshot`] replaces a collection by a snapshot of it;
//! * [`verify_recovery`] does so with what the phone has, when the service's snapshot does not add up either;
//! * [`build_patch`] makes the patch that announces changes of ours.
//!
//! Everything here is pure: nothing is stored, and the state that comes out is a new value. Whoever calls keeps version,
//! hash and the changed value MACs together, in one batch, or the collection can never be verified again.
//!
//! [`action`] gives the values their meaning.

pub mod action;
mod keys;
mod lthash;
mod mutation;
mod patch;
mod recovery;
mod snapshot;

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod vectors;

pub use keys::{KeyId, KeyRing, MAX_KEY_ID, SyncKey};
pub use lthash::LtHash;
pub use mutation::{Change, MAX_INDEX_BYTES, MAX_VALUE_BYTES, Mutation, MutationError, Operation};
pub use patch::{
    Applied, BuildError, Built, MAX_MUTATIONS, PatchError, build_patch, build_patch_over,
    patch_keys, patch_touches, verify_patch,
};
pub use recovery::{read_recovery, recovery_keys, verify_recovery};
pub use snapshot::{
    MAX_RECORDS, Replaced, SnapshotError, build_snapshot, snapshot_keys, verify_snapshot,
};

use smol_str::SmolStr;
use std::{fmt, str::FromStr};

/// One of the five (fact sheet 08.1), in the order in which a new device fetches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// Push name, locale, security settings: needed before anything else.
    CriticalBlock,
    /// Contacts.
    CriticalUnblockLow,
    /// Mute, star, deletions.
    RegularHigh,
    /// Labels, quick replies, phone numbers of LID chats.
    Regular,
    /// Pin, archive, mark read.
    RegularLow,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::CriticalBlock,
        Self::CriticalUnblockLow,
        Self::RegularHigh,
        Self::Regular,
        Self::RegularLow,
    ];

    /// Its name on the wire and in MACs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CriticalBlock => "critical_block",
            Self::CriticalUnblockLow => "critical_unblock_low",
            Self::RegularHigh => "regular_high",
            Self::Regular => "regular",
            Self::RegularLow => "regular_low",
        }
    }

    /// Its name in keys of rows.
    #[must_use]
    pub const fn name(self) -> SmolStr {
        SmolStr::new_static(self.as_str())
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of the five.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such collection")]
pub struct UnknownCollection;

impl FromStr for Collection {
    type Err = UnknownCollection;

    fn from_str(name: &str) -> Result<Self, UnknownCollection> {
        Self::ALL
            .into_iter()
            .find(|collection| collection.as_str() == name)
            .ok_or(UnknownCollection)
    }
}

/// Where a collection stands. The default is one that was never fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Number of the last patch taken in.
    pub version: u64,
    /// Over the value MACs of everything in it.
    pub hash: LtHash,
}

/// What a patch or snapshot does to the map from index MAC to value MAC: a new value, or none.
pub type MacChange = ([u8; 32], Option<[u8; 32]>);
