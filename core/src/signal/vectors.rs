//! The scripts of two parties from chapter 05's vectors, step by step and byte for byte.

use super::cipher::{decrypt_pre_key_with, decrypt_with};
use super::ratchet::KeySource;
use super::x3dh::initiate_with;
use super::*;
use crate::crypto::testing::{array, bytes, hex, key_pair};
use crate::crypto::{KeyPair, PublicKey, Signature};
use serde_json::Value;
use std::collections::BTreeMap;

const WITH_ONE_TIME: &str = include_str!("../../tests/vectors/signal-session-with-otk.json");
const NO_ONE_TIME: &str = include_str!("../../tests/vectors/signal-session-no-otk.json");
const GLARE: &str = include_str!("../../tests/vectors/signal-glare.json");
const WHATSMEOW: &str = include_str!("../../tests/vectors/session-records-whatsmeow.json");

#[test]
fn with_one_time_key() {
    one_sided(WITH_ONE_TIME, &BTreeMap::new());
}

#[test]
fn without_one_time_key() {
    one_sided(NO_ONE_TIME, &BTreeMap::new());
}

#[test]
fn glare() {
    simultaneous(&BTreeMap::new());
}

/// whatsmeow's library counts an unused chain as -1 and says so in its messages. The same scripts, with its
/// ciphertexts in place of ours.
#[test]
fn whatsmeows_previous_counter_is_accepted() {
    let file: Value = serde_json::from_str(WHATSMEOW).unwrap();
    let differing = |script: &str| -> BTreeMap<String, Vec<u8>> {
        let all = file["sessions"][script]["differing_ciphertexts"]
            .as_array()
            .unwrap();
        assert!(!all.is_empty());
        all.iter()
            .map(|one| {
                (
                    one["id"].as_str().unwrap().to_owned(),
                    bytes(&one["ciphertext"]),
                )
            })
            .collect()
    };
    one_sided(WITH_ONE_TIME, &differing("signal-session-with-otk.json"));
    one_sided(NO_ONE_TIME, &differing("signal-session-no-otk.json"));
    simultaneous(&differing("signal-glare.json"));
}

fn one_sided(file: &str, replaced: &BTreeMap<String, Vec<u8>>) {
    let file: Value = serde_json::from_str(file).unwrap();
    let mut script = Script::new(&file, replaced);
    let alice = &file["alice"];
    script.initiate(
        "alice",
        "bob",
        &alice["base_key"],
        &alice["first_ratchet_key"],
    );
    script.same_record("alice", &file["alice_record_after_bundle"]);
    let mut first_decrypt = true;
    for step in file["steps"].as_array().unwrap() {
        script.step(step);
        if first_decrypt && step["op"] == "decrypt" {
            script.same_record("bob", &file["bob_record_after_first_decrypt"]);
            first_decrypt = false;
        }
    }
    script.same_record("alice", &file["alice_record_final"]);
    script.same_record("bob", &file["bob_record_final"]);
}

fn simultaneous(replaced: &BTreeMap<String, Vec<u8>>) {
    let file: Value = serde_json::from_str(GLARE).unwrap();
    let mut script = Script::new(&file, replaced);
    script.initiate(
        "alice",
        "bob",
        &file["alice_base_key"],
        &file["alice_first_ratchet_key"],
    );
    script.initiate(
        "bob",
        "alice",
        &file["bob_base_key"],
        &file["bob_first_ratchet_key"],
    );
    for step in file["steps"].as_array().unwrap() {
        script.step(step);
        let record = &script.party(step["by"].as_str().unwrap()).record;
        if let Some(archived) = step["archived_states_after"].as_u64() {
            assert_eq!(record.archived() as u64, archived);
            assert_eq!(
                record.base_key().unwrap().serialize(),
                array(&step["current_base_key_after"])
            );
        }
    }
}

/// Hands out the pairs a step dictates; a step without one must not ask.
struct Dictated(Vec<KeyPair>);

