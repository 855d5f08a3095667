//! Settings and history of the simulated service, seen by a companion that verifies everything with the core's own
//! implementation. The phone checks with another one, so each of the two is the other's judge.

mod support;

use baton_core::appstate::{
    self, Collection, KeyId, KeyRing, PatchError, SnapshotError, State, SyncKey,
    action::{Action, MuteEnd},
    build_patch, verify_patch, verify_snapshot,
};
use baton_core::crypto::Rng;
use baton_core::jid::Jid;
use baton_core::media::{Expected, MediaKind, MediaReader};
use baton_core::proto::e2e;
use baton_core::proto::sync::{ExternalBlobReference, SyncdMutations, SyncdPatch, SyncdSnapshot};
use baton_core::state::Micros;
use baton_core::wire::node::Node;
use prost::Message as _;
use sim::service::books::Violation;
use sim::service::faults::{Fault, FileFault, SettingsFault};
use sim::service::history::{Chunk, Damage, History, HistoryKind, Told};
use sim::service::settings::Change;
use sim::service::{Options, Service};
use std::collections::BTreeMap;
use support::{Client, World};

const ALICE: &str = "15550000001";
const CHAT: &str = "15550000009@s.whatsapp.net";

/// Value MACs by index MACs.
type Macs = BTreeMap<[u8; 32], [u8; 32]>;

/// Whether an error is the one that was to be.
type Diagnosis<'a> = &'a dyn Fn(&Bad) -> bool;

/// A companion's settings.
#[derive(Default)]
struct Device {
    ring: KeyRing,
    newest: Option<SyncKey>,
    collections: BTreeMap<&'static str, (State, Macs)>,
    /// What has changed, in order.
    seen: Vec<Action>,
}

#[derive(Debug, PartialEq)]
enum Bad {
    Patch(PatchError),
    Snapshot(SnapshotError),
    Code(u64),
    Unreadable,
    File,
}

fn world() -> World {
    World::with(Options {
        snapshot_every: 6,
        patches_per_answer: 3,
        external_above: 900,
        ..Options::default()
    })
}

/// Online and in possession of the keys.
fn companion(world: &mut World, seed: u8) -> (Client, Device) {
    let mut client = Client::online(world, seed, ALICE);
    let mut device = Device::default();
    device.hear(world, &mut client);
    (client, device)
}

impl Device {
    /// Takes in what the phone says: keys. Returns announcements of history, with their ids.
    fn hear(
        &mut self,
        world: &mut World,
        client: &mut Client,
    ) -> Vec<(String, e2e::HistorySyncNotification)> {
        let mut histories = Vec::new();
        for message in client.all(world, "message") {
            let content = client.decrypt(&message).expect("readable");
            let protocol = content
                .protocol_message
                .expect("the phone says nothing else");
            client.receipt(world, &message, Some("peer_msg"));
            for key in protocol
                .app_state_sync_key_share
                .into_iter()
                .flat_map(|share| share.keys)
            {
                let id =
                    KeyId::new(key.key_id.expect("an id").key_id.expect("bytes")).expect("short");
                let Some(data) = key.key_data else { continue };
                let data: [u8; 32] = data.key_data.expect("a key").try_into().expect("32 bytes");
                self.newest = Some(SyncKey::expand(id.clone(), &data));
                self.ring.insert(SyncKey::expand(id, &data));
            }
            if let Some(history) = protocol.history_sync_notification {
                let id = message.get_string("id").expect("an id");
                histories.push((id, history));
            }
        }
        histories
    }

    fn version(&self, of: Collection) -> u64 {
        self.collections
            .get(of.as_str())
            .map_or(0, |(state, _)| state.version)
    }

    /// Asks, and takes in what comes. Returns how many answers it took.
    fn read(
        &mut self,
        world: &mut World,
        client: &mut Client,
        of: Collection,
    ) -> Result<usize, Bad> {
        for answers in 1.. {
            let have = self.version(of);
            let ask = Node::new("collection")
                .attr("name", of.as_str())
                .attr_opt("version", (have > 0).then_some(have))
                .attr("return_snapshot", if have == 0 { "true" } else { "false" });
            let node = question(world, client, ask);
            if let Some(error) = node.find("error") {
                return Err(Bad::Code(error.get_u64("code").expect("a code")));
            }
            self.take(world, of, &node)?;
            if node.get_str("has_more_patches") != Some("true") {
                assert_eq!(node.get_u64("version"), Some(self.version(of)));
                return Ok(answers);
            }
        }
        unreachable!()
    }

