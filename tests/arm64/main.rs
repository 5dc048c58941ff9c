//! The operations on arm64: at EL0 under KVM, in a machine that QEMU interprets. What they say must be what `qemu-img`
//! says here, byte for byte, and what they write must be what it writes.

use anyhow::{Result, ensure};
use instar_tests::image;
use instar_tests::lab::{Answer, Arm64};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

type Outcome = Result<()>;

/// Images of several features, a chain among them, and one with leaks.
fn stage() -> Result<Scratch> {
    let folder = Scratch::new()?;
    image::create_rich(&folder, "rich.qcow2", &["cluster_size=4k"])?;
    image::create_filled(&folder, "old.qcow2", &["compat=0.10", "cluster_size=512"])?;
    image::create_compressed(&folder, "zlib.qcow2", &[])?;
    image::create_compressed(&folder, "zstd.qcow2", &["compression_type=zstd"])?;
    image::create_overlay(&folder, "top.qcow2", "zstd.qcow2", "qcow2")?;
    image::io(&folder, "top.qcow2", &["write -P 77 70k 300k"])?;
    folder.write("raw.img", &vec![7; 100_000])?;
    Ok(folder)
}

/// Output without times, and without where images lie on the disk, which differs from one file system to another.
fn comparable(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let kept = lines.filter(|line| {
        let text = String::from_utf8_lossy(line);
        !["disk size:", "\"actual-size\":", "Run completed in "]
            .iter()
            .any(|part| text.contains(part))
    });
    kept.flatten().copied().collect()
}

/// Runs `commands` in the lab and with `qemu-img` here; both must say the same. Then `outputs` must hold the same.
fn same(folder: &Scratch, commands: &[&str], outputs: &[&str]) -> Outcome {
    let said = Arm64::new()?.run(folder, commands, outputs)?;
    let mut failures = Vec::new();
    for (command, got) in commands.iter().zip(&said.answers) {
        let want = Run::new(&tools::qemu_img()?, folder.path())
            .args(command.split(' '))
            .go()?;
        let want = Answer {
            code: want.code.unwrap_or(-1),
            stdout: comparable(&want.stdout),
            stderr: want.stderr,
        };
        let got = Answer {
            stdout: comparable(&got.stdout),
            ..got.clone()
        };
        if got != want {
            let shown = |a: &Answer| {
                let (out, err) = (
                    String::from_utf8_lossy(&a.stdout),
                    String::from_utf8_lossy(&a.stderr),
                );
                format!("code {}\n{out}{err}", a.code)
            };
            failures.push(format!(
                "{command}\nwant {}\ngot {}",
                shown(&want),
                shown(&got)
            ));
        }
    }
    for name in outputs {
        let bytes = said.files.get(*name).map_or(&[][..], Vec::as_slice);
        folder.write("from-the-lab", bytes)?;
        let check = Run::new(&tools::qemu_img()?, folder.path())
            .args(["check", "from-the-lab"])
            .go()?;
        let compare = image::qemu_img(folder, &["compare", "from-the-lab", name])?;
        if !matches!(check.code, Some(0 | 63)) || compare.code != Some(0) {
            failures.push(format!(
                "{name}: {} {}",
                check.describe(),
                compare.describe()
            ));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n==========\n"));
    Ok(())
}

#[test]
fn images_are_described_and_checked() -> Outcome {
    let folder = stage()?;
    same(
        &folder,
        &[
            "info rich.qcow2",
            "info --output=json rich.qcow2",
            "info --backing-chain --output=json top.qcow2",
            "info raw.img",
            "info missing.qcow2",
            "check rich.qcow2",
            "check --output=json rich.qcow2",
            "check old.qcow2",
            "check zlib.qcow2",
            "check -f qcow2 zstd.qcow2",
            "check raw.img",
            "map --output=json top.qcow2",
            "compare top.qcow2 zstd.qcow2",
            "measure -O qcow2 top.qcow2",
        ],
        &[],
    )
}

#[test]
fn images_are_made_and_changed() -> Outcome {
    let folder = stage()?;
    same(
        &folder,
        &[
            "convert -O raw top.qcow2 flat.raw",
            "convert -c -O qcow2 top.qcow2 packed.qcow2",
            "convert -c -O qcow2 -o compression_type=zstd,cluster_size=4k top.qcow2 zpacked.qcow2",
            "create -f qcow2 -o cluster_size=4k,extended_l2=off new.qcow2 1G",
            "snapshot -c late rich.qcow2",
            "snapshot -d first rich.qcow2",
            "resize rich.qcow2 +64M",
            "bitmap --add rich.qcow2 day",
            "amend -o refcount_bits=32 old.qcow2",
            "amend -o compat=1.1 old.qcow2",
            "check -r all old.qcow2",
            "bench -w -c 20 -s 4096 -q zlib.qcow2",
            "commit -q top.qcow2",
            "rebase -b zlib.qcow2 -F qcow2 top.qcow2",
            "check top.qcow2",
        ],
        &[
            "flat.raw",
            "packed.qcow2",
            "zpacked.qcow2",
            "new.qcow2",
            "rich.qcow2",
            "old.qcow2",
            "zstd.qcow2",
            "top.qcow2",
        ],
    )
}
