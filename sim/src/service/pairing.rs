//! How a device becomes part of an account: QR codes, the phone's signature, the device's signature (chapter 10.4).

use super::accounts::{BadPhoneNumber, Device, DeviceId, Form};
use super::connection::Stage;
use super::iq::{IqError, respond};
use super::keys::{SignedPreKey, Vault};
use super::queue::Queue;
use super::{ConnId, Now, Service};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use baton_core::crypto::{PublicKey, Signature, hmac_sha256};
use baton_core::jid::Jid;
use baton_core::proto::adv;
use baton_core::proto::payload::DevicePairingRegistrationData;
use baton_core::wire::node::Node;
use prost::Message as _;

/// Six: one client gives the first code its full minute only then (chapter 03.3).
const REFS: usize = 6;

/// What is known of a device that is not part of an account yet.
pub(super) struct Pairing {
    noise: PublicKey,
    registration: u32,
    identity: PublicKey,
    signed: SignedPreKey,
    refs: Vec<String>,
    offer: Option<Offer>,
}

/// The phone's half, sent and not yet answered.
struct Offer {
    iq: String,
    device: DeviceId,
    key_index: u32,
    /// The serialized ADVDeviceIdentity that both sides sign.
    details: Vec<u8>,
    account_key: PublicKey,
    account_signature: Signature,
}

/// What a scan came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// The new device, by phone number.
    pub jid: Jid,
    /// The same, by hidden id.
    pub lid: Jid,
}

/// Why a scan came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Not the text of a QR code: `REF,NOISE,IDENTITY,SECRET[,TYPE]`, with or without a URL in front.
    #[error("not the text of a pairing code")]
    NotACode,
    /// No connection shows this code; it may have closed.
    #[error("no connection shows this code")]
    NobodyWaits,
    /// The connection that was given this code's reference has other keys.
    #[error("the keys in the code are not those of the connection")]
    OtherKeys,
    /// The code was scanned before.
    #[error("this code was scanned already")]
    ScannedAlready,
    /// No more room in the account.
    #[error("the account has as many companions as it may have")]
    Full,
    /// The phone number is none.
    #[error(transparent)]
    Phone(#[from] BadPhoneNumber),
}

/// The fields of a QR text.
struct Code<'a> {
    reference: &'a str,
    noise: PublicKey,
    identity: PublicKey,
    secret: [u8; 32],
}

impl<'a> Code<'a> {
    /// Reads every form in the field: with the URL or without, four fields, five, or more.
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let text = text.rsplit_once('#').map_or(text, |(_, code)| code);
        let mut fields = text.split(',');
        let reference = fields.next().filter(|reference| !reference.is_empty())?;
        let mut key = || <[u8; 32]>::try_from(STANDARD.decode(fields.next()?).ok()?).ok();
        let (noise, identity, secret) = (key()?, key()?, key()?);
        let (noise, identity) = (
            PublicKey::from_bytes(noise),
            PublicKey::from_bytes(identity),
        );
        Some(Self {
            reference,
            noise,
            identity,
            secret,
        })
    }
}

impl Service {
    /// The phone scans a code. `phone` links to that account, making it if need be; without it a new account is made.
    /// Returns when the offer is on its way; the device is part of the account when it has answered.
    pub fn scan(&mut self, qr: &str, phone: Option<&str>, now: Now) -> Result<Scanned, ScanError> {
        let code = Code::parse(qr).ok_or(ScanError::NotACode)?;
        // Any reference of the connection will do, also one that is no longer shown.
        let (conn, pairing) = self
            .connections
            .iter()
            .find_map(|(conn, connection)| match &connection.stage {
                Stage::Pairing(pairing) if pairing.refs.iter().any(|r| r == code.reference) => {
                    Some((*conn, pairing))
                }
                _ => None,
            })
            .ok_or(ScanError::NobodyWaits)?;
        if pairing.noise != code.noise || pairing.identity != code.identity {
            return Err(ScanError::OtherKeys);
        }
        if pairing.offer.is_some() {
            return Err(ScanError::ScannedAlready);
        }
        let number = phone.map_or_else(
            || self.accounts.free_number(),
            |phone| phone.trim_start_matches('+').to_owned(),
        );
        self.revision += 1;
        self.accounts
            .get_or_create(&number, now.secs(), &mut self.rng)?;
        if self.options.bootstrap {
            self.first_settings(&number, now);
        }
        let account = self
            .accounts
            .get_or_create(&number, now.secs(), &mut self.rng)?;
        if account.devices.len() >= self.options.max_companions {
            return Err(ScanError::Full);
        }
        let (number_of, key_index) = account.next_companion().ok_or(ScanError::Full)?;
        let device = DeviceId::new(&number, number_of);
        let scanned = Scanned {
            jid: account.jid(Form::Pn).clone().with_device(device.device),
            lid: account.jid(Form::Lid).clone().with_device(device.device),
        };

        let details = adv::AdvDeviceIdentity {
            raw_id: Some(account.raw_id),
            timestamp: Some(now.secs()),
            key_index: Some(key_index),
            account_type: None,
            device_type: None,
        }
        .encode_to_vec();
        let keys = &account.phone.identity;
        let signature = keys.private.sign(
            &[b"\x06\x00", &details, code.identity.as_bytes()],
            &mut self.rng,
        );
        let account_key = keys.public;
        let identity = adv::AdvSignedDeviceIdentity {
            details: Some(details.clone()),
            account_signature_key: Some(account_key.as_bytes().to_vec()),
            account_signature: Some(signature.as_bytes().to_vec()),
            device_signature: None,
        }
        .encode_to_vec();
        let container = adv::AdvSignedDeviceIdentityHmac {
            hmac: Some(hmac_sha256(&code.secret, &[&identity]).to_vec()),
            details: Some(identity),
            account_type: None,
        }
        .encode_to_vec();

        let iq = self.next_id();
        let success = Node::new("pair-success")
            .child(Node::new("device-identity").bytes(container))
            .child(
                Node::new("device")
                    .attr("jid", &scanned.jid)
                    .attr("lid", &scanned.lid),
            )
            .child(Node::new("platform").attr("name", "android"));
        let node = Node::new("iq")
            .attr("from", Jid::service())
            .attr("type", "set")
            .attr("id", iq.as_str())
            .attr("xmlns", "md")
            .attr("t", now.secs())
            .child(success);
        if let Some(Stage::Pairing(pairing)) = self.connections.get_mut(&conn).map(|c| &mut c.stage)
        {
            pairing.offer = Some(Offer {
                iq,
                device,
                key_index,
                details,
                account_key,
                account_signature: signature,
            });
        }
        self.send(conn, &node, now);
        self.settle(now);
        Ok(scanned)
    }

