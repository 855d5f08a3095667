//! From the handshake to `online`: the client payload, `<success>` and what follows it, keepalive, and every way in
//! which the service can refuse (fact sheet 03).

use super::{
    Connection, Context, Profile, StopReason,
    link::{Again, Link},
    pre_keys,
    query::{Answer, Query, iq},
};
use crate::{
    crypto::md5,
    jid::Jid,
    proto::payload::{
        AppVersion, ClientPayload, DevicePairingRegistrationData, DeviceProps, HistorySyncConfig,
        UserAgent, WebInfo,
    },
    state::Micros,
    wire::node::Node,
};
use prost::Message as _;

/// Where the login of the present connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    None,
    /// `<success>` has come.
    LoggedIn,
    /// `<passive><active/>` was answered: the service delivers what it kept.
    Active,
    /// The end of the offline queue has come, or was waited for long enough.
    Online,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Login {
    step: Step,
    /// Sends begin then, even if the service has not said that the queue is empty.
    offline_until: Option<Micros>,
    ping_at: Option<Micros>,
    /// When the last ping went out, if nothing was heard since.
    pinged: Option<Micros>,
}

impl Login {
    /// Whether messages may be sent.
    pub(crate) fn is_online(&self) -> bool {
        self.step == Step::Online
    }

    /// Whether `<success>` has come on this connection.
    pub(crate) fn is_logged_in(&self) -> bool {
        self.step != Step::None
    }

    /// The connection has ended.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The handshake is done: pings start.
    pub(crate) fn up(&mut self, cx: &mut Context) {
        let pause = cx.between(cx.config.timing.keepalive);
        self.ping_at = Some(cx.now.mono.plus(pause));
    }

    /// `<success>`.
    pub(crate) fn success(&mut self, cx: &mut Context, link: &mut Link, stanza: &Node) {
        if self.is_logged_in() || !cx.account.is_linked() {
            return;
        }
        link.settled();
        self.step = Step::LoggedIn;
        if let Some(lid) = stanza.get_jid("lid").filter(Jid::is_lid) {
            cx.account.lid = Some(lid);
        }
        cx.account.logins = cx.account.logins.saturating_add(1);
        cx.save_account();
        cx.connection_is(Connection::LoggedIn);
        cx.ask(
            iq("encrypt", "get").child(Node::new("count")),
            Query::PreKeyCount,
        );
    }

    /// The service has told how many pre-keys it has (or has not): go active. Returns whether an upload is needed.
    pub(crate) fn pre_keys_counted(&mut self, cx: &mut Context, answer: &Answer) -> bool {
        let due = cx.counters.pre_keys_due();
        let few = due
            || match answer {
                Answer::Result(stanza) => {
                    let count = stanza
                        .find("count")
                        .and_then(|count| count.get_u64("value"))
                        .unwrap_or(0);
                    count < u64::from(cx.config.pre_keys.low)
                }
                Answer::Lost => return false,
                // Not knowing is no reason to upload hundreds of keys on every login.
                Answer::Error(_) | Answer::TimedOut => false,
            };
        if self.step == Step::LoggedIn && !cx.queries.any(|query| *query == Query::Active) {
            cx.ask(
                iq("passive", "set").child(Node::new("active")),
                Query::Active,
            );
        }
        few
    }

    /// The service has heard that we are active.
    pub(crate) fn active(&mut self, cx: &mut Context, answer: &Answer) {
        if self.step == Step::None || *answer == Answer::Lost {
            return;
        }
        // Some services are through with the queue before they answer.
        if self.step == Step::LoggedIn {
            self.step = Step::Active;
            self.offline_until = Some(cx.now.mono.plus(cx.config.timing.offline));
        }
        if cx.config.available {
            announce(cx, true);
        }
        pre_keys::rotate(cx);
    }

    /// `<ib><offline/></ib>`. Returns `true` if the account has just come online.
    pub(crate) fn offline_done(&mut self, cx: &mut Context) -> bool {
        // Some services deliver before we went active; the queue is empty all the same.
        if matches!(self.step, Step::None | Step::Online) {
            return false;
        }
        self.step = Step::Online;
        self.offline_until = None;
        cx.connection_is(Connection::Online);
        true
    }

