//! A CUDA device as a card, through the stream and the libraries that candle has opened on it.

use super::{Address, Argument, Card, Launch, Memory, Product};
use candle_core::{
    CudaDevice, Result, Storage, Tensor, bail,
    cuda_backend::{
        DeviceId, WrapErr,
        cudarc::{
            cublas::{result as cublas, sys as cublas_sys},
            driver::{
                CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig,
                PushKernelArg, result as driver, sys,
            },
            nvrtc::Ptx,
        },
    },
};
use std::{cell::RefCell, collections::HashMap, ffi::c_void, rc::Rc, sync::Arc};

/// The files in `cuda/`, compiled by `build.rs`.
const MODULES: [&[u8]; 7] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/elementwise.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/embedding.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/gate.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/head.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/optimizer.fatbin")),
];

/// Dynamic shared memory that every block may have without being asked.
const SHARED_BY_DEFAULT: usize = 48 * 1024;

thread_local! {
    static CARDS: RefCell<HashMap<DeviceId, Rc<Cuda>>> = RefCell::default();
}

/// Ampere was the first to multiply `bf16` and to copy to shared memory behind a kernel's back.
pub fn takes(device: &CudaDevice) -> bool {
    let capability = device.cuda_stream().context().compute_capability();
    capability.is_ok_and(|(major, _)| major >= 8)
}

/// The card of this device on this thread.
pub fn of(device: &CudaDevice) -> Result<Rc<dyn Card>> {
    CARDS.with_borrow_mut(|cards| {
        if let Some(card) = cards.get(&device.id()) {
            return Ok(card.clone() as Rc<dyn Card>);
        }
        let card = Rc::new(Cuda::new(device)?);
        cards.insert(device.id(), card.clone());
        Ok(card as Rc<dyn Card>)
    })
}

struct Cuda {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    functions: RefCell<HashMap<&'static str, CudaFunction>>,
    /// What uploads read from: in use until somebody has waited for the card.
    staged: RefCell<Staged>,
    pool: Rc<Pool>,
}

/// Memory that nobody has at the moment, by its size. To ask the driver takes as long as to queue a kernel, and a
/// step asks for the same sizes as the step before. What is queued runs in order: whoever gets memory writes to it
/// after its last owner has read.
#[derive(Default)]
struct Pool(RefCell<HashMap<usize, Vec<CudaSlice<u8>>>>);

/// A part of a pool's memory, which goes back there.
struct Lent {
    slice: Option<CudaSlice<u8>>,
    pool: Rc<Pool>,
}

impl Pool {
    fn lend(self: &Rc<Self>, stream: &Arc<CudaStream>, bytes: usize) -> Result<Lent> {
        let free = self.0.borrow_mut().get_mut(&bytes).and_then(Vec::pop);
        let slice = match free {
            Some(slice) => slice,
            // SAFETY: nobody reads what was not written.
            None => match unsafe { stream.alloc(bytes) } {
                Ok(slice) => slice,
                Err(_) => {
                    // Of sizes that nobody may want again.
                    self.0.take();
                    // SAFETY: as above.
                    unsafe { stream.alloc(bytes).w()? }
                }
            },
        };
        Ok(Lent { slice: Some(slice), pool: self.clone() })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.pool.0.borrow_mut().entry(slice.len()).or_default().push(slice);
        }
    }
}

#[derive(Default)]
struct Staged {
    busy: Vec<Pinned>,
    free: Vec<Pinned>,
}

/// Memory of the host that the card reads by itself. From any other, a copy waits for all that is queued.
struct Pinned {
    start: *mut u8,
    bytes: usize,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it came from `malloc_host`. An error has nobody to go to.
        let _ = unsafe { driver::free_host(self.start.cast()) };
    }
}

impl Staged {
    /// A copy of `bytes` that stays until it is free again.
    fn hold(&mut self, bytes: &[u8]) -> Result<&[u8]> {
        let fits = |pinned: &Pinned| (bytes.len()..=4 * bytes.len()).contains(&pinned.bytes);
        let pinned = match self.free.iter().position(fits) {
            Some(at) => self.free.swap_remove(at),
            None => {
                let room = bytes.len().next_power_of_two();
                // SAFETY: the device's context is this thread's, since a card was made of it.
                let start = unsafe { driver::malloc_host(room, 0).w()? };
                Pinned { start: start.cast(), bytes: room }
            }
        };
        // SAFETY: it is as long, and nobody else has it.
        let copy = unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), pinned.start, bytes.len());
            std::slice::from_raw_parts(pinned.start, bytes.len())
        };
        self.busy.push(pinned);
        Ok(copy)
    }
}

