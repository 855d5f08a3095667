//! One connection: header, frames, handshake, then stanzas; and how it ends.
//!
//! A device has one connection. When it logs in again the older one is told `replaced` and closed a moment later; from
//! the login on it is not the device's connection any more, so whatever still happens to it disturbs nobody
//! (chapter 10.2.1).

use super::books::Stamp;
use super::pairing::Pairing;
use super::{Certificate, ConnId, DeviceId, Effect, Now, Service, Timer};
use baton_core::crypto::PublicKey;
use baton_core::proto::handshake::HandshakeMessage;
use baton_core::state::Micros;
use baton_core::wire::frame::{self, FrameReader, HeaderReader};
use baton_core::wire::node::{self, Node};
use baton_core::wire::noise::{ServerFinish, ServerHandshake, ServerReply, Transport};
use prost::Message as _;

/// One connection.
pub(super) struct Connection {
    opened: Stamp,
    /// When bytes last came.
    pub(super) heard: Micros,
    header: HeaderReader,
    frames: FrameReader,
    transport: Option<Transport>,
    pub(super) handshake: &'static str,
    pub(super) stage: Stage,
    /// The offline phase is over: stanzas go out as they come.
    pub(super) active: bool,
}

/// How far it has come.
pub(super) enum Stage {
    /// Nothing but bytes so far.
    Hello,
    /// Our half of XX is sent.
    Finish(ServerFinish),
    /// A new device that shows its QR code.
    Pairing(Pairing),
    /// A device of an account.
    Online(DeviceId),
    /// The last word is said; what still comes in is ignored.
    Over,
}

impl Connection {
    pub(super) fn new(now: Now) -> Self {
        Self {
            opened: now.into(),
            heard: now.mono,
            header: HeaderReader::new(),
            frames: FrameReader::new(frame::MAX_FRAME),
            transport: None,
            handshake: "",
            stage: Stage::Hello,
            active: false,
        }
    }
}

impl Service {
    pub(super) fn read(&mut self, conn: ConnId, bytes: &[u8], now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.heard = now.mono;
        if let Err(error) = connection.header.push(bytes, &mut connection.frames) {
            return self.offend(conn, format!("header: {error}"), now);
        }
        loop {
            // Each frame may end the connection, so it is looked up anew.
            let Some(connection) = self.connections.get_mut(&conn) else {
                return;
            };
            if matches!(connection.stage, Stage::Over) {
                return;
            }
            match connection.frames.next() {
                Ok(Some(frame)) => self.frame(conn, &frame, now),
                Ok(None) => return,
                Err(error) => return self.offend(conn, error.to_string(), now),
            }
        }
    }

    fn frame(&mut self, conn: ConnId, frame: &[u8], now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        match std::mem::replace(&mut connection.stage, Stage::Over) {
            Stage::Hello => self.client_hello(conn, frame, now),
            Stage::Finish(finish) => match finish.client_finish(frame) {
                Ok((transport, client, payload)) => {
                    self.handshake_done(conn, transport, client, &payload, now)
                }
                Err(error) => self.offend(conn, format!("client finish: {error}"), now),
            },
            stage => {
                connection.stage = stage;
                self.sealed_frame(conn, frame, now);
            }
        }
    }

    fn client_hello(&mut self, conn: ConnId, frame: &[u8], now: Now) {
        let Certificate { server, chain, .. } = &self.certificate;
        let reply = match ServerHandshake::client_hello(server, chain, frame, &mut self.rng) {
            Ok(reply) => reply,
            Err(error) => return self.offend(conn, format!("client hello: {error}"), now),
        };
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        match reply {
            ServerReply::AwaitFinish { reply, state } => {
                connection.handshake = if tried_to_resume(frame) {
                    "XXfallback"
                } else {
                    "XX"
                };
                connection.stage = Stage::Finish(state);
                self.send_plain(conn, &reply, now);
            }
            ServerReply::Resumed {
                reply,
                transport,
                client_static,
                payload,
            } => {
                connection.handshake = "IK";
                self.send_plain(conn, &reply, now);
                self.handshake_done(conn, transport, client_static, &payload, now);
            }
        }
    }

