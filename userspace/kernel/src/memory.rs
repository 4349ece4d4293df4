//! What the process keeps of memory that it has freed, or needs no more.
//!
//! Left to itself, glibc learns from large blocks that are freed to take the next ones from the heap,
//! where they leave holes: indices of a mesh are such blocks, and each change makes new ones.

/// Blocks of this size, in bytes, and larger ones go back to the system when they are freed.
const LARGE: libc::c_int = 1 << 20;

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

/// Gives back what is mapped of the program itself: what runs again is mapped again, from the page
/// cache, and what only the start needed is not. Called once the process has settled.
pub fn give_back_program() {
    /// Called for the program first, and then for its libraries.
    unsafe extern "C" fn object(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        _: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: valid during the call, as the linker promises, with so many headers.
        let (base, headers) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (info.dlpi_addr, headers)
        };
        for header in headers {
            // What can be written holds what cannot be read from the file again.
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let page = 4096 - 1;
            let start = base + header.p_vaddr;
            let inner = (start + page) & !page..(start + header.p_memsz) & !page;
            if !inner.is_empty() {
                let length = (inner.end - inner.start) as usize;
                // SAFETY: a private mapping of a file that was never written, so that its pages are the
                // file's, before and after.
                unsafe { libc::madvise(inner.start as *mut _, length, libc::MADV_DONTNEED) };
            }
        }
        0
    }
    // SAFETY: the callback keeps nothing, and does not panic.
    unsafe { libc::dl_iterate_phdr(Some(object), std::ptr::null_mut()) };
}
