//! Who may come in: the payload of the handshake decides between pairing, login and refusal (chapter 03.1).

use super::connection::Stage;
use super::{ConnId, DeviceId, Now, Service, faults};
use baton_core::crypto::PublicKey;
use baton_core::jid::Jid;
use baton_core::proto::payload::ClientPayload;
use baton_core::wire::node::Node;
use prost::Message as _;

impl Service {
    /// The handshake is done; `payload` says what the client wants.
    pub(super) fn admit(&mut self, conn: ConnId, client: PublicKey, payload: &[u8], now: Now) {
        let Ok(payload) = ClientPayload::decode(payload) else {
            return self.refuse(conn, 400, "client payload is no protobuf", now);
        };
        if let Some(data) = &payload.device_pairing_data {
            return self.start_pairing(conn, client, data, now);
        }
        let (Some(username), Some(device)) = (payload.username, payload.device) else {
            return self.refuse(
                conn,
                400,
                "client payload is neither login nor registration",
                now,
            );
        };
        let Ok(device) = u16::try_from(device) else {
            return self.refuse(conn, 400, "device number out of range", now);
        };
        let device = DeviceId::new(&username.to_string(), device);
        if let Some(reason) = self.faults.strikes(&device, faults::Kind::FailLogin) {
            return self.refuse(
                conn,
                u16::try_from(reason).unwrap_or(500),
                "fault: login refused",
                now,
            );
        }
        match self.accounts.device_mut(&device) {
            Some(known) if known.noise == client => {
                if let Some(name) = payload.push_name.filter(|name| !name.is_empty()) {
                    known.push_name = Some(name.into());
                }
                self.login(conn, &device, now);
            }
            Some(_) => self.refuse(conn, 401, "noise key is not the paired one", now),
            None => self.refuse(conn, 401, "unknown device", now),
        }
    }

    fn login(&mut self, conn: ConnId, device: &DeviceId, now: Now) {
        let Some(lid) = self.accounts.jid(device, super::accounts::Form::Lid) else {
            return;
        };
        self.go_live(conn, device, now);
        let success = Node::new("success")
            .attr("t", now.secs())
            .attr("lid", lid)
            .attr("location", "sim");
        self.send(conn, &success, now);
        if self.options.edge_routing {
            let info = Node::new("routing_info").bytes(b"\x08\x02\x08\x05".to_vec());
            let routing = Node::new("edge_routing").child(info);
            let node = Node::new("ib").attr("from", Jid::service()).child(routing);
            self.send(conn, &node, now);
        }
    }

    /// `<failure>` instead of anything else, then the end.
    pub(super) fn refuse(&mut self, conn: ConnId, reason: u16, why: &'static str, now: Now) {
        self.note(conn, format!("refused with {reason}: {why}"), now);
        let failure = Node::new("failure")
            .attr("reason", reason)
            .attr("location", "sim");
        self.farewell(conn, &failure, why, now);
    }

    /// The client is ready: everything that waited goes out, marked `offline`, between preview and end
    /// (chapter 10.6.3). A second `active` changes nothing.
    pub(super) fn activate(&mut self, device: &DeviceId, now: Now) {
        let Some(conn) = self.live.get(device).copied() else {
            return;
        };
        match self.connections.get_mut(&conn) {
            Some(connection)
                if !connection.active && matches!(connection.stage, Stage::Online(_)) =>
            {
                connection.active = true;
            }
            _ => return,
        }
        if let Some(log) = self.books.connection_mut(device, conn) {
            log.active = Some(now.into());
        }
        self.drain_offline(device, conn, now);
        self.bootstrap(device, now);
    }
}