    fn take(&mut self, world: &mut World, of: Collection, node: &Node) -> Result<(), Bad> {
        let (state, macs) = self.collections.entry(of.as_str()).or_default();
        if let Some(bytes) = node.find("snapshot").and_then(Node::data) {
            let reference = ExternalBlobReference::decode(bytes).expect("a reference");
            let file = fetch(world, &reference).ok_or(Bad::File)?;
            let snapshot = SyncdSnapshot::decode(&*file).map_err(|_| Bad::Unreadable)?;
            let replaced = verify_snapshot(of, &snapshot, &self.ring).map_err(Bad::Snapshot)?;
            *state = replaced.state;
            *macs = replaced
                .mutations
                .iter()
                .map(|m| (m.index_mac, m.value_mac))
                .collect();
            self.seen.extend(replaced.mutations.iter().map(Action::of));
        }
        let patches = node
            .find("patches")
            .into_iter()
            .flat_map(|list| list.find_all("patch"));
        for bytes in patches.filter_map(Node::data) {
            let mut patch = SyncdPatch::decode(bytes).map_err(|_| Bad::Unreadable)?;
            let mut mutations = std::mem::take(&mut patch.mutations);
            if let Some(reference) = &patch.external_mutations {
                let file = fetch(world, reference).ok_or(Bad::File)?;
                mutations = SyncdMutations::decode(&*file)
                    .map_err(|_| Bad::Unreadable)?
                    .mutations;
            }
            let previous = |mac: &[u8; 32]| macs.get(mac).copied();
            let applied = verify_patch(of, state, &patch, &mutations, &self.ring, previous)
                .map_err(Bad::Patch)?;
            *state = applied.state;
            for (name, value) in &applied.macs {
                match value {
                    Some(value) => macs.insert(*name, *value),
                    None => macs.remove(name),
                };
            }
            self.seen.extend(applied.mutations.iter().map(Action::of));
        }
        Ok(())
    }

    /// Announces a change on top of what it knows.
    fn write(
        &mut self,
        world: &mut World,
        client: &mut Client,
        action: &Action,
        spoil: bool,
    ) -> Node {
        let (of, change) = action.change(1_795_224_800_000).expect("known");
        let (state, macs) = self.collections.entry(of.as_str()).or_default();
        let key = self.newest.as_ref().expect("a key");
        let mut rng = Rng::from_seed([9; 32]);
        let previous = |mac: &[u8; 32]| macs.get(mac).copied();
        let built = build_patch(of, state, key, &[change], previous, &mut rng).expect("built");
        let mut patch = built.patch;
        if spoil {
            patch.patch_mac.as_mut().expect("one")[3] ^= 1;
        }
        let node = Node::new("collection")
            .attr("name", of.as_str())
            .attr("version", state.version)
            .attr("return_snapshot", "false")
            .child(Node::new("patch").bytes(patch.encode_to_vec()));
        question(world, client, node)
    }

    /// The same state as the phone's, in every collection.
    fn assert_same(&self, service: &Service) {
        for (name, (state, macs)) in &self.collections {
            let version = service.settings_version(ALICE, name);
            assert_eq!(state.version, version, "{name}");
            let hash = service.settings_hash(ALICE, name, version);
            assert_eq!(Some(state.hash.to_bytes()), hash, "{name}");
            assert_eq!(*macs, service.setting_macs(ALICE, name), "{name}");
        }
    }
}

fn question(world: &mut World, client: &mut Client, collection: Node) -> Node {
    let sync = Node::new("sync").child(collection);
    let answer = client.iq(world, "set", "w:sync:app:state", [sync]);
    answer
        .path(&["sync", "collection"])
        .expect("answered")
        .clone()
}

fn fetch(world: &mut World, reference: &ExternalBlobReference) -> Option<Vec<u8>> {
    let key = reference.media_key.as_deref()?.try_into().ok()?;
    let expected = Expected {
        enc_sha256: reference.file_enc_sha256.as_deref()?.try_into().ok(),
        sha256: reference.file_sha256.as_deref()?.try_into().ok(),
        most: 1 << 24,
    };
    let plain = read_file(
        world,
        MediaKind::AppState,
        reference.direct_path.as_deref()?,
        &key,
        expected,
    )?;
    assert_eq!(Some(plain.len() as u64), reference.file_size_bytes);
    Some(plain)
}

