//! Addresses as types: user, LID, group, device.
//!
//! A JID is `user@server`; a device of a user is `user:device@server`. What looks like one kind of thing is several:
//! a phone number (`s.whatsapp.net`), a hidden id of the same person (`lid`), a group, a channel, the chat server
//! itself (no user at all). [`Server`] says which, and [`Jid::phone`] answers only for the first, so that a LID can
//! never print as a phone number.
//!
//! Text form: [`Jid`]'s `Display`; `Display` then `FromStr` gives the same JID back. Wire form: [`crate::wire::node`].
//! Protocol facts: chapters 02.6 (JIDs), 05.12 (session addresses), 07.3 (participant hash).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use smol_str::SmolStr;

/// What follows the `@`: which kind of thing a [`Jid`] addresses (ch. 02.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// `s.whatsapp.net`: a user by phone number; with an empty user the chat server itself.
    User,
    /// `lid`: a user by hidden id.
    Lid,
    /// `hosted`: a device in the provider's cloud, its user by phone number.
    Hosted,
    /// `hosted.lid`: a device in the provider's cloud, its user by hidden id.
    HostedLid,
    /// `g.us`: a group or community.
    Group,
    /// `broadcast`: `status@broadcast` and broadcast lists.
    Broadcast,
    /// `newsletter`: a channel.
    Newsletter,
    /// `c.us`: the old form of a user; still used by `0@c.us`, the service's announcements.
    Legacy,
    /// `bot`: an AI bot.
    Bot,
    /// `msgr`: a Messenger user.
    Messenger,
    /// `interop`: a user of another network, behind an integrator number.
    Interop,
    /// `call`.
    Call,
}

impl Server {
    /// Every server there is. A name outside this list is malformed input.
    pub const ALL: [Self; 12] = [
        Self::User,
        Self::Lid,
        Self::Hosted,
        Self::HostedLid,
        Self::Group,
        Self::Broadcast,
        Self::Newsletter,
        Self::Legacy,
        Self::Bot,
        Self::Messenger,
        Self::Interop,
        Self::Call,
    ];

    /// The name as written after the `@`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "s.whatsapp.net",
            Self::Lid => "lid",
            Self::Hosted => "hosted",
            Self::HostedLid => "hosted.lid",
            Self::Group => "g.us",
            Self::Broadcast => "broadcast",
            Self::Newsletter => "newsletter",
            Self::Legacy => "c.us",
            Self::Bot => "bot",
            Self::Messenger => "msgr",
            Self::Interop => "interop",
            Self::Call => "call",
        }
    }

    /// The domain number that stands for the server in device JIDs on the wire and in session addresses
    /// (ch. 02.6): 0 phone number, 1 LID, 128 hosted, 129 hosted LID. Other servers have none.
    pub const fn domain(self) -> Option<u8> {
        match self {
            Self::User => Some(0),
            Self::Lid => Some(1),
            Self::Hosted => Some(128),
            Self::HostedLid => Some(129),
            _ => None,
        }
    }

    /// The server of a domain number, [`Server::domain`] backwards.
    pub const fn from_domain(domain: u8) -> Option<Self> {
        match domain {
            0 => Some(Self::User),
            1 => Some(Self::Lid),
            128 => Some(Self::Hosted),
            129 => Some(Self::HostedLid),
            _ => None,
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Server {
    type Err = JidError;

    fn from_str(text: &str) -> Result<Self, JidError> {
        Self::ALL
            .into_iter()
            .find(|server| server.as_str() == text)
            .ok_or(JidError::UnknownServer)
    }
}

/// Why something is not a [`Jid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JidError {
    /// The part after the `@` is not one of [`Server::ALL`].
    #[error("unknown server")]
    UnknownServer,
    /// The user part holds `@`, `:`, white space or a control character.
    #[error("character not allowed in a user")]
    Character,
    /// The user part has more than 255 bytes.
    #[error("user of more than 255 bytes")]
    TooLong,
    /// The constructor asked for needs a user.
    #[error("empty user")]
    EmptyUser,
    /// A phone number or a LID is digits only; a group id digits and hyphens.
    #[error("user is not a number")]
    NotANumber,
    /// The device is not a number of 16 bits, or stands behind no user.
    #[error("not a device number")]
    Device,
    /// The old agent field, `user.agent:device@server`, is anything but 0.
    #[error("agent is not 0")]
    Agent,
    /// An interop user `integrator-user` whose integrator is not a number of 16 bits.
    #[error("not an integrator number")]
    Integrator,
}

/// An address: who, on which server, which of their devices.
///
/// `Display`: `user@server`; `user:device@server` for devices above 0; just `server` when there is no user. Two rare
/// forms keep it reversible: an interop user prints as `integrator-user`, and a user with a dot in it that has a
/// device prints with an explicit agent, `user.0:device@server`, because readers take what follows the last dot of
/// `user.N:device` for the agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jid {
    user: SmolStr,
    server: Server,
    device: u16,
    integrator: u16,
}

