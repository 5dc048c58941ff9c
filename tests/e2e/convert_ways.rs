//! Options of `convert` that go together, beside `qemu-img`: coroutines, order of writing, rate, snapshots, several
//! inputs, and the ways to name a backing file.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;
use instar_tests::{image, tools};

use crate::Outcome;

const OUT: &str = "out.img";

/// A chain with snapshots whose names look like ids, and other images to put behind it.
fn stage(folder: &Scratch) -> Result<()> {
    image::create(folder, "base", &["cluster_size=4k"], "5M")?;
    image::io(folder, "base", &["write -P 1 0 3M"])?;
    let below = "backing_file=base,backing_fmt=qcow2";
    image::create(folder, "top", &[below], "6M")?;
    // Ids are 1, 2 and 3: the first is called like the second's id.
    for (number, tag) in [(1, "2"), (2, "one"), (3, "a b,c=d")] {
        let at = format!("write -P {} {}k 700k", 10 + number, 512 * number);
        image::io(folder, "top", &[&at, "write -z 4M 64k"])?;
        image::snapshot(folder, "top", tag)?;
    }
    image::io(folder, "top", &["write -P 20 5M 1M", "write -P 21 0 4k"])?;
    image::create(folder, "small", &["cluster_size=512"], "70656")?;
    image::io(folder, "small", &["write -P 3 512 40k"])?;
    folder.write("odd.raw", &[4; 1000])
}

