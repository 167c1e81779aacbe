//! The table at the end of a run, from the `@` lines of Prism's console.

use std::collections::BTreeMap;

use crate::console::Console;

/// The guests' names in the order in which Prism told of them.
pub fn guests(console: &Console) -> Vec<&str> {
    let mut names = Vec::new();
    for name in console.facts.iter().filter(|fact| fact.kind == "vm").map(|fact| fact.get("vm")) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Prints a column for each guest, a row for each thing that was counted.
pub fn print(console: &Console) {
    let guests = guests(console);
    if guests.is_empty() {
        return;
    }
    println!();
    print!("{}", table(console, &guests));
}

/// Groups of `@gpu` lines that are shown engine by engine, and what they are called.
const PER_ENGINE: [(&str, &str); 2] = [("submissions", "submissions"), ("engine_us", "engine time, us")];
/// Counters that are shown as one number: of a group all or the one named.
const SINGLE: [(&str, Option<&str>, &str); 11] = [
    ("switches", None, "switches to it"),
    ("preemptions", None, "preemptions"),
    ("resets", None, "engine resets"),
    ("audit", Some("bytes"), "bytes audited"),
    ("audit", Some("commands"), "commands audited"),
    ("audit", Some("refused"), "submissions refused"),
    ("flushes", None, "TLB flushes"),
    ("interrupts", Some("msi"), "GPU interrupts"),
    ("exits", None, "GPU exits"),
    ("phys", None, "physical GPU accesses"),
    ("hold", Some("longest"), "longest hold, units"),
];
/// Exit reasons shown one by one.
const TOP_REASONS: usize = 8;

fn table(console: &Console, guests: &[&str]) -> String {
    let mut rows = vec![row("", guests.iter().map(|g| (*g).to_string()))];
    let state = |guest: &&str| {
        let (state, cause) = console.state(guest).unwrap_or(("unknown", ""));
        if cause.is_empty() { state.to_string() } else { format!("{state} ({cause})") }
    };
    rows.push(row("state", guests.iter().map(state)));
    for (group, title) in PER_ENGINE {
        for engine in names(console, group) {
            let cell = |guest: &&str| count(console.count(guest, group, &engine));
            rows.push(row(&format!("{title} {engine}"), guests.iter().map(cell)));
        }
    }
    for (group, name, title) in SINGLE {
        let cell = |guest: &&str| match name {
            Some(name) => count(console.count(guest, group, name)),
            None => console.total(guest, group).to_string(),
        };
        if !names(console, group).is_empty() {
            rows.push(row(title, guests.iter().map(cell)));
        }
    }
    rows.push(row("exits", guests.iter().map(|guest| console.total(guest, "exit").to_string())));
    for reason in top(console, "exit") {
        let cell = |guest: &&str| count(console.count(guest, "exit", &reason));
        rows.push(row(&format!("  {reason}"), guests.iter().map(cell)));
    }
    rows.concat()
}

fn row(title: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!("{cell:>20}")).collect();
    format!("{title:<26}{cells}\n")
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

/// The names counted in a group, each once, in order.
fn names(console: &Console, group: &str) -> Vec<String> {
    let all: BTreeMap<&str, ()> =
        console.facts.iter().filter(|fact| fact.get("group") == group).map(|fact| (fact.get("name"), ())).collect();
    all.keys().map(|name| (*name).to_string()).collect()
}

/// The names with the highest counts over all guests.
fn top(console: &Console, group: &str) -> Vec<String> {
    let highest = |name: &String| {
        let values = guests(console).into_iter().filter_map(|guest| console.count(guest, group, name));
        std::cmp::Reverse(values.sum::<u64>())
    };
    let mut all = names(console, group);
    all.sort_by_key(highest);
    all.truncate(TOP_REASONS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_a_guest_and_a_row_a_count() {
        let log = "@vm vm=a n=1 state=running\n@vm vm=b n=2 state=running\n@stat vm=a group=exit name=io value=7\n\
            @stat vm=a group=exit name=msr value=70\n@gpu vm=b group=submissions name=rcs value=9\n@vm vm=a n=1 state=off cause=poweroff\n";
        let console = Console::parse(log);
        let text = table(&console, &guests(&console));
        let line = |start: &str| {
            text.lines()
                .find(|l| l.trim_start().starts_with(start))
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("a "), "a b");
        assert_eq!(line("state"), "state off (poweroff) running");
        assert_eq!(line("submissions"), "submissions rcs - 9");
        assert_eq!(line("exits"), "exits 77 0");
        assert!(text.find("msr") < text.find("  io"));
    }
}
