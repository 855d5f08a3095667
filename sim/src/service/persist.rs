//! What survives a restart: keys, accounts, queues, and which message ids were used. Connections and books do not.

use super::accounts::{Account, Accounts, Device};
use super::keys::{SignedPreKey, Vault};
use super::phone::Phone;
use super::queue::{Class, Entry, Queue};
use super::settings::{Collections, Primary, SavedLog, SharedKey};
use super::{Certificate, DeviceId, Options, Service};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use baton_core::crypto::{KeyPair, PrivateKey, PublicKey, Rng, Signature};
use baton_core::jid::Jid;
use baton_core::signal::SessionRecord;
use baton_core::wire::node;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why saved bytes do not make a service.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not the JSON that [`Service::save`] writes.
    #[error("the saved state is not readable: {0}")]
    Json(#[from] serde_json::Error),
    /// A field holds no value of its kind.
    #[error("the saved state is damaged: {0}")]
    Field(&'static str),
}

const VERSION: u32 = 1;

/// Bytes as base64 text.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Blob(String);

impl Blob {
    fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(STANDARD.encode(bytes))
    }

    fn bytes(&self) -> Result<Vec<u8>, RestoreError> {
        STANDARD
            .decode(&self.0)
            .map_err(|_| RestoreError::Field("base64"))
    }

    fn pair(pair: &KeyPair) -> Self {
        Self::new(pair.private.to_bytes().as_slice())
    }

    fn key_pair(&self) -> Result<KeyPair, RestoreError> {
        let private = PrivateKey::from_slice(&self.bytes()?)
            .map_err(|_| RestoreError::Field("private key"))?;
        Ok(KeyPair::from_private(private))
    }

    fn key(key: &PublicKey) -> Self {
        Self::new(key.as_bytes())
    }

    fn public(&self) -> Result<PublicKey, RestoreError> {
        PublicKey::from_slice(&self.bytes()?).map_err(|_| RestoreError::Field("public key"))
    }

    fn signature(&self) -> Result<Signature, RestoreError> {
        Signature::from_slice(&self.bytes()?).map_err(|_| RestoreError::Field("signature"))
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    root: Blob,
    server: Blob,
    chain: Blob,
    counter: u64,
    accounts: Vec<AccountState>,
    recent: Vec<(DeviceId, Vec<String>)>,
}

#[derive(Serialize, Deserialize)]
struct AccountState {
    pn: String,
    lid: String,
    raw_id: u32,
    last_device: u16,
    last_index: u32,
    changed: u64,
    watchers: Vec<String>,
    phone: PhoneState,
    devices: Vec<DeviceState>,
    #[serde(default)]
    keys: BTreeMap<u32, SharedKey>,
    #[serde(default)]
    settings: Vec<LogState>,
}

/// One collection: its patches, or only what is left of those that were forgotten.
#[derive(Serialize, Deserialize)]
struct LogState {
    name: String,
    version: u64,
    records: Vec<Blob>,
    mac: Option<(Blob, Option<Blob>)>,
    patches: Vec<(DeviceId, Blob)>,
}

#[derive(Serialize, Deserialize)]
struct PhoneState {
    identity: Blob,
    push_name: String,
    registration: u32,
    signed: Blob,
    signature: Blob,
    one_time: Vec<(u32, Blob)>,
    last_one_time: u32,
    sessions: Vec<(DeviceId, Blob)>,
}

#[derive(Serialize, Deserialize)]
struct DeviceState {
    device: u16,
    noise: Blob,
    key_index: u32,
    identity_proof: Blob,
    push_name: Option<String>,
    bootstrapped: bool,
    registration: u32,
    identity: Blob,
    signed: (u32, Blob, Blob),
    pool: Vec<u32>,
    bound: Vec<(u32, Blob)>,
    bound_signed: Vec<(u32, Blob)>,
    queue: Vec<EntryState>,
}

#[derive(Serialize, Deserialize)]
struct EntryState {
    class: Class,
    id: String,
    peer: Option<DeviceId>,
    node: Blob,
    sent: u32,
}

impl Service {
    /// Everything a later process needs to go on: JSON, private keys included.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let state = State {
            version: VERSION,
            root: Blob::pair(&self.certificate.root),
            server: Blob::pair(&self.certificate.server),
            chain: Blob::new(&self.certificate.chain),
            counter: self.counter,
            accounts: self.accounts.iter().map(AccountState::of).collect(),
            recent: self
                .recent
                .iter()
                .map(|(device, recent)| {
                    (
                        device.clone(),
                        recent.ids().map(ToString::to_string).collect(),
                    )
                })
                .collect(),
        };
        serde_json::to_vec(&state).unwrap_or_default()
    }

    /// A service that goes on where [`Self::save`] was called. Nobody is connected; what was delivered and not
    /// answered is delivered again.
    pub fn restore(options: Options, seed: [u8; 32], saved: &[u8]) -> Result<Self, RestoreError> {
        let state: State = serde_json::from_slice(saved)?;
        if state.version != VERSION {
            return Err(RestoreError::Field("version"));
        }
        let certificate = Certificate {
            root: state.root.key_pair()?,
            server: state.server.key_pair()?,
            chain: state.chain.bytes()?,
        };
        let mut accounts = Accounts::default();
        for account in state.accounts {
            accounts.insert(account.account()?);
        }
        let mut service = Self::with(options, Rng::from_seed(seed), certificate, accounts);
        service.reread_all_settings();
        service.counter = state.counter;
        for (device, ids) in state.recent {
            let recent = service.recent.entry(device).or_default();
            for id in ids {
                recent.insert(id.into());
            }
        }
        Ok(service)
    }
}

