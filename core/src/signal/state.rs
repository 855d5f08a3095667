//! One session: a root key, a chain to send on, up to five to receive on. A record holds several of these.

use super::ratchet::{ChainKey, MessageKeys, Secret};
use crate::crypto::{KeyPair, PublicKey};

/// Receiving chains kept per session, newest last. Each ratchet turn of the peer adds one, so a message may be
/// overtaken by four turns and still decrypt.
const MAX_RECEIVER_CHAINS: usize = crate::limits::RECEIVER_CHAINS;
/// Keys of messages not yet arrived, kept per receiving chain. The oldest go first.
pub(super) const MAX_SKIPPED_KEYS: usize = crate::limits::SKIPPED_KEYS;

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) local_identity: PublicKey,
    pub(super) remote_identity: PublicKey,
    pub(super) local_registration_id: u32,
    pub(super) remote_registration_id: u32,
    /// The initiator's base key: the name of the session on both sides. Missing in very old foreign records.
    pub(super) base_key: Option<PublicKey>,
    pub(super) root: Secret,
    /// Missing only in foreign records; such a state can serve messages of known chains, nothing else.
    pub(super) sender: Option<SenderChain>,
    pub(super) previous_counter: u32,
    /// Oldest first.
    pub(super) receivers: Vec<ReceiverChain>,
    /// There until the peer's first answer; says what goes into the `pkmsg` around our messages.
    pub(super) pending: Option<PendingPreKey>,
}

#[derive(Clone, Debug)]
pub(super) struct SenderChain {
    pub(super) ratchet: KeyPair,
    pub(super) chain: ChainKey,
    /// The account's burn that this chain was made under or last brought up to.
    pub(super) burn: u32,
}

#[derive(Clone, Debug)]
pub(super) struct ReceiverChain {
    pub(super) ratchet: PublicKey,
    /// Missing when a foreign implementation closed the chain; it can only serve stored keys then.
    pub(super) chain: Option<ChainKey>,
    /// By ascending index.
    pub(super) skipped: Vec<Skipped>,
}

#[derive(Clone, Debug)]
pub(super) struct PendingPreKey {
    pub(super) pre_key_id: Option<u32>,
    pub(super) signed_pre_key_id: u32,
    pub(super) base_key: PublicKey,
}

/// The key of a message that has been overtaken. Boxed, so that moving it in its list leaves no copy behind.
#[derive(Clone, Debug)]
pub(super) struct Skipped {
    pub(super) index: u32,
    pub(super) keys: SkippedKeys,
}

#[derive(Clone, Debug)]
pub(super) enum SkippedKeys {
    /// What we keep: the expansion is done when the message comes, which most never do.
    Seed(Box<Secret>),
    /// What older implementations kept, and therefore what records may hold.
    Expanded(Box<MessageKeys>),
}

impl Skipped {
    pub(super) fn new(index: u32, seed: Secret) -> Self {
        Self {
            index,
            keys: SkippedKeys::Seed(Box::new(seed)),
        }
    }

    pub(super) fn message_keys(&self) -> MessageKeys {
        match &self.keys {
            SkippedKeys::Seed(seed) => MessageKeys::derive(seed),
            SkippedKeys::Expanded(keys) => (**keys).clone(),
        }
    }
}

impl State {
    pub(super) fn knows_ratchet(&self, ratchet: &PublicKey) -> bool {
        self.receivers.iter().any(|chain| chain.ratchet == *ratchet)
    }

    pub(super) fn add_receiver(&mut self, chain: ReceiverChain) {
        self.receivers.push(chain);
        let excess = self.receivers.len().saturating_sub(MAX_RECEIVER_CHAINS);
        self.receivers.drain(..excess);
    }
}

impl ReceiverChain {
    /// Where the stored key of `index` is, if it is.
    pub(super) fn find_skipped(&self, index: u32) -> Option<&Skipped> {
        let at = self
            .skipped
            .binary_search_by_key(&index, |skipped| skipped.index)
            .ok()?;
        self.skipped.get(at)
    }

    pub(super) fn forget_skipped(&mut self, index: u32) {
        self.skipped.retain(|skipped| skipped.index != index);
    }

    /// Moves the chain on; `skipped` are the keys of the indices passed over, ascending.
    pub(super) fn advance(&mut self, next: ChainKey, skipped: Vec<Skipped>) {
        self.chain = Some(next);
        if self.skipped.is_empty() {
            self.skipped = skipped;
        } else {
            self.skipped.extend(skipped);
        }
        let excess = self.skipped.len().saturating_sub(MAX_SKIPPED_KEYS);
        self.skipped.drain(..excess);
    }
}
