//! 2D commands: header bits 31:29 = 2, opcode 28:22 (KBL PRM vol 2a, "blitter").
#![allow(missing_docs, reason = "the names are the datasheet's")]

pub const SETUP_BLT: u32 = 0x01;
pub const SETUP_CLIP_BLT: u32 = 0x03;
pub const SETUP_MONO_PATTERN_SL_BLT: u32 = 0x11;
pub const PIXEL_BLT: u32 = 0x24;
pub const SCANLINES_BLT: u32 = 0x25;
pub const TEXT_BLT: u32 = 0x26;
pub const TEXT_IMMEDIATE_BLT: u32 = 0x31;
pub const COLOR_BLT: u32 = 0x40;
pub const XY_FAST_COPY_BLT: u32 = 0x42;
pub const SRC_COPY_BLT: u32 = 0x43;
pub const XY_COLOR_BLT: u32 = 0x50;
pub const XY_PAT_BLT: u32 = 0x51;
pub const XY_MONO_PAT_BLT: u32 = 0x52;
pub const XY_SRC_COPY_BLT: u32 = 0x53;
pub const XY_MONO_SRC_COPY_BLT: u32 = 0x54;
pub const XY_FULL_BLT: u32 = 0x55;
pub const XY_FULL_MONO_SRC_BLT: u32 = 0x56;
pub const XY_FULL_MONO_PATTERN_BLT: u32 = 0x57;
pub const XY_FULL_MONO_PATTERN_MONO_SRC_BLT: u32 = 0x58;
pub const XY_MONO_PAT_FIXED_BLT: u32 = 0x59;
pub const XY_MONO_SRC_COPY_IMMEDIATE_BLT: u32 = 0x71;
pub const XY_PAT_BLT_IMMEDIATE: u32 = 0x72;
pub const XY_SRC_COPY_CHROMA_BLT: u32 = 0x73;
pub const XY_FULL_IMMEDIATE_PATTERN_BLT: u32 = 0x74;
pub const XY_FULL_MONO_SRC_IMMEDIATE_PATTERN_BLT: u32 = 0x75;
pub const XY_PAT_CHROMA_BLT: u32 = 0x76;
pub const XY_PAT_CHROMA_BLT_IMMEDIATE: u32 = 0x77;

/// The header of a command without its flags and length.
pub const fn header(opcode: u32) -> u32 {
    2 << 29 | opcode << 22
}

/// The opcode of a 2D header.
pub const fn opcode(header: u32) -> u32 {
    (header >> 22) & 0x7F
}

/// Header with the length field for `dwords` in all.
pub const fn with_length(opcode: u32, dwords: u32) -> u32 {
    header(opcode) | (dwords - 2)
}

/// Header bits 21:20: which bytes of a 32-bit pixel are written.
pub const WRITE_ALPHA: u32 = 1 << 21;
pub const WRITE_RGB: u32 = 1 << 20;
/// Header: the surface is tiled (X, or Y if SWCTRL says so).
pub const SOURCE_TILED: u32 = 1 << 15;
pub const DESTINATION_TILED: u32 = 1 << 11;
/// Second dword.
pub const CLIPPING: u32 = 1 << 30;
pub const DEPTH_SHIFT: u32 = 24;
pub const DEPTH_8: u32 = 0 << 24;
pub const DEPTH_16_565: u32 = 1 << 24;
pub const DEPTH_32: u32 = 3 << 24;
pub const ROP_SHIFT: u32 = 16;
/// The source, as it is.
pub const ROP_COPY: u32 = 0xCC;
/// The pattern or solid colour, as it is.
pub const ROP_PATTERN: u32 = 0xF0;
/// SWCTRL (masked).
pub const SWCTRL_SOURCE_Y: u32 = 1 << 0;
pub const SWCTRL_DESTINATION_Y: u32 = 1 << 1;
/// XY_FAST_COPY_BLT: tiling of source and destination.
pub const FAST_SOURCE_TILING_SHIFT: u32 = 20;
pub const FAST_DESTINATION_TILING_SHIFT: u32 = 13;
