//! Every IQ is answered: silence costs a client a minute, and they ask in series (chapter 10.6.4).

use super::{DeviceId, Now, Service, faults};
use baton_core::jid::Jid;
use baton_core::wire::node::Node;

/// What an IQ comes to: the child of the result, if it has one.
pub(super) type Answer = Result<Option<Node>, IqError>;

/// An error answer. One client compares code and text, so they come in the pairs it knows (chapter 04.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IqError {
    code: u16,
    text: &'static str,
}

impl IqError {
    pub(super) const BAD_REQUEST: Self = Self {
        code: 400,
        text: "bad-request",
    };
    pub(super) const FORBIDDEN: Self = Self {
        code: 403,
        text: "forbidden",
    };
    pub(super) const NOT_FOUND: Self = Self {
        code: 404,
        text: "item-not-found",
    };
    pub(super) const NOT_ACCEPTABLE: Self = Self {
        code: 406,
        text: "not-acceptable",
    };
    pub(super) const NOT_IMPLEMENTED: Self = Self {
        code: 501,
        text: "feature-not-implemented",
    };

    /// `<error code text/>`
    pub(super) fn node(self) -> Node {
        Node::new("error")
            .attr("code", self.code)
            .attr("text", self.text)
    }
}

/// What follows an answer, once it is on the wire.
enum Then {
    Nothing,
    /// The answer is lost on the way.
    Silence,
    Activate,
    Unlink(DeviceId),
}

impl Service {
    /// An IQ of a device that is logged in.
    pub(super) fn on_iq(&mut self, device: &DeviceId, iq: &Node, now: Now) {
        match iq.get_str("type") {
            // Answers to pings and the like; we ask nothing that we need an answer to.
            Some("result" | "error") => return,
            Some("get" | "set") | None => {}
            Some(_) => return self.anomaly(device, "iq of unknown type", now),
        }
        if self
            .faults
            .strikes(device, faults::Kind::IgnoreIq)
            .is_some()
        {
            return;
        }
        let Some(answer) = ({
            let (answer, then) = self.answer(device, iq, now);
            if matches!(then, Then::Silence) {
                return;
            }
            respond(iq, answer).map(|node| (node, then))
        }) else {
            return self.anomaly(device, "iq without id", now);
        };
        let (node, then) = answer;
        self.reply(device, &node, now);
        match then {
            Then::Nothing | Then::Silence => {}
            Then::Activate => self.activate(device, now),
            Then::Unlink(gone) => self.unlink_device(&gone, now),
        }
    }

    fn answer(&mut self, device: &DeviceId, iq: &Node, now: Now) -> (Answer, Then) {
        let set = iq.get_str("type") == Some("set");
        let answer = match iq.get_str("xmlns").unwrap_or_default() {
            "w:p" => Ok(None),
            "passive" if set && iq.find("active").is_some() => return (Ok(None), Then::Activate),
            "passive" if set => Ok(None),
            "encrypt" => self.iq_encrypt(device, iq, now),
            "usync" => self.iq_usync(device, iq),
            "md" => match self.iq_remove(device, iq) {
                Ok(gone) => return (Ok(None), Then::Unlink(gone)),
                Err(error) => Err(error),
            },
            "abt" => Ok(Some(
                Node::new("props").attr("protocol", "1").attr("hash", "sim"),
            )),
            // Asked by an older client.
            "w" => Ok(Some(Node::new("props").attr("hash", "sim"))),
            "blocklist" => Ok(Some(Node::new("list"))),
            "privacy" => Ok(privacy(iq)),
            "disappearing_mode" | "status" if set => Ok(None),
            "w:m" => Ok(Some(media_hosts(self.files.host.as_deref()))),
            "w:sync:app:state" => match self.iq_settings(device, iq, now) {
                Some(answer) => answer,
                None => return (Ok(None), Then::Silence),
            },
            "urn:xmpp:whatsapp:dirty" => Ok(None),
            "urn:xmpp:whatsapp:push" if set => Ok(None),
            "w:stats" => Ok(None),
            _ => Err(IqError::NOT_IMPLEMENTED),
        };
        (answer, Then::Nothing)
    }

