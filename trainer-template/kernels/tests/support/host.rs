//! A card in this process: the kernels of `cuda/`, compiled for the processor by a C++ compiler.
//!
//! So every kernel is tested where there is no card, its tensor-core tiles included (`cuda/host.h`). Threads of
//! a block run one after another between two barriers, in an order that changes from launch to launch: a
//! missing barrier shows as a wrong result. Memory starts as NaN.

use candle_core::{DType, Result, Storage, Tensor, bail};
use half::bf16;
use libloading::{Library, Symbol};
use overnight_kernels::card::{Address, Argument, Card, Launch, Memory, Product};
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

/// One after another: they share the numbers of their block.
static RUNNING: Mutex<()> = Mutex::new(());

type LaunchFn = unsafe extern "C" fn(*const u32, u32, usize, *const *const u64, i32);

/// Runs kernels in this process.
pub struct Host {
    libraries: &'static [Library],
    launches: Cell<i32>,
}

/// Bytes that start where vectors may.
#[repr(C, align(256))]
#[derive(Clone)]
struct Block([u8; 256]);

impl Host {
    /// The kernels in the folder `sources`; `None` where there is no C++ compiler.
    pub fn new(sources: &Path) -> Option<Self> {
        static LIBRARIES: OnceLock<Option<Vec<Library>>> = OnceLock::new();
        let libraries = LIBRARIES.get_or_init(|| libraries(sources)).as_deref()?;
        Some(Self { libraries, launches: Cell::new(0) })
    }
}

fn libraries(sources: &Path) -> Option<Vec<Library>> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "{compiler} is needed to test kernels for cards");
        eprintln!("there is no {compiler}: kernels for cards are not tested");
        return None;
    }
    let kernels = std::fs::read_dir(sources).expect("the kernels are there");
    let kernels = kernels.map(|entry| entry.expect("a folder can be read").path());
    let kernels = kernels.filter(|path| path.extension().is_some_and(|name| name == "cu"));
    let compiled: Vec<_> = kernels
        .map(|source| {
            // Another test binary may be at it, too.
            let name = source.file_stem().expect("a file has a name").to_string_lossy();
            let library = std::env::temp_dir().join(format!("{name}-{}.so", std::process::id()));
            let mut command = Command::new(&compiler);
            command.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", "-x", "c++"]);
            command.args(["-fno-strict-aliasing", "-fvisibility=hidden", "-w"]);
            // A sanitizer's, say.
            let more = std::env::var("OVERNIGHT_KERNEL_FLAGS").unwrap_or_default();
            command.args(more.split_whitespace());
            let child = command.arg(&source).arg("-o").arg(&library).spawn();
            (child.expect("it was there a moment ago"), library)
        })
        .collect();
    let load = |(mut child, library): (std::process::Child, PathBuf)| {
        assert!(child.wait().expect("it is our child").success(), "{}", library.display());
        // SAFETY: it was just made from our sources.
        let loaded = unsafe { Library::new(&library) }.expect("it was just compiled");
        // What is loaded stays, without a name.
        std::fs::remove_file(library).expect("it is there");
        loaded
    };
    Some(compiled.into_iter().map(load).collect())
}

/// The memory there.
fn slice<'a, T>(address: Address, count: usize) -> &'a mut [T] {
    // SAFETY: the kernels' wrappers pass addresses of memory of this size, and it is one thread's.
    unsafe { std::slice::from_raw_parts_mut(address.0 as *mut T, count) }
}

impl Card for Host {
    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let mut blocks = vec![Block([0xff; 256]); bytes.div_ceil(256).max(1)];
        let address = Address(blocks.as_mut_ptr() as u64);
        Ok(Memory { address, bytes, owner: Box::new(blocks) })
    }

    fn upload(&self, bytes: &[u8], to: &Memory) -> Result<()> {
        slice(to.address, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(slice(from, bytes.len()));
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        slice::<u8>(to, bytes).copy_from_slice(slice(from, bytes));
        Ok(())
    }

    fn clear(&self, memory: &Memory) -> Result<()> {
        slice::<u8>(memory.address, memory.bytes).fill(0);
        Ok(())
    }

    fn launch(&self, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let name = format!("host_launch_{}", launch.kernel);
        let find = |library: &'static Library| -> Option<Symbol<'static, LaunchFn>> {
            // SAFETY: only `EXPORT` makes such names, all of this type.
            unsafe { library.get(name.as_bytes()) }.ok()
        };
        let Some(run) = self.libraries.iter().find_map(find) else {
            bail!("there is no kernel {}", launch.kernel);
        };
        let grid = [launch.grid[0] as u32, launch.grid[1] as u32, 1];
        let arguments: Vec<*const u64> =
            arguments.iter().map(|argument| &raw const argument.0).collect();
        let count = self.launches.replace(self.launches.get() + 1);
        // Forward, backward, and each time another way.
        let order = [0, 1, 2 + count][count as usize % 3];
        let _running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: the wrappers pass what the kernel of that name takes.
        unsafe {
            run(grid.as_ptr(), launch.threads as u32, launch.shared, arguments.as_ptr(), order);
        }
        Ok(())
    }

    fn product(&self, product: Product) -> Result<()> {
        let Product { rows, columns, inner, a, b, c, alpha, beta, batch } = product;
        for n in 0..batch {
            let matrix = |(address, transposed): (Address, bool), height: usize, width: usize| {
                let at = Address(address.0 + (n * height * width * 2) as u64);
                let numbers = slice::<bf16>(at, height * width);
                let number = move |i: usize, j: usize| {
                    let at = if transposed { j * height + i } else { i * width + j };
                    numbers[at].to_f32()
                };
                number
            };
            let (a, b) = (matrix(a, rows, inner), matrix(b, inner, columns));
            for at in 0..rows * columns {
                let (i, j) = (at / columns, at % columns);
                let sum: f32 = (0..inner).map(|k| a(i, k) * b(k, j)).sum();
                let place = n * rows * columns + at;
                if c.1 {
                    let to = &mut slice::<f32>(c.0, place + 1)[place];
                    *to = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *to };
                } else {
                    let to = &mut slice::<bf16>(c.0, place + 1)[place];
                    let old = if beta == 0.0 { 0.0 } else { beta * to.to_f32() };
                    *to = bf16::from_f32(alpha * sum + old);
                }
            }
        }
        Ok(())
    }

    fn address(&self, tensor: &Tensor) -> Result<Address> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, _)), DType::F32) =
            (&*storage, layout.contiguous_offsets(), tensor.dtype())
        else {
            bail!("a kernel was given a tensor that is not contiguous or not f32");
        };
        Ok(Address(storage.as_slice::<f32>()?[start..].as_ptr() as u64))
    }
}
