//! Images that are served: what a front end writes is what `qemu-img` then finds, whatever the image is like, and whoever
//! is killed meanwhile.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use instar_tests::front::{Front, PLACE_BYTES, PLACES, Request};
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use rustix::process::{Pid, Signal};

use super::{SOCKET, Server, boot, make_disk, sector_1, wait};
use crate::Outcome;

const IMAGE: &str = "disk.qcow2";
const SECTOR: u64 = 512;
/// The end is inside a cluster.
const SIZE: u64 = (24 << 20) - 3 * SECTOR;
/// Rounds of a random test.
const ROUNDS: u64 = 40;

fn img(scratch: &Scratch, args: &[&str]) -> Result<()> {
    image::qemu_img(scratch, args)?;
    Ok(())
}

/// Runs `qemu-img`, however it ends.
fn img_says(scratch: &Scratch, args: &[&str]) -> Result<instar_tests::run::Outcome> {
    Run::new(&tools::qemu_img()?, scratch.path())
        .args(args)
        .go()
}

/// Bytes that compress, and of which none is zero.
fn base(len: u64) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at / 700) % 250 + 1).unwrap_or(1))
        .collect()
}

/// Makes an image, and gives what a guest reads of it.
fn make(scratch: &Scratch, kind: &str) -> Result<Vec<u8>> {
    scratch.write("base.raw", &base(9 << 20))?;
    let size = SIZE.to_string();
    match kind {
        "compressed" => {
            img(
                scratch,
                &["convert", "-c", "-O", "qcow2", "base.raw", IMAGE],
            )?;
            img(scratch, &["resize", "-q", IMAGE, &size])?;
        }
        "chain" => {
            let mid = ["convert", "-c", "-O", "qcow2", "base.raw", "low.qcow2"];
            img(scratch, &mid)?;
            let over = |below| ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below];
            img(scratch, &[&over("low.qcow2")[..], &["mid.qcow2"]].concat())?;
            image::io(scratch, "mid.qcow2", &["write -P 77 3M 200k"])?;
            img(scratch, &[&over("mid.qcow2")[..], &[IMAGE, &size]].concat())?;
        }
        "snapshot" => {
            img(scratch, &["convert", "-O", "qcow2", "base.raw", IMAGE])?;
            img(scratch, &["resize", "-q", IMAGE, &size])?;
            image::snapshot(scratch, IMAGE, "before")?;
            image::io(scratch, IMAGE, &["write -P 78 2M 300k"])?;
        }
        options => img(
            scratch,
            &["create", "-q", "-f", "qcow2", "-o", options, IMAGE, &size],
        )?,
    }
    content(scratch)
}

fn content(scratch: &Scratch) -> Result<Vec<u8>> {
    img(
        scratch,
        &["convert", "-U", "-O", "raw", IMAGE, "content.raw"],
    )?;
    scratch.read("content.raw")
}

fn span(start: u64, len: u64) -> Result<std::ops::Range<usize>> {
    Ok(usize::try_from(start)?..usize::try_from(start + len)?)
}

/// A request somewhere, and its range.
fn any_request(rng: &mut Rng) -> (Request, u64, u64) {
    let start = rng.below(SIZE / SECTOR) * SECTOR;
    let most = if rng.below(4) == 0 {
        PLACE_BYTES
    } else {
        20_000
    };
    let len = (rng.below(most) / SECTOR * SECTOR + SECTOR).min(SIZE - start);
    let request = match rng.below(10) {
        0 => Request::Flush,
        1 => Request::Discard { start, len },
        2 => Request::WriteZeroes {
            start,
            len,
            unmap: rng.below(2) == 0,
        },
        3..6 => Request::Read { start, len },
        _ => {
            let byte = u8::try_from(rng.below(255) + 1).unwrap_or(1);
            let bytes = vec![byte; usize::try_from(len).unwrap_or(0)];
            Request::Write { start, bytes }
        }
    };
    (request, start, len)
}

