//! A commit is carried out, and the connection breaks before the answer. Or before it is carried out: the caller cannot
//! tell.

use super::{assert_good, on_every_store, talk};
use sim::tier_b::Setup;

#[test]
fn commit_outcome_unknown() {
    on_every_store(Setup::default(), |world| {
        let grants = world.grants(0).len();
        for _ in 0..20 {
            world.lose_answers(2);
            talk(world, 2, 200, 40);
            world.drop_requests(2);
            talk(world, 2, 200, 40);
        }
        let effects = world.effects();
        assert!(
            effects["answer lost"] >= 20 && effects["request lost"] >= 20,
            "{effects:?}"
        );
        let verdict = world.rest(60_000);
        assert_good(world, &verdict);
        assert_eq!(world.grants(0).len(), grants, "no reason to change owners");
        assert!(verdict.received > 100, "{} say little", verdict.received);
    });
}
