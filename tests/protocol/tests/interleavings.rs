//! See `protocol`.

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
