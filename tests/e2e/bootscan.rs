//! `instar bootscan` on disks as distributions lay them out, and on hostile ones. `qemu-img` has no such command.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instar_tests::layouts::{ALL, Disk, Fs, Layout, Part, Tree, alpine, debian, kernel};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use serde_json::Value;

use crate::Outcome;

/// Longest time that a hostile disk may take, where others work, too.
const SOON: Duration = Duration::from_secs(180);

/// What the program said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

fn bootscan(scratch: &Scratch, options: &[&str]) -> Result<Said> {
    let mut command = Command::new(tools::instar()?);
    command
        .arg("bootscan")
        .args(options)
        .current_dir(scratch.path());
    let said = command.stdin(Stdio::null()).output()?;
    Ok(Said {
        code: said.status.code().context("it was killed")?,
        out: String::from_utf8(said.stdout)?,
        err: String::from_utf8(said.stderr)?,
    })
}

fn json(scratch: &Scratch, options: &[&str]) -> Result<Value> {
    let said = bootscan(scratch, &[&["--output=json"], options].concat())?;
    ensure!(
        said.code == 0 && said.err.is_empty(),
        "{}: {}",
        said.code,
        said.err
    );
    Ok(serde_json::from_str(&said.out)?)
}

/// Checks that the default entry is what the layout says, and that its files come out whole.
fn expect(scratch: &Scratch, layout: &Layout, image: &str) -> Outcome {
    let name = format!("{} in {image}", layout.name);
    let options = [
        "--extract-kernel",
        "kernel",
        "--extract-initrd",
        "initrd",
        image,
    ];
    let found = json(scratch, &options).context(name.clone())?;
    let entries = found["entries"].as_array().context("entries")?;
    ensure!(entries.len() == layout.entries, "{name}: {found:#}");
    let chosen = entries
        .iter()
        .find(|e| e["chosen"] == true)
        .context("no entry is chosen")?;
    ensure!(
        chosen["default"] == true && chosen["title"] == layout.title,
        "{name}: {chosen:#}"
    );
    ensure!(
        chosen["command-line"] == layout.cmdline,
        "{name}: {chosen:#}"
    );
    ensure!(
        chosen["kernel"]["path"] == layout.kernel.0,
        "{name}: {chosen:#}"
    );
    ensure!(
        found["kernel-image"]["format"] == "bzimage",
        "{name}: {found:#}"
    );
    ensure!(
        found["kernel-image"]["entry"] == 0x0100_0200,
        "{name}: {found:#}"
    );
    ensure!(
        scratch.read("kernel")? == layout.kernel.1,
        "{name}: another kernel"
    );
    let mut initrds: Vec<u8> = Vec::new();
    for (_, bytes) in &layout.initrds {
        initrds.resize(initrds.len().next_multiple_of(4), 0);
        initrds.extend(bytes);
    }
    ensure!(
        scratch.read("initrd")? == initrds,
        "{name}: another initial RAM disk"
    );
    std::fs::remove_file(scratch.file("kernel"))?;
    std::fs::remove_file(scratch.file("initrd"))?;
    Ok(())
}

fn qemu_img(scratch: &Scratch, options: &[&str]) -> Outcome {
    let said = Run::new(&tools::qemu_img()?, scratch.path())
        .args(options)
        .go()?;
    ensure!(
        said.expect_code(0).is_ok(),
        "qemu-img {options:?}: {}",
        said.err()
    );
    Ok(())
}

#[test]
fn default_entries_of_distributions_are_found_in_every_format() -> Outcome {
    for make in ALL {
        let scratch = Scratch::new()?;
        let layout = make()?;
        layout.disk.write(&scratch.file("raw"))?;
        expect(&scratch, &layout, "raw")?;
        qemu_img(
            &scratch,
            &["convert", "-O", "qcow2", "-c", "raw", "base.qcow2"],
        )?;
        expect(&scratch, &layout, "base.qcow2")?;
        let overlay = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ];
        qemu_img(&scratch, &overlay)?;
        expect(&scratch, &layout, "top.qcow2")?;
    }
    Ok(())
}

