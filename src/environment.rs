//! What cargo, and all that it starts, is told of the environment.

use crate::{
    error::{Error, Result},
    lifeline,
};
use std::{path::Path, process::Command};

/// What a compiler and the build scripts of dependencies may know of the environment: where things
/// are, and how a card is compiled for. What changes what cargo builds is not among it, nor any key.
const PASSED_ON: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "CARGO_HOME",
    "CARGO_BUILD_JOBS",
    "CARGO_NET_OFFLINE",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CC",
    "CXX",
    "AR",
    "PKG_CONFIG_PATH",
    "NVCC",
    "SDKROOT",
    "DEVELOPER_DIR",
];

/// What a download needs beside that. Proxies may have a password.
const FOR_DOWNLOADS: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "CARGO_HTTP_PROXY",
    "CARGO_HTTP_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];

/// Whether a variable is for cargo, and so for all that cargo starts.
fn is_passed_on(name: &str, value: &str, purpose: Purpose) -> bool {
    let downloads = purpose == Purpose::Download;
    let starts = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    if name.ends_with("_TOKEN") || name.contains("CREDENTIAL") {
        return false;
    }
    // Where registries are; a build that finds none of them ends. An address may have a password.
    let is_place = starts(&["CARGO_REGISTRIES_", "CARGO_SOURCE_"])
        && ["_INDEX", "_PROTOCOL", "_REPLACE_WITH", "_REGISTRY", "_DIRECTORY"]
            .iter()
            .any(|end| name.ends_with(end));
    PASSED_ON.contains(&name)
        || starts(&["CUDA_", "NVCC_", "NIX_CC", "NIX_BINTOOLS", "NIX_LDFLAGS", "NIX_CFLAGS"])
        || is_place && (downloads || !value.contains('@'))
        || downloads && FOR_DOWNLOADS.contains(&name)
}

/// `cargo`, with a part of the environment: a source could have the rest told by the compiler, and an
/// outer cargo or a user's shell would change what is built, and so rebuild every dependency.
pub(crate) fn cargo() -> Command {
    cargo_for(Path::new("cargo"), Purpose::Build)
}

/// The same, of a toolchain that is called by its place.
pub(crate) fn cargo_at(program: &Path) -> Command {
    cargo_for(program, Purpose::Build)
}

/// The same, for what may download.
pub(crate) fn cargo_that_downloads() -> Command {
    cargo_for(Path::new("cargo"), Purpose::Download)
}

/// What cargo is started for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Purpose {
    Build,
    Download,
}

fn cargo_for(program: &Path, purpose: Purpose) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::vars_os().filter(|(name, value)| {
        name.to_str().is_some_and(|name| is_passed_on(name, &value.to_string_lossy(), purpose))
    }));
    if purpose == Purpose::Download {
        // Nothing is compiled, and cargo would run the user's wrapper to ask for a version.
        command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
    }
    command
}

/// Makes sure that what the lock file in `folder` names is on this machine.
pub(crate) fn fetch(folder: &Path) -> Result<()> {
    let fetch = |arguments: &[&str]| {
        let mut command = cargo_that_downloads();
        let output = lifeline::output(command.arg("fetch").args(arguments).current_dir(folder));
        output.map_err(Error::missing("cargo"))
    };
    // Offline first: a machine that has the crates needs no network, nor time for it.
    if fetch(&["--locked", "--offline"])?.status.success() {
        return Ok(());
    }
    let online = fetch(&["--locked"])?;
    if online.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: "cargo fetch --locked".to_owned(),
        folder: folder.to_owned(),
        complaint: last_lines(&String::from_utf8_lossy(&online.stderr)),
    })
}

pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_is_told_where_things_are_and_no_secret() {
        use Purpose::{Build, Download};
        for (name, value, purpose, passed) in [
            ("PATH", "/bin", Build, true),
            ("CUDA_COMPUTE_CAP", "90", Build, true),
            ("CARGO_REGISTRY_TOKEN", "secret", Download, false),
            ("CARGO_REGISTRIES_OURS_TOKEN", "secret", Download, false),
            ("CARGO_REGISTRIES_OURS_CREDENTIAL_PROVIDER", "x", Download, false),
            ("CARGO_REGISTRIES_OURS_INDEX", "https://ours", Build, true),
            ("CARGO_REGISTRIES_OURS_INDEX", "https://me:secret@ours", Build, false),
            ("CARGO_REGISTRIES_OURS_INDEX", "https://me:secret@ours", Download, true),
            ("https_proxy", "http://me:secret@proxy", Build, false),
            ("https_proxy", "http://me:secret@proxy", Download, true),
            ("RUSTFLAGS", "-g", Build, false),
            ("CARGO_TARGET_DIR", "/elsewhere", Build, false),
            ("OPENAI_API_KEY", "secret", Download, false),
        ] {
            assert_eq!(is_passed_on(name, value, purpose), passed, "{name}={value}");
        }
    }
}
