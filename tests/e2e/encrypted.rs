//! Encrypted images that are there: read with their passwords, and written in place.

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{Bench, differences};
use instar_tests::image;
use instar_tests::rng::{Rng, count};
use instar_tests::run::{Outcome as Ended, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// The password of [`image::create_encrypted`], and another one.
const KEY: [&str; 2] = ["--object", "secret,id=key,data=password"];
const OTHER: [&str; 2] = ["--object", "secret,id=other,data=another"];

/// Bytes of an image: that of [`image::create_encrypted`].
const SIZE: usize = 1 << 20;

/// How images are encrypted.
const KINDS: [&[&str]; 7] = [
    &["encrypt.format=luks"],
    &["encrypt.format=luks", "cluster_size=4k"],
    &["encrypt.format=luks", "extended_l2=on"],
    &["encrypt.format=luks", "data_file=data.raw"],
    &[
        "encrypt.format=luks",
        "encrypt.cipher-alg=twofish-256",
        "encrypt.cipher-mode=cbc",
        "encrypt.ivgen-alg=essiv",
        "encrypt.ivgen-hash-alg=sha256",
        "encrypt.hash-alg=sha512",
    ],
    &["encrypt.format=aes"],
    &["encrypt.format=aes", "compat=0.10", "cluster_size=512"],
];

/// An image for `--image-opts`, with the password of this name.
fn keyed(name: &str, secret: &str) -> String {
    format!("driver=qcow2,file.filename={name},encrypt.key-secret={secret}")
}

/// Both passwords, a command's words after its name.
fn with_keys<'a>(command: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    [&[command][..], &KEY, &OTHER, words].concat()
}

fn qemu_io(folder: &Scratch, image: &str, commands: &[&str]) -> Result<()> {
    let mut words = [&KEY[..], &OTHER].concat();
    words.push("--image-opts");
    words.extend(commands.iter().flat_map(|command| ["-c", command]));
    words.push(image);
    let ended = Run::new(&tools::qemu_io()?, folder.path())
        .args(&words)
        .go()?;
    ended.expect_code(0)?;
    Ok(())
}

fn instar(folder: &Scratch, words: &[&str]) -> Result<Ended> {
    Run::new(&tools::instar()?, folder.path()).args(words).go()
}

/// What the oracle reads of an image.
fn content(folder: &Scratch, image: &str) -> Result<Vec<u8>> {
    let words = ["--image-opts", image, "-O", "raw", "judged.raw"];
    image::qemu_img(folder, &with_keys("convert", &words))?.expect_code(0)?;
    folder.read("judged.raw")
}

fn byte(rng: &mut Rng) -> u8 {
    rng.next_u64().to_le_bytes()[3]
}

/// Data of every kind: random, patterns, zeros that are written and zeros that are not.
fn fill(folder: &Scratch, name: &str, rng: &mut Rng) -> Result<()> {
    let random: Vec<u8> = (0..300_u32 << 10).map(|_| byte(rng)).collect();
    folder.write("random.raw", &random)?;
    let commands = [
        "write -s random.raw 64k 300k",
        "write -P 7 512k 100000",
        "write -z 800k 64k",
        "write -P 0 900k 30k",
        "write -P 9 1023k 1k",
    ];
    qemu_io(folder, &keyed(name, "key"), &commands)
}

fn make(folder: &Scratch, name: &str, kind: &[&str], rng: &mut Rng) -> Result<()> {
    image::create_encrypted(folder, name, kind)?;
    fill(folder, name, rng)
}

#[test]
fn what_is_encrypted_is_read() -> Outcome {
    let mut rng = Rng::for_test("what_is_encrypted_is_read");
    for kind in KINDS {
        let scratch = Scratch::new()?;
        let mut bench = Bench::new(&scratch);
        make(&scratch, "disk", kind, &mut rng)?;
        let disk = keyed("disk", "key");
        let want = content(&scratch, &disk)?;
        for (label, words) in [
            ("raw", &["-O", "raw"][..]),
            ("qcow2", &["-O", "qcow2"]),
            ("compressed", &["-c", "-O", "qcow2"]),
        ] {
            let words = [&["--image-opts", disk.as_str()][..], words, &["out"]].concat();
            instar(&scratch, &with_keys("convert", &words))?
                .expect_code(0)
                .with_context(|| format!("{kind:?}, {label}"))?;
            let args = ["convert", "-O", "raw", "out", "out.raw"];
            let out = if label == "raw" {
                scratch.read("out")?
            } else {
                image::qemu_img(&scratch, &args)?.expect_code(0)?;
                scratch.read("out.raw")?
            };
            ensure!(out == want, "{kind:?}: {label} has other bytes");
        }
        let raw = "driver=raw,file.filename=judged.raw";
        for words in [
            &["compare", "--image-opts", &disk, raw][..],
            &["compare", "--image-opts", raw, &disk],
            &["map", "--image-opts", &disk],
            &["map", "--output", "json", "--image-opts", &disk],
            &["measure", "-O", "qcow2", "--image-opts", &disk],
        ] {
            let label = format!("{kind:?} {}", words[0]);
            bench.same(&label, &with_keys(words[0], &words[1..]))?;
        }
        bench.finish()?;
    }
    Ok(())
}

