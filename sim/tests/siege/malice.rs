//! A service that says what comes into its head.

use crate::cases;
use crate::rig::{Rig, SECOND, ready};
use crate::words::{JIDS, NAMES, STANZAS, TAGS, VALUES};
use baton_core::engine::Input;
use baton_core::flow::{Command, Content, Event, Limits, SendRequest};
use baton_core::jid::Jid;
use baton_core::state::{Micros, Store};
use baton_core::wire::node::Node;
use proptest::collection::vec;
use proptest::prelude::*;

/// Outputs that one stanza may bring: a handful of effects per ciphertext, id or child that is looked at.
pub(crate) const OUTPUTS: usize = 4096;

/// Bytes that rows in use and unfinished writes may take beside the cache: the window of pre-keys, one message's rows.
pub(crate) const SLACK: usize = 2 << 20;

pub(crate) fn within_limits(rig: &Rig) {
    assert!(
        rig.outputs <= OUTPUTS,
        "{} outputs for one input",
        rig.outputs
    );
    let limit = Limits::gateway().cache_bytes.get() as usize + SLACK;
    let bytes = rig.engine.cached_bytes();
    assert!(bytes <= limit, "{bytes} bytes of rows in memory");
}

/// A peer nobody has spoken of so far gets through in both directions, on a connection of an honest service.
pub(crate) fn honest_again(rig: &mut Rig) {
    rig.honest = true;
    rig.hold = false;
    rig.commit(usize::MAX);
    if rig.stopped.is_some() {
        let (store, account) = (rig.store.clone(), rig.account.clone());
        *rig = Rig::with(store.copy(|| Micros(u64::MAX / 2)), account, 99, |_| {});
        rig.give(Input::Tick);
    } else {
        rig.hang_up();
    }
    rig.pass(400 * SECOND);
    assert!(rig.is_up(), "not connected again: {:?}", rig.said.notices);
    rig.look();
    let peer = rig.peer("900000000000009");
    let jid = rig.peers[peer].jid.clone();
    let hello = rig.text(peer, "honest-in", "hello");
    rig.say(&hello);
    let request = SendRequest {
        id: Some("honest-out".into()),
        to: jid,
        content: Content::Text("hello yourself".into()),
    };
    rig.command(Command::Send(request));
    rig.pass(30 * SECOND);
    // Events that were left over may fill the consumer's window; it acknowledges what it is shown.
    for _ in 0..20 {
        let last = rig.said.events.last().map(|(seq, _)| *seq);
        if let Some(last) = last {
            rig.command(Command::Acknowledge(last));
        }
    }
    let said = rig.look();
    let heard = said.events.iter().any(|(_, event)| {
        matches!(event, Event::Message(message) if message.id == "honest-in" && message.text.as_deref() == Some("hello"))
    });
    let sent = said
        .events
        .iter()
        .any(|(_, event)| matches!(event, Event::Sent { id, .. } if id == "honest-out"));
    assert!(
        heard && sent,
        "heard {heard}, sent {sent}: {:?} {:?}",
        said.events,
        said.notices
    );
}

/// What a service can say that is no stanza of any protocol, but looks like one.
pub(crate) fn stanza() -> impl Strategy<Value = Node> {
    let tag = proptest::sample::select(TAGS);
    let text = proptest::sample::select(VALUES);
    let jid = proptest::sample::select([JIDS, &["800000000000001:65535@lid"]].concat())
        .prop_map(|text: &str| text.parse::<Jid>().expect("an address"));
    let name = proptest::sample::select(NAMES);
    let bytes = prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 0..80),
        Just(vec![0xff; 32]),
        Just(vec![0; 33]),
        Just(vec![0x33; 70]),
    ];
    #[derive(Clone, Debug)]
    enum Inside {
        Nothing,
        Bytes(Vec<u8>),
        Text(&'static str),
    }
    let inside = prop_oneof![
        Just(Inside::Nothing),
        bytes.prop_map(Inside::Bytes),
        text.clone().prop_map(Inside::Text),
    ];
    let attrs = vec(
        (name, prop_oneof![text.prop_map(Ok), jid.prop_map(Err)]),
        0..7,
    );
    let leaf = (tag.clone(), attrs.clone(), inside).prop_map(|(tag, attrs, inside)| {
        let node = with_attrs(Node::new(tag), attrs);
        match inside {
            Inside::Nothing => node,
            Inside::Bytes(bytes) => node.bytes(bytes),
            Inside::Text(text) => node.text(text),
        }
    });
    let inner = leaf.prop_recursive(3, 24, 6, move |inner| {
        (tag.clone(), attrs.clone(), vec(inner, 0..6))
            .prop_map(|(tag, attrs, children)| with_attrs(Node::new(tag), attrs).children(children))
    });
    // The engine looks at a handful of tags first.
    let outer = proptest::sample::select(STANZAS);
    (outer, inner).prop_map(|(tag, mut node)| {
        node.tag = tag.into();
        node
    })
}

