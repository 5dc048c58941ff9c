//! `instar run IMAGE`: from a boot loader's configuration to the kernel's first instructions. The kernel is a few bytes
//! that say what they were told, and wait for a byte: another boot, or off.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use instar_tests::image;
use instar_tests::layouts::{Disk, Fs, Part, Tree, kernel};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// 64-bit instructions; `rsi` has the address of the boot parameters. Says the command line and the initial RAM disk,
/// both up to a zero, each in a line; then reads a byte: `r` resets, all others switch the machine off.
fn talking_kernel() -> Vec<u8> {
    let say = |field: u16| {
        let [low, high] = field.to_le_bytes();
        let mut code = vec![0x8b, 0x9e, low, high, 0, 0]; // mov ebx, [rsi + field]
        code.extend([0x8a, 0x03, 0x84, 0xc0, 0x74, 0x0b]); // next: mov al, [rbx]; test al, al; jz end
        code.extend([0xba, 0xf8, 0x03, 0, 0, 0xee]); // mov edx, 0x3f8; out dx, al
        code.extend([0x48, 0xff, 0xc3, 0xeb, 0xef]); // inc rbx; jmp next
        code.extend([0xba, 0xf8, 0x03, 0, 0, 0xb0, b'\n', 0xee]); // end: mov al, '\n'; out dx, al
        code
    };
    let mut code = [say(0x228), say(0x218)].concat();
    code.extend([0xba, 0xfd, 0x03, 0, 0, 0xec, 0xa8, 1, 0x74, 0xf6]); // wait: in al, 0x3fd; test al, 1; jz wait
    code.extend([0xba, 0xf8, 0x03, 0, 0, 0xec, 0x3c, b'r', 0x75, 0x0b]); // in al, 0x3f8; cmp al, 'r'; jne off
    code.extend([0xba, 0x64, 0, 0, 0, 0xb0, 0xfe, 0xee, 0xf4, 0xeb, 0xfd]); // out 0x64, 0xfe; hlt
    // off: the page tables get the page of the sleep control register, by a table at 32 MiB.
    code.extend([0x0f, 0x20, 0xd8, 0x48, 0x8b, 0x00]); // mov rax, cr3; mov rax, [rax]
    code.extend([0x48, 0x25, 0, 0xf0, 0xff, 0xff]); // and rax, -4096
    code.extend([0xbb, 0, 0, 0, 2]); // mov ebx, 0x2000000
    code.extend([0xc7, 0x83, 0xb0, 0x0f, 0, 0, 0x83, 0, 0xc0, 0xfe]); // mov [rbx + 0xfb0], 0xfec00083
    code.extend([0xb9, 3, 0, 0, 2, 0x48, 0x89, 0x48, 0x18]); // mov ecx, 0x2000003; mov [rax + 0x18], rcx
    // mov ebx, the register; mov byte [rbx], S5 and enable; hlt
    code.extend([
        0xbb, 0x10, 0, 0xd0, 0xfe, 0xc6, 0x03, 0x34, 0xf4, 0xeb, 0xfd,
    ]);
    let mut file = kernel("", 0x200);
    file.extend(code);
    file
}

const CONFIGURATION: &str = "set default=0
menuentry 'one' --id one {
linux /vmlinuz root=/dev/vda1 marker=first console=ttyS0
initrd /initrd
}
menuentry 'two' --id two {
linux /vmlinuz quiet
}
menuentry 'none' --id none {
linux /missing
}
";

fn disk(scratch: &Scratch, configuration: &str) -> Result<()> {
    let part = Part {
        number: 1,
        mib: 48,
        kind: "L",
        fs: Fs::Ext4,
        uuid: "3f1e2d4c-1111-4a2b-8c3d-000000000001",
        label: "root",
        tree: Tree::new()?
            .file("/boot/grub/grub.cfg", configuration)?
            .file("/vmlinuz", talking_kernel())?
            .file("/initrd", b"the initial RAM disk\0")?,
    };
    let disk = Disk {
        table: "gpt",
        parts: vec![part],
    };
    disk.write(&scratch.file("disk.raw"))
}

/// A machine that runs.
struct Guest {
    child: Child,
    typed: ChildStdin,
    said: ChildStdout,
}

