//! What is said and what is heard: a service between which and the engines sit clients that do not listen, or do not
//! know better, and a few that only the service could be.

use super::{Bug, World};
use crate::{service::Tamper, world::cover::owner_of};
use baton_core::{
    crypto::{KeyPair, PrivateKey, PublicKey, Rng},
    jid::Jid,
    proto::sync::SyncdPatch,
    wire::node::{Content, Node, Value},
};
use prost::Message as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

/// Receipts of a device that are lost, of those that are.
const RECEIPTS: usize = 12;

/// Who wants something again from an account, and has not got it.
type Wishes = Arc<Mutex<BTreeSet<(usize, Jid)>>>;

/// What becomes of a stanza of an account.
type Habit = Box<dyn FnMut(usize, Node) -> Option<Node> + Send>;

impl World {
    /// Puts deaf and mute clients between the service and the engines.
    pub(in crate::world) fn installs(&mut self) {
        let wishes = Wishes::default();
        let deaf: Vec<Habit> = (self.bugs()).filter_map(|bug| deaf(bug, &wishes)).collect();
        let mute: Vec<Habit> = (self.bugs()).filter_map(|bug| mute(bug, &wishes)).collect();
        if !deaf.is_empty() {
            self.service.tamper(Some(all_of(deaf)));
        }
        if !mute.is_empty() {
            self.service.overhear(Some(all_of(mute)));
        }
    }
}

fn all_of(mut habits: Vec<Habit>) -> Tamper {
    Box::new(move |conn, node| {
        let mut left = Some(node);
        for habit in &mut habits {
            left = left.and_then(|node| habit(owner_of(conn), node));
        }
        left.into_iter().collect()
    })
}

fn kind(node: &Node) -> Option<String> {
    node.get_string("type")
}

fn is_retry(node: &Node) -> bool {
    node.tag() == "receipt" && kind(node).as_deref() == Some("retry")
}

fn set(node: &mut Node, name: &str, value: impl Into<Value> + Clone) {
    let attrs = node.attrs.iter_mut();
    for (_, old) in attrs.filter(|(known, _)| known.as_str() == name) {
        *old = value.clone().into();
    }
}

fn children(node: &mut Node) -> &mut [Node] {
    match &mut node.content {
        Content::Nodes(children) => children,
        _ => &mut [],
    }
}

/// Every node of a name, however deep.
fn each(node: &mut Node, tag: &str, with: &mut impl FnMut(&mut Node)) {
    for child in children(node) {
        if child.tag() == tag {
            with(child);
        }
        each(child, tag, with);
    }
}

fn without(mut node: Node, tag: &str) -> Node {
    if let Content::Nodes(children) = &mut node.content {
        children.retain(|child| child.tag() != tag);
    }
    node
}

fn only_if(heeds: impl Fn(&Node) -> bool + Send + 'static) -> Habit {
    Box::new(move |_, node| heeds(&node).then_some(node))
}

fn changed(mut with: impl FnMut(&mut Node) + Send + 'static) -> Habit {
    Box::new(move |_, mut node| {
        with(&mut node);
        Some(node)
    })
}

fn is_notification(node: &Node, of: &str) -> bool {
    node.tag() == "notification" && kind(node).as_deref() == Some(of)
}

