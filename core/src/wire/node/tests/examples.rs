//! The worked examples of ch. 02.9: bytes on which the encoders of three other clients agree.

use flate2::{Compression, write::ZlibEncoder};

use crate::jid::{Jid, Server};
use crate::wire::node::{
    Content, Node, NodeError, Scratch, Text, Unwritable, decode, decode_owned, encode,
};

fn test() -> Node {
    Node::new("test")
}

/// Hex digits; spaces are for the reader.
pub(super) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> = digits.chars().filter_map(|c| c.to_digit(16)).collect();
    assert!(digits.len().is_multiple_of(2));
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

pub(super) fn jid(text: &str) -> Jid {
    text.parse().expect(text)
}

pub(super) fn encoded(node: &Node) -> Vec<u8> {
    let mut out = Vec::new();
    encode(node, &mut out).expect("a node that can be written");
    out
}

/// The borrowed and the owned reader agree, and this is what they read.
#[track_caller]
fn reads(payload: &[u8], node: &Node) {
    assert_eq!(decode_owned(payload).as_ref(), Ok(node));
}

#[track_caller]
fn both_ways(node: Node, digits: &str) {
    let payload = hex(digits);
    assert_eq!(encoded(&node), payload, "{node}");
    reads(&payload, &node);
}

#[track_caller]
fn jid_both_ways(address: &str, digits: &str) {
    both_ways(
        test().attr("to", jid(address)),
        &format!("00f803fc047465737411{digits}"),
    );
}

#[test]
fn e01_ping() {
    both_ways(
        Node::new("iq")
            .attr("id", "26.183-1")
            .attr("xmlns", "w:p")
            .attr("type", "get")
            .attr("to", Jid::service()),
        "00f8091908ff0426b183a11657042911fa0003",
    );
}

#[test]
fn e02_passive() {
    both_ways(
        Node::new("iq")
            .attr("id", "26.183-2")
            .attr("xmlns", "passive")
            .attr("type", "set")
            .attr("to", Jid::service())
            .child(Node::new("active")),
        "00f80a1908ff0426b183a216ec18045a11fa0003f801f801ec01",
    );
}

#[test]
fn e03_ack() {
    both_ways(
        Node::new("ack")
            .attr("class", "message")
            .attr("id", "3EB0A9E5F1C2D3B4A59687")
            .attr("to", jid("120363021033254949@g.us"))
            .attr("participant", jid("15551234567:2@s.whatsapp.net")),
        "00f8091b151308fb0b3eb0a9e5f1c2d3b4a5968711faff091203630210332549491c05f70002ff8615551234567f",
    );
}

#[test]
fn e04_receipt() {
    both_ways(
        Node::new("receipt")
            .attr("id", "3EB0A9E5F1C2D3B4A59687")
            .attr("to", jid("15551234567@s.whatsapp.net"))
            .attr("type", "inactive"),
        "00f8070708fb0b3eb0a9e5f1c2d3b4a5968711faff8615551234567f0304c6",
    );
}

#[test]
fn e05_offline_batch() {
    both_ways(
        Node::new("ib").child(Node::new("offline_batch").attr("count", "100")),
        "00f802fc026962f801f803ed0841ec33",
    );
}

#[test]
fn e06_pair_device() {
    both_ways(
        Node::new("iq")
            .attr("from", Jid::service())
            .attr("id", "3")
            .attr("type", "set")
            .attr("xmlns", "md")
            .child(Node::new("pair-device").child(Node::new("ref").bytes(hex("3240")))),
        "00f80a1906fa000308a2045a16fc026d64f801f802edeef801f802ed50fc023240",
    );
}

#[test]
fn e07_pair_device_sign() {
    let identity = Node::new("device-identity")
        .attr("key-index", 1u32)
        .bytes(hex("0a0102"));
    both_ways(
        Node::new("iq")
            .attr("id", "1")
            .attr("type", "result")
            .attr("to", Jid::service())
            .child(Node::new("pair-device-sign").child(identity)),
        "00f808190855041411fa0003f801f802fc10706169722d6465766963652d7369676ef801f804e65055fc030a0102",
    );
}

#[test]
fn e08_success() {
    both_ways(
        Node::new("success")
            .attr("t", 1_700_000_000u64)
            .attr("lid", jid("100000012345678:13@lid"))
            .attr("location", "frc"),
        "00f8074c1aff05170000000076f7010dff88100000012345678f3dfc03667263",
    );
}

#[test]
fn e09_stream_error() {
    both_ways(
        Node::new("stream:error").attr("code", 515u32),
        "00f8039d70ff82515f",
    );
}

