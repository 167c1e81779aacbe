//! What a run counted, as JSON.

use serde_json::{Value, json};

use super::session::Bus;

/// The most marks kept: a guest makes them.
const MAX_PHASES: usize = 1024;

/// Snapshots of the counters at the marks that the guest set.
#[derive(Debug, Default)]
pub struct Phases(Vec<Value>);

impl Phases {
    /// Adds a snapshot under the guest's mark.
    pub fn mark(&mut self, mark: u8, bus: &Bus, gpu: Value) {
        if self.0.len() < MAX_PHASES {
            self.0.push(json!({ "mark": mark, "counts": counts(bus, gpu) }));
        }
    }
}

/// The counters, cumulative from the start.
fn counts(bus: &Bus, gpu: Value) -> Value {
    let c = bus.trace.counters();
    let (messages, lost) = bus.irqs.counts();
    json!({
        "ns": bus.now,
        "register_reads": c.register_reads, "register_writes": c.register_writes,
        "pte_reads": c.pte_reads, "pte_writes": c.pte_writes,
        "aperture_reads": c.aperture_reads, "aperture_writes": c.aperture_writes,
        "config_reads": c.config_reads, "config_writes": c.config_writes,
        "resets": c.resets, "messages": messages, "messages_lost": lost,
        "gpu": gpu,
    })
}

/// Everything: the counters, the phases, and every page of client memory that the device touched.
pub fn report(bus: &Bus, gpu: Value, phases: &Phases) -> Value {
    let (ranges, maps, unmaps) = bus.dma.counts();
    let touched = bus.dma.touched();
    json!({
        "counts": counts(bus, gpu),
        "phases": phases.0,
        "dma": {
            "ranges": ranges, "maps": maps, "unmaps": unmaps,
            // [first byte, bytes], whole pages, ascending.
            "read": touched.read.ranges(), "written": touched.written.ranges(),
        },
    })
}
