//! What a finding is about, and from that, which two facts contradict each other.
//!
//! A judge that looks on points at nothing: what it found, it found in what happened last, and its rule says what that
//! contradicts (the write under an old epoch, the newer claim). A judge that compares books at the end names its
//! [`Subject`]. Where there is only one fact, it stands alone beside the rule.

use super::{Verdict, World, judges::Judge};
use crate::timeline::{ArrowKind, BarKind, Event, Fact, Finding, LaneKind, MarkKind, Timeline};

/// What a complaint of a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What a judge found while the world ran: a complaint of an account, by its number.
    Complaint {
        /// Whose.
        account: usize,
        /// Which.
        which: usize,
    },
    /// A text.
    Message {
        /// Its id.
        id: String,
    },
    /// Events that an account's consumer was shown.
    Events {
        /// Whose.
        account: usize,
        /// Their numbers.
        seqs: Vec<u64>,
    },
    /// What stands in somebody's books.
    Moments {
        /// Of which account.
        account: Option<usize>,
        /// When (in microseconds), and what.
        at: Vec<(u64, String)>,
    },
    /// An account at the end.
    Account {
        /// Which.
        account: usize,
    },
}

impl Verdict {
    /// Says what the last complaint is about.
    pub(crate) fn concerns(&mut self, subject: Subject) {
        if let Some(last) = self.complaints.len().checked_sub(1) {
            self.about.insert(last, subject);
        }
    }
}

/// Everything that is wrong, what came first before what came of it.
pub(super) fn findings(
    world: &World,
    verdict: &Verdict,
    timeline: &Timeline,
    found: &[(usize, usize, Judge, usize)],
) -> Vec<Finding> {
    let case = Case {
        timeline,
        found,
        end: world.now.0,
    };
    let finding =
        |judge: Judge, words: String, (account, mut facts): (Option<usize>, Vec<Fact>)| {
            facts.sort();
            facts.dedup();
            Finding {
                judge: judge.name().to_owned(),
                rule: judge.words().to_owned(),
                words,
                account,
                facts,
            }
        };
    let mut findings = Vec::new();
    for (index, complaint) in verdict.complaints.iter().enumerate() {
        let judge = Judge::of(complaint);
        let facts = case.facts(judge, verdict.about.get(&index));
        findings.push(finding(judge, complaint.clone(), facts));
    }
    for subject in verdict.overtaken.iter().take(verdict.reordered) {
        let judge = Judge::MessageOrder;
        let words = format!("{judge}: a text was overtaken by one that was asked for later");
        findings.push(finding(judge, words, case.facts(judge, Some(subject))));
    }
    findings.sort_by_key(|finding| {
        let last = finding.facts.iter().map(|fact| fact.at).max();
        last.unwrap_or(u64::MAX)
    });
    findings
}

struct Case<'a> {
    timeline: &'a Timeline,
    found: &'a [(usize, usize, Judge, usize)],
    end: u64,
}

