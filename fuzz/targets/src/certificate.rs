//! Chains of certificates, and what is kept of them.
//!
//! Checked: only the genuine certificates are believed, for their key and in their time; an identity that is read from
//! a row writes the same bytes.

use crate::{
    handshakes::Handshakes,
    input::{Take, long},
};
use baton_core::{
    crypto::PublicKey,
    wire::noise::{ServerIdentity, Trust, verify_chain},
};

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let all = Handshakes::get();
    let choice = take.u8();
    let chain = take.forged(&all.chain);
    let key = match choice & 1 {
        0 => all.service.public,
        _ => PublicKey::from_bytes([take.u8(); 32]),
    };
    let later = if choice & 2 == 0 {
        0
    } else {
        i64::from(take.u16()) - 300
    };
    let trust = Trust {
        now_unix_secs: all.trust.now_unix_secs.saturating_add(later),
        ..all.trust
    };
    let result = verify_chain(&chain, &key, &trust);
    if let Ok(identity) = result {
        assert_eq!(identity, all.identity, "nobody signed another one");
        assert!(identity.is_valid_at(trust.now_unix_secs) && later.abs() <= 100);
        assert_eq!(ServerIdentity::decode(&identity.encode()), Some(identity));
    } else {
        assert!(chain != all.chain || key != all.service.public || later.abs() > 100);
    }
    let row = take.forged(&all.identity.encode());
    if let Some(identity) = ServerIdentity::decode(&row) {
        assert_eq!(identity.encode(), row);
    }
}

/// The genuine chain, in and out of its time.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let all = Handshakes::get();
    let raw = [vec![0, 0], long(&all.chain)].concat();
    let mut row = vec![0, 1, 0];
    row.extend(long(&all.identity.encode()));
    vec![
        vec![0, 1],
        vec![2, 1, 1, 144],
        vec![2, 1, 0, 1],
        vec![1, 1, 7],
        raw,
        row,
    ]
}