impl AccountState {
    fn of(account: &Account) -> Self {
        Self {
            pn: account.pn.to_string(),
            lid: account.lid.to_string(),
            raw_id: account.raw_id,
            last_device: account.last_device,
            last_index: account.last_index,
            changed: account.changed,
            watchers: account.watchers.iter().map(ToString::to_string).collect(),
            phone: PhoneState::of(&account.phone),
            devices: account
                .devices
                .iter()
                .map(|(number, device)| DeviceState::of(*number, device))
                .collect(),
            keys: account.primary.keys().clone(),
            settings: account
                .collections
                .saved()
                .map(|saved| LogState {
                    name: saved.name.to_owned(),
                    version: saved.version,
                    records: saved.records.iter().map(Blob::new).collect(),
                    mac: saved
                        .mac
                        .map(|(mac, id)| (Blob::new(mac), id.map(Blob::new))),
                    patches: saved
                        .patches
                        .into_iter()
                        .map(|(by, patch)| (by, Blob::new(patch)))
                        .collect(),
                })
                .collect(),
        }
    }

    fn account(self) -> Result<Account, RestoreError> {
        let jid = |text: &str| text.parse::<Jid>().map_err(|_| RestoreError::Field("jid"));
        let mut devices = BTreeMap::new();
        for device in self.devices {
            devices.insert(device.device, device.device_of()?);
        }
        let mut primary = Primary::default();
        primary.restore_keys(self.keys);
        let mut collections = Collections::default();
        for log in self.settings {
            let blobs =
                |blobs: Vec<Blob>| blobs.iter().map(Blob::bytes).collect::<Result<Vec<_>, _>>();
            let mac = log.mac.map(|(mac, id)| {
                Ok::<_, RestoreError>((mac.bytes()?, id.map(|id| id.bytes()).transpose()?))
            });
            let (by, patches): (Vec<_>, Vec<_>) = log.patches.into_iter().unzip();
            let saved = SavedLog {
                name: &log.name,
                version: log.version,
                records: blobs(log.records)?,
                mac: mac.transpose()?,
                patches: by.into_iter().zip(blobs(patches)?).collect(),
            };
            collections
                .restore(saved)
                .ok_or(RestoreError::Field("settings"))?;
        }
        Ok(Account {
            collections,
            primary,
            pn: jid(&self.pn)?,
            lid: jid(&self.lid)?,
            raw_id: self.raw_id,
            last_device: self.last_device,
            last_index: self.last_index,
            changed: self.changed,
            phone: self.phone.phone()?,
            devices,
            watchers: self.watchers.into_iter().map(Into::into).collect(),
        })
    }
}