impl Jid {
    /// `user@server`, device 0. The user may be empty: then it is the server itself that is meant.
    pub fn new(user: &str, server: Server) -> Result<Self, JidError> {
        if user.len() > MAX_USER {
            return Err(JidError::TooLong);
        }
        if !is_user_text(user) {
            return Err(JidError::Character);
        }
        Ok(Self::from_parts(SmolStr::new(user), server, 0, 0))
    }

    /// A user by phone number: digits in international form without `+`.
    pub fn pn(digits: &str) -> Result<Self, JidError> {
        Self::number(digits, Server::User, |c| c.is_ascii_digit())
    }

    /// A user by hidden id.
    pub fn lid(digits: &str) -> Result<Self, JidError> {
        Self::number(digits, Server::Lid, |c| c.is_ascii_digit())
    }

    /// A group: `1203…` or the old form `<creator>-<seconds>`.
    pub fn group(id: &str) -> Result<Self, JidError> {
        Self::number(id, Server::Group, |c| c.is_ascii_digit() || c == b'-')
    }

    /// The chat server itself: `s.whatsapp.net` without a user.
    pub const fn service() -> Self {
        Self {
            user: SmolStr::new_static(""),
            server: Server::User,
            device: 0,
            integrator: 0,
        }
    }

    /// Whether this is [`Jid::service`].
    pub fn is_service(&self) -> bool {
        self.server == Server::User && self.user.is_empty()
    }

    /// The part before the `@`, without device; empty for a server itself.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The part after the `@`.
    pub const fn server(&self) -> Server {
        self.server
    }

    /// The device number; 0 is the phone, and also what a JID without a device has.
    pub const fn device(&self) -> u16 {
        self.device
    }

    /// The network behind an interop user; 0 on every other server.
    pub const fn integrator(&self) -> u16 {
        self.integrator
    }

    /// The same user's device `device`. A JID without a user has no devices and stays as it is.
    #[must_use]
    pub fn with_device(mut self, device: u16) -> Self {
        if !self.user.is_empty() {
            self.device = device;
        }
        self
    }

    /// The same interop user behind integrator `integrator`. Other JIDs have none and stay as they are.
    #[must_use]
    pub fn with_integrator(mut self, integrator: u16) -> Self {
        if self.server == Server::Interop && !self.user.is_empty() {
            self.integrator = integrator;
        }
        self
    }