/// Requests at once that do not touch each other.
fn round(rng: &mut Rng) -> Vec<(Request, u64, u64)> {
    let mut requests: Vec<(Request, u64, u64)> = Vec::new();
    for _ in 0..PLACES {
        let (request, start, len) = any_request(rng);
        let apart = |(_, other, other_len): &(Request, u64, u64)| {
            start + len <= *other || other + other_len <= start
        };
        if requests.iter().all(apart) {
            requests.push((request, start, len));
        }
    }
    requests
}

/// Has a round done, and the model with it. What a discard leaves is looked at: it is the old bytes, or zeros.
fn go_round(front: &mut Front, model: &mut [u8], rng: &mut Rng) -> Result<()> {
    let requests = round(rng);
    for (place, (request, ..)) in (0..).zip(&requests) {
        front.submit(place, request)?;
    }
    for _ in &requests {
        let (place, status) = front.wait()?;
        let (request, start, len) = &requests[usize::try_from(place)?];
        ensure!(
            status == 0,
            "status {status} at {start}+{len}: {request:.60?}"
        );
        let part = &mut model[span(*start, *len)?];
        match request {
            Request::Read { len, .. } => {
                ensure!(front.data(place, *len)? == part, "{start}+{len} reads")
            }
            Request::Write { bytes, .. } => part.copy_from_slice(bytes),
            Request::WriteZeroes { .. } => part.fill(0),
            Request::Discard { .. } | Request::Flush => {}
        }
    }
    for (request, start, len) in requests {
        if let Request::Discard { .. } = request {
            front.done(&Request::Read { start, len })?;
            let seen = front.data(0, len)?;
            let part = &mut model[span(start, len)?];
            let mut both = seen.iter().zip(&*part);
            ensure!(both.all(|(new, old)| *new == 0 || new == old));
            part.copy_from_slice(&seen);
        }
    }
    Ok(())
}

/// The image is sound, and its content is the model's.
fn judge(scratch: &Scratch, model: &[u8]) -> Result<()> {
    img(scratch, &["check", IMAGE])?;
    scratch.write("model.raw", model)?;
    let compare = ["compare", "-f", "qcow2", "-F", "raw", IMAGE, "model.raw"];
    img(scratch, &compare)
}

fn is_served(kind: &str, options: &[&str]) -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test(kind);
    let mut model = make(&scratch, kind)?;
    let server = Server::start(&scratch, &[options, &[IMAGE]].concat())?;
    let mut front = Front::connect(&scratch.file(SOCKET))?;
    for _ in 0..ROUNDS {
        go_round(&mut front, &mut model, &mut rng)?;
    }
    drop(front);
    // Nothing was flushed since: the server's end does that.
    let status = server.end()?;
    ensure!(status.code() == Some(0), "{status}");
    judge(&scratch, &model)
}

#[test]
fn plain_image_is_served() -> Outcome {
    is_served("cluster_size=64k", &["-f", "qcow2"])
}

#[test]
fn plain_image_is_served_past_the_page_cache() -> Outcome {
    is_served("cluster_size=64k,lazy_refcounts=on", &["--direct"])
}

#[test]
fn image_of_version_2_is_served() -> Outcome {
    is_served("compat=0.10,cluster_size=4k", &[])
}

#[test]
fn image_with_the_smallest_clusters_is_served() -> Outcome {
    is_served("cluster_size=512", &[])
}

#[test]
fn image_with_the_largest_clusters_is_served() -> Outcome {
    is_served("cluster_size=2M", &[])
}

#[test]
fn image_with_subclusters_is_served() -> Outcome {
    is_served("cluster_size=128k,extended_l2=on", &[])
}

#[test]
fn image_with_compressed_clusters_is_served() -> Outcome {
    is_served("compressed", &[])
}

#[test]
fn image_over_a_chain_is_served() -> Outcome {
    is_served("chain", &["-f", "qcow2"])
}

#[test]
fn image_with_a_data_file_is_served() -> Outcome {
    is_served("data_file=data.raw", &[])
}

