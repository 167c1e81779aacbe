//! Every 3D and media command of Gen9, by bits 31:16 of its header (KBL PRM vol 2a; Mesa's genxml and GVT-g's command
//! table agree where they overlap). How long each is, says [`crate::command::length`]. What is not here is reserved:
//! what a parser makes of it, and how long it takes it to be, is anybody's guess.

use crate::Engine;

/// Runs of opcodes, first and last, both inclusive.
type List = [(u32, u32)];

/// The render engine; sorted.
pub const RENDER: [(u32, u32); 28] = [
    (0x6003, 0x6003), // STATE_PREFETCH
    (0x6101, 0x6104), // STATE_BASE_ADDRESS, STATE_SIP, SWTESS_BASE_ADDRESS, GPGPU_CSR_BASE_ADDRESS
    (0x680B, 0x680B), // 3DSTATE_VF_STATISTICS
    (0x6904, 0x6904), // PIPELINE_SELECT
    (0x7000, 0x7002), // MEDIA_VFE_STATE, MEDIA_CURBE_LOAD, MEDIA_INTERFACE_DESCRIPTOR_LOAD
    (0x7004, 0x7005), // MEDIA_STATE_FLUSH, MEDIA_POOL_STATE
    (0x7100, 0x7100), // MEDIA_OBJECT
    (0x7102, 0x7103), // MEDIA_OBJECT_PRT, MEDIA_OBJECT_WALKER
    (0x7105, 0x7106), // GPGPU_WALKER, MEDIA_OBJECT_GRPID
    (0x7804, 0x780A), // CLEAR_PARAMS, DEPTH, STENCIL, HIER_DEPTH, VERTEX_BUFFERS, VERTEX_ELEMENTS, INDEX_BUFFER
    (0x780C, 0x7821), // VF, MULTISAMPLE, CC and SCISSOR pointers, shaders, constants, SBE, PS, SF_CLIP viewports
    (0x7823, 0x7824), // CC viewports, BLEND pointers
    (0x7826, 0x7833), // binding tables and samplers of each stage, URB of each stage
    (0x7834, 0x7838), // GATHER_CONSTANT of each stage
    (0x7839, 0x7842), // DX9 constants
    (0x7843, 0x7847), // BINDING_TABLE_EDIT of each stage
    (0x7849, 0x7852), // VF_INSTANCING, VF_SGVS, VF_TOPOLOGY, chroma key, PS_BLEND to WM_HZ_OP
    (0x7854, 0x7855), // RS_CONSTANT_POINTER, VF_COMPONENT_PACKING
    (0x7900, 0x7900), // DRAWING_RECTANGLE
    (0x7902, 0x7902), // SAMPLER_PALETTE_LOAD0
    (0x7904, 0x7904), // CHROMA_KEY
    (0x7906, 0x7908), // POLY_STIPPLE_OFFSET, POLY_STIPPLE_PATTERN, LINE_STIPPLE
    (0x790A, 0x790A), // AA_LINE_PARAMETERS
    (0x790C, 0x790C), // SAMPLER_PALETTE_LOAD1
    (0x7911, 0x7917), // MONOFILTER_SIZE, PUSH_CONSTANT_ALLOC of each stage, SO_DECL_LIST
    (0x7918, 0x791D), // SO_BUFFER, pools, SAMPLE_PATTERN, URB_CLEAR
    (0x7A00, 0x7A00), // PIPE_CONTROL
    (0x7B00, 0x7B00), // 3DPRIMITIVE
];

