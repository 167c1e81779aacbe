//! The heap, for set-up only: its search is linear in the number of holes, so nothing on an exit path may use it.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use hv_defs::PAGE_SIZE;
use linked_list_allocator::Heap;
use spin::Mutex;

use crate::frame::{self, OwnerId, Placement};
use crate::phys;

/// Size of the heap, unless the image asks for more.
pub const HEAP_BYTES: u64 = 16 << 20;

/// The heap behind a lock. Root mode runs with interrupts disabled, so no handler can find the lock taken.
struct LockedHeap(Mutex<Heap>);

// Only the image uses it: on the host, unit tests keep the system's allocator.
#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: LockedHeap = LockedHeap(Mutex::new(Heap::empty()));

// SAFETY: 1. `Heap` gives out disjoint blocks of at least the layout's size and alignment. 2. The lock makes the calls
// exclusive. 3. Failure is a null pointer.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: 1. The caller got `block` from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(block, layout) }
        }
    }
}

/// Gives the heap its memory, whole pages; `None` when there is not enough.
pub(crate) fn init(bytes: u64) -> Option<()> {
    let first = frame::alloc_run(OwnerId::HYPERVISOR, bytes / PAGE_SIZE, 1, Placement::Low)?;
    // SAFETY: 1. The run has just been taken for the heap alone and is mapped writable. 2. `boot` calls this once.
    unsafe { HEAP.0.lock().init(phys::pointer(first.hpa()), bytes as usize) };
    Some(())
}

/// Bytes of the heap in use.
pub fn used() -> usize {
    HEAP.0.lock().used()
}
