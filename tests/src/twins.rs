//! One image twice: the oracle changes one copy, the program under test the other, and then everything that
//! can be seen of the two must be the same.

use std::cell::Cell;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::SeekFrom;
use serde_json::Value;

use crate::compare::{differences, manners};
use crate::run::{Outcome, Run};
use crate::scratch::Scratch;
use crate::{hidden, tools};

/// The most that our file may be longer than the oracle's, as a factor.
const LENGTH_FACTOR: f64 = 1.02;

/// Two folders with the same files.
#[derive(Debug)]
pub struct Twins {
    theirs: Scratch,
    ours: Scratch,
    /// Commands so far, to be shown with a difference.
    history: Vec<String>,
    /// The image is encrypted: the oracle gets the key of [`image::create_encrypted`].
    keyed: bool,
    /// Bytes by which our file was longer after QEMU had last written to both.
    excess: Cell<u64>,
    /// Fragments that ours may have beyond the oracle's.
    fragments: u64,
}

impl Twins {
    /// Two empty folders.
    pub fn new() -> Result<Self> {
        Ok(Self {
            theirs: Scratch::new()?,
            ours: Scratch::new()?,
            history: Vec::new(),
            keyed: false,
            excess: Cell::new(0),
            fragments: 0,
        })
    }

    /// The image is encrypted.
    pub fn set_keyed(&mut self) {
        self.keyed = true;
    }

    /// Ours may have so many fragments more: a run of clusters is parted where a free one lies before the file's end.
    pub fn allow_fragments(&mut self, count: u64) {
        self.fragments = count;
    }

    /// The oracle's folder.
    pub fn theirs(&self) -> &Scratch {
        &self.theirs
    }

    /// Our folder.
    pub fn ours(&self) -> &Scratch {
        &self.ours
    }

    /// Fills the oracle's folder and copies it to ours and back: the copies have the same holes then.
    pub fn build(&self, make: impl FnOnce(&Scratch) -> Result<()>) -> Result<()> {
        make(&self.theirs)?;
        for (from, to) in [(&self.theirs, &self.ours), (&self.ours, &self.theirs)] {
            let status = std::process::Command::new("cp")
                .args(["--remove-destination", "--sparse=always", "-R"])
                .arg(from.path().join("."))
                .arg(to.path())
                .status()?;
            ensure!(status.success(), "cp failed");
        }
        Ok(())
    }

