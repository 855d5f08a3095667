//! How an owner of an account comes and goes: claims, leases, watching others, looks into the mailbox.

use super::{LEASE, ToEngine, ready};
use crate::world::{Happening, World, bugs::Bug, chance::Stream, cover::Point, weather::Kind};
use baton_core::{
    engine::{Engine, Grant, Now},
    flow::{Command, Config, Limits, Profile, ServiceConfig, Timing},
    state::{Beat, Beaten, Claim, HostInfo, Incarnation, Micros, Scan, Store, StoreError, Table},
};

/// Between two looks of the host that watches.
const WATCH: Micros = Micros::from_secs(1);

/// Between two looks into a mailbox with something in it.
const LOOK: Micros = Micros::from_millis(250);

/// Whose only work it is to notice that others have died.
const WATCHER: Incarnation = Incarnation(u64::MAX);

impl World {
    /// How engines of this world are set up.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: baton_core::flow::Endpoint("ws://service/ws/chat".into()),
                root: self.service.root_public_key(),
            },
            profile: Profile {
                push_name: Some("Baton".into()),
                ..Profile::default()
            },
            timing: Timing::default(),
            // Small batches: each key is a row, and the vault runs low soon.
            pre_keys: baton_core::flow::PreKeyPolicy { low: 3, batch: 10 },
            available: true,
        };
        self.options.buggify.apply(&mut config);
        (self.options.configure)(&mut config);
        config
    }

    /// A process takes an account over.
    pub(crate) fn start(&mut self, account: usize) {
        if self.accounts[account].engine.is_some() {
            return;
        }
        // Its former downloads went with the process.
        self.downloads.retain(|(whose, _), _| *whose != account);
        let id = self.accounts[account].id.clone();
        let who = self.join(account);
        let claims = ready(self.store.claim(who, vec![id.clone()]));
        self.cover_claim(claims.as_ref().ok().and_then(|claims| claims.first()));
        let lease = match claims.as_deref() {
            Ok([Claim::Granted(lease)]) => self.bugged_claim(account, *lease),
            Ok([Claim::Held { .. }]) => {
                // A polite claimant waits until the holder's lease has run out and somebody has noticed.
                self.later(WATCH, Happening::Start { account });
                return;
            }
            other => {
                let complaint = format!("claim: {other:?}");
                self.accounts[account].complaints.push(complaint);
                return;
            }
        };
        self.watch_claim(account, &lease);
        self.watch_birth(account, &lease);
        let mut grant = Grant {
            lease,
            until: self.now.plus(LEASE),
        };
        self.accounts[account].lease = grant.until;
        self.bugged_lease(&mut grant.lease);
        if self.has(Bug::LeaseForever) {
            grant.until = Micros(u64::MAX / 2);
        }
        let seed = self.seed_of(account);
        let now = self.local(account);
        let engine = Engine::new(id, self.engine_config(), grant, seed, now);
        let this = &mut self.accounts[account];
        this.engine = Some(engine);
        this.birth = Some((grant, seed, now));
        this.until = grant.until;
        this.recording.clear();
        this.outputs.clear();
        let life = this.life;
        self.note(&[
            b"start",
            &account.to_le_bytes(),
            &lease.term.epoch.0.to_le_bytes(),
        ]);
        self.later(Micros(LEASE.0 / 3), Happening::Renew { account, life });
        self.tell(account, || {
            format!("begins under epoch {}", lease.term.epoch.0)
        });
        let process = self.accounts[account].process;
        self.mark(|recorder| {
            recorder.begins((account, process, life), lease.term.epoch.0, grant.until);
        });
        self.sometimes(account, Point::EngineStarts);
        self.drain(account);
        self.accounts[account].looking = false;
        if self.has(Bug::MailboxForgotten) || self.has(Bug::MailUnreadAtStart) {
            return;
        }
        // Somebody may have left requests while nobody was there, or before the account was linked.
        self.accounts[account].looking = true;
        self.later(LOOK, Happening::Mailbox { account, life });
    }

    /// A look into the mailbox, as drivers have one now and then. The engine hears of it if there is something; while
    /// there is nothing, nobody looks.
    pub(crate) fn look_for_mail(&mut self, account: usize, life: u64) {
        if self.accounts[account].life != life {
            return;
        }
        if let Some(front) = self.weather.strikes(account, Kind::Freeze, self.now) {
            // A process that is frozen does not look.
            self.at(front.until, Happening::Mailbox { account, life });
            return;
        }
        let this = &mut self.accounts[account];
        let first = Scan {
            table: Table::Mailbox,
            after: None,
            limit: 1,
        };
        let empty = matches!(ready(self.store.scan(&this.id, first)).as_deref(), Ok([]));
        this.looking = !empty;
        if this.looking {
            self.later(LOOK, Happening::Mailbox { account, life });
            self.give(account, life, ToEngine::Command(Command::CheckMailbox));
        }
    }

    /// There may be something in the mailbox: somebody looks when the next look is due.
    pub(crate) fn mail_may_have_come(&mut self, account: usize) {
        if self.has(Bug::MailboxForgotten) || self.has(Bug::MailNotNoticed) {
            return;
        }
        let this = &mut self.accounts[account];
        let (Some(_), Some((.., born)), false) = (&this.engine, &this.birth, this.looking) else {
            return;
        };
        this.looking = true;
        let life = this.life;
        let passed = Micros(self.now.since(born.mono).0 % LOOK.0);
        self.later(LOOK.since(passed), Happening::Mailbox { account, life });
    }

    /// The seed of the engine that an account's present life begins with.
    fn seed_of(&self, account: usize) -> [u8; 32] {
        let mut seed = [0; 32];
        for (n, bytes) in (0_u64..).zip(seed.chunks_mut(8)) {
            let life = match self.has(Bug::SeedReused) {
                true => n,
                false => self.accounts[account].life << 2 | n,
            };
            let drawn = self.chance.of(Stream::Engine, account as u64, life);
            bytes.copy_from_slice(&drawn.to_le_bytes());
        }
        seed
    }

    /// The time on an account's host.
    pub(crate) fn local(&self, account: usize) -> Now {
        let mut now = self.now();
        now.unix.0 += self.accounts[account].wall;
        now
    }

    fn incarnation(&self, account: usize) -> Incarnation {
        let process = self.accounts[account].process;
        Incarnation((u64::try_from(account).unwrap_or(0) << 32) + process)
    }

    /// The process joins the roster, if it is not in it; as another one, if it was declared dead.
    fn join(&mut self, account: usize) -> Incarnation {
        loop {
            let who = self.incarnation(account);
            let info = HostInfo::named(&format!("account-{account}"));
            match ready(self.store.join(who, info, LEASE)) {
                Ok(_) => return who,
                Err(StoreError::NotMember) => self.accounts[account].process += 1,
                Err(error) => panic!("a reference store refuses a host: {error}"),
            }
        }
    }

    /// Somebody else has the account for a moment, if nobody lives who has it.
    pub(crate) fn rival(&mut self, account: usize) {
        // A host of its own each time.
        let rival = Incarnation((1 << 62) + self.now.0);
        let info = HostInfo::named("rival");
        let joined = ready(self.store.join(rival, info, LEASE));
        debug_assert!(joined.is_ok(), "{joined:?}");
        let id = self.accounts[account].id.clone();
        let claims = ready(self.store.claim(rival, vec![id.clone()]));
        if let Ok([Claim::Granted(lease)]) = claims.as_deref() {
            self.cover.hit(Point::RivalClaims);
            self.watch_claim(account, lease);
            let epoch = lease.term.epoch.0;
            self.tell("world", || {
                format!("a rival has account {account} under epoch {epoch}")
            });
            self.mark(|recorder| recorder.rival(account, epoch));
            let released = ready(self.store.release(rival, vec![(id, lease.term.epoch)]));
            debug_assert!(released.is_ok(), "{released:?}");
        }
        let left = ready(self.store.leave(rival));
        debug_assert!(left.is_ok(), "{left:?}");
    }

    /// The watching host's renewal, in which it declares dead whose lease has run out.
    pub(crate) fn watch(&mut self) {
        if !matches!(
            ready(self.store.beat(WATCHER, beat())),
            Ok(Beaten::Renewed(_))
        ) {
            // Not there yet, or the database has forgotten it.
            let joined = ready(self.store.join(WATCHER, HostInfo::named("watcher"), LEASE));
            debug_assert!(joined.is_ok(), "{joined:?}");
            let _ = ready(self.store.beat(WATCHER, beat()));
        }
        self.later(WATCH, Happening::Watch);
    }

    pub(crate) fn renew(&mut self, account: usize, life: u64) {
        let this = &self.accounts[account];
        if this.life != life || this.engine.is_none() {
            return;
        }
        let Some((mut grant, ..)) = this.birth else {
            return;
        };
        if let Some(front) = self.weather.strikes(account, Kind::Freeze, self.now) {
            self.at(front.until, Happening::Renew { account, life });
            return;
        }
        self.sometimes(account, Point::RenewalDue);
        self.later(Micros(LEASE.0 / 3), Happening::Renew { account, life });
        // A renewal that is not answered is not repeated before the next is due.
        let lost = [
            Kind::LostRenewal,
            Kind::ReadOnly,
            Kind::Stall,
            Kind::DatabaseRestart,
        ]
        .into_iter()
        .any(|kind| self.weather.strikes(account, kind, self.now).is_some());
        if lost {
            return;
        }
        let who = self.incarnation(account);
        let input = match ready(self.store.beat(who, beat())) {
            Ok(Beaten::Renewed(view))
                if view.history == grant.lease.term.history || self.has(Bug::HistoryIgnored) =>
            {
                grant.until = self.now.plus(LEASE);
                self.accounts[account].lease = grant.until;
                ToEngine::Granted(grant)
            }
            Ok(Beaten::Renewed(view)) => {
                self.cover.hit(Point::RenewalUnsealed);
                ToEngine::Unsealed(view.history)
            }
            // It holds nothing; the account may be somebody else's.
            Ok(Beaten::Dead) => {
                self.cover.hit(Point::RenewalTooLate);
                if self.has(Bug::DeadIgnored) {
                    grant.until = self.now.plus(LEASE);
                    let input = ToEngine::Granted(grant);
                    self.later(
                        Micros(1000),
                        Happening::Engine {
                            account,
                            life,
                            input,
                        },
                    );
                    return;
                }
                ToEngine::Fenced(grant.lease.term.epoch)
            }
            Err(error) => ToEngine::Refused(error.to_string()),
        };
        let mut delay = self.draw(Stream::Renewal, account, self.options.store);
        if self
            .weather
            .strikes(account, Kind::LateRenewal, self.now)
            .is_some()
        {
            // It arrives when the lease before it has half a second more or less to go.
            let around = (LEASE.0 * 2 / 3 - 500_000, LEASE.0 * 2 / 3 + 500_000);
            delay = delay.plus(self.draw(Stream::Weather, account, around));
        }
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input,
            },
        );
    }
}

const fn beat() -> Beat {
    Beat {
        draining: false,
        accounts: 1,
        live: 0,
        ttl: LEASE,
    }
}