impl Guest {
    fn start(scratch: &Scratch, options: &[&str]) -> Result<Self> {
        Self::start_on(scratch, "disk.raw", options)
    }

    fn start_on(scratch: &Scratch, image: &str, options: &[&str]) -> Result<Self> {
        let mut child = Command::new(tools::instar()?)
            .args(["run", image, "--timeout", "600"])
            .args(options)
            .current_dir(scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let typed = child.stdin.take().context("stdin")?;
        let said = child.stdout.take().context("stdout")?;
        Ok(Self { child, typed, said })
    }

    /// The next line; what there is, if none comes.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.said.read(&mut byte)? == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        Ok(String::from_utf8(line)?)
    }

    fn answer(&mut self, byte: u8) -> Result<()> {
        self.typed.write_all(&[byte])?;
        Ok(())
    }

    /// Exit code and standard error.
    fn end(self) -> Result<(Option<i32>, String)> {
        drop(self.typed);
        let output = self.child.wait_with_output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

/// Runs one boot; what the kernel was told, twice.
fn one_boot(scratch: &Scratch, options: &[&str]) -> Result<(String, String)> {
    let mut guest = Guest::start(scratch, options)?;
    let told = (guest.line()?, guest.line()?);
    // One that has failed takes no input.
    let _ = guest.answer(b'p');
    let (code, stderr) = guest.end()?;
    ensure!(code == Some(0), "{code:?} {told:?}: {stderr}");
    Ok(told)
}

#[test]
fn an_image_boots_what_its_boot_loader_would() -> Outcome {
    let scratch = Scratch::new()?;
    disk(&scratch, CONFIGURATION)?;
    let (line, initrd) = one_boot(&scratch, &[])?;
    ensure!(
        line == "BOOT_IMAGE=/vmlinuz root=/dev/vda1 marker=first console=ttyS0",
        "{line}"
    );
    ensure!(initrd == "the initial RAM disk", "{initrd}");
    let (line, _) = one_boot(&scratch, &["--entry", "two", "--append", "single"])?;
    ensure!(
        line == "BOOT_IMAGE=/vmlinuz quiet single console=ttyS0",
        "{line}"
    );
    let (line, _) = one_boot(&scratch, &["--cmdline", "mine", "--hostname", "guest"])?;
    ensure!(line == "mine", "{line}");
    Ok(())
}

#[test]
fn a_reboot_looks_for_the_kernel_again() -> Outcome {
    let scratch = Scratch::new()?;
    disk(&scratch, CONFIGURATION)?;
    let mut guest = Guest::start(&scratch, &["--json"])?;
    let line = guest.line()?;
    ensure!(line.contains("marker=first"), "{line}");
    guest.line()?;
    let image = std::fs::OpenOptions::new()
        .write(true)
        .open(scratch.file("disk.raw"))?;
    let bytes = std::fs::read(scratch.file("disk.raw"))?;
    let places = bytes.windows(12).enumerate();
    let places = places.filter(|(_, window)| *window == b"marker=first");
    let mut changed = 0;
    for (at, _) in places {
        image.write_all_at(b"marker=later", at as u64)?;
        changed += 1;
    }
    ensure!(changed > 0, "no configuration in the image");
    guest.answer(b'r')?;
    let line = guest.line()?;
    ensure!(line.contains("marker=later"), "{line}");
    guest.answer(b'p')?;
    let (code, stderr) = guest.end()?;
    ensure!(code == Some(0), "{code:?}: {stderr}");
    let reports: Vec<serde_json::Value> = stderr
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let outcomes: Vec<_> = reports.iter().map(|report| &report["outcome"]).collect();
    ensure!(outcomes == ["reset", "power-off"], "{stderr}");
    for report in &reports {
        ensure!(report["phases"][0]["name"] == "bootscan", "{report}");
    }
    Ok(())
}

/// The kernel is in a compressed image below another one.
#[test]
fn a_qcow2_image_over_another_boots_and_reboots() -> Outcome {
    let scratch = Scratch::new()?;
    disk(&scratch, CONFIGURATION)?;
    let img = |args: &[&str]| -> Result<()> {
        image::qemu_img(&scratch, args)?;
        Ok(())
    };
    img(&["convert", "-c", "-O", "qcow2", "disk.raw", "low.qcow2"])?;
    let over = ["create", "-q", "-f", "qcow2", "-b", "low.qcow2", "-F"];
    img(&[&over[..], &["qcow2", "disk.qcow2"]].concat())?;
    let mut guest = Guest::start_on(&scratch, "disk.qcow2", &[])?;
    for answer in [b'r', b'p'] {
        let line = guest.line()?;
        ensure!(line.contains("marker=first"), "{line}");
        let initrd = guest.line()?;
        ensure!(initrd == "the initial RAM disk", "{initrd}");
        let taken = Run::new(&tools::qemu_img()?, scratch.path())
            .args(["resize", "disk.qcow2", "1G"])
            .go()?;
        ensure!(taken.err().contains("lock"), "{}", taken.describe());
        guest.answer(answer)?;
    }
    let (code, stderr) = guest.end()?;
    ensure!(code == Some(0), "{code:?}: {stderr}");
    img(&["check", "disk.qcow2"])?;
    img(&["compare", "disk.qcow2", "low.qcow2"])?;

    // One that nobody has closed is repaired by its user.
    let mut bytes = scratch.read("disk.qcow2")?;
    bytes[79] |= 1;
    scratch.write("disk.qcow2", &bytes)?;
    let guest = Guest::start_on(&scratch, "disk.qcow2", &[])?;
    let (code, stderr) = guest.end()?;
    ensure!(code == Some(1), "{code:?}: {stderr}");
    ensure!(stderr.contains("instar check -r all"), "{stderr}");
    Ok(())
}

/// Two machines use an image at once, and reboot.
#[test]
fn an_ephemeral_run_only_reads_its_image() -> Outcome {
    let scratch = Scratch::new()?;
    disk(&scratch, CONFIGURATION)?;
    image::qemu_img(
        &scratch,
        &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"],
    )?;
    let before = scratch.fingerprints()?;
    for image in ["disk.raw", "disk.qcow2"] {
        let start = || Guest::start_on(&scratch, image, &["--ephemeral"]);
        let (mut first, mut second) = (start()?, start()?);
        for guest in [&mut first, &mut second] {
            for answer in [b'r', b'p'] {
                let line = guest.line()?;
                ensure!(line.contains("marker=first"), "{line}");
                let initrd = guest.line()?;
                ensure!(initrd == "the initial RAM disk", "{initrd}");
                guest.answer(answer)?;
            }
        }
        for guest in [first, second] {
            let (code, stderr) = guest.end()?;
            ensure!(code == Some(0), "{image}: {code:?}: {stderr}");
        }
        ensure!(scratch.fingerprints()? == before, "{image} is another");
    }
    let nowhere = Run::new(&tools::instar()?, scratch.path())
        .args(["run", "disk.raw", "--ephemeral"])
        .env("TMPDIR", "/proc")
        .go()?;
    nowhere.expect_code(1)?;
    ensure!(
        nowhere.err().contains("name another folder by TMPDIR"),
        "{}",
        nowhere.describe()
    );
    Ok(())
}

/// A run that does not come to a guest says this.
fn refused(scratch: &Scratch, options: &[&str], sentence: &str) -> Outcome {
    let guest = Guest::start(scratch, options)?;
    let (code, stderr) = guest.end()?;
    ensure!(
        code == Some(1) && stderr.contains(sentence),
        "{options:?}: {code:?} {stderr}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_booted_is_said() -> Outcome {
    let scratch = Scratch::new()?;
    disk(&scratch, CONFIGURATION)?;
    refused(&scratch, &["--entry", "none"], "cannot be booted")?;
    refused(&scratch, &["--entry", "three"], "three")?;
    refused(
        &scratch,
        &["--ssh-key", "missing.pub"],
        "cannot read 'missing.pub'",
    )?;
    std::fs::write(scratch.file("disk.raw"), vec![0; 1 << 20])?;
    refused(&scratch, &[], "Nothing on this disk can be booted")?;
    std::fs::remove_file(scratch.file("disk.raw"))?;
    refused(&scratch, &[], "No such file")
}
