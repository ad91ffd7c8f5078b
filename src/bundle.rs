//! The sources that the library carries: the trainer template, and the plugin-api it is built with.
//!
//! Carried inside the program, so that a tool which links the library is one file that runs
//! anywhere a Rust toolchain is.

// By way of the links in `src/bundle/`: cargo packages what they lead to, and no folder that has a
// `Cargo.toml`. So each manifest is linked by another name.
macro_rules! files {
    ($($path:literal $(in $link:literal)?),* $(,)?) => {
        &[$(($path, files!(@text $path $(in $link)?))),*]
    };
    (@text $path:literal) => {
        include_str!(concat!("bundle/", $path))
    };
    (@text $path:literal in $link:literal) => {
        include_str!(concat!("bundle/", $link))
    };
}

/// Every file, by its path in the repository.
pub(crate) const FILES: &[(&str, &str)] = files![
    "plugin-api/Cargo.toml" in "plugin-api/manifest.toml",
    "plugin-api/src/error.rs",
    "plugin-api/src/lib.rs",
    "plugin-api/src/raw.rs",
    "plugin-api/src/session.rs",
    "plugin-api/src/trainer.rs",
    "trainer-template/Cargo.lock",
    "trainer-template/Cargo.toml" in "trainer-template/manifest.toml",
    "trainer-template/kernels/Cargo.toml" in "trainer-template/kernels/manifest.toml",
    "trainer-template/kernels/build.rs",
    "trainer-template/kernels/cuda/attention.cu",
    "trainer-template/kernels/cuda/elementwise.cu",
    "trainer-template/kernels/cuda/embedding.cu",
    "trainer-template/kernels/cuda/gate.cu",
    "trainer-template/kernels/cuda/head.cu",
    "trainer-template/kernels/cuda/host.h",
    "trainer-template/kernels/cuda/norm.cu",
    "trainer-template/kernels/cuda/numbers.h",
    "trainer-template/kernels/cuda/optimizer.cu",
    "trainer-template/kernels/cuda/tile.h",
    "trainer-template/kernels/src/activation.rs",
    "trainer-template/kernels/src/adamw.rs",
    "trainer-template/kernels/src/attention.rs",
    "trainer-template/kernels/src/attention_bf16.rs",
    "trainer-template/kernels/src/card/attention.rs",
    "trainer-template/kernels/src/card/cuda.rs",
    "trainer-template/kernels/src/card/elementwise.rs",
    "trainer-template/kernels/src/card/embedding.rs",
    "trainer-template/kernels/src/card/head.rs",
    "trainer-template/kernels/src/card/linear.rs",
    "trainer-template/kernels/src/card/mod.rs",
    "trainer-template/kernels/src/card/norm.rs",
    "trainer-template/kernels/src/card/optimizer.rs",
    "trainer-template/kernels/src/card/pass.rs",
    "trainer-template/kernels/src/card/tape.rs",
    "trainer-template/kernels/src/composed.rs",
    "trainer-template/kernels/src/element.rs",
    "trainer-template/kernels/src/embedding.rs",
    "trainer-template/kernels/src/gradients.rs",
    "trainer-template/kernels/src/head.rs",
    "trainer-template/kernels/src/lib.rs",
    "trainer-template/kernels/src/linear.rs",
    "trainer-template/kernels/src/math.rs",
    "trainer-template/kernels/src/muon.rs",
    "trainer-template/kernels/src/norm.rs",
    "trainer-template/kernels/src/pairs.rs",
    "trainer-template/kernels/src/pass.rs",
    "trainer-template/kernels/src/processor.rs",
    "trainer-template/kernels/src/product.rs",
    "trainer-template/kernels/src/storage.rs",
    "trainer-template/kernels/src/stream.rs",
    "trainer-template/kernels/src/tape.rs",
    "trainer-template/kernels/src/tile.rs",
    "trainer-template/src/lib.rs",
    "trainer-template/src/train.rs",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every file below `folder` that a build may need, relative to the repository.
    fn sources(folder: &str) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{folder}/{name}");
            if name == "target" || name == "tests" || name.starts_with('.') {
                continue;
            }
            if entry.path().is_dir() { found.extend(sources(&path)) } else { found.push(path) }
        }
        found
    }

    #[test]
    fn every_source_of_template_and_plugin_api_is_carried() {
        let mut expected = sources("plugin-api");
        expected.extend(sources("trainer-template"));
        expected.retain(|path| !path.ends_with(".md"));
        expected.sort();
        let mut carried: Vec<_> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        carried.sort();
        assert_eq!(carried, expected);
        for (path, text) in FILES {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            assert_eq!(*text, std::fs::read_to_string(file).unwrap(), "{path}");
        }
    }
}