fn read_file(
    world: &mut World,
    kind: MediaKind,
    path: &str,
    key: &[u8; 32],
    expected: Expected,
) -> Option<Vec<u8>> {
    let mut download = world.service.download(path).ok()?;
    let (mut reader, mut plain) = (MediaReader::new(kind, key, expected), Vec::new());
    while let Some(piece) = download.next(1000).ok()? {
        reader.push(&piece, &mut plain).ok()?;
    }
    reader.finish(&mut plain).ok()?;
    Some(plain)
}

fn chat() -> Jid {
    CHAT.parse().expect("a JID")
}

fn mute(until: i64) -> Action {
    let until = Some(MuteEnd::At(until));
    Action::Mute {
        chat: chat(),
        until,
    }
}

fn change(world: &mut World, change: Change) {
    world
        .service
        .phone_change(ALICE, &[change], world.now)
        .expect("changed");
    world.pump();
}

fn pin(n: u64) -> Change {
    Change::Pin {
        chat: format!("{}@s.whatsapp.net", 15_550_000_100 + n),
        pinned: true,
    }
}

#[test]
fn a_new_companion_learns_keys_and_settings() {
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    for of in Collection::ALL {
        device.read(&mut world, &mut client, of).expect("good");
    }
    let name = Action::PushName(format!("Phone {ALICE}"));
    assert!(device.seen.contains(&name));
    device.assert_same(&world.service);
    assert_eq!(world.service.books().anomalies(), []);
}

#[test]
fn random_changes_lead_every_companion_to_the_same_state() {
    let mut world = world();
    let (mut early, mut device) = companion(&mut world, 1);
    let mut rng = Rng::from_seed([5; 32]);
    let mut pages = 0;
    for round in 0..40 {
        let changes = Change::draw_some(&mut rng);
        world
            .service
            .phone_change(ALICE, &changes, world.now)
            .expect("changed");
        world.pump();
        if round % 9 == 8 {
            for of in Collection::ALL {
                pages = pages.max(device.read(&mut world, &mut early, of).expect("good"));
            }
            device.assert_same(&world.service);
        }
    }
    assert!(
        pages > 1,
        "{pages} pages: has_more_patches was never needed"
    );
    let told = early.all(&mut world, "notification");
    assert!(
        told.iter()
            .all(|node| node.get_str("type") == Some("server_sync"))
            && told.len() > 30
    );
    // Who comes late gets snapshots, and what followed them.
    let (mut late, mut other) = companion(&mut world, 2);
    for of in Collection::ALL {
        other.read(&mut world, &mut late, of).expect("good");
        device.read(&mut world, &mut early, of).expect("good");
    }
    other.assert_same(&world.service);
    device.assert_same(&world.service);
    assert_eq!(world.service.books().violations(), []);
}

