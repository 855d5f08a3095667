//! The service says that another connection has replaced ours.
//!
//! If the lease is ours, somebody outside uses a copy of the keys. Whoever reconnects at once evicts the other, who
//! evicts us: two that fight evict each other for ever.

use super::{assert_good, on_every_store, owner_and_other, talk};
use baton_core::flow::StopReason;
use sim::{
    service::{DeviceId, faults::Fault},
    tier_b::Setup,
};

#[test]
fn stream_replaced() {
    on_every_store(Setup::default(), |world| {
        talk(world, 2, 1_000, 100);
        let (owner, _) = owner_and_other(world);
        let phone = world.books(|books| books[0].phone.clone());
        let logins = world.logins(0);

        world.fault(Fault::StreamError {
            device: DeviceId::new(&phone, 1),
            code: None,
            conflict: Some("replaced".into()),
        });
        talk(world, 2, 5_000, 100);

        // It has stopped, keeps the lease, and stays away: no other host, and not this one, connects.
        let stops = world.books(|books| books[0].stops.clone());
        assert!(
            matches!(stops[..], [(_, _, StopReason::Replaced)]),
            "{stops:?}"
        );
        world.run(20_000);
        assert_eq!(world.logins(0), logins, "it fights");
        assert_eq!(world.owner(0), None);

        // After a while it tries again, and gets everything that was sent meanwhile.
        let verdict = world.rest(60_000);
        assert_eq!(world.owner(0), Some(owner));
        assert_eq!(world.logins(0), logins + 1);
        assert_good(world, &verdict);
    });
}
