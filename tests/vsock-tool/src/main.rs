//! What guests of the lab and the lab itself need beside a busybox: echoes over vsock in a guest, and over Unix sockets on
//! its host; bulk data over TCP; a mark in a boot; and what the lab is told of this machine's clock.
//!
//! * `serve-vsock PORT COUNT`, `serve-unix PATH COUNT`: send back what comes, on so many connections.
//! * `ask-vsock CID PORT BYTES`, `ask-unix PATH PORT BYTES`: send bytes, and check that they come back; on the Unix
//!   socket after `CONNECT PORT`.
//! * `send-tcp ADDRESS MIB`, `receive-tcp ADDRESS`: send zeros, and take them until they end. Both say how many MiB/s it was.
//! * `serve-tcp ADDRESS COUNT`, `ping-tcp ADDRESS COUNT`: send back what comes, on so many connections; send a byte so many
//!   times, each when the last has come back, and say how many microseconds that took, as a median.
//! * `greeting ADDRESS SECONDS`: connects until somebody there says something, and prints that line; fails if that takes longer.
//! * `disk FILE read|write FIRST-MIB MIB COUNT THREADS`: so many requests of 4 KiB at random places, by so many threads at
//!   once, past the page cache; says how many MiB/s it was.
//! * `mark VALUE`: writes a byte to port 0x3f0, for which `instar run --json` and tracepoints of KVM have the time.
//! * `tsc-khz`: how often a millisecond the processor's time stamp counter counts.

mod disk;

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Where a mark is written.
const MARK_PORT: u16 = 0x3f0;
/// Bytes of a write and of a read over TCP.
const CHUNK: usize = 256 << 10;
/// The longest wait for a greeting on one connection.
const GREETING: Duration = Duration::from_secs(5);
/// Between the two looks at the counter, and between two connections.
const LOOK: Duration = Duration::from_millis(200);
/// How often each look is repeated: the one that nothing came between is kept.
const TRIES: u32 = 2000;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve-vsock", port, count] => {
            let listener = listen(port.parse()?)?;
            (0..count.parse()?).try_for_each(|_: u32| echo(accept(&listener)?))
        }
        ["serve-unix", path, count] => {
            let listener = UnixListener::bind(path)?;
            (0..count.parse()?).try_for_each(|_: u32| {
                let (stream, _) = listener.accept()?;
                echo(OwnedFd::from(stream))
            })
        }
        ["ask-vsock", cid, port, bytes] => {
            let stream = connect(cid.parse()?, port.parse()?)?;
            ask(File::from(stream), bytes.parse()?)
        }
        ["ask-unix", path, port, bytes] => {
            let mut stream = UnixStream::connect(path)?;
            stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let mut answer = Vec::new();
            while answer.last() != Some(&b'\n') {
                let mut byte = [0];
                stream.read_exact(&mut byte).context("no answer")?;
                answer.push(byte[0]);
            }
            ensure!(answer.starts_with(b"OK "), "the answer is {answer:?}");
            ask(File::from(OwnedFd::from(stream)), bytes.parse()?)
        }
        ["send-tcp", address, mib] => send(TcpStream::connect(address)?, mib.parse()?),
        ["receive-tcp", address] => receive(TcpListener::bind(address)?.accept()?.0),
        ["serve-tcp", address, count] => {
            let listener = TcpListener::bind(address)?;
            (0..count.parse()?).try_for_each(|_: u32| {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                echo(OwnedFd::from(stream))
            })
        }
        ["ping-tcp", address, count] => ping(TcpStream::connect(address)?, count.parse()?),
        ["greeting", address, seconds] => greeting(address, Duration::from_secs(seconds.parse()?)),
        ["disk", path, what, at_mib, span_mib, count, threads] => disk::run(&disk::Load {
            path,
            what,
            at_mib: at_mib.parse()?,
            span_mib: span_mib.parse()?,
            count: count.parse()?,
            threads: threads.parse()?,
        }),
        ["mark", value] => mark(value.parse()?),
        ["tsc-khz"] => tsc_khz(),
        _ => bail!("the first lines of its source say what it can do"),
    }
}

fn mark(value: u8) -> Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::ioperm(MARK_PORT.into(), 1, 1) }).context("ioperm")?;
    // SAFETY: no device of these guests has the port, so nothing comes of the write.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") MARK_PORT, in("al") value, options(nomem, nostack));
    }
    Ok(())
}

/// Says the counter's rate, measured so that it is right where other programs take the processor away at any time.
fn tsc_khz() -> Result<()> {
    let (counter, began) = look()?;
    std::thread::sleep(LOOK);
    let (later, ended) = look()?;
    let counted = u128::from(later.saturating_sub(counter)) * 1_000_000;
    println!("{}", counted / (ended - began).as_nanos().max(1));
    Ok(())
}

