//! One-time pre-keys at the service (fact sheet 06).
//!
//! Two numbers only go up: the next id, and the first id that the service has not confirmed. An upload offers the window
//! between them again and generates only what is missing, so a crash between upload and answer neither loses keys nor
//! binds one id to two of them. The rows are durable before the upload leaves: that is what the gate is for.

use super::{
    Context,
    account::SignedPreKey,
    query::{Answer, Query, iq},
};
use crate::{
    crypto::{KeyPair, PrivateKey},
    proto::record,
    state::{Key, codec},
    wire::node::Node,
};

/// Ids have 24 bits; 0 means "none" to other clients, and the last one is special to one of them.
pub(crate) const LAST_ID: u32 = (1 << 24) - 2;

/// The window is no longer than this: what is further back is not offered again. Keys that only retry receipts carried
/// lie in it too, and a service that never confirms would make it grow for ever.
const WINDOW: u32 = 2048;

/// A pre-key id as stanzas carry it: three bytes, big-endian.
pub(crate) const fn id_bytes(id: u32) -> [u8; 3] {
    let [_, a, b, c] = id.to_be_bytes();
    [a, b, c]
}

/// Reads such an id.
pub(crate) fn id_from(bytes: &[u8]) -> Option<u32> {
    let [a, b, c] = <[u8; 3]>::try_from(bytes).ok()?;
    Some(u32::from_be_bytes([0, a, b, c]))
}

/// The ids that the next upload would offer and that exist already: (first unconfirmed, next).
fn window(cx: &Context) -> (u32, u32) {
    let next = cx.counters.next_pre_key.unwrap_or(1).max(1);
    let first = cx.counters.first_unconfirmed_pre_key.unwrap_or(1).max(1);
    (first.min(next).max(next.saturating_sub(WINDOW)), next)
}

/// Rows that [`upload`] reads.
pub(crate) fn needs(cx: &Context) -> Vec<Key> {
    let (first, next) = window(cx);
    (first..next).map(Key::PreKey).collect()
}

/// Uploads a batch: what was generated and not confirmed, then new ones. Safe to call again before the answer.
pub(crate) fn upload(cx: &mut Context) {
    if cx.connection.is_none()
        || cx
            .queries
            .any(|query| matches!(query, Query::PreKeyUpload { .. }))
    {
        return;
    }
    let Some(signed) = cx.account.signed_pre_key().cloned() else {
        return;
    };
    let (first, next) = window(cx);
    let batch = cx.config.pre_keys.batch;
    let mut keys = Vec::new();
    for id in first..next {
        if let Some(pair) = load(cx, id, false) {
            keys.push((id, pair));
        }
    }
    let missing = batch.saturating_sub(u32::try_from(keys.len()).unwrap_or(u32::MAX));
    for _ in 0..missing {
        keys.push(generate(cx, false));
    }
    if missing > 0 {
        cx.save_counters();
    }
    let upto = cx.counters.next_pre_key.unwrap_or(1);
    let list = keys.iter().map(|(id, pair)| {
        Node::new("key")
            .child(Node::new("id").bytes(id_bytes(*id).to_vec()))
            .child(Node::new("value").bytes(pair.public.as_bytes().to_vec()))
    });
    let upload = iq("encrypt", "set")
        .child(Node::new("registration").bytes(cx.account.registration_id.to_be_bytes().to_vec()))
        .child(Node::new("type").bytes(vec![5]))
        .child(Node::new("identity").bytes(cx.account.identity.public.as_bytes().to_vec()))
        .child(Node::new("list").children(list))
        .child(signed_node(&signed));
    cx.ask(upload, Query::PreKeyUpload { upto });
}

/// `<skey>`.
pub(crate) fn signed_node(key: &SignedPreKey) -> Node {
    Node::new("skey")
        .child(Node::new("id").bytes(id_bytes(key.id).to_vec()))
        .child(Node::new("value").bytes(key.pair.public.as_bytes().to_vec()))
        .child(Node::new("signature").bytes(key.signature.as_bytes().to_vec()))
}

