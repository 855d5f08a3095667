//! What an account is: its keys, its addresses, its state. One row ([`Key::Device`](crate::state::Key::Device)) that is
//! in memory for as long as the engine lives.

use crate::{
    crypto::{KeyPair, PrivateKey, Rng, Signature},
    jid::Jid,
    proto::record::{self, device::State},
    signal::LocalIdentity,
    state::{
        Record,
        codec::{self, RowError, key_bytes},
    },
    wire::noise::ServerIdentity,
};
use std::fmt;
use zeroize::Zeroizing;

/// How many signed pre-keys stay usable: the current one and two older, for messages still on their way.
const SIGNED_PRE_KEYS: usize = 3;

/// A signed pre-key of ours.
#[derive(Clone)]
pub(crate) struct SignedPreKey {
    pub(crate) id: u32,
    pub(crate) pair: KeyPair,
    pub(crate) signature: Signature,
    /// Unix seconds.
    pub(crate) made_at: i64,
}

/// Whether the account is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkState {
    /// Never linked.
    New,
    /// Linked to a phone.
    Linked,
    /// The link was ended by the phone, the service or a command, with this code. Keys are kept.
    LoggedOut(u16),
}

/// The account's own data.
pub(crate) struct Account {
    pub(crate) state: LinkState,
    pub(crate) noise: KeyPair,
    pub(crate) identity: KeyPair,
    pub(crate) adv_secret: Zeroizing<[u8; 32]>,
    pub(crate) registration_id: u32,
    /// Newest first, never empty.
    pub(crate) signed_pre_keys: Vec<SignedPreKey>,
    /// The next one, while the service has not confirmed it.
    pub(crate) staged: Option<SignedPreKey>,
    pub(crate) jid: Option<Jid>,
    pub(crate) lid: Option<Jid>,
    /// ADVSignedDeviceIdentity with account key and device signature, as messages carry it.
    pub(crate) adv: Option<Vec<u8>>,
    pub(crate) platform: Option<String>,
    pub(crate) push_name: Option<String>,
    pub(crate) routing_info: Option<Vec<u8>>,
    pub(crate) server: Option<ServerIdentity>,
    pub(crate) logins: u32,
}

impl Account {
    /// Keys for an account that has none.
    pub(crate) fn create(rng: &mut Rng, unix_secs: i64) -> Self {
        let identity = KeyPair::generate(rng);
        let signed = SignedPreKey::generate(1, &identity, rng, unix_secs);
        Self {
            state: LinkState::New,
            noise: KeyPair::generate(rng),
            adv_secret: Zeroizing::new(rng.bytes()),
            // 14 bits, as all clients but one draw it; 0 is not used.
            registration_id: 1 + u32::try_from(rng.below(16380)).unwrap_or(0),
            signed_pre_keys: vec![signed],
            staged: None,
            identity,
            jid: None,
            lid: None,
            adv: None,
            platform: None,
            push_name: None,
            routing_info: None,
            server: None,
            logins: 0,
        }
    }

    pub(crate) fn from_record(row: &Record) -> Result<Self, RowError> {
        let row: record::Device = codec::decode(row)?;
        let pair = |field: Option<&Vec<u8>>| {
            key_bytes(field).map(|bytes| KeyPair::from_private(PrivateKey::from_bytes(*bytes)))
        };
        let jid = |field: Option<&String>| {
            field
                .map(|text| text.parse())
                .transpose()
                .map_err(|_| RowError::Malformed)
        };
        let signed = |key: &record::SignedPreKey| {
            let signature = key.signature.as_deref().unwrap_or_default();
            Ok(SignedPreKey {
                id: key.id.ok_or(RowError::Malformed)?,
                pair: pair(key.private.as_ref())?,
                signature: Signature::from_slice(signature).map_err(|_| RowError::Malformed)?,
                made_at: key.made_at.unwrap_or(0),
            })
        };
        let signed_pre_keys = row
            .signed_pre_keys
            .iter()
            .map(signed)
            .collect::<Result<Vec<_>, RowError>>()?;
        let staged = row.staged_signed_pre_key.as_ref().map(signed).transpose()?;
        if signed_pre_keys.is_empty() {
            return Err(RowError::Malformed);
        }
        Ok(Self {
            state: link_state(&row),
            noise: pair(row.noise_private.as_ref())?,
            identity: pair(row.identity_private.as_ref())?,
            adv_secret: key_bytes(row.adv_secret.as_ref())?,
            registration_id: row.registration_id.ok_or(RowError::Malformed)?,
            signed_pre_keys,
            staged,
            jid: jid(row.jid.as_ref())?,
            lid: jid(row.lid.as_ref())?,
            adv: row.account,
            platform: row.platform,
            push_name: row.push_name,
            routing_info: row.routing_info,
            // A cache: if it cannot be read, the next handshake is a full one.
            server: row
                .server_identity
                .and_then(|bytes| ServerIdentity::decode(&bytes)),
            logins: row.logins.unwrap_or(0),
        })
    }

