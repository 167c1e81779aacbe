//! Row 2 of issue 7: the status page of a physical engine, in which the mediator reads what the engine did, is written by
//! the engine alone, whatever a guest's commands store by index.

use super::{BATCH, batch};
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::execlist::HWSP_CSB;
use gvt_defs::gfx::{PIPE_CONTROL_HEADER, pipe_control};
use gvt_defs::pte::GgttPte;
use gvt_defs::{Engine, GgttAddr, Gpa, Hpa, PAGE_SIZE, mi, ring};
use gvt_model::{Blitter, Profile};

const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];
const FORGED: u32 = 0x0F02_6ED0;
/// Indices: a status entry, and where nothing else is stored.
const INDICES: [u32; 2] = [HWSP_CSB + 8, LAST];
const LAST: u32 = 0xFF8;

/// Which stream the commands stand in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Ring,
    Privileged,
    Process,
}

/// The dwords of a page at a global address, as the engine would write them.
fn page(m: &Machine, at: GgttAddr) -> Vec<u32> {
    let entry = GgttPte(m.device.borrow().gpu.ggtt_read(at.index()));
    (0..PAGE_SIZE / 4).map(|i| m.host.ram.dword(Hpa(entry.frame().0 + 4 * i))).collect()
}

/// The status page of the physical engine.
fn engines_page(m: &Machine, engine: Engine) -> Vec<u32> {
    let at = {
        let mut device = m.device.borrow_mut();
        let now = device.now;
        device.gpu.read32(engine.base() + ring::HWS_PGA, now)
    };
    page(m, GgttAddr(at))
}

/// Every command that can store by index into an engine's status page, in all its forms.
fn stores(engine: Engine, index: u32) -> Vec<u32> {
    let post_sync = 1 << mi::FLUSH_POST_SYNC_SHIFT;
    let mut commands = vec![mi::with_length(mi::STORE_DATA_INDEX, 3), index, FORGED];
    commands.extend([mi::with_length(mi::STORE_DATA_INDEX, 4), index & !7, FORGED, FORGED]);
    commands.push(mi::header(mi::REPORT_HEAD));
    if engine == Engine::Rcs {
        let flags = pipe_control::POST_SYNC_WRITE | pipe_control::STORE_DATA_INDEX | pipe_control::GLOBAL_GTT;
        commands.extend([PIPE_CONTROL_HEADER, flags, index, 0, FORGED, FORGED]);
    } else {
        let low = index | mi::FLUSH_DW1_GLOBAL_GTT;
        for dwords in [4, 5] {
            let header = mi::with_length(mi::FLUSH_DW, dwords) | post_sync | mi::FLUSH_STORE_INDEX;
            commands.extend(&[header, low, 0, FORGED, FORGED][..dwords as usize]);
        }
    }
    commands
}

fn run(m: &mut Machine, d: &mut Driver, c: &mut Context, from: From, commands: &[u32]) -> bool {
    let ring = match from {
        From::Ring => commands.to_vec(),
        From::Privileged => {
            let copy = d.pages(1);
            let at = d.pin(m, &copy);
            for (i, dword) in (0..).zip([commands, &[mi::header(mi::BATCH_BUFFER_END)]].concat()) {
                m.host.guest_write32(d.vm, Gpa(copy[0].0 + 4 * i), dword);
            }
            vec![mi::with_length(mi::BATCH_BUFFER_START, 3), at.0, 0]
        }
        From::Process => {
            batch::write(d, m, c, BATCH, commands);
            Driver::batch_start(BATCH)
        }
    };
    d.execute(m, c, &ring)
}

#[test]
fn no_command_stores_into_an_engines_status_page() {
    for engine in ENGINES {
        for from in [From::Ring, From::Privileged, From::Process] {
            let mut m = Machine::with(Profile { blitter: Blitter::ObeysLri, ..Profile::kaby_lake() });
            let vgpu = m.add_vm(1);
            let mut d = Driver::probe(&mut m, 1, vgpu);
            let mut c = d.context(&mut m, engine);
            let own = GgttAddr(d.read(&mut m, engine.base() + ring::HWS_PGA));
            for index in INDICES {
                assert!(run(&mut m, &mut d, &mut c, from, &stores(engine, index)), "{engine:?} {from:?}");
                assert!(!engines_page(&m, engine).contains(&FORGED), "{engine:?} {from:?} {index:#x}");
                let head = engines_page(&m, engine)[4];
                assert_eq!(head, 0, "MI_REPORT_HEAD: {engine:?} {from:?}");
            }
            // A driver's stores arrive in the page that it gave its engine; a process's do not.
            let arrived = page(&m, own)[LAST as usize / 4] == FORGED;
            assert_eq!(arrived, from != From::Process, "{engine:?} {from:?}");
        }
    }
}
