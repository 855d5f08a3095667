//! Messages that begin a session.
//!
//! Checked: a message that parses tells an observer its counter; what does not decrypt changes nothing; what decrypts
//! says what was said, and the same message does not decrypt a second time.

use crate::{
    input::{Take, long},
    peers::{Peers, RECORD, local, text},
};
use baton_core::{
    crypto::Rng,
    signal::{self, CiphertextKind, DecryptError, PreKeyMessage, SessionRecord},
};

/// See the module.
pub fn target(data: &[u8]) {
    let peers = Peers::get();
    let mut take = Take::new(data);
    let choice = take.u8();
    let mut record = if choice & 2 == 0 {
        SessionRecord::new()
    } else {
        peers.record.clone()
    };
    let mut rng = Rng::from_seed([1; 32]);
    for _ in 0..3 {
        let genuine = &peers.openings[usize::from(take.u8() & 1)];
        let bytes = take.forged(genuine);
        let Ok(message) = PreKeyMessage::parse(&bytes) else {
            assert_ne!(&bytes, genuine);
            continue;
        };
        assert!(signal::peek_counter(CiphertextKind::PreKey, &bytes).is_ok());
        let signed = (message.signed_pre_key_id == 2).then_some(&peers.signed);
        let one_time = (message.pre_key_id == Some(3)).then_some(&peers.one_time);
        let before = record.encode();
        let known = signal::knows_base_key(&record, &message.base_key);
        let mut open = |record: &mut SessionRecord| {
            signal::decrypt_pre_key(
                record,
                &local(&peers.bob),
                &message,
                signed,
                one_time,
                &mut rng,
            )
        };
        match open(&mut record) {
            Ok(plain) => {
                assert_eq!(plain, text(0), "nobody said that");
                assert!(signal::knows_base_key(&record, &message.base_key));
                let once = record.encode();
                assert_eq!(open(&mut record), Err(DecryptError::Duplicate));
                assert_eq!(record.encode(), once);
            }
            Err(error) => {
                assert_eq!(record.encode(), before, "{error} changed the record");
                assert!(&bytes != genuine || known, "{error}");
            }
        }
        assert!(record.encode().len() <= RECORD);
    }
}

/// Both openings, to a stranger and to somebody known.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let peers = Peers::get();
    let raw = |n: usize| [vec![0, 0, 0], long(&peers.openings[n])].concat();
    vec![vec![0, 0, 1, 1, 1], vec![2, 1, 1, 0, 1], raw(0), raw(1)]
}
