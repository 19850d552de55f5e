//! What is told once.

use std::collections::{BTreeSet, VecDeque};

use crate::record::BootNs;

/// Remembers the last `MAX` of what was told.
#[derive(Debug)]
pub struct Once<K, const MAX: usize> {
    told: BTreeSet<K>,
    order: VecDeque<K>,
}

impl<K, const MAX: usize> Default for Once<K, MAX> {
    fn default() -> Self {
        Self { told: BTreeSet::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Ord, const MAX: usize> Once<K, MAX> {
    /// Whether this is told for the first time, or for the first time since it was forgotten.
    pub fn first(&mut self, key: K) -> bool {
        if !self.told.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.told.remove(&oldest);
        }
        true
    }
}

/// Remembers the last `MAX` of what was told until it has not come again for a while.
#[derive(Debug)]
pub struct Lately<K, const MAX: usize>(VecDeque<(K, BootNs)>);

impl<K, const MAX: usize> Default for Lately<K, MAX> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: PartialEq, const MAX: usize> Lately<K, MAX> {
    /// Whether this has not come within the last `again_ns`.
    pub fn first(&mut self, key: K, now: BootNs, again_ns: u64) -> bool {
        self.0.retain(|(_, last)| now.0.saturating_sub(last.0) < again_ns);
        if let Some((_, last)) = self.0.iter_mut().find(|(known, _)| *known == key) {
            *last = now;
            return false;
        }
        if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back((key, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_first_once_and_the_oldest_are_forgotten() {
        let mut once = Once::<_, 2>::default();
        assert_eq!([1, 2, 1, 3, 2, 1].map(|key| once.first(key)), [true, true, false, true, false, true]);
        assert_eq!(once.told.len(), 2);
    }

    #[test]
    fn what_comes_again_and_again_is_first_once_it_paused() {
        let mut lately = Lately::<_, 2>::default();
        let times =
            [(1, 0, true), (1, 9, false), (1, 18, false), (1, 28, true), (2, 28, true), (3, 28, true), (1, 28, true)];
        for (key, now, first) in times {
            assert_eq!(lately.first(key, BootNs(now), 10), first, "{key} at {now}");
        }
        assert_eq!(lately.0.len(), 2);
    }
}
