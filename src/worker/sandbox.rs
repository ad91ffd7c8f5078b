//! The sandbox: what a worker may reach is little, and nothing of what decides about it.
//!
//! It is put up before the trainer's library is loaded, and cannot be taken down. A view of the file
//! system of its own leaves nothing else to be named, Landlock limits files and TCP, seccomp the system
//! calls, resource limits the rest. A system that lacks one of them goes without it, and says so. The
//! compiler is confined by the same means but the first, and less strictly: it has to start programs.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a process needs for its task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Files and folders that it may read, beside system libraries and what tells about the machine.
    pub readable: Vec<PathBuf>,
    /// Files and folders that it may write.
    pub writable: Vec<PathBuf>,
    /// Whether it may start programs: those of the system, and those that it may read.
    pub programs: bool,
    /// Whether it needs the nodes of a graphics card.
    pub cuda: bool,
}

impl Confinement {
    /// Confines this thread and all that it will start. Returns what the system cannot do, as in
    /// "there is no …".
    #[cfg(target_os = "linux")]
    pub(crate) fn enter(&self) -> Vec<String> {
        let mut missing = Vec::new();
        linux::limit_resources(self, &mut missing);
        linux::limit_view(self, &mut missing);
        linux::limit_files(self, &mut missing);
        linux::limit_calls(self, &mut missing);
        missing
    }