/// The service has answered an upload.
pub(crate) fn uploaded(cx: &mut Context, upto: u32, answer: &Answer) {
    match answer {
        Answer::Result(_) => {
            cx.counters.first_unconfirmed_pre_key = Some(upto);
            cx.counters.pre_keys_due = None;
            cx.save_counters();
        }
        Answer::Error(code) => {
            cx.protocol_error(format!("the service refused pre-keys with code {code}"))
        }
        Answer::TimedOut | Answer::Lost => {}
    }
}

/// Signed pre-keys are replaced after this many seconds: a week.
const ROTATE_SECS: i64 = 7 * 86_400;

/// Replaces the signed pre-key if it is old. The next one is durable before the service hears of it, and is offered
/// again until the service has confirmed it.
pub(crate) fn rotate(cx: &mut Context) {
    let Some(current) = cx.account.signed_pre_key() else {
        return;
    };
    if cx.account.staged.is_none() {
        if cx.unix().saturating_sub(current.made_at) < ROTATE_SECS {
            return;
        }
        stage(cx);
    }
    if let Some(staged) = &cx.account.staged {
        let request = iq("encrypt", "set").child(Node::new("rotate").child(signed_node(staged)));
        cx.ask(request, Query::Rotate);
    }
}

/// Makes the next signed pre-key and writes it; [`rotate`] offers it.
pub(crate) fn stage(cx: &mut Context) {
    let newest = cx.account.signed_pre_key().map_or(0, |key| key.id);
    let next = cx.counters.next_signed_pre_key.unwrap_or(0);
    let id = match next.max(newest.saturating_add(1)) {
        id if id > LAST_ID => 1,
        id => id,
    };
    if next != 0 {
        cx.counters.next_signed_pre_key = Some(id + 1);
        cx.save_counters();
    }
    let unix = cx.unix();
    let key = SignedPreKey::generate(id, &cx.account.identity, &mut cx.rng, unix);
    cx.account.staged = Some(key);
    cx.save_account();
}

/// The service has answered a rotation.
pub(crate) fn rotated(cx: &mut Context, answer: &Answer) {
    match answer {
        Answer::Result(_) => {
            cx.account.promote_staged();
            cx.save_account();
        }
        Answer::Error(code) => cx.protocol_error(format!(
            "the service refused a signed pre-key with code {code}"
        )),
        Answer::TimedOut | Answer::Lost => {}
    }
}

/// A new key that is not offered to the pool: it goes into a retry receipt. Its row is written.
pub(crate) fn reserve(cx: &mut Context) -> (u32, KeyPair) {
    let (id, pair) = generate(cx, true);
    // If everything before it is confirmed, so is the place it takes.
    if cx.counters.first_unconfirmed_pre_key.unwrap_or(1) == id {
        cx.counters.first_unconfirmed_pre_key = cx.counters.next_pre_key;
    }
    cx.save_counters();
    (id, pair)
}

fn generate(cx: &mut Context, reserved: bool) -> (u32, KeyPair) {
    let id = cx.counters.next_pre_key.unwrap_or(1).clamp(1, LAST_ID);
    let next = if id == LAST_ID { 1 } else { id + 1 };
    cx.counters.next_pre_key = Some(next);
    if next == 1 {
        // The window starts over with the ids; sixteen million keys ago is long enough.
        cx.counters.first_unconfirmed_pre_key = Some(1);
    }
    let pair = KeyPair::generate(&mut cx.rng);
    let row = record::PreKey {
        private: Some(pair.private.to_bytes().to_vec()),
        reserved: reserved.then_some(true),
    };
    cx.put(Key::PreKey(id), codec::encode(&row));
    (id, pair)
}

/// The private half of a pre-key, from a loaded row.
pub(crate) fn load(cx: &mut Context, id: u32, reserved_too: bool) -> Option<KeyPair> {
    let key = Key::PreKey(id);
    let row: record::PreKey = cx.read(&key)?;
    if row.reserved() && !reserved_too {
        return None;
    }
    match PrivateKey::from_slice(row.private.as_deref().unwrap_or_default()) {
        Ok(private) => Some(KeyPair::from_private(private)),
        Err(_) => {
            cx.corrupt(key);
            None
        }
    }
}
