//! Malformed input, row by row of the table in ch. 02.8: what is refused, where, and what is tolerated.

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::examples::{encoded, hex, jid};
use crate::wire::node::{Malformed, Node, NodeError, Scratch, decode, decode_owned, limits};

#[track_caller]
fn refused(digits: &str, position: usize, what: Malformed) {
    let payload = hex(digits);
    assert_eq!(
        decode_owned(&payload),
        Err(NodeError::Malformed { position, what }),
        "{digits}"
    );
}

#[track_caller]
fn accepted(digits: &str, node: &Node) {
    assert_eq!(decode_owned(&hex(digits)).as_ref(), Ok(node), "{digits}");
}

/// A JID as the value of the only attribute of a node; it stands at byte 5.
#[track_caller]
fn refused_jid(digits: &str, position: usize, what: Malformed) {
    refused(&format!("00f8031a0c {digits}"), position, what);
}

#[test]
fn no_bytes_at_all() {
    refused("", 0, Malformed::Empty);
}

#[test]
fn nothing_after_the_flags() {
    refused("00", 1, Malformed::Truncated);
}

#[test]
fn an_empty_list_is_no_node() {
    refused("00 00", 1, Malformed::NotANode);
    refused("00 f800", 1, Malformed::NotANode);
    refused("00 f90000", 1, Malformed::NotANode);
    refused("00 f80271 f801 00", 6, Malformed::NotANode);
    refused("00 f80271 f802 f8011a 00", 9, Malformed::NotANode);
}

#[test]
fn a_node_is_a_list() {
    refused("00 1a", 1, Malformed::NotANode);
    refused("00 fc0174", 1, Malformed::NotANode);
}

#[test]
fn the_tag_is_text_with_something_in_it() {
    refused("00 f801 00", 3, Malformed::NotText);
    refused("00 f801 f8011a", 3, Malformed::NotText);
    refused("00 f801 fc00", 3, Malformed::EmptyName);
    refused("00 f801 ff00", 3, Malformed::EmptyName);
    refused("00 f801 fb80", 3, Malformed::EmptyName);
    for jid in [
        "fa0003",
        "f70001ff0112",
        "f6ff01120000cc",
        "f5ff011200000000",
    ] {
        refused(&format!("00 f801 {jid}"), 3, Malformed::NotText);
    }
}

#[test]
fn truncated_anywhere() {
    let node = Node::new("message")
        .attr("id", "3EB0A9E5F1C2D3B4A59687")
        .attr("t", 1_700_000_000u64)
        .attr("notify", "Zoë ☕")
        .attr("a", jid("15551234567:2@s.whatsapp.net"))
        .attr("b", jid("15551234567@hosted.lid"))
        .attr("c", jid("1234567890:3@msgr"))
        .attr("d", jid("120363025487557612@newsletter"))
        .attr("e", jid("2-1234567890:3@interop"))
        .child(Node::new("enc").bytes(vec![1; 300]))
        .child(Node::new("enc").attr("v", 2u32).text("26.183-1"));
    let payload = encoded(&node);
    assert_eq!(decode_owned(&payload), Ok(node));
    for length in 1..payload.len() {
        let error = decode_owned(&payload[..length]).expect_err("a part of it");
        assert_eq!(
            error,
            NodeError::Malformed {
                position: length,
                what: Malformed::Truncated
            }
        );
    }
}

#[test]
fn trailing_bytes() {
    refused("00 f8011a 00", 4, Malformed::Trailing);
    refused("00 f8011a f8011a", 4, Malformed::Trailing);
}

#[test]
fn a_length_beyond_the_frame() {
    refused("00 f8021a feffffffff", 9, Malformed::Truncated);
    refused("00 f8021a fe7fffffff 00", 10, Malformed::Truncated);
    refused("00 f8021a fdffffff", 8, Malformed::Truncated);
    refused("00 f8021a f9ffff f8011a", 10, Malformed::Truncated);
    refused("00 f9ffff 1a", 1, Malformed::TooManyAttributes);
}

#[test]
fn unassigned_packed_digits() {
    for (digit, position) in [
        ("c1", 6),
        ("d1", 6),
        ("e1", 6),
        ("1c", 6),
        ("1d", 6),
        ("1e", 6),
    ] {
        refused(
            &format!("00f8021aff01 {digit}"),
            position,
            Malformed::PackedDigit,
        );
    }
    refused("00f8021aff03 1212c2", 8, Malformed::PackedDigit);
    // Where the padding half byte is dropped, the other half still counts.
    refused("00f8021aff82 12cf", 7, Malformed::PackedDigit);
    // Padding in the middle would read as a NUL character.
    refused("00f8021aff02 1f12", 6, Malformed::PackedDigit);
    refused("00f8021aff02 12ff", 7, Malformed::PackedDigit);
    // Two wrongs of one kind make no right.
    refused("00f8021aff04 1f1f1212", 6, Malformed::PackedDigit);
    // All sixteen digits of the other alphabet are good.
    accepted("00f8021afb02 cdef", &Node::new("t").text("CDEF"));
}

