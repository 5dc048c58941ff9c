//! Makes another process issue a system call, as code that an attacker runs in it would.

#![cfg(target_arch = "x86_64")]

use std::io;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// The instruction `syscall`.
const SYSCALL: libc::c_long = 0x050f;

fn ptrace(
    request: u32,
    pid: i32,
    address: u64,
    data: *mut libc::c_void,
) -> io::Result<libc::c_long> {
    let address = address as *mut libc::c_void;
    // SAFETY: `data` is null or valid for the request, as the callers below see to; the tracee is
    // another process.
    let result = unsafe {
        *libc::__errno_location() = 0;
        libc::ptrace(request as _, pid, address, data)
    };
    let error = io::Error::last_os_error();
    if result == -1 && error.raw_os_error() != Some(0) {
        Err(error)
    } else {
        Ok(result)
    }
}

fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the status is valid for writing.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    if waited == pid {
        Ok(status)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Stops the main thread of `pid` right behind a `syscall` instruction, with the tracer's `options`;
/// its registers, set back to that instruction.
///
/// # Errors
/// The process cannot be traced (it is not dumpable, and the caller has no privilege), or it is in no
/// system call for two minutes.
pub fn stop_at_call(pid: i32, options: i32) -> io::Result<libc::user_regs_struct> {
    let options = std::ptr::without_provenance_mut(usize::try_from(options).unwrap_or(0));
    ptrace(libc::PTRACE_SEIZE, pid, 0, options)?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(120) {
        ptrace(libc::PTRACE_INTERRUPT, pid, 0, null_mut())?;
        wait(pid)?;
        // SAFETY: the structure is plain integers, for which zero is valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).cast())?;
        registers.rip -= 2;
        let instruction = ptrace(libc::PTRACE_PEEKTEXT, pid, registers.rip, null_mut())?;
        if instruction & 0xffff == SYSCALL {
            return Ok(registers);
        }
        // Between two calls, or in a page fault: once more.
        ptrace(libc::PTRACE_CONT, pid, 0, null_mut())?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("the thread is in no system call"))
}

/// Lets the main thread of `pid`, stopped by [`stop_at_call`], issue `call` with `arguments`; the wait
/// status that follows: the death of the process, or a stop after the call.
///
/// # Errors
/// The process is not there any more.
pub fn issue(
    pid: i32,
    mut registers: libc::user_regs_struct,
    call: libc::c_long,
    arguments: [u64; 3],
) -> io::Result<i32> {
    registers.rax = call.cast_unsigned();
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx] = arguments;
    ptrace(libc::PTRACE_SETREGS, pid, 0, (&raw mut registers).cast())?;
    loop {
        ptrace(libc::PTRACE_SINGLESTEP, pid, 0, null_mut())?;
        let status = wait(pid)?;
        // A signal on its way in (the worker has a timer) stops the thread before the step: it is
        // dropped, and the step made again.
        if !libc::WIFSTOPPED(status) || status >> 8 == libc::SIGTRAP {
            return Ok(status);
        }
    }
}

/// [`stop_at_call`] and [`issue`] in one.
///
/// # Errors
/// As they have.
pub fn inject(pid: i32, call: libc::c_long, arguments: [u64; 3]) -> io::Result<i32> {
    let registers = stop_at_call(pid, 0)?;
    issue(pid, registers, call, arguments)
}
