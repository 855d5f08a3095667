//! Which cryptography a world uses: the real one, or stand-ins that keep its laws and cost next to nothing.
//!
//! Each call that lets a world go on puts its choice into force on its thread for as long as it takes, so worlds of both
//! kinds may take turns on one thread or run beside each other on several.

use baton_core::crypto::Rng;
use serde::{Deserialize, Serialize};

/// See the module documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crypto {
    /// What the product has.
    #[default]
    Real,
    /// [`baton_core::crypto::stand_in`].
    #[cfg(feature = "stand-in-crypto")]
    StandIn,
}

impl Crypto {
    /// As a seed has it: real in one of ten.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut bytes = [0xc5; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        match Rng::from_seed(bytes).below(10) {
            0 => Self::Real,
            _ => Self::cheapest(),
        }
    }

    /// Stand-ins, if this build has them.
    #[must_use]
    pub const fn cheapest() -> Self {
        #[cfg(feature = "stand-in-crypto")]
        return Self::StandIn;
        #[cfg(not(feature = "stand-in-crypto"))]
        return Self::Real;
    }

    /// As the command line has it.
    #[cfg(feature = "tier-b")]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn => "stand-in",
        }
    }

    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Real => "real cryptography",
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn => "stand-ins for cryptography",
        }
    }

    /// In force on this thread until what this returns is dropped.
    #[cfg(feature = "stand-in-crypto")]
    pub(crate) fn scope(self) -> baton_core::crypto::stand_in::Scope {
        baton_core::crypto::stand_in::scope(self == Self::StandIn)
    }

    /// There is nothing to put into force.
    #[cfg(not(feature = "stand-in-crypto"))]
    pub(crate) fn scope(self) -> Self {
        self
    }
}
