//! What is in memory of the files that this process has mapped: all of it, before a trainer's code runs.
//!
//! How long a read takes tells whether the page was in memory, and so whether somebody has read it before.
//! One room of the exam could leave a message there for the other. Of what is private to a room nobody
//! else has read anything; what all workers share, their program and the system's libraries, is faulted
//! in as a whole, whatever was there.

use rustix::mm::{Advice, madvise};
use std::{ffi::c_void, fs};

/// Faults in all pages of mapped files.
#[expect(unsafe_code, reason = "addresses are numbers here")]
pub(super) fn fault_in() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(file_mapping) {
        let start = std::ptr::without_provenance_mut::<c_void>(start);
        // SAFETY: this advice reads pages and changes nothing; of what is no mapping any more it is an error.
        if unsafe { madvise(start, length, Advice::LinuxPopulateRead) }.is_err() {
            touch(start.cast(), length);
        }
    }
}

/// For kernels before 5.14, which do not know the advice.
#[expect(unsafe_code, reason = "addresses are numbers here")]
fn touch(start: *const u8, length: usize) {
    for at in (0..length).step_by(4096) {
        // SAFETY: the program has one thread and has unmapped nothing since it read the list; the mapping
        // is readable.
        let _ = unsafe { start.add(at).read_volatile() };
    }
}

/// `7f8e2a000000-7f8e2a1b0000 r-xp 00000000 fe:00 1234  /usr/lib/libc.so.6` (proc_pid_maps(5)).
fn file_mapping(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, modes) = (fields.next()?, fields.next()?);
    let path = fields.nth(3)?;
    let (start, end) = range.split_once('-')?;
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16));
    let (start, end) = (start.ok()?, end.ok()?);
    (modes.starts_with('r') && path.starts_with('/')).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_files_are_found_and_faulted_in() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.lines().filter_map(file_mapping).count() > 3, "{maps}");
        assert_eq!(file_mapping("7ffc0-7ffd0 rw-p 00000000 00:00 0    [stack]"), None);
        assert_eq!(file_mapping("1000-3000 ---p 00000000 fe:00 12    /usr/lib/a"), None);
        assert_eq!(
            file_mapping("1000-3000 r--p 00000000 fe:00 12    /usr/lib/a"),
            Some((0x1000, 0x2000))
        );
        fault_in();
    }
}