    fn handshake_done(
        &mut self,
        conn: ConnId,
        transport: Transport,
        client: PublicKey,
        payload: &[u8],
        now: Now,
    ) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.transport = Some(transport);
            self.admit(conn, client, payload, now);
        }
    }

    fn sealed_frame(&mut self, conn: ConnId, frame: &[u8], now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let Some(transport) = connection.transport.as_mut() else {
            return;
        };
        let plaintext = match transport.open(frame) {
            Ok(plaintext) => plaintext,
            // Nothing after a frame that does not open can be opened either.
            Err(error) => return self.offend(conn, format!("frame: {error}"), now),
        };
        let node = match node::decode_owned(&plaintext) {
            Ok(node) => node,
            Err(error) => {
                self.note(conn, format!("node: {error}"), now);
                let last = Node::new("stream:error").child(Node::new("xml-not-well-formed"));
                return self.farewell(conn, &last, "unreadable stanza", now);
            }
        };
        if let Some(tap) = &mut self.tap {
            tap.hears(&node);
        }
        match &connection.stage {
            Stage::Online(device) => {
                let device = device.clone();
                self.hear(conn, &device, node, now);
            }
            Stage::Pairing(_) => self.pairing_stanza(conn, &node, now),
            Stage::Hello | Stage::Finish(_) | Stage::Over => {}
        }
    }

    /// Sends one stanza on a connection that is past its handshake.
    pub(super) fn send(&mut self, conn: ConnId, node: &Node, now: Now) {
        let Some(mut tamper) = self.tamper.take() else {
            return self.write(conn, node, now);
        };
        for node in tamper(conn, node.clone()) {
            self.write(conn, &node, now);
        }
        self.tamper = Some(tamper);
    }

    fn write(&mut self, conn: ConnId, node: &Node, now: Now) {
        let Some(transport) = self
            .connections
            .get_mut(&conn)
            .and_then(|c| c.transport.as_mut())
        else {
            return;
        };
        let mut plaintext = Vec::new();
        if let Err(error) = node::encode(node, &mut plaintext) {
            // Only a forwarded part can do this; the sender's fault must not cost the receiver its connection.
            return self.note(conn, format!("a stanza could not be written: {error}"), now);
        }
        let mut bytes = Vec::with_capacity(plaintext.len() + 19);
        match transport.seal(&plaintext, &mut bytes) {
            Ok(()) => self.leaves(conn, bytes, Some(node)),
            Err(_) => self.cut(conn, "frame counter used up", now),
        }
    }

    /// Sends to whichever connection a device has; a phone has none, and needs no answers.
    pub(super) fn reply(&mut self, to: &DeviceId, node: &Node, now: Now) {
        if let Some(conn) = self.live.get(to).copied() {
            self.send(conn, node, now);
        }
    }

    /// Handshake messages are framed but not encrypted.
    fn send_plain(&mut self, conn: ConnId, payload: &[u8], now: Now) {
        let mut bytes = Vec::with_capacity(payload.len() + 3);
        match frame::write_frame(payload, &mut bytes) {
            Ok(()) => self.leaves(conn, bytes, None),
            Err(_) => self.cut(conn, "handshake message too long", now),
        }
    }

    fn leaves(&mut self, conn: ConnId, bytes: Vec<u8>, node: Option<&Node>) {
        if let Some(tap) = &mut self.tap {
            tap.says(node);
        }
        self.effects.push_back(Effect::Send(conn, bytes.into()));
    }

    /// Makes `conn` the device's connection; the one it had before is told so and ends.
    pub(super) fn go_live(&mut self, conn: ConnId, device: &DeviceId, now: Now) {
        if let Some(old) = self.live.get(device).copied() {
            self.books
                .device_mut(device)
                .live_twice
                .push((now.into(), old, conn));
            let conflict = Node::new("conflict").attr("type", "replaced");
            self.farewell(
                old,
                &Node::new("stream:error").child(conflict),
                "replaced",
                now,
            );
        }
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.stage = Stage::Online(device.clone());
        let log = super::books::ConnectionLog {
            conn,
            opened: connection.opened,
            login: now.into(),
            handshake: connection.handshake,
            active: None,
            closed: None,
        };
        self.books.device_mut(device).connections.push(log);
        self.live.insert(device.clone(), conn);
        if let Some(device) = self.accounts.device_mut(device) {
            device.queue.reconnected();
            device.available = false;
        }
    }

    /// Says a last word; the close follows when the client had time to read it.
    pub(super) fn farewell(&mut self, conn: ConnId, last: &Node, why: &'static str, now: Now) {
        self.send(conn, last, now);
        self.end(conn, why, now);
        self.later(now.mono.plus(self.options.farewell), Timer::Close(conn));
    }

    /// Closes at once.
    pub(super) fn cut(&mut self, conn: ConnId, why: &'static str, now: Now) {
        if self.connections.contains_key(&conn) {
            self.effects.push_back(Effect::Close(conn));
            self.forget(conn, why, now);
        }
    }

    /// Removes every trace of a connection that is gone.
    pub(super) fn forget(&mut self, conn: ConnId, why: &'static str, now: Now) {
        self.end(conn, why, now);
        if self.connections.remove(&conn).is_some() {
            // The name may be used again, and must not inherit an old farewell.
            self.timers.retain(
                |_, timer| !matches!(timer, Timer::Close(of) | Timer::Send(of, _) if *of == conn),
            );
        }
    }

    /// A connection that breaks the rules below the stanzas.
    fn offend(&mut self, conn: ConnId, what: String, now: Now) {
        self.note(conn, what, now);
        self.cut(conn, "broken protocol", now);
    }

    /// An anomaly of a connection, by its device if it has one.
    pub(super) fn note(&mut self, conn: ConnId, what: String, now: Now) {
        let device = match self.connections.get(&conn).map(|c| &c.stage) {
            Some(Stage::Online(device)) => Some(device.clone()),
            _ => None,
        };
        self.books.anomaly(Some(conn), device.as_ref(), what, now);
    }

    /// From here on the connection is nobody's.
    fn end(&mut self, conn: ConnId, why: &'static str, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.active = false;
        if let Stage::Online(device) = std::mem::replace(&mut connection.stage, Stage::Over) {
            // Only if it still is the device's connection: a replaced one must not take the newer one with it.
            if self.live.get(&device) == Some(&conn) {
                self.live.remove(&device);
                self.went_offline(&device, now);
            }
            if let Some(log) = self.books.connection_mut(&device, conn)
                && log.closed.is_none()
            {
                log.closed = Some((Stamp::from(now), why));
            }
        }
    }
}

/// Whether a client hello carries the fields of IK; if it was not resumed, the answer was XXfallback.
fn tried_to_resume(frame: &[u8]) -> bool {
    HandshakeMessage::decode(frame)
        .ok()
        .and_then(|message| message.client_hello)
        .is_some_and(|hello| hello.r#static.is_some())
}
