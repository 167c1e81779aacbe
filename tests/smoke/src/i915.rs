//! The i915 driver as this program uses it: engines, buffers at fixed GPU addresses, contexts, fences.
//!
//! Facts: Linux uAPI, `drm/drm.h` and `drm/i915_drm.h` (numbers and layouts), as of 6.1; unchanged since.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use crate::sys::{Map, Request, ioctl, readable};

/// How long anything that must end may take: emulated machines are slow, and share their host.
pub const PATIENCE_MS: i32 = 20_000;

const READ: u32 = 2 << 30;
const WRITE: u32 = 1 << 30;

macro_rules! requests {
    ($($name:ident $direction:expr, $number:literal { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        struct $name { $($field: $kind),* }
        // SAFETY: 1. `repr(C)`, integers only, with explicit padding, laid out as the header has it. 2. Fields that
        // hold addresses are set right before the call, from slices that outlive it.
        unsafe impl Request for $name {
            const NUMBER: u32 = $direction | (size_of::<$name>() as u32) << 16 | 0x64 << 8 | $number;
        }
    )*};
}

requests! {
    Version READ | WRITE, 0x00 { major: i32, minor: i32, patch: i32, pad: u32, name_len: u64, name: u64,
        date_len: u64, date: u64, desc_len: u64, desc: u64 }
    GemClose WRITE, 0x09 { handle: u32, pad: u32 }
    GemBusy READ | WRITE, 0x57 { handle: u32, busy: u32 }
    GemCreate READ | WRITE, 0x5b { size: u64, handle: u32, pad: u32 }
    GemPread WRITE, 0x5c { handle: u32, pad: u32, offset: u64, size: u64, data: u64 }
    GemPwrite WRITE, 0x5d { handle: u32, pad: u32, offset: u64, size: u64, data: u64 }
    SetDomain WRITE, 0x5f { handle: u32, read: u32, write: u32 }
    SetTiling READ | WRITE, 0x61 { handle: u32, mode: u32, stride: u32, swizzle: u32 }
    MmapOffset READ | WRITE, 0x64 { handle: u32, pad: u32, offset: u64, flags: u64, extensions: u64 }
    Execbuffer2 READ | WRITE, 0x69 { buffers: u64, count: u32, start: u32, length: u32, dr1: u32, dr4: u32,
        cliprects: u32, cliprects_ptr: u64, flags: u64, context: u64, fences: u64 }
    ContextCreate READ | WRITE, 0x6d { id: u32, pad: u32 }
    ContextDestroy WRITE, 0x6e { id: u32, pad: u32 }
    RegRead READ | WRITE, 0x71 { offset: u64, value: u64 }
    ResetStats READ | WRITE, 0x72 { id: u32, flags: u32, resets: u32, active: u32, pending: u32, pad: u32 }
    ContextSet READ | WRITE, 0x75 { id: u32, size: u32, param: u64, value: u64 }
    Query READ | WRITE, 0x79 { count: u32, flags: u32, items: u64 }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ExecObject {
    handle: u32,
    relocs: u32,
    relocs_ptr: u64,
    alignment: u64,
    offset: u64,
    flags: u64,
    reserved: [u64; 2],
}

const EXEC_OBJECT_WRITE: u64 = 1 << 2;
const EXEC_OBJECT_SUPPORTS_48B: u64 = 1 << 3;
const EXEC_OBJECT_PINNED: u64 = 1 << 4;
const EXEC_FENCE_OUT: u64 = 1 << 17;
const EXEC_BATCH_FIRST: u64 = 1 << 18;
const MMAP_GTT: u64 = 0;
const MMAP_WB: u64 = 2;
const DOMAIN_CPU: u32 = 1;
const DOMAIN_GTT: u32 = 0x40;
const PARAM_ENGINES: u64 = 0xa;
const QUERY_ENGINE_INFO: u64 = 2;
const RCS_TIMESTAMP: u64 = 0x2358;
const REG_READ_8B: u64 = 1;

/// The kinds of engine, by the numbers of the uAPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Render = 0,
    Copy = 1,
    Video = 2,
    VideoEnhance = 3,
}

/// One engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engine {
    pub class: Class,
    pub instance: u16,
}

