//! A file that the hosts do not have: the phone is asked to upload it again (fact sheet 07.16).

use super::notification_of;
use crate::{
    crypto::{AesGcm, hkdf_sha256},
    flow::Context,
    jid::Jid,
    proto::{e2e, record},
    state::{MessageId, Micros},
    wire::node::Node,
};
use prost::Message as _;

/// What the keys of that conversation are derived for.
const RETRY_INFO: &[u8] = b"WhatsApp Media Retry Notification";

/// How long the phone has to upload a file again, from when it was asked last.
const REUPLOAD: Micros = Micros::from_secs(600);

/// Connections on which it is asked: each may have taken the question, or the answer, with it.
const ASKED: u32 = 8;

/// A file that the phone has to upload again.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Place in the queue.
    order: u64,
    asked: u32,
    /// How long the phone has. Unless it was asked, it has all the time there is.
    until: Option<Micros>,
}

impl Waiting {
    pub(super) const fn new(order: u64) -> Self {
        Self {
            order,
            asked: 0,
            until: None,
        }
    }

    pub(super) const fn order(&self) -> u64 {
        self.order
    }

    /// Whether it is asked once more, on another connection. Then its time begins anew, when it is.
    pub(super) fn ask_again(&mut self) -> bool {
        let again = self.asked < ASKED;
        if again {
            self.until = None;
        }
        again
    }

    pub(super) fn asked(&mut self, now: Micros) {
        self.asked = self.asked.saturating_add(1);
        self.until = Some(now.plus(REUPLOAD));
    }

    pub(super) fn is_late(&self, now: Micros) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Nothing is waited for any more.
    pub(super) const fn give_up(&mut self) {
        self.until = None;
        self.asked = ASKED;
    }

    pub(super) const fn deadline(&self) -> Option<Micros> {
        self.until
    }
}

/// What the two sides of a request to upload again encrypt with.
fn retry_cipher(notification: &e2e::HistorySyncNotification) -> Option<AesGcm> {
    let key = notification.media_key.as_deref()?;
    Some(AesGcm::new(&hkdf_sha256::<32>(&[], key, RETRY_INFO)))
}

/// Whether the announcement says enough for the phone to be asked.
pub(super) fn can_ask(cx: &Context, job: &record::HistoryJob) -> bool {
    let notification = notification_of(job);
    cx.account.jid.is_some() && notification.is_some_and(|told| told.media_key.is_some())
}

/// Asks the phone to upload a file again (fact sheet 07.16).
pub(super) fn ask_reupload(cx: &mut Context, id: &MessageId, job: &record::HistoryJob) {
    let cipher = notification_of(job).and_then(|notification| retry_cipher(&notification));
    let (Some(cipher), Some(own)) = (cipher, cx.account.jid.as_ref().map(Jid::bare)) else {
        return;
    };
    let mut sealed = e2e::ServerErrorReceipt {
        stanza_id: Some(id.to_string()),
    }
    .encode_to_vec();
    // The key is asked for a few times in its life, and 96 random bits are not met again by chance.
    let nonce: [u8; 12] = cx.rng.bytes();
    cipher.seal(&nonce, id.as_bytes(), &mut sealed);
    let encrypt = Node::new("encrypt")
        .child(Node::new("enc_p").bytes(sealed))
        .child(Node::new("enc_iv").bytes(nonce.to_vec()));
    let subject = Node::new("rmr")
        .attr("jid", own.clone())
        .attr("from_me", "true");
    let receipt = Node::new("receipt")
        .attr("id", id.clone())
        .attr("to", own)
        .attr("type", "server-error")
        .attr("category", "peer")
        .child(encrypt)
        .child(subject);
    cx.send(&receipt);
    cx.stats.sync.reupload_requests += 1;
}

/// Where the phone has put the file, if it has.
pub(super) fn read_reupload(
    id: &MessageId,
    notification: &e2e::HistorySyncNotification,
    answer: &Node,
) -> Option<String> {
    /// What a result is called that is none of the errors.
    const SUCCESS: i32 = 1;
    let mut bytes = answer.path(&["encrypt", "enc_p"])?.data()?.to_vec();
    let nonce = answer
        .path(&["encrypt", "enc_iv"])?
        .data()?
        .try_into()
        .ok()?;
    let cipher = retry_cipher(notification)?;
    cipher
        .open_in_place(nonce, id.as_bytes(), &mut bytes)
        .ok()?;
    let said = e2e::MediaRetryNotification::decode(bytes.as_slice()).ok()?;
    said.direct_path.filter(|_| said.result == Some(SUCCESS))
}