#[test]
fn parts_of_sectors_are_read() -> Outcome {
    let mut rng = Rng::for_test("parts_of_sectors_are_read");
    let scratch = Scratch::new()?;
    make(&scratch, "disk", KINDS[0], &mut rng)?;
    let disk = keyed("disk", "key");
    for (block, skip, count) in [(1000, 70, 300), (1, 65_537, 90_000), (777, 1, 1300)] {
        let numbers = [
            format!("bs={block}"),
            format!("skip={skip}"),
            format!("count={count}"),
            format!("if={disk}"),
        ];
        let mut words = vec!["--image-opts", "-O", "raw"];
        words.extend(numbers.iter().map(String::as_str));
        let [ours, theirs] = ["of=ours", "of=theirs"].map(|of| [&words[..], &[of]].concat());
        instar(&scratch, &with_keys("dd", &ours))?.expect_code(0)?;
        image::qemu_img(&scratch, &with_keys("dd", &theirs))?.expect_code(0)?;
        let same = scratch.read("ours")? == scratch.read("theirs")?;
        ensure!(same, "bs={block} skip={skip}");
    }
    Ok(())
}

#[test]
fn wrong_and_missing_passwords_are_refused_in_the_same_words() -> Outcome {
    let mut rng = Rng::for_test("wrong_and_missing_passwords");
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    make(&scratch, "disk", KINDS[0], &mut rng)?;
    let over = [
        "create", "-q", "-f", "qcow2", "-u", "-b", "disk", "-F", "qcow2", "over", "1M",
    ];
    image::qemu_img(&scratch, &over)?.expect_code(0)?;
    scratch.set_len("raw", SIZE as u64)?;
    let raw = "driver=raw,file.filename=raw";
    let wrong = keyed("disk", "other");
    let wrong_below = "driver=qcow2,file.filename=over,backing.encrypt.key-secret=other";
    for (label, disk) in [
        ("missing", "driver=qcow2,file.filename=disk"),
        ("wrong", &wrong),
        ("missing below", "driver=qcow2,file.filename=over"),
        ("wrong below", wrong_below),
    ] {
        for words in [
            &["convert", "--image-opts", disk, "out"][..],
            &["compare", "--image-opts", disk, raw],
            &["compare", "--image-opts", raw, disk],
            &["map", "--image-opts", disk],
            &["measure", "-O", "qcow2", "--image-opts", disk],
            &["commit", "--image-opts", disk],
            &["rebase", "-b", "raw", "-F", "raw", "--image-opts", disk],
            &[
                "convert",
                "-n",
                "-f",
                "raw",
                "raw",
                "--target-image-opts",
                disk,
            ],
        ] {
            let args = with_keys(words[0], &words[1..]);
            let (want, got) = (bench.qemu_img(&args)?, bench.instar(&args)?);
            let complaints = differences(&want, &got);
            ensure!(
                complaints.is_empty(),
                "{label}: {args:?}\n{complaints:#?}\nqemu-img {}\ninstar {}",
                want.describe(),
                got.describe()
            );
        }
    }
    // A password that nothing asks for does no harm.
    bench.same(
        "plain",
        &with_keys("compare", &["-f", "raw", "-F", "raw", "raw", "raw"]),
    )?;
    bench.finish()
}

