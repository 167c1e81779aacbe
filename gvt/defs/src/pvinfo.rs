//! PVINFO: the page of registers by which a guest finds that its GPU is virtual (Linux `i915_pvinfo.h`).
#![allow(missing_docs, reason = "the names are the interface's")]

/// Offset in BAR0.
pub const BASE: u32 = 0x7_8000;
pub const SIZE: u32 = 0x1000;
pub const MAGIC_VALUE: u64 = 0x4776_5447_7654_4776;

/// Offsets inside the page.
pub const MAGIC: u32 = 0x000;
pub const VERSION_MAJOR: u32 = 0x008;
pub const VERSION_MINOR: u32 = 0x00A;
pub const VGT_ID: u32 = 0x00C;
pub const VGT_CAPS: u32 = 0x010;
pub const MAPPABLE_BASE: u32 = 0x040;
pub const MAPPABLE_SIZE: u32 = 0x044;
pub const NONMAPPABLE_BASE: u32 = 0x048;
pub const NONMAPPABLE_SIZE: u32 = 0x04C;
pub const FENCE_COUNT: u32 = 0x050;
pub const DISPLAY_READY: u32 = 0x804;
/// Four dwords that a guest writes when it is given too little.
pub const RESERVED5: u32 = 0x808;
pub const G2V_NOTIFY: u32 = 0x818;
pub const CURSOR_X_HOT: u32 = 0x830;
pub const CURSOR_Y_HOT: u32 = 0x834;
/// Four pairs of low and high dwords.
pub const PDP0_LO: u32 = 0x838;
pub const EXECLIST_DESC_LO: u32 = 0x858;
pub const EXECLIST_DESC_HI: u32 = 0x85C;

pub const CAPS_FULL_PPGTT: u32 = 1 << 2;
pub const CAPS_HWSP_EMULATION: u32 = 1 << 3;
pub const CAPS_HUGE_GTT: u32 = 1 << 4;

pub const G2V_PPGTT_L3_CREATE: u32 = 2;
pub const G2V_PPGTT_L3_DESTROY: u32 = 3;
pub const G2V_PPGTT_L4_CREATE: u32 = 4;
pub const G2V_PPGTT_L4_DESTROY: u32 = 5;
pub const G2V_CONTEXT_CREATE: u32 = 6;
pub const G2V_CONTEXT_DESTROY: u32 = 7;
