//! Images that grow out of each other: overlays, conversions and parts of chains of up to eight files, made by both
//! programs, and read and compared after every step.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CHAINS` says how many chains there are.

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{differences, manners};
use instar_tests::image::{qemu_img, random_options};
use instar_tests::rng::{Rng, count};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::totals::total;
use instar_tests::twins::{Twins, sum, without_node_numbers};

use crate::Outcome;
use crate::map_chains::{Image, chain};

/// Chains of one test.
const CHAINS: u64 = 14;
/// Files of the longest chain that a test begins with.
const FILES: u64 = 8;
/// Bytes that no image is longer than.
const LARGEST: u64 = 48 << 20;

/// Options of a new image.
fn options(rng: &mut Rng, compress: bool) -> String {
    let mut options = random_options(rng, &[9, 12, 14, 16, 16, 16, 18, 21]);
    if !compress && rng.below(6) == 0 {
        options += ",preallocation=metadata";
    }
    options
}

/// Twins with a chain, and what has been made of it since.
struct Pool {
    twins: Twins,
    images: Vec<Image>,
    made: usize,
}

impl Pool {
    fn new(rng: &mut Rng) -> Result<Self> {
        let twins = Twins::new()?;
        let mut top = None;
        twins.build(|folder| {
            top = Some(chain(folder, rng, "c", FILES)?);
            Ok(())
        })?;
        Ok(Self {
            twins,
            images: vec![top.context("no chain")?],
            made: 0,
        })
    }

    fn any(&self, rng: &mut Rng) -> Image {
        rng.pick(&self.images).clone()
    }

    fn next_name(&mut self) -> String {
        self.made += 1;
        format!("new{}", self.made)
    }

    /// Both programs read the copies that we have made: places in files are then the same too.
    fn read(&self, words: &[&str]) -> Result<()> {
        let folder = self.twins.ours().path();
        let go = |program| Run::new(program, folder).args(words).go();
        let (mut want, mut got) = (go(&tools::qemu_img()?)?, go(&tools::instar()?)?);
        for ran in [&mut want, &mut got] {
            ran.stderr = without_node_numbers(&ran.stderr);
        }
        let mut wrong = differences(&want, &got);
        wrong.extend(manners(&got));
        ensure!(
            wrong.is_empty(),
            "{}\n{words:?}\nqemu-img {}\ninstar {}",
            wrong.join("\n"),
            want.describe(),
            got.describe()
        );
        Ok(())
    }

    /// Both have made an image: it joins the others if they did it.
    fn join(&mut self, code: i32, name: String, format: &'static str) -> Result<()> {
        if code != 0 {
            let left = self.twins.ours().file(&name).exists();
            ensure!(!left, "refused, and {name} is left");
            return Ok(());
        }
        self.twins.compare(&name)?;
        let ours = content(self.twins.ours(), &name, format)?;
        let theirs = content(self.twins.theirs(), &name, format)?;
        ensure!(ours == theirs, "the content of {name} differs");
        let size = ours.0;
        if size > 0 {
            self.images.push(Image { name, format, size });
        }
        Ok(())
    }

    fn create(&mut self, rng: &mut Rng) -> Result<()> {
        let (below, name) = (self.any(rng), self.next_name());
        let mut options = options(rng, true);
        let version_2 = options.contains("compat=");
        if !version_2 && rng.below(8) == 0 {
            options += &format!(",data_file={name}.dat");
        }
        let size = (below.size + 512 * rng.below(4000)).to_string();
        let mut words = vec!["create", "-f", "qcow2", "-o", &options];
        words.extend(["-b", &below.name, "-F", below.format, &name]);
        if rng.below(2) == 0 {
            words.push(&size);
        }
        let code = self.twins.run(&words)?;
        self.join(code, name, "qcow2")
    }

    fn convert(&mut self, rng: &mut Rng) -> Result<()> {
        let mut words: Vec<String> = vec!["convert".into(), "-O".into()];
        let format = *rng.pick(&["raw", "qcow2", "qcow2"]);
        words.push(format.into());
        let compress = format == "qcow2" && rng.below(3) == 0;
        if compress {
            words.push("-c".into());
        }
        if format == "qcow2" && rng.below(3) > 0 {
            words.extend(["-o".into(), options(rng, compress)]);
        }
        match rng.below(7) {
            0 => words.extend(["-S".into(), (*rng.pick(&["0", "512", "16k", "64k"])).into()]),
            1 if !compress => words.push("-C".into()),
            2 => words.extend(["-m".into(), (1 + rng.below(16)).to_string()]),
            3 => words.push("-W".into()),
            _ => {}
        }
        let count = if rng.below(3) == 0 {
            2 + rng.below(2)
        } else {
            1
        };
        let mut total = 0;
        for _ in 0..count {
            let source = self.any(rng);
            total += source.size;
            if total <= LARGEST {
                words.push(source.name);
            }
        }
        let name = self.next_name();
        words.push(name.clone());
        let code = self.twins.run(&words)?;
        let has = |option: &str| words.iter().any(|word| word == option);
        if code == 0 && has("-C") {
            // The oracle stops copying at the first part that cannot be copied, and looks for zeros from there.
            return self.twins.compare_shown_within(&name, u64::MAX);
        }
        if code == 0 && count > 1 && format == "qcow2" {
            // Where two inputs meet, it begins its blocks of 4 KiB anew.
            return self.twins.compare_shown_within(&name, count);
        }
        // Coroutines that write in any order allocate in any order.
        let any_order = if has("-W") { u64::MAX } else { 0 };
        self.twins.allow_fragments(any_order);
        let joined = self.join(code, name, format);
        self.twins.allow_fragments(0);
        joined
    }

