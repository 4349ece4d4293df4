//! What is counted of connections when they end, by the way they went: `FLOW_STATS`.

/// The way of a connection, and so the index in `FLOW_STATS`. Each connection is counted once for each
/// of its TCP connections, at the end named here.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowPath {
    /// From an application to the ztunnel, at the application's end.
    Captured = 0,
    /// A tunnel, at both ends.
    Tunnel = 1,
    /// From the ztunnel to an application of the pod, at the ztunnel's end.
    Application = 2,
    /// From the ztunnel to others without a tunnel.
    Plaintext = 3,
    /// From one pod of the node straight to another, at the client's end.
    Direct = 4,
    /// From a pod straight out of the mesh, at the client's end.
    Outside = 5,
}

/// How many ways there are.
pub const FLOW_PATHS: u32 = 6;

impl FlowPath {
    /// All of them, by their indices.
    pub const ALL: [Self; FLOW_PATHS as usize] = [
        Self::Captured,
        Self::Tunnel,
        Self::Application,
        Self::Plaintext,
        Self::Direct,
        Self::Outside,
    ];

    /// Its name, as metrics show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Tunnel => "tunnel",
            Self::Application => "application",
            Self::Plaintext => "plaintext",
            Self::Direct => "direct",
            Self::Outside => "outside",
        }
    }
}

/// How many buckets round-trip times are counted in.
pub const RTT_BUCKETS: u32 = 18;
/// The first bucket holds times below two to the power of this, in microseconds; each of the others
/// ends at twice the one before, and the last does not end.
const FIRST_BUCKET_BITS: u32 = 4;

/// The bucket of a round-trip time in microseconds.
#[inline(always)]
pub const fn rtt_bucket(micros: u32) -> u32 {
    let bits = u32::BITS - micros.leading_zeros();
    let bucket = bits.saturating_sub(FIRST_BUCKET_BITS);
    if bucket < RTT_BUCKETS {
        bucket
    } else {
        RTT_BUCKETS - 1
    }
}

/// `FLOW_STATS`: what one processor has counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    pub connections: u64,
    /// Bytes that the peer acknowledged.
    pub sent: u64,
    pub received: u64,
    pub retransmits: u64,
    /// Of the smoothed round-trip times, in microseconds.
    pub rtt_sum: u64,
    /// By [`rtt_bucket`].
    pub rtt: [u64; RTT_BUCKETS as usize],
}

const _: () = assert!(size_of::<FlowStats>() == 8 * 23);

// SAFETY: `repr(C)`, only integers, no implicit padding, and every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FlowStats {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_end_at_powers_of_two() {
        assert_eq!([0, 1, 15].map(rtt_bucket), [0, 0, 0]);
        assert_eq!([16, 31, 32].map(rtt_bucket), [1, 1, 2]);
        assert_eq!(rtt_bucket(1_000_000), 16);
        assert_eq!([1 << 20, u32::MAX].map(rtt_bucket), [17, 17]);
        for (index, path) in FlowPath::ALL.into_iter().enumerate() {
            assert_eq!(path as usize, index);
        }
    }
}
