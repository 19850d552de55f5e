//! What is told once.

use std::collections::{BTreeSet, VecDeque};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_first_once_and_the_oldest_are_forgotten() {
        let mut once = Once::<_, 2>::default();
        assert_eq!([1, 2, 1, 3, 2, 1].map(|key| once.first(key)), [true, true, false, true, false, true]);
        assert_eq!(once.told.len(), 2);
    }
}
