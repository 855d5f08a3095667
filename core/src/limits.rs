//! Every limit there is, in one place: what may be asked of this crate by bytes that it did not write.
//!
//! Three kinds. Those of **formats** are constants: what is beyond them is refused or passed over, and nothing is
//! allocated for it first. Those of **queues inside an engine** are constants too: they bound what the service or the
//! phone can make an engine remember. And those that are the **embedder's to choose**, because memory per account is
//! their decision: [`Config::limits`](crate::flow::Limits), whose values for the daemon stand at the end.
//!
//! What decoding may cost is stated as a multiple of what comes in, and counted in `core/tests/decode_memory.rs` by an
//! allocator that counts. `docs/security.md` lists the tests that try each limit at itself and beside it.

// ---- frames and nodes (chapters 01 and 02) --------------------------------------------------------------------------

/// Bytes of one frame's payload: what its three bytes of length can say, 16,777,215. Nothing is allocated for a length
/// that was only announced.
pub const FRAME: usize = (1 << 24) - 1;

/// Levels of nesting of a node: the root is level 1, level 128 is the last that is read or written. Real stanzas have
/// fewer than 20; the decoder's stack is bounded by this.
pub const NODE_DEPTH: usize = 128;

/// Attributes of one node. Real ones have a dozen.
pub const NODE_ATTRIBUTES: usize = 1024;

/// Children of one node: what a list's two bytes can count.
pub const NODE_CHILDREN: usize = u16::MAX as usize;

/// Nodes and attributes of one frame together, a node counting two. A node of three bytes becomes a
/// [`Node`](crate::wire::node::Node) of about a hundred, so without this a 16 MiB frame of empty nodes would cost half a
/// gigabyte; with it, some 50 MiB. A device list of 1,000 devices has about 6,000.
pub const NODE_ELEMENTS: usize = 1 << 19;

/// Bytes of one node as read, inflated or plain, and of one text or one run of bytes in it: 16 MiB, which is also what a
/// frame can hold. A stream that inflates beyond it is stopped there.
pub const NODE_BYTES: usize = 16 << 20;

/// Bytes of the user part of an address. Addresses are names of rows, and no store takes longer names.
pub const JID_USER: usize = 255;

// ---- Signal (chapter 05) --------------------------------------------------------------------------------------------

/// Messages of one chain that may be missing before the one that comes, from anybody: each costs an HMAC before
/// anything is authenticated. What the current official client allows (05.8).
pub const FORWARD_JUMP: u32 = 2_000;

/// The same for the other devices of the own account, which do not attack us and may have been away for long.
pub const FORWARD_JUMP_OWN: u32 = 25_000;

/// Keys of messages that have not arrived, kept per receiving chain and per sender key; the oldest go first.
pub const SKIPPED_KEYS: usize = 2_000;

/// Receiving chains kept per session, newest last. Each ratchet turn of the peer adds one, so a message may be overtaken
/// by four turns and still decrypt.
pub const RECEIVER_CHAINS: usize = 5;

/// Sessions kept behind the current one.
pub const ARCHIVED_SESSIONS: usize = 40;

/// Keys of one sender kept in one group, newest first: a sender that rotates leaves messages under way.
pub const SENDER_KEYS: usize = 5;

/// Furthest a record's lease of sending counters may reach past its chain. Leases are of 64; a larger number means a
/// damaged record, and walking there would take minutes.
pub const COUNTER_LEASE: u32 = 25_000;

/// Furthest that a sending chain is skipped ahead to make up for keys that may have been used and forgotten. Recipients
/// refuse a jump of more than 2,000 messages, most of them (05.8); this leaves as much again for what they have not
/// received. A chain that is further behind is not used for sending any more: a new session is.
pub const BURN: u32 = 1_000;

// ---- settings, files, history (chapters 07 and 08) ------------------------------------------------------------------

/// Mutations in one patch. The service cuts earlier.
pub const PATCH_MUTATIONS: usize = 20_000;

/// Settings in one collection. An address book of fifty thousand people fits four times.
pub const COLLECTION_RECORDS: usize = 200_000;

/// Bytes of the name of a setting.
pub const SETTING_INDEX: usize = 4096;

