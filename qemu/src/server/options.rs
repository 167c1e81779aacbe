//! The command line of `prism gpu-model`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::{Error, Result};

/// What the subcommand was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where to listen.
    pub socket: PathBuf,
    /// Which GPU to be, by the name of the model's profile.
    pub profile: Option<String>,
    /// Whether an unknown register or command ends the run.
    pub strictness: Strictness,
    /// Where every access is written down.
    pub trace: Option<PathBuf>,
    /// Where the counters go at the end.
    pub stats: Option<PathBuf>,
}

/// What an unknown register or command is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// Something to count.
    Lenient,
    /// The end of the process, with its name on stderr.
    Strict,
}

/// The help text, one line an option.
pub const USAGE: &str =
    "usage: prism gpu-model --socket PATH [--profile NAME] [--strict] [--trace FILE] [--stats FILE]";

impl Options {
    /// Reads the arguments that follow `gpu-model`.
    ///
    /// # Errors
    /// An option that does not exist, lacks its value, or is missing.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut parser = lexopt::Parser::from_args(args);
        let mut socket = None;
        let mut options =
            Self { socket: PathBuf::new(), profile: None, strictness: Strictness::Lenient, trace: None, stats: None };
        let wrong = |error: lexopt::Error| Error::new(format!("gpu-model: {error}; {USAGE}"));
        while let Some(arg) = parser.next().map_err(wrong)? {
            match arg {
                lexopt::Arg::Long("socket") => socket = Some(parser.value().map_err(wrong)?.into()),
                lexopt::Arg::Long("profile") => {
                    options.profile = Some(parser.value().map_err(wrong)?.to_string_lossy().into_owned());
                }
                lexopt::Arg::Long("strict") => options.strictness = Strictness::Strict,
                lexopt::Arg::Long("trace") => options.trace = Some(parser.value().map_err(wrong)?.into()),
                lexopt::Arg::Long("stats") => options.stats = Some(parser.value().map_err(wrong)?.into()),
                other => return Err(wrong(other.unexpected())),
            }
        }
        options.socket = socket.ok_or_else(|| Error::new(format!("gpu-model: --socket is missing; {USAGE}")))?;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn every_option_is_understood() {
        let options = parse(&["--socket", "a", "--profile", "kbl", "--strict", "--trace", "b", "--stats=c"]).unwrap();
        assert_eq!(options.socket, PathBuf::from("a"));
        assert_eq!(options.profile.as_deref(), Some("kbl"));
        assert_eq!(options.strictness, Strictness::Strict);
        assert_eq!((options.trace, options.stats), (Some("b".into()), Some("c".into())));
    }

    #[test]
    fn errors_are_one_line_and_name_the_option() {
        for (args, named) in [(&["--stats", "x"][..], "--socket"), (&["--sock"], "--sock"), (&["--trace"], "--trace")] {
            let text = parse(args).unwrap_err().to_string();
            assert!(text.contains(named) && !text.contains('\n'), "{text}");
        }
    }
}
