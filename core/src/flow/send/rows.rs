//! Rows that others than the owner write or read: requests in the mailbox, the state of a send.

use crate::{
    flow::{Content, SendRequest},
    proto::record::{self, Outbound, outbound::State},
    state::{MessageId, Record, codec, codec::RowError},
};

/// The row that [`Store::enqueue`](crate::state::Store::enqueue) takes: a request for the owner, under the message id.
/// Requests that wait together are taken in the order of `order`; a wall clock in microseconds serves.
#[must_use]
pub fn mailbox_request(request: &SendRequest, order: u64) -> Record {
    let (text, content) = match &request.content {
        Content::Text(text) => (Some(text.clone()), None),
        Content::Message(bytes) => (None, Some(bytes.to_vec())),
    };
    codec::encode(&record::Mailbox {
        to: Some(request.to.to_string()),
        text,
        content,
        order: Some(order),
    })
}

/// Reads such a row.
pub(crate) fn mailbox_from(id: MessageId, row: &Record) -> Result<(u64, SendRequest), RowError> {
    let row: record::Mailbox = codec::decode(row)?;
    let to = row
        .to
        .and_then(|to| to.parse().ok())
        .ok_or(RowError::Malformed)?;
    let content = match (row.text, row.content) {
        (Some(text), _) => Content::Text(text),
        (None, Some(bytes)) => Content::Message(bytes.into()),
        (None, None) => return Err(RowError::Malformed),
    };
    let order = row.order.unwrap_or(0);
    let request = SendRequest {
        id: Some(id),
        to,
        content,
    };
    Ok((order, request))
}

/// What a request in the mailbox amounts to when it is accepted; `None` if it would be refused.
pub(crate) fn requested(id: &MessageId, row: &Record) -> Option<Outbound> {
    let (_, request) = mailbox_from(id.clone(), row).ok()?;
    super::Sends::check(&request).ok()?;
    let (content, _) = super::encoded(request.content).ok()?;
    Some(Outbound {
        to: Some(request.to.bare().to_string()),
        content: Some(content),
        ..Default::default()
    })
}

/// How far a send has come, for those who do not own the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendStatus {
    /// Accepted.
    Queued,
    /// Encrypted, not acknowledged by the service.
    Sealed,
    /// The service has it.
    Sent,
    /// A device of the recipient has it.
    Delivered,
    /// The recipient has read it.
    Read,
    /// Refused with this code; not delivered.
    Failed(u16),
}

/// Reads a row under [`Key::Outbox`](crate::state::Key::Outbox) or [`Key::Sent`](crate::state::Key::Sent).
pub fn sent_status(row: &Record) -> Result<SendStatus, RowError> {
    let row: Outbound = codec::decode(row)?;
    Ok(match row.state() {
        State::Queued => SendStatus::Queued,
        State::Sealed => SendStatus::Sealed,
        State::Sent => SendStatus::Sent,
        State::Delivered => SendStatus::Delivered,
        State::Read => SendStatus::Read,
        State::Failed => SendStatus::Failed(
            row.code
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jid::Jid;

    #[test]
    fn mailbox_rows_say_what_was_asked() {
        for content in [
            Content::Text("hello".into()),
            Content::Message(vec![0x0a, 1, b'x'].into()),
        ] {
            let request = SendRequest {
                id: Some("3EB0".into()),
                to: Jid::pn("15550000001").unwrap(),
                content,
            };
            assert_eq!(
                mailbox_from("3EB0".into(), &mailbox_request(&request, 5)),
                Ok((5, request))
            );
        }
        assert!(mailbox_from("3EB0".into(), &codec::encode(&record::Mailbox::default())).is_err());
    }
}