#[test]
fn snapshot_of_an_image_that_is_served_stays() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("snapshot");
    let mut model = make(&scratch, "snapshot")?;
    let server = Server::start(&scratch, &[IMAGE])?;
    let mut front = Front::connect(&scratch.file(SOCKET))?;
    for _ in 0..ROUNDS {
        go_round(&mut front, &mut model, &mut rng)?;
    }
    let status = server.end()?;
    ensure!(status.code() == Some(0), "{status}");
    judge(&scratch, &model)?;
    img(&scratch, &["snapshot", "-q", "-a", "before", IMAGE])?;
    let compare = ["compare", "-f", "qcow2", "-F", "raw", IMAGE, "base.raw"];
    img(&scratch, &compare)
}

#[test]
fn image_that_is_only_read_stays_as_it_is() -> Outcome {
    let scratch = Scratch::new()?;
    let model = make(&scratch, "chain")?;
    let before = scratch.read(IMAGE)?;
    let server = Server::start(&scratch, &["--read-only", IMAGE])?;
    let reader = Server::start_at(&scratch, "other.sock", &["--read-only", IMAGE])?;
    let mut front = Front::connect(&scratch.file("other.sock"))?;
    for start in (0..SIZE).step_by(usize::try_from(PLACE_BYTES)?) {
        let len = PLACE_BYTES.min(SIZE - start);
        front.done(&Request::Read { start, len })?;
        ensure!(front.data(0, len)? == model[span(start, len)?], "{start}");
    }
    let bytes = vec![1; 512];
    front.submit(0, &Request::Write { start: 0, bytes })?;
    ensure!(front.wait()? == (0, 1), "a write is refused");
    drop(front);
    for server in [server, reader] {
        let status = server.end()?;
        ensure!(status.code() == Some(0), "{status}");
    }
    ensure!(scratch.read(IMAGE)? == before);
    judge(&scratch, &model)
}

#[test]
fn qemu_boots_from_an_image_that_is_served() -> Outcome {
    let scratch = Scratch::new()?;
    make_disk(&scratch)?;
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    img(&scratch, &[&convert[..], &[super::DISK, IMAGE]].concat())?;
    let server = Server::start(&scratch, &[IMAGE])?;
    for _ in 0..2 {
        let ended = boot(&scratch)?;
        ensure!(ended == super::WENT_WELL, "{ended}");
    }
    let status = server.end()?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(content(&scratch)?[1024..1536] == sector_1());
    img(&scratch, &["check", IMAGE])
}

/// Children of a process.
fn children(pid: u32) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let pids = text.split_whitespace().map(str::parse);
    Ok(pids.collect::<Result<_, _>>()?)
}

fn kill(pid: u32) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

/// Which process is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Parent,
    Server,
    Broker,
    Guest,
}

impl Victim {
    fn of(self, server: &Server) -> Result<u32> {
        let parent = server.child.id();
        let children_of = children(parent)?;
        let [broker, worker] = children_of[..] else {
            anyhow::bail!("{children_of:?}");
        };
        Ok(match self {
            Self::Parent => parent,
            Self::Server => worker,
            Self::Broker => broker,
            Self::Guest => *children(broker)?.first().context("a guest")?,
        })
    }
}