    /// `qemu-io` commands on both copies.
    pub fn io(&mut self, name: &str, commands: &[&str]) -> Result<()> {
        self.history.push(format!("qemu-io {name} {commands:?}"));
        let mut args: Vec<&str> = vec!["-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(name);
        // Some writes fail, such as a compressed one where there is data; then both must.
        let [want, got] = [&self.theirs, &self.ours].map(|folder| -> Result<Outcome> {
            Run::new(&tools::qemu_io()?, folder.path()).args(&args).go()
        });
        let (want, got) = (want?, got?);
        ensure!(
            want.code == got.code && want.signal == got.signal && want.stderr == got.stderr,
            "{}\nqemu-io on their copy: {}\non ours: {}",
            self.told(),
            want.describe(),
            got.describe()
        );
        Ok(())
    }

    /// Each program on its copy; both must say the same. The exit code.
    pub fn run<S: AsRef<OsStr>>(&mut self, args: &[S]) -> Result<i32> {
        let shown: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        self.history.push(shown.join(" "));
        let mut want = Run::new(&tools::qemu_img()?, self.theirs.path())
            .args(args)
            .go()?;
        let mut got = Run::new(&tools::instar()?, self.ours.path())
            .args(args)
            .go()?;
        for outcome in [&mut want, &mut got] {
            outcome.stderr = without_node_numbers(&outcome.stderr);
        }
        let mut complaints = differences(&want, &got);
        complaints.extend(manners(&got));
        if !complaints.is_empty() {
            bail!(
                "{}\n{}\nqemu-img {}\ninstar {}",
                self.told(),
                complaints.join("\n"),
                want.describe(),
                got.describe()
            );
        }
        got.code.context("no exit code")
    }

    /// Everything that is seen of the image must be the same in both folders.
    pub fn compare(&self, name: &str) -> Result<()> {
        self.compare_parts(name)
            .and_then(|()| self.compare_length(name))
            .with_context(|| self.told())
    }

    /// As [`Self::compare`], where QEMU has written to both copies since: where it found room is its own affair.
    pub fn compare_after_io(&self, name: &str) -> Result<()> {
        let (theirs, ours) = self.lengths(name)?;
        self.excess.set(ours.saturating_sub(theirs));
        self.compare_parts(name).with_context(|| self.told())
    }

    /// For an image that is new in both folders and need not be allocated alike: ours shows the same, is sound, and
    /// has no more clusters than the oracle's.
    pub fn compare_shown(&self, name: &str) -> Result<()> {
        self.compare_shown_within(name, 0)
    }

    /// As [`Self::compare_shown`], with at most so many clusters more.
    pub fn compare_shown_within(&self, name: &str, more: u64) -> Result<()> {
        let compared = || -> Result<()> {
            let (most, has) = self.compare_sound(name)?;
            ensure!(
                has <= most.saturating_add(more),
                "{has} clusters, with qemu-img {most}"
            );
            Ok(())
        };
        compared().with_context(|| self.told())
    }

    /// Ours is sound and shows the same; clusters of the oracle's image and of ours.
    fn compare_sound(&self, name: &str) -> Result<(u64, u64)> {
        self.both(&["info", "--output=json", "-U", name], visible_info)?;
        let [theirs, ours] = [&self.theirs, &self.ours].map(|folder| -> Result<Value> {
            let done = self.oracle(folder, &["check", "--output=json", name])?;
            let sound = matches!(done.code, Some(0 | 63));
            ensure!(sound, "{}", done.describe());
            Ok(serde_json::from_slice(&done.stdout).unwrap_or_default())
        });
        let clusters = |value: &Value| value["allocated-clusters"].as_u64().unwrap_or(0);
        let counts = (clusters(&theirs?), clusters(&ours?));
        self.compare_content(name)?;
        Ok(counts)
    }

    /// Lengths of the oracle's file and of ours.
    fn lengths(&self, name: &str) -> Result<(u64, u64)> {
        let [theirs, ours] = [&self.theirs, &self.ours].map(|f| std::fs::metadata(f.file(name)));
        Ok((theirs?.len(), ours?.len()))
    }

    fn compare_parts(&self, name: &str) -> Result<()> {
        let info = self.both(&["info", "--output=json", "-U", name], visible_info)?;
        self.compare_check(name)?;
        // Of a raw file it shows what the host reserves and caches.
        if info["format"] == "qcow2" {
            self.both(&["map", "--output=json", name], visible_map)?;
        }
        let [want, got] = [&self.theirs, &self.ours].map(|f| hidden::hidden(&f.file(name)));
        let (want, got) = (want?, got?);
        ensure!(
            want == got,
            "extensions or bitmaps differ:\nwant {want:#?}\ngot  {got:#?}"
        );
        self.compare_content(name)?;
        for snapshot in info["snapshots"].as_array().into_iter().flatten() {
            let id = snapshot["id"].as_str().unwrap_or_default();
            self.compare_snapshot(name, id)?;
        }
        Ok(())
    }

    /// Runs `qemu-img` in both folders; its JSON must be the same after `strip`.
    fn both(&self, args: &[&str], strip: impl Fn(&mut Value)) -> Result<Value> {
        let [want, got] = [&self.theirs, &self.ours].map(|folder| -> Result<Value> {
            let done = self.oracle(folder, args)?;
            let mut value: Value = serde_json::from_slice(&done.stdout)
                .with_context(|| format!("{args:?}: {}", done.describe()))?;
            strip(&mut value);
            Ok(value)
        });
        let (want, got) = (want?, got?);
        ensure!(
            want == got,
            "qemu-img {args:?} differs: {}",
            first_difference(&want, &got)
        );
        Ok(got)
    }

    /// No damage, and no more leaks or fragments than the oracle leaves.
    fn compare_check(&self, name: &str) -> Result<()> {
        let args = ["check", "--output=json", name];
        let want = self.oracle(&self.theirs, &args)?;
        let got = self.oracle(&self.ours, &args)?;
        let number = |outcome: &Outcome, key: &str| -> u64 {
            serde_json::from_slice::<Value>(&outcome.stdout)
                .ok()
                .and_then(|value| value[key].as_u64())
                .unwrap_or(0)
        };
        for key in [
            "corruptions",
            "check-errors",
            "leaks",
            "fragmented-clusters",
        ] {
            let (mut most, has) = (number(&want, key), number(&got, key));
            if key == "fragmented-clusters" && number(&want, "compressed-clusters") > 0 {
                // What lies between compressed clusters is at another place each time.
                most += most / 50 + 8;
            }
            if key == "fragmented-clusters" {
                most = most.saturating_add(self.fragments);
            }
            ensure!(
                has <= most,
                "{key}: {has}, with qemu-img {most}\n{}",
                got.describe()
            );
        }
        for key in [
            "total-clusters",
            "allocated-clusters",
            "compressed-clusters",
        ] {
            let (expected, has) = (number(&want, key), number(&got, key));
            ensure!(has == expected, "{key}: {has}, with qemu-img {expected}");
        }
        Ok(())
    }

    fn compare_length(&self, name: &str) -> Result<()> {
        let (want, got) = self.lengths(name)?;
        // The last cluster counts as a whole one: QEMU writes of it what it needs.
        let cluster = hidden::cluster_size(&self.theirs.file(name))?;
        let want = want.next_multiple_of(cluster);
        // And one more: a change that needs a cluster takes it where the copy before it has left a free one.
        let got = got.saturating_sub(self.excess.get().saturating_add(cluster));
        #[allow(clippy::cast_precision_loss)]
        let factor = got as f64 / want.max(1) as f64;
        ensure!(
            factor <= LENGTH_FACTOR,
            "the file has {got} bytes, with qemu-img {want}"
        );
        Ok(())
    }

    /// The guest's data.
    fn compare_content(&self, name: &str) -> Result<()> {
        let ours = self.ours.file(name);
        let ours = ours.to_str().context("a folder whose name is no text")?;
        let done = self.oracle(&self.theirs, &["compare", name, ours])?;
        ensure!(
            done.code == Some(0),
            "the content differs: {}",
            done.describe()
        );
        Ok(())
    }

    /// The guest's data of a snapshot.
    fn compare_snapshot(&self, name: &str, id: &str) -> Result<()> {
        let [want, got] = [&self.theirs, &self.ours].map(|folder| -> Result<u64> {
            let select = format!("snapshot.id={id}");
            let args = ["convert", "-O", "raw", "-l", &select, name, "content.raw"];
            self.oracle(folder, &args)?.expect_code(0)?;
            let path = folder.file("content.raw");
            let sum = sum(&std::fs::File::open(&path)?)?;
            std::fs::remove_file(&path)?;
            Ok(sum)
        });
        ensure!(want? == got?, "the content of snapshot {id} differs");
        Ok(())
    }

    /// Runs `qemu-img`, with the key if there is one; the exit code is the caller's to judge.
    fn oracle(&self, folder: &Scratch, args: &[&str]) -> Result<Outcome> {
        let args = match self.keyed {
            true => with_key(args),
            false => args.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        Run::new(&tools::qemu_img()?, folder.path()).args(args).go()
    }

    fn told(&self) -> String {
        format!("after:\n  {}", self.history.join("\n  "))
    }
}

/// `args` for `qemu-img`, with the key for the image `disk.qcow2`, here or in another folder.
pub fn with_key(args: &[&str]) -> Vec<String> {
    let image = |name: &str| {
        format!("driver=qcow2,encrypt.key-secret=key,file.driver=file,file.filename={name}")
    };
    let key = ["--object", "secret,id=key,data=password", "--image-opts"];
    let mut words: Vec<String> = args
        .iter()
        .map(
            |word| match *word == "disk.qcow2" || word.ends_with("/disk.qcow2") {
                true => image(word),
                false => (*word).to_owned(),
            },
        )
        .collect();
    words.splice(1..1, key.map(str::to_owned));
    words
}

/// A number that depends on the length of a file and on its bytes that are not zero, and where they are.
pub fn sum(file: &std::fs::File) -> Result<u64> {
    const BLOCK: usize = 4096;
    let step = BLOCK as u64;
    let len = file.metadata()?.len();
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(len);
    let mut block = [0; BLOCK];
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = data / step * step;
        let end = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        while at < end {
            let count = file.read_at(&mut block, at)?;
            if block[..count].iter().any(|byte| *byte != 0) {
                hasher.write_u64(at);
                hasher.write(&block[..count]);
            }
            at += step;
        }
    }
    Ok(hasher.finish())
}

fn remove(value: &mut Value, keys: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        for key in keys {
            object.remove(*key);
        }
    }
}

