//! Programs that lack a part which few runs need, and the fuller ones that run in their place: nothing of that is seen.

use anyhow::ensure;
use instar_tests::image;
use instar_tests::twins::Twins;

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

/// No key is asked for, but the LUKS header is looked at: that of the image, and that of one below.
#[test]
fn an_encrypted_image_is_changed_without_its_key() -> Outcome {
    for format in ["luks", "aes"] {
        let mut twins = Twins::new()?;
        twins.set_keyed();
        let option = format!("encrypt.format={format}");
        twins.build(|folder| image::create_encrypted(folder, NAME, &[&option]))?;
        for words in [
            &["resize", NAME, "2M"][..],
            &["resize", "--shrink", NAME, "512k"],
            &["amend", "-o", "lazy_refcounts=on", NAME],
            &["amend", "-o", "size=3M,compat=0.10", NAME],
            &["amend", "-o", "refcount_bits=8", NAME],
            &["amend", "-o", "encrypt.state=active", NAME],
        ] {
            twins.run(words)?;
            twins.compare(NAME)?;
        }
    }
    Ok(())
}

#[test]
fn a_damaged_luks_header_is_refused_in_the_same_words() -> Outcome {
    let mut twins = Twins::new()?;
    let base = "base.qcow2";
    twins.build(|folder| {
        image::create_encrypted(folder, base, &["encrypt.format=luks"])?;
        let mut bytes = folder.read(base)?;
        let magic = bytes.windows(6).position(|some| some == b"LUKS\xba\xbe");
        let magic = magic.ok_or_else(|| anyhow::anyhow!("no LUKS header"))?;
        bytes[magic] = b'X';
        folder.write(base, &bytes)?;
        let over = ["-u", "-b", base, "-F", "qcow2", NAME, "1M"];
        let words = [&["create", "-q", "-f", "qcow2"], &over[..]].concat();
        image::qemu_img(folder, &words).map(drop)
    })?;
    for name in [base, NAME] {
        for words in [
            &["resize", name, "2M"][..],
            &["amend", "-o", "lazy_refcounts=on", name],
            &["amend", "-o", "size=2M", name],
        ] {
            ensure!(twins.run(words)? == 1, "{words:?}");
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
