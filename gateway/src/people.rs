//! `baton contacts` and `baton chats`: whom an account knows, and what is set for its chats.
//!
//! Both are read from the store, whoever owns the account; what they show is what was durable a moment ago.

use crate::{
    cli::Common,
    report,
    setup::{self, Failure},
    store,
};
use baton_core::{
    jid::Jid,
    proto::record,
    state::{Key, Row, Scan, Store as _, Table, codec},
};
use clap::Args;
use serde_json::{Value, json};

/// Rows of one look into the store.
const PAGE: u32 = 500;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Name of the account, if it is not said by --account.
    #[arg(value_name = "ACCOUNT")]
    of: Option<String>,
}

/// Prints the account's contacts, in the order of their addresses.
pub(crate) async fn contacts(common: &Common, flags: Flags) -> Result<(), Failure> {
    list(common, flags, Table::Contact, |key, row| match key {
        Key::Contact(user) => {
            let row: record::Contact = codec::decode(row).ok()?;
            Some((contact_json(user, &row), contact_line(user, &row)))
        }
        _ => None,
    })
    .await
}

/// Prints the chats of which something is known, in the order of their addresses.
pub(crate) async fn chats(common: &Common, flags: Flags) -> Result<(), Failure> {
    list(common, flags, Table::ChatSettings, |key, row| match key {
        Key::ChatSettings(chat) => {
            let row: record::ChatSettings = codec::decode(row).ok()?;
            Some((chat_json(chat, &row), chat_line(chat, &row)))
        }
        _ => None,
    })
    .await
}

async fn list(
    common: &Common,
    flags: Flags,
    table: Table,
    show: impl Fn(&Key, &baton_core::state::Record) -> Option<(Value, String)>,
) -> Result<(), Failure> {
    let store = store::open(common, store::Create::No).await?;
    let name = flags.of.as_ref().unwrap_or(&common.account);
    let info = setup::find_account(common, &store, name).await?;
    setup::linked(&info)?;
    let mut after = None;
    loop {
        let scan = Scan {
            table,
            after: after.clone(),
            limit: PAGE,
        };
        let rows = store
            .scan(&info.id, scan)
            .await
            .map_err(setup::store_failed)?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        for (key, row) in &rows {
            let shown = match row {
                Row::Present(row) => show(key, row),
                Row::Absent | Row::Corrupt => None,
            };
            let Some((object, line)) = shown else {
                eprintln!("baton: a row that cannot be read: {key:?}");
                continue;
            };
            let said = if common.json {
                report::line(object)
            } else {
                report::line(line)
            };
            said.map_err(|error| Failure::failed(format!("standard output is gone: {error}")))?;
        }
    }
}

fn contact_json(user: &Jid, row: &record::Contact) -> Value {
    json!({
        "event": "contact",
        "user": user.to_string(),
        "saved": row.saved(),
        "full_name": row.full_name,
        "first_name": row.first_name,
        "username": row.username,
        "push_name": row.push_name,
        "lid": row.lid,
        "pn": row.pn,
        "status_muted": row.status_muted(),
    })
}

fn contact_line(user: &Jid, row: &record::Contact) -> String {
    let name = row.full_name.as_ref().or(row.first_name.as_ref());
    let name = name.or(row.username.as_ref()).cloned();
    // What people call themselves is not to be taken for what the owner calls them.
    let name = name.or(row.push_name.as_ref().map(|name| format!("~{name}")));
    let name = report::printable(&name.unwrap_or_default());
    let muted = if row.status_muted() {
        "  (status muted)"
    } else {
        ""
    };
    format!("{:<36} {name}{muted}", user.to_string())
}

fn chat_json(chat: &Jid, row: &record::ChatSettings) -> Value {
    json!({
        "event": "chat",
        "chat": chat.to_string(),
        "muted": row.muted_until() != 0,
        // Unix milliseconds; none is for ever, or not at all.
        "muted_until": Some(row.muted_until()).filter(|until| *until > 0),
        "pinned": row.pinned(),
        "archived": row.archived(),
        "marked_unread": row.marked_unread(),
        "locked": row.locked(),
        "labels": row.labels,
        "name": row.name,
        "unread": row.unread(),
        "expiration": row.expiration(),
        "last_at": row.last_at,
    })
}

fn chat_line(chat: &Jid, row: &record::ChatSettings) -> String {
    let flags = [
        (row.pinned(), "pinned"),
        (row.archived(), "archived"),
        (row.muted_until() != 0, "muted"),
        (row.marked_unread() || row.unread() > 0, "unread"),
        (row.locked(), "locked"),
        (row.expiration() > 0, "disappearing"),
    ];
    let mut words: Vec<String> = flags
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, word)| (*word).to_owned())
        .collect();
    words.extend(
        row.labels
            .iter()
            .map(|label| format!("label {}", report::printable(label))),
    );
    words.extend(
        row.name
            .as_ref()
            .map(|name| format!("\"{}\"", report::printable(name))),
    );
    format!("{:<36} {}", chat.to_string(), words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_owner_and_names_of_people_are_told_apart() {
        let user = Jid::pn("15550000001").expect("digits");
        let mut row = record::Contact {
            push_name: Some("Bob\n".into()),
            ..Default::default()
        };
        assert!(contact_line(&user, &row).contains(" ~Bob"));
        assert!(!contact_line(&user, &row).contains('\n'));
        row.full_name = Some("Robert".into());
        row.saved = Some(true);
        assert!(contact_line(&user, &row).ends_with(" Robert"));
        assert_eq!(contact_json(&user, &row)["saved"], true);
    }

    #[test]
    fn a_chat_is_muted_for_ever_for_a_while_or_not() {
        let chat = Jid::pn("15550000001").expect("digits");
        let of = |until| record::ChatSettings {
            muted_until: Some(until),
            pinned: Some(true),
            ..Default::default()
        };
        for (until, muted, told) in [
            (0, false, json!(null)),
            (-1, true, json!(null)),
            (7, true, json!(7)),
        ] {
            let object = chat_json(&chat, &of(until));
            assert_eq!(
                (&object["muted"], &object["muted_until"]),
                (&json!(muted), &told)
            );
            assert_eq!(chat_line(&chat, &of(until)).contains("muted"), muted);
        }
        assert!(chat_line(&chat, &of(0)).ends_with("pinned"));
    }
}