    pub(crate) fn to_record(&self) -> Record {
        let secret = |pair: &KeyPair| Some(pair.private.to_bytes().to_vec());
        let signed = |key: &SignedPreKey| record::SignedPreKey {
            id: Some(key.id),
            private: secret(&key.pair),
            signature: Some(key.signature.as_bytes().to_vec()),
            made_at: Some(key.made_at),
        };
        let (state, code) = match self.state {
            LinkState::New => (State::New, None),
            LinkState::Linked => (State::Linked, None),
            LinkState::LoggedOut(code) => (State::LoggedOut, Some(u32::from(code))),
        };
        codec::encode(&record::Device {
            state: Some(state.into()),
            logged_out_code: code,
            noise_private: secret(&self.noise),
            identity_private: secret(&self.identity),
            adv_secret: Some(self.adv_secret.to_vec()),
            registration_id: Some(self.registration_id),
            signed_pre_keys: self.signed_pre_keys.iter().map(signed).collect(),
            staged_signed_pre_key: self.staged.as_ref().map(signed),
            jid: self.jid.as_ref().map(ToString::to_string),
            lid: self.lid.as_ref().map(ToString::to_string),
            account: self.adv.clone(),
            platform: self.platform.clone(),
            push_name: self.push_name.clone(),
            routing_info: self.routing_info.clone(),
            server_identity: self.server.as_ref().map(ServerIdentity::encode),
            logins: Some(self.logins),
        })
    }

    pub(crate) fn local(&self) -> LocalIdentity<'_> {
        LocalIdentity {
            key_pair: &self.identity,
            registration_id: self.registration_id,
        }
    }

    /// The current signed pre-key.
    pub(crate) fn signed_pre_key(&self) -> Option<&SignedPreKey> {
        self.signed_pre_keys.first()
    }

    /// The signed pre-key that a message names.
    pub(crate) fn signed_pre_key_by_id(&self, id: u32) -> Option<&KeyPair> {
        self.staged
            .iter()
            .chain(&self.signed_pre_keys)
            .find(|key| key.id == id)
            .map(|key| &key.pair)
    }

    /// The service has confirmed the staged signed pre-key: it becomes the current one, the oldest is forgotten.
    pub(crate) fn promote_staged(&mut self) {
        if let Some(key) = self.staged.take() {
            self.signed_pre_keys.insert(0, key);
            self.signed_pre_keys.truncate(SIGNED_PRE_KEYS);
        }
    }

    /// Whether `jid` is a device of this account, under either address.
    pub(crate) fn is_mine(&self, jid: &Jid) -> bool {
        [&self.jid, &self.lid]
            .into_iter()
            .flatten()
            .any(|own| own.same_user(jid))
    }

    /// Whether `jid` is this very device.
    pub(crate) fn is_me(&self, jid: &Jid) -> bool {
        self.is_mine(jid)
            && [&self.jid, &self.lid]
                .into_iter()
                .flatten()
                .any(|own| own.device() == jid.device())
    }

    /// The address under which other devices file sessions with us: the LID if there is one.
    pub(crate) fn address(&self) -> Option<&Jid> {
        self.lid.as_ref().or(self.jid.as_ref())
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.state == LinkState::Linked && self.jid.is_some()
    }
}

impl SignedPreKey {
    pub(crate) fn generate(id: u32, identity: &KeyPair, rng: &mut Rng, unix_secs: i64) -> Self {
        let pair = KeyPair::generate(rng);
        // Over the 33-byte form, with the type byte (fact sheet 05.2).
        let signature = identity.private.sign(&[&pair.public.serialize()], rng);
        Self {
            id,
            pair,
            signature,
            made_at: unix_secs,
        }
    }
}

