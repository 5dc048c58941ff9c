//! What holds broker and worker of the shipped binary while a guest runs, seen from outside.

#[path = "../../crates/sandbox/tests/inject/mod.rs"]
mod inject;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use instar_tests::live::{LONG_IMAGE, Live, status};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// Arguments that are as good as any: the call must not happen.
const NO_ARGUMENTS: [u64; 3] = [0; 3];

/// Threads of a process.
fn threads(pid: i32) -> Result<Vec<String>> {
    fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// What each descriptor of a process is.
fn descriptors(pid: i32) -> Result<BTreeMap<i32, String>> {
    fs::read_dir(format!("/proc/{pid}/fd"))?
        .map(|entry| {
            let entry = entry?;
            let number = entry.file_name().to_string_lossy().parse()?;
            let target = fs::read_link(entry.path())?;
            Ok((number, target.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The soft and hard value of a line of `/proc/PID/limits`.
pub fn limit(pid: i32, name: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let values = line.with_context(|| format!("no {name}:\n{text}"))?;
    let values = values.split_whitespace().take(2);
    Ok(values.map(str::to_owned).collect())
}

/// A run as a user without privileges, with a `/dev/kvm` that everyone may use.
fn unprivileged(scratch: &Scratch) -> Result<Run> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    fs::copy(tools::instar()?, scratch.file("instar"))?;
    let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/kvm c 10 232 && \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups ./instar check \"$0\"";
    let unshare = tools::in_path("unshare".as_ref())?;
    Ok(Run::new(&unshare, scratch.path()).args(["--mount", "sh", "-c", script, LONG_IMAGE]))
}

#[test]
fn every_thread_is_under_a_filter() -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::check(&scratch, &[])?;
    for process in [live.worker(), live.broker()?] {
        for thread in threads(process)? {
            let place = format!("{process}/task/{thread}");
            ensure!(status(&place, "Seccomp")? == "2", "{place}: no filter");
            ensure!(status(&place, "NoNewPrivs")? == "1", "{place}");
        }
    }
    Ok(())
}

#[test]
fn worker_has_exactly_its_own_descriptors() -> Outcome {
    let scratch = Scratch::new()?;
    // The shell leaves it a file that nobody asked for.
    let shell = tools::in_path("sh".as_ref())?;
    let script = "exec 8</etc/passwd 9</etc/group; exec \"$0\" check \"$1\"";
    let run = Run::new(&shell, scratch.path())
        .args(["-c", script])
        .args([tools::instar()?.as_os_str(), LONG_IMAGE.as_ref()]);
    let live = Live::start(&scratch, &run)?;
    let mut found = descriptors(live.worker())?;
    let all = format!("{found:?}");
    ensure!(
        found.remove(&0).is_some_and(|t| t.starts_with("/memfd:")),
        "standard input is not the empty file: {all}"
    );
    for stream in [1, 2] {
        let target = found.remove(&stream);
        ensure!(target.is_some_and(|t| t.starts_with("pipe:")), "{all}");
    }
    let image = scratch.file(LONG_IMAGE).canonicalize()?;
    let image = image.to_string_lossy();
    for expected in [&image, "socket:", "kvm-vm", "kvm-vcpu"] {
        let found_one = found
            .iter()
            .find(|(_, target)| target.contains(expected) && !target.starts_with("/dev"))
            .map(|(number, _)| *number)
            .with_context(|| format!("no {expected}: {all}"))?;
        if expected == image {
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{found_one}", live.worker()))?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            ensure!(
                flags.is_some_and(|flags| flags.trim().ends_with(['0', '4'])),
                "the image is open for writing: {info}"
            );
        }
        found.remove(&found_one);
    }
    ensure!(found.is_empty(), "{found:?} in {all}");
    Ok(())
}

#[test]
fn worker_leaves_no_core_and_few_descriptors() -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::check(&scratch, &[])?;
    let worker = live.worker();
    ensure!(limit(worker, "Max core file size")? == ["0", "0"]);
    let files = limit(worker, "Max open files")?;
    let hard: u64 = files.last().context("no limit")?.parse()?;
    ensure!(hard <= 4096, "{hard} descriptors");
    Ok(())
}

#[test]
fn worker_without_privileges_is_not_dumpable() -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::start(&scratch, &unprivileged(&scratch)?)?;
    let worker = live.worker();
    ensure!(status(worker, "Uid")?.starts_with("65534\t"));
    // proc(5): what is not dumpable belongs to root here.
    let owner = fs::metadata(format!("/proc/{worker}/mem"))?.uid();
    ensure!(owner == 0, "its memory belongs to user {owner}");
    ensure!(u64::from_str_radix(&status(worker, "CapEff")?, 16)? == 0);
    Ok(())
}

#[test]
fn worker_of_root_has_no_capabilities() -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::check(&scratch, &[])?;
    for key in ["CapEff", "CapPrm", "CapInh"] {
        let bits = u64::from_str_radix(&status(live.worker(), key)?, 16)?;
        ensure!(bits == 0, "{key} is {bits:#x}");
    }
    Ok(())
}

