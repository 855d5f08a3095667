//! The pieces of a message stanza.

use crate::{
    crypto::sha256,
    flow::{Context, devices},
    jid::Jid,
    proto::e2e,
    signal::{self, CiphertextKind},
    state::{Key, MessageId, codec},
    wire::node::Node,
};
use prost::Message as _;

/// Encrypts for one device and writes its session; `<enc>`. `first` is set if the recipient needs to see who we are.
pub(crate) fn encrypt(
    cx: &mut Context,
    device: &Jid,
    content: &[u8],
    first: &mut bool,
) -> Option<Node> {
    let key = Key::Session(device.clone());
    let mut session = devices::session(cx, &key)?;
    let padded = signal::pad(content, &mut cx.rng);
    let ciphertext = match signal::encrypt(&mut session, &cx.account.local(), &padded) {
        Ok(ciphertext) => ciphertext,
        Err(error) => {
            cx.protocol_error(format!("a session cannot encrypt: {error}"));
            return None;
        }
    };
    cx.put(key, codec::wrap(&session.encode()));
    let kind = match ciphertext.kind {
        CiphertextKind::Message => "msg",
        CiphertextKind::PreKey => {
            *first = true;
            "pkmsg"
        }
    };
    Some(
        Node::new("enc")
            .attr("v", "2")
            .attr("type", kind)
            .bytes(ciphertext.bytes),
    )
}

/// The copy for our own other devices: the message, and where it went.
pub(crate) fn device_sent(content: &[u8], to: &Jid) -> Vec<u8> {
    let context = e2e::Message::decode(content)
        .ok()
        .and_then(|message| message.message_context_info);
    e2e::Message {
        device_sent_message: Some(e2e::DeviceSentMessage {
            destination_jid: Some(to.to_string()),
            message: Some(content.to_vec()),
            phash: None,
        }),
        message_context_info: context,
        ..Default::default()
    }
    .encode_to_vec()
}

/// The stanza's `type`, and its `edit` if it changes another message (fact sheet 07.4).
pub(crate) fn stanza_type(content: &[u8]) -> (&'static str, Option<&'static str>) {
    let Ok(message) = e2e::Message::decode(content) else {
        return ("text", None);
    };
    if let Some(reaction) = &message.reaction_message {
        let removed = reaction.text.as_deref().unwrap_or_default().is_empty();
        return ("reaction", removed.then_some("7"));
    }
    if let Some(protocol) = &message.protocol_message {
        // 0 revokes, 14 edits.
        return (
            "text",
            if protocol.r#type == Some(14) {
                Some("1")
            } else {
                (protocol.r#type.unwrap_or(0) == 0).then_some("7")
            },
        );
    }
    if message.edited_message.is_some() {
        return ("text", Some("1"));
    }
    let text = message.conversation.is_some()
        || message.extended_text_message.is_some()
        || message.ephemeral_message.is_some();
    (if text { "text" } else { "media" }, None)
}

/// A fresh message id (fact sheet 07.1): `3EB0` and 18 hexadecimal digits of a hash over time, user and 16 random bytes.
#[must_use]
pub fn message_id(user: &str, unix_secs: i64, random: &[u8; 16]) -> MessageId {
    use std::fmt::Write as _;
    let hash = sha256(&[&unix_secs.to_be_bytes(), user.as_bytes(), b"@c.us", random]);
    let mut id = String::with_capacity(22);
    id.push_str("3EB0");
    for byte in hash.iter().take(9) {
        let _ = write!(id, "{byte:02X}");
    }
    id.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_have_the_form_of_the_web_client() {
        // vectors/misc.json checks the formula; this checks the alphabet and the length.
        let id = message_id("15550000001", 1_700_000_000, &[7; 16]);
        assert_eq!(id.len(), 22);
        assert!(
            id.starts_with("3EB0")
                && id
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
        );
        assert_ne!(id, message_id("15550000001", 1_700_000_001, &[7; 16]));
    }

    #[test]
    fn stanza_types_follow_the_content() {
        let kind = |message: e2e::Message| stanza_type(&message.encode_to_vec());
        assert_eq!(
            kind(e2e::Message {
                conversation: Some("x".into()),
                ..Default::default()
            }),
            ("text", None)
        );
        let reaction = |text: &str| e2e::Message {
            reaction_message: Some(e2e::ReactionMessage {
                text: Some(text.into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(kind(reaction("👍")), ("reaction", None));
        assert_eq!(kind(reaction("")), ("reaction", Some("7")));
        let protocol = |kind: i32| e2e::Message {
            protocol_message: Some(Box::new(e2e::ProtocolMessage {
                r#type: Some(kind),
                ..Default::default()
            })),
            ..Default::default()
        };
        assert_eq!(kind(protocol(0)), ("text", Some("7")));
        assert_eq!(kind(protocol(14)), ("text", Some("1")));
        // Field 3, an image: unknown to our schema, known to be no text.
        assert_eq!(stanza_type(&[0x1a, 0x00]), ("media", None));
    }
}
