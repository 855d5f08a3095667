//! Which devices a user has, and the keys to reach them: device lists (usync, fact sheet 07.2) and bundles (06.6).

use super::{
    Context, adv,
    pre_keys::id_from,
    query::{Query, iq},
};
use crate::{
    crypto::{PublicKey, Signature},
    jid::{Jid, Server},
    proto::record,
    signal::{self, Bundle, SessionRecord},
    state::{Key, codec},
    wire::node::Node,
};
use std::collections::{BTreeMap, BTreeSet};

/// More entries than this in one answer are not looked at, and said so: we ask for two users, or for their devices, of
/// which nobody has more than 256.
const ENTRIES: usize = crate::limits::ANSWER_ENTRIES;

/// Asks for the device lists and LIDs of users.
pub(crate) fn ask_devices(cx: &mut Context, users: Vec<Jid>) {
    let sid = format!("{:016x}", cx.rng.next_u64());
    let list = users.iter().map(|user| Node::new("user").attr("jid", user));
    let usync = Node::new("usync")
        .attr("sid", sid)
        .attr("mode", "query")
        .attr("last", "true")
        .attr("index", "0")
        .attr("context", "message")
        .child(
            Node::new("query")
                .child(Node::new("devices").attr("version", "2"))
                .child(Node::new("lid")),
        )
        .child(Node::new("list").children(list));
    cx.ask(iq("usync", "get").child(usync), Query::Devices(users));
}

/// Takes in the answer: device lists and LID mappings become rows. Returns whether it spoke of everybody asked for: who
/// is left out has not been said to have no devices.
pub(crate) fn devices_answered(cx: &mut Context, asked: &[Jid], stanza: &Node) -> bool {
    let mut complete = true;
    let users: &[Node] = stanza.path(&["usync", "list"]).map_or(&[], Node::nodes);
    for user in asked {
        let entry = users
            .iter()
            .find(|entry| entry.get_jid("jid").is_some_and(|jid| jid.same_user(user)));
        if entry.is_none() {
            complete = false;
            continue;
        }
        let lid = entry
            .and_then(|entry| entry.find("lid"))
            .and_then(|lid| lid.get_jid("val"))
            .filter(Jid::is_lid);
        if let (Some(phone), Some(lid)) = (user.phone(), &lid) {
            learn(cx, phone, lid.user());
        }
        let devices = entry.and_then(|entry| entry.find("devices"));
        let count = devices.and_then(|devices| devices.find("device-list"));
        said_if_long(cx, count.map_or(&[], Node::nodes));
        let list = record::DeviceList {
            devices: devices.map(listed).unwrap_or_default(),
            fetched_at: Some(cx.unix()),
        };
        let row = codec::encode(&list);
        if let Some(lid) = lid.filter(|_| user.is_pn()) {
            // The numbers are the same under both addresses.
            cx.put(Key::DeviceList(lid.bare()), row.clone());
        }
        cx.put(Key::DeviceList(user.bare()), row);
    }
    complete
}

/// The devices that can be written to: the phone, and companions that its key index list vouches for.
fn listed(devices: &Node) -> Vec<record::ListedDevice> {
    let indexes = devices
        .find("key-index-list")
        .and_then(Node::data)
        .and_then(adv::KeyIndexes::decode);
    let list = devices.find("device-list").map_or(&[][..], Node::nodes);
    // One entry each: whoever is listed twice must not be written to twice.
    let mut seen = BTreeSet::new();
    list.iter()
        .take(ENTRIES)
        .filter(|device| device.tag() == "device" && device.get_str("is_hosted") != Some("true"))
        .filter_map(|device| {
            let id = u32::try_from(device.get_u64("id")?)
                .ok()
                .filter(|id| *id <= u32::from(u8::MAX))?;
            let key_index = device
                .get_u64("key-index")
                .and_then(|index| u32::try_from(index).ok());
            let vouched = match (&indexes, key_index) {
                _ if id == 0 => true,
                (Some(indexes), Some(index)) => indexes.vouches(index),
                // No list: an old service. A companion without index is nobody's.
                (None, index) => index.is_some(),
                (Some(_), None) => false,
            };
            (vouched && seen.insert(id)).then_some(record::ListedDevice {
                id: Some(id),
                key_index,
            })
        })
        .collect()
}

