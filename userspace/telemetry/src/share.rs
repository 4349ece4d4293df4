//! Samples.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The whole of which shares are parts.
const WHOLE: u64 = 1 << 32;

/// Takes a share of what passes, evenly spread: of a tenth, every tenth.
#[derive(Debug)]
pub(crate) struct Share {
    /// So many out of [`WHOLE`].
    share: u64,
    /// What those before have left for the next one, modulo [`WHOLE`].
    due: AtomicU64,
}

impl Share {
    /// A share from 0 to 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "at most 2^32"
    )]
    pub(crate) fn new(share: f64) -> Self {
        Self {
            share: (share.clamp(0.0, 1.0) * WHOLE as f64) as u64,
            due: AtomicU64::new(0),
        }
    }

    /// Whether the next one is taken.
    pub(crate) fn takes(&self) -> bool {
        if self.share == WHOLE {
            return true;
        }
        let before = self.due.fetch_add(self.share, Relaxed) % WHOLE;
        before + self.share >= WHOLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_evenly_spread() {
        let taken = |share: f64| -> Vec<usize> {
            let share = Share::new(share);
            (0..20).filter(|_| share.takes()).collect()
        };
        assert!(taken(0.0).is_empty());
        assert_eq!(taken(0.25), [3, 7, 11, 15, 19]);
        assert_eq!(taken(1.0).len(), 20);
        assert_eq!(taken(7.0).len(), 20);
    }
}
