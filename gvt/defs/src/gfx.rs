//! Render and media commands: header bits 31:29 = 3, subtype 28:27, opcode 26:24, sub-opcode 23:16.
#![allow(missing_docs, reason = "the names are the datasheet's")]

/// Bits 31:16 of a header.
pub const STATE_BASE_ADDRESS: u32 = 0x6101;
pub const STATE_SIP: u32 = 0x6102;
pub const SWTESS_BASE_ADDRESS: u32 = 0x6103;
pub const GPGPU_CSR_BASE_ADDRESS: u32 = 0x6104;
pub const VF_STATISTICS: u32 = 0x680B;
pub const PIPELINE_SELECT: u32 = 0x6904;
pub const MEDIA_VFE_STATE: u32 = 0x7000;
pub const MEDIA_CURBE_LOAD: u32 = 0x7001;
pub const MEDIA_INTERFACE_DESCRIPTOR_LOAD: u32 = 0x7002;
pub const MEDIA_STATE_FLUSH: u32 = 0x7004;
pub const MEDIA_POOL_STATE: u32 = 0x7005;
pub const MEDIA_OBJECT: u32 = 0x7100;
pub const MEDIA_OBJECT_PRT: u32 = 0x7102;
pub const MEDIA_OBJECT_WALKER: u32 = 0x7103;
pub const GPGPU_WALKER: u32 = 0x7105;
pub const MEDIA_OBJECT_GRPID: u32 = 0x7106;
pub const SO_DECL_LIST: u32 = 0x7917;
/// 3DSTATE_DX9_CONSTANTF_*: their length field has 11 bits (i915's command parser and GVT-g agree).
pub const DX9_CONSTANTF_VS: u32 = 0x7839;
pub const DX9_CONSTANTF_PS: u32 = 0x783A;
pub const BINDING_TABLE_EDIT_VS: u32 = 0x7843;
pub const BINDING_TABLE_EDIT_PS: u32 = 0x7847;
pub const PIPE_CONTROL: u32 = 0x7A00;
pub const PRIMITIVE: u32 = 0x7B00;

/// Bits 31:16 of a header, the key of the names above.
pub const fn key(header: u32) -> u32 {
    header >> 16
}

/// PIPE_CONTROL: header and dwords.
pub const PIPE_CONTROL_HEADER: u32 = 0x7A00_0004;
pub const PIPE_CONTROL_DWORDS: u32 = 6;

pub mod pipe_control {
    //! Second dword of PIPE_CONTROL.
    pub const DEPTH_CACHE_FLUSH: u32 = 1 << 0;
    pub const STALL_AT_SCOREBOARD: u32 = 1 << 1;
    pub const STATE_CACHE_INVALIDATE: u32 = 1 << 2;
    pub const CONST_CACHE_INVALIDATE: u32 = 1 << 3;
    pub const VF_CACHE_INVALIDATE: u32 = 1 << 4;
    pub const DC_FLUSH_ENABLE: u32 = 1 << 5;
    pub const FLUSH_ENABLE: u32 = 1 << 7;
    pub const NOTIFY: u32 = 1 << 8;
    pub const INDIRECT_STATE_DISABLE: u32 = 1 << 9;
    pub const TEXTURE_CACHE_INVALIDATE: u32 = 1 << 10;
    pub const INSTRUCTION_CACHE_INVALIDATE: u32 = 1 << 11;
    pub const RENDER_TARGET_CACHE_FLUSH: u32 = 1 << 12;
    pub const DEPTH_STALL: u32 = 1 << 13;
    pub const POST_SYNC_SHIFT: u32 = 14;
    pub const POST_SYNC_MASK: u32 = 3 << 14;
    pub const POST_SYNC_WRITE: u32 = 1 << 14;
    pub const POST_SYNC_DEPTH_COUNT: u32 = 2 << 14;
    pub const POST_SYNC_TIMESTAMP: u32 = 3 << 14;
    pub const MEDIA_STATE_CLEAR: u32 = 1 << 16;
    pub const TLB_INVALIDATE: u32 = 1 << 18;
    pub const CS_STALL: u32 = 1 << 20;
    pub const STORE_DATA_INDEX: u32 = 1 << 21;
    pub const LRI_POST_SYNC: u32 = 1 << 23;
    pub const GLOBAL_GTT: u32 = 1 << 24;
    pub const LLC_FLUSH: u32 = 1 << 26;
    pub const FLUSH_L3: u32 = 1 << 27;
}
