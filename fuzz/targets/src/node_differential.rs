//! Two decoders on the same frame: ours and that of `wacore-binary` (MIT), which shares no code with it.
//!
//! Checked: what both accept, they read as the same node; what only one accepts is on the list here, with the reason.

use crate::input::Take;
use baton_core::{
    jid::Jid,
    wire::node::{self, Content, Malformed, Node, NodeError, Value},
};
use wacore_binary::{
    BinaryError,
    node::{NodeContentRef, NodeRef, ValueRef},
    util,
};

/// See the module.
pub fn target(data: &[u8]) {
    let ours = node::decode_owned(data);
    let Ok(body) = util::unpack(data) else {
        // The other refuses bytes behind the end of a compressed stream.
        let compressed = data.first().is_some_and(|flags| flags & 2 != 0);
        return assert!(ours.is_err() || compressed, "only ours: {ours:?}");
    };
    // The other recurses without bound through a JID whose user is a JID whose user ...
    if body.len() > 16 << 10 {
        return;
    }
    match (ours, wacore_binary::marshal::unmarshal_ref(&body)) {
        (Ok(ours), Ok(theirs)) => same(&ours, &theirs),
        (Err(_), Err(_)) => {}
        (Ok(ours), Err(why)) => {
            // The form of an interop JID without a server behind it: some clients write it, the other does not read it.
            let short = body.contains(&0xF5);
            // Padding behind an odd number of packed digits: anything here, 15 there.
            let padding = matches!(why, BinaryError::InvalidToken(12..=14));
            assert!(short || padding, "only ours: {ours} ({why})");
        }
        (Err(NodeError::Malformed { what, position }), Ok(theirs)) => {
            let stricter = matches!(
                what,
                // Names that are empty, or JIDs where a name has to stand.
                Malformed::EmptyName | Malformed::NotText
                // Users that hold separators, are missing or are JIDs themselves; domains that round down.
                | Malformed::JidUser | Malformed::JidServer | Malformed::JidDomain
                // 15 in the middle of packed digits, which the other reads as a zero byte.
                | Malformed::PackedDigit
                // More than anybody sends.
                | Malformed::TooManyAttributes | Malformed::TooManyElements
            );
            assert!(stricter, "only theirs: {what} at {position} of {theirs:?}");
        }
        (Err(other), Ok(_)) => panic!("{other} while reading"),
    }
}

fn same(ours: &Node, theirs: &NodeRef<'_>) {
    assert_eq!(ours.tag(), &*theirs.tag);
    let mut attrs = theirs.attrs_iter();
    for (key, value) in &ours.attrs {
        let (their_key, their_value) = attrs.next().expect("as many attributes");
        assert_eq!(key, &**their_key);
        match (value, their_value) {
            (Value::Text(text), ValueRef::String(theirs)) => assert_eq!(text, &**theirs),
            (Value::Jid(jid), ValueRef::Jid(theirs)) => assert_eq!(
                (
                    jid.user(),
                    jid.server().as_str(),
                    jid.device(),
                    jid.integrator()
                ),
                (
                    &*theirs.user,
                    theirs.server.as_str(),
                    theirs.device,
                    theirs.integrator
                ),
            ),
            (ours, theirs) => panic!("{ours:?} here, {theirs:?} there"),
        }
    }
    assert!(attrs.next().is_none(), "as many attributes");
    match (&ours.content, theirs.content.as_ref()) {
        (Content::None, None) => {}
        (Content::None, Some(NodeContentRef::Nodes(nodes))) => assert!(nodes.is_empty()),
        (Content::Nodes(ours), Some(NodeContentRef::Nodes(theirs))) => {
            assert_eq!(ours.len(), theirs.len());
            ours.iter()
                .zip(theirs.iter())
                .for_each(|(ours, theirs)| same(ours, theirs));
        }
        (Content::Bytes(ours), Some(NodeContentRef::Bytes(theirs))) => assert_eq!(ours, &**theirs),
        (Content::Text(ours), Some(NodeContentRef::String(theirs))) => {
            // A JID as content reads as its text, and the rarer forms print differently.
            let address = || ours.parse::<Jid>().is_ok() && theirs.contains('@');
            assert!(
                ours == &**theirs || address(),
                "{ours} here, {theirs} there"
            );
        }
        (ours, theirs) => panic!("{ours:?} here, {theirs:?} there"),
    }
}

/// Stanzas of the simulation, and nodes of all sorts.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut all = crate::words::traffic();
    for seed in crate::node_roundtrip::seeds() {
        let node = crate::words::stanza(&mut Take::new(&seed), 0);
        let mut bytes = Vec::new();
        if node::encode(&node, &mut bytes).is_ok() {
            all.push(bytes);
        }
    }
    all
}
