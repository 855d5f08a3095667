//! Which host keeps which account, through crashes, freezes, partitions and rolling updates.
//!
//! Safety is not made here: the store's fences decide whose writes count, and no clock or lease takes part in that. What
//! is made here is everything else one wants of a fleet: that every account has a host, that hosts fall silent before
//! others take over, that nobody fights, and that planned moves are not noticed.
//!
//! | file | subject |
//! |---|---|
//! | [`host`] | the lease of a host: joining, renewing, falling silent, leaving |
//! | [`device`] | one account on one host: claimed, connected, doubted, handed on |
//! | [`placement`] | which host should have which account |
//! | `claims` | accounts without a holder, and whose turn it is |
//! | [`fleet`] | all of it together: what a driver holds |
//!
//! # Driving it
//!
//! One task holds a [`Fleet`](fleet::Fleet) and the engines of all accounts. It feeds inputs with the time *before*
//! what caused them was sent or, for everything else, now; drains `poll`; does as told; and comes back at `wake` at the
//! latest. No output waits for another: calls to the store run side by side, each with its deadline, and each is
//! answered exactly once. The clock should go on while the machine is suspended (`CLOCK_BOOTTIME`).
//!
//! ```text
//! let mut fleet = Fleet::new(info, Timing::default(), os_random(), clock())?;
//! fleet.handle(Input::Host(host::Input::Start), clock());
//! loop {
//!     while let Some(output) = fleet.poll() {
//!         match output {
//!             Output::Call(call)  => calls.push(async { (call.id, store.ask(call).await) }),  // Failed after call.within
//!             Output::Watch(who)  => watch = store.watch(who),
//!             Output::Exit        => return,
//!             Output::Account(account, action) => match action {
//!                 Build(lease)    => engines.insert(account, Engine::new(.., grant(lease), ..)),
//!                 Connect         => engine.connect(),                  // what its Output::Open asked for
//!                 Gate(gate)      => engine.gate = gate,
//!                 Verify(n, term) => recommit.push((account, n, term)), // one commit call for many accounts
//!                 Stop            => engine.handle(Command::Shutdown),
//!                 Drop            => engines.remove(account),           // and its socket
//!                 Disconnect | Prepare(_) | State(_) | Alert(_) => ..
//!             },
//!         }
//!     }
//!     select! { biased;
//!         (id, answer)     = calls.next()   => fleet.handle(Input::Host(host::Input::Answer(id, answer)), clock()),
//!         change           = watch          => fleet.handle(Input::Host(host::Input::Changed(change)), clock()),
//!         (account, event) = engines.next() => match event {
//!             Open            => fleet.handle(Input::Account(account, Wants { priority }), clock()),
//!             LoggedIn        => fleet.handle(Input::Account(account, Up), clock()),
//!             Closed          => fleet.handle(Input::Account(account, Down), clock()),
//!             CommitFailed    => fleet.handle(Input::Account(account, Unknown), clock()),
//!             Stopped(reason) => fleet.handle(Input::Account(account, Stopped(reason)), clock()),
//!             // Asked before each thing that leaves the process. The host's part is one comparison, so a renewal costs
//!             // the same however many accounts there are.
//!             Transmit(bytes) => if fleet.may_act(&account, Gate::Open, clock()) { socket.write(bytes) },
//!         },
//!         sleep_until(fleet.wake(clock()))  => fleet.handle(Input::Host(host::Input::Tick), clock()),
//!     }
//! }
//! ```
//!
//! What a host does each second does not depend on the number of its accounts. Only when its lease weakens or recovers
//! does every account hear of it.

mod budget;
mod calls;
mod claims;
pub mod device;
pub mod fleet;
pub mod host;
pub mod placement;
mod timing;

#[cfg(test)]
mod model;

pub use budget::{Budget, Rate};
pub use calls::{Answer, Ask, Call, CallId};
pub use timing::{Timing, TimingError};
