//! Names for contents: SHA-256 in hexadecimal.

use sha2::{Digest, Sha256};
use std::{fmt::Write, fs::File, io, path::Path};

/// Of one text or file.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Of a file, without holding it in memory.
pub(crate) fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        match io::Read::read(&mut file, &mut chunk)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            length => hasher.update(&chunk[..length]),
        }
    }
}

/// Of several parts, told apart by their lengths.
pub(crate) fn sha256_of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hexadecimal(&hasher.finalize())
}

/// A number made of the same parts, for seeds.
pub(crate) fn number_of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let hash = sha256_of_parts(parts);
    // 16 of 64 hexadecimal digits fill a u64 exactly.
    u64::from_str_radix(&hash[..16], 16).unwrap_or_default()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha_256() {
        // FIPS 180-4's example.
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn parts_are_told_apart() {
        let hash = |parts: &[&str]| sha256_of_parts(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