    fn dd(&mut self, rng: &mut Rng) -> Result<()> {
        let (source, name) = (self.any(rng), self.next_name());
        let format = *rng.pick(&["raw", "qcow2"]);
        let mut words: Vec<String> = vec!["dd".into(), "-O".into(), format.into()];
        words.push(format!("if={}", source.name));
        words.push(format!("of={name}"));
        words.push(format!("bs={}", rng.pick(&["700", "4k", "64k", "1M"])));
        if rng.below(2) == 0 {
            words.push(format!("count={}", rng.below(60)));
        }
        if rng.below(2) == 0 {
            words.push(format!("skip={}", rng.below(40)));
        }
        let code = self.twins.run(&words)?;
        self.join(code, name, format)
    }

    fn look(&mut self, rng: &mut Rng) -> Result<()> {
        let (one, two) = (self.any(rng), self.any(rng));
        let start = (rng.below(one.size)).to_string();
        let length = (1 + rng.below(one.size)).to_string();
        self.read(&["map", &one.name])?;
        self.read(&["map", "--output=json", &one.name])?;
        self.read(&[
            "map",
            "--output=json",
            "-s",
            &start,
            "-l",
            &length,
            &one.name,
        ])?;
        let options = options(rng, true);
        self.read(&["measure", "-O", "qcow2", "-o", &options, &one.name])?;
        self.read(&["measure", "--output=json", "-O", "raw", &one.name])?;
        self.read(&["compare", &one.name, &two.name])?;
        self.read(&["compare", "-s", &two.name, &one.name])
    }

    /// Writes by QEMU, and a change of the image's own, where nothing is above it.
    fn change(&mut self, rng: &mut Rng) -> Result<()> {
        let Some(last) = self.images.last().cloned() else {
            return Ok(());
        };
        if last.format != "qcow2" {
            return Ok(());
        }
        let at = rng.below(last.size / 512 + 1) * 512;
        let len = (512 * (1 + rng.below(600))).min(last.size.saturating_sub(at));
        if len > 0 {
            let command = match rng.below(3) {
                0 => format!("write -z {at} {len}"),
                _ => format!("write -P {} {at} {len}", rng.below(4)),
            };
            self.twins.io(&last.name, &[&command])?;
        }
        let words = match rng.below(3) {
            0 => ["snapshot", "-c", "tag", &last.name],
            1 => ["bitmap", "--add", &last.name, "bits"],
            _ => ["resize", "-q", &last.name, "+1M"],
        };
        if self.twins.run(&words)? == 0 && words[0] == "resize" {
            let last = self.images.last_mut().context("an image")?;
            last.size += 1 << 20;
        }
        self.twins.compare_after_io(&last.name)
    }

    fn step(&mut self, rng: &mut Rng) -> Result<()> {
        match rng.below(8) {
            0 | 1 => self.create(rng),
            2..=4 => self.convert(rng),
            5 => self.dd(rng),
            6 => self.look(rng),
            _ => self.change(rng),
        }
    }
}

/// Length and checksum of an image's raw content.
fn content(folder: &Scratch, name: &str, format: &str) -> Result<(u64, u64)> {
    qemu_img(
        folder,
        &["convert", "-f", format, "-O", "raw", name, "content.raw"],
    )?;
    let path = folder.file("content.raw");
    let file = std::fs::File::open(&path)?;
    let found = (file.metadata()?.len(), sum(&file)?);
    std::fs::remove_file(&path)?;
    Ok(found)
}

fn chains(test: &str) -> Outcome {
    let mut rng = Rng::for_test(test);
    let count = count("INSTAR_CHAINS", CHAINS);
    let mut failures = Vec::new();
    let mut done = 0;
    for number in 0..count {
        let mut pool = Pool::new(&mut rng)?;
        let steps = 4 + rng.below(6);
        for step in 0..steps {
            done += 1;
            if let Err(e) = pool.step(&mut rng) {
                failures.push(format!("chain {number}, step {step}: {e:#}"));
                break;
            }
        }
    }
    total(count, "chains of copies");
    total(done, "steps of chains of copies");
    ensure!(
        failures.is_empty(),
        "seed {}: {} of {count} chains failed:\n{}",
        rng.seed(),
        failures.len(),
        failures.join("\n==========\n")
    );
    Ok(())
}

#[test]
fn images_out_of_images_first() -> Outcome {
    chains("content first")
}

#[test]
fn images_out_of_images_second() -> Outcome {
    chains("content second")
}

/// Eight files, each with a part of the content, and all of it wherever it is read.
#[test]
fn a_chain_of_eight_files() -> Outcome {
    let mut rng = Rng::for_test("eight");
    let mut pool = Pool::new(&mut rng)?;
    while pool.images.len() < usize::try_from(FILES)? {
        let below = pool.images.last().context("an image")?.clone();
        let name = pool.next_name();
        let options = options(&mut rng, true);
        let mut words = vec!["create", "-f", "qcow2", "-o", &options];
        words.extend(["-b", &below.name, "-F", below.format, &name]);
        let code = pool.twins.run(&words)?;
        ensure!(code == 0, "no overlay of {}", below.name);
        pool.join(code, name, "qcow2")?;
        let at = 300 << 10;
        let at = at * (pool.made as u64) % below.size / 512 * 512;
        let len = (200 << 10).min(below.size - at);
        let name = format!("new{}", pool.made);
        let command = format!("write -P {} {at} {len}", pool.made);
        pool.twins.io(&name, &[&command])?;
        pool.twins.compare_after_io(&name)?;
    }
    let top = pool.images.last().context("an image")?.clone();
    pool.images = vec![top];
    for _ in 0..3 {
        pool.look(&mut rng)?;
        pool.convert(&mut rng)?;
        pool.dd(&mut rng)?;
    }
    Ok(())
}