fn with_attrs(mut node: Node, attrs: Vec<(&'static str, Result<&'static str, Jid>)>) -> Node {
    let mut seen = Vec::new();
    for (name, value) in attrs {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        node = match value {
            Ok(text) => node.attr(name, text),
            Err(jid) => node.attr(name, jid),
        };
    }
    node
}

/// What a malicious service does.
#[derive(Clone, Debug)]
pub(crate) enum Malice {
    Say(Node),
    /// Answers the oldest open question with this.
    Answer(Node, bool),
    /// A real message of somebody, damaged at this place by this; `None` leaves it whole, a second time replays it.
    Cipher {
        at: usize,
        flip: u8,
        cut: usize,
        again: bool,
    },
    /// Lets the account send something to somebody, so that there are questions to answer.
    Provoke(u8),
    /// Lets time pass.
    Pass(u64),
    HangUp,
}

pub(crate) fn malice() -> impl Strategy<Value = Malice> {
    prop_oneof![
        8 => stanza().prop_map(Malice::Say),
        4 => (answer(), any::<bool>()).prop_map(|(node, good)| Malice::Answer(node, good)),
        3 => (any::<usize>(), any::<u8>(), 0..3usize, any::<bool>())
            .prop_map(|(at, flip, cut, again)| Malice::Cipher { at, flip, cut, again }),
        2 => any::<u8>().prop_map(Malice::Provoke),
        1 => (0..90 * SECOND).prop_map(Malice::Pass),
        1 => Just(Malice::HangUp),
    ]
}

/// The inside of an answer: device lists and bundles with everything wrong about them, or anything else.
pub(crate) fn answer() -> impl Strategy<Value = Node> {
    let ids = vec(
        prop_oneof![Just(0u64), Just(1), 0..300u64, any::<u64>()],
        0..40,
    );
    let devices = (ids, any::<bool>()).prop_map(|(ids, indexed)| {
        let list = ids.into_iter().map(|id| {
            let device = Node::new("device").attr("id", id);
            if indexed {
                device.attr("key-index", id)
            } else {
                device
            }
        });
        let devices = Node::new("devices").child(Node::new("device-list").children(list));
        let user = Node::new("user").attr("jid", stranger()).child(devices);
        Node::new("usync").child(Node::new("list").child(user))
    });
    let field = |tag: &'static str| {
        vec(any::<u8>(), 0..70).prop_map(move |bytes| Node::new(tag).bytes(bytes))
    };
    let bundle = (
        field("registration"),
        field("identity"),
        field("id"),
        field("value"),
        field("signature"),
    )
        .prop_map(|(registration, identity, id, value, signature)| {
            let skey = Node::new("skey").children([id.clone(), value.clone(), signature]);
            let user = Node::new("user").attr("jid", stranger()).children([
                registration,
                identity,
                skey,
                Node::new("key").children([id, value]),
            ]);
            Node::new("list").child(user)
        });
    prop_oneof![devices, bundle, stanza()]
}

pub(crate) fn stranger() -> Jid {
    Jid::lid("800000000000001").expect("digits")
}