    /// A new device introduces itself. Its keys must be in order before it is shown a code.
    pub(super) fn start_pairing(
        &mut self,
        conn: ConnId,
        noise: PublicKey,
        data: &DevicePairingRegistrationData,
        now: Now,
    ) {
        let Some(mut pairing) = Pairing::read(noise, data) else {
            return self.refuse(conn, 400, "registration keys are not in order", now);
        };
        pairing.refs = (0..REFS)
            .map(|_| format!("2@{}", URL_SAFE_NO_PAD.encode(self.rng.bytes::<24>())))
            .collect();
        let refs = pairing
            .refs
            .iter()
            .map(|text| Node::new("ref").bytes(text.as_bytes().to_vec()));
        let node = Node::new("iq")
            .attr("from", Jid::service())
            .attr("type", "set")
            .attr("id", self.next_id())
            .attr("xmlns", "md")
            .child(Node::new("pair-device").children(refs.collect::<Vec<_>>()));
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.stage = Stage::Pairing(pairing);
        }
        self.send(conn, &node, now);
    }

    /// A stanza of a device that is not paired yet: the answers of pairing, and keepalives.
    pub(super) fn pairing_stanza(&mut self, conn: ConnId, node: &Node, now: Now) {
        if node.tag() != "iq" {
            if node.tag() != "ib" {
                self.note(conn, format!("{:?} before pairing", node.tag()), now);
            }
            return;
        }
        match node.get_str("type") {
            Some("result") => self.pairing_result(conn, node, now),
            Some("error") => {
                let error = node
                    .find("error")
                    .and_then(|error| error.get_string("text"))
                    .unwrap_or_default();
                self.note(
                    conn,
                    format!("the device refuses the pairing: {error}"),
                    now,
                );
            }
            _ => {
                let known = node.get_str("xmlns") == Some("w:p");
                let answer = respond(
                    node,
                    if known {
                        Ok(None)
                    } else {
                        Err(IqError::NOT_IMPLEMENTED)
                    },
                );
                if let Some(answer) = answer {
                    self.send(conn, &answer, now);
                }
            }
        }
    }

    fn pairing_result(&mut self, conn: ConnId, node: &Node, now: Now) {
        let Some(Stage::Pairing(pairing)) = self.connections.get(&conn).map(|c| &c.stage) else {
            return;
        };
        let Some(offer) = pairing
            .offer
            .as_ref()
            .filter(|offer| node.get_str("id") == Some(&offer.iq))
        else {
            return;
        };
        let device = match pairing.check(offer, node) {
            Ok(proof) => Device {
                noise: pairing.noise,
                key_index: offer.key_index,
                identity_proof: proof,
                vault: Vault::new(
                    pairing.registration,
                    pairing.identity,
                    pairing.signed.clone(),
                ),
                queue: Queue::default(),
                push_name: None,
                available: false,
                bootstrapped: false,
            },
            Err(why) => return self.refuse(conn, 400, why, now),
        };
        let id = offer.device.clone();
        if let Some(account) = self.accounts.get_mut(&id.phone) {
            account.devices.insert(id.device, device);
        }
        self.device_added(&id, now);
        let last = Node::new("stream:error").attr("code", 515u16);
        self.farewell(conn, &last, "paired", now);
    }

    /// Removes a companion, by its own wish or its phone's: it is told, and so is everybody who knew of it.
    pub(super) fn unlink_device(&mut self, id: &DeviceId, now: Now) {
        let Some(account) = self.accounts.get_mut(&id.phone) else {
            return;
        };
        if account.devices.remove(&id.device).is_none() {
            return;
        }
        account.phone.forget(id);
        self.recent.remove(id);
        if let Some(conn) = self.live.get(id).copied() {
            let conflict = Node::new("conflict").attr("type", "device_removed");
            let last = Node::new("stream:error")
                .attr("code", 401u16)
                .child(conflict);
            self.farewell(conn, &last, "device removed", now);
        }
        self.device_removed(id, now);
    }

    /// The phone removes one of its companions. False if there is no such companion.
    pub fn unlink(&mut self, phone: &str, device: u16, now: Now) -> bool {
        let id = DeviceId::new(phone, device);
        let known = self.accounts.device(&id).is_some();
        self.revision += 1;
        self.unlink_device(&id, now);
        self.settle(now);
        known
    }
}

