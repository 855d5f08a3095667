use super::*;
use crate::appstate::{KeyId, KeyRing, State, SyncKey, build_patch, verify_patch};
use crate::crypto::Rng;
use serde_json::Value;

fn jid(text: &str) -> Jid {
    text.parse().unwrap()
}

fn samples() -> Vec<Action> {
    let chat = jid("15550000001@s.whatsapp.net");
    let group = jid("123456-789@g.us");
    let lid = jid("100000000000001@lid");
    let message = MessageRef {
        chat: group.clone(),
        id: "3EB0\"quoted".into(),
        from_me: false,
        participant: Some(lid.clone()),
    };
    let own = MessageRef {
        chat: chat.clone(),
        id: "3EB1".into(),
        from_me: true,
        participant: None,
    };
    let range = MessageRange {
        last: 1_700_000_000,
        last_system: Some(1_600_000_000),
        messages: vec![(message.clone(), 5), (own.clone(), 6)],
    };
    let card = ContactCard {
        full_name: Some("Zoë Ångström".into()),
        first_name: Some("Zoë".into()),
        username: Some("zoe".into()),
        lid: Some(lid.clone()),
        pn: Some(chat.clone()),
        on_phone: true,
    };
    let names = ContactCard {
        full_name: Some("Zoë".into()),
        ..Default::default()
    };
    let label = Label {
        name: "VIP".into(),
        color: 3,
        predefined: Some(1),
        order: Some(7),
    };
    vec![
        Action::Contact {
            user: chat.clone(),
            card: Some(card),
        },
        Action::Contact {
            user: lid.clone(),
            card: None,
        },
        Action::LidContact {
            user: lid.clone(),
            card: Some(names),
        },
        Action::LidContact {
            user: lid.clone(),
            card: None,
        },
        Action::Mute {
            chat: chat.clone(),
            until: Some(MuteEnd::Never),
        },
        Action::Mute {
            chat: group.clone(),
            until: Some(MuteEnd::At(1_800_000_000_000)),
        },
        Action::Mute {
            chat: lid.clone(),
            until: None,
        },
        Action::Pin {
            chat: chat.clone(),
            pinned: true,
        },
        Action::Archive {
            chat: chat.clone(),
            archived: true,
            range: Some(range.clone()),
        },
        Action::MarkRead {
            chat: chat.clone(),
            read: false,
            range: None,
        },
        Action::Lock {
            chat: chat.clone(),
            locked: true,
        },
        Action::Star {
            message: message.clone(),
            starred: true,
        },
        Action::Star {
            message: own.clone(),
            starred: false,
        },
        Action::DeleteForMe {
            message: own,
            media: true,
            at: 9,
        },
        Action::ClearChat {
            chat: group.clone(),
            starred: true,
            media: false,
            range: Some(range.clone()),
        },
        Action::DeleteChat {
            chat: group,
            media: true,
            range: Some(range),
        },
        Action::PushName("Zoë".into()),
        Action::Locale("de_DE".into()),
        Action::UnarchiveChats(true),
        Action::NoLinkPreviews(true),
        Action::Label {
            id: "4".into(),
            label: Some(label),
        },
        Action::Label {
            id: "5".into(),
            label: None,
        },
        Action::LabelChat {
            label: "4".into(),
            chat: chat.clone(),
            labeled: true,
        },
        Action::LabelMessage {
            label: "4".into(),
            chat: chat.clone(),
            id: "3EB0".into(),
            labeled: true,
        },
        Action::StatusMute {
            user: chat.clone(),
            muted: true,
        },
        Action::PnForLid {
            lid: lid.clone(),
            pn: Some(chat),
        },
        Action::PnForLid { lid, pn: None },
        Action::NctSalt(Some(Bytes::from_static(&[7; 32]))),
        Action::NctSalt(None),
    ]
}