/// Each line by both programs, with the same image in the end.
fn same(lines: &[&str]) -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(stage)?;
    let mut failures = Vec::new();
    for line in lines {
        for folder in [twins.ours(), twins.theirs()] {
            let _ = std::fs::remove_file(folder.file(OUT));
        }
        let words: Vec<String> = ["convert"]
            .into_iter()
            .chain(line.split(' '))
            .map(|word| word.replace('~', " "))
            .chain([OUT.to_owned()])
            .collect();
        let mut go = || -> Result<()> {
            let code = twins.run(&words)?;
            let made = twins.ours().file(OUT).exists();
            ensure!(made == (code == 0), "exit code {code}, and made: {made}");
            // Several coroutines that write in any order allocate in any order, in both programs.
            let any_order = line.contains("-W") && !line.contains("-m 1 ");
            twins.allow_fragments(if any_order { u64::MAX } else { 0 });
            if made {
                twins.compare(OUT)?;
            }
            Ok(())
        };
        if let Err(e) = go() {
            failures.push(format!("{line}: {e:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n==========\n"));
    Ok(())
}

#[test]
fn coroutines_and_order_do_not_change_what_is_made() -> Outcome {
    same(&[
        "-m 1 -O qcow2 top",
        "-m 16 -O qcow2 top",
        "-m 1 -W -O qcow2 top",
        "-m 16 -W -O raw top",
        "-m 7 -W -c -O qcow2 top",
        "-m 16 -W -c -O qcow2 -o compression_type=zstd,cluster_size=4k top",
        "-m 5 -W -O qcow2 -o preallocation=metadata top",
        "-W -O qcow2 -o extended_l2=on,cluster_size=16k top",
        "-W -m 3 -l one -O qcow2 top",
        "-W -m 3 -O qcow2 top small base",
        "-W -m 16 -S 0 -O raw top",
        "-W -m 16 -O qcow2 -B base -F qcow2 top",
        "-m 16 -O raw -p -q top",
    ])
}

#[test]
fn snapshots_are_found_by_id_or_name() -> Outcome {
    same(&[
        "-l 1 -O raw top",
        "-l 2 -O raw top",
        "-l 3 -O raw top",
        "-l one -O qcow2 top",
        "-l a~b,c=d -O raw top",
        "-l snapshot.id=2 -O raw top",
        "-l snapshot.name=2 -O raw top",
        "-l snapshot.id=2,snapshot.name=one -O raw top",
        "-l snapshot.name=one,snapshot.id=2 -O qcow2 -c top",
        "-l snapshot.id=1,snapshot.name=one -O raw top",
        "-l snapshot.name=a~b,,c=d -O raw top",
        "-l snapshot.name= -O raw top",
        "-l snapshot.id=1, -O raw top",
        "-l snapshot.id=9,,1 -O raw top",
        "-l snapshot.bogus=1 -O raw top",
        "-l 4 -O raw top",
        "-l -O raw top",
        "-l one -O qcow2 -B base -F qcow2 top",
        "-l one -O qcow2 -o cluster_size=2M top",
        "-l one base",
        "-l one -f raw odd.raw",
    ])
}

#[test]
fn several_inputs_follow_each_other() -> Outcome {
    same(&[
        "-O raw small base",
        "-O raw base small",
        "-O qcow2 small small small",
        "-O qcow2 -o cluster_size=2M small top base",
        "-O qcow2 -o cluster_size=512 small top base",
        "-O qcow2 -c small top base",
        "-O qcow2 -S 0 small base",
        "-O raw -C base small",
        "-f raw -O raw odd.raw odd.raw",
        "-f raw -O qcow2 odd.raw odd.raw odd.raw",
        "-O raw small odd.raw",
        "-f qcow2 -O raw small odd.raw",
        "-O raw odd.raw small nope",
        "-O raw small top -l one",
    ])
}

#[test]
fn backing_files_are_named_in_either_way() -> Outcome {
    same(&[
        "-O qcow2 -B base -F qcow2 top",
        "-O qcow2 -B base top",
        "-O qcow2 -o backing_file=base,backing_fmt=qcow2 top",
        "-O qcow2 -o backing_file=base -F qcow2 top",
        "-O qcow2 -o backing_file=base top",
        "-O qcow2 -B base -o backing_fmt=qcow2 top",
        "-O qcow2 -B base -F raw -o backing_fmt=qcow2 top",
        "-O qcow2 -B base -F qcow2 -o backing_file=small top",
        "-O qcow2 -o backing_file=small,backing_fmt=qcow2 top",
        "-O qcow2 -B small -F qcow2 top",
        "-O qcow2 -c -o backing_file=base,backing_fmt=qcow2 top",
        "-O qcow2 -o backing_file=base,backing_fmt=bogus top",
        "-O qcow2 -o preallocation=metadata,backing_file=base,backing_fmt=qcow2 top",
        "-O raw -o backing_file=base top",
        "-O qcow2 -B base -F qcow2 top small",
        "-O qcow2 -o backing_file=base,backing_fmt=qcow2 top small",
        "-O qcow2 -o backing_file=nope top small",
        "-O qcow2 --bitmaps -o backing_file=base,backing_fmt=qcow2 top small",
        "-O qcow2 --bitmaps -o bogus=1 top small",
        "-O qcow2 --bitmaps -c -o preallocation=full top small",
        "-O raw --bitmaps -c top small",
        "-O bogus --bitmaps top small",
    ])
}

/// The program under test writes no faster than it is told. How much slower it is depends on the machine.
#[test]
fn a_rate_is_an_upper_bound() -> Outcome {
    const RATE: u64 = 2 << 20;
    let scratch = Scratch::new()?;
    image::create(&scratch, "source", &[], "8M")?;
    let mut rng = instar_tests::rng::Rng::for_test("rate");
    let noise = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    let noise: Vec<u8> = noise.take(1 << 19).flatten().collect();
    scratch.write("noise", &noise)?;
    image::io(&scratch, "source", &["write -s noise 0 4M"])?;
    let ways = [
        ("-O raw", "raw"),
        ("-O raw -C", "raw"),
        ("-O qcow2 -m 16 -W", "qcow2"),
        ("-O qcow2 -c", "qcow2"),
    ];
    let started = Instant::now();
    let mut running = Vec::new();
    for (number, (way, format)) in ways.into_iter().enumerate() {
        let out = format!("out{number}");
        let words = ["convert", "-r", "2M"].into_iter().chain(way.split(' '));
        let words: Vec<&str> = words.chain(["source", &out]).collect();
        let child = Run::new(&tools::instar()?, scratch.path())
            .args(&words)
            .start()?;
        running.push((child, way, out, format));
    }
    // What is allowed before the first pause does not count: QEMU's is a tenth of a second, ours may be one request.
    let least = Duration::from_secs((4 << 20) / RATE) / 2;
    for (child, way, out, format) in running {
        let done = child.wait_with_output().context(way)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "{way}: {said}");
        let took = started.elapsed();
        ensure!(took >= least, "{way}: {took:?}");
        image::qemu_img(&scratch, &["compare", "-F", format, "source", &out])?;
    }
    Ok(())
}
