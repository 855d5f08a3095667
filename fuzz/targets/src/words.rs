//! The words of the protocol, nodes made of them, and what real stanzas look like.

use crate::input::Take;
pub(crate) use crate::vocabulary::{JIDS, NAMES, STANZAS, TAGS, VALUES};
use baton_core::{
    jid::Jid,
    wire::node::{self, Node},
};
use sim::world::{Options, World};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// A node of these words. An address comes as one, or as text that looks like one.
pub(crate) fn stanza(take: &mut Take<'_>, depth: usize) -> Node {
    let mut node = Node::new(*take.pick(TAGS));
    let shape = take.u8();
    for _ in 0..shape & 7 {
        let name = *take.pick(NAMES);
        let what = take.u8();
        node = match what {
            0..128 => node.attr(name, *take.pick(VALUES)),
            128..200 => node.attr(name, jid(take)),
            200..228 => node.attr(name, take.number()),
            _ => node.attr(name, String::from_utf8_lossy(take.short()).as_ref()),
        };
    }
    match shape >> 3 & 7 {
        0 => node,
        1 => node.bytes(take.short().to_vec()),
        2 => node.text(*take.pick(VALUES)),
        3 => node.bytes(vec![take.u8(); 32]),
        _ if depth > 5 => node,
        n => {
            let children: Vec<Node> = (3..n).map(|_| stanza(take, depth + 1)).collect();
            node.children(children)
        }
    }
}

pub(crate) fn jid(take: &mut Take<'_>) -> Jid {
    take.pick(JIDS).parse().expect("an address")
}

pub(crate) fn dictionary() -> Vec<Vec<u8>> {
    let texts = [TAGS, NAMES, VALUES, JIDS].concat();
    let texts = texts.into_iter().map(|text| text.as_bytes().to_vec());
    let marks: [&[u8]; 18] = [
        b"WA\x06\x03",
        b"ED\x00\x01\x00\x00",
        // Forms of lists, texts and addresses.
        &[0xf8, 1],
        &[0xf8, 2],
        &[0xf9, 0, 3],
        &[0xfa, 0, 3],
        &[0xf7, 0, 1],
        &[0xf6],
        &[0xf5],
        &[0xfc, 7],
        &[0xfd, 0, 1, 0],
        &[0xff, 0x83],
        &[0xfb, 2],
        &[0xec, 0],
        // zlib, protobuf, Signal.
        &[0x78, 0x9c],
        &[0x0a, 0x20],
        &[0x33, 0x0a, 0x21, 5],
        &[0xff; 9],
    ];
    let mut all: Vec<Vec<u8>> = texts.chain(marks.map(<[u8]>::to_vec)).collect();
    all.retain(|word| !word.is_empty());
    all.sort();
    all.dedup();
    all
}

/// What goes over the wire between two accounts that are linked and write to each other: one stanza of every shape.
pub(crate) fn traffic() -> Vec<Vec<u8>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut world = World::new(Options::default());
    let hear = Arc::clone(&heard);
    world.tamper(Some(Box::new(move |_, node| {
        hear.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(node.clone());
        vec![node]
    })));
    world.link_all();
    for n in 0..4 {
        world.plan_text(n * 1_000_000, 0, 1, "a text");
        world.plan_text(n * 1_000_000, 1, 0, "another");
    }
    world.run(world.now().mono.0 + 30_000_000);
    let mut rig = crate::rig::Rig::online(1);
    rig.pass(30_000_000);
    let ours = rig.look().nodes;
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let mut shapes = BTreeSet::new();
    let mut all = Vec::new();
    for node in heard.iter().chain(&ours) {
        let mut bytes = Vec::new();
        let known = !shapes.insert(shape(node));
        if !known && node::encode(node, &mut bytes).is_ok() && bytes.len() < 4096 {
            all.push(bytes);
        }
    }
    all
}

fn shape(node: &Node) -> String {
    let attrs: Vec<&str> = node.attrs.iter().map(|(key, _)| key.as_str()).collect();
    let children: BTreeSet<String> = node.nodes().iter().map(shape).collect();
    let kind = node.get_str("type").unwrap_or_default();
    format!("{}{attrs:?}{kind}{children:?}", node.tag)
}
