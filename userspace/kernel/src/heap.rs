//! What the process keeps of memory that it has freed.
//!
//! Left to itself, glibc learns from large blocks that are freed to take the next ones from the heap,
//! where they leave holes: indices of a mesh are such blocks, and each change makes new ones.

mod sampled;

pub use sampled::{Held, Noting, Sampled};

/// Blocks of this size, in bytes, and larger ones go back to the system when they are freed. What a
/// tunnel has while it speaks is such a block: of one that says little, only the pages that it wrote
/// are ever there, and none of it stays in the heap between what idles.
const LARGE: libc::c_int = 256 << 10;

/// Has large blocks go back to the system when they are freed. Called once, at the start.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only changes a setting of the allocator; before there are threads, as it demands.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives memory that was freed back to the system. It takes milliseconds where the heap is large: called
/// when a large piece of work is done.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing that is in use, and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What the allocator has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Handed out, large blocks included.
    pub in_use: usize,
    /// Freed, and kept for the next to ask.
    pub free: usize,
    /// Of what is in use, blocks that are mapped one by one.
    pub mapped: usize,
}

/// What the allocator has; `None` for one that does not say.
pub fn totals() -> Option<Totals> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it only reads what the allocator counts, and takes its locks to do so.
        let info = unsafe { libc::mallinfo2() };
        Some(Totals {
            in_use: info.uordblks + info.hblkhd,
            free: info.fordblks,
            mapped: info.hblkhd,
        })
    }
    #[cfg(not(target_env = "gnu"))]
    None
}
