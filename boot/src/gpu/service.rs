//! The mediator as a device service: interrupts and deadlines in, reports and counters out.

use core::sync::atomic::{AtomicU64, Ordering};

use gvt::{Action, Report};
use gvt_defs::{Engine, Nanos, ring};
use hv::machine::DeviceService;
use hv::say;
use hv::vm::{Request, VmId};

use super::host::from_gvt;
use super::{deadline, now, with};

/// The one service.
pub static SERVICE: GpuService = GpuService;

/// Carries calls of the run loop to the mediator.
pub struct GpuService;

/// The deadline that the run loop knows, in nanoseconds; `u64::MAX` for none.
static KNOWN_DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Asks to be polled if the mediator now has an earlier deadline than the run loop knows.
pub fn consider(deadline: Option<Nanos>) {
    let Some(deadline) = deadline else { return };
    if deadline.0 < KNOWN_DEADLINE.fetch_min(deadline.0, Ordering::Relaxed) {
        hv::machine::request_poll();
    }
}

/// Says what the mediator reports, and stops the VM where it asks for that.
pub fn carry_out(report: &Report) {
    match (report.action, hv::machine::vm(from_gvt(report.vm))) {
        // As often as its guest likes.
        (Action::Note, Some(vm)) => vm.say(format_args!("{report}")),
        (Action::Note, None) => say!("{report}"),
        (Action::StopVm, vm) => {
            say!("{report}");
            if let Some(vm) = vm {
                vm.request(Request::Crash);
            }
        }
    }
}

impl DeviceService for GpuService {
    fn interrupt(&self, _: hv_defs::Nanos) {
        with(|gvt, host| gvt.interrupt(host, now()));
    }

    fn poll(&self, _: hv_defs::Nanos) -> Option<hv_defs::Nanos> {
        let deadline = with(|gvt, host| {
            if gvt.deadline().is_some_and(|deadline| deadline <= now()) {
                gvt.timer(host, now());
            }
            // Under the lock, so that a nearer deadline that comes up next is seen as nearer.
            let deadline = deadline(gvt, host);
            KNOWN_DEADLINE.store(deadline.map_or(u64::MAX, |deadline| deadline.0), Ordering::Relaxed);
            deadline
        })?;
        deadline.map(|deadline| hv_defs::Nanos(deadline.0))
    }

    fn memory(&self, each: &mut dyn FnMut(u64, u64)) {
        with(|_, host| host.memory(each));
    }

    fn stats(&self, id: VmId, each: &mut dyn FnMut(&str, &str, u64)) {
        with(|gvt, _| {
            let Some(stats) = gvt.owners().find(|(_, vm)| from_gvt(*vm) == id).and_then(|(vgpu, _)| gvt.stats(vgpu))
            else {
                return;
            };
            for engine in Engine::ALL {
                let counters = stats.engine(engine);
                if counters.submissions > 0 {
                    each("submissions", name(engine), counters.submissions);
                    each("engine_us", name(engine), counters.busy.0 / 1_000);
                    each("preemptions", name(engine), counters.preemptions);
                    each("loads", name(engine), counters.loads);
                    each("resets", name(engine), counters.resets);
                }
            }
            let masks = Engine::ALL.map(|engine| stats.exits.writes_at(engine.base() + ring::IMR));
            for (group, name, value) in [
                ("audit", "bytes", stats.audit_bytes),
                ("audit", "commands", stats.audit_commands),
                ("audit", "refused", stats.refused),
                ("flushes", "tlb", stats.tlb_flushes),
                ("flushes", "ggtt", stats.ggtt_flushes),
                ("sync", "points", stats.syncs),
                ("sync", "entries", stats.synced_entries),
                ("exits", "reads", stats.exits.reads),
                ("exits", "writes", stats.exits.writes),
                ("exits", "gtt", stats.exits.gtt),
                ("exits", "config", stats.exits.config),
                ("interrupts", "msi", stats.msis),
                ("interrupts", "units", stats.interrupt_units),
                ("interrupts", "merges", stats.merges),
                ("interrupts", "masks", masks.into_iter().sum()),
                ("switches", "all", stats.switches),
                ("phys", "registers", stats.physical),
                ("hold", "longest", stats.longest().into()),
                ("hold", "of_all", gvt.totals().longest().into()),
            ] {
                each(group, name, value);
            }
        });
    }
}

/// The engine's name as i915 gives it to its users.
fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Rcs => "rcs0",
        Engine::Bcs => "bcs0",
        Engine::Vcs0 => "vcs0",
        Engine::Vcs1 => "vcs1",
        Engine::Vecs => "vecs0",
    }
}
