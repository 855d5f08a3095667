//! The device's side of the handshake, against any answer.
//!
//! Checked: the genuine answer is accepted; whatever else is accepted proves the service's key all the same; frames on
//! the connection that nobody sealed do not open.

use crate::{
    handshakes::Handshakes,
    input::{Take, long},
};

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let kind = usize::from(take.u8() % 3);
    let all = Handshakes::get();
    let genuine = &all.replies[kind];
    let message = take.forged(genuine);
    let (client, _) = all.start(kind);
    match client.server_hello(&message, &all.trust) {
        Ok(mut done) => {
            assert_eq!(done.server.static_key, all.service.public);
            assert_eq!(done.resumed, kind == 1);
            assert_eq!(done.reply.is_none(), done.resumed);
            assert!(
                done.transport.open(take.rest()).is_err(),
                "nobody sealed it"
            );
        }
        Err(error) => assert_ne!(&message, genuine, "{error}"),
    }
}

/// The genuine answers, whole and as bytes of the input's own.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let whole = (0..3).map(|kind| vec![kind, 1]);
    let raw = Handshakes::get().replies.iter().enumerate();
    let raw = raw.map(|(kind, reply)| [vec![kind as u8, 0], long(reply)].concat());
    let cut = (0..3).map(|kind| vec![kind, 2, 2, 0, 40]);
    whole.chain(raw).chain(cut).collect()
}