#[test]
fn images_that_are_there_are_filled() -> Outcome {
    let mut rng = Rng::for_test("images_that_are_there_are_filled");
    for kind in KINDS {
        let scratch = Scratch::new()?;
        make(&scratch, "source", &["encrypt.format=aes"], &mut rng)?;
        let want = content(&scratch, &keyed("source", "key"))?;
        scratch.write("source.raw", &want)?;
        let source = keyed("source", "key");
        let mut ways: Vec<Vec<&str>> = vec![
            vec!["-f", "raw", "source.raw"],
            vec!["--image-opts", &source],
            vec!["-S", "0", "-f", "raw", "source.raw"],
        ];
        if !kind.contains(&"data_file=data.raw") {
            ways.push(vec!["-c", "-f", "raw", "source.raw"]);
        }
        for way in ways {
            let label = format!("{kind:?} {way:?}");
            for name in ["disk", "data.raw"] {
                let _ = std::fs::remove_file(scratch.file(name));
            }
            image::create_encrypted(&scratch, "disk", kind)?;
            let disk = keyed("disk", "key");
            if !way.contains(&"-c") {
                qemu_io(&scratch, &disk, &["write -P 3 100k 700k"])?;
            }
            let words = [&["-n"][..], &way, &["--target-image-opts", &disk]].concat();
            instar(&scratch, &with_keys("convert", &words))?
                .expect_code(0)
                .with_context(|| label.clone())?;
            ensure!(content(&scratch, &disk)? == want, "{label}: other bytes");
            sound(&scratch, &disk).with_context(|| label.clone())?;
        }
    }
    Ok(())
}

fn sound(folder: &Scratch, image: &str) -> Result<()> {
    let checked = image::qemu_img(folder, &with_keys("check", &["--image-opts", image]))?;
    checked.expect_code(0).map(drop)
}

/// A raw base, an encrypted image over it, a plain one over that, and one with another password at the top. The
/// options of the lower three with all passwords, the top first.
fn chain(folder: &Scratch, rng: &mut Rng) -> Result<[String; 3]> {
    let base: Vec<u8> = (0..SIZE).map(|_| byte(rng)).collect();
    folder.write("base.raw", &base)?;
    let layer = |options: &[&str], below: [&str; 2], name: &str| -> Result<()> {
        let mut words = [&["create", "-q", "-f", "qcow2"][..], &KEY, &OTHER].concat();
        words.extend(options.iter().flat_map(|option| ["-o", *option]));
        words.extend(["-u", "-b", below[0], "-F", below[1], name, "1M"]);
        image::qemu_img(folder, &words)?.expect_code(0).map(drop)
    };
    let luks = ["encrypt.format=luks", "encrypt.iter-time=10"];
    let low = [&luks[..], &["encrypt.key-secret=key"]].concat();
    layer(&low, ["base.raw", "raw"], "low")?;
    layer(&["cluster_size=4k"], ["low", "qcow2"], "mid")?;
    let top = [&luks[..], &["encrypt.key-secret=other"]].concat();
    layer(&top, ["mid", "qcow2"], "top")?;
    let low = keyed("low", "key");
    let mid = "driver=qcow2,file.filename=mid,backing.encrypt.key-secret=key".to_owned();
    let top = keyed("top", "other") + ",backing.backing.encrypt.key-secret=key";
    for image in [&low, &mid, &top] {
        let mut commands = Vec::new();
        for _ in 0..5 {
            let at = rng.below(1000) << 10;
            let len = 512 * (1 + rng.below(((1 << 20) - at) / 512).min(300));
            let pattern = 1 + rng.below(250);
            commands.push(match rng.below(4) {
                0 => format!("write -z {at} {len}"),
                _ => format!("write -P {pattern} {at} {len}"),
            });
        }
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        qemu_io(folder, image, &commands)?;
    }
    Ok([top, mid, low])
}

#[test]
fn chains_of_encrypted_and_plain_images_are_read_committed_and_rebased() -> Outcome {
    let mut rng = Rng::for_test("chains_of_encrypted_and_plain_images");
    for _ in 0..count("INSTAR_KEYED_CHAINS", 2) {
        let scratch = Scratch::new()?;
        let [top, mid, low] = chain(&scratch, &mut rng)?;
        let want = content(&scratch, &top)?;
        let words = ["--image-opts", &top, "-O", "raw", "out"];
        instar(&scratch, &with_keys("convert", &words))?.expect_code(0)?;
        ensure!(scratch.read("out")? == want, "the chain has other bytes");
        for (backing, format, secrets) in [
            ("low", "qcow2", ",backing.encrypt.key-secret=key"),
            ("base.raw", "raw", ""),
        ] {
            std::fs::copy(scratch.file("top"), scratch.file("copy"))?;
            let before = top.replace("filename=top", "filename=copy");
            let words = ["-b", backing, "-F", format, "--image-opts", &before];
            if backing == "low" {
                // No option of rebase names a password for the new backing file.
                instar(&scratch, &with_keys("rebase", &words))?.expect_code(1)?;
                continue;
            }
            instar(&scratch, &with_keys("rebase", &words))?.expect_code(0)?;
            let after = keyed("copy", "other") + secrets;
            ensure!(content(&scratch, &after)? == want, "rebased to {backing}");
            sound(&scratch, &after)?;
        }
        // Each becomes part of the one below it; what is read through the top stays.
        for (image, below) in [(&top, Some(&mid)), (&mid, Some(&low)), (&low, None)] {
            let words = ["--image-opts", image.as_str()];
            instar(&scratch, &with_keys("commit", &words))?.expect_code(0)?;
            ensure!(content(&scratch, &top)? == want, "after commit of {image}");
            match below {
                Some(below) => {
                    ensure!(content(&scratch, below)? == want, "commit to {below}");
                    sound(&scratch, below)?;
                }
                None => ensure!(scratch.read("base.raw")? == want, "commit to base.raw"),
            }
        }
    }
    Ok(())
}

