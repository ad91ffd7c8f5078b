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
    /// Files and folders that it may read, beside what tells about the machine.
    pub readable: Vec<PathBuf>,
    /// The library that it will load. What that needs of the system's is loaded before the system's have no
    /// names any more.
    pub library: Option<PathBuf>,
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
        if let Some(library) = &self.library {
            crate::plugin::load_needed(library);
        }
        if !self.programs {
            super::pages::fault_in();
        }
        linux::limit_resources(self, &mut missing);
        linux::limit_view(self, &mut missing);
        linux::give_up_rights(self);
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
    use rustix::{
        process::{Resource, Rlimit, setrlimit},
        thread::{CapabilitySet, CapabilitySets, set_capabilities},
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, apply_filter, sock_filter,
    };

    /// Shared libraries. They are gigabytes that all processes of the machine share, in memory or not; only a
    /// compiler sees them, and who computes on a card, whose driver loads them by name.
    const LIBRARIES: &[&str] = &[
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/nix/store",
        "/gnu/store",
        "/etc/ld.so.cache",
    ];

    /// What libraries ask about the machine.
    const READABLE: &[&str] = &[
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/sys/devices/system/cpu",
        "/dev/urandom",
        "/dev/zero",
        // Its own process only: the kernel resolves the link now. Backtraces look here.
        OWN_PROCESS,
    ];

    /// For those that keep the system's view. It leads to descriptors and memory, so that it is not in
    /// a worker's own.
    const OWN_PROCESS: &str = "/proc/self";

    /// Compilers, linkers, and what they ask about the machine.
    const PROGRAMS: &[&str] = &[
        "/usr",
        "/bin",
        "/sbin",
        "/etc/alternatives",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/sys/devices/system",
        "/sys/fs/cgroup",
    ];

    /// What a CUDA driver opens.
    const CUDA_READABLE: &[&str] = &[
        "/proc/driver/nvidia",
        "/proc/devices",
        "/proc/sys/vm/mmap_min_addr",
        "/proc/self/maps",
        "/sys/bus/pci",
        "/sys/devices/system/node",
        "/usr/share/nvidia",
    ];

    /// Where it names its threads, without which it does not begin (driver 580). It is of this process alone,
    /// and leads to its memory: no more than what assembly could do, if the lints let any pass.
    const CUDA_WRITABLE: &str = "/proc/self/task";

    /// The newest version of Landlock that the rules below were written for.
    const VERSION: ABI = ABI::V6;

    /// Places of the view; a compiler keeps the one that it has.
    pub(super) fn limit_view(confinement: &Confinement, missing: &mut Vec<String>) {
        if confinement.programs {
            return;
        }
        let system = system(confinement).into_iter().filter(|&path| path != OWN_PROCESS);
        // Device files have a use of their own.
        let readable =
            system.filter(|path| !path.starts_with("/dev/")).map(std::path::PathBuf::from);
        let readable = readable.chain(confinement.readable.iter().cloned());
        let readable = readable.chain(confinement.library.iter().cloned());
        let devices = ["/dev/null", "/dev/zero", "/dev/urandom"].map(std::path::PathBuf::from);
        let devices = devices.into_iter().chain(card_nodes(confinement.cuda));
        let places: Vec<_> = readable
            .map(|path| (path, Use::Read))
            .chain(devices.map(|path| (path, Use::Device)))
            .chain(confinement.writable.iter().map(|path| (path.clone(), Use::Write)))
            .chain(own_threads(confinement.cuda).map(|path| (path, Use::Write)))
            .collect();
        if let Err(error) = room::enter(&places, confinement.cuda) {
            missing.push(format!("view of the file system of its own: {error}"));
        }
    }

    /// What of the system may be read.
    fn system(confinement: &Confinement) -> Vec<&'static str> {
        let mut system = READABLE.to_vec();
        if confinement.cuda || confinement.programs {
            system.extend(LIBRARIES);
        }
        if confinement.cuda {
            system.extend(CUDA_READABLE);
        }
        if confinement.programs {
            system.extend(PROGRAMS);
        }
        system
    }

    /// For good: capabilities, and outliving the parent. The kernel forgets the latter when a process
    /// changes its rights, so it comes after that, and before the filter of calls, which keeps it.
    pub(super) fn give_up_rights(confinement: &Confinement) {
        if confinement.programs {
            return;
        }
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        // Less is always allowed.
        let _ = set_capabilities(None, none);
        super::super::die_with_parent();
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
        let rules = Ruleset::default()
            .handle_access(everything)?
            .handle_access(AccessNet::from_all(VERSION))?
            .scope(Scope::from_all(VERSION))?
            .create()?
            // Paths that do not exist are left out.
            .add_rules(path_beneath_rules(system(confinement), read))?
            .add_rules(path_beneath_rules(&confinement.readable, read))?
            .add_rules(path_beneath_rules(&confinement.library, read))?
            .add_rules(path_beneath_rules(&own_program, read))?
            .add_rules(path_beneath_rules(["/dev/null"], write))?
            .add_rules(path_beneath_rules(&confinement.writable, written))?
            .add_rules(path_beneath_rules(card_nodes(confinement.cuda), write))?
            .add_rules(path_beneath_rules(own_threads(confinement.cuda), write))?;
        Ok(rules.restrict_self()?.ruleset)
    }

    fn own_threads(cuda: bool) -> impl Iterator<Item = std::path::PathBuf> {
        cuda.then(|| CUDA_WRITABLE.into()).into_iter()
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
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_socketpair,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_setsid,
        libc::SYS_setpgid,
        // The kernel forgets the parent-death signal of whoever changes his identity.
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setfsuid,
        libc::SYS_setfsgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
        // Who there is.
        libc::SYS_getpgid,
        libc::SYS_getsid,
        libc::SYS_getpriority,
        libc::SYS_ioprio_get,
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
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
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
        libc::SYS_process_mrelease,
        SET_MEMPOLICY_HOME_NODE,
        libc::SYS_migrate_pages,
        libc::SYS_move_pages,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_inotify_init,
        libc::SYS_inotify_init1,
        libc::SYS_fanotify_init,
    ];

    // Calls that are too new for the C library; their numbers are the same on all architectures.
    const SET_MEMPOLICY_HOME_NODE: i64 = 450;
    const CACHESTAT: i64 = 451;
    const FCHMODAT2: i64 = 452;
    const STATMOUNT: i64 = 457;
    const LISTMOUNT: i64 = 458;

    /// The newest call that these lists were written with, mseal. Behind it are calls that nobody here
    /// has looked at, and all of x86-64's third table, where the kernel has that.
    const LAST_CALL: u32 = 462;

    /// What a worker may do by `fcntl`. Among the rest are locks, leases, hints that a file keeps, and
    /// whom a signal goes to: others notice all of these.
    const BY_FCNTL: &[i32] = &[
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];

    /// And by `ioctl`, where there is no graphics card: ask whether a file is a terminal and how large
    /// that is (TCGETS, TIOCGWINSZ), ask what waits in a pipe, and not wait for it (FIONREAD, FIONBIO),
    /// close a descriptor on exec (FIOCLEX).
    const BY_IOCTL: &[u64] = &[0x5401, 0x5413, 0x541b, 0x5421, 0x5451];

    /// Where there is one, its driver has commands without number; these are of files and terminals:
    /// flags (three commands), a version, clones (three), input in somebody's name, whom a signal
    /// goes to (three).
    const NOT_BY_IOCTL: &[u64] = &[
        0x4008_6602,
        0x4004_6602,
        0x401c_5820,
        0x4008_7602,
        0x4004_9409,
        0x4020_940d,
        0xc018_9436,
        0x5412,
        0x5452,
        0x8901,
        0x8902,
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
        libc::SYS_sendmmsg,
        // The socket that a worker has tells who holds the other end, as a descriptor of that process.
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
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
        libc::SYS_fsconfig,
        libc::SYS_fspick,
        STATMOUNT,
        LISTMOUNT,
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
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_msgget,
        libc::SYS_msgsnd,
        libc::SYS_msgrcv,
        libc::SYS_msgctl,
        libc::SYS_semget,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_semctl,
        libc::SYS_mq_open,
        libc::SYS_mq_unlink,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_settimeofday,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_syslog,
        libc::SYS_quotactl,
        libc::SYS_vhangup,
    ];

    /// What a CUDA driver opens a socket of this machine's with, for other processes of its user: nobody is there,
    /// and no call that reaches one is allowed.
    const OF_CUDA: &[i64] =
        &[libc::SYS_socket, libc::SYS_bind, libc::SYS_listen, libc::SYS_setsockopt];

    pub(super) fn limit_calls(confinement: &Confinement, missing: &mut Vec<String>) {
        let applied = filters(confinement).and_then(|filters| {
            for filter in &filters {
                apply_filter(filter).map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        if let Err(error) = applied {
            missing.push(format!("seccomp here: {error}"));
        }
    }

    type Denied = (i64, Vec<SeccompRule>);

    fn filters(confinement: &Confinement) -> Result<Vec<BpfProgram>, String> {
        let said = |error: seccompiler::BackendError| error.to_string();
        let whole = |calls: &[i64]| calls.iter().map(|&call| (call, vec![])).collect::<Vec<_>>();
        let mut denied = whole(DENIED);
        if confinement.cuda {
            denied.retain(|(call, _)| !OF_CUDA.contains(call));
        }
        if !confinement.programs {
            denied.extend(whole(OF_PROGRAMS));
            denied.extend(whole(OF_MARKS));
            denied.extend(in_part(confinement.cuda).map_err(said)?);
        }
        let filter = |calls: Vec<Denied>, error: i32| {
            let architecture = std::env::consts::ARCH.try_into().map_err(said)?;
            let action = SeccompAction::Errno(error.cast_unsigned());
            let calls = calls.into_iter().collect();
            let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture);
            filter.and_then(BpfProgram::try_from).map_err(said)
        };
        let mut filters = vec![filter(denied, libc::EPERM)?, no_newer_calls()];
        if !confinement.programs {
            // Its flags lie in memory, where no filter can look. Told that there is no such call,
            // the C library takes the old one.
            filters.push(filter(vec![(libc::SYS_clone3, vec![])], libc::ENOSYS)?);
            // It takes a whole disk in no time. The C library writes zeros instead.
            filters.push(filter(vec![(libc::SYS_fallocate, vec![])], libc::EOPNOTSUPP)?);
        }
        Ok(filters)
    }

    /// Calls that a worker needs for some things and not for others; the argument tells which.
    fn in_part(cuda: bool) -> Result<Vec<Denied>, seccompiler::BackendError> {
        use SeccompCmpOp::{Eq, MaskedEq, Ne};
        let condition = |place, operator, value| {
            SeccompCondition::new(place, SeccompCmpArgLen::Dword, operator, value)
        };
        let if_any = |place, values: &[u64]| {
            let rules =
                values.iter().map(|&value| SeccompRule::new(vec![condition(place, Eq, value)?]));
            rules.collect::<Result<Vec<_>, _>>()
        };
        let if_none = |place, values: &[u64]| {
            let none = values.iter().map(|&value| condition(place, Ne, value));
            Ok(vec![SeccompRule::new(none.collect::<Result<_, _>>()?)?])
        };
        // Threads are made by the same call as processes; only the flag tells them apart.
        let thread = condition(0, MaskedEq(libc::CLONE_THREAD as u64), 0)?;
        let fcntl: Vec<_> = BY_FCNTL.iter().map(|&it| u64::from(it.cast_unsigned())).collect();
        let own = u64::from(std::process::id());
        // Threads of this process have other numbers, and ask about themselves by none.
        let own_or_none = [0, own];
        // Memory that is nobody's data: the limit does not count it. A driver of a card needs it.
        let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
        let shared = SeccompRule::new(vec![condition(3, MaskedEq(shared), shared)?])?;
        let uncounted = if cuda {
            vec![(libc::SYS_socket, if_none(0, &[libc::AF_UNIX as u64])?)]
        } else {
            vec![
                (libc::SYS_mmap, vec![shared]),
                (libc::SYS_memfd_create, vec![]),
                (MEMFD_SECRET, vec![]),
            ]
        };
        Ok([
            uncounted,
            vec![
                (libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]),
                (libc::SYS_fcntl, if_none(1, &fcntl)?),
                (
                    libc::SYS_ioctl,
                    if cuda { if_any(1, NOT_BY_IOCTL)? } else { if_none(1, BY_IOCTL)? },
                ),
                // A thread ends its own process so, where it has to.
                (libc::SYS_tgkill, if_none(0, &[own])?),
                // Limits, processors and turns of any process but this: a worker inherits its parent's.
                (libc::SYS_prlimit64, if_none(0, &[0])?),
                (libc::SYS_sched_setaffinity, if_none(0, &[0])?),
                (libc::SYS_sched_getaffinity, if_none(0, &own_or_none)?),
                (libc::SYS_sched_getattr, if_none(0, &own_or_none)?),
                (libc::SYS_sched_getparam, if_none(0, &own_or_none)?),
                (libc::SYS_sched_getscheduler, if_none(0, &own_or_none)?),
                (libc::SYS_sched_setscheduler, if_none(0, &[0])?),
                (libc::SYS_sched_setparam, if_none(0, &[0])?),
                (libc::SYS_sched_setattr, if_none(0, &[0])?),
                // The signal that comes when the parent dies, and whom the process shares its core with.
                (libc::SYS_prctl, if_any(0, &[libc::PR_SET_PDEATHSIG as u64, PR_SCHED_CORE])?),
                // What is in memory of a file: to throw it out, and to read it if it is there.
                (
                    libc::SYS_madvise,
                    if_any(2, &[libc::MADV_COLD as u64, libc::MADV_PAGEOUT as u64])?,
                ),
                (libc::SYS_preadv2, if_none(5, &[0])?),
            ],
        ]
        .concat())
    }

    const MEMFD_SECRET: i64 = 447;

    const PR_SCHED_CORE: u64 = 62;

    /// Says of calls behind the last one that there is no such call.
    fn no_newer_calls() -> BpfProgram {
        // Classic BPF, as in linux/filter.h: load the call's number; if it is greater, go on, else
        // skip one; an error; leave.
        let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
        let error = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
        vec![
            step(0x20, 0, 0, 0),
            step(0x25, 0, 1, LAST_CALL),
            step(0x06, 0, 0, error),
            step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
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
