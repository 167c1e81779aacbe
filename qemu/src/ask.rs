//! Asking a program something: it gets some input, and a limited time to answer.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// What a program answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its standard output.
    pub text: String,
    /// Its standard error.
    pub complaint: String,
}

/// Runs `command` with `input`; one that takes longer than `limit` is killed and an error.
pub fn ask(command: &mut Command, input: &str, limit: Duration) -> Result<Answer> {
    let name = command.get_program().to_string_lossy().into_owned();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.context(|| format!("cannot run {name}"))?;
    let pipes = (child.stdout.take().map(collect), child.stderr.take().map(collect));
    // One that does not listen is no error: its answer tells.
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    if !ends(&mut child, limit) {
        let _ = (child.kill(), child.wait());
        return Err(Error::new(format!("{name} does not answer within {} s", limit.as_secs())));
    }
    let text = |reader: Option<thread::JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    Ok(Answer { text: text(pipes.0), complaint: text(pipes.1) })
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn ends(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Answer> {
        ask(Command::new("/bin/sh").args(["-c", script]), "a word\n", limit)
    }

    #[test]
    fn both_streams_are_kept_and_silence_has_an_end() {
        let answer = shell("read x; echo \"$x\"; echo no >&2; exit 3", Duration::from_secs(60)).unwrap();
        assert_eq!((answer.text.as_str(), answer.complaint.as_str()), ("a word\n", "no\n"));
        let late = shell("exec sleep 60", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(late.contains("does not answer"), "{late}");
        assert!(ask(&mut Command::new("/nowhere/x"), "", Duration::from_secs(1)).is_err());
    }
}
