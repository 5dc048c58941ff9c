//! How new files lie in their file system, `nocow` and `extent_size_hint`, beside `qemu-img`. Root only: it mounts file
//! systems.

use anyhow::{Result, ensure};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::Twins;

use crate::Outcome;
use crate::block_device::Loop;
use crate::edit_devices::into_device;
use crate::output_faults::Small;

/// Commands that make `small/x`, and some of them `small/d`.
const MAKERS: [&str; 17] = [
    "create -f raw small/x 8M",
    "create -f raw -o nocow=on small/x 8M",
    "create -f raw -o nocow=off,extent_size_hint=0 small/x 8M",
    "create -f raw -o extent_size_hint=2M small/x 8M",
    "create -f raw -o extent_size_hint=5k small/x 8M",
    "create -f raw -o extent_size_hint=8G small/x 8M",
    "create -f raw -o preallocation=falloc,extent_size_hint=64k small/x 8M",
    "create -f qcow2 small/x 8M",
    "create -f qcow2 -o nocow=on,extent_size_hint=4k small/x 8M",
    "create -f qcow2 -o extent_size_hint=4294967295 small/x 8M",
    "create -f qcow2 -o extent_size_hint=4294967296,cluster_size=3 small/x 8M",
    "create -f qcow2 -o nocow=on,extent_size_hint=2M,data_file=small/d small/x 8M",
    "convert -O raw -o nocow=on,extent_size_hint=8M s.raw small/x",
    "convert -O qcow2 -o nocow=on,extent_size_hint=5 s.raw small/x",
    "convert -O qcow2 s.raw small/x",
    "convert -O raw -o extent_size_hint=8G s.raw small/x",
    "dd if=s.raw of=small/x bs=1M",
];

/// What the file system says of a file; nothing if it is not there.
fn attributes(folder: &Scratch, kind: &str, name: &str) -> Result<String> {
    let path = folder.file(name);
    if !path.exists() {
        return Ok(String::new());
    }
    let path = path.as_os_str();
    let say = |program: &str, args: &[&str]| -> Result<String> {
        let mut run = Run::new(&tools::in_path(program.as_ref())?, folder.path());
        run = run.args(args).args([path]);
        let ran = run.go()?;
        ran.expect_code(0)?;
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        Ok(text.split_whitespace().next().unwrap_or_default().into())
    };
    Ok(match kind {
        "xfs" => say("xfs_io", &["-c", "extsize"])?,
        "tmpfs" | "ramfs" => String::new(),
        _ => say("lsattr", &["-d"])?,
    })
}

/// Runs every command on new files and on files that are there; gives all that was said of `small/x`.
fn on(kind: &str) -> Result<Vec<String>> {
    let mut twins = Twins::new()?;
    twins.build(|folder| folder.write("s.raw", &[7; 3 << 20]).map(drop))?;
    let _theirs = Small::mount(twins.theirs(), kind)?;
    let _ours = Small::mount(twins.ours(), kind)?;
    let mut said = Vec::new();
    // A file system in memory that knows nothing does not reserve space, either.
    let fit = |line: &&&str| kind != "ramfs" || !line.contains("preallocation");
    let lines = MAKERS.iter().filter(fit);
    for (line, there) in lines.flat_map(|line| [(line, false), (line, true)]) {
        for folder in [twins.theirs(), twins.ours()] {
            for name in ["small/x", "small/d"] {
                let _ = std::fs::remove_file(folder.file(name));
                if there {
                    folder.write(name, &[1; 1 << 20])?;
                }
            }
        }
        twins.run(&line.split_whitespace().collect::<Vec<_>>())?;
        for name in ["small/x", "small/d"] {
            let theirs = attributes(twins.theirs(), kind, name)?;
            let ours = attributes(twins.ours(), kind, name)?;
            ensure!(
                theirs == ours,
                "{kind}: {line}: {name}: {theirs}, not {ours}"
            );
            said.push(theirs);
        }
    }
    Ok(said)
}

#[test]
fn space_on_xfs_is_taken_in_extents_of_the_size_of_the_oracle() -> Outcome {
    let said = on("xfs")?;
    for size in [
        "[0]",
        "[4096]",
        "[65536]",
        "[1048576]",
        "[2097152]",
        "[8388608]",
    ] {
        ensure!(said.iter().any(|said| said == size), "no file has {size}");
    }
    Ok(())
}

#[test]
fn files_on_btrfs_are_written_in_place_where_those_of_the_oracle_are() -> Outcome {
    let said = on("btrfs")?;
    for in_place in [true, false] {
        let any = said.iter().any(|said| said.contains('C') == in_place);
        ensure!(any, "no file has nocow = {in_place}");
    }
    Ok(())
}

#[test]
fn file_systems_without_such_layouts_say_what_they_say_to_the_oracle() -> Outcome {
    on("ext4")?;
    on("tmpfs")?;
    on("ramfs")?;
    Ok(())
}

#[test]
fn devices_lie_in_no_file_system() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        folder.set_len("x", 4 << 20)?;
        folder.write("s.raw", &[7; 1 << 20]).map(drop)
    })?;
    let _devices: [Loop; 2] = [
        into_device(twins.theirs(), "x", &[], 4 << 20)?,
        into_device(twins.ours(), "x", &[], 4 << 20)?,
    ];
    for line in [
        "create -f raw -o nocow=on x 1M",
        "create -f qcow2 -o extent_size_hint=8G,nocow=off x 1M",
        "create -f qcow2 -o cluster_size=4k,nocow=on x 1M",
        "create -f qcow2 -o cluster_size=4k x 1M",
        "convert -O qcow2 -o nocow=on s.raw x",
        "convert -O raw s.raw x",
    ] {
        twins.run(&line.split_whitespace().collect::<Vec<_>>())?;
    }
    Ok(())
}