#[test]
fn e10_device_removed() {
    both_ways(
        Node::new("stream:error")
            .attr("code", "401")
            .child(Node::new("conflict").attr("type", "device_removed")),
        "00f8049d708df801f803ec0e04fc0e6465766963655f72656d6f766564",
    );
}

#[test]
fn e11_text_that_is_a_token() {
    both_ways(Node::new("message").text("receipt"), "00f8021307");
}

#[test]
fn e12_text_that_packs() {
    both_ways(
        test().text("-.0123456789"),
        "00f802fc0474657374ff06ab0123456789",
    );
}

#[test]
fn e13_an_odd_number_of_digits() {
    both_ways(test().attr("a", "123"), "00f803fc0474657374fc0161ff82123f");
}

#[test]
fn e14_an_even_number_of_digits() {
    both_ways(
        test().attr("a", "15551234567890"),
        "00f803fc0474657374fc0161ff0715551234567890",
    );
}

#[test]
fn e15_odd_hex() {
    both_ways(
        test().attr("id", "3EB0C0FFEE1"),
        "00f803fc047465737408fb863eb0c0ffee1f",
    );
}

#[test]
fn e16_even_hex() {
    both_ways(
        test().attr("id", "3EB0A9E5F1C2D3B4A59687"),
        "00f803fc047465737408fb0b3eb0a9e5f1c2d3b4a59687",
    );
}

#[test]
fn e17_lower_case_hex_stays_raw() {
    both_ways(
        test().attr("id", "3eb0a9"),
        "00f803fc047465737408fc06336562306139",
    );
}

#[test]
fn e18_to_e29_jids() {
    jid_both_ways("15551234567@s.whatsapp.net", "faff8615551234567f03");
    jid_both_ways("15551234567:13@s.whatsapp.net", "f7000dff8615551234567f");
    jid_both_ways("100000012345678:99@lid", "f70163ff88100000012345678f");
    jid_both_ways("100000012345678@lid", "faff88100000012345678f76");
    jid_both_ways("15551234567:99@hosted", "f78063ff8615551234567f");
    jid_both_ways(
        "100000012345678:99@hosted.lid",
        "f78163ff88100000012345678f",
    );
    jid_both_ways("120363021033254949@g.us", "faff091203630210332549491c");
    jid_both_ways(
        "15551234567-1600000000@g.us",
        "faff0b15551234567a16000000001c",
    );
    jid_both_ways("status@broadcast", "fa0b0d");
    jid_both_ways(
        "120363025487557612@newsletter",
        "faff09120363025487557612fc0a6e6577736c6574746572",
    );
    jid_both_ways("0@c.us", "fa2dfc04632e7573");
    jid_both_ways("867051314767696@bot", "faff88867051314767696ffc03626f74");
}

#[test]
fn e30_bytes() {
    both_ways(
        Node::new("value").bytes(hex("00112233445566778899aabbccddeeff")),
        "00f8026cfc1000112233445566778899aabbccddeeff",
    );
}

#[test]
fn e31_no_bytes() {
    both_ways(Node::new("value").bytes(Vec::new()), "00f8026cfc00");
}

#[test]
fn e32_an_empty_list_is_written_but_reads_as_nothing() {
    let payload = hex("00f8027100");
    let mut list = Node::new("list");
    list.content = Content::Nodes(Vec::new());
    assert_eq!(encoded(&list), payload);
    reads(&payload, &Node::new("list"));
    // The same list in two other spellings.
    reads(&hex("00f80271f800"), &Node::new("list"));
    reads(&hex("00f80271f90000"), &Node::new("list"));
}

#[test]
fn e33_presence() {
    both_ways(
        Node::new("presence")
            .attr("name", "Zoë ☕")
            .attr("type", "available"),
        "00f8051f89fc085a6fc3ab20e298950488",
    );
}

#[test]
fn e34_pairing_nonce() {
    both_ways(
        Node::new("link_code_pairing_nonce").text("0"),
        "00f802fc176c696e6b5f636f64655f70616972696e675f6e6f6e63652d",
    );
}

#[test]
fn e35_a_hyphen_is_a_token() {
    both_ways(Node::new("t").attr("a", "-"), "00f8031afc0161edf7");
}

#[test]
fn e36_compressed() {
    let ping = decode_owned(&hex("00f8091908ff0426b183a11657042911fa0003")).unwrap();
    let payload = hex("02789cfbc129c9f19f456d63f342b170164dc15f0ccc003d9e05c9");
    reads(&payload, &ping);
    // Other flags mean nothing, and what follows the stream is ignored.
    for flags in [0x03, 0x82, 0xFF] {
        reads(&[&[flags], &payload[1..], b"more"].concat(), &ping);
    }
    for flags in [0x01, 0x80, 0xFD] {
        reads(&[&[flags], &encoded(&ping)[1..]].concat(), &ping);
    }
}

