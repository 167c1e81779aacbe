//! A machine in Bochs: its configuration, its command, and what its end means.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::process::End;
use super::{Machine, command};
use crate::error::{Context, Error, Result, write};
use crate::provision::{Bochs, Grub};

const CONFIG: &str = "bochsrc";
/// Debian's Bochs starts at the prompt of its debugger.
const DEBUGGER: &str = "debugger.rc";
const LOG: &str = "bochs.log";
/// What a disk must be a multiple of for Bochs to find out its shape.
const CYLINDER: usize = 16 * 63 * 512;
/// Prism's last line names its verdict, since Bochs always ends with the same status.
const VERDICT: &str = "@exit value=";
/// Bochs does not end by a triple fault of what it runs, but says so.
const TRIPLE_FAULT: &str = "exception(): 3rd (";

/// How long it may take from its start to its connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// What must stay while it runs, and where its serial line comes in.
#[derive(Debug)]
pub struct Wires {
    /// Its screen.
    pub screen: Terminal,
    serial: TcpListener,
}

impl Wires {
    fn new() -> Result<Self> {
        let serial =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "cannot listen for a serial line".into())?;
        serial.set_nonblocking(true).context(|| "cannot listen for a serial line".into())?;
        Ok(Self { screen: Terminal::open()?, serial })
    }

    /// Waits for the serial line of the process, which has been started.
    pub fn connect(&self, bochs: &mut Child, dir: &Path) -> Result<TcpStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok((line, _)) = self.serial.accept() {
                line.set_nonblocking(false).context(|| "cannot use the serial line".into())?;
                let said = dir.join(command::EMULATOR_LOG);
                std::thread::spawn(move || drain_screen(&said));
                return Ok(line);
            }
            if !matches!(bochs.try_wait(), Ok(None)) || Instant::now() > deadline {
                let _ = (bochs.kill(), bochs.wait());
                return Err(Error::new(format!("Bochs did not start; see {}", dir.join(LOG).display())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Writes what Bochs needs into the run's folder, and gives the command. COM1 is a connection to us; its screen is a
/// terminal of its own.
pub fn prepare(machine: &Machine, dir: &Path) -> Result<(Command, Wires)> {
    let bochs = Bochs::get()?;
    let wires = Wires::new()?;
    let serial = wires.serial.local_addr().context(|| "cannot listen for a serial line".into())?;
    write_disks(machine, dir)?;
    write(&dir.join(CONFIG), config(machine, &bochs, serial))?;
    write(&dir.join(DEBUGGER), &machine.debugger)?;
    let emulator = bochs.command()?;
    let mut tied = command::tied(Path::new(emulator.get_program()));
    tied.args(emulator.get_args()).args(["-q", "-f", CONFIG, "-rc", DEBUGGER]).current_dir(dir).env("TERM", "xterm");
    for (name, value) in emulator.get_envs() {
        value.map(|value| tied.env(name, value));
    }
    tied.stdin(wires.screen.end()?).stdout(wires.screen.end()?);
    Ok((tied, wires))
}

/// With a debugger in it, Bochs draws its screen on a second terminal, whose name it says, and waits for good once some
/// 20 KB of that have not been read.
fn drain_screen(said: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let text = fs::read_to_string(said).unwrap_or_default();
        if let Some(name) = screen_name(&text) {
            let screen = rustix::fs::open(name, OFlags::RDONLY | OFlags::NOCTTY, Mode::empty());
            // Until Bochs ends.
            let _ = screen.map(|screen| std::io::copy(&mut fs::File::from(screen), &mut std::io::sink()));
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn screen_name(said: &str) -> Option<&str> {
    said.split_once("connected to screen \"")?.1.split_once('"').map(|(name, _)| name)
}

/// The pair of a terminal that nobody looks at.
#[derive(Debug)]
pub struct Terminal {
    _controller: fs::File,
    name: String,
}

impl Terminal {
    fn open() -> Result<Self> {
        let open = || -> rustix::io::Result<_> {
            let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
            grantpt(&controller)?;
            unlockpt(&controller)?;
            let name = ptsname(&controller, Vec::new())?;
            Ok((controller, name.to_string_lossy().into_owned()))
        };
        let (controller, name) = open().map_err(|error| Error::new(format!("cannot open a terminal: {error}")))?;
        let controller = fs::File::from(controller);
        // Its output is read away, or Bochs would wait for somebody to.
        let mut sink = controller.try_clone().context(|| "cannot open a terminal".into())?;
        std::thread::spawn(move || std::io::copy(&mut sink, &mut std::io::sink()));
        Ok(Self { _controller: controller, name })
    }

    fn end(&self) -> Result<Stdio> {
        let file = rustix::fs::open(&self.name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let file = file.map_err(|error| Error::new(format!("cannot open {}: {error}", self.name)))?;
        Ok(Stdio::from(fs::File::from(file)))
    }
}

/// GRUB on the first disk starts what lies on the second.
fn write_disks(machine: &Machine, dir: &Path) -> Result<()> {
    let kernel = crate::error::read(&machine.kernel)?;
    let mut script = format!("multiboot2 (hd1)/prism-hv {}\n", machine.arguments);
    let mut files = vec![("prism-hv", kernel.as_slice())];
    if let Some(module) = &machine.module {
        script.push_str("module2 (hd1)/module.cpio\n");
        files.push((command::MODULE, module));
    }
    script.push_str("boot\n");
    let disks = Grub::get()?.disks(&script, &files)?;
    for (name, mut disk) in command::DISKS.iter().zip(disks) {
        disk.resize(disk.len().next_multiple_of(CYLINDER), 0);
        write(&dir.join(name), disk)?;
    }
    Ok(())
}

/// The configuration. Time is counted in instructions (`sync=none`), so that runs repeat exactly.
fn config(machine: &Machine, bochs: &Bochs, serial: SocketAddr) -> String {
    let [bios, vga] = bochs.firmware().map(|path| path.display().to_string());
    let [boot, files] = command::DISKS;
    let (memory, cpus) = (machine.memory_mib, machine.cpus);
    let mut text = format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, serial=1, iodebug=1, extfpuirq=1, parallel=0\n\
         config_interface: textconfig\ndisplay_library: term\nmemory: guest={memory}, host={memory}\n\
         romimage: file={bios}\nvgaromimage: file={vga}\n\
         cpu: model=corei7_haswell_4770, count={cpus}, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=0\n\
         boot: disk\nata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, path={boot}, mode=flat, cylinders=0\n\
         ata0-slave: type=disk, path={files}, mode=flat, cylinders=0\n\
         com1: enabled=1, mode=socket-client, dev={serial}\nclock: sync=none, time0=utc\n\
         panic: action=fatal\nerror: action=report\ninfo: action=report\ndebug: action=ignore\n\
         log: {LOG}\nmouse: enabled=0\n"
    );
    // A later line of the same kind changes what it names.
    for line in &machine.emulator {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// How a run ended that did not outlive its time.
pub fn end(serial: &str, dir: &Path) -> End {
    let log = fs::read_to_string(dir.join(LOG)).unwrap_or_default();
    let asked = log.contains("Shutdown port: shutdown requested");
    let verdict = serial.lines().rev().find_map(|line| line.strip_prefix(VERDICT)?.trim().parse().ok());
    match verdict {
        Some(value) if asked => End::Verdict(value),
        _ if asked => End::PowerOff,
        _ => End::Emulator(1),
    }
}

/// Whether what runs can never come to an end.
pub fn is_lost(dir: &Path) -> bool {
    fs::read_to_string(dir.join(LOG)).is_ok_and(|log| log.contains(TRIPLE_FAULT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_is_found_once_it_is_said() {
        assert_eq!(screen_name("...\nBochs connected to screen \"/dev/pts/7\"\n"), Some("/dev/pts/7"));
        assert_eq!(screen_name("...\nBochs connected to screen \"/dev/p"), None);
    }

    #[test]
    fn the_end_is_told_by_text_and_log() {
        let dir = std::env::temp_dir().join(format!("prism-bochs-end-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let ends = |log: &str, serial: &str| {
            fs::write(dir.join(LOG), log).unwrap();
            end(serial, &dir)
        };
        let asked = "00[UNMAP ] Shutdown port: shutdown requested\n";
        assert_eq!(ends(asked, "x\n@exit value=16\n"), End::Verdict(16));
        assert_eq!(ends(asked, "guest: @exit value=16\n"), End::PowerOff, "a guest's line does not count");
        assert_eq!(ends("panic", "@exit value=16\n"), End::Emulator(1));
        assert!(!is_lost(&dir));
        fs::write(dir.join(LOG), "e[CPU0  ] exception(): 3rd (13) exception with no resolution\n").unwrap();
        assert!(is_lost(&dir));
        fs::remove_dir_all(&dir).unwrap();
    }
}