/// The counter and the time, as of one moment.
fn look() -> Result<(u64, Instant)> {
    let tries = (0..TRIES).map(|_| {
        let (before, now, after) = (counter(), Instant::now(), counter());
        (after.saturating_sub(before), before, now)
    });
    let (gap, counter, now) = tries.min_by_key(|(gap, ..)| *gap).context("no look")?;
    Ok((counter + gap / 2, now))
}

fn counter() -> u64 {
    // SAFETY: each processor that runs this program has the counter, and no memory is involved.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn send(mut to: TcpStream, mib: usize) -> Result<()> {
    let chunk = vec![0; CHUNK];
    let began = Instant::now();
    for _ in 0..mib.saturating_mul(1 << 20) / CHUNK {
        to.write_all(&chunk)?;
    }
    to.shutdown(Shutdown::Write)?;
    // The other end closes when it has everything.
    to.read_to_end(&mut Vec::new())?;
    tell(mib.saturating_mul(1 << 20), began);
    Ok(())
}

fn receive(mut from: TcpStream) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0_usize;
    let began = Instant::now();
    loop {
        match from.read(&mut chunk)? {
            0 => break,
            count => bytes = bytes.saturating_add(count),
        }
    }
    tell(bytes, began);
    Ok(())
}

fn ping(mut stream: TcpStream, count: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        took.push(began.elapsed().as_micros());
    }
    took.sort_unstable();
    let median = took.get(count / 2).context("it was not asked at all")?;
    println!("{median}");
    Ok(())
}

/// Waits for a line from whoever will listen there; a port that is forwarded may take connections before.
fn greeting(address: &str, patience: Duration) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Ok(stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(GREETING))?;
            let mut line = String::new();
            if BufReader::new(stream).read_line(&mut line).is_ok() && line.ends_with('\n') {
                print!("{line}");
                return Ok(());
            }
        }
        std::thread::sleep(LOOK);
    }
    bail!("nobody at {address} says anything")
}

/// Says how fast it was.
fn tell(bytes: usize, began: Instant) {
    let mib = bytes as f64 / f64::from(1 << 20);
    println!("{:.1}", mib / began.elapsed().as_secs_f64());
}

/// The byte at a place of what is sent.
fn pattern(at: usize) -> u8 {
    u8::try_from(at.wrapping_mul(7).wrapping_add(at >> 9) % 251).unwrap_or(0)
}

fn ask(stream: File, bytes: usize) -> Result<()> {
    let mut out = stream.try_clone()?;
    let sender = std::thread::spawn(move || -> Result<()> {
        let all: Vec<u8> = (0..bytes).map(pattern).collect();
        out.write_all(&all)?;
        shut(&out)
    });
    let mut back = Vec::new();
    BufReader::new(stream).read_to_end(&mut back)?;
    sender.join().ok().context("the sender has panicked")??;
    ensure!(
        back.len() == bytes,
        "{} of {bytes} bytes came back",
        back.len()
    );
    let wrong = (0..bytes).find(|at| back.get(*at) != Some(&pattern(*at)));
    ensure!(wrong.is_none(), "byte {wrong:?} came back as another");
    println!("{bytes} bytes came back");
    Ok(())
}

fn echo(stream: OwnedFd) -> Result<()> {
    let mut out = File::from(stream);
    let mut input = BufReader::new(out.try_clone()?);
    loop {
        let count = {
            let buffer = input.fill_buf()?;
            out.write_all(buffer)?;
            buffer.len()
        };
        if count == 0 {
            return shut(&out);
        }
        input.consume(count);
    }
}

/// Says that no more comes.
fn shut(stream: &File) -> Result<()> {
    // SAFETY: no memory is involved; the descriptor is open.
    check(unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) }).map(|_| ())
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(result)
}

fn socket() -> Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd =
        check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> Result<(libc::sockaddr_vm, libc::socklen_t)> {
    // SAFETY: an address is plain integers, for which zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK)?;
    address.svm_cid = cid;
    address.svm_port = port;
    let len = libc::socklen_t::try_from(std::mem::size_of_val(&address))?;
    Ok((address, len))
}

fn connect(cid: u32, port: u32) -> Result<OwnedFd> {
    let socket = socket()?;
    let (address, len) = address(cid, port)?;
    // SAFETY: the address is live, and as long as it is said to be.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

fn listen(port: u32) -> Result<OwnedFd> {
    let socket = socket()?;
    let (address, len) = address(libc::VMADDR_CID_ANY, port)?;
    // SAFETY: the address is live, and as long as it is said to be.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), 16) })?;
    Ok(socket)
}

fn accept(listener: &OwnedFd) -> Result<OwnedFd> {
    // SAFETY: no address is asked for.
    let fd = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
