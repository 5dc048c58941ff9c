//! A disk that is served to QEMU's guest (vhost-user-blk), which boots from it, and to a driver of these tests.

mod live;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use instar_tests::family;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use rustix::process::{Pid, Signal};

use crate::Outcome;

const SOCKET: &str = "disk.sock";
const DISK: &str = "disk.raw";
const DISK_BYTES: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// How QEMU ends when the boot sector says that all went well, and that it did not (`isa-debug-exit`).
const WENT_WELL: i32 = (0x10 << 1) | 1;
const FAILED: i32 = (0x11 << 1) | 1;

/// A boot sector: reads sector 1 by the firmware, writes it to sector 2, and says how that went.
#[rustfmt::skip]
const BOOT: [u8; 65] = [
    0x31, 0xc0,                         // xor ax, ax
    0x8e, 0xd8,                         // mov ds, ax
    0x8e, 0xc0,                         // mov es, ax
    0x8e, 0xd0,                         // mov ss, ax
    0xbc, 0x00, 0x7c,                   // mov sp, 0x7c00
    0xbe, 0x31, 0x7c,                   // mov si, packet
    0xb8, 0x00, 0x42,                   // mov ax, 0x4200: read
    0xcd, 0x13,                         // int 0x13
    0x72, 0x12,                         // jc failed
    0xc6, 0x06, 0x39, 0x7c, 0x02,       // mov byte [packet + 8], 2
    0xb8, 0x00, 0x43,                   // mov ax, 0x4300: write
    0xcd, 0x13,                         // int 0x13
    0x72, 0x06,                         // jc failed
    0xb0, 0x10,                         // mov al, 0x10
    0xeb, 0x04,                         // jmp end
    0x90, 0x90,
    0xb0, 0x11,                         // failed: mov al, 0x11
    0xba, 0xf4, 0x00,                   // end: mov dx, 0xf4
    0xee,                               // out dx, al
    0xf4,                               // hlt
    0xeb, 0xfd,                         // jmp $ - 1
    0x90,
    // packet: 16 bytes, 1 sector, to 0:0x8000, from sector 1
    0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00,
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

fn sector_1() -> Vec<u8> {
    (0..512_usize)
        .map(|at| u8::try_from(at % 251).unwrap_or(0))
        .collect()
}

fn make_disk(scratch: &Scratch) -> Result<()> {
    let mut bytes = vec![0; 1024];
    bytes[..BOOT.len()].copy_from_slice(&BOOT);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes[512..].copy_from_slice(&sector_1());
    let file = std::fs::File::create(scratch.file(DISK))?;
    file.set_len(DISK_BYTES)?;
    file.write_all_at(&bytes, 0)?;
    Ok(())
}

/// A server; killed when dropped.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Server {
    fn start(scratch: &Scratch, options: &[&str]) -> Result<Self> {
        Self::start_at(scratch, SOCKET, options)
    }

    fn start_at(scratch: &Scratch, socket: &str, options: &[&str]) -> Result<Self> {
        let mut child = Command::new(tools::instar()?)
            .args(["serve", "--socket", socket])
            .args(options)
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("standard error")?;
        let mut server = Self {
            child,
            stderr: BufReader::new(stderr),
        };
        let mut said = String::new();
        server.stderr.read_line(&mut said)?;
        ensure!(
            said == format!("instar: the disk is served at {socket}\n"),
            "{said:?}"
        );
        Ok(server)
    }

    /// What it said since; it has ended.
    fn rest(&mut self) -> Result<String> {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        Ok(said)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.context("no process")?, signal)?;
        Ok(())
    }

    fn end(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = family::kill(&mut self.child);
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    bail!("it does not end");
}

/// Boots QEMU from the socket; how it ended.
fn boot(scratch: &Scratch) -> Result<i32> {
    let mut qemu = Command::new(tools::in_path(Path::new("qemu-system-x86_64"))?)
        .args([
            "-accel",
            "tcg",
            "-display",
            "none",
            "-m",
            "64",
            "-nodefaults",
        ])
        .args(["-object", "memory-backend-memfd,id=m,size=64M,share=on"])
        .args(["-machine", "q35,memory-backend=m"])
        .args(["-chardev", "socket,id=d,path=disk.sock"])
        .args(["-device", "vhost-user-blk-pci,chardev=d,bootindex=0"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let status = wait(&mut qemu)?;
    let mut said = String::new();
    if let Some(mut stderr) = qemu.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    status.code().with_context(|| format!("{status}: {said}"))
}

fn sector_2(scratch: &Scratch) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 512];
    let file = std::fs::File::open(scratch.file(DISK))?;
    file.read_exact_at(&mut bytes, 1024)?;
    Ok(bytes)
}