/// The video engines; sorted. MFX has its sub-opcode in bits 23:16, the later units in bits 22:16 with bit 23 set.
/// MFX_WAIT is not here: it is one dword whose length field says otherwise, and parsers do not agree about it. Processes
/// use it in batches that nobody reads.
pub const VIDEO: [(u32, u32); 37] = [
    (0x7000, 0x7004), // MFX pipe mode, surface, buffers, indirect objects, BSP buffers
    (0x7006, 0x7008), // MFX_STATE_POINTER, QM, FQM
    (0x7029, 0x7029), // MFD_IT_OBJECT
    (0x7048, 0x7048), // MFX_PAK_INSERT_OBJECT
    (0x704A, 0x704A), // MFX_STITCH_OBJECT
    (0x7080, 0x7088), // VDENC pipe mode, surfaces, buffers, constants, IMG, walker, weights
    (0x7100, 0x7105), // AVC image, QM, direct mode, slice, reference index, weights
    (0x7125, 0x7128), // MFD AVC picture id, DPB, slice address, BSD_OBJECT
    (0x7149, 0x7149), // MFC_AVC_PAK_OBJECT
    (0x7201, 0x7202), // VC1 prediction, direct mode
    (0x7220, 0x7221), // MFD VC1 pictures
    (0x7228, 0x7228), // MFD_VC1_BSD_OBJECT
    (0x7300, 0x7300), // MPEG2_PIC_STATE
    (0x7328, 0x7328), // MFD_MPEG2_BSD_OBJECT
    (0x7343, 0x7343), // MFC_MPEG2_SLICEGROUP_STATE
    (0x7349, 0x7349), // MFC_MPEG2_PAK_OBJECT
    (0x7380, 0x7385), // HCP pipe mode, surface, buffers, indirect objects, QM, FQM
    (0x7390, 0x7394), // HCP picture, tile, reference index, weights, slice
    (0x73A0, 0x73A2), // HCP_BSD_OBJECT, PAK_OBJECT, PAK_INSERT_OBJECT
    (0x73B0, 0x73B0), // HCP_VP9_PIC_STATE
    (0x73B2, 0x73B3), // HCP_VP9_SEGMENT_STATE, VP9_PAK
    (0x7400, 0x7400), // MFX_VP8_PIC_STATE
    (0x7428, 0x7428), // MFD_VP8_BSD_OBJECT
    (0x7441, 0x7441), // MFX_VP8_ENCODER_CFG
    (0x7443, 0x7443), // MFX_VP8_BSP_BUF_BASE_ADDR_STATE
    (0x7449, 0x7449), // MFX_VP8_PAK_OBJECT
    (0x7500, 0x7506), // SFC
    (0x7580, 0x7582), // HUC pipe mode, instruction memory, data memory
    (0x7584, 0x7585), // HUC virtual addresses, indirect objects
    (0x75A0, 0x75A1), // HUC_STREAM_OBJECT, HUC_START
    (0x7700, 0x7700), // MFX_JPEG_PIC_STATE
    (0x7702, 0x7702), // MFX_JPEG_HUFF_TABLE_STATE
    (0x7703, 0x7703), // MFC_JPEG_HUFF_TABLE_STATE
    (0x7728, 0x7728), // MFD_JPEG_BSD_OBJECT
    (0x7743, 0x7743), // MFC_JPEG_SCAN_OBJECT
    (0x7749, 0x7749), // MFC_JPEG_PAK_OBJECT
    (0x7780, 0x7780), // VD_PIPELINE_FLUSH
];

/// The video enhancement engine; sorted.
pub const ENHANCE: [(u32, u32); 2] = [
    (0x7400, 0x7403), // VEBOX_SURFACE_STATE, VEBOX_TILING_CONVERT, VEBOX_STATE, VEB_DI_IECP
    (0x7500, 0x7506), // SFC
];

/// The opcodes of an engine.
pub const fn list(engine: Engine) -> &'static List {
    match engine {
        Engine::Rcs => &RENDER,
        Engine::Bcs => &[],
        Engine::Vcs0 | Engine::Vcs1 => &VIDEO,
        Engine::Vecs => &ENHANCE,
    }
}

/// Whether an engine has the 3D or media command with this header.
pub fn known(engine: Engine, header: u32) -> bool {
    list(engine).iter().any(|(first, last)| (*first..=*last).contains(&(header >> 16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_of_type_3() {
        for engine in Engine::ALL {
            assert!(list(engine).windows(2).all(|pair| pair[0].1 < pair[1].0));
            assert!(list(engine).iter().all(|(first, last)| first <= last && first >> 13 == 3 && last >> 13 == 3));
        }
        assert!(
            known(Engine::Rcs, 0x7A00_0004) && known(Engine::Vcs0, 0x7380_0001) && known(Engine::Vecs, 0x7402_0000)
        );
        assert!(
            !known(Engine::Rcs, 0x7853_0000) && !known(Engine::Rcs, 0x7A01_0000) && !known(Engine::Bcs, 0x7A00_0004)
        );
    }
}
