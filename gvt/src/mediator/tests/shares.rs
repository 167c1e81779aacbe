//! Who gets how much of an engine that several vGPUs keep loaded. Guests measure it: pieces of work that they have seen
//! done, times the length of a piece. Pieces cannot be preempted inside, as a long blit cannot. All times are a tenth of
//! those of a real machine.

use super::{BATCH, batch};
use crate::mediator::{Config, VgpuConfig};
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::{Engine, Gpa, Nanos};
use gvt_model::Profile;
use std::collections::VecDeque;

const ENGINE: Engine = Engine::Vecs;
const MICRO: u64 = 1_000;
/// Where in its page a batch says that it has begun.
const BEGUN: u64 = 0x800;

fn config() -> Config {
    let tenth = |time: Nanos| Nanos(time.0 / 10);
    let Config { slice, grace, tick, hang, .. } = Config::default();
    Config { slice: tenth(slice), grace: tenth(grace), tick: tenth(tick), hang: tenth(hang), ..Config::default() }
}

/// What a guest does.
#[derive(Clone, Copy)]
struct Habit {
    /// Length of its pieces, in nanoseconds of the engine.
    piece: u64,
    /// Pieces that it keeps queued.
    depth: usize,
    /// Time from the end of a piece until it queues the next.
    slow: u64,
    weight: u16,
}

impl Habit {
    const fn of(micros: u64) -> Self {
        Self { piece: micros * MICRO, depth: 3, slow: 20 * MICRO, weight: 4 }
    }

    const fn slow(self, micros: u64) -> Self {
        Self { slow: micros * MICRO, ..self }
    }

    const fn depth(self, depth: usize) -> Self {
        Self { depth, ..self }
    }

    const fn weight(self, weight: u16) -> Self {
        Self { weight, ..self }
    }
}

struct Piece {
    batch: usize,
    seqno: u32,
    begun: Option<u64>,
}

struct Guest {
    d: Driver,
    c: Context,
    habit: Habit,
    /// Pages of batches, for as many pieces as are queued at once.
    batches: Vec<Gpa>,
    free: Vec<usize>,
    queued: VecDeque<Piece>,
    /// When further pieces are to be queued.
    due: VecDeque<u64>,
    emitted: bool,
    /// Pieces done.
    done: u64,
}

impl Guest {
    fn new(m: &mut Machine, vm: u32, habit: Habit) -> Self {
        let id = m.add_vm_with(vm, VgpuConfig { weight: habit.weight, ..VgpuConfig::default() });
        let mut d = Driver::probe(m, vm, id);
        let c = d.context(m, ENGINE);
        let batches = (0..habit.depth).map(|i| batch::write_piece(&mut d, m, &c, address(i), BEGUN)).collect();
        let free = (0..habit.depth).collect();
        let due = core::iter::repeat_n(0, habit.depth).collect();
        Self { d, c, habit, batches, free, queued: VecDeque::new(), due, emitted: false, done: 0 }
    }

    fn live(&mut self, m: &mut Machine) {
        self.d.interrupts(m);
        self.advance(m);
        let now = m.now().0;
        while self.due.front().is_some_and(|due| *due <= now) {
            self.due.pop_front();
            self.queue(m);
        }
        if self.emitted && self.d.ready(ENGINE) {
            self.emitted = false;
            self.d.submit(m, &[&self.c]);
        }
    }

    /// The piece in front begins, has had its time, is done.
    fn advance(&mut self, m: &mut Machine) {
        let now = m.now().0;
        let Some(piece) = self.queued.front_mut() else { return };
        let page = self.batches[piece.batch];
        if piece.begun.is_none() && m.host.guest_read32(self.d.vm, Gpa(page.0 + BEGUN)) == piece.seqno {
            piece.begun = Some(now);
        }
        if piece.begun.is_some_and(|begun| now - begun >= self.habit.piece) {
            batch::end_piece(m, &self.d, page);
        }
        if self.d.stored(m, &self.c) >= piece.seqno {
            self.done += 1;
            self.free.push(piece.batch);
            self.queued.pop_front();
            self.due.push_back(now + self.habit.slow);
        }
    }

    fn queue(&mut self, m: &mut Machine) {
        let batch = self.free.pop().expect("a batch is free for each piece that is due");
        let seqno = self.d.emit(m, &mut self.c, &Driver::batch_start(address(batch)));
        batch::begin_piece(m, &self.d, self.batches[batch], seqno);
        self.queued.push_back(Piece { batch, seqno, begun: None });
        self.emitted = true;
    }
}

fn address(batch: usize) -> u64 {
    BATCH + 0x2000 * batch as u64
}

/// What came of it: engine time by guest in microseconds, and how long the engine stood still.
struct Done {
    work: Vec<u64>,
    idle: u64,
}

impl Done {
    /// The first guest's part in percent.
    fn percent(&self) -> Vec<u64> {
        self.work.iter().map(|work| 100 * work / self.work.iter().sum::<u64>()).collect()
    }
}