/// Through a patch and back: what was meant is what arrives.
#[test]
fn every_action_survives_a_patch() {
    let mut rng = Rng::from_seed([9; 32]);
    let key = SyncKey::expand(KeyId::new(vec![0, 0, 0, 0, 0, 1]).unwrap(), &[5; 32]);
    for action in samples() {
        let (collection, change) = action.change(1_700_000_000_000).unwrap();
        assert_eq!(action.collection(), Some(collection));
        // What is removed has to be there.
        let there = |_: &[u8; 32]| Some([1; 32]);
        let built = build_patch(
            collection,
            &State::default(),
            &key,
            &[change],
            there,
            &mut rng,
        )
        .unwrap();
        let mut patch = built.patch;
        patch.version = Some(sync::SyncdVersion { version: Some(1) });
        let ring: KeyRing = [SyncKey::expand(key.id().clone(), &[5; 32])]
            .into_iter()
            .collect();
        let mutations = patch.mutations.clone();
        let applied = verify_patch(
            collection,
            &State::default(),
            &patch,
            &mutations,
            &ring,
            there,
        )
        .unwrap();
        assert_eq!(Action::of(&applied.mutations[0]), action, "{action:?}");
        assert!(!format!("{action:?}").contains("555"));
    }
}

/// Words, collections and versions are those of the official client's own table.
#[test]
fn facts_are_those_of_the_table() {
    let table: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/appstate-actions.json")).unwrap();
    let rows = table["actions"].as_array().unwrap();
    for action in samples() {
        let (kind, collection, version) = action.facts().unwrap();
        if kind == "label_message" {
            // Not in the table, which is newer than the action; other clients write it.
            continue;
        }
        let row = rows
            .iter()
            .find(|row| row["name"] == kind)
            .unwrap_or_else(|| panic!("{kind}"));
        assert_eq!(row["collection"], collection.as_str(), "{kind}");
        assert_eq!(row["action_version"], version, "{kind}");
        let (_, change) = action.change(0).unwrap();
        let parts = parse_index(&change.index).unwrap();
        assert_eq!(
            parts.len(),
            row["index"].as_array().unwrap().len(),
            "{kind}"
        );
        // Exactly the field of the table beside the timestamp.
        let mut fields = Vec::new();
        let mut bytes = change.value.encode_to_vec();
        while !bytes.is_empty() {
            let mut buf = bytes.as_slice();
            let (number, wire) = prost::encoding::decode_key(&mut buf).unwrap();
            prost::encoding::skip_field(wire, number, &mut buf, Default::default()).unwrap();
            fields.push(u64::from(number));
            bytes = buf.to_vec();
        }
        assert_eq!(
            fields,
            [1, row["value_field_number"].as_u64().unwrap()],
            "{kind}"
        );
    }
}

#[test]
fn what_is_not_understood_is_kept() {
    let mutation = |index: &[u8], value: SyncActionValue, operation| Mutation {
        operation,
        index_mac: [0; 32],
        value_mac: [0; 32],
        index: Bytes::copy_from_slice(index),
        data: SyncActionData {
            index: Some(index.to_vec()),
            value: Some(value),
            ..Default::default()
        }
        .encode_to_vec()
        .into(),
    };
    let empty = SyncActionValue::default;
    let muted = || SyncActionValue {
        mute_action: Some(MuteAction {
            muted: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    for (index, value) in [
        (&br#"["nux","x"]"#[..], empty()),
        (br#"["mute"]"#, muted()),
        (br#"["mute","no address at all"]"#, muted()),
        // The word and the value do not fit together.
        (br#"["mute","1@s.whatsapp.net"]"#, empty()),
        (br#"["pin_v1","1@s.whatsapp.net"]"#, muted()),
        (br#"{"mute":1}"#, muted()),
        (br#"["star","1@s.whatsapp.net","","1","0"]"#, empty()),
    ] {
        let given = mutation(index, value, Operation::Set);
        let Action::Unknown {
            index: kept,
            data,
            removed,
        } = Action::of(&given)
        else {
            panic!("{:?} was understood", std::str::from_utf8(index));
        };
        assert_eq!((kept, data, removed), (given.index, given.data, false));
        assert!(
            Action::Unknown {
                index: Bytes::new(),
                data: Bytes::new(),
                removed
            }
            .change(0)
            .is_none()
        );
    }
    // Without end, in the ways that clients say it.
    for end in [None, Some(0), Some(-1)] {
        let mut value = muted();
        value.mute_action.as_mut().unwrap().mute_end_timestamp = end;
        let action = Action::of(&mutation(
            br#"["mute","1@s.whatsapp.net"]"#,
            value,
            Operation::Set,
        ));
        assert!(matches!(
            action,
            Action::Mute {
                until: Some(MuteEnd::Never),
                ..
            }
        ));
    }
}
