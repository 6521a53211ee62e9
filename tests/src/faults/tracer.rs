//! A process that is watched, call by call, and struck at one of them: `ptrace`.
//!
//! ```text
//! tracer (this thread)                     tracee, any number of threads
//!   counts, reads the path  ◀── stop ────  about to enter a call
//!   call := none, or fewer bytes, or kill
//!                           ─── go ─────▶  (the call)
//!   result := the error     ◀── stop ────  about to return
//!                           ─── go ─────▶
//! ```
//!
//! `strace -e inject` counts calls per thread and strikes the nth of every thread; here exactly one
//! call is struck, named by its thread, its name and its number among those. All three are the same
//! in every run of a program whose threads are started by one of them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::calls::{Call, Fault, Subject, known};

/// After this, a process hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a watched process ended, and what it did until then.
#[derive(Debug)]
pub struct Watched {
    /// Its exit code, or the signal that ended it.
    pub end: Result<i32, Signal>,
    /// Whether it had to be ended because it did not end by itself.
    pub hung: bool,
    /// What it said.
    pub stdout: Vec<u8>,
    /// What it said about errors.
    pub stderr: Vec<u8>,
    /// The calls it made, from the first one about a file of ours.
    pub calls: Vec<Call>,
    /// The call that was struck.
    pub struck: Option<Call>,
}

impl Watched {
    /// Whether the strike killed it.
    #[must_use]
    pub fn killed(&self) -> bool {
        self.end == Err(Signal::SIGKILL) && self.struck.is_some() && !self.hung
    }
}

/// What to do to a process, at which call.
pub struct Strike<'a> {
    /// The call.
    pub at: &'a Call,
    /// What becomes of it.
    pub fault: Fault,
    /// What happens just before, with the process standing still.
    pub before: Box<dyn FnMut() + 'a>,
}

/// Whether processes can be watched here; if not, why.
///
/// # Errors
///
/// A sentence for a person.
pub fn can_watch() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("calls are struck through the registers of x86-64 only".to_owned());
    }
    let watched = watch(&mut Command::new("true"), Path::new("/nowhere"), None);
    match watched {
        Ok(watched) if watched.end == Ok(0) => Ok(()),
        Ok(watched) => Err(format!("a watched process ended with {:?}", watched.end)),
        Err(error) => Err(format!("ptrace: {error}")),
    }
}

/// Runs `command` to its end. Calls are counted from the first one about a file below `ours`:
/// before that, the program is being loaded.
///
/// # Errors
///
/// The system does not let us watch it.
pub fn watch(
    command: &mut Command,
    ours: &Path,
    strike: Option<Strike<'_>>,
) -> io::Result<Watched> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec only one call is made, which takes no memory and no lock.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
    let mut child = command.spawn()?;
    let leader = Pid::from_raw(child.id().cast_signed());
    let watchdog = Watchdog::start(leader);
    let followed = Tracer { leader, ours, strike, threads: HashMap::new(), watched: None }.follow();
    if followed.is_err() {
        let _ = kill(leader, Signal::SIGKILL);
        let _ = child.wait();
    }
    let hung = watchdog.stop();
    let (end, calls, struck) = followed?;
    let (stdout, stderr) = said(&mut child)?;
    Ok(Watched { end, hung, stdout, stderr, calls, struck })
}

/// What an ended child left in its pipes.
fn said(child: &mut Child) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    if let Some(pipe) = &mut child.stdout {
        pipe.read_to_end(&mut stdout)?;
    }
    if let Some(pipe) = &mut child.stderr {
        pipe.read_to_end(&mut stderr)?;
    }
    Ok((stdout, stderr))
}

/// Ends a process that does not end.
struct Watchdog {
    stop: mpsc::Sender<()>,
    bit: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Watchdog {
    fn start(leader: Pid) -> Self {
        let (stop, stopped) = mpsc::channel();
        let bit = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&bit);
        let thread = thread::spawn(move || {
            if stopped.recv_timeout(PATIENCE).is_err() {
                told.store(true, Ordering::SeqCst);
                let _ = kill(leader, Signal::SIGKILL);
            }
        });
        Self { stop, bit, thread }
    }