#[test]
fn odd_padding_may_hold_anything() {
    for padding in "0123456789abcdef".chars() {
        accepted(
            &format!("00f8021aff82 123{padding}"),
            &Node::new("t").text("123"),
        );
        accepted(
            &format!("00f8021afb82 1ab{padding}"),
            &Node::new("t").text("1AB"),
        );
    }
    accepted("00f8021aff80", &Node::new("t").text(""));
}

#[test]
fn the_longest_packed_text() {
    let text = "1".repeat(254);
    accepted(
        &format!("00f8021aff7f {}", "11".repeat(127)),
        &Node::new("t").text(text.as_str()),
    );
    accepted(
        &format!("00f8021afbff {}", "11".repeat(127)),
        &Node::new("t").text(&text[1..]),
    );
}

#[test]
fn unassigned_tag_bytes() {
    for form in ["f0", "f1", "f2", "f3", "f4"] {
        refused(&format!("00 {form}"), 1, Malformed::UnknownTag);
        refused(&format!("00f801 {form}"), 3, Malformed::UnknownTag);
        refused(&format!("00f8031a {form} 55"), 4, Malformed::UnknownTag);
        refused(&format!("00f8031a55 {form}"), 5, Malformed::UnknownTag);
        refused(&format!("00f8021a {form}"), 4, Malformed::UnknownTag);
    }
}

#[test]
fn a_dictionary_without_an_index() {
    for form in ["ec", "ed", "ee", "ef"] {
        refused(&format!("00f801 {form}"), 4, Malformed::Truncated);
        refused(&format!("00f8021a {form}"), 5, Malformed::Truncated);
    }
}

#[test]
fn a_key_is_text_with_something_in_it() {
    refused("00f8031a 00 55", 4, Malformed::NotText);
    refused("00f8031a fc00 55", 4, Malformed::EmptyName);
    refused("00f8031a fa0003 55", 4, Malformed::NotText);
    refused("00f8031a f70000ff0112 55", 4, Malformed::NotText);
    refused("00f8031a f8011a 55", 4, Malformed::NotText);
}

#[test]
fn a_value_may_be_missing_but_is_no_list() {
    accepted("00f8031a0c 00", &Node::new("t").attr("jid", ""));
    refused("00f8031a0c f8011a", 5, Malformed::NotAValue);
    refused("00f8031a0c f9000155", 5, Malformed::NotAValue);
}

#[test]
fn of_equal_keys_the_first_counts() {
    let node = decode_owned(&hex("00f8051a 0c55 0c00")).unwrap();
    assert_eq!(node.get_str("jid"), Some("1"));
}

#[test]
fn a_pair_needs_a_server_we_know() {
    refused_jid("fa ff0112 fc0565782e6f72", 9, Malformed::JidServer);
    refused_jid("fa ff0112 00", 9, Malformed::JidServer);
    refused_jid("fa 00 00", 7, Malformed::JidServer);
    refused_jid("fa ff0112 fc00", 9, Malformed::JidServer);
    refused_jid("fa ff0112 fa0003", 9, Malformed::NotText);
    refused_jid("fa fa0003 03", 6, Malformed::NotText);
    refused_jid("fa f80112 03", 6, Malformed::NotText);
    // Case counts.
    refused_jid("fa ff0112 fc034c4944", 9, Malformed::JidServer);
}

#[test]
fn a_user_has_no_separators() {
    // "a@b", "a:1", "a b", "a\n", U+00A0, and the token "urn:xmpp:ping".
    for user in [
        "fc03614062",
        "fc03613a31",
        "fc03612062",
        "fc02610a",
        "fc02c2a0",
        "2b",
    ] {
        refused_jid(&format!("fa {user} 03"), 6, Malformed::JidUser);
        refused_jid(&format!("f70001 {user}"), 8, Malformed::JidUser);
        refused_jid(&format!("f6 {user} 0003cc"), 6, Malformed::JidUser);
        refused_jid(&format!("f5 {user} 00030002"), 6, Malformed::JidUser);
    }
}

#[test]
fn a_device_needs_a_domain_we_know() {
    refused_jid("f70203ff0112", 6, Malformed::JidDomain);
    refused_jid("f78203ff0112", 6, Malformed::JidDomain);
    for domain in (0..=255u8).filter(|domain| ![0, 1, 128, 129].contains(domain)) {
        refused_jid(&format!("f7{domain:02x}03ff0112"), 6, Malformed::JidDomain);
    }
}

