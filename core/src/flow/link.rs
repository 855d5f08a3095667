//! The connection: when to ask for one, the handshake, and what to do when it ends.
//!
//! ```text
//! Down ──open──▶ Opening ──opened──▶ Hello ──server hello──▶ Up
//!  ▲                │                  │                      │
//!  └────────────── closed ◀── Closing ◀┴──────── end ─────────┘
//! ```
//!
//! Every connection has a generation; what was queued for an older one is dropped. After a close has been asked for,
//! the driver's word that it happened is awaited before the next connection is opened: one connection at a time.

use super::{Connection, Context};
use crate::{
    state::Micros,
    wire::{
        frame::{self, FrameReader},
        noise::{ClientHandshake, Transport, Trust},
    },
};

/// So many connections in a row are made at once when the service asks for it; the next ones wait.
const HURRIED: u32 = 3;

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per engine, and large exactly while it is connected"
)]
enum State {
    Down,
    Opening,
    Hello {
        reader: FrameReader,
        handshake: Option<ClientHandshake>,
    },
    Up {
        reader: FrameReader,
        transport: Transport,
    },
    /// A close was asked for; waiting for it to happen.
    Closing,
}

/// When to connect again after the present connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// At once: the service asked for it.
    AtOnce,
    /// After a pause that doubles with every failure.
    Later,
    /// After a pause as if there had been five more failures: the service wants to be left alone.
    MuchLater,
    /// Not by itself.
    Never,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Link {
    state: State,
    generation: u64,
    failures: u32,
    again: Again,
    why: &'static str,
    /// Connect then.
    retry_at: Option<Micros>,
    /// Give the handshake up then.
    deadline: Option<Micros>,
    up_since: Option<Micros>,
    /// The end of this connection is decided; its close is on the way out or has left.
    ending: bool,
    /// The driver was told to close this connection. It is told once: a second answer would be taken for the end of
    /// the next connection.
    told: bool,
    /// Connections made at once because the service asked for it, one after the other.
    hurried: u32,
    /// The last frame that arrived.
    pub(crate) heard: Micros,
}

