//! Two devices with a session, with fixed keys, and messages under way between them.

use baton_core::{
    crypto::{KeyPair, Rng},
    signal::{
        self, Bundle, CiphertextKind, LocalIdentity, PreKeyMessage, SenderKeyRecord, SessionRecord,
    },
};
use std::sync::OnceLock;

/// Most bytes that a session record may take: forty-one sessions of five chains of 2,000 skipped keys, 100 bytes each.
pub(crate) const RECORD: usize = 41 * 5 * 2_000 * 100;

pub(crate) struct Peers {
    pub(crate) bob: KeyPair,
    pub(crate) signed: KeyPair,
    pub(crate) one_time: KeyPair,
    /// First messages of sessions: with a one-time key, without.
    pub(crate) openings: [Vec<u8>; 2],
    /// Bob's record after the first messages, an answer, and its answer.
    pub(crate) record: SessionRecord,
    pub(crate) record_bytes: Vec<u8>,
    /// Messages to Bob that have not arrived: some in the known chain, some in the next.
    pub(crate) messages: Vec<Vec<u8>>,
    /// What Alice says to a group: her distribution, then messages.
    pub(crate) distribution: Vec<u8>,
    pub(crate) group: Vec<Vec<u8>>,
    /// The record of somebody in the group who has the distribution, and of one who has read a message beyond others.
    pub(crate) group_record: Vec<u8>,
    pub(crate) group_record_later: Vec<u8>,
}

/// What the n-th message says.
pub(crate) fn text(n: usize) -> Vec<u8> {
    format!("message {n}").into_bytes()
}

pub(crate) const fn local(key_pair: &KeyPair) -> LocalIdentity<'_> {
    LocalIdentity {
        key_pair,
        registration_id: 7,
    }
}

impl Peers {
    pub(crate) fn get() -> &'static Self {
        static ALL: OnceLock<Peers> = OnceLock::new();
        ALL.get_or_init(Self::new)
    }

    fn new() -> Self {
        let mut rng = Rng::from_seed([3; 32]);
        let [alice, bob, signed, one_time] = [(); 4].map(|()| KeyPair::generate(&mut rng));
        let bundle = |one_time: Option<(u32, &KeyPair)>, rng: &mut Rng| Bundle {
            registration_id: 7,
            identity: bob.public,
            signed_pre_key_id: 2,
            signed_pre_key: signed.public,
            signature: bob.private.sign(&[&signed.public.serialize()], rng),
            pre_key: one_time.map(|(id, pair)| (id, pair.public)),
        };
        let mut opening = |one_time: Option<(u32, &KeyPair)>| {
            let mut session = SessionRecord::new();
            let bundle = bundle(one_time, &mut rng);
            signal::initiate(&mut session, &local(&alice), &bundle, &mut rng).expect("good");
            let first = signal::encrypt(&mut session, &local(&alice), &text(0)).expect("good");
            (session, first.bytes)
        };
        let (mut session, with) = opening(Some((3, &one_time)));
        let (_, without) = opening(None);

        let mut record = SessionRecord::new();
        let first = PreKeyMessage::parse(&with).expect("good");
        let (signed_key, one) = (Some(&signed), Some(&one_time));
        signal::decrypt_pre_key(&mut record, &local(&bob), &first, signed_key, one, &mut rng)
            .expect("good");
        let mut turn = |session: &mut SessionRecord, record: &mut SessionRecord| {
            let answer = signal::encrypt(record, &local(&bob), b"answer").expect("good");
            assert_eq!(answer.kind, CiphertextKind::Message);
            signal::decrypt(session, &local(&alice), &answer.bytes, &mut rng).expect("good");
        };
        turn(&mut session, &mut record);
        let mut messages = Vec::new();
        for n in 0..5 {
            messages.push(signal::encrypt(&mut session, &local(&alice), &text(n)).expect("good"));
        }
        turn(&mut session, &mut record);
        for n in 5..8 {
            messages.push(signal::encrypt(&mut session, &local(&alice), &text(n)).expect("good"));
        }

        let mut key = SenderKeyRecord::create(&mut rng);
        let distribution = key.distribution().expect("a key");
        let group = (0..6).map(|n| key.encrypt(&text(n), &mut rng).expect("a key"));
        let group: Vec<Vec<u8>> = group.collect();
        let mut member = SenderKeyRecord::new();
        member.process(&distribution).expect("genuine");
        let group_record = member.encode();
        member.decrypt(&group[4]).expect("genuine");
        Self {
            group,
            group_record,
            group_record_later: member.encode(),
            record_bytes: record.encode(),
            bob,
            signed,
            one_time,
            openings: [with, without],
            record,
            messages: messages.into_iter().map(|message| message.bytes).collect(),
            distribution,
        }
    }
}