impl Engine {
    /// Where its registers begin.
    pub fn base(self) -> u32 {
        match (self.class, self.instance) {
            (Class::Render, _) => 0x2000,
            (Class::Copy, _) => 0x2_2000,
            (Class::Video, 0) => 0x1_2000,
            (Class::Video, _) => 0x1_c000,
            (Class::VideoEnhance, _) => 0x1_a000,
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.class {
            Class::Render => "rcs",
            Class::Copy => "bcs",
            Class::Video => "vcs",
            Class::VideoEnhance => "vecs",
        };
        write!(f, "{name}{}", self.instance)
    }
}

/// An open render node of i915.
pub struct Gpu {
    file: File,
    node: u32,
    next_address: Cell<u64>,
}

impl Gpu {
    /// Opens the first render node that i915 drives.
    pub fn open() -> io::Result<Self> {
        for node in 128..144 {
            let path = format!("/dev/dri/renderD{node}");
            let Ok(file) = File::options().read(true).write(true).open(path) else {
                continue;
            };
            let mut name = [0u8; 16];
            let mut version =
                Version { name_len: name.len() as u64, name: name.as_mut_ptr() as u64, ..Version::default() };
            ioctl(file.as_fd(), &mut version)?;
            if name.starts_with(b"i915\0") {
                return Ok(Self { file, node, next_address: Cell::new(0x1_0000_0000) });
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no render node of i915"))
    }

    /// The PCI configuration space of this GPU, as a file.
    pub fn config(&self) -> io::Result<File> {
        File::options().write(true).open(format!("/sys/class/drm/renderD{}/device/config", self.node))
    }

    /// The engines that the kernel reports.
    pub fn engines(&self) -> io::Result<Vec<Engine>> {
        let mut data = vec![0u32; 4096];
        let size = data.len() as u64 * 4;
        // struct drm_i915_query_item: query id, length, flags, address of the data.
        let mut item = [QUERY_ENGINE_INFO, size, data.as_mut_ptr() as u64];
        ioctl(self.file.as_fd(), &mut Query { count: 1, flags: 0, items: item.as_mut_ptr() as u64 })?;
        let length = item[1] as u32 as i32;
        if length < 16 {
            return Err(io::Error::from_raw_os_error(-length.min(-1)));
        }
        // Four dwords of header, the first the count; 14 dwords an engine, the first its class and instance.
        let engine = |entry: &[u32]| {
            let class = [Class::Render, Class::Copy, Class::Video, Class::VideoEnhance];
            let class = class.into_iter().find(|class| *class as u32 == entry[0] & 0xffff)?;
            Some(Engine { class, instance: (entry[0] >> 16) as u16 })
        };
        Ok(data[4..].chunks_exact(14).take(data[0] as usize).filter_map(engine).collect())
    }

    /// A buffer of `size` bytes, zeroed, at a GPU address of its own.
    pub fn buffer(&self, size: usize) -> io::Result<Buffer<'_>> {
        let mut create = GemCreate { size: size as u64, ..GemCreate::default() };
        ioctl(self.file.as_fd(), &mut create)?;
        let address = self.next_address.get();
        self.next_address.set(address + (size as u64).next_multiple_of(2 << 20));
        Ok(Buffer { gpu: self, handle: create.handle, size, address })
    }

    /// A buffer that begins with these commands.
    pub fn batch(&self, commands: &[u32]) -> io::Result<Buffer<'_>> {
        let buffer = self.buffer((commands.len() * 4).next_multiple_of(4096))?;
        buffer.pwrite(0, commands)?;
        Ok(buffer)
    }

    /// A new context that runs on one engine.
    pub fn context(&self, engine: Engine) -> io::Result<Context<'_>> {
        let mut create = ContextCreate::default();
        ioctl(self.file.as_fd(), &mut create)?;
        let context = Context { gpu: self, id: create.id };
        // struct i915_context_param_engines: extensions, then class and instance of each engine.
        let map = [0u32, 0, engine.class as u32 | u32::from(engine.instance) << 16];
        let value = map.as_ptr() as u64;
        ioctl(self.file.as_fd(), &mut ContextSet { id: create.id, size: 12, param: PARAM_ENGINES, value })?;
        Ok(context)
    }

    /// The timestamp register of the render engine, read by the CPU.
    pub fn timestamp(&self) -> io::Result<u64> {
        let mut read = RegRead { offset: RCS_TIMESTAMP | REG_READ_8B, value: 0 };
        ioctl(self.file.as_fd(), &mut read)?;
        Ok(read.value)
    }
}

/// Memory of the GPU.
pub struct Buffer<'g> {
    gpu: &'g Gpu,
    handle: u32,
    pub size: usize,
    pub address: u64,
}

