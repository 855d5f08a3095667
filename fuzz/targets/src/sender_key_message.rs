//! Messages to a group, and the keys for them.
//!
//! Checked: what is refused changes nothing in the record; as long as nobody but the sender has given keys, what decrypts
//! says what was said, once; the record reads back as it was written.

use crate::{
    input::{Take, long},
    peers::{Peers, text},
};
use baton_core::signal::SenderKeyRecord;
use std::collections::BTreeSet;

/// Five keys with 2,000 skipped ones each.
const RECORD: usize = 5 * 2_000 * 100;

/// See the module.
pub fn target(data: &[u8]) {
    let peers = Peers::get();
    let mut take = Take::new(data);
    let mut record = SenderKeyRecord::decode(&peers.group_record).expect("genuine");
    let (mut seen, mut foreign) = (BTreeSet::new(), false);
    for _ in 0..8 {
        if take.is_empty() {
            break;
        }
        let choice = take.u8();
        let before = record.encode();
        if choice & 0x80 != 0 {
            let distribution = take.forged(&peers.distribution);
            match record.process(&distribution) {
                Ok(()) => foreign |= distribution != peers.distribution,
                Err(error) => assert_eq!(record.encode(), before, "{error} changed the record"),
            }
        } else {
            let genuine = &peers.group[usize::from(choice) % peers.group.len()];
            let message = take.forged(genuine);
            match record.decrypt(&message) {
                Ok(plain) => {
                    let said = (0..peers.group.len()).find(|n| plain == text(*n));
                    assert!(foreign || said.is_some(), "nobody said that");
                    if let Some(said) = said {
                        assert!(
                            seen.insert(said) || foreign,
                            "message {said} decrypts twice"
                        );
                    }
                }
                Err(error) => assert_eq!(record.encode(), before, "{error} changed the record"),
            }
        }
        let bytes = record.encode();
        assert!(bytes.len() <= RECORD);
        let back = SenderKeyRecord::decode(&bytes).expect("what was written can be read");
        assert_eq!(back.encode(), bytes);
    }
}

/// Messages in and out of order, keys again, and both as bytes of the input's own.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let peers = Peers::get();
    vec![
        vec![0, 1, 1, 1, 2, 1, 3, 1, 4, 1, 5, 1],
        vec![5, 1, 0, 1, 3, 1, 3, 1, 128, 1, 2, 1],
        [vec![0, 0], long(&peers.group[0])].concat(),
        [vec![128, 0], long(&peers.distribution)].concat(),
    ]
}