/// Injects a call into the worker: it must die of it, and the run must say so.
fn dies_of(call: libc::c_long) -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::check(&scratch, &["--output=json"])?;
    let wait = inject::inject(live.worker(), call, NO_ARGUMENTS)?;
    let killed = libc::WIFSIGNALED(wait) && libc::WTERMSIG(wait) == libc::SIGSYS;
    ensure!(killed, "call {call} went through: wait status {wait:#x}");
    let ended = live.end()?;
    ended.expect_code(1)?;
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    let said = ended.err();
    ensure!(
        said.starts_with("instar: ") && said.contains("seccomp filter (SIGSYS)"),
        "{}",
        ended.describe()
    );
    Ok(())
}

#[test]
fn worker_dies_of_opening_a_file() -> Outcome {
    dies_of(libc::SYS_openat)
}

#[test]
fn worker_dies_of_a_socket() -> Outcome {
    dies_of(libc::SYS_socket)
}

#[test]
fn worker_dies_of_executing_a_program() -> Outcome {
    dies_of(libc::SYS_execve)
}

#[test]
fn worker_dies_of_a_new_process() -> Outcome {
    dies_of(libc::SYS_clone)
}

#[test]
fn worker_dies_of_tracing() -> Outcome {
    dies_of(libc::SYS_ptrace)
}

#[test]
fn broker_dies_of_executing_a_program_and_takes_the_worker_along() -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::check(&scratch, &[])?;
    let wait = inject::inject(live.broker()?, libc::SYS_execve, NO_ARGUMENTS)?;
    let killed = libc::WIFSIGNALED(wait) && libc::WTERMSIG(wait) == libc::SIGSYS;
    ensure!(killed, "execve went through: wait status {wait:#x}");
    // The injection has waited for the broker, so this test cannot.
    live.worker_ended()
}

/// Lets the worker issue a call with its filter off, as only a tracer with all
/// privileges can: the call's result.
fn without_filter(pid: i32, call: libc::c_long, arguments: [u64; 3]) -> Result<i64> {
    let registers = inject::stop_at_call(pid, libc::PTRACE_O_SUSPEND_SECCOMP)?;
    let status = inject::issue(pid, registers, call, arguments)?;
    ensure!(libc::WIFSTOPPED(status), "it did not stop: {status:#x}");
    // SAFETY: the structure is plain integers, for which zero is valid.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is live and of the size that the request writes.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGS,
            pid,
            std::ptr::null_mut::<u8>(),
            &raw mut registers,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(registers.rax.cast_signed())
}

/// Where the worker has the text `needle` on its stack.
fn text_in(pid: i32, needle: &[u8]) -> Result<u64> {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').context("a line without a range")?;
        let (start, end) = range.split_once('-').context("no range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        if !rest.ends_with("[stack]") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start)?];
        memory.read_exact_at(&mut bytes, start)?;
        let found = bytes.windows(needle.len()).position(|part| part == needle);
        if let Some(at) = found {
            return Ok(start + u64::try_from(at)?);
        }
    }
    anyhow::bail!("its stack does not hold {needle:?}")
}

#[test]
fn worker_opens_no_file_even_without_its_filter() -> Outcome {
    let scratch = Scratch::new()?;
    let live = Live::check(&scratch, &[])?;
    // The name of the image is on its stack, as an argument; it could open it once.
    let name = text_in(live.worker(), format!("{LONG_IMAGE}\0").as_bytes())?;
    let here = i64::from(libc::AT_FDCWD).cast_unsigned();
    let result = without_filter(live.worker(), libc::SYS_openat, [here, name, 0])?;
    ensure!(
        result == -i64::from(libc::EACCES),
        "Landlock must refuse it; the open gave {result}"
    );
    Ok(())
}
