//! What can go wrong in a [`World`], by hand. Every disaster is a line of the trace and counts what it met.

use super::{
    Backup, Order, World, gateway::Seat, host_name, net::Power, remote::DATABASE, service::SERVICE,
};
use crate::service::faults::Fault;
use std::sync::atomic::Ordering;

impl World {
    /// The service misbehaves.
    pub fn fault(&mut self, fault: Fault) {
        self.room.order(Order::Fault(fault));
    }

    pub(super) fn seat(&self, host: &str) -> &Seat {
        let found = self.seats.iter().find(|seat| &*seat.name == host);
        found.expect("a host of this world")
    }

    fn peers(&self, host: &str) -> Vec<String> {
        let fixed = [DATABASE.0, SERVICE.0, "api"].map(str::to_owned);
        let all = fixed
            .into_iter()
            .chain((0..self.setup.hosts).map(host_name));
        all.filter(|peer| peer != host).collect()
    }

    /// The process on a host is killed: its machine closes its connections.
    pub fn kill(&mut self, host: &str) {
        self.note(format_args!("{host} is killed"));
        self.room.network.power(host, Power::NoProcess);
        self.sim.crash(host);
        self.gone(host);
    }

    /// A machine loses its power: nobody is told anything, and what it had sent but a moment ago is lost.
    pub fn power_loss(&mut self, host: &str) {
        self.note(format_args!("{host} loses its power"));
        self.room.network.power(host, Power::Off);
        for peer in self.peers(host) {
            self.sim.partition(host, peer.as_str());
        }
        self.sim.crash(host);
        for peer in self.peers(host) {
            self.sim.repair(host, peer.as_str());
            if self.room.network.is_cut(host, &peer) {
                self.sim.hold(host, peer.as_str());
            }
        }
        self.gone(host);
    }

    fn gone(&mut self, host: &str) {
        *self.effects.entry("process ended").or_default() += 1;
        if let Some(seat) = self.seats.iter().find(|seat| &*seat.name == host) {
            seat.frozen.store(false, Ordering::Relaxed);
        }
        for book in &mut self.room.books().accounts {
            if book.online.as_ref().is_some_and(|(at, _)| at == host) {
                book.online = None;
            }
        }
    }

    /// A process is started on a host that has none.
    pub fn start(&mut self, host: &str) {
        self.note(format_args!("{host} is started"));
        self.room.network.power(host, Power::On);
        self.sim.bounce(host);
    }

    /// Whether there is a process on the host.
    pub fn is_running(&mut self, host: &str) -> bool {
        self.sim.is_host_running(host)
    }

    /// The process is asked to finish and go.
    pub fn stop(&mut self, host: &str) {
        self.note(format_args!("{host} is asked to go"));
        self.seat(host).stop.send_replace(true);
    }

    /// The next process on this host is of another version.
    pub fn upgrade(&mut self, host: &str) {
        self.seat(host).version.fetch_add(1, Ordering::Relaxed);
    }

    /// A machine stands still: nothing is polled, while time passes and sockets fill.
    pub fn freeze(&mut self, host: &str) {
        self.note(format_args!("{host} freezes"));
        self.seat(host).frozen.store(true, Ordering::Relaxed);
        *self.effects.entry("frozen").or_default() += 1;
    }

    /// It goes on, where it was.
    pub fn thaw(&mut self, host: &str) {
        self.note(format_args!("{host} thaws"));
        self.seat(host).frozen.store(false, Ordering::Relaxed);
    }

    /// Nothing passes between two hosts, until it is healed as often as it was cut.
    pub fn cut(&mut self, a: &str, b: &str) {
        self.note(format_args!("{a} and {b} are cut off from each other"));
        if self.room.network.cut(a, b) {
            self.sim.hold(a, b);
        }
        *self.effects.entry("cut").or_default() += 1;
    }

    /// What was on the way arrives now.
    pub fn heal(&mut self, a: &str, b: &str) {
        self.note(format_args!("{a} and {b} reach each other again"));
        if self.room.network.heal(a, b) {
            self.sim.release(a, b);
        }
    }

    /// All connections between two hosts break, and both ends know.
    pub fn reset(&mut self, a: &str, b: &str) -> u64 {
        self.note(format_args!("connections between {a} and {b} are reset"));
        self.room.network.reset(a, b)
    }

    /// All connections between two hosts die, and neither end is told: half-open on both sides.
    pub fn silence(&mut self, a: &str, b: &str) -> u64 {
        self.note(format_args!("connections between {a} and {b} fall silent"));
        self.room.network.silence(a, b)
    }

    /// The database takes calls and does nothing about them, until it goes on.
    pub fn stall_database(&mut self, stalled: bool) {
        self.note(format_args!("the database stalls: {stalled}"));
        self.stalled.store(stalled, Ordering::Relaxed);
        if stalled {
            *self.effects.entry("database stalled").or_default() += 1;
        }
    }

    /// The next so many calls are carried out, and their connections break before the answer.
    pub fn lose_answers(&mut self, count: u32) {
        self.note(format_args!("{count} answers will be lost"));
        self.database.lose_answers(count);
    }

    /// The connection breaks before the next so many calls are carried out.
    pub fn drop_requests(&mut self, count: u32) {
        self.note(format_args!("{count} requests will be lost"));
        self.database.drop_requests(count);
    }

    /// The wall clock of a machine is set, by so many milliseconds.
    pub fn jump(&mut self, host: &str, millis: i64) {
        self.note(format_args!(
            "the wall clock of {host} jumps by {millis} ms"
        ));
        self.seat(host).wall.fetch_add(millis, Ordering::Relaxed);
        *self.effects.entry("clock jump").or_default() += 1;
    }

    /// A standby that is behind, or a backup: what the database holds now.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup {
            backend: self.database.backend.copy(&self.store_clock),
            ledger: self.database.ledger(|ledger| ledger.clone()),
        }
    }

    /// The database fails over to a standby that has what `backup` has: everything since is lost, and another timeline
    /// begins. The process on the database host is another one then.
    ///
    /// # Panics
    ///
    /// If the store is one that has no standbys: see [`Kind::has_standbys`](super::Kind::has_standbys).
    pub fn fail_over(&mut self, backup: &Backup) {
        self.note(format_args!("the database fails over; commits are lost"));
        let done = self.database.backend.fail_over_to(&backup.backend);
        assert!(done, "{} has no standbys", self.setup.backend);
        self.went_back(backup, "failover");
    }

    /// `backup` is put in the place of the database: everything since is lost, and another generation begins.
    pub fn restore(&mut self, backup: &Backup) {
        self.note(format_args!("a backup is put back; commits are lost"));
        self.database.backend.restore(&backup.backend);
        self.went_back(backup, "restore");
    }

    fn went_back(&mut self, backup: &Backup, effect: &'static str) {
        self.database
            .ledger(|ledger| ledger.went_back(&backup.ledger));
        for book in &mut self.room.books().accounts {
            book.forgive();
        }
        *self.effects.entry(effect).or_default() += 1;
        self.kill(DATABASE.0);
        self.start(DATABASE.0);
    }
}
