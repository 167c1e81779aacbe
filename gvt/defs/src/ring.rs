//! Registers that every engine has, as offsets from the engine's base (KBL PRM vol 2c, "command streamer").
#![allow(missing_docs, reason = "the names are the datasheet's")]

pub const EXCC: u32 = 0x28;
pub const TAIL: u32 = 0x30;
pub const HEAD: u32 = 0x34;
pub const START: u32 = 0x38;
pub const CTL: u32 = 0x3C;
pub const PSMI_CTL: u32 = 0x50;
pub const MAX_IDLE: u32 = 0x54;
pub const ACTHD_UDW: u32 = 0x5C;
pub const DMA_FADD_UDW: u32 = 0x60;
pub const IPEIR: u32 = 0x64;
pub const IPEHR: u32 = 0x68;
pub const INSTDONE: u32 = 0x6C;
pub const INSTPS: u32 = 0x70;
pub const ACTHD: u32 = 0x74;
pub const DMA_FADD: u32 = 0x78;
pub const HWS_PGA: u32 = 0x80;
pub const NOPID: u32 = 0x94;
pub const HWSTAM: u32 = 0x98;
pub const MI_MODE: u32 = 0x9C;
pub const IMR: u32 = 0xA8;
pub const EIR: u32 = 0xB0;
pub const EMR: u32 = 0xB4;
pub const ESR: u32 = 0xB8;
pub const INSTPM: u32 = 0xC0;
/// RCS only: R_PWR_CLK_STATE, slice and subslice request.
pub const RPCS: u32 = 0xC8;
pub const RESET_CTL: u32 = 0xD0;
pub const CSFE_CHICKEN1: u32 = 0xD4;
/// CSFE_CHICKEN1: the bits that turn preemption in mid-object off or into a replay (GVT-g stops a guest that sets them).
pub const CSFE_PREEMPTION: u32 = 0x18;
pub const BB_STATE: u32 = 0x110;
pub const SBB_ADDR: u32 = 0x114;
pub const SBB_STATE: u32 = 0x118;
pub const SBB_ADDR_UDW: u32 = 0x11C;
/// A head to go on from instead.
pub const UHPTR: u32 = 0x134;
pub const BB_ADDR: u32 = 0x140;
pub const BB_START_ADDR: u32 = 0x150;
pub const BB_START_ADDR_UDW: u32 = 0x154;
pub const BB_OFFSET: u32 = 0x158;
pub const BB_ADDR_UDW: u32 = 0x168;
pub const BB_START_170: u32 = 0x170;
pub const BB_START_178: u32 = 0x178;
pub const BB_START_17C: u32 = 0x17C;
pub const BB_PER_CTX_PTR: u32 = 0x1C0;
pub const INDIRECT_CTX: u32 = 0x1C4;
pub const INDIRECT_CTX_OFFSET: u32 = 0x1C8;
/// BCS only: BCS_SWCTRL (bit 0 source Y-tiled, bit 1 destination Y-tiled; masked).
pub const SWCTRL: u32 = 0x200;
/// Page directory of a context of earlier generations.
pub const PP_DIR_DCLV: u32 = 0x220;
pub const PP_DIR_BASE: u32 = 0x228;
pub const ELSP: u32 = 0x230;
pub const EXECLIST_STATUS_LO: u32 = 0x234;
pub const EXECLIST_STATUS_HI: u32 = 0x238;
pub const CTX_CONTROL: u32 = 0x244;
pub const SEMA_WAIT_POLL: u32 = 0x24C;
/// PDP0 low dword; PDP n is at `+8*n`, its high dword 4 above.
pub const PDP0_LDW: u32 = 0x270;
pub const PDP0_UDW: u32 = 0x274;
/// High dword of PDP3 is the last of them.
pub const PDP3_UDW: u32 = 0x28C;
pub const GFX_MODE: u32 = 0x29C;
pub const TIMESTAMP: u32 = 0x358;
pub const TIMESTAMP_UDW: u32 = 0x35C;
/// Six context status entries of 8 bytes: status, context id.
pub const CSB: u32 = 0x370;
pub const CSB_PTR: u32 = 0x3A0;
pub const CTX_TIMESTAMP: u32 = 0x3A8;
/// RCS only: OABUFFER of Gen7, and the high half of Gen8's; the rest of the unit that writes performance reports.
pub const OABUFFER_OLD: u32 = 0x3B0;
pub const OABUFFER_UDW: u32 = 0x3B4;
pub const OA_FIRST: u32 = 0xB00;
pub const OA_LAST: u32 = 0xBFC;

