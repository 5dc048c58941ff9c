//! The commands that read images and make them, on every feature: `docs/content-matrix.md` is what these tests find.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{differences, manners};
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;
use instar_tests::{image, tools};

use super::build::qemu_img;
use super::rows::{Both, Make, NAME, No, Prepared, ROWS, Row};
use super::table::Table;
use super::{Cell, Listed, comparable, copy, into_device, unchanged};
use crate::Outcome;

/// What a command makes.
const OUT: &str = "out.img";
/// The files that a command may make.
const MADE: [&str; 2] = [OUT, "out.data"];

/// What is run on each image; the last ones write into it.
const COLUMNS: [(&str, Prepared, &str); 28] = [
    ("map", No, "map disk.qcow2"),
    ("map json", No, "map --output=json disk.qcow2"),
    (
        "map -s -l",
        Both,
        "map --output=json -s 100k -l 700k disk.qcow2",
    ),
    ("measure raw", No, "measure disk.qcow2"),
    ("measure qcow2", No, "measure -O qcow2 disk.qcow2"),
    (
        "measure json",
        Both,
        "measure --output=json -O qcow2 -o cluster_size=16k,extended_l2=on disk.qcow2",
    ),
    (
        "measure -l",
        Both,
        "measure -O qcow2 -l prepared disk.qcow2",
    ),
    ("compare", No, "compare disk.qcow2 base.qcow2"),
    ("compare -s", No, "compare -s base.qcow2 disk.qcow2"),
    ("compare itself", Both, "compare disk.qcow2 disk.qcow2"),
    (
        "create -b",
        No,
        "create -f qcow2 -b disk.qcow2 -F qcow2 out.img",
    ),
    (
        "create -b, longer",
        Both,
        "create -f qcow2 -o backing_file=disk.qcow2,backing_fmt=qcow2,cluster_size=4k out.img 11M",
    ),
    ("convert raw", No, "convert -O raw disk.qcow2 out.img"),
    ("convert qcow2", No, "convert -O qcow2 disk.qcow2 out.img"),
    ("convert -c", No, "convert -c -O qcow2 disk.qcow2 out.img"),
    (
        "convert -c zstd",
        Both,
        "convert -c -O qcow2 -o compression_type=zstd disk.qcow2 out.img",
    ),
    (
        "convert compat=0.10",
        No,
        "convert -O qcow2 -o compat=0.10,cluster_size=2M disk.qcow2 out.img",
    ),
    (
        "convert extended_l2",
        No,
        "convert -O qcow2 -o extended_l2=on disk.qcow2 out.img",
    ),
    (
        "convert data_file",
        No,
        "convert -O qcow2 -o data_file=out.data disk.qcow2 out.img",
    ),
    (
        "convert metadata",
        No,
        "convert -O qcow2 -o preallocation=metadata,cluster_size=2M disk.qcow2 out.img",
    ),
    (
        "convert -S 64k",
        No,
        "convert -S 64k -O raw disk.qcow2 out.img",
    ),
    ("convert -C", No, "convert -C -O raw disk.qcow2 out.img"),
    (
        "convert -l",
        Both,
        "convert -l prepared -O qcow2 disk.qcow2 out.img",
    ),
    (
        "convert --bitmaps",
        Both,
        "convert --bitmaps -O qcow2 disk.qcow2 out.img",
    ),
    (
        "convert -B",
        No,
        "convert -B base.qcow2 -F qcow2 -O qcow2 disk.qcow2 out.img",
    ),
    (
        "convert, two sources",
        No,
        "convert -O raw base.qcow2 disk.qcow2 out.img",
    ),
    (
        "dd",
        No,
        "dd if=disk.qcow2 of=out.img bs=64k count=40 skip=3",
    ),
    ("bench", Both, "bench -c 40 -d 4 -s 32k disk.qcow2"),
];

/// What writes into the image.
const INTO: [(&str, &str); 3] = [
    ("convert -n", "convert -n -O qcow2 base.qcow2 disk.qcow2"),
    (
        "convert -n, chain",
        "convert -n -O qcow2 over.qcow2 disk.qcow2",
    ),
    (
        "bench -w",
        "bench -w -c 90 -d 4 -s 20k -S 28k -o 1000k --pattern 7 disk.qcow2",
    ),
];

