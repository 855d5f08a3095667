//! What the service says, and the end of a connection.

use super::{Engine, Phase, work::Work};
use crate::{
    flow::{
        CommandError, StopReason,
        link::{Again, Received},
        login::{self, Verdict},
        notify::{self, Wish},
        pairing, pre_keys,
        query::{Answer, Query},
        retry::Asked,
        sync::SyncWork,
    },
    wire::node::{self, Node},
};

impl Engine {
    pub(super) fn received(&mut self, bytes: &[u8]) {
        // What still comes while the engine stops is not answered; it comes again for the next owner.
        if matches!(self.phase, Phase::Running) {
            self.link.push(&self.cx, bytes);
            self.read();
        }
    }

    /// Takes in what has come, as long as there is room. Returns whether there was anything.
    pub(super) fn read(&mut self) -> bool {
        let mut any = false;
        while matches!(self.phase, Phase::Running) && self.has_room() {
            match self.link.next(&mut self.cx) {
                Received::Nothing => return any,
                Received::Up => self.login.up(&mut self.cx),
                Received::Frame(payload) => match node::decode_owned(&payload) {
                    Ok(stanza) => self.stanza(stanza),
                    Err(error) => self
                        .cx
                        .protocol_error(format!("a stanza does not decode: {error}")),
                },
                Received::Broken(why) => {
                    self.link.cut(&mut self.cx, Again::Later, why);
                }
            }
            any = true;
        }
        any
    }

    pub(super) fn closed(&mut self) {
        if !self.link.closed(&mut self.cx) {
            return;
        }
        self.login.reset();
        let confirmed = self.pairing.closed();
        self.retries.closed();
        self.sync.closed();
        for query in self.cx.queries.drain() {
            self.answered(query, Answer::Lost);
        }
        if matches!(self.phase, Phase::Stopping(..)) {
            return;
        }
        if confirmed && self.cx.account.is_linked() {
            self.link.open(&mut self.cx);
        }
    }

    pub(super) fn stanza(&mut self, stanza: Node) {
        match stanza.tag() {
            "iq" => self.iq(&stanza),
            "success" => self.login.success(&mut self.cx, &mut self.link, &stanza),
            "failure" => {
                let verdict = login::failure(&stanza);
                self.refused(verdict);
            }
            "stream:error" => {
                let verdict = login::stream_error(&stanza);
                self.refused(verdict);
            }
            "xmlstreamend" => {
                self.link
                    .end(&mut self.cx, Again::Later, "the service ended the stream")
            }
            "ib" => {
                let wish = notify::information(&mut self.cx, &self.login, &stanza);
                self.grant_wish(wish);
            }
            "ack" => match stanza.get_string("class").as_deref() {
                Some("message") => {
                    self.sends.acknowledged(&mut self.cx, &stanza);
                    if let Some(id) = stanza.get_string("id") {
                        let refused = stanza.get_u64("error").unwrap_or(0) != 0;
                        self.sync.acknowledged(&mut self.cx, &id, refused);
                    }
                }
                // An announcement of history has two receipts, and one id. The answer to the other one says nothing.
                Some("receipt") if stanza.get_string("type").as_deref() == Some("hist_sync") => {
                    if let Some(id) = stanza.get_string("id") {
                        self.sync.history_receipt_acknowledged(&mut self.cx, &id);
                    }
                }
                _ => {}
            },
            "message" => self.enqueue(Work::Message(stanza)),
            "receipt" => {
                let retry = stanza.get_string("type").as_deref() == Some("retry");
                let phone = self.sync.phone_retry(&self.cx, &stanza).filter(|_| retry);
                self.enqueue(if let Some(work) = phone {
                    Work::Sync(work)
                } else if retry {
                    Work::Retry {
                        stanza,
                        asked: Asked::Nothing,
                    }
                } else {
                    Work::Receipt(stanza, 0)
                });
            }
            "notification" => {
                let wish = notify::notification(&mut self.cx, &stanza);
                if wish == Wish::File {
                    if let Some(work) = self.sync.media_retry(&stanza) {
                        self.enqueue(Work::Sync(work));
                    }
                } else {
                    self.grant_wish(wish);
                }
            }
            "call" | "status" => self.cx.acknowledge(&stanza, None),
            // Nothing to do, and nobody waits for an answer.
            "presence" | "chatstate" | "error" => {}
            _ => self.cx.acknowledge(&stanza, Some(488)),
        }
    }

    pub(super) fn grant_wish(&mut self, wish: Wish) {
        match wish {
            Wish::Nothing | Wish::File => {}
            Wish::PreKeys => self.enqueue(Work::UploadPreKeys),
            Wish::Online => {
                if self.login.offline_done(&mut self.cx) {
                    self.sends.resume(&mut self.cx);
                    self.sync.online(&mut self.cx);
                }
            }
            Wish::Settings(collections) => self.sync.heard(&collections),
        }
    }

    pub(super) fn refused(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Reconnect(again, why) => self.link.end(&mut self.cx, again, why),
            Verdict::LoggedOut(code) if self.cx.account.is_linked() => self.logged_out(code),
            // There is no link that could have ended.
            Verdict::LoggedOut(code) => self.stop(StopReason::Refused(code)),
            Verdict::Stop(reason) => self.stop(reason),
        }
    }

    pub(super) fn iq(&mut self, stanza: &Node) {
        match stanza.get_string("type").as_deref() {
            Some("result" | "error") => {
                if let Some((query, answer)) = self.cx.queries.close(stanza) {
                    self.answered(query, answer);
                }
            }
            Some("set") if stanza.find("pair-device").is_some() => {
                self.pairing
                    .pair_device(&mut self.cx, &mut self.link, stanza);
            }
            Some("set") if stanza.find("pair-success").is_some() => {
                self.pairing
                    .pair_success(&mut self.cx, &mut self.link, stanza);
            }
            Some("get")
                if stanza.get_string("xmlns").as_deref() == Some("urn:xmpp:ping")
                    || stanza.find("ping").is_some() =>
            {
                self.cx.keep_alive(&pairing::reply_to(stanza, "result"));
            }
            _ => pairing::decline(&mut self.cx, stanza),
        }
    }

    pub(super) fn answered(&mut self, query: Query, answer: Answer) {
        match query {
            Query::PreKeyCount => {
                if self.login.pre_keys_counted(&mut self.cx, &answer) {
                    self.enqueue(Work::UploadPreKeys);
                }
            }
            Query::PreKeyUpload { upto } => pre_keys::uploaded(&mut self.cx, upto, &answer),
            Query::Rotate => pre_keys::rotated(&mut self.cx, &answer),
            Query::Active => self.login.active(&mut self.cx, &answer),
            Query::Devices(users) => self.enqueue(Work::DevicesAnswered(users, answer)),
            Query::Bundles(devices) => self.enqueue(Work::BundlesAnswered(devices, answer)),
            Query::Logout(id) => match answer {
                Answer::Result(_) => self.logged_out(401),
                Answer::Error(code) => {
                    self.unlinking = None;
                    self.cx.reply(id, Err(CommandError::Refused(code)));
                }
                Answer::TimedOut | Answer::Lost => {
                    self.unlinking = None;
                    self.cx.reply(id, Err(CommandError::Unknown));
                }
            },
            Query::Sync(collection, upload) => {
                self.enqueue(Work::Sync(SyncWork::Answered(collection, upload, answer)));
            }
            Query::MediaHosts => self.sync.hosts_answered(&mut self.cx, &answer),
            Query::Ping | Query::Formality => {}
        }
    }
}
