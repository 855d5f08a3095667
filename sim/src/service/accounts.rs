//! Accounts and their devices, as the service knows them.
//!
//! An account has two names, a phone number and a LID, and both name the same devices by the same numbers. Inside the
//! service a device is a [`DeviceId`] (phone number and device number); the two written forms appear only where a
//! stanza is read or written, as a [`Form`].

use super::books::hex;
use super::keys::Vault;
use super::phone::Phone;
use super::queue::Queue;
use super::settings::{Collections, Primary};
use baton_core::crypto::{KeyPair, PublicKey, Rng};
use baton_core::jid::{Jid, Server, participant_hash};
use baton_core::proto::adv;
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A device, whatever form a stanza names it in. Prints as `15550000001:1`; device 0, the phone, without `:0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The account's phone number, digits only.
    pub phone: SmolStr,
    /// The number within the account.
    pub device: u16,
}

impl DeviceId {
    /// Device `device` of the account with phone number `phone`.
    #[must_use]
    pub fn new(phone: &str, device: u16) -> Self {
        Self {
            phone: phone.into(),
            device,
        }
    }

    /// Whether this is the account's phone, which the service plays itself.
    #[must_use]
    pub fn is_phone(&self) -> bool {
        self.device == 0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.device == 0 {
            f.write_str(&self.phone)
        } else {
            write!(f, "{}:{}", self.phone, self.device)
        }
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (phone, device) = text.split_once(':').unwrap_or((&text, "0"));
        let device = device.parse().map_err(serde::de::Error::custom)?;
        Ok(Self::new(phone, device))
    }
}

/// In which of its two names a stanza speaks of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `…@s.whatsapp.net`
    Pn,
    /// `…@lid`
    Lid,
}

impl Form {
    /// The form of a user's JID; anything that is not a LID counts as a phone number.
    pub(super) fn of(jid: &Jid) -> Self {
        if jid.server() == Server::Lid {
            Self::Lid
        } else {
            Self::Pn
        }
    }
}

/// One account: one phone number, one LID, one phone, some companions.
pub(super) struct Account {
    pub(super) pn: Jid,
    pub(super) lid: Jid,
    /// Ties key indexes to this incarnation of the account; the same in identities and key-index lists.
    pub(super) raw_id: u32,
    /// The last companion number and key index given out; neither is ever given twice.
    pub(super) last_device: u16,
    pub(super) last_index: u32,
    /// When the device set last changed, unix seconds.
    pub(super) changed: u64,
    pub(super) phone: Phone,
    /// What the service keeps of its settings.
    pub(super) collections: Collections,
    /// What the phone knows of them.
    pub(super) primary: Primary,
    pub(super) devices: BTreeMap<u16, Device>,
    /// Accounts that asked for this one's devices and must hear of changes.
    pub(super) watchers: BTreeSet<SmolStr>,
}

/// A paired companion.
pub(super) struct Device {
    pub(super) noise: PublicKey,
    pub(super) key_index: u32,
    /// The whole ADVSignedDeviceIdentity, account key and both signatures included: part of every bundle.
    pub(super) identity_proof: Vec<u8>,
    pub(super) vault: Vault,
    pub(super) queue: Queue,
    pub(super) push_name: Option<SmolStr>,
    /// Announced presence `available` on the connection it has.
    pub(super) available: bool,
    /// Whether the phone has sent it the app-state key share that follows the first login.
    pub(super) bootstrapped: bool,
}

/// All accounts, findable by either name.
#[derive(Default)]
pub(super) struct Accounts {
    by_phone: BTreeMap<SmolStr, Account>,
    phone_of_lid: BTreeMap<SmolStr, SmolStr>,
}

impl Account {
    /// The account's own JID in one of its forms.
    pub(super) fn jid(&self, form: Form) -> &Jid {
        match form {
            Form::Pn => &self.pn,
            Form::Lid => &self.lid,
        }
    }

    /// Every device in one form, the phone first.
    pub(super) fn device_jids(&self, form: Form) -> Vec<Jid> {
        self.device_numbers()
            .map(|device| self.jid(form).clone().with_device(device))
            .collect()
    }

    /// Every device number, the phone's 0 first.
    pub(super) fn device_numbers(&self) -> impl Iterator<Item = u16> + '_ {
        std::iter::once(0).chain(self.devices.keys().copied())
    }

    /// A device number and a key index that no companion has had; none when the numbers are used up.
    pub(super) fn next_companion(&mut self) -> Option<(u16, u32)> {
        // Clients take device 99 for a hosted one and do not encrypt for it (chapter 05.12).
        let device = self
            .last_device
            .checked_add(if self.last_device == 98 { 2 } else { 1 })?;
        let index = self.last_index.checked_add(1)?;
        (self.last_device, self.last_index) = (device, index);
        Some((device, index))
    }

    /// The hash of the device list, as notifications carry it.
    pub(super) fn device_hash(&self, form: Form) -> String {
        participant_hash(self.device_jids(form).iter())
    }

    /// The list of valid key indexes, signed by the account (chapter 10.8).
    pub(super) fn key_index_list(&self, rng: &mut Rng) -> Vec<u8> {
        let details = adv::AdvKeyIndexList {
            raw_id: Some(self.raw_id),
            timestamp: Some(self.changed),
            current_index: Some(self.last_index),
            valid_indexes: self
                .devices
                .values()
                .map(|device| device.key_index)
                .collect(),
            account_type: None,
        }
        .encode_to_vec();
        let signature = self
            .phone
            .identity
            .private
            .sign(&[b"\x06\x02", &details], rng);
        adv::AdvSignedKeyIndexList {
            details: Some(details),
            account_signature: Some(signature.as_bytes().to_vec()),
            account_signature_key: Some(self.phone.identity.public.as_bytes().to_vec()),
        }
        .encode_to_vec()
    }

    /// The name that goes into `notify` of messages from `device`.
    pub(super) fn push_name(&self, device: u16) -> &str {
        self.devices
            .get(&device)
            .and_then(|d| d.push_name.as_deref())
            .unwrap_or(&self.phone.push_name)
    }
}

/// Why there cannot be such an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a phone number has 5 to 15 digits")]
pub struct BadPhoneNumber;

impl Accounts {
    /// The account of `phone`, made if there is none yet.
    pub(super) fn get_or_create(
        &mut self,
        phone: &str,
        now_secs: u64,
        rng: &mut Rng,
    ) -> Result<&mut Account, BadPhoneNumber> {
        if !self.by_phone.contains_key(phone) {
            if !(5..=15).contains(&phone.len()) || phone.starts_with('0') {
                return Err(BadPhoneNumber);
            }
            let pn = Jid::pn(phone).map_err(|_| BadPhoneNumber)?;
            // LIDs are opaque; counting from a round number keeps them readable and as long as real ones.
            let lid = Jid::lid(&(100_000_000_000_001 + self.by_phone.len() as u64).to_string())
                .map_err(|_| BadPhoneNumber)?;
            let account = Account {
                pn,
                lid,
                raw_id: rng.next_u32() >> 1,
                last_device: 0,
                last_index: 0,
                changed: now_secs,
                phone: Phone::new(KeyPair::generate(rng), format!("Phone {phone}").into(), rng),
                collections: Collections::default(),
                primary: Primary::default(),
                devices: BTreeMap::new(),
                watchers: BTreeSet::new(),
            };
            self.insert(account);
        }
        self.by_phone.get_mut(phone).ok_or(BadPhoneNumber)
    }

    /// A number that no account has.
    pub(super) fn free_number(&self) -> String {
        (15_550_000_001u64..)
            .map(|n| n.to_string())
            .find(|n| !self.by_phone.contains_key(n.as_str()))
            .unwrap_or_default()
    }

    pub(super) fn insert(&mut self, account: Account) {
        let phone = SmolStr::from(account.pn.user());
        self.phone_of_lid
            .insert(account.lid.user().into(), phone.clone());
        self.by_phone.insert(phone, account);
    }

    pub(super) fn get(&self, phone: &str) -> Option<&Account> {
        self.by_phone.get(phone)
    }

    pub(super) fn get_mut(&mut self, phone: &str) -> Option<&mut Account> {
        self.by_phone.get_mut(phone)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.by_phone.values()
    }

    pub(super) fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.by_phone.get(&id.phone)?.devices.get(&id.device)
    }

    pub(super) fn device_mut(&mut self, id: &DeviceId) -> Option<&mut Device> {
        self.by_phone
            .get_mut(&id.phone)?
            .devices
            .get_mut(&id.device)
    }

    /// The device a JID names, if there is such an account; the device itself need not exist.
    pub(super) fn resolve(&self, jid: &Jid) -> Option<DeviceId> {
        let phone = match jid.server() {
            Server::User | Server::Legacy => self.by_phone.get_key_value(jid.user())?.0,
            Server::Lid => self.phone_of_lid.get(jid.user())?,
            _ => return None,
        };
        Some(DeviceId {
            phone: phone.clone(),
            device: jid.device(),
        })
    }

    /// Whether the device exists: the phone of a known account, or a paired companion.
    pub(super) fn exists(&self, id: &DeviceId) -> bool {
        self.by_phone
            .get(&id.phone)
            .is_some_and(|a| id.is_phone() || a.devices.contains_key(&id.device))
    }

    /// A device's JID in one of its forms.
    pub(super) fn jid(&self, id: &DeviceId, form: Form) -> Option<Jid> {
        Some(
            self.by_phone
                .get(&id.phone)?
                .jid(form)
                .clone()
                .with_device(id.device),
        )
    }

    /// An account's JID, without device.
    pub(super) fn user(&self, phone: &str, form: Form) -> Option<Jid> {
        Some(self.by_phone.get(phone)?.jid(form).clone())
    }

    /// Every device of an account.
    pub(super) fn devices_of(&self, phone: &str) -> Vec<DeviceId> {
        self.by_phone.get(phone).map_or_else(Vec::new, |account| {
            account
                .device_numbers()
                .map(|device| DeviceId::new(phone, device))
                .collect()
        })
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.by_phone
                    .iter()
                    .map(|(phone, a)| (phone, (&a.lid, a.devices.keys().collect::<Vec<_>>()))),
            )
            .finish()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Device(key index {}, noise {})",
            self.key_index,
            hex(self.noise.as_bytes())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_resolve_to_the_same_device() {
        let (mut accounts, mut rng) = (Accounts::default(), Rng::from_seed([1; 32]));
        accounts
            .get_or_create("15550000001", 0, &mut rng)
            .expect("created");
        accounts
            .get_or_create("15550000002", 0, &mut rng)
            .expect("created");
        let lid = accounts
            .jid(&DeviceId::new("15550000002", 3), Form::Lid)
            .expect("known");
        assert_eq!(lid.to_string(), "100000000000002:3@lid");
        assert_eq!(
            accounts.resolve(&lid),
            Some(DeviceId::new("15550000002", 3))
        );
        let pn = accounts
            .jid(&DeviceId::new("15550000002", 3), Form::Pn)
            .expect("known");
        assert_eq!(accounts.resolve(&pn), accounts.resolve(&lid));
        assert_eq!(accounts.resolve(&Jid::service()), None);
        assert!(!accounts.exists(&DeviceId::new("15550000002", 3)));
        assert!(accounts.exists(&DeviceId::new("15550000002", 0)));
        assert_eq!(accounts.free_number(), "15550000003");
    }

    #[test]
    fn companion_numbers_are_never_used_twice_and_never_99() {
        let (mut accounts, mut rng) = (Accounts::default(), Rng::from_seed([1; 32]));
        let account = accounts
            .get_or_create("15550000001", 0, &mut rng)
            .expect("created");
        let numbers: Vec<u16> = (0..100)
            .filter_map(|_| account.next_companion())
            .map(|(device, _)| device)
            .collect();
        assert_eq!(numbers, (1..=101).filter(|n| *n != 99).collect::<Vec<_>>());
        account.last_device = u16::MAX;
        assert_eq!(account.next_companion(), None);
    }

    #[test]
    fn numbers_that_no_phone_has_are_refused() {
        let (mut accounts, mut rng) = (Accounts::default(), Rng::from_seed([1; 32]));
        for bad in [
            "",
            "123",
            "0155500001",
            "+15550000001",
            "1555000000100000",
            "15550000001:1",
        ] {
            assert!(accounts.get_or_create(bad, 0, &mut rng).is_err(), "{bad}");
        }
    }

    #[test]
    fn device_ids_survive_json() {
        for id in [
            DeviceId::new("15550000001", 0),
            DeviceId::new("15550000001", 12),
        ] {
            let json = serde_json::to_string(&id).expect("json");
            assert_eq!(serde_json::from_str::<DeviceId>(&json).expect("back"), id);
        }
    }
}