const PREFACE: &str = "\
# Reading and making images, on every feature

Written by the tests in `tests/e2e/matrix/content.rs` (`INSTAR_BLESS=1` writes it anew), which fail when a cell is not
as it says here. The rows and the words in the cells are those of the [operation matrix](operation-matrix.md): `same`
means the same exit code, the same text on both streams and, where an image is made or written to, the same `info`,
`check`, `map`, length and content.
The columns `convert -n` copy another image, and a chain, into the image with the feature, and `bench -w` writes into
it; all others read it. Difference 20: the repair of a dirty image says other things, and comes to the same.
";

fn table() -> Table {
    let columns = COLUMNS.iter().map(|(name, ..)| *name);
    Table {
        file: "content-matrix.md",
        preface: PREFACE,
        columns: columns.chain(INTO.map(|(name, _)| name)).collect(),
    }
}

/// Copies of a template, in block devices where the row says so.
struct Stage<'a> {
    row: &'a Row,
    template: &'a Scratch,
    twins: Twins,
    _devices: Vec<crate::block_device::Loop>,
}

impl<'a> Stage<'a> {
    fn new(row: &'a Row, template: &'a Scratch) -> Result<Self> {
        let twins = Twins::new()?;
        twins.build(|folder| copy(template, folder))?;
        let mut devices = Vec::new();
        if matches!(row.make, Make::Device | Make::RawDevice) {
            for folder in [twins.theirs(), twins.ours()] {
                devices.push(into_device(folder, row)?);
            }
        }
        Ok(Self {
            row,
            template,
            twins,
            _devices: devices,
        })
    }

    /// Runs both programs: whether both did it, or both refused in the same words.
    fn run(&self, words: &str) -> Result<Cell> {
        let args: Vec<&str> = words.split(' ').collect();
        for folder in [self.twins.theirs(), self.twins.ours()] {
            for name in MADE {
                let gone = std::fs::remove_file(folder.file(name));
                ensure!(gone.is_ok() || !folder.file(name).exists(), "{gone:?}");
            }
        }
        let want = timeless(qemu_img(self.twins.theirs(), false, &args)?);
        let got = timeless(
            Run::new(&tools::instar()?, self.twins.ours().path())
                .args(&args)
                .go()?,
        );
        if want.err().contains("Rebuilding refcount structure") {
            let alike = want.code == got.code && want.stdout == got.stdout;
            let told = || format!("qemu-img {}\ninstar {}", want.describe(), got.describe());
            ensure!(alike && manners(&got).is_empty(), "{}", told());
            return Ok(Cell::Difference(Listed::Dirty.number()));
        }
        let mut complaints = differences(&want, &got);
        complaints.extend(manners(&got));
        let told = || format!("qemu-img {}\ninstar {}", want.describe(), got.describe());
        ensure!(
            complaints.is_empty(),
            "{}\n{}",
            complaints.join("\n"),
            told()
        );
        // Different content is an answer, not a refusal.
        let done = match args.first() {
            Some(&"compare") => got.stderr.is_empty() && matches!(got.code, Some(0 | 1)),
            _ => got.code == Some(0),
        };
        Ok(if done { Cell::Same } else { Cell::Refused })
    }

    /// A command that only reads the image.
    fn reads(&self, words: &str) -> Result<Cell> {
        let found = self.run(words)?;
        let ours = self.twins.ours();
        if !matches!(self.row.make, Make::Device | Make::RawDevice) {
            ensure!(unchanged(self.template, ours)?, "the source was changed");
        }
        if found != Cell::Same {
            ensure!(!ours.file(OUT).exists(), "refused, and a file is left");
        } else if (self.row.keyed && words.starts_with("create")) || words.contains("-B ") {
            // The chain wants a key; zeros over a backing file may be clusters of zeros or data.
            self.made(words)?;
        } else if words.contains(OUT) {
            self.twins.compare(OUT)?;
        }
        Ok(found)
    }

