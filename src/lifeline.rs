//! A process group that ends with this process, however that ends: nobody can clean up after SIGKILL.
//!
//! A program may leave its group, as a daemon does, and takes its environment along. So what is started
//! here is marked there, and on Linux whoever has the mark ends as well.

#[cfg(unix)]
pub(crate) use unix::Lifeline;

#[cfg(unix)]
mod unix {
    use rustix::process::{Pid, Signal, kill_process, kill_process_group};
    use std::{
        fs, io,
        os::unix::process::CommandExt,
        process::{Child, Command, Stdio},
    };

    /// The variable that marks what hangs on a line.
    const MARK: &str = "OVERNIGHT_LIFELINE";

    /// Waits for the end of its input, which comes when the study is gone, and kills who has the mark that
    /// it is called by, and its group. What only asks the group to end is not meant for it.
    const KEEPER: &str = r#"
        trap '' HUP INT TERM
        read -r _
        for round in 1 2; do
            for marked in $(grep -lzxF "$0" /proc/[0-9]*/environ 2> /dev/null); do
                process=${marked#/proc/}
                kill -KILL "${process%/environ}"
            done
        done
        kill -KILL 0
    "#;

    /// How often it is looked for processes that were started while others were killed.
    const ROUNDS: usize = 3;

    /// What hangs on it is killed when it is dropped, or when the process that holds it is gone.
    ///
    /// A parent-death signal would reach cargo, and none of the compilers under it. This is the group's
    /// leader instead: it is there before whatever joins the group, and its number stays taken until
    /// it is waited for, so that no signal can reach somebody else's group.
    pub(crate) struct Lifeline {
        keeper: Child,
        mark: String,
    }

    impl Lifeline {
        pub(crate) fn new() -> io::Result<Self> {
            // The other end of its input is closed in every other program that this one starts.
            let mark = format!("{:016x}", getrandom::u64().map_err(io::Error::other)?);
            let keeper = Command::new("/bin/sh")
                .args(["-c", KEEPER, &format!("{MARK}={mark}")])
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            Ok(Self { keeper, mark })
        }

        /// Makes it start in this group, or not at all.
        pub(crate) fn hold(&self, command: &mut Command) {
            command.process_group(self.keeper.id().cast_signed()).env(MARK, &self.mark);
        }

        /// Sends a signal to the whole group.
        pub(crate) fn signal(&self, signal: Signal) {
            if let Some(group) = Pid::from_raw(self.keeper.id().cast_signed()) {
                let _ = kill_process_group(group, signal);
            }
        }
    }

    impl Lifeline {
        /// Who hangs on it and lives.
        pub(crate) fn processes(&self) -> impl Fn() -> Vec<u32> + 'static {
            let mark = format!("{MARK}={}", self.mark);
            move || marked(&mark).into_iter().map(|pid| pid.as_raw_pid().cast_unsigned()).collect()
        }
    }

    impl Drop for Lifeline {
        fn drop(&mut self) {
            self.signal(Signal::KILL);
            let mark = format!("{MARK}={}", self.mark);
            for _ in 0..ROUNDS {
                let marked = marked(&mark);
                if marked.is_empty() {
                    break;
                }
                for process in marked {
                    let _ = kill_process(process, Signal::KILL);
                }
            }
            let _ = self.keeper.wait();
        }
    }

    /// The living processes with this in their environment. Elsewhere than on Linux nobody tells.
    fn marked(mark: &str) -> Vec<Pid> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pid = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let is_marked = environment.split(|&byte| byte == 0).any(|it| it == mark.as_bytes());
            Pid::from_raw(pid).filter(|_| is_marked)
        };
        processes.filter_map(pid).collect()
    }
}

/// Nothing is held here.
#[cfg(not(unix))]
pub(crate) struct Lifeline;

#[cfg(not(unix))]
impl Lifeline {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(crate) fn hold(&self, _command: &mut std::process::Command) {}

    pub(crate) fn processes(&self) -> impl Fn() -> Vec<u32> + 'static {
        Vec::new
    }
}

/// Runs `command` to its end, or to that of this process.
pub(crate) fn output(command: &mut std::process::Command) -> std::io::Result<std::process::Output> {
    let line = Lifeline::new()?;
    line.hold(command);
    command.output()
}