#[test]
fn qemu_boots_from_a_disk_that_is_served() -> Outcome {
    let scratch = Scratch::new()?;
    make_disk(&scratch)?;
    for options in [&["-f", "raw", DISK][..], &["-f", "raw", "--direct", DISK]] {
        make_disk(&scratch)?;
        let server = Server::start(&scratch, options)?;
        let socket = std::fs::symlink_metadata(scratch.file(SOCKET))?;
        ensure!(socket.file_type().is_socket());
        ensure!(socket.permissions().mode() & 0o777 == 0o600);
        // One front end after the other.
        for _ in 0..2 {
            let ended = boot(&scratch)?;
            ensure!(ended == WENT_WELL, "{options:?}: {ended}");
            ensure!(sector_2(&scratch)? == sector_1(), "what was written");
        }
        let status = server.end()?;
        ensure!(status.code() == Some(0), "{status}");
        ensure!(!scratch.file(SOCKET).exists(), "the socket is left");
    }
    Ok(())
}

#[test]
fn a_disk_that_is_only_read_stays_as_it_is() -> Outcome {
    let scratch = Scratch::new()?;
    make_disk(&scratch)?;
    let server = Server::start(&scratch, &["-f", "raw", "--read-only", DISK])?;
    let ended = boot(&scratch)?;
    ensure!(ended == FAILED, "{ended}");
    ensure!(sector_2(&scratch)? == [0; 512]);
    let status = server.end()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

#[test]
fn an_image_or_socket_in_use_is_refused() -> Outcome {
    let scratch = Scratch::new()?;
    make_disk(&scratch)?;
    let server = Server::start(&scratch, &["-f", "raw", DISK])?;
    let serve = |socket: &str, more: &[&str]| {
        Run::new(&tools::instar()?, scratch.path())
            .args(["serve", "-f", "raw", "--socket", socket])
            .args(more)
            .go()
    };
    let other = serve("other.sock", &[DISK])?;
    other.expect_code(1)?;
    ensure!(other.err().contains("lock"), "{}", other.describe());
    ensure!(!scratch.file("other.sock").exists(), "a socket is left");
    let info = Run::new(&tools::qemu_img()?, scratch.path())
        .args(["resize", "-f", "raw", DISK, "16M"])
        .go()?;
    ensure!(info.err().contains("lock"), "{}", info.describe());

    std::fs::write(scratch.file("second.raw"), [0; 4096])?;
    let taken = serve(SOCKET, &["second.raw"])?;
    taken.expect_code(1)?;
    let sentence = "cannot listen at 'disk.sock': another program listens there";
    ensure!(taken.err().contains(sentence), "{}", taken.describe());
    // One that was killed leaves its socket behind, and the next one takes its place.
    drop(server);
    let again = Server::start(&scratch, &["-f", "raw", "second.raw"])?;
    let status = again.end()?;
    ensure!(status.code() == Some(0), "{status}");

    let plain = Run::new(&tools::instar()?, scratch.path())
        .args(["serve", "--socket", SOCKET, DISK])
        .go()?;
    plain.expect_code(1)?;
    ensure!(plain.err().contains("give -f raw"), "{}", plain.describe());
    Ok(())
}

#[test]
fn a_time_limit_ends_the_server_cleanly() -> Outcome {
    let scratch = Scratch::new()?;
    make_disk(&scratch)?;
    // It may be over before the server says that it serves.
    let ended = Run::new(&tools::instar()?, scratch.path())
        .args(["serve", "--socket", SOCKET, "-f", "raw"])
        .args(["--timeout", "1", DISK])
        .go()?;
    ended.expect_code(1)?;
    ensure!(ended.err().contains("--timeout"), "{}", ended.describe());
    ensure!(!scratch.file(SOCKET).exists(), "the socket is left");
    Ok(())
}
