//! Random chains of two to four images, each committed by both programs and compared in all that is seen of all files.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CHAINS` says how many chains there are.

use anyhow::{Context, Result, ensure};
use instar_tests::rng::Rng;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;
use instar_tests::{image, tools};

use crate::Outcome;

/// Chains where nobody says how many.
const CHAINS: u64 = 30;
/// Virtual sizes in bytes.
const SIZES: [u64; 5] = [1 << 20, 1_500_672, 2 << 20, 3 << 20, (3 << 20) + 4608];

/// An image of the chain.
struct Part {
    name: String,
    format: &'static str,
    options: Vec<String>,
    size: u64,
    commands: Vec<String>,
    snapshot: bool,
    bitmap: bool,
}

fn part(rng: &mut Rng, index: usize) -> Part {
    let raw = index == 0 && rng.below(4) == 0;
    let bits = *rng.pick(&[9, 11, 12, 12, 14, 16, 16, 16, 18]);
    let mut options = Vec::new();
    let old = rng.below(5) == 0;
    let mut data_file = false;
    if !raw {
        options.push(format!("cluster_size={}", 1 << bits));
        if old {
            options.push("compat=0.10".into());
        } else {
            if bits >= 14 && rng.below(3) == 0 {
                options.push("extended_l2=on".into());
            }
            if rng.below(4) == 0 {
                options.push("lazy_refcounts=on".into());
            }
            if rng.below(4) == 0 {
                options.push("compression_type=zstd".into());
            }
            data_file = rng.below(7) == 0;
            if data_file {
                options.push(format!("data_file={index}.data"));
                if index == 0 && rng.below(2) == 0 {
                    options.push("data_file_raw=on".into());
                }
            }
        }
    }
    let size = *rng.pick(&SIZES);
    let writes = 1 + rng.below(9);
    let cluster = 1_u64 << bits;
    let commands = (0..writes).filter_map(|_| command(rng, size, cluster, raw || data_file));
    Part {
        name: format!("{index}.img"),
        format: if raw { "raw" } else { "qcow2" },
        commands: commands.collect(),
        options,
        size,
        snapshot: !raw && !data_file && rng.below(5) == 0,
        bitmap: !raw && !old && rng.below(5) == 0,
    }
}

/// A `qemu-io` command.
fn command(rng: &mut Rng, size: u64, cluster: u64, plain: bool) -> Option<String> {
    let sectors = size / 512;
    let start = rng.below(sectors);
    let len = 1 + rng.below((sectors - start).min(1200));
    let (start, len) = (start * 512, len * 512);
    let pattern = 1 + rng.below(250);
    Some(match rng.below(9) {
        0 | 1 => format!("write -z {start} {len}"),
        2 => format!("write -z -u {start} {len}"),
        3 => format!("discard {start} {len}"),
        4 | 5 if !plain => {
            let start = start / cluster * cluster;
            if start + cluster > size {
                return None;
            }
            format!("write -c -P {pattern} {start} {cluster}")
        }
        _ => format!("write -P {pattern} {start} {len}"),
    })
}

fn build(scratch: &Scratch, parts: &[Part]) -> Result<()> {
    let mut below: Option<&Part> = None;
    for part in parts {
        let size = part.size.to_string();
        let mut args = vec!["create", "-q", "-f", part.format];
        args.extend(
            part.options
                .iter()
                .flat_map(|option| ["-o", option.as_str()]),
        );
        if let Some(below) = below {
            args.extend(["-b", below.name.as_str(), "-F", below.format]);
        }
        args.extend([part.name.as_str(), size.as_str()]);
        image::qemu_img(scratch, &args)?;
        if part.bitmap {
            image::bitmap(scratch, &part.name, "on", true)?;
        }
        for (index, command) in part.commands.iter().enumerate() {
            // Some fail: a compressed write where there is data.
            Run::new(&tools::qemu_io()?, scratch.path())
                .args(["-f", part.format, "-c", command, part.name.as_str()])
                .go()?;
            if part.snapshot && index == 1 {
                image::snapshot(scratch, &part.name, "s")?;
            }
        }
        below = Some(part);
    }
    Ok(())
}

fn chain(rng: &mut Rng) -> Result<()> {
    let count = 2 + usize::try_from(rng.below(3))?;
    let parts: Vec<Part> = (0..count).map(|index| part(rng, index)).collect();
    let top = parts.last().context("no image")?.name.clone();
    let mut args = vec!["commit".to_owned()];
    if rng.below(3) == 0 {
        let base = usize::try_from(rng.below(count as u64 - 1))?;
        args.extend(["-b".to_owned(), parts[base].name.clone()]);
    } else if rng.below(3) == 0 {
        args.push("-d".to_owned());
    }
    args.push(top.clone());
    let shown = || {
        let parts = parts.iter().map(|part| {
            let Part { name, format, options, size, commands, snapshot, bitmap } = part;
            format!("{name} {format} {options:?} {size} {commands:?} snapshot {snapshot} bitmap {bitmap}")
        });
        format!("{}\n{args:?}", parts.collect::<Vec<_>>().join("\n"))
    };
    let mut twins = Twins::new()?;
    twins.build(|scratch| build(scratch, &parts))?;
    let before = twins.ours().file("before.raw");
    let before = before.to_str().context("a folder whose name is no text")?;
    image::qemu_img(twins.ours(), &["convert", "-O", "raw", &top, before])?;
    let code = twins.run(&args).with_context(shown)?;
    for part in &parts {
        let compared = if part.snapshot && code == 0 {
            // QEMU keeps tables of the active state that say nothing.
            twins.compare_shown(&part.name)
        } else if part.format == "raw" {
            twins.compare(&part.name)
        } else {
            twins.compare_shown(&part.name)
        };
        compared.with_context(shown)?;
    }
    let same = ["compare", "-f", "raw", "-F", "qcow2", before, &top];
    let same = image::qemu_img(twins.ours(), &same).with_context(shown)?;
    ensure!(same.code == Some(0), "the overlay changed: {}", shown());
    Ok(())
}

#[test]
fn random_chains_are_committed_as_by_qemu_img() -> Outcome {
    let mut rng = Rng::for_test("commit chains");
    let chains = std::env::var("INSTAR_CHAINS").ok();
    let chains = chains.and_then(|text| text.parse().ok()).unwrap_or(CHAINS);
    for index in 0..chains {
        chain(&mut rng).with_context(|| format!("chain {index} of INSTAR_SEED={}", rng.seed()))?;
    }
    Ok(())
}
