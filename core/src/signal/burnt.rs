//! Records that go back in time, and chains that are skipped ahead for it.

use super::properties::{Move, World, any_move};
use super::*;
use proptest::prelude::*;

/// Two devices that have written to each other; what is sent next by the first is a plain `msg`.
fn acquainted() -> World {
    let mut world = World::new([6; 32]);
    world.converge();
    world.forgetful = true;
    world
}

fn go_back(world: &mut World, to: &SessionRecord, burn: u32) {
    let device = &mut world.devices[0];
    device.burn += burn;
    device.record = to.clone().at_burn(device.burn);
}

/// The counter of the message that was sent last.
fn counter(world: &World) -> u32 {
    let sent = &world.network.last().unwrap().sent;
    peek_counter(sent.kind, &sent.bytes).unwrap().1
}

#[test]
fn a_chain_is_skipped_ahead_once_and_the_other_side_follows() {
    let mut world = acquainted();
    let copy = world.devices[0].record.clone();
    (0..5).for_each(|_| world.play(Move::Send(0)));
    let first = counter(&world) - 4;
    world.deliver_everything();
    go_back(&mut world, &copy, MAX_SKIP);
    for next in 0..3 {
        world.play(Move::Send(0));
        assert_eq!(counter(&world), first + MAX_SKIP + next);
    }
    let last = world.network.pop().unwrap();
    assert_eq!(
        world.devices[1].decrypt(&last.sent),
        Ok(b"message 14".to_vec())
    );
    // Another loss, with a message in between: as far again.
    let copy = world.devices[0].record.clone();
    go_back(&mut world, &copy, MAX_SKIP);
    world.play(Move::Send(0));
    assert_eq!(counter(&world), first + 2 * MAX_SKIP + 3);
    let last = world.network.pop().unwrap();
    assert!(world.devices[1].decrypt(&last.sent).is_ok());
}

#[test]
fn a_chain_that_is_too_far_behind_only_receives() {
    let mut world = acquainted();
    let copy = world.devices[0].record.clone();
    world.play(Move::Send(0));
    world.deliver_everything();
    go_back(&mut world, &copy, MAX_SKIP + 1);
    let device = &mut world.devices[0];
    let local = LocalIdentity {
        key_pair: &device.identity,
        registration_id: 9,
    };
    assert!(!device.record.is_usable());
    assert!(!device.record.is_usable_by(&device.identity.public));
    let before = device.record.encode();
    assert!(matches!(
        encrypt(&mut device.record, &local, b"text"),
        Err(EncryptError::Burnt(behind)) if behind == MAX_SKIP + 1
    ));
    assert_eq!(device.record.encode(), before);
    // The other side turns the ratchet: the chain that follows has no past.
    world.play(Move::Send(1));
    let answer = world.network.pop().unwrap();
    assert!(world.devices[0].decrypt(&answer.sent).is_ok());
    assert!(world.devices[0].record.is_usable());
    world.play(Move::Send(0));
    assert_eq!(counter(&world), 0);
    world.deliver_everything();
    world.converge();
}

#[test]
fn an_archived_session_that_comes_back_has_not_forgotten_what_it_owes() {
    let mut world = acquainted();
    world.play(Move::Send(1));
    let late = world.network.pop().unwrap();
    let copy = world.devices[0].record.clone();
    world.play(Move::Send(0));
    let used = counter(&world);
    world.deliver_everything();
    go_back(&mut world, &copy, MAX_SKIP);
    // Another session becomes the current one and is brought up to date; then an overtaken message brings the old one
    // back, without a turn.
    world.play(Move::Initiate(0));
    world.play(Move::Send(0));
    assert!(world.devices[0].decrypt(&late.sent).is_ok());
    assert_eq!(world.devices[0].record.archived(), 1);
    world.network.clear();
    world.play(Move::Send(0));
    assert!(counter(&world) == 0 || counter(&world) >= used + MAX_SKIP);
}

/// A move of the two, or one of the database of the first.
#[derive(Clone, Debug)]
enum Step {
    Move(Move),
    Copy,
    /// Back to a copy.
    Back(prop::sample::Index),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_move().prop_map(Step::Move),
        1 => Just(Step::Copy),
        2 => any::<prop::sample::Index>().prop_map(Step::Back),
    ]
}

proptest! {
    /// Whatever is lost, and whatever arrives late on whichever session: no key is used twice, and in the end the two
    /// understand each other again.
    #[test]
    fn no_key_is_used_twice_by_a_record_that_goes_back(
        steps in prop::collection::vec(any_step(), 1..80),
        seed: [u8; 32],
    ) {
        let mut world = World::new(seed);
        world.forgetful = true;
        // Copies of the record and of the burn that the account had then; the burn now goes by the number of losses.
        let mut copies = vec![SessionRecord::new()];
        for step in steps {
            match step {
                Step::Move(one) => world.play(one),
                Step::Copy => copies.push(world.devices[0].record.clone()),
                Step::Back(at) => {
                    let copy = at.get(&copies).clone();
                    go_back(&mut world, &copy, MAX_SKIP);
                }
            }
        }
        // As retry receipts would have it: both start anew.
        world.network.clear();
        world.play(Move::Initiate(0));
        world.play(Move::Send(0));
        world.deliver_everything();
        world.play(Move::Send(1));
        world.deliver_everything();
        world.play(Move::Send(0));
        prop_assert!(world.devices[1].decrypt(&world.network[0].sent).is_ok());
    }
}
