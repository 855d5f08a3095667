//! `baton send`: one text, under an id that is fixed before anything else happens.
//!
//! The request goes into the account's mailbox, whoever owns the account. If nobody does, this process becomes the
//! owner for the duration; if the owner dies meanwhile, it takes over. Progress is read from the store in either case,
//! and events stay for whoever tails the account.

use crate::{
    cli::Common,
    report,
    setup::{self, Failure, Running},
    store::{self, AnyStore},
};
use baton_core::{
    flow::{Content, SendRequest, SendStatus, mailbox_request, message_id, sent_status},
    jid::Jid,
    state::{AccountId, Key, MessageId, Row, Store as _, UnixMillis},
};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often to look how far the message has come.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Name of the account that sends.
    #[arg(value_name = "ACCOUNT")]
    from: String,
    /// Phone number with country code, or JID.
    to: String,
    /// What to say.
    text: String,
    /// Return when the service has it, or when a device of the recipient has it.
    #[arg(long, value_enum, default_value = "sent")]
    wait: Wait,
    /// Message id. Sending again under the same id changes nothing. A new one is made if there is none.
    #[arg(long)]
    id: Option<String>,
    /// Seconds to wait. The message stays queued after that.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Wait {
    Sent,
    Delivered,
}

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    let config = setup::config(common)?;
    let to = recipient(&flags.to)?;
    if flags.text.is_empty() {
        return Err(Failure::setup("there is nothing to say: TEXT is empty"));
    }
    let store = store::open(common, store::Create::No).await?;
    let info = setup::find_account(common, &store, &flags.from).await?;
    let own = setup::linked(&info)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let order = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let now = UnixMillis(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    let id = match &flags.id {
        Some(id) if id.is_empty() || id.len() > 255 => {
            return Err(Failure::setup("--id has 1 to 255 characters"));
        }
        Some(id) => id.into(),
        None => {
            let mut random = [0; 16];
            getrandom::fill(&mut random)
                .map_err(|error| Failure::setup(format!("no randomness: {error}")))?;
            message_id(own.user(), now.secs(), &random)
        }
    };

    // From here on the message is on its way, whatever becomes of us.
    let request = SendRequest {
        id: Some(id.clone()),
        to,
        content: Content::Text(flags.text),
    };
    store
        .enqueue(&info.id, id.clone(), mailbox_request(&request, order), now)
        .await
        .map_err(setup::store_failed)?;
    say(common, "accepted", &id, None)?;

    let mut running = Running::start(
        setup::host(store.clone(), "send")?.0,
        info.id.clone(),
        config,
    );
    let done = tokio::select! { biased;
        done = follow(common, &store, &info.id, &id, flags.wait) => done,
        end = &mut running.end => return Err(setup::ended(end)),
        () = setup::interrupted() => Err(Failure::failed(format!("interrupted; {id} stays queued"))),
        () = tokio::time::sleep(Duration::from_secs(flags.timeout)) => {
            let waited = flags.timeout;
            Err(Failure::failed(format!("not there after {waited} s; {id} stays queued for the account's next owner")))
        }
    };
    running.stop().await;
    done
}

fn recipient(to: &str) -> Result<Jid, Failure> {
    let jid = if to.contains('@') {
        to.parse().ok()
    } else {
        let digits: String = to
            .chars()
            .filter(|c| !matches!(c, ' ' | '-' | '(' | ')'))
            .collect();
        let digits = digits.trim_start_matches('+');
        let is_number =
            (5..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        if is_number {
            Jid::pn(digits).ok()
        } else {
            None
        }
    };
    jid.filter(Jid::is_user).ok_or_else(|| {
        Failure::setup(format!(
            "{to:?} is neither a phone number with country code nor a user's JID"
        ))
    })
}

/// Says how far the message has come, until it is far enough.
async fn follow(
    common: &Common,
    store: &AnyStore,
    account: &AccountId,
    id: &MessageId,
    wait: Wait,
) -> Result<(), Failure> {
    let mut reached = None;
    loop {
        let keys = vec![Key::Sent(id.clone()), Key::Outbox(id.clone())];
        let rows = match store.load(account, keys).await {
            Ok(rows) => rows,
            Err(error) if error.is_retryable() => Vec::new(),
            Err(error) => return Err(setup::store_failed(error)),
        };
        let row = rows.into_iter().find_map(|row| match row {
            Row::Present(record) => Some(record),
            Row::Absent | Row::Corrupt => None,
        });
        let now = match row.as_ref().map(sent_status) {
            Some(Ok(SendStatus::Sent)) => Some(Wait::Sent),
            Some(Ok(SendStatus::Delivered | SendStatus::Read)) => Some(Wait::Delivered),
            Some(Ok(SendStatus::Failed(code))) => {
                say(common, "failed", id, Some(code))?;
                return Err(Failure::failed(match code {
                    0 => "not sent: no device of the recipient could be reached".to_owned(),
                    code => format!("not sent: refused with code {code}"),
                }));
            }
            _ => None,
        };
        // A message can be delivered before we look for the first time; say both.
        for (step, name) in [(Wait::Sent, "sent"), (Wait::Delivered, "delivered")] {
            if reached < Some(step) && now >= Some(step) {
                say(common, name, id, None)?;
                reached = Some(step);
            }
        }
        if reached >= Some(wait) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn say(common: &Common, event: &str, id: &MessageId, code: Option<u16>) -> Result<(), Failure> {
    let said = if common.json {
        let mut object = json!({ "event": event, "id": id.as_str() });
        if let Some(code) = code {
            object["code"] = code.into();
        }
        report::line(object)
    } else {
        report::line(format_args!("{event:<10} {id}"))
    };
    said.map_err(|error| Failure::failed(format!("standard output is gone: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_numbers_or_users() {
        let read = |to: &str| recipient(to).ok().map(|jid| jid.to_string());
        assert_eq!(
            read("+1 (555) 000-0001").as_deref(),
            Some("15550000001@s.whatsapp.net")
        );
        assert_eq!(
            read("100000000000001@lid").as_deref(),
            Some("100000000000001@lid")
        );
        for bad in [
            "",
            "+",
            "12",
            "1555000000x",
            "1-2@g.us",
            "status@broadcast",
            "@s.whatsapp.net",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
