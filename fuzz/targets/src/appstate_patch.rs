//! Patches of settings.
//!
//! Checked: a patch that is built is accepted and leads where it was said to lead; with edits it is refused, or is still
//! the same patch; a refusal leaves everything as it was; nothing is accepted that nobody of ours made.

use crate::{
    input::{Take, long},
    settings::{COLLECTION, change, collection, key, ring},
};
use baton_core::{
    appstate::{Operation, build_patch, patch_keys, patch_touches, verify_patch},
    crypto::Rng,
    proto::sync::{SyncdMutations, SyncdPatch, SyncdVersion},
};
use prost::Message as _;

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let &(state, ref macs, _) = collection();
    let choice = take.u8();
    let changes: Vec<_> = (0..choice % 6)
        .map(|_| {
            let operation = if take.u8() & 3 == 0 {
                Operation::Remove
            } else {
                Operation::Set
            };
            change(&mut take, operation)
        })
        .collect();
    let mut rng = Rng::from_seed([6; 32]);
    let key = key(choice >> 4 & 3);
    let previous = |index: &[u8; 32]| macs.get(index).copied();
    let built = build_patch(COLLECTION, &state, key, &changes, previous, &mut rng);
    let genuine = built.as_ref().ok().map(|built| {
        let mut patch = built.patch.clone();
        patch.version = Some(SyncdVersion {
            version: Some(state.version + 1),
        });
        patch
    });
    let written = genuine
        .as_ref()
        .map(SyncdPatch::encode_to_vec)
        .unwrap_or_default();
    let bytes = take.forged(&written);
    let Ok(patch) = SyncdPatch::decode(bytes.as_slice()) else {
        return;
    };
    let external = SyncdMutations::decode(take.rest());
    let mutations = match &external {
        Ok(external) if choice & 8 != 0 => &external.mutations,
        _ => &patch.mutations,
    };
    let (keys, touches) = (patch_keys(&patch, mutations), patch_touches(mutations));
    assert!(keys.len() <= mutations.len() + 1 && touches.len() <= mutations.len());

    let result = verify_patch(COLLECTION, &state, &patch, mutations, ring(), previous);
    let known = usize::from(choice >> 4 & 3) < 3;
    match (result, built) {
        (Ok(applied), Ok(built)) => {
            assert_eq!(applied.state, built.state, "leads somewhere else");
            let sorted = |mut macs: Vec<_>| {
                macs.sort();
                macs
            };
            assert_eq!(sorted(applied.macs), sorted(built.macs));
            assert_eq!(applied.mutations.len(), changes.len());
            assert!(mutations.iter().all(|mutation| mutation.record.is_some()));
        }
        (Ok(applied), Err(_)) => panic!("nobody made this patch: {applied:?}"),
        (Err(error), Ok(_)) => {
            assert!(bytes != written || !known || choice & 8 != 0, "{error}");
        }
        (Err(_), Err(_)) => {}
    }
    // The same patch on another state is refused, whatever it takes out.
    if let Some(genuine) = &genuine {
        let mut other = state;
        other.hash.add(&[0xaa; 32]);
        let mutations = &genuine.mutations;
        let result = verify_patch(COLLECTION, &other, genuine, mutations, ring(), previous);
        assert!(result.is_err(), "a patch fits two states");
    }
}

/// Patches with sets and removals, whole and as bytes of the input's own.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let (_, _, patch) = collection();
    vec![
        vec![3, 1, 0, 9, 0, 1, 7, 1, 5, 5, 1],
        vec![0x12, 1, 8, 9, 1, 9, 9, 1],
        vec![0x22, 0, 2, 9, 1, 9, 9, 3, 0, 0, 20, 1],
        [vec![0, 0], long(&patch.encode_to_vec())].concat(),
    ]
}
