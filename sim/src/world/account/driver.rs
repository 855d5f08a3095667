//! What a driver does: gives inputs, carries out outputs.

use super::{LEASE, Recorded, ToEngine, describe, ready};
use crate::world::{
    Happening, World, bugs::Bug, chance::Stream, cover::Point, settings::Asked, weather::Kind,
};
use baton_core::{
    engine::{Output, StopReason},
    flow::{Command, CommandError, CommandId},
    state::{Micros, Store},
};
use bytes::Bytes;

/// How long a driver stays away from an account that another connection has replaced, least and most: hosts do half a
/// minute, which would be most of a small world.
const AWAY: (u64, u64) = (2_000_000, 6_000_000);

/// Between two tries of a consumer to acknowledge something.
const INSISTS: Micros = Micros::from_millis(100);

impl World {
    pub(crate) fn give(&mut self, account: usize, life: u64, input: ToEngine) {
        if self.accounts[account].life != life {
            return;
        }
        if let Some(front) = self.weather.strikes(account, Kind::Freeze, self.now) {
            // Everything waits in the order in which it came.
            self.at(
                front.until,
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
            return;
        }
        let reads = matches!(input, ToEngine::Loaded(..) | ToEngine::Scanned(..));
        if reads && self.read_fails(account) {
            self.later(
                Micros::from_millis(150),
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
            return;
        }
        let input = match input {
            ToEngine::On(conn, input) => {
                if self.accounts[account].conn != Some(conn) {
                    return;
                }
                *input
            }
            other => other,
        };
        let now = self.local(account);
        let mut recorded = match input {
            ToEngine::Tick => Recorded::Tick,
            ToEngine::Opened(conn) => {
                self.accounts[account].conn = Some(conn);
                self.watch_connection(account);
                Recorded::Opened
            }
            ToEngine::Received(bytes) => Recorded::Received(bytes),
            ToEngine::Closed => {
                self.accounts[account].conn = None;
                self.accounts[account].online = false;
                self.watch_connection(account);
                Recorded::Closed
            }
            ToEngine::Loaded(id, keys) => {
                match ready(self.store.load(&self.accounts[account].id, keys.clone())) {
                    Ok(mut rows) => {
                        self.bugged_rows(account, &keys, &mut rows);
                        Recorded::Loaded(id, rows)
                    }
                    Err(error) => Recorded::Refused(error.to_string()),
                }
            }
            ToEngine::Scanned(id, scan) => {
                match ready(self.store.scan(&self.accounts[account].id, scan.clone())) {
                    Ok(mut rows) => {
                        self.bugged_scan(account, scan.table, &mut rows);
                        Recorded::Scanned(id, rows)
                    }
                    Err(error) => Recorded::Refused(error.to_string()),
                }
            }
            ToEngine::Fetched(id, piece) => Recorded::Fetched(id, piece),
            ToEngine::Committed { epoch, upto } => {
                self.accounts[account].committing = false;
                self.watch_durable(account, epoch, upto);
                Recorded::Committed { epoch, upto }
            }
            ToEngine::Early { epoch, upto } => {
                self.watch_durable(account, epoch, upto);
                Recorded::Committed { epoch, upto }
            }
            ToEngine::Fenced(by) => Recorded::Fenced(by),
            ToEngine::Unsealed(history) => Recorded::Unsealed(history),
            ToEngine::Refused(why) => Recorded::Refused(why),
            ToEngine::Granted(grant) => {
                if self.accounts[account].until < self.now {
                    self.cover.hit(Point::GrantAfterExpiry);
                }
                let until = &mut self.accounts[account].until;
                *until = grant.until.max(*until);
                Recorded::Granted(grant)
            }
            ToEngine::Command(command) => {
                let loses = self.has(Bug::CommandsLost);
                let this = &mut self.accounts[account];
                this.commands += 1;
                if let Some(changes) = this.about_to_ask.take() {
                    this.asked_changes.push(Asked {
                        life,
                        id: CommandId(this.commands),
                        at: now.unix.0,
                        changes,
                        result: None,
                    });
                }
                let id = CommandId(this.commands);
                if let Command::Acknowledge(seq) = command {
                    this.acknowledging.insert(id, seq);
                }
                self.watch_command(account, id, &command);
                if loses && id.0.is_multiple_of(16) {
                    return;
                }
                Recorded::Command(id, command)
            }
            ToEngine::On(..) => return,
        };
        let now = self.bugged_now(&recorded, now);
        let given = self.second_look(now);
        let this = &mut self.accounts[account];
        if let Some(engine) = &mut this.engine {
            if let Some(listener) = &mut self.listener {
                let at = self.now.0;
                listener(&line(at, account, &format!("< {}", recorded.words())));
            }
            if let Some(recorder) = &mut self.recorder {
                recorder.given(self.now, account, this.conn, &recorded);
            }
            if this.record {
                this.recording.push((recorded.clone(), now));
            }
            engine.handle(recorded.lend(), given);
            self.drain(account);
        }
    }

    /// Does what the engine says until it has nothing more to say.
    pub(super) fn drain(&mut self, account: usize) {
        let mut wire = std::mem::take(&mut self.wire);
        let mut outputs = 0;
        loop {
            wire.clear();
            outputs += 1;
            // The judge of outputs has said something long before.
            if outputs > 50_000 {
                break;
            }
            let life = self.accounts[account].life;
            let this = &mut self.accounts[account];
            let Some(engine) = &mut this.engine else {
                return;
            };
            let output = engine.poll(&mut wire);
            if this.record || self.listener.is_some() {
                let said = describe(&output, &wire);
                if let Some(listener) = &mut self.listener {
                    listener(&line(self.now.0, account, &format!("> {said}")));
                }
                if this.record {
                    this.outputs.push(said);
                }
            }
            self.mark(|recorder| recorder.said(account, &output));
            self.cover_output(account, &output);
            self.watch_output(account, &output, outputs);
            let this = &mut self.accounts[account];
            let Some(engine) = &mut this.engine else {
                return;
            };
            match output {
                Output::Commit(batch) => this.sealed.push(batch),
                Output::Load(id, keys) => {
                    let delay = self.store_delay(account);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Loaded(id, keys),
                        },
                    );
                }
                Output::Scan(id, scan) => {
                    let delay = self.store_delay(account);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Scanned(id, scan),
                        },
                    );
                }
                Output::Open(_) => {
                    let delay = self.draw(Stream::Dial, account, self.options.network);
                    let refused = self.weather.strikes(account, Kind::RefuseConnect, self.now);
                    if refused.is_some() {
                        let input = ToEngine::Closed;
                        self.later(
                            delay,
                            Happening::Engine {
                                account,
                                life,
                                input,
                            },
                        );
                        continue;
                    }
                    if self
                        .weather
                        .strikes(account, Kind::HangConnect, self.now)
                        .is_some()
                    {
                        continue;
                    }
                    let conn = self.connect(account, life);
                    if self
                        .weather
                        .strikes(account, Kind::AcceptClose, self.now)
                        .is_some()
                    {
                        self.hang_up(conn);
                        let input = ToEngine::On(conn, Box::new(ToEngine::Closed));
                        let soon = delay.plus(Micros(1));
                        self.later(
                            soon,
                            Happening::Engine {
                                account,
                                life,
                                input,
                            },
                        );
                    }
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Opened(conn),
                        },
                    );
                }
                Output::Close => {
                    let conn = this.conn.take();
                    this.online = false;
                    if let Some(conn) = conn
                        && !self.has(Bug::ConnectionLeaked)
                    {
                        self.hang_up(conn);
                    }
                    let delay = self.draw(Stream::Dial, account, self.options.network);
                    self.later(
                        delay,
                        Happening::Engine {
                            account,
                            life,
                            input: ToEngine::Closed,
                        },
                    );
                }
                Output::Transmit | Output::KeepAlive => {
                    if let Some(conn) = this.conn {
                        for bytes in self.bugged_write(Bytes::copy_from_slice(&wire)) {
                            self.send_to_service(conn, bytes);
                        }
                    }
                }
                Output::Fetch(id, request) => self.fetch(account, life, id, Some(request.path)),
                Output::FetchMore(id) => self.fetch(account, life, id, None),
                Output::StopFetch(id) => {
                    self.downloads.remove(&(account, id));
                }
                Output::Event(seq, event) => {
                    if self.hides(account, &event) {
                        continue;
                    }
                    if self.has(Bug::ShownTwice) && seq.0.is_multiple_of(16) {
                        self.show(account, seq, event.clone());
                    }
                    if self.has(Bug::EventsMixed) && seq.0.is_multiple_of(4) {
                        self.mix(account, seq, &event);
                    }
                    self.show(account, seq, event);
                }
                Output::Notice(notice) => self.notice(account, notice),
                Output::Reply(id, result) => {
                    let seq = this.acknowledging.remove(&id);
                    // As drivers do it: an acknowledgement is given until it is taken.
                    if let (Some(seq), Err(CommandError::Busy | CommandError::Unknown)) =
                        (seq, &result)
                    {
                        let input = ToEngine::Command(Command::Acknowledge(seq));
                        self.later(
                            INSISTS,
                            Happening::Engine {
                                account,
                                life,
                                input,
                            },
                        );
                    }
                    let this = &mut self.accounts[account];
                    let mut asked = this.asked_changes.iter_mut();
                    match asked.find(|asked| asked.life == life && asked.id == id) {
                        Some(asked) => asked.result = Some(result),
                        None => this.replies.push((id, result)),
                    }
                }
                Output::Idle { wake, .. } => {
                    this.wake = wake;
                    let bytes = engine.cached_bytes();
                    this.most = (this.most.0.max(outputs), this.most.1.max(bytes));
                    break;
                }
                Output::Stopped(reason) => {
                    // What comes after is for people to decide, unless it is plain that the account has to go on.
                    // One that was told to stop makes room for another process, however long it took over it.
                    let again = reason.is_retryable()
                        || matches!(reason, StopReason::Fenced(_) | StopReason::Shutdown);
                    let replaced = reason == StopReason::Replaced;
                    this.stops.push(reason);
                    self.cover.life(engine.stats());
                    let conn = this.kill();
                    if let Some(conn) = conn {
                        self.hang_up(conn);
                    }
                    // Nobody else has the term, so drivers come back by themselves, whenever and whyever it was said: by a
                    // former connection of the account's own, too, if its last bytes arrive late.
                    let pause = match (again, replaced) {
                        (true, _) => (1_000, 300_000),
                        (false, true) => AWAY,
                        (false, false) => return,
                    };
                    let pause = self.draw(Stream::Pause, account, pause);
                    self.later(pause, Happening::Start { account });
                    return;
                }
            }
        }
        self.wire = wire;
        let this = &mut self.accounts[account];
        if !this.committing && !this.sealed.is_empty() {
            this.committing = true;
            let batches = std::mem::take(&mut this.sealed);
            let life = this.life;
            self.cover_commit(account, &batches);
            self.mark(|recorder| recorder.commits(account, life, &batches));
            let mut delay = self.store_delay(account);
            if self.answers_early(&batches)
                && let Some(last) = batches.last()
            {
                let (epoch, upto) = (last.term.epoch, last.seq);
                let input = ToEngine::Early { epoch, upto };
                self.later(
                    Micros(1),
                    Happening::Engine {
                        account,
                        life,
                        input,
                    },
                );
                // It is in no hurry.
                delay = delay.plus(Micros::from_millis(200));
            }
            if self
                .weather
                .strikes(account, Kind::LateCommit, self.now)
                .is_some()
            {
                delay = delay.plus(Micros(LEASE.0 + LEASE.0 / 2));
            }
            self.later(
                delay,
                Happening::Store {
                    account,
                    life,
                    batches,
                },
            );
        }
    }
}

fn line(at: u64, account: usize, words: &str) -> String {
    format!("{}.{:06} {account} {words}", at / 1_000_000, at % 1_000_000)
}
