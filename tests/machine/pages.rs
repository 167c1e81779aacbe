//! Prism's own page tables while it runs guests on VT-x, as Bochs' debugger finds them in memory: nothing is writable and
//! executable, and guests' memory appears in one place only, for copying.

use std::process::Command;
use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::machine::Machine;

const LIMIT: Duration = Duration::from_secs(120);
const MEMORY_MIB: u32 = 128;
const CONFIG: &str = "[[vm]]\nname = \"ladder\"\nmemory_mib = 32\nvcpus = 2\nkernel = \"ladder\"\n";
/// Where `hv::phys` maps all RAM.
const DIRECT: u64 = 0xFFFF_8000_0000_0000;
/// What of memory the debugger writes out: all from here to the tables of the firmware at its end.
const DUMPED: std::ops::Range<u64> = 1 << 20..((MEMORY_MIB - 1) as u64) << 20;
/// Where the image is linked, and the end of the largest that is allowed.
const IMAGE: std::ops::Range<u64> = 1 << 20..4 << 20;

/// A mapping: linear and physical address, size, and what may be done there.
#[derive(Clone, Copy, Debug)]
struct Page {
    at: u64,
    to: u64,
    bytes: u64,
    writable: bool,
    executable: bool,
}

#[test]
fn host_pages_on_vmx() {
    let nonce = tests::nonce();
    let bundle = Bundle::new(CONFIG).file("ladder", &qemu::build::assembled_guest("ladder", &nonce).unwrap()).finish();
    // The run is over, the guest has done all it does, and Prism's tables are those it ran with.
    let stop = symbol("5power4exit").expect("the image has the function that ends a run");
    let commands = format!(
        "lb {stop:#x}\ncontinue\ncreg\nwritemem \"memory.bin\" {:#x} {:#x}\nquit\n",
        DIRECT + DUMPED.start,
        DUMPED.end - DUMPED.start
    );
    let machine = Machine::vmx_bochs("pages-vmx", tests::image()).memory_mib(MEMORY_MIB).module(bundle);
    let machine = machine.emulator("debugger_log: debugger.log").debugger(&commands);
    let outcome = machine.arguments("once").run(LIMIT).unwrap();
    let log = std::fs::read_to_string(outcome.dir.join("debugger.log")).unwrap();
    let ran = Console::parse(&outcome.serial).guest("ladder").iter().any(|line| line.trim() == "rung cpuid ok");
    if !ran || !log.contains(&format!("[{stop:#014x}]")) {
        tests::fail(&outcome, "the guest should have run, and the debugger stopped at the end of it");
    }
    let cr3 = log.lines().find_map(|line| line.split_once("CR3=0x")).expect("the debugger shows CR3").1;
    let cr3 = u64::from_str_radix(cr3.split_whitespace().next().unwrap(), 16).unwrap() & !0xFFF;
    let memory = std::fs::read(outcome.dir.join("memory.bin")).unwrap();
    std::fs::remove_file(outcome.dir.join("memory.bin")).unwrap();
    let pages = pages(&memory, cr3);
    judge(&pages, &guest_memory(&outcome.serial));
}

fn judge(pages: &[Page], guest: &[(u64, u64)]) {
    let executable = pages.iter().filter(|page| page.executable).count();
    println!("{} mappings, {executable} of them executable", pages.len());
    assert!(executable > 4 && pages.len() > executable);
    for page in pages {
        assert!(!(page.writable && page.executable), "writable and executable: {page:x?}");
        assert!(!page.executable || IMAGE.contains(&page.at), "executable outside the image: {page:x?}");
        // Devices' registers aside, which lie above all RAM, only the image is where it is linked.
        let identity = page.at == page.to && page.writable;
        assert!(!identity || IMAGE.contains(&page.at), "writable at its own address: {page:x?}");
        let overlaps = |&(base, bytes): &(u64, u64)| page.to < base + bytes && base < page.to + page.bytes;
        if guest.iter().any(overlaps) {
            assert_eq!(page.at, DIRECT + page.to, "a guest's memory besides the place for copying: {page:x?}");
        }
    }
}

/// Host addresses and sizes of the guest's memory below and above the hole for video, from the line that tells them.
fn guest_memory(serial: &str) -> [(u64, u64); 2] {
    let line = serial.lines().find(|line| line.contains("RAM from 0x")).expect("Prism says where a guest's memory is");
    let mut words = line.split("0x").skip(1).map(|word| {
        let digits = word.split(|letter: char| !letter.is_ascii_hexdigit()).next().unwrap();
        u64::from_str_radix(digits, 16).unwrap()
    });
    [(words.next().unwrap(), 0xA_0000), (words.next().unwrap(), (32 << 20) - 0xC_0000)]
}

/// All leaves of the 4-level tables at `root`.
fn pages(memory: &[u8], root: u64) -> Vec<Page> {
    let mut pages = Vec::new();
    let top = Page { at: 0, to: root, bytes: 1 << 48, writable: true, executable: true };
    walk(memory, top, &mut pages);
    pages
}

/// Visits the table at `above.to`, each of whose entries covers a 512th of `above`.
fn walk(memory: &[u8], above: Page, pages: &mut Vec<Page>) {
    let bytes = above.bytes >> 9;
    let table = &memory[(above.to - DUMPED.start) as usize..][..4096];
    for (at, entry) in
        (0..).zip(table.as_chunks().0).map(|(n, entry)| (above.at + n * bytes, u64::from_le_bytes(*entry)))
    {
        if entry & 1 == 0 {
            continue;
        }
        let leaf = bytes == 4096 || entry & 1 << 7 != 0;
        let page = Page {
            // Addresses of 48 bits, sign-extended.
            at: ((at << 16) as i64 >> 16) as u64,
            to: entry & 0x000F_FFFF_FFFF_F000 & if leaf { !(bytes - 1) } else { !0 },
            bytes,
            writable: above.writable && entry & 2 != 0,
            executable: above.executable && entry >> 63 == 0,
        };
        if leaf {
            pages.push(page);
        } else {
            walk(memory, page, pages);
        }
    }
}

/// Address of the function of the image whose mangled name ends so.
fn symbol(end: &str) -> Option<u64> {
    let out = Command::new("nm").arg(tests::image()).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find(|line| line.ends_with(end))?;
    u64::from_str_radix(line.split_whitespace().next()?, 16).ok()
}