    /// There is a process of its own, and no more.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn enter(&self) -> Vec<String> {
        vec!["sandbox on this system".to_owned()]
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{
        super::room::{self, Use},
        Confinement,
    };
    use landlock::{
        ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
        RulesetError, RulesetStatus, Scope, path_beneath_rules,
    };
    use rustix::process::{Resource, Rlimit, setrlimit};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, apply_filter,
    };

    /// Shared libraries, and what libraries ask about the machine.
    const READABLE: &[&str] = &[
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/nix/store",
        "/gnu/store",
        "/etc/ld.so.cache",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/sys/devices/system",
        "/dev/urandom",
        "/dev/zero",
        // Its own process only: the kernel resolves the link now. Backtraces look here.
        OWN_PROCESS,
    ];

    /// Where there is no view of its own. There it would lead to descriptors and memory.
    const OWN_PROCESS: &str = "/proc/self";

    /// Compilers, linkers, and what they ask about the machine.
    const PROGRAMS: &[&str] = &[
        "/usr",
        "/bin",
        "/sbin",
        "/etc/alternatives",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/sys/fs/cgroup",
    ];

    /// What a CUDA driver opens.
    const CUDA_READABLE: &[&str] = &["/proc/driver/nvidia", "/sys/bus/pci", "/usr/share/nvidia"];

    /// The newest version of Landlock that the rules below were written for.
    const VERSION: ABI = ABI::V6;

    /// Places of the view; a compiler keeps the one that it has.
    pub(super) fn limit_view(confinement: &Confinement, missing: &mut Vec<String>) {
        if confinement.programs {
            return;
        }
        let cuda = if confinement.cuda { CUDA_READABLE } else { &[] };
        let system = READABLE.iter().chain(cuda).filter(|&&path| path != OWN_PROCESS);
        // Device files have a use of their own.
        let readable =
            system.filter(|path| !path.starts_with("/dev/")).map(std::path::PathBuf::from);
        let readable = readable.chain(confinement.readable.iter().cloned());
        let devices = ["/dev/null", "/dev/zero", "/dev/urandom"].map(std::path::PathBuf::from);
        let devices = devices.into_iter().chain(card_nodes(confinement.cuda));
        let places: Vec<_> = readable
            .map(|path| (path, Use::Read))
            .chain(devices.map(|path| (path, Use::Device)))
            .chain(confinement.writable.iter().map(|path| (path.clone(), Use::Write)))
            .collect();
        if let Err(error) = room::enter(&places) {
            missing.push(format!("view of the file system of its own: {error}"));
        }
    }

    pub(super) fn limit_files(confinement: &Confinement, missing: &mut Vec<String>) {
        match restrict(confinement) {
            Ok(RulesetStatus::FullyEnforced) => {}
            Ok(RulesetStatus::PartiallyEnforced) => {
                missing.push(
                    "newer Landlock in the kernel: files are limited, other things less".to_owned(),
                );
            }
            Ok(RulesetStatus::NotEnforced) => missing.push("Landlock in the kernel".to_owned()),
            Err(error) => missing.push(format!("Landlock here: {error}")),
        }
    }

    fn restrict(confinement: &Confinement) -> Result<RulesetStatus, RulesetError> {
        let read = AccessFs::from_read(VERSION);
        let everything = AccessFs::from_all(VERSION);
        let write: BitFlags<AccessFs> = everything & !BitFlags::from(AccessFs::Execute);
        // A build runs what it has built, of its dependencies' build scripts.
        let written = if confinement.programs { everything } else { write };
        let own_program = std::env::current_exe().ok();
        let cuda = if confinement.cuda { CUDA_READABLE } else { &[] };
        let programs = if confinement.programs { PROGRAMS } else { &[] };
        let rules = Ruleset::default()
            .handle_access(everything)?
            .handle_access(AccessNet::from_all(VERSION))?
            .scope(Scope::from_all(VERSION))?
            .create()?
            // Paths that do not exist are left out.
            .add_rules(path_beneath_rules(READABLE.iter().chain(cuda).chain(programs), read))?
            .add_rules(path_beneath_rules(&confinement.readable, read))?
            .add_rules(path_beneath_rules(&own_program, read))?
            .add_rules(path_beneath_rules(["/dev/null"], write))?
            .add_rules(path_beneath_rules(&confinement.writable, written))?
            .add_rules(path_beneath_rules(card_nodes(confinement.cuda), write))?;
        Ok(rules.restrict_self()?.ruleset)
    }

    fn card_nodes(cuda: bool) -> Vec<std::path::PathBuf> {
        let nodes = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let nodes = nodes.filter(|node| node.file_name().as_encoded_bytes().starts_with(b"nvidia"));
        nodes.filter(|_| cuda).map(|node| node.path()).collect()
    }

    /// Calls by which one process starts, ends or moves another.
    const OF_PROGRAMS: &[i64] = &[
        libc::SYS_execve,
        libc::SYS_execveat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
        libc::SYS_kill,
        libc::SYS_socketpair,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_setsid,
        libc::SYS_setpgid,
    ];

    /// Calls that leave a mark on a file that is not written: modes, owners, times, attributes, locks,
    /// other names. What one process marks another can see. A compiler needs some of them.
    const OF_MARKS: &[i64] = &[
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        FCHMODAT2,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utime,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utimes,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_futimesat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        SETXATTRAT,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        REMOVEXATTRAT,
        FILE_SETATTR,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_link,
        libc::SYS_linkat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod,
        libc::SYS_mknodat,
        libc::SYS_flock,
        // What is in memory of a file tells who read it.
        libc::SYS_mincore,
        CACHESTAT,
        libc::SYS_readahead,
        libc::SYS_fadvise64,
        // Other processes' limits, places and turns.
        libc::SYS_setpriority,
        libc::SYS_ioprio_set,
        libc::SYS_kcmp,
        libc::SYS_process_madvise,
        libc::SYS_inotify_init1,
        libc::SYS_fanotify_init,
    ];

    /// By this bit a call is one of x86-64's third table, where the kernel has that.
    #[cfg(target_arch = "x86_64")]
    const X32: i64 = 0x4000_0000;

    // Calls that are too new for the C library; their numbers are the same on all architectures.
    const CACHESTAT: i64 = 451;
    const FCHMODAT2: i64 = 452;
    const SETXATTRAT: i64 = 463;
    const REMOVEXATTRAT: i64 = 466;
    const FILE_SETATTR: i64 = 469;

    /// Commands of `fcntl` that other processes notice: locks, leases, and whom a signal goes to.
    const NOTICED_BY_OTHERS: &[i32] = &[
        libc::F_SETLK,
        libc::F_SETLKW,
        libc::F_OFD_SETLK,
        libc::F_OFD_SETLKW,
        libc::F_SETLEASE,
        libc::F_NOTIFY,
        libc::F_SETOWN,
    ];

    /// Calls that nobody needs who computes or compiles: they reach the network, other processes,
    /// or parts of the kernel that know no sandbox.
    const DENIED: &[i64] = &[
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_shmget,
        libc::SYS_msgget,
        libc::SYS_semget,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
    ];

    pub(super) fn limit_calls(confinement: &Confinement, missing: &mut Vec<String>) {
        let applied = filters(confinement.programs).and_then(|filters| {
            for filter in &filters {
                apply_filter(filter).map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        if let Err(error) = applied {
            missing.push(format!("seccomp here: {error}"));
        }
    }

    fn filters(programs: bool) -> Result<Vec<BpfProgram>, String> {
        let said = |error: seccompiler::BackendError| error.to_string();
        // Threads are made by the same call as processes; only the flag tells them apart.
        let no_thread = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
            0,
        );
        let no_thread = SeccompRule::new(vec![no_thread.map_err(said)?]).map_err(said)?;
        let argument = |place, operator, value: u64| {
            let condition = SeccompCondition::new(place, SeccompCmpArgLen::Dword, operator, value)
                .map_err(said)?;
            SeccompRule::new(vec![condition]).map_err(said)
        };
        let mut denied: Vec<_> = DENIED.iter().map(|&call| (call, vec![])).collect();
        if !programs {
            denied.extend(OF_PROGRAMS.iter().map(|&call| (call, vec![])));
            denied.push((libc::SYS_clone, vec![no_thread]));
            denied.extend(OF_MARKS.iter().map(|&call| (call, vec![])));
            let noticed = NOTICED_BY_OTHERS
                .iter()
                .map(|&command| argument(1, SeccompCmpOp::Eq, u64::from(command.cast_unsigned())));
            denied.push((libc::SYS_fcntl, noticed.collect::<Result<_, _>>()?));
            // Limits of any process but this.
            denied.push((libc::SYS_prlimit64, vec![argument(0, SeccompCmpOp::Ne, 0)?]));
        }
        // The same calls by their second names, and those that have no other.
        #[cfg(target_arch = "x86_64")]
        {
            let again = denied.iter().map(|(call, _)| (call | X32, vec![]));
            let again: Vec<_> = again.chain((512..=547).map(|call| (call | X32, vec![]))).collect();
            denied.extend(again);
        }
        let filter = |calls: Vec<(i64, Vec<SeccompRule>)>, error: i32| {
            let architecture = std::env::consts::ARCH.try_into().map_err(said)?;
            let action = SeccompAction::Errno(error.cast_unsigned());
            let calls = calls.into_iter().collect();
            let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture);
            filter.and_then(BpfProgram::try_from).map_err(said)
        };
        let mut filters = vec![filter(denied, libc::EPERM)?];
        if !programs {
            // Its flags lie in memory, where no filter can look. Told that there is no such call,
            // the C library takes the old one.
            filters.push(filter(vec![(libc::SYS_clone3, vec![])], libc::ENOSYS)?);
        }
        Ok(filters)
    }

    /// No file of a trainer's is larger.
    const FILE_BYTES: u64 = 16 << 30;

    /// Of the machine's memory: what is left keeps the parent alive.
    const SHARE_OF_MEMORY: f64 = 0.9;

    pub(super) fn limit_resources(confinement: &Confinement, missing: &mut Vec<String>) {
        let mut limit = |resource, most: u64, name: &str| {
            let limit = Rlimit { current: Some(most), maximum: Some(most) };
            if let Err(error) = setrlimit(resource, limit) {
                missing.push(format!("limit of {name}: {error}"));
            }
        };
        limit(Resource::Core, 0, "core dumps");
        limit(Resource::Fsize, FILE_BYTES, "file sizes");
        limit(Resource::Nofile, 1024, "open files");
        // A driver maps more than there is.
        if let Some(memory) = memory_bytes().filter(|_| !confinement.cuda) {
            limit(Resource::Data, (SHARE_OF_MEMORY * memory as f64) as u64, "memory");
        }
    }

    fn memory_bytes() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }
}
