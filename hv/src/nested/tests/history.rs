//! Style practice 22, for both formats: whatever moment a CPU walks the tables during a change, each address has its old
//! mapping or its new one.

use core::cell::RefCell;

use hv_defs::paging::{Ept, FormatBits, Npt};

use super::*;

/// What an address is mapped to.
type State = Option<(u64, Access)>;

struct Watch {
    root: Frame,
    /// One byte of each page that the changes touch, and of neighbours.
    probes: Vec<u64>,
    walk: fn(Frame, u64) -> State,
    states: Vec<Vec<State>>,
}

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// A format that looks at all probes before each store: the tables are then as the store before left them.
struct Watched<F>(PhantomData<F>);

impl<F: EntryFormat> EntryFormat for Watched<F> {
    const BITS: FormatBits = F::BITS;
    fn encode(level: Level, entry: Entry) -> u64 {
        look();
        F::encode(level, entry)
    }
}

fn look() {
    WATCH.with_borrow_mut(|watch| {
        if let Some(Watch { root, probes, walk, states }) = watch {
            states.push(probes.iter().map(|gpa| walk(*root, *gpa)).collect());
        }
    });
}

/// The walk of a CPU: nothing but memory and the format.
fn walk<F: EntryFormat>(root: Frame, gpa: u64) -> State {
    let (mut table, mut level) = (root, Level::L4);
    loop {
        let raw = window(table).read_u64(level.index(gpa) as u64 * 8).unwrap();
        match F::decode(level, raw) {
            Entry::Empty => return None,
            Entry::Table(below) => (table, level) = (below.frame(), level.below().unwrap()),
            Entry::Leaf { hpa, access, .. } => return Some((hpa.0 + (gpa & (level.bytes() - 1)), access)),
        }
    }
}

/// Makes one change and checks every state on the way; gives how many there were.
fn follow<F: EntryFormat + 'static>(
    nested: &mut Nested<Watched<F>>,
    change: impl FnOnce(&mut Nested<Watched<F>>),
) -> usize {
    let pages = [0, 1, 5, 6, 511, 512, 513, 1024, 262_143, 262_144, 262_149, 524_288];
    let probes: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE + 0x123).collect();
    WATCH.set(Some(Watch { root: nested.root, probes, walk: walk::<F>, states: Vec::new() }));
    look();
    change(nested);
    look();
    let Watch { probes, states, .. } = WATCH.take().unwrap();
    let (old, new) = (states.first().unwrap(), states.last().unwrap());
    for (moment, state) in states.iter().enumerate() {
        for (n, probe) in probes.iter().enumerate() {
            let seen = state[n];
            assert!(
                seen == old[n] || seen == new[n],
                "{probe:#x} at store {moment}: {seen:?}, {:?}, {:?}",
                old[n],
                new[n]
            );
        }
    }
    states.len()
}

fn every_state_is_old_or_new<F: EntryFormat + 'static>() {
    fake::install(4 * MIB);
    let mut nested = Nested::<Watched<F>>::new(Pool::new(OwnerId(1), 64).unwrap(), Level::L3).unwrap();
    let map =
        |gpa, bytes, hpa| move |nested: &mut Nested<Watched<F>>| nested.map(Gpa(gpa), bytes, Hpa(hpa), RW, WB).unwrap();
    let protect =
        |gpa, bytes, access| move |nested: &mut Nested<Watched<F>>| nested.protect(Gpa(gpa), bytes, access).unwrap();
    let unmap = |gpa, bytes| move |nested: &mut Nested<Watched<F>>| nested.unmap(Gpa(gpa), bytes).unwrap();
    follow(&mut nested, map(0, 2 * GIB, 4 * GIB));
    let split = follow(&mut nested, protect(0x5000, PAGE_SIZE, Access::Read));
    assert!(split > 1024, "a 1 GiB page came apart into 2 MiB and 4 KiB pages: {split} states");
    follow(&mut nested, protect(0x5000, PAGE_SIZE, RW));
    follow(&mut nested, protect(0, GIB, Access::Read));
    follow(&mut nested, map(0x6000, PAGE_SIZE, 0x7000));
    follow(&mut nested, unmap(0x20_0000, 2 * MIB));
    follow(&mut nested, unmap(GIB, PAGE_SIZE));
    follow(&mut nested, map(0x20_1000, 0x3000, 0x40_0000));
    follow(&mut nested, unmap(0x20_1000, 0x3000));
    follow(&mut nested, map(0, GIB, 8 * GIB));
    assert_eq!(at_any(&nested, 0x5123), Some(8 * GIB + 0x5123));
}

fn at_any<F: EntryFormat + 'static>(nested: &Nested<F>, gpa: u64) -> Option<u64> {
    nested.lookup(Gpa(gpa)).map(|mapped| mapped.hpa.0)
}

#[test]
fn on_amd_tables() {
    every_state_is_old_or_new::<Npt>();
}

#[test]
fn on_intel_tables() {
    every_state_is_old_or_new::<Ept>();
}
