//! Every operation on every feature: `docs/operation-matrix.md` is what these tests find.
//!
//! A cell is a run of `qemu-img` on one copy of an image and of the program under test on another. It is `same` (both
//! did it, with the same words and the same result), `refused` (both refused in the same words), or `difference N`, a
//! line of `docs/qemu-img-differences.md`. Anything else fails, and so does a table that says something else.
//! `INSTAR_BLESS=1` writes the table anew.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{differences, manners};
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::{Twins, without_node_numbers};

use build::qemu_img;
use rows::{Both, COLUMNS, Finish, Make, NAME, No, Prepared, ROWS, Row, Snapshot};
use table::Table;

use crate::Outcome;
use crate::block_device::Loop;
use crate::edit_devices;

mod build;
mod content;
mod rows;
mod table;

/// What the oracle says when it wants the key of an encrypted image.
const KEY_WANTED: &str = "Parameter 'encrypt.key-secret' is required for cipher";

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cell {
    Same,
    Refused,
    Difference(u32),
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same => write!(f, "same"),
            Self::Refused => write!(f, "refused"),
            Self::Difference(number) => write!(f, "difference {number}"),
        }
    }
}

/// An expected difference, with its number in the list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    /// We need no key.
    Key,
    /// The oracle's `check -r` loses the snapshots of an image that has bitmaps too.
    LostSnapshots,
    /// Before it changes an image that is dirty, the oracle builds its refcount structures anew, and says so at
    /// length; for `check -r leaks` it does not. We lay right what is wrong.
    Dirty,
    /// Our downgrade works where the oracle's does not: here, where a snapshot has no L1 table.
    Downgrade,
}

impl Listed {
    /// The listed difference that a cell may show.
    fn of(row: &Row, column: &str) -> Option<Self> {
        match row.make {
            _ if row.keyed => Some(Self::Key),
            Make::BitmapsAndSnapshot if column.starts_with("check -r") => Some(Self::LostSnapshots),
            _ if matches!(row.finish, Finish::Dirty) => Some(Self::Dirty),
            _ if row.feature == "size 0" && column.starts_with("amend compat=0.10") => {
                Some(Self::Downgrade)
            }
            _ => None,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Key => 1,
            Self::Downgrade => 9,
            Self::LostSnapshots | Self::Dirty => 20,
        }
    }
}

/// Images of a row, made once.
struct Templates {
    plain: Scratch,
    snapshot: Scratch,
    both: Scratch,
}

impl Templates {
    fn new(row: &Row) -> Result<Self> {
        let build = |prepared| -> Result<Scratch> {
            let folder = Scratch::new()?;
            row.build(&folder, prepared)?;
            Ok(folder)
        };
        Ok(Self {
            plain: build(No)?,
            snapshot: build(Snapshot)?,
            both: build(Both)?,
        })
    }

    fn of(&self, prepared: Prepared) -> &Scratch {
        match prepared {
            No => &self.plain,
            Snapshot => &self.snapshot,
            Both => &self.both,
        }
    }
}

