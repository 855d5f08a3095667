//! Any node to bytes and back.
//!
//! Checked: it comes back as it was, or it is refused for a reason that is true of it, and then nothing was written.

use crate::node_decode::{same, travels};
use crate::words;
use arbitrary::{Result, Unstructured};
use baton_core::{
    jid::{Jid, Server},
    wire::node::{self, Content, Node, NodeError, Unwritable, Value},
};

/// See the module.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(node) = any_node(&mut input, 0) else {
        return;
    };
    let mut out = b"before".to_vec();
    match node::encode(&node, &mut out) {
        Ok(()) => {
            let back = node::decode_owned(&out[6..]).expect("what was written can be read");
            same(&node, &back);
            travels(&back);
        }
        Err(NodeError::Unwritable(why)) => {
            assert_eq!(out, b"before");
            assert!(is_true(&node, why), "{why} is not true of {node}");
        }
        Err(other) => panic!("{other} while writing"),
    }
}

fn is_true(node: &Node, why: Unwritable) -> bool {
    let jids = || {
        node.attrs.iter().filter_map(|(_, value)| match value {
            Value::Jid(jid) => Some(jid),
            Value::Text(_) => None,
        })
    };
    let here = match why {
        Unwritable::EmptyName => {
            node.tag.is_empty()
                || node
                    .attrs
                    .iter()
                    .any(|(key, value)| key.is_empty() && *value != Value::Text("".into()))
        }
        Unwritable::Device(device) => jids().any(|jid| jid.device() == device && device > 255),
        Unwritable::NoDevices => {
            jids().any(|jid| jid.device() != 0 && jid.server().domain().is_none())
        }
        Unwritable::TooManyAttributes => node.attrs.len() > 1024,
        Unwritable::TooManyChildren => node.nodes().len() > 65_535,
        Unwritable::TooDeep | Unwritable::TooLong => false,
    };
    here || node.nodes().iter().any(|child| is_true(child, why))
}

fn any_node(input: &mut Unstructured<'_>, depth: usize) -> Result<Node> {
    let mut node = Node::new(text(input)?);
    for _ in 0..input.int_in_range(0..=5)? {
        let key = text(input)?;
        // Not by `attr`, which keeps keys apart.
        let value = if input.ratio(1, 3)? {
            Value::Jid(jid(input)?)
        } else {
            Value::from(text(input)?)
        };
        node.attrs.push((key.into(), value));
    }
    node.content = match input.int_in_range(0..=3)? {
        0 => Content::None,
        1 => Content::Bytes(input.arbitrary::<Vec<u8>>()?.into()),
        2 => Content::Text(text(input)?.into()),
        _ if depth < 6 => {
            let count = input.int_in_range(0..=5)?;
            let children = (0..count).map(|_| any_node(input, depth + 1));
            Content::Nodes(children.collect::<Result<_>>()?)
        }
        _ => Content::Nodes(Vec::new()),
    };
    Ok(node)
}

fn text(input: &mut Unstructured<'_>) -> Result<String> {
    Ok(match input.int_in_range(0..=5)? {
        0 => input.choose(words::TAGS)?.to_string(),
        1 => input.choose(words::VALUES)?.to_string(),
        2 => {
            let digits = input.arbitrary::<&[u8]>()?.iter();
            digits
                .map(|n| char::from(b"0123456789-."[usize::from(n % 12)]))
                .collect()
        }
        3 => {
            let digits = input.arbitrary::<&[u8]>()?.iter();
            digits
                .map(|n| char::from(b"0123456789ABCDEF"[usize::from(n % 16)]))
                .collect()
        }
        4 => "x".repeat(input.int_in_range(0..=300)?),
        _ => input.arbitrary::<String>()?,
    })
}

fn jid(input: &mut Unstructured<'_>) -> Result<Jid> {
    let server = *input.choose(&Server::ALL)?;
    let user = text(input)?;
    let jid = Jid::new(&user, server).unwrap_or(Jid::service());
    Ok(jid
        .with_device(input.arbitrary()?)
        .with_integrator(input.arbitrary()?))
}

/// Bytes of all sorts: the structure is in how they are read.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut rng = baton_core::crypto::Rng::from_seed([5; 32]);
    (0..24)
        .map(|n| (0..n * 12).map(|_| rng.next_u32() as u8).collect())
        .collect()
}