/// Bytes of an encrypted setting.
pub const SETTING_VALUE: usize = 1 << 20;

/// Bytes of the id of a key for settings; in practice they have 6.
pub const SYNC_KEY_ID: usize = 64;

/// Bytes of the phone's answer about a collection that does not add up, inflated.
pub const RECOVERY: usize = 64 << 20;

/// Bytes of one part of a file that is read twice: what is held until it is known to be what it was.
pub const MEDIA_PART: usize = 256 << 10;

/// Bytes of a chunk of history, inflated; it is taken apart as it comes and never held.
pub const HISTORY: u64 = 1 << 30;

/// Bytes of one message of history; a longer one is passed over.
pub const HISTORY_MESSAGE: usize = 1 << 20;

/// Bytes of one field of a chat in history, its messages apart; a longer one is passed over.
pub const HISTORY_FIELD: usize = 4096;

/// Bytes of all such fields of one chat together, its id apart; what is beyond it is passed over.
pub const HISTORY_HEAD: usize = 64 << 10;

// ---- rows -----------------------------------------------------------------------------------------------------------

/// Bytes of a row as every store has to take it: 16 MiB.
pub const ROW_STORED: usize = 16 << 20;

/// Bytes of a row as the engine writes it: leaves room for what encryption at rest adds.
pub const ROW: usize = ROW_STORED - 64;

/// Bytes of a message id, which is a name of rows.
pub const MESSAGE_ID: usize = 255;

// ---- what the service can make an engine do -------------------------------------------------------------------------

/// Ciphertexts in one stanza; one with more is refused.
pub const CIPHERTEXTS: usize = 16;

/// Bytes of a decrypted message that is taken in: half of what a row can hold.
pub const MESSAGE_RECEIVED: usize = ROW / 2;

/// Parts of a decrypted message (fields with bytes in them, those of messages inside it too), before it is decoded: see
/// [`bounded`](crate::proto::bounded).
pub const MESSAGE_PARTS: usize = 1 << 16;

/// Bytes of a message that is sent. The service takes less; media travel elsewhere.
pub const MESSAGE_SENT: usize = 256 << 10;

/// Bytes of a stanza that is sent: it has to fit into a frame, and with the message into a row. Only a service that
/// lists hundreds of devices for somebody makes one of this size.
pub const STANZA_SENT: usize = 15 << 20;

/// Children of a notification that are looked at; that there are more is reported.
pub const NOTIFICATION_CHILDREN: usize = 64;

/// Questions to the service that may be open when something of its own doing would make us ask another. What is not asked
/// is reported, and asked when the service says it again, on the next connection at the latest.
pub const OPEN_QUERIES: usize = 256;

/// Entries of an answer (devices, bundles) that are looked at; that there are more is reported.
pub const ANSWER_ENTRIES: usize = 1024;

/// Messages for which is counted how often they were asked for again, and how often somebody asked us.
pub const RETRIES_COUNTED: usize = 1024;

/// Requests for a message that wait for the asker's keys, and as many that wait for the asker's address. One more is not
/// acknowledged, so the service makes it again on the next connection.
pub const RETRIES_WAITING: usize = 64;

/// Rows asked for ahead of need.
pub const ROWS_AHEAD: usize = 256;

/// References for QR codes kept at once: as many as the service gives, and as there is time to show.
pub const PAIRING_REFERENCES: usize = 6;

/// Bytes of a reference for a QR code; that a longer one is left out is reported.
pub const PAIRING_REFERENCE: usize = 512;

/// Bytes of a name that is kept: of an author, of a phone. What has a longer one is taken in without it.
pub const NAME: usize = 255;

// ---- the embedder's choice: the daemon's values ---------------------------------------------------------------------

/// Batches handed out and not yet durable.
pub const BATCHES_IN_FLIGHT: u32 = 4;

/// The inbox of an engine: stanzas accepted and not executed yet.
pub const WORK_QUEUED: u32 = 512;

/// Bytes of rows kept in memory.
pub const CACHE_BYTES: u32 = 256 << 10;

/// Bytes of stanzas waiting for rows and of effects waiting for a commit; bytes of messages in the outbox; and bytes of
/// stanzas that are sealed and not acknowledged. What is empty takes one of any size, and the last sealed one may be of
/// any: so there are at most these and [`STANZA_SENT`] of them, and as much again at the gate while they wait for a commit.
pub const GATE_BYTES: u32 = 1 << 20;

