//! The gate: no effect leaves before every batch it depends on is durable, nor after the grant has run out.

use super::{Engine, Output};
use crate::{
    flow::{context::Effect, link::Again},
    state::Micros,
};

impl Engine {
    /// Whether effects may leave: the grant holds with a margin for what the driver may still have in hand.
    pub(super) fn may_act(&self) -> bool {
        self.cx.now.mono.plus(self.cx.config.timing.grant_margin) < self.grant.until
    }

    /// When to stop for want of a grant. A connection is worth waiting for: the service would have us log in again.
    pub(super) fn held_until(&self) -> Micros {
        let hold = self.cx.config.timing.hold;
        let until = self.grant.until;
        if self.link.is_up() {
            until.plus(hold)
        } else {
            until
        }
    }

    pub(super) fn release(&mut self, effect: Effect, wire: &mut Vec<u8>) -> Option<Output> {
        Some(match effect {
            Effect::Open(generation) => {
                // Given up while it waited.
                if !self.link.is_opening(generation) {
                    return None;
                }
                Output::Open(self.cx.config.service.endpoint.clone())
            }
            Effect::Close(generation) => {
                if !self.link.tell_close(generation) {
                    return None;
                }
                self.link.closing(&mut self.cx);
                Output::Close
            }
            Effect::Raw(generation, bytes) => {
                if !self.link.is_current(generation) {
                    return None;
                }
                wire.extend_from_slice(&bytes);
                Output::Transmit
            }
            Effect::Stanza(generation, payload) => {
                self.seal(generation, &payload, wire)?;
                Output::Transmit
            }
            Effect::KeepAlive(generation, payload) => {
                self.seal(generation, &payload, wire)?;
                Output::KeepAlive
            }
            Effect::Event(seq, event) => Output::Event(seq, event),
            Effect::Notice(notice) => Output::Notice(notice),
            Effect::Reply(id, result) => Output::Reply(id, result),
            Effect::Fetch(id, request) => Output::Fetch(id, request),
            Effect::FetchMore(id) => Output::FetchMore(id),
            Effect::StopFetch(id) => Output::StopFetch(id),
        })
    }

    /// A frame for the wire; `None` if its connection is gone.
    pub(super) fn seal(
        &mut self,
        generation: u64,
        payload: &[u8],
        wire: &mut Vec<u8>,
    ) -> Option<()> {
        match self.link.seal(generation, payload, wire) {
            Ok(true) => {
                self.cx.stats.frames_out += 1;
                Some(())
            }
            Ok(false) => None,
            Err(why) => {
                self.link.cut(&mut self.cx, Again::Later, why);
                None
            }
        }
    }
}
