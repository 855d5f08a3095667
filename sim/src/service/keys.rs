//! The pre-key vault: what a device deposits so that others can write to it while it sleeps (chapters 06 and 10.7).

use super::accounts::DeviceId;
use super::books::{KeyKind, Violation};
use super::iq::{Answer, IqError};
use super::{Now, Service};
use baton_core::crypto::{PublicKey, Signature, sha1};
use baton_core::signal;
use baton_core::wire::node::Node;
use std::collections::{BTreeMap, VecDeque};

/// The type byte of Curve25519 keys, in a node of its own.
const KEY_TYPE: u8 = 5;

/// A signed pre-key as deposited; the signature was verified.
#[derive(Clone)]
pub(super) struct SignedPreKey {
    pub(super) id: u32,
    pub(super) key: PublicKey,
    pub(super) signature: Signature,
}

/// What one device has deposited.
pub(super) struct Vault {
    pub(super) registration: u32,
    pub(super) identity: PublicKey,
    pub(super) signed: SignedPreKey,
    /// One-time keys not yet given out, oldest first.
    pub(super) pool: VecDeque<(u32, PublicKey)>,
    /// Every id ever bound, and to what: a client may offer a key again, but never another key by the same id.
    pub(super) bound: BTreeMap<u32, PublicKey>,
    /// As `bound`, for signed pre-keys.
    pub(super) bound_signed: BTreeMap<u32, PublicKey>,
}

/// One device's keys as somebody else gets them.
pub(super) struct Bundle {
    pub(super) registration: u32,
    pub(super) identity: PublicKey,
    pub(super) signed: SignedPreKey,
    pub(super) one_time: Option<(u32, PublicKey)>,
    pub(super) proof: Option<Vec<u8>>,
}

impl Vault {
    pub(super) fn new(registration: u32, identity: PublicKey, signed: SignedPreKey) -> Self {
        let bound_signed = BTreeMap::from([(signed.id, signed.key)]);
        Self {
            registration,
            identity,
            signed,
            pool: VecDeque::new(),
            bound: BTreeMap::new(),
            bound_signed,
        }
    }

    /// Binds `id` to `key`; if it was bound to another key before, that key.
    pub(super) fn bind(&mut self, kind: KeyKind, id: u32, key: PublicKey) -> Option<PublicKey> {
        let bound = match kind {
            KeyKind::OneTime => &mut self.bound,
            KeyKind::Signed => &mut self.bound_signed,
        };
        bound.insert(id, key).filter(|first| *first != key)
    }

    /// Adds a one-time key unless it was given out already: a repeated upload must not make a key circulate twice.
    fn add(&mut self, id: u32, key: PublicKey) -> Option<PublicKey> {
        let known = self.bound.get(&id) == Some(&key);
        let first = self.bind(KeyKind::OneTime, id, key);
        match self.pool.iter_mut().find(|(pooled, _)| *pooled == id) {
            Some(slot) => slot.1 = key,
            None if known => {}
            None => self.pool.push_back((id, key)),
        }
        first
    }

    fn take(&mut self, proof: &[u8]) -> Bundle {
        Bundle {
            registration: self.registration,
            identity: self.identity,
            signed: self.signed.clone(),
            one_time: self.pool.pop_front(),
            proof: Some(proof.to_vec()),
        }
    }

    /// Chapter 10.7.2: SHA-1 over identity, signed pre-key, its signature, and the listed one-time keys.
    fn digest(&self) -> Node {
        let mut parts: Vec<&[u8]> = vec![
            self.identity.as_bytes(),
            self.signed.key.as_bytes(),
            self.signed.signature.as_bytes(),
        ];
        parts.extend(self.pool.iter().map(|(_, key)| key.as_bytes().as_slice()));
        let hash = sha1(&parts);
        Node::new("digest")
            .child(number(self.registration, "registration", 4))
            .child(Node::new("type").bytes(vec![KEY_TYPE]))
            .child(Node::new("identity").bytes(self.identity.as_bytes().to_vec()))
            .child(self.signed.node())
            .child(Node::new("list").children(self.pool.iter().map(|(id, _)| number(*id, "id", 3))))
            .child(Node::new("hash").bytes(hash.to_vec()))
    }
}

