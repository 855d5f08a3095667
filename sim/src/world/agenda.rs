//! What lies ahead, by time and then by the order in which it was put there.

use baton_core::state::Micros;
use std::{cmp::Reverse, collections::BinaryHeap};

/// A heap of small entries beside the things themselves, which do not move until they are due.
#[derive(Debug)]
pub(super) struct Agenda<T> {
    heap: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    order: u64,
}

impl<T> Agenda<T> {
    pub(super) const fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            order: 0,
        }
    }

    pub(super) fn push(&mut self, at: Micros, what: T) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(what);
        self.order += 1;
        self.heap.push(Reverse((at, self.order, slot)));
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Micros> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub(super) fn pop(&mut self) -> Option<(Micros, T)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        Some((at, self.slots[slot].take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_time_then_by_arrival() {
        let mut agenda = Agenda::new();
        for (at, what) in [(3, 'd'), (1, 'a'), (2, 'b'), (2, 'c')] {
            agenda.push(Micros(at), what);
        }
        assert_eq!(agenda.pop(), Some((Micros(1), 'a')));
        // Its place is taken again, which changes nothing.
        agenda.push(Micros(3), 'e');
        let rest: String = std::iter::from_fn(|| agenda.pop())
            .map(|(_, what)| what)
            .collect();
        assert_eq!(rest, "bcde");
        assert_eq!((agenda.next(), agenda.slots.len()), (None, 4));
    }
}
