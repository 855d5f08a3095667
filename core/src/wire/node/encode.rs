//! From a node to a frame's plaintext: of the forms a peer would accept, always the one of ch. 02.10.
//!
//! All known clients read it, and equal nodes give equal bytes: tokens before packed digits before raw text, the
//! shortest list headers, attributes in the order they were set, empty attributes left out, no compression.
//! A text is never guessed to be a JID; a [`Value::Jid`] is one.

use super::error::{NodeError, Unwritable};
use super::lookup::{self, Token};
use super::value::{Content, Node, Value};
use super::{limits, tag};
use crate::jid::{Jid, Server};

/// Appends a frame's plaintext, flag byte and node, to `out`.
///
/// # Errors
///
/// [`NodeError::Unwritable`] for what the format cannot express; `out` is then as it was.
pub fn encode(node: &Node, out: &mut Vec<u8>) -> Result<(), NodeError> {
    let before = out.len();
    out.push(0);
    write_node(node, 0, out).map_err(|error| {
        out.truncate(before);
        NodeError::Unwritable(error)
    })
}

fn write_node(node: &Node, depth: usize, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    if depth >= limits::DEPTH {
        return Err(Unwritable::TooDeep);
    }
    let attributes = node
        .attrs
        .iter()
        .filter(|(_, value)| !value.is_absent())
        .count();
    if attributes > limits::ATTRIBUTES {
        return Err(Unwritable::TooManyAttributes);
    }
    let content = usize::from(!matches!(node.content, Content::None));
    // At most 2,050 items: the attribute limit is far below what a list can count.
    write_list(1 + 2 * attributes + content, out)?;
    write_name(&node.tag, out)?;
    for (key, value) in &node.attrs {
        if value.is_absent() {
            continue;
        }
        write_name(key, out)?;
        match value {
            Value::Text(text) => write_text(text, out)?,
            Value::Jid(jid) => write_jid(jid, out)?,
        }
    }
    match &node.content {
        Content::None => Ok(()),
        Content::Nodes(nodes) => {
            write_list(nodes.len(), out)?;
            nodes
                .iter()
                .try_for_each(|node| write_node(node, depth + 1, out))
        }
        Content::Bytes(bytes) => write_raw(bytes, out),
        Content::Text(text) => write_text(text, out),
    }
}

fn write_list(size: usize, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    let [high, low] = u16::try_from(size)
        .map_err(|_| Unwritable::TooManyChildren)?
        .to_be_bytes();
    match (high, low) {
        (0, 0) => out.push(tag::EMPTY),
        (0, low) => out.extend_from_slice(&[tag::LIST_8, low]),
        (high, low) => out.extend_from_slice(&[tag::LIST_16, high, low]),
    }
    Ok(())
}

fn write_name(name: &str, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    if name.is_empty() {
        return Err(Unwritable::EmptyName);
    }
    write_text(name, out)
}

/// Packed strings are no longer than this, whatever a decoder would take (VERIFIED, ch. 02.4).
const LONGEST_PACKED: usize = 127;

fn write_text(text: &str, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    let bytes = text.as_bytes();
    // Which alphabets the text fits tells in most cases whether a look-up is worth while at all.
    let alphabets = if bytes.len() <= LONGEST_PACKED {
        alphabets(bytes)
    } else {
        0
    };
    let may_be_token = match alphabets {
        0 => true,
        _ => bytes.len() <= lookup::LONGEST_DIGITS,
    };
    if may_be_token && let Some(token) = lookup::find(text) {
        match token {
            Token::Single(index) => out.push(index),
            Token::Double(dictionary, index) => out.extend_from_slice(&[dictionary, index]),
        }
        return Ok(());
    }
    match alphabets {
        0 => write_raw(bytes, out),
        _ if alphabets & NIBBLE != 0 => {
            write_packed(tag::NIBBLE_8, bytes, out);
            Ok(())
        }
        _ => {
            write_packed(tag::HEX_8, bytes, out);
            Ok(())
        }
    }
}