impl SignedPreKey {
    fn node(&self) -> Node {
        key_node("skey", self.id, &self.key)
            .child(Node::new("signature").bytes(self.signature.as_bytes().to_vec()))
    }

    /// Reads `<skey>` and checks that `identity` signed it.
    fn read(node: &Node, identity: &PublicKey) -> Option<Self> {
        let (id, key) = read_key(node)?;
        Self::verified(id, key, node.find("signature")?.data()?, identity)
    }

    /// A signed pre-key, if the signature over `05 || key` holds.
    pub(super) fn verified(
        id: u32,
        key: PublicKey,
        signature: &[u8],
        identity: &PublicKey,
    ) -> Option<Self> {
        let signature = Signature::from_slice(signature).ok()?;
        identity.verify(&[&key.serialize()], &signature).ok()?;
        Some(Self { id, key, signature })
    }
}

impl Bundle {
    /// What the Signal floor needs of it.
    pub(super) fn to_signal(&self) -> signal::Bundle {
        signal::Bundle {
            registration_id: self.registration,
            identity: self.identity,
            signed_pre_key_id: self.signed.id,
            signed_pre_key: self.signed.key,
            signature: self.signed.signature,
            pre_key: self.one_time,
        }
    }

    /// Reads the bundle inside a retry receipt (chapter 06.10).
    pub(super) fn from_retry(receipt: &Node) -> Option<Self> {
        let keys = receipt.find("keys")?;
        let identity = PublicKey::from_slice(keys.find("identity")?.data()?).ok()?;
        Some(Self {
            registration: read_number(receipt.find("registration")?, 4)?,
            identity,
            signed: SignedPreKey::read(keys.find("skey")?, &identity)?,
            one_time: keys.find("key").and_then(read_key),
            proof: None,
        })
    }

    /// The children of `<keys>` in a retry receipt.
    pub(super) fn retry_nodes(&self) -> [Node; 2] {
        let keys = Node::new("keys")
            .child(Node::new("type").bytes(vec![KEY_TYPE]))
            .child(Node::new("identity").bytes(self.identity.as_bytes().to_vec()))
            .children(
                self.one_time
                    .iter()
                    .map(|(id, key)| key_node("key", *id, key)),
            )
            .child(self.signed.node());
        [number(self.registration, "registration", 4), keys]
    }

    fn children(&self) -> Vec<Node> {
        let mut nodes = vec![
            number(self.registration, "registration", 4),
            Node::new("type").bytes(vec![KEY_TYPE]),
            Node::new("identity").bytes(self.identity.as_bytes().to_vec()),
        ];
        nodes.extend(
            self.proof
                .iter()
                .map(|proof| Node::new("device-identity").bytes(proof.clone())),
        );
        nodes.extend(
            self.one_time
                .iter()
                .map(|(id, key)| key_node("key", *id, key)),
        );
        nodes.push(self.signed.node());
        nodes
    }
}

impl Service {
    /// `xmlns="encrypt"`.
    pub(super) fn iq_encrypt(&mut self, device: &DeviceId, iq: &Node, now: Now) -> Answer {
        if let Some(list) = iq.find("key") {
            return Ok(Some(self.bundles(device, list, now)));
        }
        if iq.get_str("type") == Some("set") {
            return match iq.find("rotate") {
                Some(rotate) => self.rotate(device, rotate, now),
                None => self.upload(device, iq, now),
            };
        }
        let vault = &self
            .accounts
            .device(device)
            .ok_or(IqError::NOT_FOUND)?
            .vault;
        if iq.find("count").is_some() {
            return Ok(Some(
                Node::new("count").attr("value", vault.pool.len() as u64),
            ));
        }
        if iq.find("digest").is_some() {
            return Ok(Some(vault.digest()));
        }
        Err(IqError::NOT_IMPLEMENTED)
    }