#[test]
fn another_entry_is_chosen_by_index_id_or_title() -> Outcome {
    let scratch = Scratch::new()?;
    debian()?.disk.write(&scratch.file("raw"))?;
    for word in ["1>1", "gnulinux-6.1.0-28-cloud-amd64-recovery"] {
        let found = json(&scratch, &["--entry", word, "raw"])?;
        let entries = found["entries"].as_array().context("entries")?;
        let chosen: Vec<_> = entries.iter().filter(|e| e["chosen"] == true).collect();
        ensure!(
            chosen.len() == 1 && chosen[0]["index"] == "1>1",
            "{found:#}"
        );
        ensure!(chosen[0]["default"] == false, "{found:#}");
    }
    let said = bootscan(&scratch, &["--entry", "nothing", "raw"])?;
    ensure!(
        said.code == 1 && said.err.contains("There is no boot entry 'nothing'"),
        "{}",
        said.err
    );
    let said = bootscan(&scratch, &["raw"])?;
    ensure!(said.out.contains("  * 0  Debian GNU/Linux"), "{}", said.out);
    ensure!(
        said.out
            .contains("default entry: 0 (the variable default is '0')"),
        "{}",
        said.out
    );
    // What starts no kernel is shown, and is no success.
    let said = bootscan(&scratch, &["--entry", "uefi-firmware", "raw"])?;
    ensure!(
        said.code == 1 && said.out.contains("cannot be booted"),
        "{}",
        said.out
    );
    Ok(())
}

fn one(scratch: &Scratch, tree: Tree) -> Outcome {
    let part = Part {
        number: 1,
        mib: 48,
        kind: "",
        fs: Fs::Ext4,
        uuid: "3f1e2d4c-1111-4a2b-8c3d-000000000001",
        label: "root",
        tree,
    };
    let disk = Disk {
        table: "",
        parts: vec![part],
    };
    disk.write(&scratch.file("raw"))
}

/// A disk whose configuration is `text` ends soon, with this in a note or sentence.
fn refused(text: &str, sentence: &str) -> Outcome {
    let scratch = Scratch::new()?;
    one(
        &scratch,
        Tree::new()?
            .file("/boot/grub/grub.cfg", text)?
            .file("/vmlinuz", kernel("x", 1000))?,
    )?;
    let began = Instant::now();
    let said = bootscan(&scratch, &["-f", "raw", "raw"])?;
    let all = format!("{}{}", said.out, said.err);
    ensure!(
        said.code == 1 && all.contains(sentence),
        "{}: {all}",
        said.code
    );
    ensure!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    Ok(())
}

#[test]
fn hostile_configurations_end_soon_and_with_a_sentence() -> Outcome {
    refused(
        "while true; do set a=b; done\n",
        "it runs too many commands",
    )?;
    refused(
        "set a=xxxxxxxx\nwhile true; do set a=$a$a; done\n",
        "its variables are too large",
    )?;
    refused("function f { f; }\nf\n", "it is nested too deep")?;
    refused("source /boot/grub/grub.cfg\n", "it is nested too deep")?;
    refused(&"if true; then\n".repeat(10_000), "it is nested too deep")?;
    refused("menuentry 'a' { linux /vmlinuz\n", "is no script of GRUB")?;
    refused("menuentry 'a", "is no script of GRUB")?;
    refused(&"x".repeat(2 << 20), "Nothing")?;
    refused("menuentry 'a' { linux /nothing }\n", "Nothing")?;
    refused(
        "menuentry 'a' { linux /nothing\n}\n",
        "its kernel '/nothing' cannot be read: There is no such file",
    )?;
    refused(
        "menuentry 'a' { linux (lvm/vg-root)/vmlinuz\n}\n",
        "lies on a device that instar does not read",
    )?;
    refused("menuentry 'a' { chainloader /x\n}\n", "is no Linux kernel")?;
    let long = format!("menuentry 'a' {{ linux /vmlinuz {}\n}}\n", "x".repeat(5000));
    refused(&long, "its command line has more than 4096 bytes")?;
    Ok(())
}

