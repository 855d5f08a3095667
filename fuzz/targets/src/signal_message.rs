//! Messages on a session that stands.
//!
//! Checked: what is not authentic changes nothing in the record; what decrypts says what was said, once; the record
//! reads back as it was written and stays within its bound.

use crate::{
    input::{Take, long},
    peers::{Peers, RECORD, local, text},
};
use baton_core::{
    crypto::Rng,
    signal::{self, CiphertextKind, SessionRecord},
};
use std::collections::BTreeSet;

/// See the module.
pub fn target(data: &[u8]) {
    let peers = Peers::get();
    let mut take = Take::new(data);
    let mut record = peers.record.clone();
    let mut rng = Rng::from_seed([1; 32]);
    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        if take.is_empty() {
            break;
        }
        let n = usize::from(take.u8()) % peers.messages.len();
        let genuine = &peers.messages[n];
        let message = take.forged(genuine);
        let before = record.encode();
        match signal::decrypt(&mut record, &local(&peers.bob), &message, &mut rng) {
            Ok(plain) => {
                let said = (0..peers.messages.len()).find(|n| plain == text(*n));
                let said = said.expect("nobody said that");
                assert!(seen.insert(said), "message {said} decrypts twice");
                assert!(signal::peek_counter(CiphertextKind::Message, &message).is_ok());
            }
            Err(error) => {
                assert_eq!(record.encode(), before, "{error} changed the record");
                assert!(message != *genuine || seen.contains(&n), "{error}");
            }
        }
        let bytes = record.encode();
        assert!(bytes.len() <= RECORD);
        let back = SessionRecord::decode(&bytes).expect("what was written can be read");
        assert_eq!(back.encode(), bytes);
    }
}

/// All messages, in order, backwards, twice; and one as bytes of the input's own.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let whole = |order: &[u8]| order.iter().flat_map(|n| [*n, 1]).collect::<Vec<u8>>();
    let raw = [vec![0, 0], long(&Peers::get().messages[0])].concat();
    vec![
        whole(&[0, 1, 2, 3, 4, 5, 6, 7]),
        whole(&[7, 6, 5, 4, 3, 2, 1, 0]),
        whole(&[3, 3, 0, 5, 0]),
        raw,
    ]
}
