//! Records to bytes and back: one version byte, then a protobuf of [`proto::record`](crate::proto::record).

use super::Record;
use prost::Message;
use zeroize::Zeroizing;

/// The version this code writes, and the only one it reads. A higher one comes from a newer release: that row is
/// reported and left alone instead of being misread.
pub(crate) const VERSION: u8 = 1;

/// Why a row cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Not even a version byte.
    #[error("the row is empty")]
    Empty,
    /// Written by another release.
    #[error("the row has version {0}; this release reads version 1")]
    Version(u8),
    /// The bytes are not what the version promises.
    #[error("the row does not decode")]
    Malformed,
}

/// The row that holds `message`.
#[must_use]
pub fn encode<M: Message>(message: &M) -> Record {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(VERSION);
    // Cannot fail: a Vec grows.
    let _ = message.encode(&mut bytes);
    Record(bytes.into())
}

/// What `record` holds.
pub fn decode<M: Message + Default>(record: &Record) -> Result<M, RowError> {
    M::decode(payload(record)?).map_err(|_| RowError::Malformed)
}

/// The row that holds bytes with a format of their own, such as a Signal session.
#[must_use]
pub fn wrap(bytes: &[u8]) -> Record {
    let mut row = Vec::with_capacity(1 + bytes.len());
    row.push(VERSION);
    row.extend_from_slice(bytes);
    Record(row.into())
}

/// The bytes that [`wrap`] put in.
pub fn payload(record: &Record) -> Result<&[u8], RowError> {
    match record.0.split_first() {
        None => Err(RowError::Empty),
        Some((&VERSION, rest)) => Ok(rest),
        Some((&other, _)) => Err(RowError::Version(other)),
    }
}

/// A 32-byte field of a row.
pub(crate) fn key_bytes(field: Option<&Vec<u8>>) -> Result<Zeroizing<[u8; 32]>, RowError> {
    let bytes: [u8; 32] = field
        .and_then(|bytes| bytes.as_slice().try_into().ok())
        .ok_or(RowError::Malformed)?;
    Ok(Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::record::Counters;

    #[test]
    fn what_goes_in_comes_out_and_other_versions_do_not() {
        let counters = Counters {
            next_event: Some(7),
            ..Default::default()
        };
        let record = encode(&counters);
        assert_eq!(decode::<Counters>(&record), Ok(counters));

        let mut newer = record.0.to_vec();
        newer[0] = 2;
        assert_eq!(
            decode::<Counters>(&Record(newer.into())),
            Err(RowError::Version(2))
        );
        assert_eq!(
            decode::<Counters>(&Record(Default::default())),
            Err(RowError::Empty)
        );
        assert_eq!(decode::<Counters>(&wrap(&[0xff])), Err(RowError::Malformed));
        assert_eq!(payload(&wrap(b"session")), Ok(&b"session"[..]));
    }
}