fn said_if_long(cx: &mut Context, entries: &[Node]) {
    if entries.len() > ENTRIES {
        cx.protocol_error("an answer with more entries than are looked at");
    }
}

fn by_device(users: &[Node]) -> BTreeMap<Jid, &Node> {
    users
        .iter()
        .take(ENTRIES)
        .filter_map(|entry| Some((entry.get_jid("jid")?, entry)))
        .collect()
}

/// The devices in a loaded list.
pub(crate) fn read_list(cx: &mut Context, user: &Jid) -> Option<Vec<Jid>> {
    let list: record::DeviceList = cx.read(&Key::DeviceList(user.bare()))?;
    let devices: BTreeSet<u16> = list
        .devices
        .iter()
        .filter_map(|device| device.id.and_then(|id| u16::try_from(id).ok()))
        .collect();
    Some(
        devices
            .into_iter()
            .map(|device| user.bare().with_device(device))
            .collect(),
    )
}

/// Forgets what devices a user has, under every address given.
pub(crate) fn forget(cx: &mut Context, users: impl IntoIterator<Item = Jid>) {
    for user in users {
        cx.delete(Key::DeviceList(user.bare()));
    }
}

/// Notes that a phone number and a LID are the same user.
pub(crate) fn learn(cx: &mut Context, phone: &str, lid: &str) {
    let row = record::LidMapping {
        lid: Some(lid.to_owned()),
    };
    cx.put(Key::LidMap(phone.into()), codec::encode(&row));
}

/// The LID of a phone number, from a loaded row.
pub(crate) fn lid_of(cx: &mut Context, user: &Jid) -> Option<Jid> {
    let phone = user.phone()?;
    let row: record::LidMapping = cx.read(&Key::LidMap(phone.into()))?;
    Jid::new(row.lid.as_deref()?, Server::Lid)
        .ok()
        .map(|lid| lid.with_device(user.device()))
}

/// Asks for the bundles of devices.
pub(crate) fn ask_bundles(cx: &mut Context, devices: Vec<Jid>) {
    let users = devices.iter().map(|device| {
        Node::new("user")
            .attr("jid", device)
            .attr("reason", "identity")
    });
    let request = iq("encrypt", "get").child(Node::new("key").children(users));
    cx.ask(request, Query::Bundles(devices));
}

/// Rows that [`bundles_answered`] reads and writes.
pub(crate) fn bundle_needs(devices: &[Jid]) -> Vec<Key> {
    devices
        .iter()
        .flat_map(|device| [Key::Session(device.clone()), Key::Identity(device.clone())])
        .collect()
}

/// Takes in bundles: a session for each device whose bundle is sound. Returns the devices that got one.
pub(crate) fn bundles_answered(cx: &mut Context, asked: &[Jid], stanza: &Node) -> Vec<Jid> {
    let users: &[Node] = stanza.find("list").map_or(&[], Node::nodes);
    said_if_long(cx, users);
    let users = by_device(users);
    let mut reached = Vec::new();
    for device in asked {
        let Some(entry) = users
            .get(device)
            .copied()
            .filter(|entry| entry.find("error").is_none())
        else {
            continue;
        };
        let Some(bundle) = parse_bundle(entry, entry) else {
            cx.protocol_error("a key bundle is malformed");
            continue;
        };
        let keys = entry.find("keys").unwrap_or(entry);
        let proof = keys
            .find("device-identity")
            .or_else(|| entry.find("device-identity"))
            .and_then(Node::data);
        if start_session(cx, device, &bundle, proof) {
            reached.push(device.clone());
        }
    }
    reached
}

