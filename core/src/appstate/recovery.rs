//! A collection in clear, from the phone, when neither patches nor the service's snapshot add up (fact sheet 08.8).
//!
//! What vouches for it is the message that it came in, which is encrypted end to end. It has the MACs of the values and
//! the hash over them, so that patches can be put on top of it; the names that settings are filed under follow from
//! their keys.

use super::{
    Collection, KeyId, KeyRing, LtHash, MAX_RECORDS, Mutation, MutationError, Operation, Replaced,
    SnapshotError, State, mutation,
};
use crate::proto::{bounded::decode_list, sync::SyncdSnapshotRecovery};
use flate2::read::GzDecoder;
use std::{collections::BTreeSet, io::Read as _};

/// Longest answer, inflated.
const MAX_BYTES: usize = crate::limits::RECOVERY;

/// Reads the phone's answer; `compressed` as it says there. `None` if it is not what it should be, or inflates too far.
#[must_use]
pub fn read_recovery(bytes: &[u8], compressed: bool) -> Option<SyncdSnapshotRecovery> {
    if !compressed {
        return decode_list(bytes, 3, MAX_RECORDS).ok();
    }
    decode_list(inflate(bytes, MAX_BYTES)?.as_slice(), 3, MAX_RECORDS).ok()
}

/// `None` if it inflates to more than `most`, or does not.
fn inflate(bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut reader = GzDecoder::new(bytes).take(most as u64 + 1);
    reader.read_to_end(&mut plain).ok()?;
    (plain.len() <= most).then_some(plain)
}

/// The ids of all keys that its names depend on, those that are malformed left out.
#[must_use]
pub fn recovery_keys(recovery: &SyncdSnapshotRecovery) -> Vec<KeyId> {
    let ids: BTreeSet<&[u8]> = recovery
        .mutation_records
        .iter()
        .filter_map(|record| record.key_id.as_deref())
        .collect();
    ids.into_iter()
        .filter_map(|id| KeyId::new(id.to_vec()))
        .collect()
}

