//! What is mapped of the program itself.

/// Gives back what is mapped of the program itself: what runs again is mapped again, from the page
/// cache, and what only the start needed is not. Called once the process has settled.
pub fn give_back() {
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
