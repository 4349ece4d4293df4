//! The addresses of a control plane.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Where a control plane is reached: one address or several, the preferred one first, and which of
/// them is in use. That one stays in use until it fails. Clones share the choice.
#[derive(Clone, Debug)]
pub struct Addresses {
    all: Arc<[String]>,
    chosen: Arc<AtomicUsize>,
}

impl Addresses {
    /// `None` without an address.
    pub fn new(all: impl IntoIterator<Item = String>) -> Option<Self> {
        let all: Arc<[String]> = all.into_iter().collect();
        (!all.is_empty()).then(|| Self {
            all,
            chosen: Arc::default(),
        })
    }

    /// The address in use.
    pub fn current(&self) -> &str {
        &self.all[self.chosen.load(Relaxed)]
    }

    /// Whether there is another one.
    pub fn has_others(&self) -> bool {
        self.all.len() > 1
    }

    /// Goes on to the next one, after the last to the first, unless `failed` is in use no more:
    /// somebody else has found out before.
    pub fn give_up(&self, failed: &str) {
        let chosen = self.chosen.load(Relaxed);
        if self.all[chosen] == *failed {
            let next = (chosen + 1) % self.all.len();
            // Where another thread was faster, it has done the same.
            let _ = self.chosen.compare_exchange(chosen, next, Relaxed, Relaxed);
        }
    }

    /// The same addresses, for one who chooses for himself.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            all: self.all.clone(),
            chosen: Arc::default(),
        }
    }
}

impl From<String> for Addresses {
    fn from(only: String) -> Self {
        Self {
            all: [only].into(),
            chosen: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Addresses;

    #[test]
    fn they_are_tried_in_order_and_the_chosen_one_stays() {
        let all = Addresses::new(["a", "b", "c"].map(str::to_owned)).unwrap();
        let (other, apart) = (all.clone(), all.apart());
        assert_eq!(all.current(), "a");
        all.give_up("a");
        assert_eq!(other.current(), "b");
        // It found the same failure, later.
        other.give_up("a");
        assert_eq!(all.current(), "b");
        all.give_up("b");
        all.give_up("c");
        assert_eq!((all.current(), apart.current()), ("a", "a"));
        apart.give_up("a");
        assert_eq!((all.current(), apart.current()), ("a", "b"));
    }

    #[test]
    fn a_single_one_is_tried_again() {
        let only = Addresses::from("a".to_owned());
        only.give_up("a");
        assert_eq!(only.current(), "a");
        assert!(!only.has_others());
        assert!(Addresses::new([]).is_none());
    }
}