impl Buffer<'_> {
    /// Maps it as cached memory.
    pub fn map(&self) -> io::Result<Map> {
        self.map_as(MMAP_WB, DOMAIN_CPU)
    }

    /// Maps it through the aperture of the GPU.
    pub fn map_gtt(&self) -> io::Result<Map> {
        self.map_as(MMAP_GTT, DOMAIN_GTT)
    }

    fn map_as(&self, flags: u64, domain: u32) -> io::Result<Map> {
        let mut offset = MmapOffset { handle: self.handle, flags, ..MmapOffset::default() };
        ioctl(self.gpu.file.as_fd(), &mut offset)?;
        let map = Map::new(self.gpu.file.as_fd(), offset.offset, self.size)?;
        ioctl(self.gpu.file.as_fd(), &mut SetDomain { handle: self.handle, read: domain, write: domain })?;
        Ok(map)
    }

    /// Gives it a fence: its aperture map is then linear although the memory is tiled.
    pub fn set_tiling(&self, mode: u32, stride: u32) -> io::Result<()> {
        ioctl(self.gpu.file.as_fd(), &mut SetTiling { handle: self.handle, mode, stride, swizzle: 0 })
    }

    /// Copies out of it by the kernel.
    pub fn pread(&self, offset: usize, data: &mut [u32]) -> io::Result<()> {
        let (handle, size, data) = (self.handle, data.len() as u64 * 4, data.as_mut_ptr() as u64);
        ioctl(self.gpu.file.as_fd(), &mut GemPread { handle, pad: 0, offset: offset as u64, size, data })
    }

    /// Copies into it by the kernel.
    pub fn pwrite(&self, offset: usize, data: &[u32]) -> io::Result<()> {
        let (handle, size, data) = (self.handle, data.len() as u64 * 4, data.as_ptr() as u64);
        ioctl(self.gpu.file.as_fd(), &mut GemPwrite { handle, pad: 0, offset: offset as u64, size, data })
    }

    /// Whether the GPU still uses it.
    pub fn busy(&self) -> io::Result<bool> {
        let mut busy = GemBusy { handle: self.handle, busy: 0 };
        ioctl(self.gpu.file.as_fd(), &mut busy)?;
        Ok(busy.busy != 0)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let _ = ioctl(self.gpu.file.as_fd(), &mut GemClose { handle: self.handle, pad: 0 });
    }
}

/// An address space and a queue on one engine.
pub struct Context<'g> {
    gpu: &'g Gpu,
    id: u32,
}

impl Context<'_> {
    /// Queues `batch`, which uses `others`; all of them lie at their own addresses.
    pub fn submit(&self, batch: &Buffer<'_>, others: &[&Buffer<'_>]) -> io::Result<Fence> {
        let object = |buffer: &Buffer<'_>, flags| ExecObject {
            handle: buffer.handle,
            offset: buffer.address,
            flags: flags | EXEC_OBJECT_PINNED | EXEC_OBJECT_SUPPORTS_48B,
            ..ExecObject::default()
        };
        let mut objects = vec![object(batch, 0)];
        objects.extend(others.iter().map(|buffer| object(buffer, EXEC_OBJECT_WRITE)));
        let mut exec = Execbuffer2 {
            buffers: objects.as_ptr() as u64,
            count: objects.len() as u32,
            flags: EXEC_FENCE_OUT | EXEC_BATCH_FIRST,
            context: u64::from(self.id),
            ..Execbuffer2::default()
        };
        ioctl(self.gpu.file.as_fd(), &mut exec)?;
        // SAFETY: 1. The kernel has just made this descriptor for us, in the upper half of the field.
        Ok(Fence(unsafe { OwnedFd::from_raw_fd((exec.fences >> 32) as i32) }))
    }

    /// How many batches of this context were running when the GPU was reset.
    pub fn resets(&self) -> io::Result<u32> {
        let mut stats = ResetStats { id: self.id, ..ResetStats::default() };
        ioctl(self.gpu.file.as_fd(), &mut stats)?;
        Ok(stats.active)
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        let _ = ioctl(self.gpu.file.as_fd(), &mut ContextDestroy { id: self.id, pad: 0 });
    }
}

/// Signals when a batch has ended.
pub struct Fence(OwnedFd);

impl Fence {
    /// Whether it has signalled within this time.
    pub fn signals_within(&self, milliseconds: i32) -> io::Result<bool> {
        readable(self.0.as_fd(), milliseconds)
    }

    /// Waits, and calls it an error if that takes too long.
    pub fn wait(&self) -> io::Result<()> {
        match self.signals_within(PATIENCE_MS)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the batch did not end")),
        }
    }
}
