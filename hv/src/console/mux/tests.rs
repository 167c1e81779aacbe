//! Guests and keys against a terminal that keeps what it is shown.

use super::*;

const ROOM: usize = 64 * 1024;

struct Rig {
    mux: Mux,
    shown: Vec<u8>,
    events: Vec<Event>,
}

impl Rig {
    fn new() -> Self {
        let mut mux = Mux::new();
        mux.add(1, "alpha");
        mux.add(2, "beta");
        Self { mux, shown: Vec::new(), events: Vec::new() }
    }

    fn guest(&mut self, vm: u8, text: &[u8]) {
        for &byte in text {
            self.mux.guest_byte(vm, byte, Nanos(5), ROOM, &mut |bytes| self.shown.extend(bytes));
        }
    }

    fn keys(&mut self, text: &[u8]) {
        for &byte in text {
            let event = self.mux.input(byte, &mut |bytes| self.shown.extend(bytes));
            self.events.extend(event);
            self.mux.prompt(&mut |bytes| self.shown.extend(bytes));
        }
    }

    fn shown(&mut self) -> String {
        String::from_utf8(core::mem::take(&mut self.shown)).unwrap()
    }
}

#[test]
fn whole_lines_carry_the_guests_name() {
    let mut rig = Rig::new();
    rig.guest(1, b"he");
    rig.guest(2, b"other\r\n");
    rig.guest(1, b"llo\r\n");
    assert_eq!(rig.shown(), "[beta] other\r\n[alpha] hello\r\n");
    rig.guest(3, b"nobody\n");
    assert_eq!(rig.shown(), "");
}

#[test]
fn control_sequences_cannot_move_the_cursor() {
    let mut rig = Rig::new();
    rig.guest(1, b"a\x1b[2J\x1b[31mb\x07\x1bMc\n");
    assert_eq!(rig.shown(), "[alpha] abc\r\n");
}

#[test]
fn long_and_late_lines_are_shown_in_parts() {
    let mut rig = Rig::new();
    rig.guest(1, &[b'x'; 300]);
    assert_eq!(rig.shown(), format!("[alpha] {}\r\n", "x".repeat(256)));
    assert_eq!(rig.mux.deadline(), Some(Nanos(5 + LINE_NANOS)));
    rig.mux.tick(Nanos(5 + LINE_NANOS), ROOM, &mut |bytes| rig.shown.extend(bytes));
    assert_eq!(rig.shown(), format!("[alpha] {}\r\n", "x".repeat(44)));
    assert_eq!(rig.mux.deadline(), None);
}

#[test]
fn focus_shows_one_guest_raw_and_sends_it_the_keys() {
    let mut rig = Rig::new();
    rig.guest(2, b"login: ");
    rig.keys(b"\x1d2");
    assert_eq!(rig.shown(), "-- beta --\r\nlogin: ");
    rig.guest(1, b"unseen\n");
    rig.guest(2, b"\x1b[1m");
    rig.keys(b"r\x1d\x1d");
    assert_eq!(rig.shown(), "\x1b[1m");
    assert_eq!(rig.events, [Event::Input { vm: 2, byte: b'r' }, Event::Input { vm: 2, byte: ESCAPE }]);
    rig.keys(b"\x1d7");
    assert_eq!(rig.shown(), "\r\n-- no such guest --\r\n");
    rig.keys(b"\x1d1");
    assert_eq!(rig.shown(), "-- alpha --\r\nunseen\n");
}

#[test]
fn the_monitor_reads_commands() {
    let mut rig = Rig::new();
    rig.keys(b"\x1dm");
    rig.keys(b"vmsx\x7f\rkill 2\rreset\rreset 300\rstats\rhelp\r");
    let commands = [Command::Vms, Command::Kill(2), Command::Stats, Command::Help];
    assert_eq!(rig.events, commands.map(Event::Command));
    let shown = rig.shown();
    assert_eq!(shown.matches("unknown; try help").count(), 2);
    assert!(shown.ends_with("prism> "));
    rig.guest(1, b"unseen\n");
    rig.keys(b"\r");
    assert_eq!(rig.shown(), "\r\n-- back --\r\n");
    rig.keys(b"k");
    assert_eq!(rig.events.last(), Some(&Event::Input { vm: 1, byte: b'k' }));
}

/// Whatever one guest prints, the other has its half, and what is lost is told for each.
#[test]
fn guests_have_equal_shares() {
    let mut rig = Rig::new();
    let line = b"0123456789012345678901234\n";
    for _ in 0..3000 {
        rig.guest(1, line);
    }
    let flood = rig.shown();
    assert!(flood.len() <= ROOM / 2 && flood.len() > ROOM / 2 / 8 * 7, "{}", flood.len());
    assert!(flood.lines().all(|line| line == "[alpha] 0123456789012345678901234"), "whole lines");
    rig.guest(2, b"heard\n");
    assert_eq!(rig.shown(), "[beta] heard\r\n");
    rig.keys(b"\x1d1");
    rig.shown();
    rig.guest(1, b"raw, not even a line, of which a few bytes may still fit");
    assert!(rig.shown().len() < 40);
    let told = rig.mux.take_lost().unwrap();
    assert_eq!(told.0.as_str(), "alpha");
    assert!(told.1 > 3000 * 37 - ROOM as u64 / 2, "{}", told.1);
    assert!(rig.mux.take_lost().is_none() && !rig.mux.has_lost());
    rig.mux.drained();
    rig.guest(1, b"again");
    assert_eq!(rig.shown(), "again");
}

#[test]
fn no_input_outgrows_a_buffer() {
    let mut rig = Rig::new();
    rig.keys(b"\x1dm");
    rig.keys(&[b'a'; 200]);
    rig.guest(1, &[b'y'; 3 * HISTORY]);
    rig.keys(b"\r\r");
    rig.keys(b"\x1d1");
    assert!(rig.shown().len() < 2 * HISTORY);
    for vm in 0..=255 {
        rig.mux.add(vm, "a name that is a good deal longer than its place");
    }
    assert_eq!(rig.mux.channels.len(), MOST_GUESTS);
}
