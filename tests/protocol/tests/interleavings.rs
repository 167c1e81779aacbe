//! See `protocol`. Each of these was seen to fail when the protocol was broken:
//!
//! | what was broken | what loom found |
//! |---|---|
//! | no fence after the mode is published, or before a poster looks at it; `news` asked before it is published | sleep with work unseen |
//! | `is_wanted` left out before sleep; `attend` by a store, or relaxed | sleep with work unseen |
//! | no fence between the new generation and the look at the modes; no wait; no interrupt | a guest reads the page with its new owner, or runs on |
//! | the mailbox marked before the vector is in it; never a kick; vectors taken before the mark | a vector without a mark |
//! | no count of returns; CPUs in root mode asked to leave and waited for | a flush that waits for ever |
//! | the console watched before its deadline is known; watched without one | sleep with output unseen |
//! | mailboxes emptied by each virtual CPU as it begins; `parked` or `request` without a nudge | sleep for ever |
//! | the deadline published outside the lock | the later one stays |
//!
//! Three second looks can be left out without loss, since the nudge comes after what they look for: those of
//! `Vcpu::must_look_again` at the mailbox and at requests, and that of `irq::wait`.

use protocol::models::{self, Sleeper};

#[test]
fn a_halted_cpu_sees_what_two_others_post() {
    models::posters_and_a_sleeper(Sleeper::Halts);
}

#[test]
fn a_guest_is_left_for_what_two_others_post() {
    models::posters_and_a_sleeper(Sleeper::Computes);
}

#[test]
fn a_second_post_is_not_lost_behind_the_first() {
    models::a_poster_posts_twice();
}

#[test]
fn a_mailbox_loses_nothing() {
    models::two_posters_and_the_owner();
}

#[test]
fn no_guest_runs_on_with_old_translations() {
    models::a_flush_and_a_guest(true);
    models::a_flush_and_a_guest(false);
}

#[test]
fn flushes_do_not_wait_for_each_other() {
    models::two_flushes([1, 1]);
    models::two_flushes([1, 2]);
    models::a_flush_against_a_flush();
    models::a_flush_and_a_guest_that_comes_back();
}

#[test]
fn a_new_life_starts_its_second_cpu() {
    models::a_new_life_starts_its_second_cpu();
}

#[test]
fn requests_are_carried_out() {
    models::requests_are_carried_out();
}

#[test]
fn console_output_is_announced() {
    models::writers_and_the_console();
}

#[test]
fn the_nearest_deadline_is_waited_for() {
    models::deadlines_and_their_home();
}
