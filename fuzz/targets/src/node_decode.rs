//! A frame's plaintext to a node.
//!
//! Checked: the borrowed node and the owned one say the same; what is accepted can be written, and what was written
//! reads back as the same node and writes the same bytes again; a position in an error is a place in the frame; memory
//! stays within the multiple of the frame that [`Scratch`] states.

use baton_core::wire::node::{
    self, Content, ContentRef, Malformed, Node, NodeError, NodeRef, Scratch, Value, ValueRef,
};
use flate2::{Compression, write::ZlibEncoder};
use std::io::Write as _;

/// See the module.
pub fn target(data: &[u8]) {
    let mut scratch = Scratch::new();
    match node::decode(data, &mut scratch) {
        Ok(view) => {
            let node = view.to_node();
            agree(view, &node);
            travels(&node);
            // Nothing that is printed needs more than what was checked.
            assert_eq!(view.to_string(), node.to_string());
        }
        Err(NodeError::Malformed { position, what }) => {
            let inflated = data.first().is_some_and(|flags| flags & 2 != 0);
            assert!(inflated || position <= data.len() || what == Malformed::TooLarge);
        }
        Err(other) => panic!("{other} while reading"),
    }
    if data.first().is_some_and(|flags| flags & 2 == 0) {
        // 16 bytes of tape per byte, and what is reserved at once.
        assert!(scratch.allocated() <= 16 * data.len() + (65 << 10));
    }
}

/// Written and read again, it is the same, but for what the wire does not tell apart.
pub(crate) fn travels(node: &Node) {
    let mut first = Vec::new();
    node::encode(node, &mut first).expect("what was read can be written");
    let back = node::decode_owned(&first).expect("what was written can be read");
    same(node, &back);
    let mut second = Vec::new();
    node::encode(&back, &mut second).expect("again");
    assert_eq!(first, second);
}

/// Equal but for attributes without a value, lists without items, and text that went as bytes.
pub(crate) fn same(one: &Node, other: &Node) {
    assert_eq!(one.tag, other.tag);
    let filled = |node: &Node| {
        let mut attrs = node.attrs.clone();
        attrs.retain(|(_, value)| *value != Value::Text("".into()));
        attrs
    };
    assert_eq!(filled(one), filled(other));
    assert_eq!(one.nodes().len(), other.nodes().len());
    one.nodes()
        .iter()
        .zip(other.nodes())
        .for_each(|(one, other)| same(one, other));
    assert_eq!(one.data(), other.data());
    if let Content::Bytes(_) = one.content {
        assert!(
            matches!(other.content, Content::Bytes(_)),
            "bytes stay bytes"
        );
    }
}

fn agree(view: NodeRef<'_>, node: &Node) {
    assert_eq!(view.tag(), node.tag());
    assert_eq!(view.attrs().count(), node.attrs.len());
    for ((view_key, view_value), (key, value)) in view.attrs().zip(&node.attrs) {
        assert_eq!(view_key, key.as_str());
        match (&view_value, value) {
            (ValueRef::Text(text), Value::Text(expected)) => assert_eq!(*text, expected.as_str()),
            (ValueRef::Jid(jid), Value::Jid(expected)) => assert_eq!(jid, expected),
            other => panic!("different kinds: {other:?}"),
        }
    }
    for (key, _) in node.attrs.iter().take(8) {
        assert_eq!(view.get_str(key).as_deref(), node.get_str(key));
        assert_eq!(view.get_string(key), node.get_string(key));
        assert_eq!(view.get_jid(key), node.get_jid(key));
        assert_eq!(view.get_u64(key), node.get_u64(key));
    }
    assert_eq!(view.nodes().count(), node.nodes().len());
    match (view.content(), &node.content) {
        (ContentRef::None, Content::None) | (ContentRef::Nodes, Content::Nodes(_)) => {}
        (ContentRef::Bytes(bytes), Content::Bytes(expected)) => assert_eq!(bytes, expected),
        (ContentRef::Text(text), Content::Text(expected)) => assert_eq!(text, expected.as_str()),
        other => panic!("different kinds: {other:?}"),
    }
    for (view, node) in view.nodes().zip(node.nodes()) {
        agree(view, node);
    }
}

/// Stanzas that went over the wire of the simulation, one of them compressed.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut all = crate::words::traffic();
    if let Some(longest) = all.iter().max_by_key(|bytes| bytes.len()).cloned() {
        let mut zlib = ZlibEncoder::new(vec![2], Compression::default());
        zlib.write_all(&longest[1..]).expect("memory");
        all.push(zlib.finish().expect("memory"));
    }
    all
}
