//! The two programs that serve an image at a socket.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instar_tests::scratch::Scratch;
use instar_tests::{family, tools};
use rustix::process::{Pid, Signal};

/// The image, the socket, and where the storage daemon says that it is ready.
pub const IMAGE: &str = "disk.qcow2";
pub const SOCKET: &str = "disk.sock";
const READY: &str = "ready.pid";
/// How long a program may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `instar serve`.
    Instar,
    /// `qemu-storage-daemon`.
    StorageDaemon,
}

/// A server that has been asked to begin; killed when dropped.
pub struct Server(Child);

impl Server {
    /// Serves [`IMAGE`] at [`SOCKET`], through the page cache.
    pub fn start(kind: Kind, scratch: &Scratch) -> Result<Self> {
        match kind {
            Kind::Instar => instar(scratch),
            Kind::StorageDaemon => storage_daemon(scratch),
        }
    }

    /// Tells it to end, and waits until it has.
    pub fn end(mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.context("no process")?, Signal::TERM)?;
        let began = Instant::now();
        while self.0.try_wait()?.is_none() {
            ensure!(began.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = family::kill(&mut self.0);
    }
}

fn instar(scratch: &Scratch) -> Result<Server> {
    let mut child = Command::new(tools::instar()?)
        .args(["serve", "--socket", SOCKET, "-f", "qcow2", IMAGE])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().context("standard error")?;
    let server = Server(child);
    let mut said = String::new();
    BufReader::new(stderr).read_line(&mut said)?;
    ensure!(said.contains("served"), "{said:?}");
    Ok(server)
}

fn storage_daemon(scratch: &Scratch) -> Result<Server> {
    let program = tools::in_path(Path::new("qemu-storage-daemon"))?;
    let ready = scratch.file(READY);
    // One that was killed leaves it.
    let _ = std::fs::remove_file(&ready);
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={SOCKET},writable=on"
    );
    let file = format!("driver=file,filename={IMAGE},node-name=file");
    let child = Command::new(program)
        .args(["--blockdev", &file])
        .args(["--blockdev", "driver=qcow2,file=file,node-name=disk"])
        .args(["--export", &export, "--pidfile", READY])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .spawn()?;
    let mut server = Server(child);
    let began = Instant::now();
    while !ready.exists() {
        ensure!(server.0.try_wait()?.is_none(), "the daemon has ended");
        ensure!(began.elapsed() < PATIENCE, "the daemon does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(server)
}