fn write_raw(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
    if bytes.len() > limits::INFLATED {
        return Err(Unwritable::TooLong);
    }
    let [d, c, b, a] = (bytes.len() as u32).to_le_bytes();
    match bytes.len() {
        0..=0xFF => out.extend_from_slice(&[tag::BINARY_8, d]),
        0x100..=0xF_FFFF => out.extend_from_slice(&[tag::BINARY_20, b, c, d]),
        _ => out.extend_from_slice(&[tag::BINARY_32, a, b, c, d]),
    }
    out.extend_from_slice(bytes);
    Ok(())
}

const NIBBLE: u8 = 1 << 4;
const HEX: u8 = 1 << 5;

/// Per character: its half byte, and the alphabets it is in. 10 and 11 mean different characters in the two, but none
/// of `-`, `.`, `A`, `B` is in both.
static PACKING: [u8; 256] = packing();

const fn packing() -> [u8; 256] {
    let mut table = [0; 256];
    let mut half = 0;
    while half < 16 {
        table[b"0123456789ABCDEF"[half as usize] as usize] = HEX | half;
        half += 1;
    }
    half = 0;
    while half < 12 {
        table[b"0123456789-."[half as usize] as usize] |= NIBBLE | half;
        half += 1;
    }
    table
}

fn packing_of(character: u8) -> u8 {
    PACKING.get(usize::from(character)).copied().unwrap_or(0)
}

/// The alphabets all characters are in; none for the empty text.
fn alphabets(bytes: &[u8]) -> u8 {
    let mut all = if bytes.is_empty() { 0 } else { NIBBLE | HEX };
    for byte in bytes {
        all &= packing_of(*byte);
        if all == 0 {
            break;
        }
    }
    all & (NIBBLE | HEX)
}

fn write_packed(form: u8, characters: &[u8], out: &mut Vec<u8>) {
    let (pairs, odd) = characters.as_chunks::<2>();
    let length = characters.len().div_ceil(2) as u8 | (odd.len() as u8) << 7;
    let half = |character: u8| packing_of(character) & 0x0F;
    out.extend_from_slice(&[form, length]);
    out.extend(
        pairs
            .iter()
            .map(|[high, low]| half(*high) << 4 | half(*low)),
    );
    out.extend(odd.iter().map(|last| half(*last) << 4 | 0x0F));
}

fn write_jid(jid: &Jid, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    let (user, server) = (jid.user(), jid.server());
    if user.is_empty() {
        out.extend_from_slice(&[tag::JID_PAIR, tag::EMPTY]);
        return write_server(server, out);
    }
    match (server, server.domain()) {
        // A hosted JID is written in this form even for device 0: everyone reads both, and this one is shorter.
        (_, Some(domain)) if jid.device() > 0 || domain > 1 => {
            let device =
                u8::try_from(jid.device()).map_err(|_| Unwritable::Device(jid.device()))?;
            out.extend_from_slice(&[tag::AD_JID, domain, device]);
            write_text(user, out)
        }
        (Server::Messenger, _) => {
            out.push(tag::FB_JID);
            write_text(user, out)?;
            out.extend_from_slice(&jid.device().to_be_bytes());
            write_server(server, out)
        }
        (Server::Interop, _) => {
            out.push(tag::INTEROP_JID);
            write_text(user, out)?;
            out.extend_from_slice(&jid.device().to_be_bytes());
            out.extend_from_slice(&jid.integrator().to_be_bytes());
            write_server(server, out)
        }
        _ if jid.device() > 0 => Err(Unwritable::NoDevices),
        _ => {
            out.push(tag::JID_PAIR);
            write_text(user, out)?;
            write_server(server, out)
        }
    }
}

fn write_server(server: Server, out: &mut Vec<u8>) -> Result<(), Unwritable> {
    write_text(server.as_str(), out)
}