#[test]
fn many_entries_are_cut() -> Outcome {
    let scratch = Scratch::new()?;
    let mut text = String::new();
    for number in 0..1000 {
        text.push_str(&format!(
            "menuentry 'entry {number}' {{ linux /vmlinuz a={number}\n}}\n"
        ));
    }
    one(
        &scratch,
        Tree::new()?
            .file("/boot/grub/grub.cfg", text)?
            .file("/vmlinuz", kernel("x", 1000))?,
    )?;
    let found = json(&scratch, &["-f", "raw", "raw"])?;
    ensure!(found["entries"].as_array().context("entries")?.len() == 256);
    Ok(())
}

#[test]
fn links_that_loop_and_files_that_are_huge_are_refused() -> Outcome {
    let scratch = Scratch::new()?;
    let text = "menuentry 'a' { linux /a\n}\nmenuentry 'b' { linux /huge\n}\n";
    let tree = Tree::new()?
        .file("/boot/grub/grub.cfg", text)?
        .link("/a", "b")?
        .link("/b", "a")?
        .file("/huge", "")?;
    one(&scratch, tree)?;
    // 1 TiB without data, which debugfs writes into the inode.
    let mut command = Command::new(tools::in_path(Path::new("debugfs"))?);
    let status = command
        .args([
            "-w",
            "-R",
            "set_inode_field /huge size 1099511627776",
            "raw",
        ])
        .current_dir(scratch.path())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "debugfs failed");
    let said = bootscan(&scratch, &["-f", "raw", "raw"])?;
    let links = "its kernel '/a' cannot be read: Too many symbolic links";
    ensure!(said.out.contains(links), "{}", said.out);
    let said = bootscan(&scratch, &["-f", "raw", "--entry", "1", "raw"])?;
    ensure!(
        said.code == 1 && said.err.contains("256 MiB"),
        "{}: {}",
        said.code,
        said.err
    );
    Ok(())
}

#[test]
fn disk_with_nothing_to_boot_is_a_sentence() -> Outcome {
    let scratch = Scratch::new()?;
    scratch.set_len("empty", 1 << 20)?;
    scratch.set_len("nothing", 0)?;
    for name in ["empty", "nothing"] {
        let said = bootscan(&scratch, &["-f", "raw", name])?;
        let sentence = said.err.contains("Nothing on this disk can be booted");
        ensure!(said.code == 1 && sentence, "{name}: {}", said.err);
    }
    Ok(())
}

/// Damage in what is structure: the run ends soon, with a result or a sentence, and never by a signal.
#[test]
fn damaged_disks_end_with_a_result_or_a_sentence() -> Outcome {
    let mut rng = instar_tests::rng::Rng::for_test("bootscan damage");
    let scratch = Scratch::new()?;
    alpine()?.disk.write(&scratch.file("raw"))?;
    let whole = scratch.read("raw")?;
    let used = (0..whole.len()).step_by(512);
    let used = used.filter(|at| whole[*at..*at + 512].iter().any(|byte| *byte != 0));
    let used: Vec<usize> = used.take(300).collect();
    for case in 0..instar_tests::rng::count("INSTAR_CASES", 12) {
        let mut bytes = whole.clone();
        for _ in 0..=rng.below(12) {
            let at = *rng.pick(&used) + usize::try_from(rng.below(512))?;
            bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff]);
        }
        if case % 4 == 3 {
            bytes.truncate(usize::try_from(rng.below(whole.len() as u64))?);
        }
        scratch.write("damaged", &bytes)?;
        let began = Instant::now();
        let said = bootscan(&scratch, &["-f", "raw", "damaged"])?;
        ensure!(
            said.code == 0 || (said.code == 1 && !said.err.is_empty()),
            "{case}: {}",
            said.err
        );
        ensure!(
            began.elapsed() < SOON,
            "{case}: it took {:?}",
            began.elapsed()
        );
    }
    Ok(())
}
