//! Programs that lack a part which few runs need, and the fuller ones that run in their place: nothing of that is seen.

use anyhow::{Context, Result, ensure};
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;
use instar_tests::{image, tools};

use crate::Outcome;

const NAME: &str = "disk.qcow2";

/// The disk ends within a compressed cluster, of the image or of the one below, that is to be filled up.
#[test]
fn a_compressed_end_is_filled_up() -> Outcome {
    for (options, below) in [
        (&["cluster_size=4k"][..], false),
        (&["cluster_size=64k", "compression_type=zstd"], false),
        (&["cluster_size=4k"], true),
    ] {
        let mut twins = Twins::new()?;
        twins.build(|folder| {
            if !below {
                return image::create(folder, NAME, options, "1050624");
            }
            image::create(folder, "base.qcow2", options, "2M")?;
            let base = ["-b", "base.qcow2", "-F", "qcow2", NAME, "1050624"];
            let words = [&["create", "-q", "-f", "qcow2"], &base[..]].concat();
            image::qemu_img(folder, &words).map(drop)
        })?;
        if below {
            twins.io("base.qcow2", &["write -c -P 5 1M 4k"])?;
        } else {
            twins.io(NAME, &["write -c -P 9 1M 2k"])?;
        }
        for words in [
            &["resize", "--preallocation=metadata", NAME, "3M"][..],
            &["resize", NAME, "2050k"],
            &["resize", "--shrink", NAME, "1025k"],
        ] {
            twins.run(words)?;
            twins.compare(NAME)?;
        }
    }
    Ok(())
}

/// `instar` in a folder, with its exit code.
fn instar(folder: &Scratch, words: &[&str], code: i32) -> Result<Ran> {
    let ran = Run::new(&tools::instar()?, folder.path())
        .args(words)
        .go()?;
    ran.expect_code(code)?;
    Ok(ran)
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// No key is asked for where none is needed, which `qemu-img` does all the same.
#[test]
fn an_encrypted_image_is_changed_without_its_key() -> Outcome {
    for format in ["luks", "aes"] {
        let folder = Scratch::new()?;
        let option = format!("encrypt.format={format}");
        image::create_encrypted(&folder, NAME, &[&option])?;
        for words in [
            &["resize", NAME, "2M"][..],
            &["resize", "--shrink", NAME, "512k"],
            &["amend", "-o", "lazy_refcounts=on", NAME],
            &["amend", "-o", "refcount_bits=8", NAME],
            &["amend", "-o", "size=3M", NAME],
        ] {
            instar(&folder, words, 0)?;
            instar(&folder, &["check", NAME], 0)?;
        }
        let info = instar(&folder, &["info", "--output=json", NAME], 0)?;
        for wanted in ["\"virtual-size\": 3145728", "\"refcount-bits\": 8"] {
            ensure!(text(&info.stdout).contains(wanted), "{}", info.describe());
        }
    }
    Ok(())
}

/// The LUKS header is looked at, that of an image below as well.
#[test]
fn a_damaged_luks_header_is_refused() -> Outcome {
    let folder = Scratch::new()?;
    let base = "base.qcow2";
    image::create_encrypted(&folder, base, &["encrypt.format=luks"])?;
    let mut bytes = folder.read(base)?;
    let magic = bytes.windows(6).position(|some| some == b"LUKS\xba\xbe");
    bytes[magic.context("no LUKS header")?] = b'X';
    folder.write(base, &bytes)?;
    let over = ["-u", "-b", base, "-F", "qcow2", NAME, "1M"];
    let words = [&["create", "-q", "-f", "qcow2"], &over[..]].concat();
    image::qemu_img(&folder, &words)?;
    for name in [base, NAME] {
        for words in [
            &["resize", name, "2M"][..],
            &["amend", "-o", "lazy_refcounts=on", name],
            &["amend", "-o", "size=2M", name],
        ] {
            let ran = instar(&folder, words, 1)?;
            let told = text(&ran.stderr).contains("Volume is not in LUKS format");
            ensure!(told, "{words:?}: {}", ran.describe());
        }
    }
    Ok(())
}

/// Another size is a matter of the whole program from the start.
#[test]
fn a_size_is_changed_along_with_other_options() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| image::create_rich(folder, NAME, &[]))?;
    for options in [
        "size=20M,refcount_bits=32",
        "lazy_refcounts=on,size=0",
        "size=9M",
        "refcount_bits=16,size=21M",
    ] {
        twins.run(&["amend", "-o", options, NAME])?;
        twins.compare(NAME)?;
    }
    Ok(())
}