#[test]
fn a_companions_change_reaches_the_phone_and_the_others() {
    let mut world = world();
    let (mut one, mut first) = companion(&mut world, 1);
    let (mut two, mut second) = companion(&mut world, 2);
    let answer = first.write(&mut world, &mut one, &mute(7), false);
    assert_eq!(
        (answer.get_u64("version"), answer.find("error")),
        (Some(1), None)
    );
    let told = two.all(&mut world, "notification");
    let told = told
        .iter()
        .filter_map(|n| n.find("collection"))
        .map(|c| (c.get_string("name"), c.get_u64("version")));
    assert!(
        told.collect::<Vec<_>>()
            .contains(&(Some("regular_high".into()), Some(1)))
    );
    let told = one.all(&mut world, "notification");
    assert!(
        told.iter()
            .all(|node| node.get_str("type") != Some("server_sync")),
        "who did it knows it"
    );
    for (client, device) in [(&mut one, &mut first), (&mut two, &mut second)] {
        device
            .read(&mut world, client, Collection::RegularHigh)
            .expect("good");
        assert_eq!(device.seen, [mute(7)]);
        device.assert_same(&world.service);
    }
    let changes = world.service.setting_changes(ALICE);
    let change = changes
        .iter()
        .find(|change| change.collection == "regular_high")
        .expect("it is there");
    assert_eq!((&change.by, change.version), (&one.id(), 1));
    assert_eq!(change.index, br#"["mute","15550000009@s.whatsapp.net"]"#);
}

#[test]
fn who_is_behind_gets_a_conflict_and_what_it_missed() {
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    let fault = Fault::Settings {
        device: client.id(),
        what: SettingsFault::Overtake,
        count: 1,
    };
    world.service.fault(fault, world.now);
    let answer = device.write(&mut world, &mut client, &mute(7), false);
    assert_eq!(answer.get_str("type"), Some("error"));
    assert_eq!(
        answer.find("error").and_then(|e| e.get_u64("code")),
        Some(409)
    );
    device
        .take(&mut world, Collection::RegularHigh, &answer)
        .expect("good");
    let answer = device.write(&mut world, &mut client, &mute(7), false);
    assert_eq!(
        (answer.get_u64("version"), answer.find("error")),
        (Some(2), None)
    );
    device
        .read(&mut world, &mut client, Collection::RegularHigh)
        .expect("good");
    device.assert_same(&world.service);
    assert_eq!(device.seen.len(), 2);
}

#[test]
fn the_phone_finds_out_a_patch_that_does_not_add_up() {
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    device.write(&mut world, &mut client, &mute(7), true);
    let violations = world.service.books().violations();
    let [Violation::BadPatch { device, why, .. }] = violations else {
        panic!("{violations:?}");
    };
    assert_eq!(
        (device, why.as_str()),
        (&client.id(), "the MAC of the patch is wrong")
    );
}

/// Every fault of an answer is one that a device can see, and passes.
#[test]
fn what_is_wrong_with_an_answer_is_seen() {
    use appstate::MutationError;
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    let of = Collection::RegularLow;
    let mut number = 0;
    let bad: [(SettingsFault, Diagnosis<'_>); 7] = [
        (SettingsFault::PatchMac, &|e| {
            *e == Bad::Patch(PatchError::PatchMac)
        }),
        (SettingsFault::SnapshotMac, &|e| {
            matches!(
                e,
                Bad::Patch(PatchError::PatchMac | PatchError::SnapshotMac)
            )
        }),
        (SettingsFault::ValueMac, &|e| {
            *e == Bad::Patch(PatchError::Mutation(MutationError::ValueMac))
        }),
        (SettingsFault::IndexMac, &|e| {
            *e == Bad::Patch(PatchError::Mutation(MutationError::IndexMac))
        }),
        (SettingsFault::Skip, &|e| {
            matches!(e, Bad::Patch(PatchError::Version { .. }))
        }),
        (SettingsFault::Stale, &|e| {
            matches!(e, Bad::Patch(PatchError::Version { .. }))
        }),
        (SettingsFault::Garbage, &|e| *e == Bad::Unreadable),
    ];
    device.read(&mut world, &mut client, of).expect("good");
    for (what, expected) in bad {
        for _ in 0..2 {
            number += 1;
            change(&mut world, pin(number));
        }
        let device_id = client.id();
        let fault = Fault::Settings {
            device: device_id,
            what,
            count: 1,
        };
        world.service.fault(fault, world.now);
        let error = device
            .read(&mut world, &mut client, of)
            .expect_err("spoilt");
        assert!(expected(&error), "{what:?}: {error:?}");
        device
            .read(&mut world, &mut client, of)
            .expect("it has passed");
        device.assert_same(&world.service);
    }
    // In a snapshot.
    for what in [
        SettingsFault::SnapshotMac,
        SettingsFault::ValueMac,
        SettingsFault::IndexMac,
    ] {
        let mut fresh = Device {
            ring: std::mem::take(&mut device.ring),
            ..Device::default()
        };
        let fault = Fault::Settings {
            device: client.id(),
            what,
            count: 1,
        };
        world.service.fault(fault, world.now);
        let error = fresh.read(&mut world, &mut client, of).expect_err("spoilt");
        assert!(matches!(error, Bad::Snapshot(_)), "{what:?}: {error:?}");
        fresh
            .read(&mut world, &mut client, of)
            .expect("it has passed");
        fresh.assert_same(&world.service);
        device.ring = fresh.ring;
    }
    // And of the files: a long patch.
    let acted = world.service.faults().acted().len();
    for what in [
        FileFault::Gone,
        FileFault::Truncated,
        FileFault::BreaksOff,
        FileFault::WrongMac,
        FileFault::Endless,
    ] {
        let many = (0..12).map(|n| pin(1_000 + n)).collect::<Vec<_>>();
        world
            .service
            .phone_change(ALICE, &many, world.now)
            .expect("changed");
        let fault = Fault::File {
            device: client.id(),
            what,
            count: 1,
        };
        world.service.fault(fault, world.now);
        let error = device
            .read(&mut world, &mut client, of)
            .expect_err("spoilt");
        assert_eq!(error, Bad::File, "{what:?}");
        device
            .read(&mut world, &mut client, of)
            .expect("it has passed");
    }
    assert_eq!(world.service.faults().acted().len(), acted + 5);
}

#[test]
fn keys_change_and_are_told_when_asked() {
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    let of = Collection::RegularLow;
    let fault = Fault::Settings {
        device: client.id(),
        what: SettingsFault::NoKeys,
        count: 1,
    };
    world.service.fault(fault, world.now);
    world.service.rotate_key(ALICE, world.now);
    change(&mut world, pin(1));
    let error = device
        .read(&mut world, &mut client, of)
        .expect_err("unknown key");
    let Bad::Patch(PatchError::MissingKey(id)) = error else {
        panic!("{error:?}");
    };
    let ids = [id.as_bytes().to_vec()];
    world
        .service
        .share_keys(&client.id(), Some(&ids), world.now);
    world.pump();
    device.hear(&mut world, &mut client);
    device.read(&mut world, &mut client, of).expect("good");
    device.assert_same(&world.service);
    // One that the phone has lost is named without content.
    world.service.rotate_key(ALICE, world.now);
    world.service.forget_keys(ALICE);
    world.pump();
    device.hear(&mut world, &mut client);
    world
        .service
        .share_keys(&client.id(), Some(&ids), world.now);
    world.pump();
    let message = client.expect(&mut world, "message");
    let content = client
        .decrypt(&message)
        .expect("readable")
        .protocol_message
        .expect("it is one");
    let keys = content.app_state_sync_key_share.expect("a share").keys;
    assert!(keys.len() == 1 && keys[0].key_data.is_none());
}

#[test]
fn who_missed_forgotten_patches_needs_a_snapshot() {
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    let of = Collection::RegularLow;
    change(&mut world, pin(1));
    device.read(&mut world, &mut client, of).expect("good");
    (2..5).for_each(|n| change(&mut world, pin(n)));
    let fault = Fault::DropPatches {
        device: client.id(),
    };
    world.service.fault(fault, world.now);
    change(&mut world, pin(9));
    let error = device.read(&mut world, &mut client, of).expect_err("a gap");
    assert_eq!(error, Bad::Patch(PatchError::Version { have: 1, got: 5 }));
    device.collections.clear();
    device.read(&mut world, &mut client, of).expect("good");
    device.assert_same(&world.service);
}

#[test]
fn settings_survive_a_restart_of_the_service() {
    for forgotten in [false, true] {
        let mut world = world();
        let (mut client, mut device) = companion(&mut world, 1);
        let mut rng = Rng::from_seed([6; 32]);
        for _ in 0..10 {
            world
                .service
                .phone_change(ALICE, &Change::draw_some(&mut rng), world.now)
                .expect("changed");
        }
        world.service.rotate_key(ALICE, world.now);
        world.pump();
        device.hear(&mut world, &mut client);
        if forgotten {
            let fault = Fault::DropPatches {
                device: client.id(),
            };
            world.service.fault(fault, world.now);
        }
        change(&mut world, pin(3));
        let known = world.service.settings(ALICE, "regular_low");
        let options = Options {
            snapshot_every: 6,
            ..Options::default()
        };
        world.service =
            Service::restore(options, [8; 32], &world.service.save()).expect("restored");
        assert_eq!(world.service.settings(ALICE, "regular_low"), known);
        client.relogin(&mut world);
        for of in Collection::ALL {
            device.read(&mut world, &mut client, of).expect("good");
        }
        device.assert_same(&world.service);
        device.write(&mut world, &mut client, &mute(9), false);
        assert_eq!(world.service.books().violations(), []);
    }
}

fn history(kind: HistoryKind, chunks: u32, bytes: u64) -> History {
    History {
        kind,
        chunks,
        bytes,
        inline: false,
        seed: 3,
        damage: None,
    }
}

/// What is in a chunk, counted: messages, names, LIDs.
fn count(items: impl Iterator<Item = Told>) -> [usize; 3] {
    items.fold([0; 3], |[messages, names, lids], told| match told {
        Told::Messages(ids) => [messages + ids.len(), names, lids],
        Told::Name(..) => [messages, names + 1, lids],
        Told::Lid(..) => [messages, names, lids + 1],
    })
}

#[test]
fn history_comes_chunk_by_chunk() {
    use baton_core::proto::history::HistorySync;
    use std::io::Read as _;
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    let history = history(HistoryKind::Recent, 3, 30_000);
    assert!(
        world
            .service
            .phone_history(&client.id(), &history, world.now)
    );
    world.pump();
    for order in 1..=3 {
        let heard = device.hear(&mut world, &mut client);
        let [(id, told)] = &heard[..] else {
            panic!("{} announcements", heard.len());
        };
        assert_eq!(
            (told.chunk_order, told.progress),
            (Some(order), Some(order * 100 / 3))
        );
        let key = told
            .media_key
            .as_deref()
            .expect("a key")
            .try_into()
            .expect("32 bytes");
        let expected = Expected {
            enc_sha256: told
                .file_enc_sha256
                .as_deref()
                .and_then(|hash| hash.try_into().ok()),
            sha256: told
                .file_sha256
                .as_deref()
                .and_then(|hash| hash.try_into().ok()),
            most: 1 << 20,
        };
        let path = told.direct_path.as_deref().expect("a path");
        let file =
            read_file(&mut world, MediaKind::History, path, &key, expected).expect("a good file");
        let mut plain = Vec::new();
        flate2::read::ZlibDecoder::new(&*file)
            .read_to_end(&mut plain)
            .expect("it inflates");
        let whole = HistorySync::decode(&*plain).expect("a history");
        let messages: usize = whole
            .conversations
            .iter()
            .map(|chat| chat.messages.len())
            .sum();
        let chunk = Chunk {
            history: history.clone(),
            order,
        };
        assert_eq!(count(chunk.items())[0], messages);
        assert!(messages > 20);
        // The next one comes when this one was received.
        let receipt = Node::new("receipt")
            .attr("id", id.as_str())
            .attr("to", client.user())
            .attr("type", "hist_sync");
        client.send(&mut world, &receipt);
        client.expect_ack(&mut world, "receipt", id);
    }
    assert!(device.hear(&mut world, &mut client).is_empty());
    assert!(
        world
            .service
            .books()
            .histories()
            .iter()
            .all(|log| log.received)
    );
    // And again, when the phone is of that mood.
    assert!(world.service.repeat_history(&client.id(), world.now));
    world.pump();
    let again = device.hear(&mut world, &mut client);
    assert_eq!((again.len(), again[0].1.chunk_order), (1, Some(3)));
    assert_eq!(world.service.books().anomalies(), []);
}

#[test]
fn damaged_history_is_damaged() {
    use std::io::Read as _;
    for damage in [Damage::NotDeflate, Damage::Cut, Damage::NotHistory] {
        let mut world = world();
        let (mut client, mut device) = companion(&mut world, 1);
        let history = History {
            damage: Some(damage),
            inline: true,
            ..history(HistoryKind::Full, 1, 3_000)
        };
        world
            .service
            .phone_history(&client.id(), &history, world.now);
        world.pump();
        let told = device.hear(&mut world, &mut client).remove(0).1;
        let bytes = told.initial_hist_bootstrap_inline_payload.expect("inline");
        let mut plain = Vec::new();
        let inflated = flate2::read::ZlibDecoder::new(&*bytes).read_to_end(&mut plain);
        let decoded = baton_core::proto::history::HistorySync::decode(&*plain);
        assert!(inflated.is_err() || decoded.is_err(), "{damage:?}");
    }
}

#[test]
fn keys_can_come_late() {
    let mut world = world();
    let (mut client, mut device) = companion(&mut world, 1);
    let fault = Fault::Settings {
        device: client.id(),
        what: SettingsFault::LateKeys,
        count: 1,
    };
    world.service.fault(fault, world.now);
    world.service.rotate_key(ALICE, world.now);
    world.pump();
    let known = device.ring.len();
    device.hear(&mut world, &mut client);
    assert_eq!(device.ring.len(), known);
    world.pass(Micros::from_secs(21));
    device.hear(&mut world, &mut client);
    assert_eq!(device.ring.len(), known + 1);
}