#[test]
fn e37_packing_ends_at_127_characters() {
    let packed = format!("00f8031afc0161 ffc0 {} 1f", "11".repeat(63));
    both_ways(Node::new("t").attr("a", "1".repeat(127)), &packed);
    let raw = format!("00f8031afc0161 fc80 {}", "31".repeat(128));
    both_ways(Node::new("t").attr("a", "1".repeat(128)), &raw);
}

#[test]
fn e38_lengths_of_bytes() {
    for (length, header) in [
        (0xFF, "fcff"),
        (0x100, "fd000100"),
        (0xF_FFFF, "fd0fffff"),
        (0x10_0000, "fe00100000"),
        (0x10_0001, "fe00100001"),
    ] {
        let node = Node::new("value").bytes(vec![0xA5; length]);
        let payload = [hex("00f8026c"), hex(header), vec![0xA5; length]].concat();
        assert_eq!(encoded(&node), payload);
        reads(&payload, &node);
    }
}

#[test]
fn e39_lengths_of_lists() {
    for (length, header) in [(255, "f8ff"), (256, "f90100"), (65_535, "f9ffff")] {
        let node = Node::new("list").children(vec![Node::new("item"); length]);
        both_ways(
            node,
            &format!("00f80271 {header} {}", "f8013f".repeat(length)),
        );
    }
}

#[test]
fn e40_jids_of_other_networks() {
    jid_both_ways("1234567890:3@msgr", "f6 ff051234567890 0003 cc");
    jid_both_ways(
        "2-1234567890:3@interop",
        "f5 ff051234567890 0003 0002 fc07696e7465726f70",
    );
    let user = Jid::new("1234567890", Server::Interop)
        .unwrap()
        .with_device(3)
        .with_integrator(2);
    assert_eq!(jid("2-1234567890:3@interop"), user);
}

#[test]
fn e41_stream_end() {
    both_ways(Node::new("xmlstreamend"), "00f80102");
}

#[test]
fn where_the_encoders_differ_all_forms_are_read() {
    // The first of each line is ours, when it is among them.
    for (address, forms) in [
        (
            "15551234567@hosted",
            &[
                "f78000ff8615551234567f",
                "faff8615551234567ffc06686f73746564",
            ][..],
        ),
        ("100012345:3@msgr", &["f6ff85100012345f0003cc"]),
        (
            "100012345@msgr",
            &["f6ff85100012345f0000cc", "faff85100012345fcc"],
        ),
        (
            "15551234567@interop",
            &[
                "f5ff8615551234567f00000000fc07696e7465726f70",
                "faff8615551234567ffc07696e7465726f70",
            ],
        ),
        ("1234@lid", &["faff02123476"]),
        ("1234.5@lid", &["faff031234b576"]),
    ] {
        jid_both_ways(address, forms[0]);
        for form in forms {
            reads(
                &hex(&format!("00f803fc047465737411{form}")),
                &test().attr("to", jid(address)),
            );
        }
    }
    // Baileys writes this for 100012345:3@msgr; the domain makes it a phone number.
    reads(
        &hex("00f803fc047465737411f70003ff85100012345f"),
        &test().attr("to", jid("100012345:3@s.whatsapp.net")),
    );

    let empty = test().attr("a", "");
    assert_eq!(encoded(&empty), hex("00f801fc0474657374"));
    reads(&hex("00f801fc0474657374"), &test());
    for value in [
        "fc00",
        "ff00",
        "fb00",
        "ff80",
        "fb80",
        "fd000000",
        "fe00000000",
        "00",
    ] {
        reads(&hex(&format!("00f803fc0474657374fc0161{value}")), &empty);
    }

    assert_eq!(encoded(&test().text("")), hex("00f802fc0474657374fc00"));
    reads(&hex("00f802fc0474657374ff00"), &test().text(""));
    reads(&hex("00f802fc0474657374fc00"), &test().bytes(Vec::new()));
    for digits in ["00f802fc0474657374ff00", "00f802fc0474657374fc00"] {
        let mut scratch = Scratch::new();
        let payload = hex(digits);
        assert_eq!(
            decode(&payload, &mut scratch)
                .unwrap()
                .content_str()
                .as_deref(),
            Some("")
        );
    }
}