/// Writes and flushes, kills in the middle of further writes, and looks at what is left.
fn survives(victim: Victim) -> Outcome {
    let scratch = Scratch::new()?;
    let mut model = make(&scratch, "chain")?;
    let mut server = Server::start(&scratch, &[IMAGE])?;
    let mut front = Front::connect(&scratch.file(SOCKET))?;
    let mut rng = Rng::for_test(&format!("{victim:?}"));
    for _ in 0..8 {
        go_round(&mut front, &mut model, &mut rng)?;
    }
    front.done(&Request::Flush)?;
    let pid = victim.of(&server)?;
    let len = PLACE_BYTES;
    for place in 0..PLACES {
        let start = place * len;
        let bytes = vec![0xe7; usize::try_from(len)?];
        front.submit(place, &Request::Write { start, bytes })?;
    }
    front.wait()?;
    kill(pid)?;
    let status = wait(&mut server.child)?;
    let said = server.rest()?;
    if victim == Victim::Parent {
        ensure!(status.code().is_none(), "{status}");
    } else {
        ensure!(status.code() == Some(1), "{status}: {said}");
        ensure!(said.starts_with("instar: "), "{said:?}");
        ensure!(!scratch.file(SOCKET).exists(), "the socket is left");
    }
    free(&scratch)?;
    let check = img_says(&scratch, &["check", IMAGE])?;
    // Leaks, at worst.
    ensure!(matches!(check.code, Some(0 | 3)), "{}", check.describe());
    let now = content(&scratch)?;
    let ours = usize::try_from(PLACES * len)?;
    for (at, (new, old)) in now.iter().zip(&model).enumerate() {
        ensure!(new == old || (at < ours && *new == 0xe7), "byte {at}");
    }
    // And it is served again.
    let again = Server::start_at(&scratch, "again.sock", &[IMAGE])?;
    let status = again.end()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

/// Waits until nobody has the image open any more.
fn free(scratch: &Scratch) -> Result<()> {
    for _ in 0..6000 {
        let info = img_says(scratch, &["check", IMAGE])?;
        if !info.err().contains("lock") {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("the image stays locked")
}

#[test]
fn image_is_sound_when_its_guest_was_killed() -> Outcome {
    survives(Victim::Guest)
}

#[test]
fn image_is_sound_when_its_broker_was_killed() -> Outcome {
    survives(Victim::Broker)
}

#[test]
fn image_is_sound_when_its_server_was_killed() -> Outcome {
    survives(Victim::Server)
}

#[test]
fn image_is_sound_when_all_was_killed_at_its_root() -> Outcome {
    survives(Victim::Parent)
}

fn refused(scratch: &Scratch, args: &[&str], words: &str) -> Result<()> {
    let ran = Run::new(&tools::instar()?, scratch.path())
        .args(["serve", "--socket", "refused.sock"])
        .args(args)
        .go()?;
    ran.expect_code(1)?;
    ensure!(ran.err().contains(words), "{}", ran.describe());
    ensure!(ran.err().lines().count() <= 3, "{}", ran.describe());
    ensure!(!scratch.file("refused.sock").exists(), "a socket is left");
    Ok(())
}

#[test]
fn images_that_cannot_be_served_are_refused_with_a_sentence() -> Outcome {
    let scratch = Scratch::new()?;
    make(&scratch, "cluster_size=64k")?;
    let dirty = "lazy_refcounts=on";
    img(
        &scratch,
        &["create", "-q", "-f", "qcow2", "-o", dirty, "d.qcow2", "1M"],
    )?;
    let mut bytes = scratch.read("d.qcow2")?;
    bytes[79] |= 1;
    scratch.write("d.qcow2", &bytes)?;
    refused(&scratch, &["d.qcow2"], "instar check -r all")?;
    refused(&scratch, &["missing.qcow2"], "No such file or directory")?;
    refused(&scratch, &["base.raw"], "give -f raw")?;
    refused(&scratch, &["-f", "qcow2", "base.raw"], "qcow2 format")?;
    refused(
        &scratch,
        &["-f", "vmdk", IMAGE],
        "only raw and qcow2 images",
    )?;
    let outside = Scratch::new()?;
    outside.write("far.raw", &[0; 4096])?;
    let far = outside.file("far.raw");
    let far = far.to_str().context("a path")?;
    img(
        &scratch,
        &[
            "create", "-q", "-f", "qcow2", "-b", far, "-F", "raw", "o.qcow2",
        ],
    )?;
    refused(&scratch, &["o.qcow2"], "--allow-path")?;
    // Another one has it.
    let server = Server::start(&scratch, &[IMAGE])?;
    refused(&scratch, &[IMAGE], "lock")?;
    let resize = img_says(&scratch, &["resize", "-q", IMAGE, "64M"])?;
    ensure!(resize.err().contains("lock"), "{}", resize.describe());
    let status = server.end()?;
    ensure!(status.code() == Some(0), "{status}");
    let allowed = Path::new(far).parent().and_then(Path::to_str);
    let allowed = allowed.context("a folder")?;
    let server = Server::start(&scratch, &["--allow-path", allowed, "o.qcow2"])?;
    let status = server.end()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}
