//! Addresses as text, and the names of rows that are made of them.
//!
//! Checked: an address that is read prints as text that reads back as the same address; names of rows survive both of
//! their forms; bytes that are read as a name write the same bytes.

use baton_core::{
    jid::{Jid, Server, participant_hash},
    state::{Key, columns},
};

/// See the module.
pub fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(jid) = text.parse::<Jid>() {
        let printed = jid.to_string();
        assert_eq!(printed.parse(), Ok(jid.clone()), "{printed}");
        assert!(jid.user().len() <= 255);
        assert_eq!(jid.bare().device(), 0);
        assert!(jid.same_user(&jid.bare()));
        assert!(!(jid.is_pn() && jid.is_lid()));
        if let Some(phone) = jid.phone() {
            assert!(jid.server() == Server::User && !phone.is_empty());
        }
        let lid = Jid::lid("1").expect("a digit");
        let hash = participant_hash([&jid, &lid]);
        assert_eq!(hash, participant_hash([&lid, &jid, &lid]));
        assert!(hash.len() == 10 && hash.starts_with("2:"));
        for key in [
            Key::Session(jid.clone()),
            Key::Contact(jid.bare()),
            Key::SenderKey {
                group: jid.bare(),
                sender: jid.clone(),
            },
        ] {
            name(&key);
        }
    }
    for server in [Server::User, Server::Interop, Server::Group] {
        if let Ok(jid) = Jid::new(&text, server) {
            let jid = jid.with_device(data.len() as u16).with_integrator(7);
            assert_eq!(jid.to_string().parse(), Ok(jid));
        }
    }
    if let Ok(key) = Key::from_bytes(data) {
        assert_eq!(key.to_bytes(), data);
        name(&key);
    }
    if let Some(key) = columns::decode(data) {
        name(&key);
    }
}

fn name(key: &Key) {
    assert_eq!(Key::from_bytes(&key.to_bytes()).as_ref(), Ok(key));
    if let Some(back) = columns::decode(&columns::encode(key)) {
        assert_eq!(&back, key);
    }
}

/// Addresses of every kind, and names of rows.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "15551234567@s.whatsapp.net",
        "15551234567:13@s.whatsapp.net",
        "100000000000001:2@lid",
        "x.y.0:3@hosted",
        "123-456@g.us",
        "status@broadcast",
        "7-8:9@interop",
        "-8@interop",
        "9:300@msgr",
        "s.whatsapp.net",
        "@lid",
        "0@c.us",
        "1@newsletter",
        "7@bot",
        "a@call",
        "1:2@hosted.lid",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    for text in &texts[..4] {
        let jid: Jid = text.parse().expect("an address");
        let key = Key::SenderKey {
            group: jid.bare(),
            sender: jid,
        };
        seeds.push(key.to_bytes());
        seeds.push(columns::encode(&key));
    }
    seeds
}