    /// The JID with device 0: the user, whichever device this was.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            device: 0,
            ..self.clone()
        }
    }

    /// A user by phone number on `s.whatsapp.net`, any device; not the service itself.
    pub fn is_pn(&self) -> bool {
        self.server == Server::User && !self.user.is_empty()
    }

    /// A user by hidden id on `lid`, any device.
    pub fn is_lid(&self) -> bool {
        self.server == Server::Lid && !self.user.is_empty()
    }

    /// Someone with end-to-end sessions: phone number, LID, and both hosted forms.
    pub fn is_user(&self) -> bool {
        self.server.domain().is_some() && !self.user.is_empty()
    }

    /// A group or community.
    pub fn is_group(&self) -> bool {
        self.server == Server::Group && !self.user.is_empty()
    }

    /// `status@broadcast` or a broadcast list.
    pub fn is_broadcast(&self) -> bool {
        self.server == Server::Broadcast && !self.user.is_empty()
    }

    /// A channel.
    pub fn is_newsletter(&self) -> bool {
        self.server == Server::Newsletter && !self.user.is_empty()
    }

    /// Same user on the same server, whatever the devices. A phone number and a LID are never the same user here:
    /// only the mapping knows.
    pub fn same_user(&self, other: &Self) -> bool {
        self.user == other.user
            && self.server == other.server
            && self.integrator == other.integrator
    }

    /// The phone number, for users of `s.whatsapp.net` only.
    pub fn phone(&self) -> Option<&str> {
        self.is_pn().then_some(self.user.as_str())
    }

    /// The address under which sessions are filed: `user:device` for phone numbers, with `_1`, `_128`, `_129` behind
    /// the user for LID, hosted and hosted LID (ch. 05.12). Local only; it never goes on the wire.
    pub fn signal_address(&self) -> String {
        match self.server.domain() {
            None | Some(0) => format!("{}:{}", self.user, self.device),
            Some(domain) => format!("{}_{domain}:{}", self.user, self.device),
        }
    }

    /// Puts a JID together whose user is known to be well-formed (see [`is_user_text`]) and whose numbers are known
    /// to belong to the server.
    pub(crate) const fn from_parts(
        user: SmolStr,
        server: Server,
        device: u16,
        integrator: u16,
    ) -> Self {
        Self {
            user,
            server,
            device,
            integrator,
        }
    }

    fn number(user: &str, server: Server, allowed: impl Fn(u8) -> bool) -> Result<Self, JidError> {
        if user.is_empty() {
            return Err(JidError::EmptyUser);
        }
        if !user.bytes().all(allowed) {
            return Err(JidError::NotANumber);
        }
        Self::new(user, server)
    }
}

/// Longest user part, in bytes. Addresses are names of rows, and no store takes longer names.
const MAX_USER: usize = crate::limits::JID_USER;

/// Whether a text can be the user part of a JID: at most 255 bytes without `@`, `:`, white space and control
/// characters.
pub(crate) fn is_user_text(user: &str) -> bool {
    // Nearly every user is digits: settle those byte by byte, and look at characters only for the rest.
    user.len() <= MAX_USER
        && (user.bytes().all(|b| b.is_ascii_digit())
            || !user
                .chars()
                .any(|c| matches!(c, '@' | ':') || c.is_whitespace() || c.is_control()))
}

/// The participant hash, version 2: which devices a group message was encrypted for, in ten characters (ch. 07.3).
///
/// The input is a set, so neither order nor repetition matters. The result is compared with what the service says;
/// it is no security boundary (48 bits).
pub fn participant_hash<'a>(devices: impl IntoIterator<Item = &'a Jid>) -> String {
    // The agent in front of the device is the literal 0, for every server.
    let lines: BTreeSet<String> = devices
        .into_iter()
        .map(|jid| format!("{}.0:{}@{}", jid.user, jid.device, jid.server))
        .collect();
    let mut hash = Sha256::new();
    for line in &lines {
        hash.update(line.as_bytes());
    }
    let mut text = String::from("2:");
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, f, ..] = digest;
    base64::engine::general_purpose::STANDARD_NO_PAD.encode_string([a, b, c, d, e, f], &mut text);
    text
}

impl fmt::Display for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.user.is_empty() {
            return f.write_str(self.server.as_str());
        }
        if self.server == Server::Interop && (self.integrator != 0 || self.user.contains('-')) {
            write!(f, "{}-", self.integrator)?;
        }
        f.write_str(&self.user)?;
        if self.device != 0 {
            let agent = if self.user.contains('.') { ".0" } else { "" };
            write!(f, "{agent}:{}", self.device)?;
        }
        write!(f, "@{}", self.server)
    }
}