    fn made(&self, words: &str) -> Result<()> {
        if !words.starts_with("create") {
            return self.twins.compare_shown(OUT);
        }
        let info = |folder| -> Result<String> {
            let done = comparable(qemu_img(folder, false, &["info", OUT])?);
            done.expect_code(0).map(|done| done.out())
        };
        let (theirs, ours) = (info(self.twins.theirs())?, info(self.twins.ours())?);
        ensure!(theirs == ours, "{theirs}\n{ours}");
        Ok(())
    }

    /// A command that writes into the image.
    fn writes(&mut self, words: &str) -> Result<Cell> {
        let found = self.run(words)?;
        // Each new refcount block of 512 bytes parts a run of ours; QEMU's writer makes them elsewhere.
        let small = self.row.options.contains(&"cluster_size=512");
        self.twins.allow_fragments(if small { 2 } else { 0 });
        if found != Cell::Refused {
            self.twins.compare_after_io(NAME)?;
        } else if !matches!(self.row.make, Make::Device | Make::RawDevice) {
            let same = unchanged(self.template, self.twins.ours())?;
            ensure!(same, "refused, and the target was changed");
        }
        Ok(found)
    }
}

/// What is compared of the text: not how long it took.
fn timeless(ran: Ran) -> Ran {
    let mut ran = comparable(ran);
    let out = ran.out();
    let lines = out.split_inclusive('\n');
    let kept: String = lines
        .filter(|line| !line.starts_with("Run completed in "))
        .collect();
    ran.stdout = kept.into_bytes();
    ran
}

/// An image with the feature, and a chain beside it.
fn template(row: &Row, prepared: Prepared) -> Result<Scratch> {
    let folder = Scratch::new()?;
    row.build(&folder, prepared)?;
    let below = "backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=4k";
    image::create(&folder, "over.qcow2", &[below], "7M")?;
    let commands = ["write -P 9 1M 100k", "write -z 1200k 64k"];
    image::io(&folder, "over.qcow2", &commands)?;
    Ok(folder)
}

/// A row: its cells in the order of the columns.
fn run_row(row: &Row) -> Result<Vec<Result<Cell>>> {
    let build = |prepared| template(row, prepared).with_context(|| row.feature.to_owned());
    let (plain, both) = (build(No)?, build(Both)?);
    let fresh = || Stage::new(row, &plain);
    let (bare, full) = (fresh()?, Stage::new(row, &both)?);
    let mut cells = Vec::new();
    let mut add = |words: &str, found: Result<Cell>| {
        cells.push(found.with_context(|| format!("{}: {words}", row.feature)));
    };
    for (_, prepared, words) in &COLUMNS {
        let stage = if *prepared == Both { &full } else { &bare };
        add(words, stage.reads(words));
    }
    for (_, words) in &INTO {
        add(words, fresh()?.writes(words));
    }
    Ok(cells)
}

/// Each test has every fourth row.
fn part(number: usize) -> Outcome {
    let only = std::env::var("INSTAR_ROW").ok();
    let mut failures = Vec::new();
    let mut rows = BTreeMap::new();
    let mine = ROWS.iter().skip(number).step_by(PARTS);
    for row in mine.filter(|row| only.as_deref().is_none_or(|name| name == row.feature)) {
        let (mut line, before) = (format!("| {} |", row.feature), failures.len());
        for found in run_row(row)? {
            match found {
                Ok(cell) => line.push_str(&format!(" {cell} |")),
                Err(e) => failures.push(format!("{e:#}")),
            }
        }
        if failures.len() == before {
            rows.insert(row.feature.to_owned(), line);
        }
    }
    let settled = table().settle(&rows);
    ensure!(
        failures.is_empty(),
        "{} cells failed:\n{}",
        failures.len(),
        failures.join("\n==========\n")
    );
    settled
}

const PARTS: usize = 4;

#[test]
fn content_of_features_first() -> Outcome {
    part(0)
}

#[test]
fn content_of_features_second() -> Outcome {
    part(1)
}

#[test]
fn content_of_features_third() -> Outcome {
    part(2)
}

#[test]
fn content_of_features_fourth() -> Outcome {
    part(3)
}

#[test]
fn the_content_table_is_complete() -> Outcome {
    table().is_complete()
}