impl PhoneState {
    fn of(phone: &Phone) -> Self {
        Self {
            identity: Blob::pair(&phone.identity),
            push_name: phone.push_name.to_string(),
            registration: phone.registration,
            signed: Blob::pair(&phone.signed),
            signature: Blob::new(phone.signature.as_bytes()),
            one_time: phone
                .one_time
                .iter()
                .map(|(id, pair)| (*id, Blob::pair(pair)))
                .collect(),
            last_one_time: phone.last_one_time,
            sessions: phone
                .sessions
                .iter()
                .map(|(peer, record)| (peer.clone(), Blob::new(record.encode())))
                .collect(),
        }
    }

    fn phone(self) -> Result<Phone, RestoreError> {
        let mut phone = Phone::from_keys(
            self.identity.key_pair()?,
            self.push_name.into(),
            self.registration,
            self.signed.key_pair()?,
            self.signature.signature()?,
        );
        for (id, pair) in self.one_time {
            phone.one_time.insert(id, pair.key_pair()?);
        }
        phone.last_one_time = self.last_one_time;
        for (peer, record) in self.sessions {
            let record = SessionRecord::decode(&record.bytes()?)
                .map_err(|_| RestoreError::Field("session"))?;
            phone.sessions.insert(peer, record);
        }
        Ok(phone)
    }
}

impl DeviceState {
    fn of(number: u16, device: &Device) -> Self {
        let Device { vault, queue, .. } = device;
        let keys = |bound: &BTreeMap<u32, PublicKey>| {
            bound
                .iter()
                .map(|(id, key)| (*id, Blob::key(key)))
                .collect()
        };
        Self {
            device: number,
            noise: Blob::key(&device.noise),
            key_index: device.key_index,
            identity_proof: Blob::new(&device.identity_proof),
            push_name: device.push_name.as_ref().map(ToString::to_string),
            bootstrapped: device.bootstrapped,
            registration: vault.registration,
            identity: Blob::key(&vault.identity),
            signed: (
                vault.signed.id,
                Blob::key(&vault.signed.key),
                Blob::new(vault.signed.signature.as_bytes()),
            ),
            pool: vault.pool.iter().map(|(id, _)| *id).collect(),
            bound: keys(&vault.bound),
            bound_signed: keys(&vault.bound_signed),
            queue: queue.iter().filter_map(EntryState::of).collect(),
        }
    }

    fn device_of(self) -> Result<Device, RestoreError> {
        let (id, key, signature) = self.signed;
        let signed = SignedPreKey {
            id,
            key: key.public()?,
            signature: signature.signature()?,
        };
        let mut vault = Vault::new(self.registration, self.identity.public()?, signed);
        for (id, key) in self.bound {
            vault.bound.insert(id, key.public()?);
        }
        for (id, key) in self.bound_signed {
            vault.bound_signed.insert(id, key.public()?);
        }
        for id in self.pool {
            let key = *vault.bound.get(&id).ok_or(RestoreError::Field("pool"))?;
            vault.pool.push_back((id, key));
        }
        let mut queue = Queue::default();
        for entry in self.queue {
            queue.push(entry.entry()?);
        }
        Ok(Device {
            noise: self.noise.public()?,
            key_index: self.key_index,
            identity_proof: self.identity_proof.bytes()?,
            vault,
            queue,
            push_name: self.push_name.map(Into::into),
            available: false,
            bootstrapped: self.bootstrapped,
        })
    }
}

impl EntryState {
    fn of(entry: &Entry) -> Option<Self> {
        let mut bytes = Vec::new();
        node::encode(&entry.node, &mut bytes).ok()?;
        Some(Self {
            class: entry.class,
            id: entry.id.to_string(),
            peer: entry.peer.clone(),
            node: Blob::new(bytes),
            sent: entry.sent,
        })
    }

    fn entry(self) -> Result<Entry, RestoreError> {
        let node = node::decode_owned(&self.node.bytes()?)
            .map_err(|_| RestoreError::Field("queued stanza"))?;
        Ok(Entry {
            class: self.class,
            id: self.id.into(),
            peer: self.peer,
            node,
            sent: self.sent,
            sent_on: None,
        })
    }
}
