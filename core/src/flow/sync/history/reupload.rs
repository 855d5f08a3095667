//! A file that the hosts do not have: the phone is asked to upload it again (fact sheet 07.16).

use super::notification_of;
use crate::{
    crypto::{AesGcm, hkdf_sha256},
    flow::Context,
    jid::Jid,
    proto::{e2e, record},
    state::MessageId,
    wire::node::Node,
};
use prost::Message as _;

/// What the keys of that conversation are derived for.
const RETRY_INFO: &[u8] = b"WhatsApp Media Retry Notification";

/// What the two sides of a request to upload again encrypt with.
fn retry_cipher(notification: &e2e::HistorySyncNotification) -> Option<AesGcm> {
    let key = notification.media_key.as_deref()?;
    Some(AesGcm::new(&hkdf_sha256::<32>(&[], key, RETRY_INFO)))
}

/// Asks the phone to upload a file again (fact sheet 07.16). `false` if the announcement does not say enough for that,
/// or there is no connection.
pub(super) fn ask_reupload(cx: &mut Context, id: &MessageId, job: &record::HistoryJob) -> bool {
    let cipher = notification_of(job).and_then(|notification| retry_cipher(&notification));
    let (Some(cipher), Some(own)) = (cipher, cx.account.jid.as_ref().map(Jid::bare)) else {
        return false;
    };
    if cx.connection.is_none() {
        return false;
    }
    let mut sealed = e2e::ServerErrorReceipt {
        stanza_id: Some(id.to_string()),
    }
    .encode_to_vec();
    // The key is asked for once in its life, and 96 random bits are not met again by chance.
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
    true
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
