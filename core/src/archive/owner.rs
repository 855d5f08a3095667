//! Whose account it is, and who else in a database is the same.

use crate::{
    crypto::sha256,
    proto::record::{Counters, Device, Origin},
    state::{AccountInfo, Key, Record, Row, Store, StoreError, codec},
};

/// Stands for the address of one linked device: the first half of SHA-256 over `Baton account`, a zero byte and the
/// address as text, with its device number. A phone number can be found from it by trying all; it is kept where the
/// address itself is too.
pub(super) type Owner = [u8; 16];

/// Of the address by phone number, which every linked account has. `None` if the account is not linked.
pub(super) fn owner(device: &Record) -> Option<Owner> {
    let device: Device = codec::decode(device).ok()?;
    let [half, _] = halves(&sha256(&[b"Baton account\0", device.jid?.as_bytes()]));
    Some(half)
}

fn halves(hash: &[u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    for (half, bytes) in halves.iter_mut().zip(hash.chunks_exact(16)) {
        half.copy_from_slice(bytes);
    }
    halves
}

/// An account of a database, as far as moving goes.
pub(super) struct Resident {
    pub(super) info: AccountInfo,
    /// How it came here.
    pub(super) origin: Option<Origin>,
    /// Whose it is, or was to become.
    pub(super) owner: Option<Owner>,
    /// Nothing was ever made of it: it has neither keys nor numbers.
    pub(super) is_blank: bool,
}

impl Resident {
    /// An import that has not ended: it says what it comes from, and has no device row yet.
    pub(super) fn is_unfinished(&self) -> bool {
        self.origin.is_some() && self.info.device == Row::Absent
    }

    pub(super) fn moves(&self) -> u32 {
        self.origin
            .as_ref()
            .and_then(|origin| origin.moves)
            .unwrap_or(0)
    }

    pub(super) fn comes_from(&self, export: &[u8]) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|origin| origin.export.as_deref() == Some(export))
    }
}

/// Everybody. Rows that cannot be read tell nothing: an account whose device row is damaged is nobody's.
pub(super) async fn residents<S: Store>(store: &S) -> Result<Vec<Resident>, StoreError> {
    let mut residents = Vec::new();
    for business in store.tenants().await? {
        for info in store.accounts(&business).await? {
            let rows = match store.load(&info.id, vec![Key::Counters]).await {
                // Deleted meanwhile.
                Err(StoreError::NoAccount) => continue,
                rows => rows?,
            };
            let origin = match rows.first() {
                Some(Row::Present(record)) => codec::decode(record)
                    .ok()
                    .and_then(|counters: Counters| counters.origin),
                _ => None,
            };
            let owner = match &info.device {
                Row::Present(device) => owner(device),
                _ => origin
                    .as_ref()
                    .and_then(|origin| origin.owner.as_deref()?.try_into().ok()),
            };
            let is_blank = info.device == Row::Absent && rows == [Row::Absent];
            residents.push(Resident {
                info,
                origin,
                owner,
                is_blank,
            });
        }
    }
    Ok(residents)
}