impl Case<'_> {
    fn facts(&self, judge: Judge, subject: Option<&Subject>) -> (Option<usize>, Vec<Fact>) {
        match subject {
            None => (None, vec![self.rest(None)]),
            Some(Subject::Account { account }) => {
                let mut facts = vec![self.rest(Some(*account))];
                if judge == Judge::LiveOnline {
                    facts.extend(self.last_mark(*account, usize::MAX, |kind| {
                        matches!(kind, MarkKind::Stop | MarkKind::Death)
                    }));
                }
                (Some(*account), facts)
            }
            Some(Subject::Complaint { account, which }) => {
                let found = (self.found.iter())
                    .find(|(whose, number, ..)| (whose, number) == (account, which));
                let facts = match found {
                    Some((.., judge, mark)) => self.moment(*account, *judge, *mark),
                    None => vec![self.rest(Some(*account))],
                };
                (Some(*account), facts)
            }
            Some(Subject::Events { account, seqs }) => {
                let shown = self.marks(*account).filter(|index| {
                    matches!(self.timeline.marks[*index].kind, MarkKind::Shown { seq } if seqs.contains(&seq))
                });
                let mut facts: Vec<Fact> = shown.map(|index| self.mark(index)).collect();
                // The first time that each was shown says enough, if there are several.
                if seqs.len() > 1 {
                    let mut seen = Vec::new();
                    facts.retain(|fact| {
                        !seen.contains(&fact.words) && {
                            seen.push(fact.words.clone());
                            true
                        }
                    });
                }
                (Some(*account), facts)
            }
            Some(Subject::Moments { account, at }) => {
                let fact = |(at, words): &(u64, String)| self.written(*account, *at, words);
                (*account, at.iter().map(fact).collect())
            }
            Some(Subject::Message { id }) => self.message(judge, id),
        }
    }

    /// What was found when it happened, and what that contradicts.
    fn moment(&self, account: usize, judge: Judge, mark: usize) -> Vec<Fact> {
        let found = &self.timeline.marks[mark];
        let mut facts = vec![self.mark(mark)];
        let is_shown = |kind: &MarkKind| matches!(kind, MarkKind::Shown { .. });
        let is_batch = |kind: &MarkKind| matches!(kind, MarkKind::Batch { .. });
        let is_claim = |kind: &MarkKind| matches!(kind, MarkKind::Claim { .. });
        let last = |is: &dyn Fn(&MarkKind) -> bool, before| self.last(account, before, is);
        let other = match judge {
            Judge::EventOrder | Judge::EventOnce => {
                let now = last(&is_shown, mark);
                let now = now.map(|now| (now, self.timeline.marks[now].kind));
                now.and_then(|(now, kind)| match judge {
                    Judge::EventOnce => last(&|other| *other == kind, now),
                    _ => last(&is_shown, now),
                })
            }
            Judge::OneWriter | Judge::SendOnce => last(&is_batch, mark).and_then(|now| {
                let written = &self.timeline.marks[now];
                let MarkKind::Batch { epoch, .. } = written.kind else {
                    return None;
                };
                facts[0] = Fact {
                    words: format!("{}; {}", written.words, found.words),
                    ..self.mark(now)
                };
                let claim = last(&is_claim, now);
                let newer = claim.filter(|claim| {
                    matches!(self.timeline.marks[*claim].kind, MarkKind::Claim { epoch: newer } if newer > epoch)
                });
                match judge {
                    // The last that was written before it.
                    Judge::OneWriter => newer.or_else(|| {
                        let taken = |kind: &MarkKind| matches!(kind, MarkKind::Batch { taken: true, .. });
                        last(&taken, now)
                    }),
                    _ => {
                        let mut before = self.marks(account).filter(|index| *index < now);
                        before.rfind(|index| {
                            let mark = &self.timeline.marks[*index];
                            is_batch(&mark.kind) && mark.id == written.id
                        })
                    }
                }
            }),
            Judge::EpochGrows => last(&is_claim, mark),
            Judge::GrantHeld => last(&|kind| matches!(kind, MarkKind::Grant { .. }), mark),
            Judge::OneConnection => {
                let is_open = |kind: &MarkKind| *kind == MarkKind::Open;
                last(&is_open, mark).and_then(|now| last(&is_open, now))
            }
            Judge::DurableBeforeVisible | Judge::AckAfterKeep => {
                facts.extend(self.under_way(account, found.at));
                None
            }
            Judge::LimitBatches | Judge::BatchOrder => {
                facts.extend(self.unanswered(account, found.at));
                None
            }
            _ => None,
        };
        facts.extend(other.map(|other| self.mark(other)));
        facts
    }

    /// What is known of a text.
    fn message(&self, judge: Judge, id: &str) -> (Option<usize>, Vec<Fact>) {
        let timeline = self.timeline;
        let is = |other: &Option<String>| other.as_deref() == Some(id);
        let marks = || {
            let all = timeline.marks.iter().enumerate();
            all.filter(|(_, mark)| is(&mark.id)).map(|(index, _)| index)
        };
        let asked = marks().find(|index| timeline.marks[*index].kind == MarkKind::Asked);
        let shown =
            marks().filter(|index| matches!(timeline.marks[*index].kind, MarkKind::Shown { .. }));
        let mut facts: Vec<Fact> = asked.map(|index| self.mark(index)).into_iter().collect();
        let account = facts.first().and_then(|fact| fact.account);
        match judge {
            // Both times that it was reported.
            Judge::SentOnce => facts = shown.map(|index| self.mark(index)).collect(),
            Judge::MessageWhole | Judge::MessageRead | Judge::SendTaken => {
                facts.extend(shown.map(|index| self.mark(index)).take(1));
            }
            // The last that was heard of it.
            _ => {
                let stanzas = timeline.arrows.iter().enumerate();
                let stanzas = stanzas.filter(|(_, arrow)| is(&arrow.id));
                let last = (stanzas.map(|(index, _)| self.arrow(index)))
                    .chain(marks().map(|index| self.mark(index)))
                    .max_by_key(|fact| fact.at);
                facts.extend(last.map(|last| Fact {
                    words: format!("the last of it: {}", last.words),
                    ..last
                }));
            }
        }
        if facts.is_empty() {
            facts.push(self.rest(account));
        }
        (account, facts)
    }

    /// The commit that is on its way at that moment, which is durable only when it arrives; or the last one before, if
    /// nothing was written when it did.
    fn under_way(&self, account: usize, at: u64) -> Option<Fact> {
        let timeline = self.timeline;
        let written = |arrives: u64| {
            self.marks(account).any(|index| {
                let mark = &timeline.marks[index];
                mark.at == arrives && matches!(mark.kind, MarkKind::Batch { taken: true, .. })
            })
        };
        let commits = || {
            (0..timeline.arrows.len()).filter(|index| {
                let arrow = &timeline.arrows[*index];
                let whose = timeline.lanes[arrow.to].account;
                arrow.kind == ArrowKind::Commit && whose == Some(account) && arrow.sent <= at
            })
        };
        let arrives = |index: &usize| timeline.arrows[*index].arrives;
        let late = commits().find(|index| arrives(index) > at && written(arrives(index)));
        let never = || {
            let mut commits = commits().filter(|index| arrives(index) <= at);
            commits.rfind(|index| !written(arrives(index)))
        };
        let (words, index) = match late {
            Some(index) => ("durable only here", index),
            None => ("nothing was written here", never()?),
        };
        let (fact, arrow) = (self.arrow(index), &timeline.arrows[index]);
        Some(Fact {
            at: arrow.arrives,
            words: format!("{words}: {}", fact.words),
            line: arrow.end.or(arrow.line),
            ..fact
        })
    }

    /// The oldest batch that has no answer at that moment.
    fn unanswered(&self, account: usize, at: u64) -> Option<Fact> {
        let timeline = self.timeline;
        let index = timeline.bars.iter().position(|bar| {
            matches!(bar.kind, BarKind::Batch { .. })
                && timeline.lanes[bar.lane].account == Some(account)
                && bar.from < at
                && bar.to >= at
        })?;
        let bar = &timeline.bars[index];
        Some(Fact {
            at: bar.from,
            account: Some(account),
            words: format!("has no answer yet: {}", bar.words),
            event: Some(Event::Bar(index)),
            line: bar.line,
        })
    }

    /// What stands in somebody's books, with what happened at that very time.
    fn written(&self, account: Option<usize>, at: u64, words: &str) -> Fact {
        let timeline = self.timeline;
        let of = |lane: usize| {
            let whose = timeline.lanes[lane].account;
            whose.is_some() && (account.is_none() || whose == account)
        };
        let mut arrows = timeline.arrows.iter();
        let arrow = arrows.position(|arrow| {
            let service = timeline.lanes[arrow.to].kind == LaneKind::Service;
            service && arrow.arrived && arrow.arrives == at && of(arrow.to)
        });
        let mut marks = timeline.marks.iter();
        let fact = match arrow {
            Some(index) => Some(self.arrow(index)),
            None => (marks.position(|mark| mark.at == at && of(mark.lane)))
                .map(|index| self.mark(index)),
        };
        match fact {
            Some(fact) => Fact {
                at,
                words: format!("{words}: {}", fact.words),
                ..fact
            },
            None => Fact {
                at,
                account,
                words: words.to_owned(),
                event: None,
                line: None,
            },
        }
    }

    fn rest(&self, account: Option<usize>) -> Fact {
        Fact {
            at: self.end,
            account,
            words: "so it is when the world has come to rest".to_owned(),
            event: None,
            line: None,
        }
    }

    /// The marks of an account, in order of time.
    fn marks(&self, account: usize) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.timeline.marks.len()).filter(move |index| {
            let lane = self.timeline.marks[*index].lane;
            self.timeline.lanes[lane].account == Some(account)
        })
    }

    fn last(&self, account: usize, before: usize, is: impl Fn(&MarkKind) -> bool) -> Option<usize> {
        self.marks(account)
            .rfind(|index| *index < before && is(&self.timeline.marks[*index].kind))
    }

    fn last_mark(
        &self,
        account: usize,
        before: usize,
        is: impl Fn(&MarkKind) -> bool,
    ) -> Option<Fact> {
        self.last(account, before, is).map(|index| self.mark(index))
    }

    fn mark(&self, index: usize) -> Fact {
        let mark = &self.timeline.marks[index];
        Fact {
            at: mark.at,
            account: self.timeline.lanes[mark.lane].account,
            words: mark.words.clone(),
            event: Some(Event::Mark(index)),
            line: mark.line,
        }
    }

    fn arrow(&self, index: usize) -> Fact {
        let arrow = &self.timeline.arrows[index];
        let lanes = [arrow.from, arrow.to].map(|lane| self.timeline.lanes[lane].account);
        Fact {
            at: arrow.sent,
            account: lanes.into_iter().flatten().next(),
            words: arrow.words.clone(),
            event: Some(Event::Arrow(index)),
            line: arrow.end.or(arrow.line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Lane, Mark};

    /// One account's store, in which these things happen, a microsecond apart.
    fn timeline(kinds: &[MarkKind]) -> Timeline {
        let lane = Lane {
            account: Some(0),
            kind: LaneKind::Store,
            name: "store".to_owned(),
        };
        let marks = (0_u64..).zip(kinds).map(|(at, kind)| Mark {
            lane: 0,
            at,
            kind: *kind,
            words: format!("{kind:?}"),
            id: None,
            line: None,
        });
        Timeline {
            lanes: vec![lane],
            marks: marks.collect(),
            ..Timeline::default()
        }
    }

    fn contradicts(judge: Judge, kinds: &[MarkKind]) -> Vec<u64> {
        let timeline = timeline(kinds);
        let case = Case {
            timeline: &timeline,
            found: &[],
            end: 1000,
        };
        let mut facts = case.moment(0, judge, kinds.len() - 1);
        facts.sort();
        facts.iter().map(|fact| fact.at).collect()
    }

    const fn batch(seq: u64, epoch: u64, taken: bool) -> MarkKind {
        MarkKind::Batch { seq, epoch, taken }
    }

    #[test]
    fn a_write_under_an_old_epoch_contradicts_the_newer_claim() {
        let old = [
            MarkKind::Claim { epoch: 2 },
            batch(7, 2, true),
            MarkKind::Claim { epoch: 3 },
            batch(8, 2, true),
            MarkKind::Found,
        ];
        assert_eq!(contradicts(Judge::OneWriter, &old), [2, 3]);
    }

    #[test]
    fn a_write_out_of_turn_contradicts_the_last_one() {
        let turn = [
            MarkKind::Claim { epoch: 2 },
            batch(7, 2, true),
            batch(9, 2, false),
            batch(10, 2, false),
            MarkKind::Found,
        ];
        assert_eq!(contradicts(Judge::OneWriter, &turn), [1, 3]);
    }

    #[test]
    fn an_event_shown_again_contradicts_the_first_time() {
        let shown = |seq| MarkKind::Shown { seq };
        let again = [shown(4), shown(5), shown(4), MarkKind::Found];
        assert_eq!(contradicts(Judge::EventOnce, &again), [0, 3]);
        assert_eq!(contradicts(Judge::EventOrder, &again), [1, 3]);
    }

    #[test]
    fn what_leaves_without_a_right_contradicts_the_last_grant() {
        let held = [
            MarkKind::Grant { until: 1 },
            MarkKind::Open,
            MarkKind::Found,
        ];
        assert_eq!(contradicts(Judge::GrantHeld, &held), [0, 2]);
        assert_eq!(contradicts(Judge::NoSpin, &held), [2]);
    }
}