impl fmt::Debug for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for Jid {
    type Err = JidError;

    /// Reads `user@server`, `user:device@server`, `user.0:device@server`, `integrator-user@interop`, and for a server
    /// without user `server` or `@server`.
    fn from_str(text: &str) -> Result<Self, JidError> {
        let (address, server) = text.split_once('@').unwrap_or(("", text));
        let server: Server = server.parse()?;
        let (mut user, device) = match address.split_once(':') {
            None => (address, 0),
            Some((user, device)) => {
                let user = match user.rsplit_once('.') {
                    None => user,
                    Some((user, "0")) => user,
                    Some(_) => return Err(JidError::Agent),
                };
                if user.is_empty() {
                    return Err(JidError::Device);
                }
                (user, decimal(device).ok_or(JidError::Device)?)
            }
        };
        let mut integrator = 0;
        if server == Server::Interop
            && let Some((number, rest)) = user.split_once('-')
        {
            integrator = decimal(number).ok_or(JidError::Integrator)?;
            user = rest;
        }
        if user.is_empty() && (device, integrator) != (0, 0) {
            return Err(JidError::EmptyUser);
        }
        Ok(Self::new(user, server)?
            .with_device(device)
            .with_integrator(integrator))
    }
}

/// Decimal digits only: `str::parse` would also take a plus sign.
fn decimal(text: &str) -> Option<u16> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jid(text: &str) -> Jid {
        text.parse().expect(text)
    }

    #[test]
    fn a_phone_number_and_its_devices() {
        let phone = Jid::pn("15551234567").unwrap();
        assert_eq!(phone.to_string(), "15551234567@s.whatsapp.net");
        assert!(phone.is_pn() && phone.is_user() && !phone.is_lid() && !phone.is_service());
        assert_eq!(phone.phone(), Some("15551234567"));

        let laptop = phone.clone().with_device(13);
        assert_eq!(laptop.to_string(), "15551234567:13@s.whatsapp.net");
        assert_eq!(laptop.bare(), phone);
        assert!(laptop.same_user(&phone) && laptop != phone);
    }

    #[test]
    fn a_lid_is_never_a_phone_number() {
        for text in [
            "100000012345678@lid",
            "100000012345678:13@lid",
            "155512345@hosted",
            "155512345@c.us",
            "1@g.us",
        ] {
            assert_eq!(jid(text).phone(), None, "{text}");
        }
        assert!(!jid("1@lid").same_user(&jid("1@s.whatsapp.net")));
    }

    #[test]
    fn the_service_is_a_server_without_user() {
        assert_eq!(Jid::service().to_string(), "s.whatsapp.net");
        assert_eq!(jid("s.whatsapp.net"), Jid::service());
        assert_eq!(jid("@s.whatsapp.net"), Jid::service());
        assert!(
            Jid::service().is_service() && !Jid::service().is_pn() && !Jid::service().is_user()
        );
        assert_eq!(Jid::service().phone(), None);
        assert_eq!(Jid::service().with_device(3), Jid::service());
        assert!(!jid("g.us").is_service() && !jid("g.us").is_group());
    }

    #[test]
    fn text_with_an_agent_is_read_only_when_the_agent_is_zero() {
        assert_eq!(
            jid("15551234567.0:2@s.whatsapp.net"),
            jid("15551234567:2@s.whatsapp.net")
        );
        assert_eq!(
            jid("15551234567.0:0@s.whatsapp.net"),
            jid("15551234567@s.whatsapp.net")
        );
        assert_eq!(
            "15551234567.1:2@s.whatsapp.net".parse::<Jid>(),
            Err(JidError::Agent)
        );
        // Without a device the dot is part of the user, and it survives getting a device.
        assert_eq!(jid("1234.5@lid").user(), "1234.5");
        assert_eq!(
            jid("1234.5@lid").with_device(6).to_string(),
            "1234.5.0:6@lid"
        );
    }

    #[test]
    fn an_interop_user_shows_its_integrator() {
        let user = jid("1234567890:3@interop").with_integrator(2);
        assert_eq!(user.to_string(), "2-1234567890:3@interop");
        assert_eq!(jid("2-1234567890:3@interop"), user);
        assert_eq!(jid("1@lid").with_integrator(2).integrator(), 0);
        assert_eq!("x-1@interop".parse::<Jid>(), Err(JidError::Integrator));
    }

    #[test]
    fn refused_texts() {
        for (text, error) in [
            ("", JidError::UnknownServer),
            ("15551234567", JidError::UnknownServer),
            ("15551234567@example.org", JidError::UnknownServer),
            ("a@b@s.whatsapp.net", JidError::UnknownServer),
            ("1:@s.whatsapp.net", JidError::Device),
            ("1:65536@s.whatsapp.net", JidError::Device),
            ("1:+5@s.whatsapp.net", JidError::Device),
            ("1:2:3@s.whatsapp.net", JidError::Device),
            (":5@s.whatsapp.net", JidError::Device),
            ("1 2@s.whatsapp.net", JidError::Character),
            ("1\n@lid", JidError::Character),
            ("2-@interop", JidError::EmptyUser),
        ] {
            assert_eq!(text.parse::<Jid>(), Err(error), "{text:?}");
        }
        assert_eq!(Jid::pn(""), Err(JidError::EmptyUser));
        assert_eq!(Jid::pn("+1555"), Err(JidError::NotANumber));
        assert_eq!(Jid::lid("12-3"), Err(JidError::NotANumber));
        assert_eq!(Jid::new("a@b", Server::User), Err(JidError::Character));
        assert!(Jid::group("15551234567-1600000000").unwrap().is_group());
    }

    #[test]
    fn session_addresses() {
        for (text, address) in [
            ("15550001:3@s.whatsapp.net", "15550001:3"),
            ("15550001@s.whatsapp.net", "15550001:0"),
            ("100200300:3@lid", "100200300_1:3"),
            ("15550001:99@hosted", "15550001_128:99"),
            ("100200300:99@hosted.lid", "100200300_129:99"),
        ] {
            assert_eq!(jid(text).signal_address(), address);
        }
    }

    #[test]
    fn participant_hashes_of_the_other_clients() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../tests/vectors/phash.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), 6);
        for case in cases {
            let mut jids: Vec<Jid> = case["jids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|j| jid(j.as_str().unwrap()))
                .collect();
            let expected = case["phash_v2"].as_str().unwrap();
            assert_eq!(participant_hash(&jids), expected);
            jids.reverse();
            jids.extend(jids.clone());
            assert_eq!(
                participant_hash(&jids),
                expected,
                "order and repetition do not matter"
            );
        }
    }

    fn any_jid() -> impl Strategy<Value = Jid> {
        (
            prop_oneof![
                "[0-9]{1,20}",
                "[0-9]{5,13}-[0-9]{10}",
                "[a-z0-9.-]{0,8}",
                "[^@:]{0,12}"
            ],
            prop::sample::select(&Server::ALL[..]),
            prop_oneof![Just(0u16), any::<u16>()],
            any::<u16>(),
        )
            .prop_filter_map("user text", |(user, server, device, integrator)| {
                Some(
                    Jid::new(&user, server)
                        .ok()?
                        .with_device(device)
                        .with_integrator(integrator),
                )
            })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(jid in any_jid()) {
            prop_assert_eq!(jid.to_string().parse::<Jid>(), Ok(jid));
        }

        #[test]
        fn reading_any_text_is_total(text in "\\PC{0,40}") {
            if let Ok(jid) = text.parse::<Jid>() {
                prop_assert_eq!(jid.to_string().parse::<Jid>(), Ok(jid));
            }
        }
    }
}
