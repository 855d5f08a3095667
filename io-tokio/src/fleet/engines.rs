//! Engines of a host: built when an account is ours, gone when it is not.

use super::{
    AccountStatus, Fleet, FleetEvent, Takeover,
    room::{Ended, Job, Room, Wishes},
};
use crate::{Connector, DriveOptions, Env, Recorded, account::ends, watch};
use baton_core::{
    cluster::device,
    engine::Grant,
    flow::{Config, StopReason},
    journal::{Birth, Seed},
    state::{AccountId, Lease, Micros, Store},
};
use futures_util::FutureExt as _;
use std::sync::Arc;
use tracing::info;

impl<S, C, E, F> Fleet<S, C, E, F>
where
    S: Store,
    C: Connector,
    E: Env,
    F: FnMut(&AccountId) -> Config + Send,
{
    /// An engine for an account of ours; and a room, if it has just become ours.
    pub(super) fn build(&mut self, account: &AccountId, lease: Lease) {
        if !self.rooms.contains_key(account) {
            let (handle, inbox, desk) = ends();
            let now = self.env.now().unix;
            let from = self.origins.remove(account);
            let takeover = Takeover {
                from,
                gone: from.and_then(|from| self.gone.get(&from).copied()),
                claimed: now,
                connected: None,
                first_message: None,
            };
            let status = AccountStatus {
                account: account.clone(),
                state: device::State::Loading,
                epoch: lease.term.epoch,
                takeover,
            };
            info!(%account, epoch = lease.term.epoch.0, "owner");
            let room = Room {
                wishes: watch::Sender::new(Wishes::new()),
                engine: 0,
                since: self.engines_built,
                desk: Some(desk),
                build: None,
                handle: handle.clone(),
                status: status.clone(),
                active: now,
            };
            self.rooms.insert(account.clone(), room);
            self.event(FleetEvent::Gained {
                status,
                handle,
                inbox,
            });
        }
        let until = self.machine.host().until().unwrap_or_default();
        self.grant.set(until);
        let Some(room) = self.rooms.get_mut(account) else {
            return;
        };
        room.status.epoch = lease.term.epoch;
        match room.desk.take() {
            Some(desk) => {
                self.engines_built += 1;
                room.engine = self.engines_built;
                room.wishes.send_modify(|wishes| {
                    *wishes = Wishes {
                        gone: wishes.gone,
                        ..Wishes::new()
                    };
                });
                let timing = &self.options.timing;
                let grant = Grant { lease, until };
                let (seed, now) = (self.env.entropy(), self.env.now());
                let config = (self.config)(account);
                let birth = Birth {
                    account: account.clone(),
                    config,
                    grant,
                    seed: Seed(seed),
                    now,
                };
                let job = Job {
                    engine: Recorded::new(birth, self.options.journals.as_ref()),
                    number: room.engine,
                    account: account.clone(),
                    lease,
                    until,
                    host: Arc::clone(&self.grant),
                    ahead: Micros(timing.hard.since(timing.soft).0 * 2 / 3),
                    wishes: room.wishes.subscribe(),
                    reports: Arc::clone(&self.reports),
                    priority: u64::try_from(room.active.0).unwrap_or(0),
                    desk,
                    commits: self.commits.clone(),
                    connector: self.connector.clone(),
                    env: self.env.clone(),
                    options: DriveOptions {
                        mailbox: None,
                        ..self.options.drive
                    },
                };
                self.engines.push(job.run().boxed());
            }
            // The engine before it is on its way out.
            None => room.build = Some(lease),
        }
    }

    /// Takes back an engine that was to be built; whether there was one.
    pub(super) fn unbuild(&mut self, account: &AccountId) -> bool {
        let room = self.rooms.get_mut(account);
        room.is_some_and(|room| room.build.take().is_some())
    }

    pub(super) fn wish(&mut self, account: &AccountId, change: impl FnOnce(&mut Wishes)) {
        if let Some(room) = self.rooms.get(account) {
            room.wishes.send_modify(change);
        }
    }

    /// An engine has stopped, or has gone as it was told.
    pub(super) fn ended(&mut self, ended: Ended) {
        let Ended {
            account,
            engine,
            desk,
            reason,
        } = ended;
        let Some(room) = self.rooms.get_mut(&account) else {
            return;
        };
        // Its room is gone, and this one is of another time.
        if engine <= room.since {
            return;
        }
        let stop = room.wishes.borrow().stop;
        let is_current = room.engine == engine;
        room.desk = Some(desk);
        if is_current {
            room.engine = 0;
        }
        if let (Some(reason), true) = (reason, is_current) {
            // Its consumer wants no more: give it back. Another engine would stop as well.
            if reason == StopReason::Shutdown && !stop {
                self.tell(&account, device::Input::Leave(None));
            }
            self.tell(&account, device::Input::Stopped(reason));
        }
        let build = self
            .rooms
            .get_mut(&account)
            .and_then(|room| room.build.take());
        if let Some(lease) = build {
            self.build(&account, lease);
        }
    }
}