impl Cuda {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        // SAFETY: everything of this thread is on one stream, and nothing leaves the thread.
        unsafe { device.disable_event_tracking() };
        // What was freed stays with the process: without this, every wait for the card gives all of
        // it back to the driver, which takes milliseconds to get again.
        let mut keep = u64::MAX;
        // SAFETY: the device is the context's, and the attribute is a u64.
        unsafe {
            let pool = driver::device::get_default_mem_pool(context.cu_device()).w()?;
            sys::cuMemPoolSetAttribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut keep).cast::<c_void>(),
            )
            .result()
            .w()?;
            // Or a long sum is cut in parts that meet in bf16.
            cublas_sys::cublasSetMathMode(
                *device.cublas_handle().handle(),
                cublas_sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION,
            )
            .result()
            .w()?;
        }
        let load = |image: &[u8]| context.load_module(Ptx::from_binary(image.to_vec())).w();
        let modules = MODULES.into_iter().map(load).collect::<Result<_>>()?;
        Ok(Self {
            device: device.clone(),
            stream,
            modules,
            functions: RefCell::default(),
            staged: RefCell::default(),
            pool: Rc::default(),
        })
    }

    fn function(&self, launch: &Launch) -> Result<CudaFunction> {
        if let Some(function) = self.functions.borrow().get(launch.kernel) {
            return Ok(function.clone());
        }
        let found = self.modules.iter().find_map(|module| module.load_function(launch.kernel).ok());
        let Some(function) = found else { bail!("there is no kernel {}", launch.kernel) };
        if launch.shared > SHARED_BY_DEFAULT {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, launch.shared as i32).w()?;
        }
        self.functions.borrow_mut().insert(launch.kernel, function.clone());
        Ok(function)
    }
}

impl Card for Cuda {
    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let lent = self.pool.lend(&self.stream, bytes.next_multiple_of(512).max(512))?;
        let slice = lent.slice.as_ref().expect("it is lent until it is dropped");
        let address = Address(slice.device_ptr(&self.stream).0);
        Ok(Memory { address, bytes, owner: Box::new(lent) })
    }

    fn upload(&self, bytes: &[u8], to: &Memory) -> Result<()> {
        let mut staged = self.staged.borrow_mut();
        let bytes = staged.hold(bytes)?;
        // SAFETY: what is staged stays until the card was waited for.
        unsafe { driver::memcpy_htod_async(to.address.0, bytes, self.stream.cu_stream()).w() }
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: `bytes` outlives the wait.
        unsafe { driver::memcpy_dtoh_async(bytes, from.0, self.stream.cu_stream()).w()? };
        self.stream.synchronize().w()?;
        let staged = &mut *self.staged.borrow_mut();
        staged.free.append(&mut staged.busy);
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: callers pass addresses of memory of this size.
        unsafe { driver::memcpy_dtod_async(to.0, from.0, bytes, self.stream.cu_stream()).w() }
    }

    fn clear(&self, memory: &Memory) -> Result<()> {
        let (address, bytes) = (memory.address.0, memory.bytes);
        // SAFETY: the memory is there as long as it is borrowed.
        unsafe { driver::memset_d8_async(address, 0, bytes, self.stream.cu_stream()).w() }
    }

    fn launch(&self, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let function = self.function(&launch)?;
        let [x, y] = launch.grid.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, 1),
            block_dim: (launch.threads as u32, 1, 1),
            shared_mem_bytes: launch.shared as u32,
        };
        let mut queued = self.stream.launch_builder(&function);
        for argument in arguments {
            queued.arg(&argument.0);
        }
        // SAFETY: the wrappers of this crate pass what the kernel of that name takes.
        unsafe { queued.launch(config).w()? };
        Ok(())
    }

    fn product(&self, product: Product) -> Result<()> {
        use cublas_sys::{
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T},
            cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F},
        };
        let Product { rows, columns, inner, a, b, c, alpha, beta, batch } = product;
        // cuBLAS stores columns: to it, everything here is transposed. So it is given bᵀ aᵀ.
        let form = |transposed, plain: usize, other: usize| {
            if transposed { (CUBLAS_OP_T, other as i32) } else { (CUBLAS_OP_N, plain as i32) }
        };
        let (b_form, b_stride) = form(b.1, columns, inner);
        let (a_form, a_stride) = form(a.1, inner, rows);
        let handle = self.device.cublas_handle();
        let at = |address: Address| address.0 as *const c_void;
        let c_type = if c.1 { CUDA_R_32F } else { CUDA_R_16BF };
        if batch == 1 {
            // SAFETY: callers pass addresses of matrices of these sizes; the factors outlive the call.
            return unsafe {
                cublas::gemm_ex(
                    *handle.handle(),
                    b_form,
                    a_form,
                    columns as i32,
                    rows as i32,
                    inner as i32,
                    (&raw const alpha).cast(),
                    at(b.0),
                    CUDA_R_16BF,
                    b_stride,
                    at(a.0),
                    CUDA_R_16BF,
                    a_stride,
                    (&raw const beta).cast(),
                    c.0.0 as *mut c_void,
                    c_type,
                    columns as i32,
                    CUBLAS_COMPUTE_32F,
                    CUBLAS_GEMM_DFALT,
                )
                .w()
            };
        }
        // SAFETY: as above.
        unsafe {
            cublas::gemm_strided_batched_ex(
                *handle.handle(),
                b_form,
                a_form,
                columns as i32,
                rows as i32,
                inner as i32,
                (&raw const alpha).cast(),
                at(b.0),
                CUDA_R_16BF,
                b_stride,
                (inner * columns) as i64,
                at(a.0),
                CUDA_R_16BF,
                a_stride,
                (rows * inner) as i64,
                (&raw const beta).cast(),
                c.0.0 as *mut c_void,
                c_type,
                columns as i32,
                (rows * columns) as i64,
                batch as i32,
                CUBLAS_COMPUTE_32F,
                CUBLAS_GEMM_DFALT,
            )
            .w()
        }
    }

    fn address(&self, tensor: &Tensor) -> Result<Address> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("a kernel was given a tensor that is not contiguous, or not on its card");
        };
        let slice = storage.as_cuda_slice::<f32>()?;
        Ok(Address(slice.device_ptr(&self.stream).0).offset(start * super::F32))
    }
}
