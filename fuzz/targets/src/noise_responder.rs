//! The service's side of the handshake, against any device.
//!
//! Checked: the genuine messages are accepted; whatever else is accepted at the end proves the device's key and carries
//! its payload.

use crate::{
    handshakes::{Handshakes, PAYLOAD},
    input::{Take, long},
};

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let kind = usize::from(take.u8() % 3);
    let all = Handshakes::get();
    let hello = take.forged(&all.hellos[kind]);
    let Some((reply, finish)) = all.answer(&hello) else {
        return assert_ne!(hello, all.hellos[kind]);
    };
    if hello == all.hellos[kind] {
        assert_eq!(reply, all.replies[kind]);
    }
    let Some(finish) = finish else { return };
    let genuine = &all.finishes[usize::from(kind == 2)];
    let last = take.forged(genuine);
    match finish.client_finish(&last) {
        Ok((mut transport, device, payload)) => {
            assert_eq!(device, all.device.public);
            assert_eq!(payload, PAYLOAD);
            assert!(transport.open(take.rest()).is_err(), "nobody sealed it");
        }
        Err(_) => assert!(last != *genuine || hello != all.hellos[kind] || kind == 1),
    }
}

/// The genuine messages, whole and as bytes of the input's own.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let all = Handshakes::get();
    let mut seeds: Vec<Vec<u8>> = (0..3).map(|kind| vec![kind, 1, 1]).collect();
    for kind in 0..3 {
        let raw = [vec![kind as u8, 0], long(&all.hellos[kind])].concat();
        let finish = all.finishes[usize::from(kind == 2)].as_slice();
        seeds.push([raw, vec![0], long(finish)].concat());
    }
    seeds
}