#[test]
fn a_device_needs_a_user() {
    for nobody in ["00", "fc00", "ff00", "fb80"] {
        refused_jid(&format!("f70003 {nobody}"), 8, Malformed::JidUser);
        refused_jid(&format!("f6 {nobody} 0003 cc"), 6, Malformed::JidUser);
        refused_jid(
            &format!("f5 {nobody} 0003 0002 fc07696e7465726f70"),
            6,
            Malformed::JidUser,
        );
    }
}

#[test]
fn messenger_and_interop_name_their_own_server() {
    for server in ["03", "76", "00", "fc07696e7465726f70"] {
        refused_jid(
            &format!("f6 ff0112 0003 {server}"),
            11,
            Malformed::JidServer,
        );
    }
    // Wherever an interop JID with another server stands, the frame is refused: the server is one item too many.
    for server in ["03", "76", "cc", "00", "fc03627573", "f8011a"] {
        let user = format!("f5 ff0112 0003 0002 {server}");
        for frame in [
            format!("00f8031a0c {user}"),
            format!("00f8051a0c {user} 0855"),
            format!("00f8061a0c {user} 0855 fc0101"),
            format!("00f8041a0c {user} fc0101"),
            format!("00f8041a0c {user} f801f80113"),
            format!("00f80271 f802 f8031a0c {user} f80113"),
            format!("00f80271 f802 f8041a0c {user} f801f80113 f80113"),
            format!("00f8021a {user}"),
        ] {
            assert!(decode_owned(&hex(&frame)).is_err(), "{frame}");
        }
    }
}

#[test]
fn text_is_utf8() {
    refused("00f8031a0c fc03 61ff62", 8, Malformed::Utf8);
    refused("00f801 fc02 61c3", 6, Malformed::Utf8);
    refused("00f8031a fc01ff 55", 6, Malformed::Utf8);
    refused_jid("fa fc0180 03", 8, Malformed::Utf8);
    // Bytes as content are never text.
    accepted("00f8021a fc02 c328", &Node::new("t").bytes(hex("c328")));
}

#[test]
fn long_forms_of_short_things() {
    let node = Node::new("t").attr("jid", "x").bytes(vec![7]);
    accepted("00f90004 1a 0c fc0178 fc0107", &node);
    accepted("00f8041a 0c fd000001 78 fe00000001 07", &node);
    accepted(
        "00f80271 f90001 f8011a",
        &Node::new("list").child(Node::new("t")),
    );
}

#[test]
fn the_upper_bits_of_a_20_bit_length_mean_nothing() {
    accepted("00f8021a fdf00001 07", &Node::new("t").bytes(vec![7]));
}

#[test]
fn a_broken_compressed_stream() {
    let good = hex("02789cfbc129c9f19f456d63f342b170164dc15f0ccc003d9e05c9");
    assert!(decode_owned(&good).is_ok());
    for length in 1..good.len() {
        let error = decode_owned(&good[..length]).expect_err("a part of it");
        assert_eq!(
            error,
            NodeError::Malformed {
                position: length,
                what: Malformed::Truncated
            }
        );
    }
    for at in 1..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        assert!(decode_owned(&bad).is_err(), "byte {at}");
    }
    assert!(matches!(
        decode_owned(&hex("02 0000")),
        Err(NodeError::Malformed {
            what: Malformed::Zlib,
            ..
        })
    ));
    // A whole stream that holds nothing.
    refused("02 789c030000000001", 1, Malformed::Truncated);
}

fn compressed(node_bytes: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut deflate = ZlibEncoder::new(vec![0x02], Compression::fast());
    for part in node_bytes {
        std::io::Write::write_all(&mut deflate, &part).unwrap();
    }
    deflate.finish().unwrap()
}

#[test]
fn a_zip_bomb_stops_at_the_limit() {
    let bomb =
        compressed(std::iter::once(hex("f8021a fe7fffffff")).chain(vec![vec![0; 1 << 20]; 256]));
    assert!(bomb.len() < 4 << 20, "256 MiB in {} bytes", bomb.len());
    let mut scratch = Scratch::new();
    let error = decode(&bomb, &mut scratch).expect_err("too large");
    assert!(matches!(
        error,
        NodeError::Malformed {
            what: Malformed::TooLarge,
            ..
        }
    ));
    assert!(
        scratch.allocated() <= limits::INFLATED + 1,
        "{}",
        scratch.allocated()
    );

    // One byte over, and the same without compression.
    let body = [hex("f8021a fe00fffff9"), vec![0; (16 << 20) - 7]].concat();
    assert_eq!(body.len(), limits::INFLATED + 1);
    for payload in [compressed([body.clone()]), [vec![0], body].concat()] {
        let error = decode_owned(&payload).expect_err("too large");
        assert_eq!(
            error,
            NodeError::Malformed {
                position: limits::INFLATED + 1,
                what: Malformed::TooLarge
            }
        );
    }
}

