//! What the node codec costs, on four stanzas: the smallest, an everyday one, and two large ones.
//!
//! `cargo bench -p baton-core --bench node`. Encoding goes into a kept buffer and decoding into a kept scratch, as the
//! engine does it; `decode fresh` starts from an empty scratch, `owned` turns the frame into a tree of its own.

use std::hint::black_box;

use baton_core::jid::Jid;
use baton_core::wire::node::{Node, NodeRef, Scratch, decode, decode_owned, encode};
use criterion::{Criterion, Throughput};

fn phone(n: u64) -> Jid {
    Jid::pn(&(15_550_000_000 + n * 7_919).to_string()).expect("digits")
}

fn ciphertext(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 37 + 11) as u8).collect()
}

fn enc(kind: &str, length: usize) -> Node {
    Node::new("enc")
        .attr("v", 2u32)
        .attr("type", kind)
        .bytes(ciphertext(length))
}

/// 55 bytes.
fn ack() -> Node {
    Node::new("ack")
        .attr("class", "message")
        .attr("id", "3EB0A9E5F1C2D3B4A59687")
        .attr("to", Jid::group("120363021033254949").expect("a group"))
        .attr("participant", phone(1).with_device(2))
        .attr("t", 1_700_000_000u64)
        .attr("count", 3u32)
}

/// A direct message for two devices, one of them new: 834 bytes.
fn message() -> Node {
    let to = |device, kind, length| {
        Node::new("to")
            .attr("jid", phone(1).with_device(device))
            .child(enc(kind, length))
    };
    Node::new("message")
        .attr("id", "3EB0A9E5F1C2D3B4A59687")
        .attr("type", "text")
        .attr("to", phone(1))
        .child(
            Node::new("participants")
                .child(to(0, "msg", 170))
                .child(to(3, "pkmsg", 371)),
        )
        .child(Node::new("device-identity").bytes(ciphertext(170)))
}

/// A first group message: the text once, the sender key to 300 devices. 75 KB.
fn group() -> Node {
    let devices = (0..300).map(|n| {
        Node::new("to")
            .attr("jid", phone(n / 2).with_device((n % 2) as u16))
            .child(enc("msg", 227))
    });
    Node::new("message")
        .attr("id", "3EB0A9E5F1C2D3B4A59687")
        .attr("type", "text")
        .attr("to", Jid::group("120363021033254949").expect("a group"))
        .attr("phash", "2:5s+YxCff")
        .attr("addressing_mode", "pn")
        .child(Node::new("participants").children(devices))
        .child(enc("skmsg", 200))
}

/// The device lists of 250 users, four devices each, with signed lists. 63 KB.
fn usync() -> Node {
    let users = (0..250).map(|n| {
        let list = Node::new("device-list").children((0..4u32).map(|device| {
            Node::new("device")
                .attr("id", device * 11)
                .attr_opt("key-index", (device > 0).then_some(device * 7))
        }));
        let index = Node::new("key-index-list")
            .attr("ts", 1_700_000_000 + n)
            .bytes(ciphertext(158));
        Node::new("user")
            .attr("jid", phone(n))
            .child(Node::new("devices").child(list).child(index))
    });
    Node::new("iq")
        .attr("from", Jid::service())
        .attr("id", "26.183-17")
        .attr("type", "result")
        .child(
            Node::new("usync")
                .attr("sid", "26.183-18")
                .attr("mode", "query")
                .child(Node::new("list").children(users)),
        )
}

/// Reads what a flow would read of any stanza: every tag, every value, every content.
fn walk(node: NodeRef<'_>) -> usize {
    let attributes: usize = node
        .attrs()
        .map(|(key, value)| key.len() + size_of_val(&value))
        .sum();
    node.tag().len()
        + attributes
        + node.data().map_or(0, |data| data.len())
        + node.nodes().map(walk).sum::<usize>()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, node) in [
        ("ack", ack()),
        ("message", message()),
        ("group", group()),
        ("usync", usync()),
    ] {
        let mut payload = Vec::new();
        encode(&node, &mut payload).expect("a node that can be written");
        println!("{name}: {} bytes", payload.len());

        let mut bench = criterion.benchmark_group(name);
        bench.throughput(Throughput::Bytes(payload.len() as u64));
        let mut out = Vec::new();
        bench.bench_function("encode", |b| {
            b.iter(|| {
                out.clear();
                encode(black_box(&node), &mut out).map(|()| out.len())
            });
        });
        let mut scratch = Scratch::new();
        bench.bench_function("decode", |b| {
            b.iter(|| {
                decode(black_box(&payload), &mut scratch)
                    .map(|node| black_box(node.nodes().count()))
            });
        });
        bench.bench_function("decode and read all", |b| {
            b.iter(|| decode(black_box(&payload), &mut scratch).map(walk));
        });
        bench.bench_function("decode fresh", |b| {
            b.iter(|| {
                decode(black_box(&payload), &mut Scratch::new())
                    .map(|node| black_box(node.nodes().count()))
            });
        });
        bench.bench_function("decode owned", |b| {
            b.iter(|| decode_owned(black_box(&payload)))
        });
        bench.finish();
    }
    criterion.final_summary();
}
