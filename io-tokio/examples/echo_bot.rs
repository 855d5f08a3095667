//! Answers every text with `echo: <text>`. Kill it at any moment and start it again: no text is answered twice, none is
//! left out, because an event is shown again until it is acknowledged, and an answer has an id that follows from the
//! message it answers.
//!
//!     cargo run -p baton-tokio --example echo_bot
//!
//! Its test, at the foot, needs no phone and no network: `cargo test -p baton-tokio --example echo_bot`
use baton_core::crypto::{PublicKey, sha256};
use baton_core::flow::{
    Config, Content, Endpoint, Event, Limits, Message, Notice, PreKeyPolicy, Profile, SendRequest,
    ServiceConfig, Timing,
};
use baton_core::state::Store;
use baton_store_sqlite::{Options, SqliteStore};
use baton_tokio::{Item, account_named};
use clap::Parser;
use qrcode::{QrCode, render::unicode::Dense1x2};
use std::error::Error;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let flags = Flags::parse();
    let path = flags.store.trim_start_matches("sqlite:");
    let store = SqliteStore::open(path, Options::default())?;
    let (config, json) = (flags.config(), flags.json);
    run(store, &flags.account, config, move |news| say(json, &news)).await
}

/// What the person at the terminal should know.
enum News {
    Code(String),
    Linked(String),
}

/// Runs the bot for as long as its account lives.
async fn run(
    store: impl Store,
    account: &str,
    config: Config,
    show: impl Fn(News) + Clone + Send + 'static,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let id = account_named(&store, account).await?;
    // Commands go into the first, events come out of the second, the third does the work.
    let (account, mut inbox, serve) = baton_tokio::open(store, id, config);

    // Sets of one: what is in them ends with this function, whatever ends it.
    let (mut serving, mut linking) = (JoinSet::new(), JoinSet::new());
    serving.spawn(serve);
    let (linked, tell) = (account.clone(), show.clone());
    linking.spawn(async move {
        match linked.link().await {
            Ok((jid, _)) => tell(News::Linked(jid.to_string())),
            Err(error) => eprintln!("not linked: {error}"),
        }
    });
    while let Some(item) = inbox.next().await {
        match item {
            Item::Notice(Notice::Qr { text, .. }) => show(News::Code(text)),
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
    match serving.join_next().await {
        Some(end) => Err(end?.into()),
        None => Ok(()),
    }
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

fn say(json: bool, news: &News) {
    // Neither codes nor addresses contain anything that JSON would escape.
    match news {
        News::Code(code) if json => println!("{{\"event\":\"qr\",\"qr\":\"{code}\"}}"),
        News::Linked(jid) if json => println!("{{\"event\":\"linked\",\"jid\":\"{jid}\"}}"),
        News::Code(code) => match QrCode::new(code) {
            Ok(picture) => println!(
                "{}\nScan this with the phone.",
                picture
                    .render()
                    .dark_color(Dense1x2::Light)
                    .light_color(Dense1x2::Dark)
                    .build()
            ),
            Err(_) => println!("{code}"),
        },
        News::Linked(jid) => println!("linked {jid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim::kit::{Phone, SimService};
    use std::sync::Arc;

    /// The bot, on a file, linked to `owner` when it shows a code.
    fn start(sim: &SimService, owner: &Arc<Phone>, file: &std::path::Path) -> JoinSet<()> {
        let store = SqliteStore::open(file, Options::default()).unwrap();
        let (config, owner) = (sim.config(), Arc::clone(owner));
        let show = move |news| {
            if let News::Code(code) = news {
                owner.scan(&code).unwrap();
            }
        };
        let mut bot = JoinSet::new();
        bot.spawn(async move {
            let end = run(store, "echo", config, show).await;
            panic!("the bot has ended: {end:?}");
        });
        bot
    }

    #[tokio::test]
    async fn it_answers_every_text_once_and_goes_on_after_a_crash() {
        let sim = SimService::start().await.unwrap();
        let (owner, customer) = (sim.phone("15550000001"), sim.phone("15550000002"));
        let (owner, directory) = (Arc::new(owner), tempfile::tempdir().unwrap());
        let file = directory.path().join("bot.db");

        let bot = start(&sim, &owner, &file);
        while sim.books(|books| books.device(&owner.companion(1)).is_none()) {
            tokio::task::yield_now().await;
        }
        customer.write(&owner, "one").unwrap();
        assert_eq!(customer.reads().await.text.unwrap(), "echo: one");

        // As `kill -9` would, perhaps before it has acknowledged that.
        drop(bot);
        customer.write(&owner, "two").unwrap();
        let _bot = start(&sim, &owner, &file);
        assert_eq!(customer.reads().await.text.unwrap(), "echo: two");

        customer.write(&owner, "three").unwrap();
        assert_eq!(customer.reads().await.text.unwrap(), "echo: three");
        sim.is_satisfied();
    }
}