fn link_state(row: &record::Device) -> LinkState {
    match row.state() {
        State::New => LinkState::New,
        State::Linked => LinkState::Linked,
        State::LoggedOut => LinkState::LoggedOut(
            row.logged_out_code
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
        ),
    }
}

/// What can be told about an account without being its owner.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceSummary {
    /// Linked?
    pub state: LinkState,
    /// Phone-number address with device.
    pub jid: Option<Jid>,
    /// LID with device.
    pub lid: Option<Jid>,
    /// What the account calls itself.
    pub push_name: Option<String>,
    /// What the phone runs.
    pub platform: Option<String>,
}

/// Whether it is linked; not to whom.
impl fmt::Debug for DeviceSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSummary({:?})", self.state)
    }
}

/// Reads the row under [`Key::Device`](crate::state::Key::Device).
pub fn describe_device(row: &Record) -> Result<DeviceSummary, RowError> {
    let account = Account::from_record(row)?;
    Ok(DeviceSummary {
        state: account.state,
        jid: account.jid,
        lid: account.lid,
        push_name: account.push_name,
        platform: account.platform,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_survives_its_row() {
        let mut rng = Rng::from_seed([7; 32]);
        let mut account = Account::create(&mut rng, 0);
        account.state = LinkState::LoggedOut(401);
        account.jid = Some("15550000001:3@s.whatsapp.net".parse().unwrap());
        account.lid = Some("100000000000001:3@lid".parse().unwrap());
        account.adv = Some(vec![1, 2, 3]);
        account.routing_info = Some(vec![8]);
        account.logins = 4;
        for id in 2..=4 {
            account.staged = Some(SignedPreKey::generate(id, &account.identity, &mut rng, 9));
            assert!(
                account.signed_pre_key_by_id(id).is_some(),
                "usable as soon as it may have been seen"
            );
            account.promote_staged();
        }
        let row = account.to_record();
        let again = Account::from_record(&row).unwrap();
        assert_eq!(again.to_record(), row);
        assert_eq!(again.identity.public, account.identity.public);
        assert_eq!(
            again
                .signed_pre_keys
                .iter()
                .map(|key| key.id)
                .collect::<Vec<_>>(),
            [4, 3, 2]
        );
        let key = again.signed_pre_key().unwrap();
        assert!(
            again
                .identity
                .public
                .verify(&[&key.pair.public.serialize()], &key.signature)
                .is_ok()
        );
        assert_eq!(
            describe_device(&row).unwrap().state,
            LinkState::LoggedOut(401)
        );
    }

    #[test]
    fn knows_itself_under_both_addresses() {
        let mut account = Account::create(&mut Rng::from_seed([1; 32]), 0);
        account.jid = Some("15550000001:3@s.whatsapp.net".parse().unwrap());
        account.lid = Some("100000000000001:3@lid".parse().unwrap());
        let is = |text: &str| {
            let jid: Jid = text.parse().unwrap();
            (account.is_mine(&jid), account.is_me(&jid))
        };
        assert_eq!(is("15550000001:3@s.whatsapp.net"), (true, true));
        assert_eq!(is("100000000000001:3@lid"), (true, true));
        assert_eq!(is("15550000001@s.whatsapp.net"), (true, false));
        assert_eq!(is("15550000002:3@s.whatsapp.net"), (false, false));
        // The same digits as a LID are another user.
        assert_eq!(is("15550000001:3@lid"), (false, false));
    }

    #[test]
    fn a_damaged_row_is_an_error() {
        let mut rng = Rng::from_seed([7; 32]);
        let whole = Account::create(&mut rng, 0).to_record();
        let mut row: record::Device = codec::decode(&whole).unwrap();
        row.identity_private = Some(vec![0; 31]);
        assert_eq!(
            Account::from_record(&codec::encode(&row)).err(),
            Some(RowError::Malformed)
        );
        row = codec::decode(&whole).unwrap();
        row.signed_pre_keys.clear();
        assert_eq!(
            Account::from_record(&codec::encode(&row)).err(),
            Some(RowError::Malformed)
        );
    }
}
