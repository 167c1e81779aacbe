//! `prism gpu-model`: the software Gen9 as a vfio-user device, one process for each emulator.
//!
//! The process listens, takes one client, and ends when that client goes. SIGTERM and SIGINT end it as well;
//! SIGUSR1 makes it write the counters and go on, SIGUSR2 say on stderr where it is.

pub mod dma;
pub mod irqs;
pub mod link;
pub mod memory;
pub mod options;
pub mod session;
pub mod stats;
pub mod trace;
pub mod wire;

mod gpu;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::error::{Context, Result};
use crate::{Error, error};
use link::Link;
use options::Options;
use session::{Device, Pause, Session};
use trace::Trace;

/// How long to wait for the emulator to connect: one that failed to start never will.
const CONNECT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Runs `prism gpu-model` with the arguments that follow the subcommand.
///
/// # Errors
/// One line: an option, a file, or the connection.
pub fn main(args: impl Iterator<Item = OsString>) -> Result<()> {
    let options = Options::parse(args)?;
    let device = gpu::Gpu::new(&options)?;
    let trace = match &options.trace {
        Some(path) => Trace::to(File::create(path).context(|| format!("cannot create {}", path.display()))?),
        None => Trace::default(),
    };
    let signals = Signals::install().context(|| "cannot install signal handlers".into())?;
    let Some(client) = connect(&options.socket, &signals)? else {
        return Ok(());
    };
    let mut session = Session::new(device, Link::new(client), trace);
    let served = serve(&mut session, &signals, options.stats.as_deref());
    session.bus.trace.flush();
    write_stats(&mut session, options.stats.as_deref())?;
    served.and_then(|()| session.device.verdict())
}

/// Serves until the client goes or a signal ends the process.
fn serve(session: &mut Session<impl Device>, signals: &Signals, stats: Option<&Path>) -> Result<()> {
    loop {
        let pause = session.run(signals.wake.as_fd()).context(|| "gpu-model: the connection to the emulator".into())?;
        if pause == Pause::Closed || signals.end.load(Ordering::Relaxed) {
            return Ok(());
        }
        signals.drain();
        if signals.describe.swap(false, Ordering::Relaxed) {
            eprintln!("{}", session.describe());
        }
        write_stats(session, stats)?;
    }
}

fn write_stats(session: &mut Session<impl Device>, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    // A reader of the file never sees half of it.
    let new = path.with_extension("new");
    error::write(&new, session.report().to_string())?;
    std::fs::rename(&new, path).context(|| format!("cannot write {}", path.display()))
}

/// Listens at `path` and takes the one client; `None` when a signal came first.
fn connect(path: &Path, signals: &Signals) -> Result<Option<UnixStream>> {
    // A socket that a killed process left behind would be in the way.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).context(|| format!("cannot listen at {}", path.display()))?;
    let mut fds = [
        PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(signals.wake.as_fd(), PollFlags::IN),
    ];
    let ready = poll(&mut fds, Some(&CONNECT)).context(|| "cannot wait for the emulator".into())?;
    let client = match fds.map(|fd| !fd.revents().is_empty()) {
        [true, _] => Some(listener.accept().context(|| "cannot accept the emulator's connection".into())?.0),
        _ if ready == 0 => {
            let text = format!("no emulator connected to {} within {} s", path.display(), CONNECT.tv_sec);
            return Err(Error::new(text));
        }
        _ => None,
    };
    let _ = std::fs::remove_file(path);
    Ok(client)
}

/// The signals that this process listens to, as a descriptor and flags.
struct Signals {
    wake: UnixStream,
    end: Arc<AtomicBool>,
    describe: Arc<AtomicBool>,
}

impl Signals {
    fn install() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let (end, describe) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        // The flags first: who is woken by the descriptor then finds them set.
        for (signal, flag) in [(SIGTERM, &end), (SIGINT, &end), (SIGUSR2, &describe)] {
            signal_hook::flag::register(signal, Arc::clone(flag))?;
        }
        for signal in [SIGTERM, SIGINT, SIGUSR1, SIGUSR2] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self { wake, end, describe })
    }

    fn drain(&self) {
        let mut sink = [0; 64];
        while matches!(rustix::io::read(&self.wake, &mut sink), Ok(1..)) {}
    }
}

#[cfg(test)]
mod process_tests;