struct Party {
    m: Machine,
    guests: Vec<Guest>,
}

impl Party {
    fn new(habits: &[Habit]) -> Self {
        let mut m = Machine::with_config(Profile::kaby_lake(), config());
        let guests = (1..).zip(habits).map(|(vm, habit)| Guest::new(&mut m, vm, *habit)).collect();
        Self { m, guests }
    }

    /// How the work of these milliseconds divides. Only the first `live` guests do anything.
    fn run(&mut self, millis: u64, live: usize) -> Done {
        let before: Vec<u64> = self.guests.iter().map(|guest| guest.done).collect();
        let end = self.m.now().0 + millis * 1_000_000;
        while self.m.now().0 < end {
            self.m.step();
            self.guests.iter_mut().take(live).for_each(|guest| guest.live(&mut self.m));
        }
        assert_eq!(self.m.gvt.take_report(), None);
        let work = self.guests.iter().zip(before);
        let work: Vec<u64> = work.map(|(guest, before)| (guest.done - before) * guest.habit.piece / MICRO).collect();
        let done = Done { idle: (millis * 1_000).saturating_sub(work.iter().sum()), work };
        println!("{:?} us = {:?} %, idle {} us", done.work, done.percent(), done.idle);
        done
    }
}

fn share(habits: &[Habit]) -> Done {
    Party::new(habits).run(100, habits.len())
}

/// Issue 2, acceptance 2, is content with 40 to 60.
#[track_caller]
fn assert_even(done: &Done) {
    assert!(done.percent().iter().all(|percent| (45..=55).contains(percent)), "{:?}", done.percent());
    assert!(done.idle < 8_000, "the engine stood still for {} us of 100 ms", done.idle);
}

#[test]
fn pieces_of_unequal_length_get_equal_time() {
    assert_even(&share(&[Habit::of(2000), Habit::of(2000)]));
    assert_even(&share(&[Habit::of(1000), Habit::of(3000)]));
    assert_even(&share(&[Habit::of(500), Habit::of(5000).depth(2)]));
    assert_even(&share(&[Habit::of(1400).slow(500).depth(2), Habit::of(3300).depth(2)]));
}

/// A guest that now and then has nothing queued for an instant loses its turn to a long piece of the other's: that is made
/// up for when it has.
#[test]
fn a_guest_slow_to_queue_gets_its_time_all_the_same() {
    assert_even(&share(&[Habit::of(1000).slow(1800), Habit::of(3000)]));
    assert_even(&share(&[Habit::of(700).slow(600).depth(2), Habit::of(1400)]));
}

/// With one piece at a time a guest runs dry after each. Where it is quick to come again, the engine waits for it, as
/// long as it is owed much.
#[test]
fn a_guest_that_queues_one_piece_at_a_time_is_not_shut_out() {
    let done = share(&[Habit::of(100).depth(1), Habit::of(3300)]);
    assert!(done.percent()[0] >= 35, "{:?}", done.percent());
    // Three pieces and three pauses of 20 us and some in 1 ms, at most.
    assert!(done.idle < 18_000, "{}", done.idle);
    // Where it is not, it does not wait in vain more than once.
    let done = share(&[Habit::of(100).slow(400).depth(1), Habit::of(3300)]);
    assert!(done.idle < 3_000, "{}", done.idle);
}

#[test]
fn three_guests_get_a_third_each() {
    let done = share(&[Habit::of(700), Habit::of(1000).slow(700).depth(2), Habit::of(2500)]);
    assert!(done.percent().iter().all(|percent| (28..=38).contains(percent)), "{:?}", done.percent());
}

#[test]
fn weights_count_for_pieces_that_cannot_be_preempted_too() {
    let done = share(&[Habit::of(2200).weight(2), Habit::of(700).weight(6)]);
    assert!((21..=29).contains(&done.percent()[0]), "{:?}", done.percent());
}

/// What passes until the mediator hears that a piece has ended is nobody's time: short pieces would pay most for it.
#[test]
fn late_messages_cost_nobody_his_share() {
    let mut party = Party::new(&[Habit::of(600).depth(1), Habit::of(2400)]);
    party.m.latency = 400 * MICRO;
    let done = party.run(100, 2);
    assert!((45..=55).contains(&done.percent()[0]), "{:?}", done.percent());
}

/// Time before a guest came is not owed to it, nor is time for which it was away.
#[test]
fn who_comes_late_gets_no_more_than_his_share() {
    let mut party = Party::new(&[Habit::of(1000), Habit::of(1000)]);
    party.run(100, 1);
    assert_even(&party.run(100, 2));
    let mut one = party.guests.remove(1);
    // Its last pieces end, no others come.
    for _ in 0..10_000 {
        party.m.step();
        party.guests[0].live(&mut party.m);
        one.due.clear();
        one.live(&mut party.m);
    }
    assert!(one.queued.is_empty());
    party.run(100, 1);
    one.due = core::iter::repeat_n(0, one.habit.depth).collect();
    party.guests.push(one);
    assert_even(&party.run(100, 2));
}