/// Nanoseconds of so many ticks of the timestamps: 12 MHz (Skylake to Comet Lake).
pub const fn timestamp_nanos(ticks: u32) -> u64 {
    ticks as u64 * 250 / 3
}
pub const MI_PREDICATE_RESULT_2: u32 = 0x3BC;
pub const MI_PREDICATE_SRC0: u32 = 0x400;
pub const MI_PREDICATE_SRC0_UDW: u32 = 0x404;
pub const MI_PREDICATE_SRC1: u32 = 0x408;
pub const MI_PREDICATE_SRC1_UDW: u32 = 0x40C;
pub const MI_PREDICATE_DATA: u32 = 0x410;
pub const MI_PREDICATE_RESULT: u32 = 0x418;
pub const MI_PREDICATE_RESULT_1: u32 = 0x41C;
/// Twelve slots: bits 25:2 of each name a register that unprivileged batches may write, see `nonpriv`.
pub const FORCE_TO_NONPRIV: u32 = 0x4D0;
pub const FORCE_TO_NONPRIV_SLOTS: u32 = 12;
/// Sixteen 64-bit general purpose registers.
pub const GPR: u32 = 0x600;
pub const GPRS: u32 = 16;

/// RING_HEAD: wrap count 31:21, offset 20:2.
pub const HEAD_ADDR_MASK: u32 = 0x001F_FFFC;
pub const TAIL_ADDR_MASK: u32 = 0x001F_FFF8;
/// RING_CTL.
pub const CTL_VALID: u32 = 1 << 0;
pub const CTL_SEMAPHORE_WAIT: u32 = 1 << 10;
pub const CTL_EVENT_WAIT: u32 = 1 << 11;
pub const CTL_PAGES_MASK: u32 = 0x001F_F000;

/// Ring size in bytes that a RING_CTL value means: 4 KiB to 2 MiB.
pub const fn ctl_bytes(ctl: u32) -> u32 {
    (ctl & CTL_PAGES_MASK) + 0x1000
}

/// MI_MODE.
pub const MI_MODE_STOP_RING: u32 = 1 << 8;
pub const MI_MODE_IDLE: u32 = 1 << 9;
/// RESET_CTL.
pub const RESET_CTL_REQUEST: u32 = 1 << 0;
pub const RESET_CTL_READY: u32 = 1 << 1;
pub const RESET_CTL_CATASTROPHIC: u32 = 1 << 2;
/// GFX_MODE.
pub const GFX_RUN_LIST_ENABLE: u32 = 1 << 15;
/// EIR and ESR.
pub const ERROR_INSTRUCTION: u32 = 1 << 0;
pub const ERROR_PRIVILEGE: u32 = 1 << 2;
/// BB_STATE: the batch lies in the PPGTT, and is unprivileged.
pub const BB_STATE_PPGTT: u32 = 1 << 5;
/// BB_ADDR: a batch is running.
pub const BB_ADDR_VALID: u32 = 1 << 0;
/// CTX_CONTROL.
pub const CTX_RESTORE_INHIBIT: u32 = 1 << 0;
pub const CTX_SAVE_INHIBIT: u32 = 1 << 2;
pub const CTX_INHIBIT_SYN_CTX_SWITCH: u32 = 1 << 3;