    fn stop(self) -> bool {
        let _ = self.stop.send(());
        let _ = self.thread.join();
        self.bit.load(Ordering::SeqCst)
    }
}

/// What is known of one thread.
#[derive(Default)]
struct Thread {
    ordinal: usize,
    made: HashMap<&'static str, usize>,
    /// The error its current call is to return.
    error: Option<Errno>,
}

struct Tracer<'a> {
    leader: Pid,
    ours: &'a Path,
    strike: Option<Strike<'a>>,
    threads: HashMap<Pid, Thread>,
    /// The calls so far and the one that was struck; `None` before the first call of ours.
    watched: Option<(Vec<Call>, Option<Call>)>,
}

type Followed = (Result<i32, Signal>, Vec<Call>, Option<Call>);

impl Tracer<'_> {
    fn follow(mut self) -> io::Result<Followed> {
        // Threads of the tracee belong to its process group; other children of ours do not.
        let group = Pid::from_raw(-self.leader.as_raw());
        let flags = WaitPidFlag::__WALL;
        let mut begun = false;
        loop {
            let status = match waitpid(group, Some(flags)) {
                Err(Errno::EINTR) => continue,
                status => status?,
            };
            let end = match status {
                WaitStatus::Exited(pid, code) if pid == self.leader => Ok(code),
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => Err(signal),
                WaitStatus::Stopped(pid, Signal::SIGTRAP) if !begun => {
                    begun = true;
                    let options = Options::PTRACE_O_TRACESYSGOOD
                        | Options::PTRACE_O_TRACECLONE
                        | Options::PTRACE_O_TRACEFORK
                        | Options::PTRACE_O_TRACEVFORK
                        | Options::PTRACE_O_EXITKILL;
                    ptrace::setoptions(pid, options)?;
                    self.go(pid, None)?;
                    continue;
                }
                WaitStatus::Stopped(pid, signal) => {
                    // A new thread begins with a stop that is no signal of anyone's.
                    let new = !self.threads.contains_key(&pid);
                    self.thread(pid);
                    let is_start = new && signal == Signal::SIGSTOP;
                    self.go(pid, (!is_start).then_some(signal))?;
                    continue;
                }
                WaitStatus::PtraceEvent(pid, ..) => {
                    self.go(pid, None)?;
                    continue;
                }
                WaitStatus::PtraceSyscall(pid) => {
                    match self.stop(pid) {
                        // Killed meanwhile, by us or by a thread that ends the process.
                        Err(Errno::ESRCH) => {}
                        outcome => outcome?,
                    }
                    self.go(pid, None)?;
                    continue;
                }
                _ => continue,
            };
            let (calls, struck) = self.watched.unwrap_or_default();
            return Ok((end, calls, struck));
        }
    }

    fn go(&self, pid: Pid, signal: Option<Signal>) -> io::Result<()> {
        match ptrace::syscall(pid, signal) {
            Err(Errno::ESRCH) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn thread(&mut self, pid: Pid) -> &mut Thread {
        let ordinal = self.threads.len();
        self.threads.entry(pid).or_insert_with(|| Thread { ordinal, ..Thread::default() })
    }

    /// A thread is about to enter a call, or to return from it.
    fn stop(&mut self, pid: Pid) -> Result<(), Errno> {
        let info = ptrace::syscall_info(pid)?;
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: `op` says that this is the member of the union that was filled.
                let entry = unsafe { info.u.entry };
                self.enter(pid, entry.nr, entry.args)
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => match self.thread(pid).error.take() {
                Some(errno) => registers::set_result(pid, -i64::from(errno as i32)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn enter(&mut self, pid: Pid, number: u64, arguments: [u64; 6]) -> Result<(), Errno> {
        self.thread(pid);
        let Some((name, subject)) = known(number, &arguments) else { return Ok(()) };
        let path = subject_of(pid, subject, &arguments);
        let is_ours = path.as_ref().is_some_and(|path| path.starts_with(self.ours));
        if self.watched.is_none() && !is_ours {
            return Ok(());
        }
        let thread = self.thread(pid);
        let made = thread.made.entry(name).or_default();
        let number = *made;
        *made += 1;
        let call = Call { thread: thread.ordinal, number, name, path, arguments };
        let struck = match &mut self.strike {
            Some(strike) if strike.at.is_at(&call) => {
                (strike.before)();
                Some(strike.fault)
            }
            _ => None,
        };
        match struck {
            None => {}
            Some(Fault::Kill) => kill(self.leader, Signal::SIGKILL)?,
            Some(Fault::Error(errno)) => {
                registers::skip_call(pid)?;
                self.thread(pid).error = Some(errno);
            }
            Some(Fault::Short) => {
                if let Some(at) = call.length_argument() {
                    registers::set_argument(pid, at, arguments[at] / 2)?;
                }
            }
        }
        let (calls, at) = self.watched.get_or_insert_default();
        if struck.is_some() {
            *at = Some(call.clone());
        }
        calls.push(call);
        Ok(())
    }
}

/// The file a call is about, as an absolute path.
fn subject_of(pid: Pid, subject: Subject, arguments: &[u64; 6]) -> Option<PathBuf> {
    match subject {
        Subject::Nothing => None,
        Subject::Descriptor(at) => {
            let number = arguments[at] as u32;
            fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()
        }
        Subject::Path(at) => {
            let path = PathBuf::from(text(pid, arguments[at])?);
            if path.as_os_str().is_empty() {
                // `fstat` is `statx` of a descriptor and no path.
                return subject_of(pid, Subject::Descriptor(at.saturating_sub(1)), arguments);
            }
            let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
            Some(folder.join(path))
        }
    }
}

/// The text at an address of the process, up to its NUL.
fn text(pid: Pid, address: u64) -> Option<OsString> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    // A page at a time: the next one may not be there.
    while length < bytes.len() {
        let at = address + length as u64;
        let room = (4096 - at % 4096).min((bytes.len() - length) as u64) as usize;
        let count = memory.read_at(&mut bytes[length..length + room], at).ok()?;
        if let Some(end) = bytes[length..length + count].iter().position(|&byte| byte == 0) {
            bytes.truncate(length + end);
            return Some(OsString::from_vec(bytes));
        }
        length += count;
        if count == 0 {
            break;
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use nix::errno::Errno;
    use nix::sys::ptrace;
    use nix::unistd::Pid;

    /// Makes the kernel make no call.
    pub(super) fn skip_call(pid: Pid) -> Result<(), Errno> {
        let mut registers = ptrace::getregs(pid)?;
        registers.orig_rax = u64::MAX;
        ptrace::setregs(pid, registers)
    }

    pub(super) fn set_argument(pid: Pid, at: usize, value: u64) -> Result<(), Errno> {
        let mut registers = ptrace::getregs(pid)?;
        match at {
            1 => registers.rsi = value,
            2 => registers.rdx = value,
            4 => registers.r8 = value,
            _ => return Err(Errno::EINVAL),
        }
        ptrace::setregs(pid, registers)
    }

    pub(super) fn set_result(pid: Pid, value: i64) -> Result<(), Errno> {
        let mut registers = ptrace::getregs(pid)?;
        registers.rax = value.cast_unsigned();
        ptrace::setregs(pid, registers)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod registers {
    use nix::errno::Errno;
    use nix::unistd::Pid;

    pub(super) fn skip_call(_: Pid) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    pub(super) fn set_argument(_: Pid, _: usize, _: u64) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    pub(super) fn set_result(_: Pid, _: i64) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }
}
