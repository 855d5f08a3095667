//! Questions to the service (`<iq>`), their answers and their time-outs (fact sheet 04.2).
//!
//! An answer is matched by its id alone. What happens next is data ([`Query`]), not a closure, so that a replayed run
//! can be compared and nothing outlives the connection by accident: when the connection ends, every open question is
//! answered with [`Answer::Lost`].

use super::CommandId;
use crate::{crypto::Rng, jid::Jid, state::Micros, wire::node::Node};
use std::collections::BTreeMap;

/// What an open question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Query {
    /// How many pre-keys the service has.
    PreKeyCount,
    /// Upload of pre-keys up to (not including) this id.
    PreKeyUpload { upto: u32 },
    /// A new signed pre-key.
    Rotate,
    /// `<passive><active/>`.
    Active,
    /// Keepalive.
    Ping,
    /// Device lists (and LIDs) of these users.
    Devices(Vec<Jid>),
    /// Key bundles of these devices.
    Bundles(Vec<Jid>),
    /// Unlinking this device.
    Logout(CommandId),
    /// A collection of settings; `true` if a patch of ours was in it.
    Sync(crate::appstate::Collection, bool),
    /// Where files are.
    MediaHosts,
    /// Whatever the answer, nothing depends on it.
    Formality,
}

/// How a question ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `type="result"`.
    Result(Node),
    /// `type="error"`, with the code; 0 if it has none.
    Error(u16),
    /// No answer in time.
    TimedOut,
    /// The connection ended first.
    Lost,
}

/// The open questions.
#[derive(Debug)]
pub(crate) struct Queries {
    prefix: String,
    next: u64,
    open: BTreeMap<u64, (Query, Micros)>,
}

impl Queries {
    /// Ids look like other clients': two random numbers, a dot, a minus, a counter.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let [a, b] = rng.bytes::<2>();
        Self {
            prefix: format!("{a}.{b}-"),
            next: 1,
            open: BTreeMap::new(),
        }
    }

    /// Opens a question; returns its id on the wire.
    pub(crate) fn open(&mut self, query: Query, deadline: Micros) -> (String, u64) {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, (query, deadline));
        (format!("{}{number}", self.prefix), number)
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether such a question is open.
    pub(crate) fn any(&self, mut is: impl FnMut(&Query) -> bool) -> bool {
        self.open.values().any(|(query, _)| is(query))
    }

    /// The question that this stanza answers.
    pub(crate) fn close(&mut self, stanza: &Node) -> Option<(Query, Answer)> {
        let id = stanza.get_str("id")?;
        let number: u64 = id.strip_prefix(&self.prefix)?.parse().ok()?;
        let (query, _) = self.open.remove(&number)?;
        let answer = if stanza.get_str("type") == Some("result") {
            Answer::Result(stanza.clone())
        } else {
            let code = stanza
                .find("error")
                .and_then(|error| error.get_u64("code"))
                .unwrap_or(0);
            Answer::Error(u16::try_from(code).unwrap_or(0))
        };
        Some((query, answer))
    }

    /// The questions whose time is up, oldest first.
    pub(crate) fn expired(&mut self, now: Micros) -> Vec<Query> {
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, (_, deadline))| *deadline <= now)
            .map(|(n, _)| *n)
            .collect();
        late.into_iter()
            .filter_map(|number| self.open.remove(&number))
            .map(|(query, _)| query)
            .collect()
    }

    /// All open questions; the connection has ended.
    pub(crate) fn drain(&mut self) -> Vec<Query> {
        std::mem::take(&mut self.open)
            .into_values()
            .map(|(query, _)| query)
            .collect()
    }

    /// When the next time is up.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.open.values().map(|(_, deadline)| *deadline).min()
    }
}

/// An `<iq>` to the service, without id.
pub(crate) fn iq(namespace: &'static str, kind: &'static str) -> Node {
    Node::new("iq")
        .attr("xmlns", namespace)
        .attr("type", kind)
        .attr("to", Jid::service())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: &str, kind: &str) -> Node {
        Node::new("iq").attr("id", id).attr("type", kind)
    }

    #[test]
    fn answers_find_their_question_once() {
        let mut queries = Queries::new(&mut Rng::from_seed([3; 32]));
        let (first, _) = queries.open(Query::PreKeyCount, Micros(10));
        let (second, _) = queries.open(Query::Active, Micros(20));
        assert_eq!(queries.deadline(), Some(Micros(10)));

        let refused = answer(&second, "error").child(Node::new("error").attr("code", 429u64));
        assert_eq!(
            queries.close(&refused),
            Some((Query::Active, Answer::Error(429)))
        );
        assert_eq!(queries.close(&refused), None);
        assert_eq!(queries.close(&answer("1.1-99", "result")), None);
        assert_eq!(queries.close(&answer("", "result")), None);

        let result = answer(&first, "result");
        assert_eq!(
            queries.close(&result),
            Some((Query::PreKeyCount, Answer::Result(result.clone())))
        );
    }

    #[test]
    fn time_and_disconnection_end_questions() {
        let mut queries = Queries::new(&mut Rng::from_seed([3; 32]));
        queries.open(Query::Ping, Micros(10));
        queries.open(Query::Active, Micros(20));
        assert_eq!(queries.expired(Micros(9)), []);
        assert_eq!(queries.expired(Micros(10)), [Query::Ping]);
        assert_eq!(queries.drain(), [Query::Active]);
        assert_eq!(queries.deadline(), None);
    }
}