/// What came of bytes from the connection.
#[derive(Debug)]
pub(crate) enum Received {
    /// Nothing yet.
    Nothing,
    /// The handshake is done; stanzas can flow.
    Up,
    /// One decrypted frame.
    Frame(Vec<u8>),
    /// The connection is of no use any more.
    Broken(&'static str),
}

impl Link {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Down,
            generation: 0,
            failures: 0,
            again: Again::Never,
            why: "",
            retry_at: None,
            deadline: None,
            up_since: None,
            ending: false,
            told: false,
            hurried: 0,
            heard: Micros(0),
        }
    }

    pub(crate) const fn is_down(&self) -> bool {
        matches!(self.state, State::Down)
    }

    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether a connection stands or is being made, or will be by itself.
    pub(crate) const fn is_wanted(&self) -> bool {
        !self.is_down() || self.retry_at.is_some()
    }

    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// When something has to be done.
    pub(crate) fn wake(&self) -> Option<Micros> {
        [self.retry_at, self.deadline].into_iter().flatten().min()
    }

    /// Connects now; if the present connection is about to end, as soon as it has.
    pub(crate) fn open(&mut self, cx: &mut Context) {
        if !self.is_down() {
            if self.ending {
                // Our own wish, not the service's.
                self.again = Again::AtOnce;
                self.hurried = 0;
            }
            return;
        }
        self.ending = false;
        self.told = false;
        self.generation += 1;
        self.state = State::Opening;
        self.retry_at = None;
        self.again = Again::Later;
        self.why = "the connection ended";
        self.deadline = Some(cx.now.mono.plus(cx.config.timing.handshake));
        cx.connection_is(Connection::Connecting);
        cx.open_connection(self.generation);
    }

    /// The connection stands: say hello.
    pub(crate) fn opened(&mut self, cx: &mut Context, payload: &[u8]) {
        if !matches!(self.state, State::Opening) {
            return;
        }
        let resume = cx
            .account
            .server
            .as_ref()
            .filter(|server| cx.account.is_linked() && server.is_valid_at(cx.unix()));
        let (handshake, hello) =
            ClientHandshake::start(&cx.account.noise, resume, payload, &mut cx.rng);
        let mut bytes = Vec::new();
        frame::connection_header(cx.account.routing_info.as_deref(), &mut bytes);
        // A hello is a few hundred bytes, far below the limit of a frame.
        let _ = frame::write_frame(&hello, &mut bytes);
        cx.send_raw(self.generation, bytes);
        let limit = usize::try_from(cx.config.limits.frame_bytes.get()).unwrap_or(frame::MAX_FRAME);
        self.state = State::Hello {
            reader: FrameReader::new(limit),
            handshake: Some(handshake),
        };
    }

    /// Takes in bytes. Call [`next`](Self::next) until it has nothing.
    pub(crate) fn push(&mut self, cx: &Context, bytes: &[u8]) {
        if let State::Hello { reader, .. } | State::Up { reader, .. } = &mut self.state {
            self.heard = cx.now.mono;
            reader.push(bytes);
        }
    }

    /// The next thing that the bytes so far amount to.
    pub(crate) fn next(&mut self, cx: &mut Context) -> Received {
        match &mut self.state {
            State::Hello { reader, handshake } => match reader.next() {
                Err(_) => Received::Broken("the service sent a malformed frame"),
                Ok(None) => Received::Nothing,
                Ok(Some(hello)) => {
                    let Some(handshake) = handshake.take() else {
                        return Received::Broken("the handshake failed");
                    };
                    let trust = Trust {
                        root: cx.config.service.root,
                        now_unix_secs: cx.unix(),
                    };
                    match handshake.server_hello(&hello, &trust) {
                        Ok(established) => {
                            if let Some(reply) = established.reply {
                                let mut bytes = Vec::new();
                                let _ = frame::write_frame(&reply, &mut bytes);
                                cx.send_raw(self.generation, bytes);
                            }
                            cx.account.server = Some(established.server);
                            let empty = FrameReader::new(0);
                            let reader = std::mem::replace(reader, empty);
                            self.state = State::Up {
                                reader,
                                transport: established.transport,
                            };
                            self.deadline = Some(cx.now.mono.plus(cx.config.timing.handshake));
                            self.up_since = Some(cx.now.mono);
                            cx.connection = Some(self.generation);
                            Received::Up
                        }
                        Err(error) => {
                            // A stale cache is the one cause that a full handshake cures.
                            cx.account.server = None;
                            cx.protocol_error(format!("the handshake failed: {error}"));
                            Received::Broken("the handshake failed")
                        }
                    }
                }
            },
            State::Up { reader, transport } => match reader.next() {
                Err(_) => Received::Broken("the service sent a malformed frame"),
                Ok(None) => Received::Nothing,
                Ok(Some(sealed)) => match transport.open(&sealed) {
                    Ok(plain) => {
                        cx.stats.frames_in += 1;
                        Received::Frame(plain)
                    }
                    // After one lost or injected frame nothing decrypts again.
                    Err(_) => Received::Broken("a frame does not decrypt"),
                },
            },
            _ => Received::Nothing,
        }
    }

    /// Seals a stanza for the wire. `false` if it belongs to an older connection or cannot be sent on this one.
    pub(crate) fn seal(
        &mut self,
        generation: u64,
        payload: &[u8],
        wire: &mut Vec<u8>,
    ) -> Result<bool, &'static str> {
        match &mut self.state {
            State::Up { transport, .. } if generation == self.generation => {
                match transport.seal(payload, wire) {
                    Ok(()) => Ok(true),
                    Err(_) => Err("a frame cannot be sealed"),
                }
            }
            _ => Ok(false),
        }
    }

    /// Whether the connection of this generation is still to be opened.
    pub(crate) const fn is_opening(&self, generation: u64) -> bool {
        generation == self.generation && matches!(self.state, State::Opening)
    }

    /// Whether handshake bytes or a close of this generation still mean this connection.
    pub(crate) const fn is_current(&self, generation: u64) -> bool {
        generation == self.generation && !self.is_down()
    }

    /// The login came through: the handshake deadline is met.
    pub(crate) fn settled(&mut self) {
        self.deadline = None;
    }

    /// The service has to do something before long, or the connection is given up.
    pub(crate) fn expect(&mut self, cx: &Context) {
        if !self.ending {
            self.deadline = Some(cx.now.mono.plus(cx.config.timing.handshake));
        }
    }

    /// Whether a close of this generation is still to be asked for; notes that it is.
    pub(crate) fn tell_close(&mut self, generation: u64) -> bool {
        self.is_current(generation) && !std::mem::replace(&mut self.told, true)
    }

    /// Ends the connection after what was said, and decides when to make the next one.
    pub(crate) fn end(&mut self, cx: &mut Context, again: Again, why: &'static str) {
        self.finish(cx, again, why, false);
    }

    /// Ends the connection at once.
    pub(crate) fn cut(&mut self, cx: &mut Context, again: Again, why: &'static str) {
        self.finish(cx, again, why, true);
    }

    fn finish(&mut self, cx: &mut Context, again: Again, why: &'static str, at_once: bool) {
        self.again = again;
        self.why = why;
        self.deadline = None;
        self.ending = !self.is_down();
        match self.state {
            State::Down => {
                self.retry_at = None;
                self.schedule(cx);
            }
            State::Closing => {}
            _ => {
                if at_once {
                    cx.cut_connection(self.generation);
                    cx.connection = None;
                } else {
                    cx.close_connection(self.generation);
                }
                // Until the close leaves the gate, stanzas before it can still be sealed.
                if at_once {
                    self.state = State::Closing;
                }
            }
        }
    }

    /// The close has left: nothing more can be sealed.
    pub(crate) fn closing(&mut self, cx: &mut Context) {
        cx.connection = None;
        self.state = State::Closing;
    }

    /// The connection is gone. Returns whether there was one.
    pub(crate) fn closed(&mut self, cx: &mut Context) -> bool {
        if self.is_down() {
            return false;
        }
        let lasted = self.up_since.take().map(|since| cx.now.mono.since(since));
        if lasted.is_some_and(|lasted| lasted >= cx.config.timing.stable) {
            self.failures = 0;
            self.hurried = 0;
        }
        self.state = State::Down;
        self.deadline = None;
        cx.connection = None;
        cx.available = false;
        self.schedule(cx);
        true
    }

    fn schedule(&mut self, cx: &mut Context) {
        let more = match self.again {
            Again::Never => return,
            // A service that sends everybody away all the time is not hammered for it.
            Again::AtOnce if self.hurried < HURRIED => {
                self.hurried += 1;
                self.retry_at = Some(cx.now.mono);
                return;
            }
            Again::AtOnce | Again::Later => 0,
            Again::MuchLater => 5,
        };
        let timing = &cx.config.timing;
        let doublings = self.failures.saturating_add(more).min(20);
        let most = timing
            .backoff_first
            .0
            .saturating_mul(1 << doublings)
            .min(timing.backoff_most.0);
        self.failures = self.failures.saturating_add(1 + more);
        // Half of it fixed, half drawn: a thousand accounts that lost the service together do not come back together.
        let pause = cx.between((Micros(most / 2), Micros(most)));
        self.retry_at = Some(cx.now.mono.plus(pause));
        cx.connection_is(Connection::Waiting {
            pause,
            why: self.why,
        });
    }

    /// Time has passed: a new connection may be due, or a handshake overdue.
    pub(crate) fn tick(&mut self, cx: &mut Context) {
        if self.retry_at.is_some_and(|at| at <= cx.now.mono) {
            self.open(cx);
        }
        if self.deadline.is_some_and(|at| at <= cx.now.mono) {
            self.cut(cx, Again::Later, "the service did not answer in time");
        }
    }
}
