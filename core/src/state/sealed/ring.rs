//! The data keys of one tenant, and the form in which the vault keeps them.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | `e6`: a wrapped data key |
//! | 1 | 1 | 1: this form |
//! | 2 | 8 | id of the master key |
//! | 10 | 1 | bit 0: rows of this tenant may still be in the clear |
//! | 11 | 8 | when the key was made, unix milliseconds |
//! | 19 | 24 | nonce |
//! | 43 | 48 | the data key and its tag |
//!
//! Bound to it: `Baton data key`, a zero byte, length (1 byte) and text of the business, the key's number, offsets 0
//! to 18. Numbers are high byte first.

use super::{MasterKeys, master::MasterKey, vault::Trouble};
use crate::{
    crypto::{SecretKey, XChaCha},
    state::{BusinessId, Record, UnixMillis, sealed::MasterKeyId},
};
use std::{collections::BTreeMap, sync::Arc};
use zeroize::{Zeroize, Zeroizing};

/// First byte of a wrapped key.
const MARKER: u8 = 0xe6;
/// This form of it.
const FORMAT: u8 = 1;
const HEADER: usize = 19;
const NONCE_END: usize = HEADER + XChaCha::NONCE;
const PLAIN_ROWS: u8 = 1;

/// How long a handle that writes goes without looking whether there is a newer key.
const FRESH_MILLIS: u64 = 60_000;

/// The keys of a tenant: never empty.
pub(super) struct Ring {
    pub(super) keys: BTreeMap<u32, Held>,
    current: u32,
    looked: Option<UnixMillis>,
}

/// One number of a vault.
pub(super) enum Held {
    Usable(DataKey),
    Unusable(Fault),
}

/// A data key at work.
pub(super) struct DataKey {
    pub(super) cipher: Arc<XChaCha>,
    pub(super) about: About,
}

/// What the header of a wrapped key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) master: MasterKeyId,
    /// Rows in the clear are accepted, while this is the tenant's newest key.
    pub(super) plain_rows: bool,
    pub(super) made_at: UnixMillis,
}

/// Why a data key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    OtherMaster(MasterKeyId),
    Damaged,
    Newer,
}

impl Ring {
    /// `before` is what was known of the tenant until now.
    pub(super) fn read(
        business: &BusinessId,
        vault: &[(u32, Record)],
        masters: &MasterKeys,
        before: Option<&Self>,
        looked: Option<UnixMillis>,
    ) -> Option<Self> {
        let read = |(number, wrapped): &(u32, Record)| {
            let before = before.and_then(|ring| ring.keys.get(number));
            let held = Held::read(business, *number, wrapped, masters, before);
            (*number, held)
        };
        let keys: BTreeMap<_, _> = vault.iter().map(read).collect();
        // Numbers only go up, and the newest key is the last that a tenant loses.
        let current = *keys.last_key_value()?.0;
        Some(Self {
            keys,
            current,
            looked,
        })
    }

    pub(super) fn knows(&self, number: u32) -> bool {
        self.keys.contains_key(&number)
    }

    /// Whether it was read recently enough to write with.
    pub(super) fn is_fresh(&self, at: UnixMillis) -> bool {
        self.looked
            .is_some_and(|looked| looked.0.abs_diff(at.0) < FRESH_MILLIS)
    }

    /// The key to write with, and its number.
    pub(super) fn current(&self) -> (u32, Result<&DataKey, Fault>) {
        let key = match self.keys.get(&self.current) {
            Some(Held::Usable(key)) => Ok(key),
            Some(Held::Unusable(fault)) => Err(*fault),
            None => Err(Fault::Damaged),
        };
        (self.current, key)
    }

    pub(super) fn accepts_plain_rows(&self) -> bool {
        self.current().1.is_ok_and(|key| key.about.plain_rows)
    }

    /// The master key that one of the data keys takes and that is not there.
    pub(super) fn missing_master(&self) -> Option<MasterKeyId> {
        self.keys.values().rev().find_map(|held| match held {
            Held::Unusable(Fault::OtherMaster(id)) => Some(*id),
            _ => None,
        })
    }
}

