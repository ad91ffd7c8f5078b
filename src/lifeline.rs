//! A process group that ends with this process, however that ends: nobody can clean up after SIGKILL.

#[cfg(unix)]
pub(crate) use unix::Lifeline;

#[cfg(unix)]
mod unix {
    use rustix::process::{Pid, Signal, kill_process_group};
    use std::{
        io,
        os::unix::process::CommandExt,
        process::{Child, Command, Stdio},
    };

    /// Waits for the end of its input, which comes when the study is gone, and kills its group. What
    /// only asks the group to end is not meant for it.
    const KEEPER: &str = "trap '' HUP INT TERM; read -r _; kill -KILL 0";

    /// What hangs on it is killed when it is dropped, or when the process that holds it is gone.
    ///
    /// A parent-death signal would reach cargo, and none of the compilers under it. This is the group's
    /// leader instead: it is there before whatever joins the group, and its number stays taken until
    /// it is waited for, so that no signal can reach somebody else's group.
    pub(crate) struct Lifeline {
        keeper: Child,
    }

    impl Lifeline {
        pub(crate) fn new() -> io::Result<Self> {
            // The other end of its input is closed in every other program that this one starts.
            let keeper = Command::new("/bin/sh")
                .args(["-c", KEEPER])
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            Ok(Self { keeper })
        }

        /// Makes it start in this group, or not at all.
        pub(crate) fn hold(&self, command: &mut Command) {
            command.process_group(self.keeper.id().cast_signed());
        }

        /// Sends a signal to the whole group.
        pub(crate) fn signal(&self, signal: Signal) {
            if let Some(group) = Pid::from_raw(self.keeper.id().cast_signed()) {
                let _ = kill_process_group(group, signal);
            }
        }
    }

    impl Drop for Lifeline {
        fn drop(&mut self) {
            self.signal(Signal::KILL);
            let _ = self.keeper.wait();
        }
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
}

/// Runs `command` to its end, or to that of this process.
pub(crate) fn output(command: &mut std::process::Command) -> std::io::Result<std::process::Output> {
    let line = Lifeline::new()?;
    line.hold(command);
    command.output()
}