    /// `<remove-companion-device jid reason/>`: a companion can remove itself, the phone any.
    fn iq_remove(&self, device: &DeviceId, iq: &Node) -> Result<DeviceId, IqError> {
        let remove = iq
            .find("remove-companion-device")
            .ok_or(IqError::NOT_IMPLEMENTED)?;
        let gone = remove
            .get_jid("jid")
            .and_then(|jid| self.accounts.resolve(&jid))
            .ok_or(IqError::NOT_FOUND)?;
        if gone == *device {
            Ok(gone)
        } else {
            Err(IqError::FORBIDDEN)
        }
    }
}

/// The answer to `iq`, sent from whom it was sent to; none if it has no id to answer to.
pub(super) fn respond(iq: &Node, answer: Answer) -> Option<Node> {
    let id = iq.get_str("id").filter(|id| !id.is_empty())?;
    // The plain token for the server is a text; answers must carry it as a JID (chapter 10.1.2).
    let from = iq.get_jid("to").unwrap_or_else(Jid::service);
    let node = Node::new("iq").attr("from", from).attr("id", id);
    Some(match answer {
        Ok(child) => node.attr("type", "result").children(child),
        Err(error) => node.attr("type", "error").child(error.node()),
    })
}

/// Settings are readable, nothing is stored: a change is answered with what was asked for.
fn privacy(iq: &Node) -> Option<Node> {
    if iq.get_str("type") == Some("set") {
        return iq.find("privacy").cloned();
    }
    const ALL: [&str; 5] = ["last", "profile", "status", "readreceipts", "groupadd"];
    let category = |name| {
        Node::new("category")
            .attr("name", name)
            .attr("value", "all")
    };
    let fixed = [
        ("online", "all"),
        ("calladd", "all"),
        ("messages", "all"),
        ("defense", "off"),
        ("stickers", "contacts"),
    ];
    let fixed = fixed.map(|(name, value)| {
        Node::new("category")
            .attr("name", name)
            .attr("value", value)
    });
    Some(
        Node::new("privacy")
            .children(ALL.map(category))
            .children(fixed),
    )
}

/// Where files are. Without a host of our own, one that does not exist: a client that asks must not hang.
fn media_hosts(host: Option<&str>) -> Node {
    Node::new("media_conn")
        .attr("auth", "sim")
        .attr("ttl", "3600")
        .attr("auth_ttl", "3600")
        .attr("max_buckets", "12")
        .child(Node::new("host").attr("hostname", host.unwrap_or("media.invalid")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::wire::node::Value;

    #[test]
    fn answers_come_from_whom_they_were_asked_as_a_jid() {
        for to in [Value::from("s.whatsapp.net"), Value::from(Jid::service())] {
            let iq = Node::new("iq")
                .attr("id", "1.2-3")
                .attr("type", "get")
                .attr("to", to);
            let answer = respond(&iq, Ok(None)).expect("it has an id");
            assert_eq!(answer.get("from"), Some(&Value::Jid(Jid::service())));
            assert_eq!(
                (answer.get_str("type"), answer.get_str("id")),
                (Some("result"), Some("1.2-3"))
            );
        }
        assert!(respond(&Node::new("iq"), Ok(None)).is_none());
    }

    #[test]
    fn error_answers_carry_code_and_text() {
        let iq = Node::new("iq").attr("id", "1");
        let answer = respond(&iq, Err(IqError::NOT_ACCEPTABLE)).expect("it has an id");
        let error = answer.find("error").expect("error");
        assert_eq!(
            (error.get_str("code"), error.get_str("text")),
            (Some("406"), Some("not-acceptable"))
        );
    }
}