    /// When something has to be done.
    pub(crate) fn wake(&self, cx: &Context) -> Option<Micros> {
        let silence = self.pinged.map(|at| at.plus(cx.config.timing.silence));
        // Nothing is pinged without a connection, and a time that passes without anything being done would be asked
        // for again and again.
        let ping_at = self.ping_at.filter(|_| cx.connection.is_some());
        [self.offline_until, ping_at, silence]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed. Returns `true` if the account has just come online.
    pub(crate) fn tick(&mut self, cx: &mut Context, link: &mut Link) -> bool {
        // A coarse clock shows ping and answer at one time.
        if self.pinged.is_some_and(|at| link.heard >= at) {
            self.pinged = None;
        }
        if self
            .pinged
            .is_some_and(|at| at.plus(cx.config.timing.silence) <= cx.now.mono)
        {
            link.cut(cx, Again::Later, "the service fell silent");
            self.pinged = None;
            self.ping_at = None;
            return false;
        }
        if link.is_up() && self.ping_at.is_some_and(|at| at <= cx.now.mono) {
            let pause = cx.between(cx.config.timing.keepalive);
            self.ping_at = Some(cx.now.mono.plus(pause));
            // The first unanswered ping counts, not the last one.
            self.pinged.get_or_insert(cx.now.mono);
            cx.ping(iq("w:p", "get"));
        }
        if self.offline_until.is_some_and(|at| at <= cx.now.mono) {
            return self.offline_done(cx);
        }
        false
    }
}

/// Announces `available` or `unavailable`, if the account has a name: the service wants one.
pub(crate) fn announce(cx: &mut Context, available: bool) {
    let name = cx
        .account
        .push_name
        .clone()
        .or_else(|| cx.config.profile.push_name.clone());
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return;
    };
    // A name with an @ in it would be read as an address by other clients.
    let name = name.replace('@', "");
    let kind = if available {
        "available"
    } else {
        "unavailable"
    };
    cx.send(&Node::new("presence").attr("type", kind).attr("name", name));
    cx.available = available;
}

/// What a refusal means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The connection ends; another one may help.
    Reconnect(Again, &'static str),
    /// The account is not linked any more.
    LoggedOut(u16),
    /// Nothing will help without somebody doing something.
    Stop(StopReason),
}

/// `<failure>`: the login was refused (fact sheet 03.10).
pub(crate) fn failure(stanza: &Node) -> Verdict {
    let code = stanza
        .get_u64("reason")
        .and_then(|code| u16::try_from(code).ok())
        .unwrap_or(0);
    match code {
        401 | 403 | 406 => Verdict::LoggedOut(code),
        402 => Verdict::Stop(StopReason::Banned {
            code: stanza
                .get_u64("code")
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
            seconds: stanza.get_u64("expire").unwrap_or(0),
        }),
        405 => Verdict::Stop(StopReason::Outdated),
        500 | 503 => Verdict::Reconnect(Again::Later, "the service is unavailable"),
        code => Verdict::Stop(StopReason::Refused(code)),
    }
}

/// `<stream:error>`: the service ends the stream (fact sheet 03.11). The account is given up only where the stanza says
/// in so many words that it was unlinked; a bare 401 has logged healthy accounts out elsewhere, so that one connects
/// again and lets the login decide.
pub(crate) fn stream_error(stanza: &Node) -> Verdict {
    let code = stanza
        .get_u64("code")
        .and_then(|code| u16::try_from(code).ok());
    if let Some(conflict) = stanza.find("conflict") {
        return match conflict.get_string("type").as_deref() {
            Some("device_removed") => Verdict::LoggedOut(401),
            // Every other conflict is somebody else's connection: two that fight would evict each other for ever.
            _ => Verdict::Stop(StopReason::Replaced),
        };
    }
    match code {
        Some(515) => Verdict::Reconnect(Again::AtOnce, "the service asked for a new connection"),
        Some(516) => Verdict::LoggedOut(516),
        Some(409) => Verdict::Stop(StopReason::Replaced),
        Some(429) => Verdict::Reconnect(Again::MuchLater, "the service limits our rate"),
        Some(503) => Verdict::Reconnect(Again::Later, "the service restarts"),
        _ => Verdict::Reconnect(Again::Later, "the service ended the stream"),
    }
}

/// The payload of the handshake: a login if the account is linked, else the registration of a new device.
pub(crate) fn client_payload(cx: &Context) -> Vec<u8> {
    let profile = &cx.config.profile;
    let [primary, secondary, tertiary] = profile.version;
    let (country, language) = &profile.locale;
    let mut payload = ClientPayload {
        passive: Some(false),
        user_agent: Some(UserAgent {
            // WEB
            platform: Some(14),
            app_version: Some(AppVersion {
                primary: Some(primary),
                secondary: Some(secondary),
                tertiary: Some(tertiary),
                ..Default::default()
            }),
            mcc: Some("000".into()),
            mnc: Some("000".into()),
            os_version: Some("0.1".into()),
            manufacturer: Some(String::new()),
            device: Some("Desktop".into()),
            os_build_number: Some("0.1".into()),
            // RELEASE
            release_channel: Some(0),
            locale_language_iso6391: Some(language.clone()),
            locale_country_iso31661_alpha2: Some(country.clone()),
            ..Default::default()
        }),
        // WEB_BROWSER
        web_info: Some(WebInfo {
            web_sub_platform: Some(0),
            ..Default::default()
        }),
        // WIFI_UNKNOWN, USER_ACTIVATED
        connect_type: Some(1),
        connect_reason: Some(1),
        pull: Some(false),
        ..Default::default()
    };
    let own = cx.account.jid.as_ref().filter(|_| cx.account.is_linked());
    if let Some(own) = own {
        payload.passive = Some(true);
        payload.pull = Some(true);
        payload.username = own.user().parse().ok();
        payload.device = Some(own.device().into());
        payload.lc = Some(i32::try_from(cx.account.logins).unwrap_or(i32::MAX));
        payload.lid_db_migrated = Some(true);
    } else {
        payload.device_pairing_data = registration(cx, profile);
    }
    payload.encode_to_vec()
}