/// Reads a bundle; the registration id stands in `outer`, the keys in `inner` or in `<keys>` inside it.
pub(crate) fn parse_bundle(outer: &Node, inner: &Node) -> Option<Bundle> {
    let keys = inner.find("keys").unwrap_or(inner);
    let registration = outer
        .find("registration")
        .or_else(|| keys.find("registration"))?
        .data()?;
    let signed = keys.find("skey")?;
    let one_time = match keys.find("key") {
        Some(key) => Some((
            id_from(key.find("id")?.data()?)?,
            public(key.find("value")?.data()?)?,
        )),
        None => None,
    };
    Some(Bundle {
        registration_id: u32::from_be_bytes(registration.try_into().ok()?),
        identity: public(keys.find("identity")?.data()?)?,
        signed_pre_key_id: id_from(signed.find("id")?.data()?)?,
        signed_pre_key: public(signed.find("value")?.data()?)?,
        signature: Signature::from_slice(signed.find("signature")?.data()?).ok()?,
        pre_key: one_time,
    })
}

/// 32 raw bytes; 33 with the type byte are tolerated, because one client once sent them.
fn public(bytes: &[u8]) -> Option<PublicKey> {
    PublicKey::from_slice(bytes)
        .or_else(|_| PublicKey::deserialize(bytes))
        .ok()
}

/// Starts a session with a device from its bundle. `false` if the bundle is not sound: a wrong signature, or a proof
/// of identity that does not verify. Reads and writes the rows of [`bundle_needs`].
pub(crate) fn start_session(
    cx: &mut Context,
    device: &Jid,
    bundle: &Bundle,
    proof: Option<&[u8]>,
) -> bool {
    if let Some(proof) = proof.filter(|_| device.device() != 0)
        && adv::verify_companion(proof, &bundle.identity).is_err()
    {
        cx.protocol_error("a device's proof of identity does not verify");
        return false;
    }
    let key = Key::Session(device.clone());
    let mut session = session(cx, &key).unwrap_or_else(|| new_session(cx));
    let local = cx.account.local();
    if signal::initiate(&mut session, &local, bundle, &mut cx.rng).is_err() {
        cx.protocol_error("a key bundle has a wrong signature");
        return false;
    }
    cx.put(key, codec::wrap(&session.encode()));
    trust(cx, device, &bundle.identity);
    true
}

/// The sessions with a device, from a loaded row. Everything that encrypts or decrypts goes through here or through
/// [`new_session`], so that no chain forgets what the account has burnt.
pub(crate) fn session(cx: &mut Context, key: &Key) -> Option<SessionRecord> {
    let burn = cx.burn();
    cx.read_with(key, session_from)
        .map(|session| session.at_burn(burn))
}

/// No session yet.
pub(crate) fn new_session(cx: &Context) -> SessionRecord {
    SessionRecord::new().at_burn(cx.burn())
}

fn session_from(row: &crate::state::Record) -> Result<SessionRecord, ()> {
    SessionRecord::decode(codec::payload(row).map_err(|_| ())?).map_err(|_| ())
}

/// Notes the identity key of a device. Returns `true` if it replaces another one. New keys are accepted, as the
/// official client does; people are told.
pub(crate) fn trust(cx: &mut Context, device: &Jid, identity: &PublicKey) -> bool {
    let key = Key::Identity(device.clone());
    let known: Option<record::Identity> = cx.read(&key);
    let known = known.and_then(|row| row.key);
    if known.as_deref() == Some(identity.as_bytes().as_slice()) {
        return false;
    }
    let row = record::Identity {
        key: Some(identity.as_bytes().to_vec()),
    };
    cx.put(key, codec::encode(&row));
    let changed = known.is_some();
    if changed {
        cx.emit(super::Event::IdentityChanged {
            user: device.clone(),
        });
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ANSWER_ENTRIES;

    /// The last entry that counts is the one at the limit.
    #[test]
    fn an_answer_ends_at_its_limit() {
        for (before, found) in [
            (ANSWER_ENTRIES - 2, true),
            (ANSWER_ENTRIES - 1, true),
            (ANSWER_ENTRIES, false),
        ] {
            let device = Node::new("device").attr("id", 0u64);
            let list = vec![Node::new("nothing"); before];
            let list = Node::new("device-list").children(list).child(device);
            let listed = listed(&Node::new("devices").child(list));
            assert_eq!(listed.len(), usize::from(found), "{before}");

            let jid = Jid::lid("100000000000001").unwrap();
            let mut users = vec![Node::new("user"); before];
            users.push(Node::new("user").attr("jid", &jid));
            assert_eq!(by_device(&users).contains_key(&jid), found, "{before}");
        }
    }
}