/// Leaves out what two runs may differ in: sizes of files and the time of snapshots.
fn visible_info(value: &mut Value) {
    remove(value, &["actual-size", "children"]);
    for snapshot in value["snapshots"].as_array_mut().into_iter().flatten() {
        remove(snapshot, &["date-sec", "date-nsec"]);
    }
}

/// Leaves out where data lies, and which of it the file holds as holes; neighbours that look alike then are one.
fn visible_map(value: &mut Value) {
    let mut seen: Vec<Value> = Vec::new();
    for mut extent in value.as_array().cloned().unwrap_or_default() {
        remove(&mut extent, &["offset"]);
        if extent["data"] == true {
            extent["zero"] = false.into();
        }
        let length = extent["length"].as_u64().unwrap_or(0);
        if let Some(last) = seen.last_mut() {
            let mut longer = last.clone();
            longer["start"] = extent["start"].clone();
            longer["length"] = extent["length"].clone();
            if longer == extent {
                let before = last["length"].as_u64().unwrap_or(0);
                last["length"] = before.saturating_add(length).into();
                continue;
            }
        }
        seen.push(extent);
    }
    *value = seen.into();
}

/// Names that QEMU gives to its nodes count up from one to the next.
pub fn without_node_numbers(text: &[u8]) -> Vec<u8> {
    const PLACES: [&[u8]; 2] = [b"#block", b"Cluster at offset 0x"];
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        out.push(*byte);
        rest = after;
        if PLACES.iter().any(|place| out.ends_with(place)) {
            let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            rest = &rest[digits..];
        }
    }
    out
}

/// The first lines in which two values differ.
fn first_difference(want: &Value, got: &Value) -> String {
    let (want, got) = (format!("{want:#}"), format!("{got:#}"));
    let (want, got): (Vec<_>, Vec<_>) = (want.lines().collect(), got.lines().collect());
    let same = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let from = same.saturating_sub(4);
    let near = |lines: &[&str]| {
        let near: Vec<_> = lines.iter().skip(from).take(12).copied().collect();
        near.join("\n")
    };
    format!("line {same}\nwant\n{}\ngot\n{}", near(&want), near(&got))
}
