//! What holds for every node and for every sequence of bytes.

use proptest::prelude::*;
use smol_str::SmolStr;

use super::examples::encoded;
use crate::jid::{Jid, Server};
use crate::wire::node::tokens::{DOUBLE, SINGLE};
use crate::wire::node::{
    Content, ContentRef, Node, NodeRef, Scratch, Text, Value, ValueRef, decode, decode_owned,
    encode, lookup,
};

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        (1..SINGLE.len()).prop_map(|index| SINGLE[index].to_owned()),
        (0..4usize, 0..256usize)
            .prop_map(|(dictionary, index)| DOUBLE[dictionary][index].to_owned()),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => token(),
        2 => "[0-9.-]{1,24}",
        2 => "[0-9A-F]{1,34}",
        1 => "[0-9A-F.-]{120,140}",
        1 => "[a-z0-9_:@-]{1,40}",
        1 => "\\PC{1,20}",
        1 => "[a-z]{250,260}",
    ]
}

fn any_jid() -> impl Strategy<Value = Jid> {
    let user = prop_oneof![4 => "[0-9]{1,20}", 1 => "[0-9]{8,13}-[0-9]{10}", 1 => "[a-z0-9._-]{1,30}", 1 => Just(String::new())];
    (
        user,
        prop::sample::select(&Server::ALL[..]),
        any::<u16>(),
        any::<u16>(),
        any::<bool>(),
    )
        .prop_map(|(user, server, device, integrator, phone)| {
            let jid = Jid::new(&user, server)
                .expect("a good user")
                .with_integrator(integrator);
            match server {
                _ if phone => jid,
                Server::Messenger | Server::Interop => jid.with_device(device),
                _ if server.domain().is_some() => jid.with_device(device % 256),
                _ => jid,
            }
        })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => text().prop_map(Value::from),
        1 => Just(Value::from("")),
        3 => any_jid().prop_map(Value::from),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let plain = || (text(), prop::collection::vec((text(), value()), 0..6));
    let build = |(tag, attrs): (String, Vec<(String, Value)>), content| Node {
        tag: tag.into(),
        attrs: attrs
            .into_iter()
            .map(|(key, value)| (key.into(), value))
            .collect(),
        content,
    };
    let leaf = (
        plain(),
        prop_oneof![
            Just(Content::None),
            prop::collection::vec(any::<u8>(), 0..300)
                .prop_map(|bytes| Content::Bytes(bytes.into())),
            text().prop_map(|text| Content::Text(text.into())),
        ],
    )
        .prop_map(move |(plain, content)| build(plain, content));
    leaf.prop_recursive(5, 64, 6, move |child| {
        (plain(), prop::collection::vec(child, 0..6))
            .prop_map(move |(plain, nodes)| build(plain, Content::Nodes(nodes)))
    })
}

/// What a node is after a trip over the wire: attributes without a value gone, an empty list nothing, and text that is
/// neither token nor packed is bytes.
fn travelled(node: &Node) -> Node {
    let content = match &node.content {
        Content::Nodes(nodes) if nodes.is_empty() => Content::None,
        Content::Nodes(nodes) => Content::Nodes(nodes.iter().map(travelled).collect()),
        Content::Text(text) => {
            let of = |alphabet: &str| {
                text.chars().all(|c| alphabet.contains(c)) && (1..128).contains(&text.len())
            };
            if lookup::find(text).is_some() || of("0123456789-.") || of("0123456789ABCDEF") {
                Content::Text(text.clone())
            } else {
                Content::Bytes(text.as_bytes().to_vec().into())
            }
        }
        other => other.clone(),
    };
    let mut attrs = node.attrs.clone();
    attrs.retain(|(_, value)| *value != Value::Text("".into()));
    Node {
        tag: node.tag.clone(),
        attrs,
        content,
    }
}

/// Every reader of the borrowed node says what the owned one says.
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
    for key in node
        .attrs
        .iter()
        .map(|(key, _)| key.as_str())
        .chain(["absent"])
    {
        assert_eq!(view.get(key).is_some(), node.get(key).is_some());
        assert_eq!(view.get_str(key).as_deref(), node.get_str(key));
        assert_eq!(view.get_string(key), node.get_string(key));
        assert_eq!(view.get_jid(key), node.get_jid(key));
        assert_eq!(view.get_u64(key), node.get_u64(key));
    }
    assert_eq!(view.data().as_deref(), node.data());
    assert_eq!(view.content_str().as_deref(), node.content_str());
    match (view.content(), &node.content) {
        (ContentRef::None, Content::None) | (ContentRef::Nodes, Content::Nodes(_)) => {}
        (ContentRef::Bytes(bytes), Content::Bytes(expected)) => assert_eq!(bytes, expected),
        (ContentRef::Text(text), Content::Text(expected)) => assert_eq!(text, expected.as_str()),
        other => panic!("different contents: {other:?}"),
    }
    assert_eq!(view.nodes().count(), node.nodes().len());
    for (view_child, child) in view.nodes().zip(node.nodes()) {
        agree(view_child, child);
        let tag = child.tag();
        assert_eq!(
            view.find(tag).map(NodeRef::to_node).as_ref(),
            node.find(tag)
        );
        assert_eq!(view.find_all(tag).count(), node.find_all(tag).count());
        if let Some(grandchild) = child.nodes().last() {
            let path = [tag, grandchild.tag()];
            assert_eq!(
                view.path(&path).map(NodeRef::to_node).as_ref(),
                node.path(&path)
            );
        }
    }
    assert_eq!(view.to_string(), node.to_string());
}

