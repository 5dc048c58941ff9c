//! No hypervisor, or not for this user: one sentence and what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::ensure;
use instar_tests::compare::{manners, orderly};
use instar_tests::image;
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// Runs `script`, which ends with `exec … ./instar`, in a mount namespace of its own.
fn in_namespace(command: &str, script: &str) -> anyhow::Result<Ran> {
    let scratch = Scratch::new()?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    fs::copy(tools::instar()?, scratch.file("instar"))?;
    image::create_filled(&scratch, "disk.qcow2", &[])?;
    let unshare = tools::in_path("unshare".as_ref())?;
    let script = format!("{script} ./instar {command} disk.qcow2");
    Run::new(&unshare, scratch.path())
        .args(["--mount", "sh", "-c", &script])
        .go()
}

/// The run must end with a sentence that contains `what`, and a hint that contains `advice`.
fn refused(script: &str, what: &[&str], advice: &str) -> Outcome {
    for command in ["info", "check", "info --output=json"] {
        let got = in_namespace(command, script)?;
        let mut complaints = orderly(&got);
        complaints.extend(manners(&got));
        ensure!(
            got.code == Some(1) && complaints.is_empty(),
            "{complaints:?}\n{}",
            got.describe()
        );
        let said = got.err();
        let (sentence, hint) = said.split_once('\n').unwrap_or_default();
        for part in what {
            ensure!(sentence.contains(part), "no {part:?}: {}", got.describe());
        }
        ensure!(
            hint.starts_with("hint: ") && hint.contains(advice),
            "no {advice:?}: {}",
            got.describe()
        );
    }
    Ok(())
}

#[test]
fn no_device() -> Outcome {
    refused(
        "mount -t tmpfs none /dev && exec",
        &["instar: ", "/dev/kvm does not exist"],
        "kvm module",
    )
}

#[test]
fn device_of_somebody_else() -> Outcome {
    refused(
        "mount -t tmpfs none /dev && mknod -m 600 /dev/kvm c 10 232 && \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups",
        &["instar: ", "permission", "/dev/kvm"],
        "group",
    )
}

#[test]
fn device_without_a_driver() -> Outcome {
    // A device number that no driver has.
    refused(
        "mount -t tmpfs none /dev && mknod -m 666 /dev/kvm c 239 9999 && exec",
        &["instar: ", "/dev/kvm"],
        "kvm",
    )
}

#[test]
fn another_file_in_the_place_of_the_device() -> Outcome {
    for other in ["/dev/null", "/etc/passwd"] {
        refused(
            &format!("mount --bind {other} /dev/kvm && exec"),
            &["instar: ", "/dev/kvm is not the KVM device"],
            "kvm module",
        )?;
    }
    Ok(())
}
