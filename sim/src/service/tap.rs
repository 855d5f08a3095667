//! What goes over the connections, in a few words, for whoever draws it. Nobody else asks, and then nothing is kept.

use baton_core::wire::node::{Content, Node};
use smol_str::SmolStr;
use std::collections::VecDeque;

/// A stanza in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stanza {
    /// Tag, type and what is in it.
    pub(crate) words: String,
    /// The message that it is about, if it is about one.
    pub(crate) id: Option<SmolStr>,
}

impl Stanza {
    fn of(node: &Node) -> Self {
        let mut words = node.tag().to_owned();
        let mut say = |word: Option<String>| {
            if let Some(word) = word {
                words.push(' ');
                words.push_str(&word);
            }
        };
        for name in ["class", "type", "xmlns", "category", "code", "count"] {
            say(node.get_string(name));
        }
        let about = matches!(node.tag(), "message" | "receipt" | "ack");
        if let Content::Nodes(children) = &node.content
            && let Some(first) = children.first()
            && node.tag() != "message"
        {
            say(Some(format!("<{}>", first.tag())));
        }
        if let Some(to) = node.get_jid("to").or_else(|| node.get_jid("from")) {
            let way = if node.get_jid("to").is_some() {
                "to"
            } else {
                "from"
            };
            say(Some(format!("{way} {to}")));
        }
        let id = node.get_string("id");
        say(id.clone());
        Self {
            words,
            id: id.filter(|_| about).map(SmolStr::from),
        }
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    /// One for each message that is on its way out, in order; none for a handshake.
    said: VecDeque<Option<Stanza>>,
    /// Stanzas that came in.
    heard: Vec<Stanza>,
}

impl Tap {
    pub(super) fn says(&mut self, node: Option<&Node>) {
        self.said.push_back(node.map(Stanza::of));
    }

    pub(super) fn hears(&mut self, node: &Node) {
        self.heard.push(Stanza::of(node));
    }

    /// What the next message to a client is, which has just been polled.
    pub(crate) fn said(&mut self) -> Option<Stanza> {
        self.said.pop_front().flatten()
    }

    /// What has come in since this was asked last.
    pub(crate) fn heard(&mut self) -> Vec<Stanza> {
        std::mem::take(&mut self.heard)
    }
}
