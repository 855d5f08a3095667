//! Notifications and informational stanzas: what they change here, and that each is answered exactly once (fact sheet
//! 04.11, 03.13). Whatever is not understood is acknowledged all the same; else it comes again on every connection.

use super::{
    Context, devices,
    login::Login,
    query::{Query, iq},
};
use crate::{appstate::Collection, jid::Jid, state::Key, wire::node::Node};

/// More children than this are not looked at, and said so. Nothing is lost with them: what has changed is found out on
/// the next connection, or when the service says that a message reached other devices than we thought.
const CHILDREN: usize = crate::limits::NOTIFICATION_CHILDREN;

/// Nothing that the service can make us ask is asked while so many questions are open. What is not asked is said so, and
/// comes again on the next connection.
const QUERIES: usize = crate::limits::OPEN_QUERIES;

/// What a stanza asks the engine to do beyond this module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// Upload pre-keys.
    PreKeys,
    /// The offline queue has been delivered.
    Online,
    /// Settings have changed, up to these versions if they are known.
    Settings(Vec<(Collection, Option<u64>)>),
    /// The phone has uploaded a file again, or will not.
    File,
}

/// `<notification>`.
pub(crate) fn notification(cx: &mut Context, stanza: &Node) -> Wish {
    let from = stanza.get_jid("from");
    let kind = stanza.get_string("type").unwrap_or_default();
    let mut wish = Wish::Nothing;
    match (kind.as_str(), &from) {
        ("encrypt", Some(from)) if from.is_service() => {
            if let Some(count) = stanza.find("count")
                && count.get_u64("value").unwrap_or(0) < u64::from(cx.config.pre_keys.low.max(1))
            {
                wish = Wish::PreKeys;
            }
        }
        // A new phone: its sessions are worthless, and its companions are gone.
        ("encrypt", Some(from))
            if stanza.find("identity").is_some()
                && from.device() == 0
                && !cx.account.is_mine(from) =>
        {
            let lid = stanza.get_jid("lid");
            for user in [Some(from.clone()), lid].into_iter().flatten() {
                cx.delete(Key::Session(user.bare()));
                cx.delete(Key::DeviceList(user.bare()));
            }
            cx.emit(super::Event::IdentityChanged { user: from.bare() });
        }
        ("devices", Some(from)) => {
            let lid = stanza.get_jid("lid");
            let devices = stanza.nodes().iter().flat_map(Node::nodes);
            let twins = devices.filter_map(|device| device.get_jid("lid"));
            let twins = first(cx, twins);
            devices::forget(
                cx,
                [Some(from.clone()), lid].into_iter().flatten().chain(twins),
            );
        }
        // From us as well: then it says nothing new.
        ("server_sync", _) => {
            let named = first(cx, stanza.find_all("collection"));
            let changed = named.into_iter().filter_map(|node| {
                let collection = node.get_string("name")?.parse().ok()?;
                Some((collection, node.get_u64("version")))
            });
            wish = Wish::Settings(changed.collect());
        }
        ("mediaretry", _) => wish = Wish::File,
        ("account_sync", _) if stanza.find("devices").is_some() => {
            let own = [cx.account.jid.clone(), cx.account.lid.clone()];
            devices::forget(cx, own.into_iter().flatten());
        }
        _ => {}
    }
    cx.acknowledge(stanza, None);
    wish
}

/// Of what a notification lists, as much as is looked at.
fn first<T>(cx: &mut Context, mut listed: impl Iterator<Item = T>) -> Vec<T> {
    let looked_at = listed.by_ref().take(CHILDREN).collect();
    if listed.next().is_some() {
        cx.protocol_error("a notification that lists more than is looked at");
    }
    looked_at
}

/// `<ib>`: never acknowledged.
pub(crate) fn information(cx: &mut Context, login: &Login, stanza: &Node) -> Wish {
    let mut wish = Wish::Nothing;
    for child in first(cx, stanza.nodes().iter()) {
        match child.tag() {
            "offline" => return Wish::Online,
            "offline_preview" if child.get_u64("count").unwrap_or(0) > 0 => {
                // Some services wait for this before they deliver more than a handful.
                cx.send(&Node::new("ib").child(Node::new("offline_batch").attr("count", 200u64)));
            }
            "edge_routing" => {
                let info = child
                    .find("routing_info")
                    .and_then(Node::data)
                    .filter(|info| info.len() <= 4096);
                if let Some(info) = info
                    && cx.account.routing_info.as_deref() != Some(info)
                {
                    cx.account.routing_info = Some(info.to_vec());
                    cx.save_account();
                }
            }
            "dirty" if login.is_logged_in() && cx.queries.len() >= QUERIES => {
                cx.protocol_error("more questions are due than are asked at once");
            }
            "dirty" if login.is_logged_in() => {
                if let Some(kind) = child.get_string("type") {
                    if kind == "syncd_app_state" {
                        let all = Collection::ALL.map(|collection| (collection, None));
                        wish = Wish::Settings(all.into());
                    }
                    let clean = Node::new("clean")
                        .attr("type", kind)
                        .attr_opt("timestamp", child.get_string("timestamp"));
                    cx.ask(
                        iq("urn:xmpp:whatsapp:dirty", "set").child(clean),
                        Query::Formality,
                    );
                }
            }
            _ => {}
        }
    }
    wish
}

/// Reports messages as read.
pub(crate) fn mark_read(
    cx: &mut Context,
    chat: &Jid,
    sender: Option<&Jid>,
    ids: &[crate::state::MessageId],
) {
    let Some((first, more)) = ids.split_first() else {
        return;
    };
    let list = (!more.is_empty()).then(|| {
        Node::new("list").children(
            more.iter()
                .map(|id| Node::new("item").attr("id", id.clone())),
        )
    });
    let receipt = Node::new("receipt")
        .attr("id", first.clone())
        .attr("to", chat)
        .attr("type", "read")
        .attr("t", cx.unix().unsigned_abs())
        .attr_opt("participant", sender)
        .children(list);
    cx.send(&receipt);
}