/// What the service says, as a client hears it that does not listen.
fn deaf(bug: Bug, wishes: &Wishes) -> Option<Habit> {
    let wishes = Arc::clone(wishes);
    Some(match bug {
        // It hears everything, and remembers who will have to ask the service for a bundle.
        Bug::RetryBundlesRefused => Box::new(move |account, node| {
            let who = node.get_jid("participant").or_else(|| node.get_jid("from"));
            if let (Some(who), true, Ok(mut wishes)) = (who, is_retry(&node), wishes.lock()) {
                wishes.insert((account, who));
            }
            Some(node)
        }),
        Bug::IgnoresRetry => only_if(|node| !is_retry(node)),
        Bug::RetryKeysUnused => Box::new(|_, node| {
            Some(match is_retry(&node) {
                true => without(node, "keys"),
                false => node,
            })
        }),
        Bug::AckIgnored => {
            only_if(|node| node.tag() != "ack" || node.get_str("class") != Some("message"))
        }
        Bug::PreKeyNoticeIgnored => only_if(|node| !is_notification(node, "encrypt")),
        Bug::SettingsNoticeIgnored => only_if(|node| !is_notification(node, "server_sync")),
        Bug::PreKeyNoticeTaken => changed(|node| {
            if is_notification(node, "encrypt") && node.find("count").is_some() {
                set(node, "type", "something");
            }
        }),
        // The first time there are none yet, and that is not overlooked.
        Bug::PreKeyCountIgnored => {
            let mut linked: BTreeSet<usize> = BTreeSet::new();
            Box::new(move |account, mut node| {
                if node.tag() == "iq" {
                    each(&mut node, "count", &mut |count| {
                        if !linked.insert(account) {
                            set(count, "value", "812");
                        }
                    });
                }
                Some(node)
            })
        }
        Bug::ReceiptsTaken => Box::new(|_, node| {
            let heeded = node.tag() == "receipt" && !is_retry(&node);
            Some(match heeded {
                true => {
                    let mut other = node;
                    other.attrs.retain(|(name, _)| name.as_str() != "type");
                    other.attr("type", "something")
                }
                false => node,
            })
        }),
        Bug::PreKeyGivenAgain => {
            let mut given: BTreeMap<Jid, Node> = BTreeMap::new();
            changed(move |node| {
                if node.tag() == "iq" {
                    each(node, "user", &mut |user| {
                        let Some(jid) = user.get_jid("jid") else {
                            return;
                        };
                        for key in children(user).iter_mut().filter(|key| key.tag() == "key") {
                            *key = given
                                .entry(jid.clone())
                                .or_insert_with(|| key.clone())
                                .clone();
                        }
                    });
                }
            })
        }
        _ => return None,
    })
}

/// The devices of the recipient, or of the sender's own account, among those that a message is for.
fn participants(node: &mut Node, mut keeps: impl FnMut(bool) -> bool) {
    if node.tag() != "message" {
        return;
    }
    let to = node.get_jid("to");
    let theirs = |device: &Node| {
        let jid = device.get_jid("jid");
        jid.zip(to.as_ref())
            .is_some_and(|(jid, to)| jid.same_user(to))
    };
    for child in children(node) {
        if child.tag() == "participants"
            && let Content::Nodes(devices) = &mut child.content
        {
            devices.retain(|device| keeps(theirs(device)));
        }
    }
}