impl Held {
    fn read(
        business: &BusinessId,
        number: u32,
        wrapped: &Record,
        masters: &MasterKeys,
        before: Option<&Self>,
    ) -> Self {
        match (unwrap(business, number, wrapped, masters), before) {
            (Ok((secret, about)), _) => Self::Usable(DataKey {
                cipher: Arc::new(XChaCha::new(secret.as_bytes())),
                about,
            }),
            // Wrapped anew with a master key that we do not have; it is the key that we do have. Numbers begin again
            // when a tenant was forgotten, moments do not. Nobody vouches for the rest of what stands there.
            (Err(Fault::OtherMaster(master)), Some(Self::Usable(key)))
                if header(wrapped).is_ok_and(|about| about.made_at == key.about.made_at) =>
            {
                Self::Usable(DataKey {
                    cipher: Arc::clone(&key.cipher),
                    about: About {
                        master,
                        ..key.about
                    },
                })
            }
            (Err(fault), _) => Self::Unusable(fault),
        }
    }
}

impl Fault {
    pub(super) fn explain(self, business: &BusinessId, number: u32, given: MasterKeyId) -> Trouble {
        let business = business.clone();
        match self {
            Self::OtherMaster(found) => Trouble::OtherMaster {
                business,
                found,
                given,
            },
            Self::Damaged => Trouble::DataKey {
                business,
                number,
                fault: "is damaged",
            },
            Self::Newer => Trouble::DataKey {
                business,
                number,
                fault: "was written by a later release",
            },
        }
    }
}

/// Locks `secret` up under `master`.
pub(super) fn wrap(
    business: &BusinessId,
    number: u32,
    secret: &SecretKey,
    about: About,
    master: &MasterKey,
    nonce: &[u8; XChaCha::NONCE],
) -> Record {
    let mut out = Vec::with_capacity(NONCE_END + 32 + XChaCha::TAG);
    out.extend_from_slice(&[MARKER, FORMAT]);
    out.extend_from_slice(&about.master.0);
    out.push(if about.plain_rows { PLAIN_ROWS } else { 0 });
    out.extend_from_slice(&about.made_at.0.to_be_bytes());
    let context = context(business, number, &out);
    out.extend_from_slice(nonce);
    out.extend_from_slice(secret.as_bytes());
    master
        .wrap()
        .seal_from(NONCE_END, nonce, &context, &mut out);
    Record(out.into())
}

/// What [`wrap`] locked up.
pub(super) fn unwrap(
    business: &BusinessId,
    number: u32,
    wrapped: &Record,
    masters: &MasterKeys,
) -> Result<(SecretKey, About), Fault> {
    let about = header(wrapped)?;
    let (header, rest) = wrapped.0.split_at_checked(HEADER).ok_or(Fault::Damaged)?;
    let master = masters
        .get(about.master)
        .ok_or(Fault::OtherMaster(about.master))?;
    let (nonce, sealed) = rest.split_first_chunk().ok_or(Fault::Damaged)?;
    let mut bytes = master
        .wrap()
        .open(nonce, &context(business, number, header), sealed)
        .map_err(|_| Fault::Damaged)?;
    let mut secret = Zeroizing::new([0; 32]);
    let fits = bytes.len() == secret.len();
    if fits {
        secret.copy_from_slice(&bytes);
    }
    bytes.zeroize();
    if !fits {
        return Err(Fault::Damaged);
    }
    Ok((SecretKey::from_bytes(*secret), about))
}

/// What stands in front of a wrapped key; true only once it is unwrapped.
fn header(wrapped: &Record) -> Result<About, Fault> {
    let header = match wrapped.0.split_first_chunk::<HEADER>() {
        Some((header, _)) if header[0] == MARKER => header,
        _ => return Err(Fault::Damaged),
    };
    let [_, format, id @ .., flags, t0, t1, t2, t3, t4, t5, t6, t7] = *header;
    if format != FORMAT || flags & !PLAIN_ROWS != 0 {
        return Err(Fault::Newer);
    }
    Ok(About {
        master: MasterKeyId(id),
        plain_rows: flags & PLAIN_ROWS != 0,
        made_at: UnixMillis(i64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7])),
    })
}

fn context(business: &BusinessId, number: u32, header: &[u8]) -> Vec<u8> {
    let name = business.as_str().as_bytes();
    let mut context = b"Baton data key\0".to_vec();
    // At most 64, by the rules of names.
    context.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    context.extend_from_slice(name);
    context.extend_from_slice(&number.to_be_bytes());
    context.extend_from_slice(header);
    context
}