/// Sends accepted and not yet acknowledged by the service.
pub const OUTBOX: u32 = 1024;

/// The consumer's inbox: events handed out and not yet acknowledged.
pub const EVENTS_IN_FLIGHT: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::Limits,
        jid::{Jid, JidError, Server},
        wire::node::{self, Node, NodeError, Unwritable},
    };

    fn written(node: &Node) -> Result<Vec<u8>, NodeError> {
        let mut out = Vec::new();
        node::encode(node, &mut out).map(|()| out)
    }

    #[test]
    fn children_end_at_what_a_list_can_count() {
        let list = |count| Node::new("list").children(vec![Node::new("item"); count]);
        for count in [NODE_CHILDREN - 1, NODE_CHILDREN] {
            let bytes = written(&list(count)).unwrap();
            let mut scratch = node::Scratch::new();
            assert_eq!(
                node::decode(&bytes, &mut scratch).unwrap().nodes().count(),
                count
            );
        }
        assert_eq!(
            written(&list(NODE_CHILDREN + 1)),
            Err(NodeError::Unwritable(Unwritable::TooManyChildren))
        );
    }

    #[test]
    fn a_text_ends_at_the_size_of_a_frame() {
        let text = |length| Node::new("a").bytes(vec![b'x'; length]);
        assert!(written(&text(NODE_BYTES - 1)).is_ok() && written(&text(NODE_BYTES)).is_ok());
        assert_eq!(
            written(&text(NODE_BYTES + 1)),
            Err(NodeError::Unwritable(Unwritable::TooLong))
        );
        // Read, a text ends where its node does: tag, list and length take their part of it.
        let long = 1 << 20;
        let around = written(&text(long)).unwrap().len() - 1 - long;
        let bytes = written(&text(NODE_BYTES - around)).unwrap();
        assert_eq!(bytes.len(), 1 + NODE_BYTES);
        assert!(node::decode(&bytes, &mut node::Scratch::new()).is_ok());
        let bytes = written(&text(NODE_BYTES - around + 1)).unwrap();
        assert!(node::decode(&bytes, &mut node::Scratch::new()).is_err());
    }

    #[test]
    fn a_user_ends_at_255_bytes() {
        for length in [JID_USER - 1, JID_USER] {
            assert!(Jid::new(&"1".repeat(length), Server::Lid).is_ok());
        }
        let long = "1".repeat(JID_USER + 1);
        assert_eq!(Jid::new(&long, Server::Lid), Err(JidError::TooLong));
    }

    /// `docs/security.md` says which tests try a limit: of each, and of nothing else.
    #[test]
    fn every_limit_is_in_the_table_of_its_tests() {
        let source = include_str!("limits.rs").lines();
        let constants: Vec<&str> = source
            .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
            .collect();
        assert!(constants.len() > 40, "{constants:?}");
        let table = include_str!("../../docs/security.md").lines();
        let rows = table.skip_while(|line| !line.starts_with("| limit "));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        let mut named: Vec<&str> = rows
            .filter_map(|row| row.split('|').nth(1))
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .collect();
        for constant in &constants {
            let before = named.len();
            named.retain(|name| name != constant);
            assert_eq!(before - named.len(), 1, "rows that name {constant}");
        }
        assert_eq!(named, [""; 0], "no limits");
    }

    /// What the daemon runs with is what stands here.
    #[test]
    fn the_daemon_has_these_values() {
        let limits = Limits::gateway();
        assert_eq!(limits.frame_bytes.get() as usize, FRAME);
        assert_eq!(limits.cache_bytes.get(), CACHE_BYTES);
        assert_eq!(limits.gate_bytes.get(), GATE_BYTES);
        assert_eq!(limits.outbox.get(), OUTBOX);
        assert_eq!(limits.events_in_flight.get(), EVENTS_IN_FLIGHT);
        assert_eq!(limits.work_queued.get(), WORK_QUEUED);
        assert_eq!(limits.batches_in_flight.get(), BATCHES_IN_FLIGHT);
        assert_eq!(ROW + 64, ROW_STORED);
    }
}
