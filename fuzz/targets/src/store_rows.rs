//! Damaged rows under an engine.
//!
//! Checked: whatever a row holds, the engine goes on or says that the store cannot serve it; it neither panics nor grows,
//! and an address or a number that came out of a row is not believed where it would do harm.

use crate::{
    engine_inputs::{self, Trial},
    input::Take,
    rig::{Rig, ready, store},
};
use baton_core::{
    crypto::{PrivateKey, Signature},
    engine::{Input, StopReason},
    proto::record,
    state::{Key, Record, Row, Scan, Store, Table, codec, rules},
};
use std::collections::BTreeMap;

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let (store, account) = store();
    let mut rows = BTreeMap::new();
    for _ in 0..1 + take.u8() % 8 {
        let choice = take.u8();
        let (key, genuine) = if choice & 1 == 0 {
            // A row that is there.
            let table = *take.pick(Table::ALL);
            let scan = Scan {
                table,
                after: None,
                limit: 64,
            };
            let all = ready(store.scan(&account, scan)).expect("rows");
            if all.is_empty() {
                continue;
            }
            let (key, row) = all[usize::from(take.u8()) % all.len()].clone();
            let Row::Present(record) = row else { continue };
            (key, record.0)
        } else {
            let key = engine_inputs::key(&mut take);
            let Row::Present(record) = engine_inputs::row(&mut take) else {
                continue;
            };
            (key, record.0)
        };
        let record = Record(take.forged(&genuine).into());
        // What no store would have taken is not in one.
        if rules::key(&key).is_ok() && rules::record(key.table(), &record).is_ok() {
            rows.insert(key, Some(record));
        }
    }
    let same_device = !rows.contains_key(&Key::Device);
    Rig::write_all(&store, &account, rows);
    let mut rig = Rig::with(store, account, 1, |_| {});
    rig.confused = true;
    rig.give(Input::Tick);
    if same_device {
        engine_inputs::befriend(&mut rig);
    } else if rig.stopped.is_none() && device_is_whole(&rig) {
        rig.peer("800000000000005");
    }
    let stopped = rig.stopped.clone();
    if let Some(reason) = stopped {
        return assert!(
            matches!(reason, StopReason::Store(_) | StopReason::LoggedOut(_)),
            "{reason:?}"
        );
    }
    let has_peer = !rig.peers.is_empty();
    let mut trial = Trial::of(rig, take);
    for _ in 0..12 {
        if !has_peer || trial.take.is_empty() || trial.rig.stopped.is_some() {
            break;
        }
        trial.step();
        trial.check();
    }
    trial.end();
}

/// Whether others could begin a session with what the account's own row says.
fn device_is_whole(rig: &Rig) -> bool {
    let Row::Present(row) = rig.row(Key::Device) else {
        return false;
    };
    let Ok(device) = codec::decode::<record::Device>(&row) else {
        return false;
    };
    let private = |key: &Option<Vec<u8>>| PrivateKey::from_slice(key.as_deref()?).ok();
    let bundle = || {
        let signed = device.signed_pre_keys.first()?;
        let signature = Signature::from_slice(signed.signature.as_deref()?).ok()?;
        let identity = private(&device.identity_private)?.public_key();
        let key = private(&signed.private)?.public_key().serialize();
        let named = device.registration_id.is_some() && signed.id.is_some();
        (named && identity.verify(&[&key], &signature).is_ok()).then_some(())
    };
    bundle().is_some()
}

/// Each table once with edits, and rows of all sorts.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut rng = baton_core::crypto::Rng::from_seed([7; 32]);
    let tables = u8::try_from(Table::ALL.len()).expect("few");
    let mut seeds: Vec<Vec<u8>> = (0..tables)
        .map(|table| vec![0, 0, table, 0, 2, 0, 0, 9, 5, 5, 5, 9, 0])
        .collect();
    seeds.extend((0..12).map(|_| (0..80).map(|_| rng.next_u32() as u8).collect()));
    seeds
}