    /// A bundle of any device, its oldest one-time key spent; the low-pool notification goes out when it is time.
    pub(super) fn take_bundle(&mut self, of: &DeviceId, by: &DeviceId, now: Now) -> Option<Bundle> {
        let account = self.accounts.get_mut(&of.phone)?;
        if of.is_phone() {
            return Some(account.phone.bundle(&mut self.rng));
        }
        let device = account.devices.get_mut(&of.device)?;
        let bundle = device.vault.take(&device.identity_proof);
        let left = device.vault.pool.len();
        let id = bundle.one_time.map(|(id, _)| id);
        self.books
            .device_mut(of)
            .bundles
            .push((now.into(), by.clone(), id));
        if id.is_some() && left < self.options.pre_key_threshold {
            self.notify_low_pool(of, left, now);
        }
        Some(bundle)
    }

    /// Tells a device how many one-time keys it has left. Only the newest count is worth waiting in its queue.
    pub(super) fn notify_low_pool(&mut self, of: &DeviceId, left: usize, now: Now) {
        if let Some(device) = self.accounts.device_mut(of) {
            device.queue.retain_unsent(|entry| {
                entry.node.get_str("type") != Some("encrypt") || entry.node.find("count").is_none()
            });
        }
        let count = Node::new("count").attr("value", left as u64);
        self.notify(of, "encrypt", |node| node.child(count), now);
    }

    fn bundles(&mut self, by: &DeviceId, list: &Node, now: Now) -> Node {
        let mut users = Vec::new();
        for user in list.find_all("user") {
            // Clients look the answer up by the JID they asked with: the same form, the same device.
            let Some(asked) = user.get_jid("jid") else {
                continue;
            };
            let found = self
                .accounts
                .resolve(&asked)
                .and_then(|device| self.take_bundle(&device, by, now));
            let node = Node::new("user").attr("jid", asked);
            users.push(match found {
                Some(bundle) => node.children(bundle.children()),
                None => node.child(IqError::NOT_FOUND.node()),
            });
        }
        Node::new("list").children(users)
    }

    fn upload(&mut self, device: &DeviceId, iq: &Node, now: Now) -> Answer {
        let upload = Upload::read(iq).ok_or(IqError::NOT_ACCEPTABLE)?;
        let vault = &mut self
            .accounts
            .device_mut(device)
            .ok_or(IqError::NOT_FOUND)?
            .vault;
        if vault.identity != upload.identity {
            self.books.violation(Violation::IdentityChanged {
                device: device.clone(),
                at: now.into(),
            });
        }
        vault.registration = upload.registration;
        vault.identity = upload.identity;
        let rebound = vault.bind(KeyKind::Signed, upload.signed.id, upload.signed.key);
        if let Some(first) = rebound {
            let keys = (first, upload.signed.key);
            self.books
                .rebound(device, KeyKind::Signed, upload.signed.id, keys, now);
        }
        vault.signed = upload.signed;
        self.books
            .device_mut(device)
            .uploads
            .push((now.into(), upload.one_time.len()));
        for (id, key) in upload.one_time {
            if let Some(first) = vault.add(id, key) {
                self.books
                    .rebound(device, KeyKind::OneTime, id, (first, key), now);
            }
        }
        Ok(None)
    }

    fn rotate(&mut self, device: &DeviceId, rotate: &Node, now: Now) -> Answer {
        let vault = &mut self
            .accounts
            .device_mut(device)
            .ok_or(IqError::NOT_FOUND)?
            .vault;
        let signed = rotate
            .find("skey")
            .and_then(|skey| SignedPreKey::read(skey, &vault.identity))
            .ok_or(IqError::NOT_ACCEPTABLE)?;
        if let Some(first) = vault.bind(KeyKind::Signed, signed.id, signed.key) {
            self.books
                .rebound(device, KeyKind::Signed, signed.id, (first, signed.key), now);
        }
        vault.signed = signed;
        Ok(None)
    }
}