impl Pairing {
    fn read(noise: PublicKey, data: &DevicePairingRegistrationData) -> Option<Self> {
        let registration = u32::from_be_bytes(data.e_regid.as_deref()?.try_into().ok()?);
        if data.e_keytype.as_deref()? != [5] {
            return None;
        }
        let identity = PublicKey::from_slice(data.e_ident.as_deref()?).ok()?;
        let id: [u8; 3] = data.e_skey_id.as_deref()?.try_into().ok()?;
        let id = id
            .iter()
            .fold(0, |value, byte| value << 8 | u32::from(*byte));
        let key = PublicKey::from_slice(data.e_skey_val.as_deref()?).ok()?;
        let signed = SignedPreKey::verified(id, key, data.e_skey_sig.as_deref()?, &identity)?;
        Some(Self {
            noise,
            registration,
            identity,
            signed,
            refs: Vec::new(),
            offer: None,
        })
    }

    /// Checks the device's half and returns the finished identity, account key included. Some clients leave the
    /// account's key out of their answer and some do not (chapter 03.4); what is there must be what was sent.
    fn check(&self, offer: &Offer, node: &Node) -> Result<Vec<u8>, &'static str> {
        let answer = node
            .path(&["pair-device-sign", "device-identity"])
            .ok_or("pair-device-sign is missing")?;
        let answer = answer.data().ok_or("device-identity is empty")?;
        let mut identity = adv::AdvSignedDeviceIdentity::decode(answer)
            .map_err(|_| "device-identity is no protobuf")?;
        let same =
            |got: &Option<Vec<u8>>, sent: &[u8]| got.as_deref().is_none_or(|got| got == sent);
        if identity.details.as_deref() != Some(&offer.details) {
            return Err("device-identity is not the one that was offered");
        }
        if !same(
            &identity.account_signature_key,
            offer.account_key.as_bytes(),
        ) || !same(
            &identity.account_signature,
            offer.account_signature.as_bytes(),
        ) {
            return Err("account signature is not the one that was offered");
        }
        let signature = identity
            .device_signature
            .as_deref()
            .ok_or("device signature is missing")?;
        let signature =
            Signature::from_slice(signature).map_err(|_| "device signature has a wrong length")?;
        let account_key = offer.account_key.as_bytes();
        self.identity
            .verify(
                &[
                    b"\x06\x01",
                    &offer.details,
                    self.identity.as_bytes(),
                    account_key,
                ],
                &signature,
            )
            .map_err(|_| "device signature does not verify")?;
        identity.account_signature_key = Some(account_key.to_vec());
        identity.account_signature = Some(offer.account_signature.as_bytes().to_vec());
        Ok(identity.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_code_is_read() {
        let key = |byte| STANDARD.encode([byte; 32]);
        let plain = format!("2@abc,{},{},{}", key(1), key(2), key(3));
        let forms = [
            plain.clone(),
            format!("{plain},1"),
            format!("{plain},1,more"),
            format!("https://wa.me/settings/linked_devices#{plain},1\n"),
        ];
        for form in &forms {
            let code = Code::parse(form).expect("read");
            assert_eq!(code.reference, "2@abc");
            assert_eq!(
                (
                    code.noise.as_bytes()[0],
                    code.identity.as_bytes()[0],
                    code.secret[0]
                ),
                (1, 2, 3)
            );
        }
        let two_keys = format!("2@abc,{},{}", key(1), key(2));
        let short_key = format!("2@abc,{},{},AAAA", key(1), key(2));
        let broken = ["", "2@abc", ",,,", &two_keys, &short_key];
        for text in broken {
            assert!(Code::parse(text).is_none(), "{text}");
        }
    }
}