pub(crate) fn wreak(rig: &mut Rig, malice: Malice, n: usize) {
    match malice {
        Malice::Say(node) => rig.say(&node),
        Malice::Answer(node, good) => {
            if let Some(id) = (!rig.unanswered.is_empty()).then(|| rig.unanswered.remove(0)) {
                let kind = if good { "result" } else { "error" };
                rig.say(
                    &Node::new("iq")
                        .attr("id", id)
                        .attr("type", kind)
                        .child(node),
                );
            }
        }
        Malice::Cipher {
            at,
            flip,
            cut,
            again,
        } => {
            let mut rng = rig.rng.fork("cipher");
            let (kind, mut bytes) = rig.peers[0].ciphertext("text", &mut rng);
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            if !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] ^= flip;
            }
            let stanza = rig.peers[0].stanza(&format!("cipher-{n}"), kind, bytes);
            rig.say(&stanza);
            if again {
                rig.say(&stanza);
            }
        }
        Malice::Provoke(n) => {
            let request = SendRequest {
                id: None,
                to: if n % 2 == 0 {
                    stranger()
                } else {
                    Jid::pn("15550009999").expect("digits")
                },
                content: Content::Text("anybody there?".into()),
            };
            rig.command(Command::Send(request));
        }
        Malice::Pass(micros) => rig.pass(micros),
        Malice::HangUp => {
            rig.hang_up();
            rig.honest = true;
            rig.pass(120 * SECOND);
            rig.honest = false;
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    /// Whatever a service says after a good handshake and login: no panic, no bound broken, and behind an honest
    /// service everybody else can be talked to as before.
    #[test]
    fn a_malicious_service_harms_nobody_else(seed in any::<u8>(), malice in vec(malice(), 1..40)) {
        let mut rig = Rig::online(seed);
        rig.peer("800000000000002");
        rig.honest = false;
        for (n, malice) in malice.into_iter().enumerate() {
            wreak(&mut rig, malice, n);
            within_limits(&rig);
            if rig.stopped.is_some() {
                break;
            }
        }
        prop_assert_eq!(&rig.stopped, &None, "nothing in this property may stop an engine");
        honest_again(&mut rig);
    }

    /// The same before anybody is linked: pairing stanzas in any order, form and number.
    #[test]
    fn a_malicious_service_at_pairing(seed in any::<u8>(), wanted in any::<bool>(), nodes in vec(pairing(), 1..20)) {
        let mut rig = unlinked(seed);
        if wanted {
            rig.command(Command::Link);
        }
        for node in nodes {
            rig.say(&node);
            within_limits(&rig);
        }
        prop_assert_eq!(&rig.stopped, &None);
        prop_assert_eq!(rig.device().jid, None, "nobody has scanned anything");
    }
}

/// An engine for an account that was never linked.
pub(crate) fn unlinked(seed: u8) -> Rig {
    let (store, linked) = crate::rig::store();
    let account = ready(store.create_account(&linked.business, "fresh")).expect("a fresh name");
    let mut rig = Rig::with(store, account, seed, |_| {});
    rig.give(Input::Tick);
    rig
}

pub(crate) fn pairing() -> impl Strategy<Value = Node> {
    let reference = vec(any::<u8>(), 0..40);
    let device = vec(reference, 0..9).prop_map(|refs| {
        let refs = refs.into_iter().map(|bytes| Node::new("ref").bytes(bytes));
        Node::new("pair-device").children(refs)
    });
    let success = (vec(any::<u8>(), 0..120), stanza()).prop_map(|(bytes, other)| {
        Node::new("pair-success").children([
            Node::new("device-identity").bytes(bytes),
            Node::new("device").attr("jid", "15550009999:3".parse::<Jid>().unwrap_or(stranger())),
            Node::new("device").attr(
                "jid",
                Jid::pn("15550009999").expect("digits").with_device(3),
            ),
            other,
        ])
    });
    prop_oneof![
        prop_oneof![device, success].prop_map(|inside| Node::new("iq")
            .attr("type", "set")
            .attr("id", "1")
            .attr("from", Jid::service())
            .child(inside)),
        Just(Node::new("success").attr("lid", stranger())),
        stanza(),
    ]
}