impl KeySource for Dictated {
    fn next_pair(&mut self) -> KeyPair {
        assert!(
            !self.0.is_empty(),
            "a ratchet step where the script has none"
        );
        self.0.remove(0)
    }
}

struct Party {
    identity: KeyPair,
    registration_id: u32,
    signed_pre_key: Option<(u32, KeyPair, Signature)>,
    one_time: Option<(u32, KeyPair)>,
    record: SessionRecord,
}

struct Script {
    parties: BTreeMap<&'static str, Party>,
    /// By id of the step: what was encrypted, and the plaintext.
    sent: BTreeMap<String, (Ciphertext, Vec<u8>)>,
    replaced: BTreeMap<String, Vec<u8>>,
}

impl Script {
    fn new(file: &Value, replaced: &BTreeMap<String, Vec<u8>>) -> Self {
        let party = |name: &'static str| {
            let party = &file[name];
            let id = |value: &Value| value["id"].as_u64().map(|id| id as u32);
            let (signed, one_time) = (&party["signed_prekey"], &party["one_time_prekey"]);
            let signature = |value: &Value| Signature::from_bytes(array(&value["signature"]));
            let party = Party {
                identity: key_pair(&party["identity"]),
                registration_id: party["registration_id"].as_u64().unwrap() as u32,
                signed_pre_key: id(signed)
                    .map(|id| (id, key_pair(&signed["key"]), signature(signed))),
                one_time: id(one_time).map(|id| (id, key_pair(&one_time["key"]))),
                record: SessionRecord::new(),
            };
            (name, party)
        };
        Self {
            parties: [party("alice"), party("bob")].into(),
            sent: BTreeMap::new(),
            replaced: replaced.clone(),
        }
    }

    fn party(&mut self, name: &str) -> &mut Party {
        self.parties.get_mut(name).unwrap()
    }

    fn initiate(&mut self, from: &str, to: &str, base: &Value, ratchet: &Value) {
        let to = self.party(to);
        let (id, key, signature) = to.signed_pre_key.clone().unwrap();
        let bundle = Bundle {
            registration_id: to.registration_id,
            identity: to.identity.public,
            signed_pre_key_id: id,
            signed_pre_key: key.public,
            signature,
            pre_key: to.one_time.as_ref().map(|(id, key)| (*id, key.public)),
        };
        let from = self.party(from);
        let local = LocalIdentity {
            key_pair: &from.identity,
            registration_id: from.registration_id,
        };
        let mut keys = Dictated(vec![key_pair(base), key_pair(ratchet)]);
        initiate_with(&mut from.record, &local, &bundle, &mut keys).unwrap();
    }

    fn step(&mut self, step: &Value) {
        let id = step["id"].as_str().unwrap();
        match step["op"].as_str().unwrap() {
            "encrypt" => self.encrypt(id, step),
            "decrypt" => self.decrypt(id, step),
            other => panic!("unknown step {other}"),
        }
        // Nothing may depend on the record staying in memory.
        let party = self.party(step["by"].as_str().unwrap());
        let encoded = party.record.encode();
        party.record = SessionRecord::decode(&encoded).unwrap();
        assert_eq!(party.record.encode(), encoded);
    }

    fn encrypt(&mut self, id: &str, step: &Value) {
        let plaintext = bytes(&step["plaintext"]);
        let party = self.party(step["by"].as_str().unwrap());
        let local = LocalIdentity {
            key_pair: &party.identity,
            registration_id: party.registration_id,
        };
        let mut sent = encrypt(&mut party.record, &local, &plaintext).unwrap();
        assert_eq!(sent.bytes, bytes(&step["ciphertext"]), "{id}");
        assert_eq!(sent.kind, kind(&step["type"]), "{id}");
        if let Some(replaced) = self.replaced.get(id) {
            sent.bytes.clone_from(replaced);
        }
        self.sent.insert(id.to_owned(), (sent, plaintext));
    }

    fn decrypt(&mut self, id: &str, step: &Value) {
        let (sent, plaintext) = match step.get("ciphertext") {
            Some(given) => (
                Ciphertext {
                    kind: kind(&step["type"]),
                    bytes: bytes(given),
                },
                Vec::new(),
            ),
            None => self.sent[id].clone(),
        };
        let mut keys = Dictated(
            step.get("new_ratchet_key")
                .map(key_pair)
                .into_iter()
                .collect(),
        );
        let party = self.party(step["by"].as_str().unwrap());
        let before = party.record.encode();
        let result = party.decrypt(&sent, &mut keys);
        assert!(
            keys.0.is_empty(),
            "{id}: no ratchet step where the script has one"
        );
        match step["result"].as_str().unwrap() {
            "ok" => assert_eq!(result.unwrap(), plaintext, "{id}"),
            "error" => {
                let expected = match step["error"].as_str().unwrap() {
                    "duplicate" => DecryptError::Duplicate,
                    _ => DecryptError::BadMac,
                };
                assert_eq!(result, Err(expected), "{id}");
                assert_eq!(party.record.encode(), before, "{id}");
            }
            other => panic!("unknown result {other}"),
        }
    }

    /// The record is the one in the vector; to the byte, unless there are skipped keys, of which the vector has both
    /// the seed (in a field of its own invention) and the expansion.
    fn same_record(&mut self, name: &str, expected: &Value) {
        let (record, theirs) = (&self.party(name).record, bytes(expected));
        let ours = record.encode();
        assert_eq!(
            hex_of(&ours),
            hex_of(&SessionRecord::decode(&theirs).unwrap().encode())
        );
        let mut chains = record.current.iter().flat_map(|state| &state.receivers);
        if chains.all(|chain| chain.skipped.is_empty()) {
            assert_eq!(hex_of(&ours), hex_of(&theirs));
        }
    }
}