/// Bytes of memory of an owned node, contents included.
fn footprint(node: &Node) -> usize {
    let long = |text: &str| if text.len() > 23 { text.len() + 16 } else { 0 };
    let attrs: usize = node
        .attrs
        .iter()
        .map(|(key, value)| {
            long(key)
                + match value {
                    Value::Text(text) => long(text),
                    Value::Jid(jid) => long(jid.user()),
                }
        })
        .sum();
    let content = match &node.content {
        Content::None => 0,
        Content::Bytes(bytes) => bytes.len(),
        Content::Text(text) => long(text),
        Content::Nodes(nodes) => {
            (nodes.capacity() - nodes.len()) * size_of::<Node>()
                + nodes.iter().map(footprint).sum::<usize>()
        }
    };
    size_of::<Node>()
        + node.attrs.capacity() * size_of::<(SmolStr, Value)>()
        + long(&node.tag)
        + attrs
        + content
}

/// Decodes what may be anything and checks what must hold of the result, if there is one.
fn total(payload: &[u8]) {
    let mut scratch = Scratch::new();
    let decoded = decode(payload, &mut scratch).map(NodeRef::to_node);
    assert_eq!(decoded, decode_owned(payload));
    if let Ok(view) = decode(payload, &mut scratch) {
        let node = view.to_node();
        agree(view, &node);
        // Whatever can be read can be written, and reads the same.
        let again = encoded(&node);
        assert_eq!(decode_owned(&again), Ok(travelled(&node)));
    }
    if payload.first().is_some_and(|flags| flags & 2 == 0) {
        // 16 bytes for a node's own words, then at most twice four words per three bytes of frame.
        assert!(
            scratch.allocated() <= 32 + payload.len() * 32 / 3,
            "{} of {}",
            scratch.allocated(),
            payload.len()
        );
        if let Ok(node) = &decoded {
            assert!(
                footprint(node) <= 128 + payload.len() * 48,
                "{} of {}",
                footprint(node),
                payload.len()
            );
        }
    }
}

/// Bytes that are likely to be something: tag bytes and small numbers more often than others.
fn likely_byte() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0xEC..=0xFFu8, 3 => 0..6u8, 2 => prop::sample::select(&[0x03u8, 0x1a, 0x55, 0x76, 0xcc][..]), 2 => any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(node in node()) {
        let payload = encoded(&node);
        let expected = travelled(&node);
        prop_assert_eq!(decode_owned(&payload), Ok(expected.clone()));
        let mut scratch = Scratch::new();
        agree(decode(&payload, &mut scratch).expect("just written"), &expected);
        // Written again it stays what it is, to the byte.
        let again = encoded(&expected);
        prop_assert_eq!(encoded(&decode_owned(&again).expect("just written")), again);
    }

    #[test]
    fn a_scratch_carries_nothing_over(first in node(), second in node(), cut in any::<prop::sample::Index>()) {
        let (first, second) = (encoded(&first), encoded(&second));
        let mut scratch = Scratch::new();
        let _ = decode(&first[..cut.index(first.len())], &mut scratch);
        prop_assert_eq!(decode(&second, &mut scratch).map(NodeRef::to_node), decode_owned(&second));
    }

    #[test]
    fn bytes_of_any_kind_are_read_or_refused(mut payload in prop::collection::vec(any::<u8>(), 0..200)) {
        total(&payload);
        if let Some(flags) = payload.first_mut() {
            *flags = 0;
        }
        total(&payload);
    }

    #[test]
    fn likely_bytes_are_read_or_refused(body in prop::collection::vec(likely_byte(), 0..60), size in 1..9u8) {
        total(&[&[0, 0xF8, size, 0x1a], &body[..]].concat());
    }

    #[test]
    fn damaged_nodes_are_read_or_refused(
        node in node(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), likely_byte(), 0..3u8), 1..4),
    ) {
        let mut payload = encoded(&node);
        for (at, byte, how) in damage {
            let at = at.index(payload.len());
            match how {
                0 => payload[at] = byte,
                1 => payload.insert(at, byte),
                _ if payload.len() > 1 => drop(payload.remove(at)),
                _ => {}
            }
        }
        total(&payload);
    }

    #[test]
    fn no_part_and_no_extension_of_a_node_is_a_node(node in node(), cut in any::<prop::sample::Index>(), more in any::<u8>()) {
        let mut payload = encoded(&node);
        let part = &payload[..cut.index(payload.len())];
        // The one exception: an interop JID at the very end, without its server, is in the form some clients write.
        if payload != [part, b"\xFC\x07interop"].concat() {
            prop_assert!(decode_owned(part).is_err());
        }
        payload.push(more);
        prop_assert!(decode_owned(&payload).is_err());
    }

    #[test]
    fn texts_compare_as_strings(text in text()) {
        let payload = encoded(&Node::new(text.as_str()).attr("k", text.as_str()));
        let mut scratch = Scratch::new();
        let view = decode(&payload, &mut scratch).expect("just written");
        let tag: Text<'_> = view.tag();
        prop_assert_eq!(&tag, text.as_str());
        prop_assert_eq!(Some(tag.clone()), view.get_str("k"));
        prop_assert_eq!(tag.clone().into_smol(), text.clone());
        prop_assert_eq!(format!("{tag} {tag:?}"), format!("{text} {text:?}"));
    }

    #[test]
    fn encoding_appends(node in node(), before in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut out = before.clone();
        encode(&node, &mut out).expect("a node that can be written");
        prop_assert_eq!(out, [before, encoded(&node)].concat());
    }
}
