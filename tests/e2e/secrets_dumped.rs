//! A process that has had a password leaves no core, whatever the limits and patterns of its host say.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Child;

use anyhow::{Result, ensure};
use instar_tests::live::status;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::{family, image, tools};

use crate::Outcome;
use crate::jail::limit;
use crate::secrets_at_rest::{WORD, wait_until_it_writes};

/// Runs a program that may leave a core of any size.
const UNLIMITED: &str = "ulimit -c unlimited && exec \"$0\" \"$@\"";

/// Files for a conversion into an encrypted image.
fn prepare() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    scratch.write("word", WORD.as_bytes())?;
    scratch.write("flat", &vec![7; 64 << 20])?;
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let secret = ["--object", "secret,id=s,file=word"];
    let create = [&["create", "-q", "-f", "qcow2"][..], &secret];
    let rest = ["-o", options, "locked", "64M"];
    image::qemu_img(&scratch, &[&create.concat()[..], &rest].concat())?;
    Ok(scratch)
}

/// Starts the conversion by `wrapper`, whose last word is the program, and waits until it writes.
fn start(scratch: &Scratch, wrapper: &[&str]) -> Result<Child> {
    let shell = tools::in_path("sh".as_ref())?;
    let list = "driver=qcow2,file.filename=locked,encrypt.key-secret=s";
    let convert = ["convert", "-n", "-r", "1M", "--object"];
    let rest = ["secret,id=s,file=word", "--target-image-opts", "flat", list];
    let run = Run::new(&shell, scratch.path()).args(["-c", UNLIMITED]);
    let mut child = run.args(wrapper).args(convert).args(rest).start()?;
    wait_until_it_writes(scratch, &mut child, "locked")?;
    Ok(child)
}

/// Broker, worker, and who waits for another round.
fn processes(child: &Child) -> Result<Vec<u32>> {
    let mut all = family::of(child.id());
    all.retain(|pid| family::is_there(*pid));
    ensure!(all.len() > 1, "there is no worker");
    Ok(all)
}

#[test]
fn no_process_that_had_a_password_can_be_dumped_or_traced_by_its_user() -> Outcome {
    let scratch = prepare()?;
    for name in ["word", "flat", "locked"] {
        std::fs::set_permissions(scratch.file(name), std::fs::Permissions::from_mode(0o666))?;
    }
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755))?;
    std::fs::copy(tools::instar()?, scratch.file("instar"))?;
    let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/kvm c 10 232 && \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups ./instar \"$@\"";
    let mut child = start(&scratch, &["unshare", "--mount", "sh", "-c", script, "sh"])?;
    let all = processes(&child)?;
    for pid in &all {
        ensure!(status(*pid, "Uid")?.starts_with("65534\t"));
        let limit = limit(i32::try_from(*pid)?, "Max core file size")?;
        ensure!(limit == ["0", "0"], "{limit:?}");
        // proc(5): what is not dumpable belongs to root here. That holds for cores that are piped to a program, too.
        let owner = std::fs::metadata(format!("/proc/{pid}/mem"))?.uid();
        ensure!(owner == 0, "its memory belongs to user {owner}");
    }
    family::kill(&mut child)
}
