//! MI commands: header bits 31:29 = 0, opcode 28:23 (KBL PRM vol 2a).
#![allow(missing_docs, reason = "the names are the datasheet's")]

pub const NOOP: u32 = 0x00;
pub const SET_PREDICATE: u32 = 0x01;
pub const USER_INTERRUPT: u32 = 0x02;
pub const WAIT_FOR_EVENT: u32 = 0x03;
pub const FLUSH: u32 = 0x04;
pub const ARB_CHECK: u32 = 0x05;
pub const RS_CONTROL: u32 = 0x06;
pub const REPORT_HEAD: u32 = 0x07;
pub const ARB_ON_OFF: u32 = 0x08;
pub const URB_ATOMIC_ALLOC: u32 = 0x09;
pub const BATCH_BUFFER_END: u32 = 0x0A;
pub const SUSPEND_FLUSH: u32 = 0x0B;
pub const PREDICATE: u32 = 0x0C;
pub const TOPOLOGY_FILTER: u32 = 0x0D;
pub const SET_APPID: u32 = 0x0E;
pub const RS_CONTEXT: u32 = 0x0F;
pub const LOAD_SCAN_LINES_INCL: u32 = 0x12;
pub const LOAD_SCAN_LINES_EXCL: u32 = 0x13;
pub const DISPLAY_FLIP: u32 = 0x14;
pub const SET_CONTEXT: u32 = 0x18;
pub const MATH: u32 = 0x1A;
pub const SEMAPHORE_SIGNAL: u32 = 0x1B;
pub const SEMAPHORE_WAIT: u32 = 0x1C;
pub const FORCE_WAKEUP: u32 = 0x1D;
pub const STORE_DATA_IMM: u32 = 0x20;
pub const STORE_DATA_INDEX: u32 = 0x21;
pub const LOAD_REGISTER_IMM: u32 = 0x22;
pub const UPDATE_GTT: u32 = 0x23;
pub const STORE_REGISTER_MEM: u32 = 0x24;
pub const FLUSH_DW: u32 = 0x26;
pub const CLFLUSH: u32 = 0x27;
pub const REPORT_PERF_COUNT: u32 = 0x28;
pub const LOAD_REGISTER_MEM: u32 = 0x29;
pub const LOAD_REGISTER_REG: u32 = 0x2A;
pub const RS_STORE_DATA_IMM: u32 = 0x2B;
pub const LOAD_URB_MEM: u32 = 0x2C;
pub const STORE_URB_MEM: u32 = 0x2D;
pub const COPY_MEM_MEM: u32 = 0x2E;
pub const ATOMIC: u32 = 0x2F;
pub const BATCH_BUFFER_START: u32 = 0x31;
pub const CONDITIONAL_BATCH_BUFFER_END: u32 = 0x36;

/// The header of a command without its flags and length.
pub const fn header(opcode: u32) -> u32 {
    opcode << 23
}

/// The opcode of an MI header.
pub const fn opcode(header: u32) -> u32 {
    (header >> 23) & 0x3F
}

/// Bit 22 of most commands: the address is in the GGTT.
pub const GLOBAL_GTT: u32 = 1 << 22;
/// NOOP: write bits 21:0 to NOPID.
pub const NOOP_WRITE_ID: u32 = 1 << 22;
/// ARB_ON_OFF: on.
pub const ARB_ENABLE: u32 = 1 << 0;
/// STORE_DATA_IMM: eight bytes of data.
pub const STORE_QWORD: u32 = 1 << 21;
/// STORE_DATA_INDEX: into the context's status page.
pub const STORE_INDEX_PPHWSP: u32 = 1 << 21;
/// STORE_REGISTER_MEM: only if the predicate holds.
pub const PREDICATE_ENABLE: u32 = 1 << 21;
pub const SEMAPHORE_REGISTER_POLL: u32 = 1 << 16;
pub const SEMAPHORE_POLL: u32 = 1 << 15;
pub const SEMAPHORE_COMPARE_SHIFT: u32 = 12;
pub const BB_SECOND_LEVEL: u32 = 1 << 22;
pub const BB_ADD_OFFSET: u32 = 1 << 16;
pub const BB_PREDICATION: u32 = 1 << 15;
/// BATCH_BUFFER_START: the batch lies in the PPGTT and is unprivileged.
pub const BB_PPGTT: u32 = 1 << 8;
pub const FLUSH_POST_SYNC_SHIFT: u32 = 14;
pub const FLUSH_POST_SYNC_MASK: u32 = 3 << FLUSH_POST_SYNC_SHIFT;
pub const FLUSH_STORE_INDEX: u32 = 1 << 21;
pub const FLUSH_TLB_INVALIDATE: u32 = 1 << 18;
pub const FLUSH_NOTIFY: u32 = 1 << 8;
/// FLUSH_DW, second dword: the address is in the GGTT.
pub const FLUSH_DW1_GLOBAL_GTT: u32 = 1 << 2;
/// REPORT_PERF_COUNT, second dword: the address is in the GGTT (KBL PRM vol 2a, "Use Global GTT").
pub const REPORT_DW1_GLOBAL_GTT: u32 = 1 << 0;
pub const COPY_SOURCE_GLOBAL_GTT: u32 = 1 << 22;
pub const COPY_DESTINATION_GLOBAL_GTT: u32 = 1 << 21;
pub const ATOMIC_INLINE: u32 = 1 << 18;
pub const ATOMIC_RETURN: u32 = 1 << 16;
pub const COND_COMPARE_SEMAPHORE: u32 = 1 << 21;
pub const COND_COMPARE_MASK: u32 = 1 << 19;
/// Register field of LOAD_REGISTER_* and STORE_REGISTER_MEM.
pub const REGISTER_MASK: u32 = 0x007F_FFFC;

/// LOAD_REGISTER_IMM of `pairs` registers.
pub const fn load_register_imm(pairs: u32) -> u32 {
    header(LOAD_REGISTER_IMM) | (2 * pairs - 1)
}

/// A whole command of the length that its type needs: header with the length field set.
pub const fn with_length(opcode: u32, dwords: u32) -> u32 {
    header(opcode) | (dwords - 2)
}

pub mod math {
    //! ALU instructions of MI_MATH: opcode 31:20, operands 19:10 and 9:0.
    pub const NOOP: u32 = 0x000;
    pub const LOAD: u32 = 0x080;
    pub const LOADINV: u32 = 0x480;
    pub const LOAD0: u32 = 0x081;
    pub const LOAD1: u32 = 0x481;
    pub const ADD: u32 = 0x100;
    pub const SUB: u32 = 0x101;
    pub const AND: u32 = 0x102;
    pub const OR: u32 = 0x103;
    pub const XOR: u32 = 0x104;
    pub const STORE: u32 = 0x180;
    pub const STOREINV: u32 = 0x580;
    pub const SRCA: u32 = 0x20;
    pub const SRCB: u32 = 0x21;
    pub const ACCU: u32 = 0x31;
    pub const ZF: u32 = 0x32;
    pub const CF: u32 = 0x33;

    /// One instruction.
    pub const fn instruction(opcode: u32, operand1: u32, operand2: u32) -> u32 {
        opcode << 20 | operand1 << 10 | operand2
    }
}
