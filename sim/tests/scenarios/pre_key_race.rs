//! Two hosts upload pre-keys for one account.
//!
//! The service throws the account's one-time keys away and asks for more. The owner freezes with the request in its
//! socket, the next owner uploads, and then the first one goes on. If both bound the same id to different keys, whoever
//! was given the first one could never be read.

use super::{TAKEOVER, assert_good, on_every_store, owner_and_other};
use sim::{
    service::{DeviceId, faults::Fault},
    tier_b::Setup,
};

#[test]
fn pre_key_race() {
    let setup = Setup {
        phones: 12,
        ..Setup::default()
    };
    on_every_store(setup, |world| {
        let (owner, other) = owner_and_other(world);
        let phone = world.books(|books| books[0].phone.clone());
        let expire = || Fault::ExpirePreKeys {
            device: DeviceId::new(&phone, 1),
            keep: 0,
        };

        // At different moments of an upload: right when asked, while the keys are on their way to the database or to
        // the service, and when all is done.
        for (round, pause) in [0, 30, 60, 120].into_iter().enumerate() {
            let (from, to) = match world.owner(0) {
                Some(here) if here == owner => (&owner, &other),
                _ => (&other, &owner),
            };
            world.fault(expire());
            world.run(pause);
            world.freeze(from);
            let next = to.clone();
            assert!(world.run_until(TAKEOVER, |world| world.owner(0) == Some(next.clone())));
            // Somebody who has never written before: the service gives a key of the new upload away.
            world.phone_text(round * 3, 0, "first words");
            world.run(500);
            world.thaw(from);
            world.phone_text(round * 3 + 1, 0, "first words");
            world.run(2_000);
            world.phone_text(round * 3 + 2, 0, "first words");
            world.run(3_000);
        }
        assert_eq!(world.effects().get("expire_pre_keys"), Some(&4));
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert_eq!(verdict.received, 12);
    });
}