struct Upload {
    registration: u32,
    identity: PublicKey,
    signed: SignedPreKey,
    one_time: Vec<(u32, PublicKey)>,
}

impl Upload {
    /// Reads an upload strictly: one bad key refuses it all, as does a bad signature.
    fn read(iq: &Node) -> Option<Self> {
        let identity = PublicKey::from_slice(iq.find("identity")?.data()?).ok()?;
        if iq.find("type")?.data()? != [KEY_TYPE] {
            return None;
        }
        let one_time = iq.find("list").map_or(Some(Vec::new()), |list| {
            list.find_all("key")
                .map(|key| read_key(key).filter(|(id, _)| *id != 0))
                .collect()
        })?;
        Some(Self {
            registration: read_number(iq.find("registration")?, 4)?,
            identity,
            signed: SignedPreKey::read(iq.find("skey")?, &identity)?,
            one_time,
        })
    }
}

/// `<tag><id/><value/></tag>`
fn key_node(tag: &'static str, id: u32, key: &PublicKey) -> Node {
    Node::new(tag)
        .child(number(id, "id", 3))
        .child(Node::new("value").bytes(key.as_bytes().to_vec()))
}

/// Reads id and value of a `<key>` or `<skey>`.
pub(super) fn read_key(node: &Node) -> Option<(u32, PublicKey)> {
    let key = PublicKey::from_slice(node.find("value")?.data()?).ok()?;
    Some((read_number(node.find("id")?, 3)?, key))
}

/// A big-endian number of `width` bytes, at most 4.
fn number(value: u32, tag: &'static str, width: usize) -> Node {
    Node::new(tag).bytes(
        value
            .to_be_bytes()
            .into_iter()
            .skip(4 - width)
            .collect::<Vec<u8>>(),
    )
}

fn read_number(node: &Node, width: usize) -> Option<u32> {
    let bytes = node.data().filter(|bytes| bytes.len() == width)?;
    Some(
        bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u32::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::crypto::{KeyPair, Rng};

    fn vault() -> Vault {
        let mut rng = Rng::from_seed([9; 32]);
        let (identity, signed) = (KeyPair::generate(&mut rng), KeyPair::generate(&mut rng));
        let signature = identity
            .private
            .sign(&[&signed.public.serialize()], &mut rng);
        Vault::new(
            7,
            identity.public,
            SignedPreKey {
                id: 1,
                key: signed.public,
                signature,
            },
        )
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    #[test]
    fn each_key_is_given_out_once_even_if_uploaded_again() {
        let mut vault = vault();
        assert_eq!((vault.add(1, key(1)), vault.add(2, key(2))), (None, None));
        assert_eq!(vault.take(b"proof").one_time, Some((1, key(1))));
        assert_eq!((vault.add(1, key(1)), vault.add(2, key(2))), (None, None));
        assert_eq!(vault.take(b"proof").one_time, Some((2, key(2))));
        assert_eq!(
            vault.take(b"proof").one_time,
            None,
            "and an empty pool is no error"
        );
    }

    #[test]
    fn another_key_by_a_used_id_is_noticed() {
        let mut vault = vault();
        vault.add(1, key(1));
        assert_eq!(vault.add(1, key(2)), Some(key(1)));
        assert_eq!(
            vault.take(b"").one_time,
            Some((1, key(2))),
            "the later one counts (chapter 06.8)"
        );
        assert!(vault.bind(KeyKind::Signed, 1, key(9)).is_some());
    }

    #[test]
    fn numbers_are_read_in_their_width_only() {
        assert_eq!(
            read_number(&number(0x01_02_03, "id", 3), 3),
            Some(0x01_02_03)
        );
        assert_eq!(
            read_number(&number(u32::MAX, "registration", 4), 4),
            Some(u32::MAX)
        );
        assert_eq!(read_number(&number(1, "id", 3), 4), None);
    }
}