/// The memory for it grows in steps, and no step may end where the stream seems to.
#[test]
fn a_stream_is_read_whole_however_far_it_inflates() {
    let node = |length: usize| Node::new("t").bytes(vec![0; length]);
    for length in (0..40_000).step_by(331) {
        let stream = compressed([encoded(&node(length))[1..].to_vec()]);
        assert_eq!(decode_owned(&stream), Ok(node(length)));
    }
    // The most there may be, in steps that are powers of two: they follow the length of what came, and bytes behind the
    // stream belong to that.
    let around = encoded(&node(1 << 20)).len() - (1 << 20);
    let longest = node(1 + limits::INFLATED - around);
    let mut stream = compressed([encoded(&longest)[1..].to_vec()]);
    stream.resize(1 + stream.len().next_power_of_two(), 0);
    assert_eq!(decode_owned(&stream), Ok(longest));
}

#[test]
fn the_position_of_a_broken_stream_is_within_it() {
    let good =
        compressed([encoded(&Node::new("t").bytes((0..=255).collect::<Vec<u8>>()))[1..].to_vec()]);
    for at in 1..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        if let Err(NodeError::Malformed {
            position,
            what: Malformed::Zlib,
        }) = decode_owned(&bad)
        {
            assert!(position <= bad.len(), "{position} for byte {at}");
        }
    }
}

#[test]
fn the_memory_that_is_held_is_known() {
    let mut scratch = Scratch::new();
    assert_eq!(scratch.allocated(), 0);
    let node = Node::new("t").children(vec![Node::new("t"); 1000]);
    decode(&encoded(&node), &mut scratch).unwrap();
    // Four words of tape for a node.
    let tape = scratch.allocated();
    assert!((4 * 4 * 1001..65_536).contains(&tape), "{tape}");
    let body = encoded(&node)[1..].to_vec();
    let length = body.len();
    decode(&compressed([body]), &mut scratch).unwrap();
    let both = scratch.allocated();
    assert!((tape + length..tape + 65_536).contains(&both), "{both}");
}

#[test]
fn nesting_ends_at_128_levels() {
    let nested = |levels: usize| format!("00 {} f80171", "f80271f801".repeat(levels - 1));
    assert!(decode_owned(&hex(&nested(128))).is_ok());
    refused(&nested(129), 1 + 128 * 5, Malformed::TooDeep);
    refused(&nested(100_000), 1 + 128 * 5, Malformed::TooDeep);
}

#[test]
fn attributes_end_at_1024() {
    let attributes =
        |count: usize| format!("00 f9{:04x} 1a {}", 1 + 2 * count, "0855".repeat(count));
    assert!(decode_owned(&hex(&attributes(1024))).is_ok());
    refused(&attributes(1025), 1, Malformed::TooManyAttributes);
}

#[test]
fn many_small_nodes_end_at_the_limit() {
    // Four lists of 65,535 nodes: one byte less than 3 per node, four words of tape each.
    let list = [hex("f80271 f9ffff"), hex("f8013f").repeat(0xFFFF)].concat();
    let frame = |lists: u8| {
        [
            hex("00 f80271"),
            vec![0xF8, lists],
            list.repeat(usize::from(lists)),
        ]
        .concat()
    };
    let mut scratch = Scratch::new();
    assert!(decode(&frame(3), &mut scratch).is_ok());
    // With the root and the lists one node too many; so without the last one it is what is allowed.
    let mut most = frame(4);
    let last = most.len() - 3 * 0xFFFF - 2;
    assert_eq!(most[last..last + 2], [0xFF, 0xFF]);
    most[last + 1] = 0xFE;
    most.truncate(most.len() - 3);
    assert!(decode(&most, &mut scratch).is_ok());
    assert_eq!(2 * (1 + 4 + 4 * 0xFFFF - 1), limits::ELEMENTS);
    // An attribute is an element, too.
    most.truncate(most.len() - 3);
    most.extend(hex("f8033f0855"));
    assert!(matches!(
        decode(&most, &mut scratch),
        Err(NodeError::Malformed {
            what: Malformed::TooManyElements,
            ..
        })
    ));
    let error = decode(&frame(4), &mut scratch).expect_err("more than 2^18 nodes");
    assert!(matches!(
        error,
        NodeError::Malformed {
            what: Malformed::TooManyElements,
            ..
        }
    ));
    assert!(scratch.allocated() <= 8 << 20);
}
