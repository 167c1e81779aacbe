//! What Prism's console says: lines of its own, lines of its guests, and `@` lines for programs.

use std::collections::BTreeMap;

/// A console log, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Console {
    /// Prism's own lines, `prism: ` stripped.
    pub prism: Vec<String>,
    /// Each guest's lines, by its name, `[name] ` stripped.
    pub guests: BTreeMap<String, Vec<String>>,
    /// Lines that begin with `@`.
    pub facts: Vec<Fact>,
}

/// `@kind key=value key=value ...`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fact {
    /// The word after `@`.
    pub kind: String,
    /// The rest.
    pub fields: BTreeMap<String, String>,
}

impl Fact {
    /// A line that begins with `@`, taken apart.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix('@')?.split_whitespace();
        let kind = words.next()?.to_string();
        let fields = words.filter_map(|w| w.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
        Some(Self { kind, fields })
    }

    /// A field's text, empty if it is missing.
    pub fn get(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }
}

impl Console {
    /// Takes a log apart.
    pub fn parse(log: &str) -> Self {
        let mut console = Self::default();
        for line in log.lines().map(|line| line.trim_end_matches('\r')) {
            let own = line.strip_prefix("prism: ");
            if let Some(fact) = Fact::parse(own.unwrap_or(line)) {
                console.facts.push(fact);
            } else if let Some(text) = own {
                console.prism.push(text.into());
            } else if let Some((name, text)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
                console.guests.entry(name.into()).or_default().push(text.into());
            }
        }
        console
    }

    /// A guest's lines.
    pub fn guest(&self, name: &str) -> &[String] {
        self.guests.get(name).map_or(&[], Vec::as_slice)
    }

    /// The last value of a counter: of a `@stat` or `@gpu` line.
    pub fn count(&self, vm: &str, group: &str, name: &str) -> Option<u64> {
        let same = |fact: &&Fact| fact.get("vm") == vm && fact.get("group") == group && fact.get("name") == name;
        self.facts.iter().rev().find(same)?.get("value").parse().ok()
    }

    /// The sum of the last values of all counters of a group.
    pub fn total(&self, vm: &str, group: &str) -> u64 {
        let of_group = self.facts.iter().filter(|fact| fact.get("vm") == vm && fact.get("group") == group);
        let last: BTreeMap<&str, u64> =
            of_group.map(|fact| (fact.get("name"), fact.get("value").parse().unwrap_or(0))).collect();
        last.values().sum()
    }

    /// The last state that was told of a VM, and its cause.
    pub fn state(&self, vm: &str) -> Option<(&str, &str)> {
        let told = self.facts.iter().rev().find(|fact| fact.kind == "vm" && fact.get("vm") == vm)?;
        Some((told.get("state"), told.get("cause")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_log_apart() {
        let log = "prism: hello\r\n[a] [    0.1] Linux\r\n@vm vm=a n=1 state=running\n@stat vm=a group=exit name=cpuid value=3\n\
            @stat vm=a group=exit name=cpuid value=5\n@stat vm=a group=exit name=msr value=2\n[b] x\n@vm vm=a n=1 state=off cause=poweroff\n";
        let console = Console::parse(log);
        assert_eq!(console.prism, ["hello"]);
        assert_eq!(console.guest("a"), ["[    0.1] Linux"]);
        assert_eq!(console.guest("c").len(), 0);
        assert_eq!(console.count("a", "exit", "cpuid"), Some(5));
        assert_eq!(console.total("a", "exit"), 7);
        assert_eq!(console.state("a"), Some(("off", "poweroff")));
    }
}