/// What a client says, as one says it that does not know better.
fn mute(bug: Bug, wishes: &Wishes) -> Option<Habit> {
    let wishes = Arc::clone(wishes);
    Some(match bug {
        Bug::RetryNeverAsked => only_if(|node| !is_retry(node)),
        Bug::AcksUndecryptable => changed(|node| {
            if is_retry(node) {
                node.attrs.retain(|(name, _)| name != "type");
                node.content = Content::None;
            }
        }),
        Bug::RetryWithoutKeys => Box::new(|_, node| {
            Some(match node.tag() == "receipt" {
                true => without(node, "keys"),
                false => node,
            })
        }),
        Bug::NoReceipts => only_if(|node| {
            node.tag() != "receipt" || kind(node).is_some_and(|kind| kind != "inactive")
        }),
        Bug::HistoryUnreceipted => only_if(|node| {
            let of = kind(node).is_some_and(|kind| kind == "hist_sync" || kind == "peer_msg");
            node.tag() != "receipt" || !of
        }),
        Bug::NotificationsUnacked => {
            only_if(|node| node.tag() != "ack" || node.get_str("class") != Some("notification"))
        }
        Bug::ReceiptsUnacked => {
            only_if(|node| node.tag() != "ack" || node.get_str("class") != Some("receipt"))
        }
        Bug::WrongAckId => changed(|node| {
            if node.tag() == "ack" {
                set(node, "id", "another");
            }
        }),
        Bug::NewIdOnRepeat => {
            let mut sent: BTreeSet<String> = BTreeSet::new();
            changed(move |node| {
                let id = node.get_string("id").unwrap_or_default();
                if node.tag() == "message" && !sent.insert(id.clone()) {
                    set(node, "id", format!("{id}B").as_str());
                }
            })
        }
        Bug::OwnCopiesForgotten => changed(|node| participants(node, |theirs| theirs)),
        Bug::OneDeviceOnly => changed(|node| {
            let mut first = true;
            participants(node, |theirs| {
                !theirs || std::mem::replace(&mut first, false)
            });
        }),
        Bug::PreKeyIdsWrap => changed(|node| {
            if node.tag() == "iq" {
                each(node, "list", &mut |list| {
                    each(list, "id", &mut |id| {
                        let last = id.data().and_then(<[u8]>::last).copied().unwrap_or(0);
                        id.content = Content::Bytes(vec![0, 0, last % 16 + 1].into());
                    });
                });
            }
        }),
        Bug::ResendsGarbled => changed(|node| {
            if node.get_str("device_fanout") == Some("false") {
                each(node, "enc", &mut garble);
            }
        }),
        Bug::LidAsPhone => changed(|node| {
            if node.tag() == "message"
                && node.get_str("category") != Some("peer")
                && let Some(to) = node.get_jid("to").filter(Jid::is_lid)
                && let Ok(other) = Jid::pn(to.user())
            {
                set(node, "to", &other);
            }
        }),
        Bug::IdentityRemade => changed(|node| {
            if is_upload(node) {
                remake(node);
            }
        }),
        Bug::PatchMacWrong => changed(|node| {
            if node.get_str("xmlns") == Some("w:sync:app:state") {
                each(node, "patch", &mut |patch| {
                    let Some(mut made) =
                        patch.data().and_then(|data| SyncdPatch::decode(data).ok())
                    else {
                        return;
                    };
                    made.snapshot_mac = Some(vec![7; 32]);
                    patch.content = Content::Bytes(made.encode_to_vec().into());
                });
            }
        }),
        Bug::UploadsOnce => {
            let mut done: BTreeSet<usize> = BTreeSet::new();
            Box::new(move |account, node| {
                (!is_upload(&node) || done.insert(account)).then_some(node)
            })
        }
        Bug::RetryBundlesRefused => Box::new(move |account, node| {
            let asks = node.tag() == "iq" && node.get_str("xmlns") == Some("encrypt");
            let users = node
                .find("key")
                .filter(|_| asks)
                .map_or(&[][..], Node::nodes);
            if let ([user], Ok(mut wishes)) = (users, wishes.lock())
                && let Some(jid) = user.get_jid("jid")
                && wishes.remove(&(account, jid))
            {
                return None;
            }
            Some(node)
        }),
        Bug::ReceiptsLost => {
            let mut lost: BTreeMap<usize, usize> = BTreeMap::new();
            Box::new(move |account, node| {
                let taken = node.tag() == "receipt"
                    && kind(&node).is_none_or(|kind| kind == "inactive" || kind == "sender");
                let count = lost.entry(account).or_default();
                *count += usize::from(taken);
                (!taken || *count > RECEIPTS).then_some(node)
            })
        }
        Bug::DevicesOnce => {
            let mut told: BTreeSet<(usize, Jid)> = BTreeSet::new();
            Box::new(move |account, node| {
                let users = node.path(&["usync", "list"]).map_or(&[][..], Node::nodes);
                let mut fresh = users.is_empty();
                for jid in users.iter().filter_map(|user| user.get_jid("jid")) {
                    fresh |= told.insert((account, jid));
                }
                fresh.then_some(node)
            })
        }
        // Questions to the phone are messages, too.
        Bug::KeysToldOnce => {
            only_if(|node| node.tag() != "message" || node.get_str("category") != Some("peer"))
        }
        _ => return None,
    })
}

fn is_upload(node: &Node) -> bool {
    node.tag() == "iq"
        && node.get_str("xmlns") == Some("encrypt")
        && node.find("list").is_some()
        && kind(node).as_deref() == Some("set")
}

/// An upload with another identity, which has signed what it has to.
fn remake(node: &mut Node) {
    let Ok(private) = PrivateKey::from_slice(&[7; 32]) else {
        return;
    };
    let identity = KeyPair::from_private(private);
    let signed = node.path(&["skey", "value"]).and_then(Node::data);
    let Some(signed) = signed.and_then(|bytes| PublicKey::from_slice(bytes).ok()) else {
        return;
    };
    let mut rng = Rng::from_seed([7; 32]);
    let signature = identity.private.sign(&[&signed.serialize()], &mut rng);
    each(node, "signature", &mut |node| {
        node.content = Content::Bytes(signature.as_bytes().to_vec().into());
    });
    each(node, "identity", &mut |node| {
        node.content = Content::Bytes(identity.public.as_bytes().to_vec().into());
    });
}

/// Another last byte.
fn garble(node: &mut Node) {
    let mut bytes = node.data().unwrap_or_default().to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 0x55;
    }
    node.content = Content::Bytes(bytes.into());
}