/// Replaces a collection by what the phone has. Whether that is newer than what there is, is for the caller to judge.
pub fn verify_recovery(
    collection: Collection,
    recovery: &SyncdSnapshotRecovery,
    ring: &KeyRing,
) -> Result<Replaced, SnapshotError> {
    if recovery.collection_name.as_deref() != Some(collection.as_str()) {
        return Err(SnapshotError::Malformed("another collection"));
    }
    let version = recovery
        .version
        .as_ref()
        .and_then(|version| version.version);
    let version = version.ok_or(SnapshotError::Malformed("no version"))?;
    if recovery.mutation_records.len() > MAX_RECORDS {
        return Err(SnapshotError::Malformed("too many records"));
    }
    let mut names = BTreeSet::new();
    let mut mutations = Vec::with_capacity(recovery.mutation_records.len());
    for record in &recovery.mutation_records {
        let id = record.key_id.clone().and_then(KeyId::new);
        let id = id.ok_or(SnapshotError::Malformed("the id of a key"))?;
        let key = ring.get(&id).ok_or(SnapshotError::MissingKey(id))?;
        let value_mac = record.mac.as_deref().and_then(|mac| mac.try_into().ok());
        let value_mac =
            value_mac.ok_or(SnapshotError::Malformed("a MAC of other than 32 bytes"))?;
        let data = record.value.clone().unwrap_or_default().into();
        let index = mutation::index_of(&data).map_err(|error| match error {
            MutationError::MissingKey(id) => SnapshotError::MissingKey(id),
            other => SnapshotError::Record(other),
        })?;
        let index_mac = key.index_mac(&index);
        if !names.insert(index_mac) {
            return Err(SnapshotError::Malformed("an index that stands twice"));
        }
        mutations.push(Mutation {
            operation: Operation::Set,
            index_mac,
            value_mac,
            index,
            data,
        });
    }
    let mut hash = LtHash::default();
    hash.update([], mutations.iter().map(|mutation| &mutation.value_mac));
    if recovery.collection_lthash.as_deref() != Some(hash.to_bytes().as_slice()) {
        return Err(SnapshotError::SnapshotMac);
    }
    Ok(Replaced {
        state: State { version, hash },
        mutations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        appstate::{Change, SyncKey, action, build_snapshot, verify_snapshot},
        crypto::Rng,
        proto::sync::{SyncActionValue, SyncdPlainTextRecord, SyncdVersion},
    };
    use flate2::{Compression, write::GzEncoder};
    use prost::Message as _;
    use std::io::Write as _;

    const COLLECTION: Collection = Collection::RegularLow;

    fn key() -> SyncKey {
        SyncKey::expand(KeyId::new(vec![0, 0, 0, 0, 0, 1]).unwrap(), &[7; 32])
    }

    /// A collection as a snapshot has it, and as the phone tells it.
    fn both() -> (Replaced, SyncdSnapshotRecovery) {
        let settings: Vec<Change> = (0..5)
            .map(|n| Change {
                operation: Operation::Set,
                index: action::write_index(&["pin_v1", &format!("{n}@s.whatsapp.net")]),
                value: SyncActionValue {
                    timestamp: Some(n),
                    ..Default::default()
                },
                version: 5,
            })
            .collect();
        let mut rng = Rng::from_seed([1; 32]);
        let (snapshot, _) = build_snapshot(COLLECTION, 9, &key(), &settings, &mut rng).unwrap();
        let ring = KeyRing::from_iter([key()]);
        let replaced = verify_snapshot(COLLECTION, &snapshot, &ring).unwrap();
        let records = replaced.mutations.iter().map(|m| SyncdPlainTextRecord {
            value: Some(m.data.to_vec()),
            key_id: Some(key().id().as_bytes().to_vec()),
            mac: Some(m.value_mac.to_vec()),
        });
        let recovery = SyncdSnapshotRecovery {
            version: Some(SyncdVersion { version: Some(9) }),
            collection_name: Some(COLLECTION.to_string()),
            mutation_records: records.collect(),
            collection_lthash: Some(replaced.state.hash.to_bytes().to_vec()),
        };
        (replaced, recovery)
    }

    #[test]
    fn a_recovery_amounts_to_what_the_snapshot_would() {
        let (replaced, recovery) = both();
        let ring = KeyRing::from_iter([key()]);
        assert_eq!(verify_recovery(COLLECTION, &recovery, &ring), Ok(replaced));
        assert_eq!(recovery_keys(&recovery), [key().id().clone()]);
        let plain = recovery.encode_to_vec();
        assert_eq!(read_recovery(&plain, false), Some(recovery.clone()));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&plain).unwrap();
        let packed = gzip.finish().unwrap();
        assert_eq!(read_recovery(&packed, true), Some(recovery));
        assert_eq!(read_recovery(&packed[..packed.len() - 9], true), None);
        assert_eq!(read_recovery(&plain, true), None);
    }

    #[test]
    fn a_recovery_that_inflates_too_far_is_refused() {
        let pack = |plain: &[&[u8]]| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            plain.iter().for_each(|part| gzip.write_all(part).unwrap());
            gzip.finish().unwrap()
        };
        let packed = pack(&[&[7; 1000]]);
        assert_eq!(inflate(&packed, 1001), Some(vec![7; 1000]));
        assert_eq!(inflate(&packed, 1000), Some(vec![7; 1000]));
        assert_eq!(inflate(&packed, 999), None);
        // The limit itself: a field that nobody knows, and is passed over. Its head has 5 bytes.
        let zeros = vec![0; crate::limits::RECOVERY - 4];
        for (length, taken) in [(zeros.len() - 1, true), (zeros.len(), false)] {
            let mut head = vec![0x7a];
            prost::encoding::encode_varint(length as u64, &mut head);
            assert_eq!(head.len(), 5);
            let packed = pack(&[&head, &zeros[..length]]);
            assert_eq!(read_recovery(&packed, true).is_some(), taken);
        }
    }

    #[test]
    fn a_recovery_ends_at_its_number_of_records() {
        use crate::limits::COLLECTION_RECORDS;
        let ring = KeyRing::from_iter([key()]);
        for (count, why) in [
            (COLLECTION_RECORDS - 1, "the id of a key"),
            (COLLECTION_RECORDS, "the id of a key"),
            (COLLECTION_RECORDS + 1, "too many records"),
        ] {
            let (_, mut recovery) = both();
            recovery.mutation_records = vec![SyncdPlainTextRecord::default(); count];
            let bytes = recovery.encode_to_vec();
            let read = read_recovery(&bytes, false);
            assert_eq!(read.is_some(), count <= COLLECTION_RECORDS);
            assert_eq!(
                verify_recovery(COLLECTION, &recovery, &ring).err(),
                Some(SnapshotError::Malformed(why))
            );
        }
    }

    #[test]
    fn a_recovery_that_does_not_add_up_is_refused() {
        let ring = KeyRing::from_iter([key()]);
        let try_it = |change: fn(&mut SyncdSnapshotRecovery)| {
            let (_, mut recovery) = both();
            change(&mut recovery);
            verify_recovery(COLLECTION, &recovery, &ring).unwrap_err()
        };
        assert_eq!(
            try_it(|r| {
                r.mutation_records.pop();
            }),
            SnapshotError::SnapshotMac
        );
        assert_eq!(
            try_it(|r| r.collection_lthash = None),
            SnapshotError::SnapshotMac
        );
        assert!(matches!(
            try_it(|r| r.mutation_records[0].key_id = Some(vec![9])),
            SnapshotError::MissingKey(_)
        ));
        let malformed: [fn(&mut SyncdSnapshotRecovery); 5] = [
            |r| r.collection_name = Some("regular".into()),
            |r| r.version = None,
            |r| r.mutation_records[0].mac = Some(vec![0; 31]),
            |r| r.mutation_records[0].key_id = None,
            |r| r.mutation_records[1] = r.mutation_records[0].clone(),
        ];
        for change in malformed {
            assert!(matches!(try_it(change), SnapshotError::Malformed(_)));
        }
        assert!(matches!(
            try_it(|r| r.mutation_records[0].value = Some(vec![0xff])),
            SnapshotError::Record(MutationError::Malformed(_))
        ));
    }
}
