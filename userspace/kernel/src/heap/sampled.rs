//! An allocator that notes, while somebody wants to know it, who asks for memory.
//!
//! Of what each thread asks for, one allocation in so many bytes is noted with its stack, until it is
//! freed. What was asked for before is not seen. While nobody wants to know, an allocation costs one
//! relaxed load more.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
};

/// One allocation is noted in so many bytes, for each thread.
const EVERY: usize = 32 << 10;
/// How deep stacks are looked at.
const DEPTH: usize = 48;
/// How many kinds of addresses are told apart before the table of those that are noted is asked.
const KINDS: usize = 1 << 14;

/// The system's allocator. To be a program's `#[global_allocator]`.
#[derive(Debug)]
pub struct Sampled;

/// Memory that was asked for while it was noted, and is still held.
#[derive(Clone, Debug)]
pub struct Held {
    /// Bytes, of all the allocations that this one stands for.
    pub bytes: usize,
    /// How many these are.
    pub count: usize,
    /// Addresses of the program, the innermost first.
    pub stack: Vec<usize>,
}

struct Noted {
    size: usize,
    depth: usize,
    stack: [usize; DEPTH],
}

type Table = HashMap<usize, Noted, BuildHasherDefault<DefaultHasher>>;

static NOTING: AtomicBool = AtomicBool::new(false);
static NOTED: Mutex<Option<Table>> = Mutex::new(None);
/// How many of the noted addresses are of each kind, so that hardly any other is looked for.
static OF_KIND: [AtomicU16; KINDS] = [const { AtomicU16::new(0) }; KINDS];

thread_local! {
    /// What may still be asked for until the next is noted.
    static LEFT: Cell<usize> = const { Cell::new(EVERY) };
    /// Something is being noted, which needs memory itself.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Notes who asks for memory, as long as this lives.
#[derive(Debug)]
pub struct Noting(());

impl Noting {
    /// Begins; `None` when it has begun already.
    pub fn begin() -> Option<Self> {
        let mut table = noted();
        if table.is_some() {
            return None;
        }
        *table = Some(Table::default());
        NOTING.store(true, Relaxed);
        Some(Self(()))
    }

    /// What is held of what was asked for since the beginning.
    pub fn held(&self) -> Vec<Held> {
        apart(|| {
            let table = noted();
            let all = table.iter().flat_map(HashMap::values);
            all.map(|noted| {
                let count = (EVERY / noted.size.max(1)).max(1);
                Held {
                    bytes: count * noted.size,
                    count,
                    stack: noted.stack[..noted.depth].to_vec(),
                }
            })
            .collect()
        })
        .unwrap_or_default()
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        NOTING.store(false, Relaxed);
        apart(|| *noted() = None);
        for kind in &OF_KIND {
            kind.store(0, Relaxed);
        }
    }
}

fn noted() -> MutexGuard<'static, Option<Table>> {
    NOTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something for which memory is asked without noting that; `None` within such a thing, and on a
/// thread that is about to end.
fn apart<T>(work: impl FnOnce() -> T) -> Option<T> {
    let within = WITHIN.try_with(|within| within.replace(true));
    if within != Ok(false) {
        return None;
    }
    let done = work();
    let _ = WITHIN.try_with(|within| within.set(false));
    Some(done)
}

fn kind(address: usize) -> &'static AtomicU16 {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(address);
    &OF_KIND[hash as usize % KINDS]
}

#[cold]
fn note(address: usize, size: usize) {
    let due = LEFT.try_with(|left| match left.get().checked_sub(size) {
        Some(rest) if rest > 0 => {
            left.set(rest);
            false
        }
        _ => {
            left.set(EVERY);
            true
        }
    });
    if address == 0 || due != Ok(true) {
        return;
    }
    apart(|| {
        let mut entry = Noted {
            size,
            depth: 0,
            stack: [0; DEPTH],
        };
        backtrace::trace(|frame| {
            entry.stack[entry.depth] = frame.ip() as usize;
            entry.depth += 1;
            entry.depth < DEPTH
        });
        if let Some(table) = &mut *noted() {
            table.insert(address, entry);
            kind(address).fetch_add(1, Relaxed);
        }
    });
}

#[cold]
fn forget(address: usize) {
    let kind = kind(address);
    if kind.load(Relaxed) == 0 {
        return;
    }
    // What is freed within was asked for within, and so is not noted.
    apart(|| {
        if let Some(table) = &mut *noted()
            && table.remove(&address).is_some()
        {
            kind.fetch_sub(1, Relaxed);
        }
    });
}

// SAFETY: the system's allocator does the work, with the very arguments that are given; what is done beside
// it does not touch the memory, does not unwind, and asks for memory only where it is not noted.
unsafe impl GlobalAlloc for Sampled {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let memory = unsafe { System.alloc(layout) };
        if NOTING.load(Relaxed) {
            note(memory as usize, layout.size());
        }
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if NOTING.load(Relaxed) {
            note(memory as usize, layout.size());
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if NOTING.load(Relaxed) {
            forget(memory as usize);
        }
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let noting = NOTING.load(Relaxed);
        if noting {
            forget(memory as usize);
        }
        // SAFETY: as the caller promises.
        let moved = unsafe { System.realloc(memory, layout, size) };
        if noting {
            note(moved as usize, size);
        }
        moved
    }
}