impl Party {
    fn decrypt(&mut self, sent: &Ciphertext, keys: &mut Dictated) -> Result<Vec<u8>, DecryptError> {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: self.registration_id,
        };
        if sent.kind == CiphertextKind::Message {
            return decrypt_with(&mut self.record, &local, &sent.bytes, Limits::PEER, keys);
        }
        let message = PreKeyMessage::parse(&sent.bytes).unwrap();
        let signed = self
            .signed_pre_key
            .as_ref()
            .filter(|(id, ..)| *id == message.signed_pre_key_id);
        let one_time = self
            .one_time
            .as_ref()
            .filter(|(id, _)| Some(*id) == message.pre_key_id);
        let plaintext = decrypt_pre_key_with(
            &mut self.record,
            &local,
            &message,
            signed.map(|(_, key, _)| key),
            one_time.map(|(_, key)| key),
            Limits::PEER,
            keys,
        )?;
        // Used up: what comes later on this session must do without.
        self.one_time
            .take_if(|(id, _)| Some(*id) == message.pre_key_id);
        Ok(plaintext)
    }
}

fn kind(value: &Value) -> CiphertextKind {
    match value.as_str().unwrap() {
        "msg" => CiphertextKind::Message,
        "pkmsg" => CiphertextKind::PreKey,
        other => panic!("unknown type {other}"),
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn final_record() -> Vec<u8> {
    let file: Value = serde_json::from_str(WITH_ONE_TIME).unwrap();
    bytes(&file["alice_record_final"])
}

#[test]
fn foreign_records_load_with_their_oddities() {
    // previousCounter = -1, as one library stores it.
    let file: Value = serde_json::from_str(WITH_ONE_TIME).unwrap();
    let text = file["alice_record_after_bundle"].as_str().unwrap();
    let (start, end) = text.split_at(text.find("2800326b").unwrap());
    let odd = [start, "28ffffffff0f", end.strip_prefix("2800").unwrap()].concat();
    // Five bytes more in the state, whose length stands in the second and third byte: fa02 becomes fe02.
    let odd = odd.replacen("0afa02", "0afe02", 1);
    let record = SessionRecord::decode(&hex(&odd)).unwrap();
    assert_eq!(hex_of(&record.encode()), text);

    // No sending chain: can be read with, not written with.
    let sender_at = text.find("326b").unwrap();
    let unsent = [&text[..sender_at], "3200", &text[sender_at + 218..]]
        .concat()
        .replacen("0afa02", "0a8f02", 1);
    let record = SessionRecord::decode(&hex(&unsent)).unwrap();
    assert!(!record.is_usable() && record.base_key().is_some());

    // A skipped key of which only the expansion was stored stays one.
    let text = file["bob_record_after_first_decrypt"].as_str().unwrap();
    let seed_at = text.find("a206201772f7f6").unwrap();
    let unseeded = [&text[..seed_at], &text[seed_at + 70..]].concat();
    // 35 bytes less in the key, the chain and the state around it.
    let shorter = unseeded
        .replacen("0acd03", "0aaa03", 1)
        .replacen("3ac801", "3aa501", 1)
        .replacen("227b", "2258", 1);
    let record = SessionRecord::decode(&hex(&shorter)).unwrap();
    assert_eq!(hex_of(&record.encode()), shorter);
    let skipped = &record.current.as_ref().unwrap().receivers[0].skipped[0];
    let expected = &file["alice_message_keys_index0"];
    assert_eq!(
        skipped.message_keys().cipher,
        array(&expected["cipher_key"])
    );
}

/// One implementation writes how far it may have sent after the record was stored; continuing below reuses keys.
#[test]
fn a_lease_of_counters_is_honoured() {
    let with_lease = |lease: &[u8]| {
        let mut bytes = final_record();
        bytes.extend_from_slice(&[0xa0, 0x06]);
        bytes.extend_from_slice(lease);
        SessionRecord::decode(&bytes)
    };
    let index = |record: &SessionRecord| {
        record
            .current
            .as_ref()
            .unwrap()
            .sender
            .as_ref()
            .unwrap()
            .chain
            .index
    };
    let plain = SessionRecord::decode(&final_record()).unwrap();
    assert_eq!(index(&plain), 1);
    let leased = with_lease(&[65]).unwrap();
    assert_eq!(index(&leased), 65);
    let expected = plain
        .current
        .as_ref()
        .unwrap()
        .sender
        .as_ref()
        .unwrap()
        .chain
        .skip_to(65)
        .unwrap();
    assert_eq!(
        leased.current.unwrap().sender.unwrap().chain.key.as_bytes(),
        expected.key.as_bytes()
    );
    assert_eq!(index(&with_lease(&[0]).unwrap()), 1);
    assert_eq!(
        with_lease(&[0xff, 0xff, 0xff, 0xff, 0x0f]).unwrap_err(),
        RecordError::Lease(u32::MAX)
    );
}

#[test]
fn records_say_what_they_hold() {
    let record = SessionRecord::decode(&final_record()).unwrap();
    let file: Value = serde_json::from_str(WITH_ONE_TIME).unwrap();
    let public = |value: &Value| PublicKey::from_bytes(array(&value["public"]));
    assert!(record.is_usable());
    assert_eq!(
        record.remote_identity(),
        Some(public(&file["bob"]["identity"]))
    );
    assert_eq!(record.remote_registration_id(), Some(2222));
    assert_eq!(record.base_key(), Some(public(&file["alice"]["base_key"])));
    assert!(knows_base_key(&record, &public(&file["alice"]["base_key"])));

    let empty = SessionRecord::decode(&[]).unwrap();
    assert!(!empty.is_usable() && empty.encode().is_empty());
    // An empty current session is how some write "none".
    assert!(!SessionRecord::decode(&[0x0a, 0x00]).unwrap().is_usable());
    let mut other_version = final_record();
    assert_eq!(other_version[3..5], [0x08, 0x03]);
    other_version[4] = 4;
    assert_eq!(
        SessionRecord::decode(&other_version).unwrap_err(),
        RecordError::Version(4)
    );
}