#[test]
fn a_client_may_leave_out_the_interop_server() {
    let user = jid("2-1234567890:3@interop");
    let short = "f5 ff051234567890 0003 0002";
    reads(
        &hex(&format!("00f803fc047465737411{short}")),
        &test().attr("to", &user),
    );
    reads(
        &hex(&format!("00f806fc0474657374 11{short} 0855 fc0107")),
        &test().attr("to", &user).attr("id", "1").bytes(vec![7]),
    );
    // In this form an attribute called "interop" would be taken for the server; then the count is wrong, and the
    // frame is refused rather than misread.
    assert!(
        decode_owned(&hex(&format!(
            "00f805fc0474657374 11{short} fc07696e7465726f70 55"
        )))
        .is_err()
    );
}

#[test]
fn a_jid_as_content_reads_as_text() {
    reads(
        &hex("00f8021af7000dff8615551234567f"),
        &Node::new("t").text("15551234567:13@s.whatsapp.net"),
    );
    reads(
        &hex("00f8021afa0003"),
        &Node::new("t").text("s.whatsapp.net"),
    );
}

#[test]
fn texts_compare_by_what_they_say_not_by_how_they_are_written() {
    let forms = |text: &'static str| {
        [
            Text::Borrowed(text),
            Text::Token(text),
            Text::Unpacked(text.into()),
        ]
    };
    for one in forms("12345678") {
        assert_eq!((one.as_ref(), &*one), ("12345678", "12345678"));
        assert!(one == *"12345678" && one == "12345678");
        assert!(one != *"1234567" && one != "1234567");
        assert!(forms("12345678").contains(&one) && !forms("123").contains(&one));
    }
}

#[test]
fn the_first_of_two_equal_keys_counts() {
    let payload = hex("00f8051a 0855 08a2");
    let node = decode_owned(&payload).unwrap();
    assert_eq!((node.get_str("id"), node.attrs.len()), (Some("1"), 2));
    assert_eq!(
        decode(&payload, &mut Scratch::new()).unwrap().get_u64("id"),
        Some(1)
    );
}

#[test]
fn what_cannot_be_written_leaves_the_buffer_alone() {
    let lid = jid("1@lid");
    let cases = [
        (
            test().attr("to", lid.clone().with_device(256)),
            Unwritable::Device(256),
        ),
        (
            test().attr("to", jid("1@g.us").with_device(1)),
            Unwritable::NoDevices,
        ),
        (Node::new(""), Unwritable::EmptyName),
        (test().child(test().attr("", "x")), Unwritable::EmptyName),
        (
            test().children(vec![test(); 65_536]),
            Unwritable::TooManyChildren,
        ),
        (test().bytes(vec![0; (16 << 20) + 1]), Unwritable::TooLong),
        (
            (0..1025u32).fold(test(), |node, n| node.attr(n.to_string(), n)),
            Unwritable::TooManyAttributes,
        ),
        (
            (0..128).fold(test(), |node, _| test().child(node)),
            Unwritable::TooDeep,
        ),
    ];
    let mut out = b"before".to_vec();
    for (node, reason) in cases {
        assert_eq!(encode(&node, &mut out), Err(NodeError::Unwritable(reason)));
        assert_eq!(out, b"before");
    }
    assert!(encode(&test().attr("to", lid.with_device(255)), &mut out).is_ok());
    assert!(out.starts_with(b"before"));
}

#[test]
fn limits_are_reached_exactly() {
    let deepest = (0..127).fold(test(), |node, _| test().child(node));
    reads(&encoded(&deepest), &deepest);
    let widest = (0..1024u32).fold(test(), |node, n| node.attr(format!("key{n}"), n));
    reads(&encoded(&widest), &widest);
    // A tag of two bytes, a header of five: the largest node that fits 16 MiB.
    let longest = Node::new("value").bytes(vec![0; (16 << 20) - 8]);
    assert_eq!(encoded(&longest).len(), 1 + (16 << 20));
    assert!(decode_owned(&encoded(&longest)).is_ok_and(|node| node == longest));
    let mut deflate = ZlibEncoder::new(vec![2], Compression::fast());
    std::io::Write::write_all(&mut deflate, &encoded(&longest)[1..]).unwrap();
    assert!(decode_owned(&deflate.finish().unwrap()).is_ok_and(|node| node == longest));
    assert!(matches!(longest.content, Content::Bytes(_)));
    // What is in it may be as long as the limit says; that the whole is longer then, the frame has to say.
    assert!(
        encode(
            &Node::new("value").bytes(vec![0; 16 << 20]),
            &mut Vec::new()
        )
        .is_ok()
    );
}
