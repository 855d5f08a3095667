//! Rows with Signal records: of sessions and of groups.
//!
//! Checked: a record that is read writes what reads back as the same record; using it does not panic, and what it cannot
//! decrypt does not change it.

use crate::{
    input::{Take, long},
    peers::{Peers, local},
};
use baton_core::{
    crypto::Rng,
    signal::{self, SenderKeyRecord, SessionRecord},
};

/// See the module.
pub fn target(data: &[u8]) {
    let peers = Peers::get();
    let mut take = Take::new(data);
    let choice = take.u8();
    let genuine = match choice & 1 {
        0 => &peers.record_bytes,
        _ => &peers.group_record_later,
    };
    let bytes = take.forged(genuine);
    let mut rng = Rng::from_seed([1; 32]);
    if choice & 1 == 0 {
        let Ok(record) = SessionRecord::decode(&bytes) else {
            return assert_ne!(&bytes, genuine);
        };
        let written = record.encode();
        let mut back = SessionRecord::decode(&written).expect("what was written can be read");
        assert_eq!(back.encode(), written);
        assert!(back.archived() <= 40);
        assert_eq!(back.is_usable(), record.is_usable());
        assert_eq!(back.base_key(), record.base_key());
        // What is left of the input says where the account stands.
        back = back.at_burn(take.number() as u32);
        let usable = back.is_usable_by(&peers.bob.public);
        let sent = signal::encrypt(&mut back, &local(&peers.bob), b"text");
        assert!(
            sent.is_err() || usable,
            "a record that cannot be used was used"
        );
        for message in &peers.messages {
            let before = back.encode();
            if signal::decrypt(&mut back, &local(&peers.bob), message, &mut rng).is_err() {
                assert_eq!(back.encode(), before);
            }
        }
    } else {
        let Ok(record) = SenderKeyRecord::decode(&bytes) else {
            return assert_ne!(&bytes, genuine);
        };
        let written = record.encode();
        let mut back = SenderKeyRecord::decode(&written).expect("what was written can be read");
        assert_eq!(back.encode(), written);
        assert_eq!(back.position(), record.position());
        let _ = back.encrypt(b"text", &mut rng);
        for message in &peers.group {
            let before = back.encode();
            if back.decrypt(message).is_err() {
                assert_eq!(back.encode(), before);
            }
        }
    }
}

/// Both kinds, whole, as bytes of the input's own, and with a lease.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let peers = Peers::get();
    let record = &peers.record_bytes;
    let leased = [&record[..], &[0xa0, 0x06, 0x40]].concat();
    vec![
        vec![0, 1, 5],
        vec![1, 1],
        [vec![0, 0], long(record)].concat(),
        [vec![0, 0], long(&leased)].concat(),
        [vec![1, 0], long(&peers.group_record)].concat(),
    ]
}
