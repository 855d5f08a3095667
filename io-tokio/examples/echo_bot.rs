//! Answers every text with `echo: <text>`. Kill it at any moment and start it again: no text is answered twice, none is
//! left out, because an event is shown again until it is acknowledged, and an answer has an id that follows from the
//! message it answers.
//!
//!     cargo run -p baton-tokio --example echo_bot
use baton_core::crypto::{PublicKey, sha256};
use baton_core::flow::{
    Config, Content, Endpoint, Event, Limits, Message, Notice, PreKeyPolicy, Profile, SendRequest,
    ServiceConfig, Timing,
};
use baton_store_sqlite::{Options, SqliteStore};
use baton_tokio::{Item, account_named};
use clap::Parser;
use qrcode::{QrCode, render::unicode::Dense1x2};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let store = SqliteStore::open(
        flags.store.trim_start_matches("sqlite:"),
        Options::default(),
    )?;
    let id = account_named(&store, &flags.account).await?;
    // Commands go into the first, events come out of the second, the third does the work.
    let (account, mut inbox, serve) = baton_tokio::open(store, id, flags.config());

    let (linking, json) = (account.clone(), flags.json);
    tokio::spawn(async move {
        match linking.link().await {
            Ok((jid, _)) => say(json, "linked", "jid", &jid.to_string()),
            Err(error) => eprintln!("not linked: {error}"),
        }
    });
    let ended = tokio::spawn(serve);
    while let Some(item) = inbox.next().await {
        match item {
            Item::Notice(Notice::Qr { text, .. }) => say(json, "qr", "qr", &text),
            Item::Event(seq, event) => {
                if let Event::Message(message) = event
                    && let Some(answer) = answer(*message)
                {
                    account.send(answer).await?;
                }
                // Only now: if we die before this line, the next run sees the event again.
                account.acknowledge(seq).await?;
            }
            _ => {}
        }
    }
    Err(ended.await?.into())
}

/// What to say to a message. The id follows from the message, so that saying it twice is saying it once.
fn answer(message: Message) -> Option<SendRequest> {
    let text = message
        .text
        .filter(|_| !message.from_me && message.chat.is_user())?;
    let hash = sha256(&[
        b"echo",
        message.sender.to_string().as_bytes(),
        b"/",
        message.id.as_bytes(),
    ]);
    let id = hash
        .iter()
        .take(9)
        .fold("3EB0".to_owned(), |id, byte| format!("{id}{byte:02X}"));
    Some(SendRequest {
        id: Some(id.into()),
        to: message.chat,
        content: Content::Text(format!("echo: {text}")),
    })
}

// ---- flags and output ---------------------------------------------------------------------------------------------

#[derive(Parser)]
struct Flags {
    /// Where the account lives.
    #[arg(long, default_value = "sqlite:baton.db")]
    store: String,
    /// Its name in there; made if there is none.
    #[arg(long, default_value = "echo")]
    account: String,
    /// Another service than WhatsApp, for instance `sim serve`.
    #[arg(long, default_value_t = ServiceConfig::whatsapp().endpoint.0)]
    service_url: String,
    /// Its root key, 64 hexadecimal digits.
    #[arg(long, value_parser = root_key)]
    service_root: Option<PublicKey>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Flags {
    fn config(&self) -> Config {
        let root = self.service_root.unwrap_or(ServiceConfig::whatsapp().root);
        Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: Endpoint(self.service_url.clone()),
                root,
            },
            profile: Profile::default(),
            timing: Timing::default(),
            pre_keys: PreKeyPolicy::default(),
            available: false,
        }
    }
}

fn root_key(hex: &str) -> Result<PublicKey, String> {
    let digits: Option<Vec<u8>> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
        .collect();
    let key = digits
        .filter(|_| hex.len() == 64)
        .and_then(|bytes| PublicKey::from_slice(&bytes).ok());
    key.ok_or_else(|| "64 hexadecimal digits are needed".to_owned())
}

fn say(json: bool, event: &str, name: &str, value: &str) {
    // Neither codes nor addresses contain anything that JSON would escape.
    match QrCode::new(value).ok().filter(|_| event == "qr") {
        _ if json => println!("{{\"event\":\"{event}\",\"{name}\":\"{value}\"}}"),
        Some(code) => println!(
            "{}\nScan this with the phone.",
            code.render()
                .dark_color(Dense1x2::Light)
                .light_color(Dense1x2::Dark)
                .build()
        ),
        None => println!("{event} {value}"),
    }
}