fn registration(cx: &Context, profile: &Profile) -> Option<DevicePairingRegistrationData> {
    let key = cx.account.signed_pre_key()?;
    let [a, b, c] = profile.version;
    let props = DeviceProps {
        os: Some(profile.os.clone()),
        version: Some(AppVersion {
            primary: Some(0),
            secondary: Some(1),
            tertiary: Some(0),
            ..Default::default()
        }),
        platform_type: Some(profile.platform),
        require_full_sync: Some(false),
        history_sync_config: Some(HistorySyncConfig {
            storage_quota_mb: Some(10240),
            inline_initial_payload_in_e2_ee_msg: Some(true),
            ..Default::default()
        }),
    };
    Some(DevicePairingRegistrationData {
        e_regid: Some(cx.account.registration_id.to_be_bytes().to_vec()),
        e_keytype: Some(vec![5]),
        e_ident: Some(cx.account.identity.public.as_bytes().to_vec()),
        e_skey_id: Some(pre_keys::id_bytes(key.id).to_vec()),
        e_skey_val: Some(key.pair.public.as_bytes().to_vec()),
        e_skey_sig: Some(key.signature.as_bytes().to_vec()),
        build_hash: Some(md5(format!("{a}.{b}.{c}").as_bytes()).to_vec()),
        device_props: Some(props.encode_to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Option<u64>, child: Option<Node>) -> Node {
        Node::new("stream:error")
            .attr_opt("code", code)
            .children(child)
    }

    /// Every row of the tables in 03.10 and 03.11 has a stated outcome; none but the unambiguous ones ends the link.
    #[test]
    fn refusals_mean_what_the_tables_say() {
        let failed = |code: u64| failure(&Node::new("failure").attr("reason", code));
        for code in [401, 403, 406] {
            assert_eq!(failed(code.into()), Verdict::LoggedOut(code));
        }
        assert_eq!(failed(405), Verdict::Stop(StopReason::Outdated));
        for code in [400, 409, 413, 414, 415, 418, 501] {
            assert_eq!(
                failed(code.into()),
                Verdict::Stop(StopReason::Refused(code))
            );
        }
        for code in [500, 503] {
            assert!(matches!(failed(code), Verdict::Reconnect(Again::Later, _)));
        }
        assert_eq!(
            failure(&Node::new("failure")),
            Verdict::Stop(StopReason::Refused(0))
        );
        let ban = Node::new("failure")
            .attr("reason", 402u64)
            .attr("code", 101u64)
            .attr("expire", 3600u64);
        assert_eq!(
            failure(&ban),
            Verdict::Stop(StopReason::Banned {
                code: 101,
                seconds: 3600
            })
        );

        let conflict = |kind: &str| Some(Node::new("conflict").attr("type", kind));
        assert_eq!(
            stream_error(&error(Some(401), conflict("device_removed"))),
            Verdict::LoggedOut(401)
        );
        assert_eq!(
            stream_error(&error(None, conflict("replaced"))),
            Verdict::Stop(StopReason::Replaced)
        );
        assert_eq!(
            stream_error(&error(Some(401), conflict("replaced"))),
            Verdict::Stop(StopReason::Replaced)
        );
        assert_eq!(
            stream_error(&error(Some(516), None)),
            Verdict::LoggedOut(516)
        );
        assert!(matches!(
            stream_error(&error(Some(515), None)),
            Verdict::Reconnect(Again::AtOnce, _)
        ));
        assert!(matches!(
            stream_error(&error(Some(401), None)),
            Verdict::Reconnect(Again::Later, _)
        ));
        assert!(matches!(
            stream_error(&error(Some(429), None)),
            Verdict::Reconnect(Again::MuchLater, _)
        ));
        for child in ["xml-not-well-formed", "ack", "something-new"] {
            let verdict = stream_error(&error(None, Some(Node::new(child))));
            assert!(
                matches!(verdict, Verdict::Reconnect(Again::Later, _)),
                "{child}"
            );
        }
    }
}
