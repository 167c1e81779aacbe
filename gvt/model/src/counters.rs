//! What each engine has done since power-on.

use gvt_defs::{ENGINES, Engine};

/// One engine.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EngineCounters {
    /// Whole ELSP writes.
    pub submissions: u64,
    /// Contexts loaded, lite restores not counted.
    pub loads: u64,
    /// Contexts whose ring ran empty.
    pub completions: u64,
    /// Commands executed.
    pub commands: u64,
    /// Nanoseconds during which a context was loaded.
    pub busy: u64,
}

/// All engines, in the order of [`Engine`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    engines: [EngineCounters; ENGINES],
}

impl Counters {
    /// The counters of one engine.
    pub fn engine(&self, engine: Engine) -> EngineCounters {
        self.engines.get(engine.index()).copied().unwrap_or_default()
    }

    pub(crate) fn change(&mut self, engine: Engine, change: impl FnOnce(&mut EngineCounters)) {
        if let Some(counters) = self.engines.get_mut(engine.index()) {
            change(counters);
        }
    }
}