/// The files of two folders are the same, but for those that only one has.
fn unchanged(template: &Scratch, folder: &Scratch) -> Result<bool> {
    for entry in std::fs::read_dir(template.path())? {
        let name = entry?.file_name();
        let name = name.to_str().context("a name that is no text")?;
        if template.read(name)? != folder.read(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is not compared of the text: allocation in the file system, and node numbers.
fn comparable(mut ran: Ran) -> Ran {
    let out = ran.out();
    let lines = out.split_inclusive('\n');
    let kept: String = lines
        .filter(|line| !line.trim_start().starts_with("disk size: "))
        .collect();
    ran.stdout = kept.into_bytes();
    ran.stderr = without_node_numbers(&ran.stderr);
    ran
}

/// One cell on its own copies.
fn cell(row: &Row, template: &Scratch, name: &str, args: &[&str]) -> Result<Cell> {
    let mut twins = Twins::new()?;
    twins.build(|folder| copy(template, folder))?;
    let _devices = match row.make {
        Make::Device | Make::RawDevice => {
            Some([twins.theirs(), twins.ours()].map(|folder| into_device(folder, row)))
        }
        _ => None,
    };
    if let Some(devices) = &_devices {
        for device in devices {
            ensure!(device.is_ok(), "{:?}", device.as_ref().err());
        }
    }
    if row.keyed {
        twins.set_keyed();
    }
    let mut want = qemu_img(twins.theirs(), false, args)?;
    let wants_key = want.err().contains(KEY_WANTED);
    if wants_key {
        ensure!(unchanged(template, twins.theirs())?, "refused and changed");
        want = qemu_img(twins.theirs(), true, args)?;
    }
    let got = match wants_key && tools::subject_is_oracle() {
        true => qemu_img(twins.ours(), true, args)?,
        false => Run::new(&tools::instar()?, twins.ours().path())
            .args(args)
            .go()?,
    };
    let (mut want, mut got) = (comparable(want), comparable(got));
    if name.starts_with("check -r") {
        // Where a repair puts a table that it writes anew is its own affair.
        for ran in [&mut want, &mut got] {
            ran.stdout = without_end_offset(&ran.stdout);
        }
    }
    if Listed::of(row, name) == Some(Listed::LostSnapshots) {
        return lost_snapshots(template, &twins, &want, &got);
    }
    if Listed::of(row, name) == Some(Listed::Downgrade) && want.code == Some(1) {
        return empty_downgrade(&twins, &want, &got);
    }
    let mut complaints = differences(&want, &got);
    let repaired = want.err().contains("ERROR cluster");
    if Listed::of(row, name) == Some(Listed::Dirty) && repaired && !complaints.is_empty() {
        return dirty(&mut twins, (row, name), &want, &got);
    }
    complaints.extend(manners(&got));
    let told = || format!("qemu-img {}\ninstar {}", want.describe(), got.describe());
    ensure!(
        complaints.is_empty(),
        "{}\n{}",
        complaints.join("\n"),
        told()
    );
    let refused = got.code == Some(1);
    let still = unchanged(template, twins.theirs())? && unchanged(template, twins.ours())?;
    if row.keyed && args.iter().any(|arg| arg.starts_with("--preallocation=")) {
        // What the cipher makes of the new clusters depends on where they are.
        for folder in [twins.theirs(), twins.ours()] {
            qemu_img(folder, true, &["resize", "--shrink", NAME, "-2M"])?.expect_code(0)?;
        }
        twins.compare_after_io(NAME).with_context(told)?;
    } else if !still {
        twins.compare(NAME).with_context(told)?;
    }
    if wants_key {
        let listed = Listed::of(row, name).context("the oracle wants a key")?;
        return Ok(Cell::Difference(listed.number()));
    }
    Ok(if refused { Cell::Refused } else { Cell::Same })
}

fn without_end_offset(text: &[u8]) -> Vec<u8> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let kept = lines.filter(|line| !line.starts_with(b"Image end offset: "));
    kept.flatten().copied().collect()
}

fn copy(from: &Scratch, to: &Scratch) -> Result<()> {
    let status = std::process::Command::new("cp")
        .args(["--sparse=always", "-R"])
        .arg(from.path().join("."))
        .arg(to.path())
        .status()?;
    ensure!(status.success(), "cp failed");
    Ok(())
}

/// The oracle takes the snapshots for lost clusters and frees them; we find nothing to repair.
fn lost_snapshots(template: &Scratch, twins: &Twins, want: &Ran, got: &Ran) -> Result<Cell> {
    let told = || format!("qemu-img {}\ninstar {}", want.describe(), got.describe());
    ensure!(
        want.code == Some(0) && want.out().contains("leaked clusters"),
        "{}",
        told()
    );
    let list = ["snapshot", "-l", NAME];
    let theirs = qemu_img(twins.theirs(), false, &list)?;
    ensure!(
        theirs.stdout.is_empty(),
        "qemu-img keeps the snapshots: {}",
        told()
    );
    if !tools::subject_is_oracle() {
        ensure!(
            unchanged(template, twins.ours())?,
            "we changed the image: {}",
            told()
        );
        let clean = got.code == Some(0) && got.out().starts_with("No errors were found");
        ensure!(clean && got.stderr.is_empty(), "{}", told());
    }
    Ok(Cell::Difference(Listed::LostSnapshots.number()))
}

/// The oracle finds no memory for the L1 table of a snapshot that has none.
fn empty_downgrade(twins: &Twins, want: &Ran, got: &Ran) -> Result<Cell> {
    let told = || format!("qemu-img {}\ninstar {}", want.describe(), got.describe());
    ensure!(want.err().contains("Cannot allocate memory"), "{}", told());
    if !tools::subject_is_oracle() {
        ensure!(got.code == Some(0) && got.stderr.is_empty(), "{}", told());
        qemu_img(twins.ours(), false, &["check", NAME])?.expect_code(0)?;
        let info = qemu_img(twins.ours(), false, &["info", NAME])?;
        ensure!(info.out().contains("compat: 0.10"), "{}", info.describe());
    }
    Ok(Cell::Difference(Listed::Downgrade.number()))
}

/// The oracle talks of the repair, or refuses it. The result is the same.
fn dirty(twins: &mut Twins, (row, name): (&Row, &str), want: &Ran, got: &Ran) -> Result<Cell> {
    let told = || {
        format!(
            "{}: qemu-img {}\ninstar {}",
            row.feature,
            want.describe(),
            got.describe()
        )
    };
    ensure!(manners(got).is_empty(), "{}", told());
    if name == "check -r leaks" {
        let codes = (want.code, got.code) == (Some(1), Some(2));
        ensure!(
            codes && want.err().contains("need to rebuild refcount structures"),
            "{}",
            told()
        );
    } else {
        ensure!(want.code == got.code, "{}", told());
        ensure!(
            want.err().contains("Rebuilding refcount structure"),
            "{}",
            told()
        );
        twins.compare_after_io(NAME).with_context(told)?;
    }
    Ok(Cell::Difference(Listed::Dirty.number()))
}

/// Puts the image into a block device; one with a qcow2 image is longer than it.
fn into_device(folder: &Scratch, row: &Row) -> Result<Loop> {
    let len = match row.make {
        Make::Device => 16 << 20,
        _ => 0,
    };
    edit_devices::into_device(folder, NAME, &[], len)
}

/// A row: its cells by column.
fn run_row(row: &Row) -> Result<BTreeMap<usize, Result<Cell>>> {
    let templates = Templates::new(row).with_context(|| format!("making {}", row.feature))?;
    let mut cells = BTreeMap::new();
    for (index, (name, prepared, words)) in COLUMNS.iter().enumerate() {
        let args: Vec<&str> = words.split(' ').collect();
        let found = cell(row, templates.of(*prepared), name, &args);
        cells.insert(
            index,
            found.with_context(|| format!("{}: {words}", row.feature)),
        );
    }
    Ok(cells)
}

const PREFACE: &str = "\
# Every operation on every feature

Written by the tests in `tests/e2e/matrix.rs` (`INSTAR_BLESS=1` writes it anew), which fail when a cell is not as it
says here. Each cell is a run of `qemu-img` on one copy of an image and of `instar` on another:

* `same`: both did it. Exit code and text are equal, and so are `qemu-img`'s `info`, `check`, `map` and content of the
  two copies afterwards, of every internal snapshot too, the bits of the bitmaps and the header extensions; the file is
  at most 1.02 times as long.
* `refused`: both refused, in the same words and with the same exit code.
* `difference N`: line N of the [list of differences](qemu-img-differences.md). Difference 1 here: `qemu-img` wants the
  key of the image, `instar` does not; the result with the key is the same. Difference 20: `qemu-img check -r` frees
  the snapshots of an image that has bitmaps too, `instar` finds nothing to repair.

An image of a column marked (b), or of one that needs a snapshot or bitmaps, has a snapshot and two bitmaps beside its
feature, where the feature allows that.
";

fn table() -> Table {
    Table {
        file: "operation-matrix.md",
        preface: PREFACE,
        columns: COLUMNS.map(|(name, ..)| name).to_vec(),
    }
}

/// Each test has every sixth row.
fn part(number: usize) -> Outcome {
    let only = std::env::var("INSTAR_ROW").ok();
    let mut failures = Vec::new();
    let mut rows = BTreeMap::new();
    let mine = ROWS.iter().skip(number).step_by(PARTS);
    for row in mine.filter(|row| only.as_deref().is_none_or(|name| name == row.feature)) {
        let (mut line, before) = (format!("| {} |", row.feature), failures.len());
        for found in run_row(row)?.into_values() {
            match found {
                Ok(cell) => line.push_str(&format!(" {cell} |")),
                Err(e) => {
                    failures.push(format!("{e:#}"));
                    line.push_str(" |");
                }
            }
        }
        if failures.len() == before {
            rows.insert(row.feature.to_owned(), line);
        }
    }
    let settled = table().settle(&rows);
    ensure!(
        failures.is_empty(),
        "{} cells failed; the first:\n{}",
        failures.len(),
        failures.join("\n==========\n")
    );
    settled
}

const PARTS: usize = 6;

#[test]
fn operations_on_features_first() -> Outcome {
    part(0)
}

#[test]
fn operations_on_features_second() -> Outcome {
    part(1)
}

#[test]
fn operations_on_features_third() -> Outcome {
    part(2)
}

#[test]
fn operations_on_features_fourth() -> Outcome {
    part(3)
}

#[test]
fn operations_on_features_fifth() -> Outcome {
    part(4)
}

#[test]
fn operations_on_features_sixth() -> Outcome {
    part(5)
}

#[test]
fn the_table_has_every_feature_and_no_empty_cell() -> Outcome {
    table().is_complete()
}
