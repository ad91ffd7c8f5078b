//! Compiles the kernels in `cuda/` for cards, where the crate is built for one.

use std::{env, path::Path, process::Command};

/// One module each; `src/card/cuda.rs` has the same list.
const MODULES: [&str; 7] =
    ["attention", "elementwise", "embedding", "gate", "head", "norm", "optimizer"];

/// Code for the oldest card that has what the kernels need, which later ones of its generation run,
/// and for Hopper; whatever is newer compiles the text that is added.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=cuda");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let running = MODULES.map(|module| {
        let mut command = Command::new(nvcc());
        command.args(["-fatbin", "-O3", "-std=c++17"]).args(TARGETS);
        command.arg("-o").arg(Path::new(&out).join(module).with_extension("fatbin"));
        command.arg(format!("cuda/{module}.cu"));
        match command.spawn() {
            Ok(child) => (module, child),
            Err(error) => fail(&format!("{} did not start: {error}", nvcc())),
        }
    });
    for (module, mut child) in running {
        match child.wait() {
            Ok(status) if status.success() => {}
            _ => fail(&format!("{} did not compile cuda/{module}.cu", nvcc())),
        }
    }
}

/// As candle's own build finds it.
fn nvcc() -> String {
    if let Ok(nvcc) = env::var("NVCC") {
        return nvcc;
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|name| env::var(name).ok());
    let mut found = homes.map(|home| format!("{home}/bin/nvcc"));
    found.find(|nvcc| Path::new(nvcc).exists()).unwrap_or_else(|| "nvcc".to_owned())
}

fn fail(problem: &str) -> ! {
    println!("cargo::error={problem}");
    std::process::exit(1);
}
