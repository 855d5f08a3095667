//! Snapshots of settings, from the service and from the phone.
//!
//! Checked: the genuine one is accepted, and nothing else that would lead to another state; what is accepted has a name
//! for each value; an answer of the phone is refused when its hash is not that of its values, however it is compressed.

use crate::{
    input::{Take, gzip, long},
    settings::{COLLECTION, ring, snapshot},
};
use baton_core::{
    appstate::{
        Mutation, State, read_recovery, recovery_keys, snapshot_keys, verify_recovery,
        verify_snapshot,
    },
    proto::sync::{SyncdPlainTextRecord, SyncdSnapshot, SyncdSnapshotRecovery, SyncdVersion},
};
use prost::Message as _;
use std::{collections::BTreeSet, sync::OnceLock};

/// What is the same for every input.
struct Genuine {
    state: State,
    snapshot: Vec<u8>,
    recovery: SyncdSnapshotRecovery,
    recovery_bytes: Vec<u8>,
}

impl Genuine {
    fn get() -> &'static Self {
        static ONCE: OnceLock<Genuine> = OnceLock::new();
        ONCE.get_or_init(|| {
            let (snapshot, recovery) = (snapshot(), recovery());
            let whole = verify_snapshot(COLLECTION, &snapshot, ring()).expect("genuine");
            Self {
                state: whole.state,
                snapshot: snapshot.encode_to_vec(),
                recovery_bytes: recovery.encode_to_vec(),
                recovery,
            }
        })
    }
}

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let choice = take.u8();
    let genuine = Genuine::get();
    let bytes = take.forged(&genuine.snapshot);
    if let Ok(other) = SyncdSnapshot::decode(bytes.as_slice()) {
        assert!(snapshot_keys(&other).len() <= other.records.len() + 1);
        match verify_snapshot(COLLECTION, &other, ring()) {
            Ok(replaced) => {
                assert_eq!(replaced.state, genuine.state, "nobody made this snapshot");
                names(&replaced.mutations);
            }
            Err(error) => assert_ne!(bytes, genuine.snapshot, "{error}"),
        }
    }

    let told = &genuine.recovery;
    let bytes = take.forged(&genuine.recovery_bytes);
    let packed = match choice & 3 {
        0 => bytes.clone(),
        // What inflates is the input's, or the stream is.
        1 => gzip(&bytes),
        _ => take.edited(&gzip(&bytes), 1 + choice % 3),
    };
    if let Some(read) = read_recovery(&packed, choice & 3 != 0) {
        assert!(recovery_keys(&read).len() <= read.mutation_records.len());
        match verify_recovery(COLLECTION, &read, ring()) {
            Ok(replaced) => {
                // The message that it came in vouches for the values; their hash has to be theirs.
                let hash = read.collection_lthash.unwrap_or_default();
                assert_eq!(replaced.state.hash.to_bytes().as_slice(), hash);
                names(&replaced.mutations);
            }
            Err(error) => assert_ne!(&read, told, "{error}"),
        }
    }
}

fn names(mutations: &[Mutation]) {
    let names: BTreeSet<_> = mutations
        .iter()
        .map(|mutation| mutation.index_mac)
        .collect();
    assert_eq!(names.len(), mutations.len());
}

/// What the phone would tell of the same settings.
fn recovery() -> SyncdSnapshotRecovery {
    let whole = verify_snapshot(COLLECTION, &snapshot(), ring()).expect("genuine");
    let records = whole.mutations.iter().map(|mutation| SyncdPlainTextRecord {
        value: Some(mutation.data.to_vec()),
        key_id: Some(vec![0, 0, 0, 0, 0, 1]),
        mac: Some(mutation.value_mac.to_vec()),
    });
    SyncdSnapshotRecovery {
        version: Some(SyncdVersion {
            version: Some(whole.state.version),
        }),
        collection_name: Some(COLLECTION.as_str().into()),
        mutation_records: records.collect(),
        collection_lthash: Some(whole.state.hash.to_bytes().to_vec()),
    }
}

/// Both, whole, packed, and as bytes of the input's own.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let snapshot = long(&snapshot().encode_to_vec());
    let recovery = long(&recovery().encode_to_vec());
    vec![
        vec![0, 1, 1],
        vec![1, 1, 1],
        vec![2, 1, 1, 0, 0, 20, 1],
        [&[0, 0][..], &snapshot, &[0], &recovery].concat(),
    ]
}