#[test]
fn an_encrypted_base_grows_over_a_longer_backing_file() -> Outcome {
    for kind in KINDS.iter().filter(|kind| !kind.contains(&"compat=0.10")) {
        let scratch = Scratch::new()?;
        image::qemu_img(&scratch, &["create", "-q", "-f", "qcow2", "lowest", "2M"])?;
        qemu_io(
            &scratch,
            "driver=qcow2,file.filename=lowest",
            &["write -P 9 0 2M"],
        )?;
        // Its last cluster, which is its own, ends in the middle.
        let mut words = vec!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "lowest"];
        words.extend(KEY);
        words.extend(kind.iter().flat_map(|option| ["-o", option]));
        if kind.contains(&"encrypt.format=luks") {
            words.extend(["-o", "encrypt.iter-time=10"]);
        }
        words.extend(["-o", "encrypt.key-secret=key", "base", "1000K"]);
        image::qemu_img(&scratch, &words)?;
        let base = keyed("base", "key");
        qemu_io(
            &scratch,
            &base,
            &["write -P 3 990K 10K", "write -P 4 0 64K"],
        )?;
        let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2"];
        let words = [&words[..], &["-u", "-b", "base", "top", "1500K"]].concat();
        image::qemu_img(&scratch, &words)?;
        let top = "driver=qcow2,file.filename=top,backing.encrypt.key-secret=key";
        qemu_io(&scratch, top, &["write -P 5 100K 300K"])?;
        let want = content(&scratch, top)?;
        let words = ["--image-opts", top];
        instar(&scratch, &with_keys("commit", &words))?.expect_code(0)?;
        ensure!(content(&scratch, &base)? == want, "{kind:?}: the base");
        ensure!(content(&scratch, top)? == want, "{kind:?}: the overlay");
        sound(&scratch, &base)?;
    }
    Ok(())
}

#[test]
fn damaged_luks_headers_are_refused_as_by_qemu_img() -> Outcome {
    let mut rng = Rng::for_test("damaged_luks_headers");
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    make(&scratch, "disk", KINDS[0], &mut rng)?;
    let whole = scratch.read("disk")?;
    let magic = b"LUKS\xba\xbe";
    let header = whole.windows(6).position(|bytes| bytes == magic);
    let header = header.context("no LUKS header")?;
    let disk = keyed("disk", "key");
    for case in 0..count("INSTAR_KEYED_DAMAGES", 40) {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(2) {
            // Iterations stay: many of them take minutes.
            let at = match rng.below(3) {
                0 => rng.below(164),
                1 => 208 + 48 * rng.below(8) + rng.below(4),
                _ => 208 + 48 * rng.below(8) + 8 + rng.below(40),
            };
            let at = header + usize::try_from(at)?;
            bytes[at] = match rng.below(3) {
                0 => bytes[at] ^ 1 << rng.below(8),
                1 => 0,
                _ => byte(&mut rng),
            };
        }
        scratch.write("disk", &bytes)?;
        let words = with_keys("map", &["--image-opts", &disk]);
        bench.same(&format!("case {case}"), &words)?;
        // The oracle of `same` would get the key.
        let (theirs, ours) = (
            bench.qemu_img(&["map", "disk"])?,
            bench.instar(&["map", "disk"])?,
        );
        let said = theirs.err().replace("qemu-img: ", "instar: ");
        ensure!(
            theirs.code == Some(1) && ours.code == Some(1) && ours.err().starts_with(&said),
            "case {case} without a key: {}",
            ours.describe()
        );
    }
    bench.finish()
}
