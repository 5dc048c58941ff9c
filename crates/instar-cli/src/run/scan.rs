//! What a disk image boots: `bootscan`, whose result goes to the machine instead of the user.

use super::config::Config;
use crate::bootscan::model::Found;
use crate::cli::LimitOptions;
use crate::console::{Console, JobKind};
use crate::files::{BOOTSCAN, FileTable, JobError, Layout, Output, RESULT_BYTES, Reads};
use crate::image::Image;
use crate::launch::{self, NewFile};
use crate::sink::Out;
use crate::text;
use instar_sandbox::machine::Scan;
use instar_shared::bootscan::{BOOTSCAN_WANTED, BootscanConfig, BootscanResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::RunStats;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Exit code where there is nothing to boot.
const EXIT_NOTHING: u8 = 1;
/// What is said where nothing is found.
const HINT: &[u8] =
    b"`instar bootscan` says what is on the image; it is taken as raw unless its name ends in .qcow2, or -f qcow2 says so";
/// Slots of the files that the kernel and the initial RAM disks are copied into.
const KERNEL_SLOT: u16 = 1;
const INITRD_SLOT: u16 = 2;

/// A search for what an image boots, once for each boot.
#[derive(Debug)]
pub struct ImageScan {
    image: PathBuf,
    format: ImageFormat,
    entry: Option<String>,
    words: Words,
    timeout: Option<Duration>,
    allow_path: Vec<PathBuf>,
}

/// What becomes of an entry's command line.
#[derive(Clone, Debug, Default)]
struct Words {
    /// Stands for the entry's.
    instead: Option<String>,
    /// Behind it.
    append: Option<String>,
    /// The kernel's name of the console that there is.
    console: Option<&'static str>,
}

impl ImageScan {
    /// Of the image of a machine.
    #[must_use]
    pub fn new(config: &Config, limits: &LimitOptions) -> Self {
        Self {
            image: config.image.clone().unwrap_or_default(),
            format: config.disk_format().image_format(),
            entry: config.entry.clone(),
            words: Words {
                instead: config.cmdline.clone(),
                append: config.append.clone(),
                console: config.console(),
            },
            timeout: limits.timeout,
            allow_path: limits.allow_path.clone(),
        }
    }
}

impl Scan for ImageScan {
    fn run(&self, kernel: &Path, initrd: &Path) -> u8 {
        let limits = LimitOptions {
            memory: None,
            timeout: self.timeout,
            max_growth: None,
            allow_path: self.allow_path.clone(),
        };
        let mut config = BootscanConfig::zeroed();
        config.format.set(self.format.raw());
        if let Some(entry) = &self.entry {
            config.flags.set(BOOTSCAN_WANTED);
            let length = launch::fill(&mut config.wanted, entry.as_ref());
            config.wanted_len.set(length);
        }
        config.kernel_slot.set(KERNEL_SLOT);
        config.initrd_slot.set(INITRD_SLOT);
        let file = |path: &Path| NewFile {
            path: path.to_owned(),
            raw: true,
            durable: false,
            layout: Layout::USUAL,
        };
        // The machine has locked it against others.
        let image = Image::file(self.image.clone(), self.format);
        let inputs = vec![
            launch::to_read(image, Reads::Contents, true),
            launch::to_create(file(kernel), &limits),
            launch::to_create(file(initrd), &limits),
        ];
        let output = ScanOutput::new(self.words.clone());
        match launch::start(BOOTSCAN, config.as_bytes(), inputs, &limits, output) {
            Ok(code) => code,
            Err(error) => {
                Console::new(JobKind::Run, false, true).end_wrong(error.sentence.as_bytes())
            }
        }
    }
}

/// Collects what is found, and writes the plan and the command line to standard output.
struct ScanOutput {
    console: Console,
    words: Words,
    found: Found,
    /// The plan as it came, which the machine's parent reads once more.
    plan: Vec<u8>,
}

impl ScanOutput {
    /// Asks about the terminal: call it before confinement.
    fn new(words: Words) -> Self {
        Self {
            console: Console::new(JobKind::Run, false, false),
            words,
            found: Found::default(),
            plan: Vec::new(),
        }
    }

    fn done(mut self: Box<Self>, result: &BootscanResult) -> u8 {
        if let Err(what) = self.found.finish(result) {
            return self.console.end_malformed(&what);
        }
        let Some(entry) = self.found.chosen() else {
            // The operation has said so.
            self.console.complain(HINT);
            return self.console.end(EXIT_NOTHING);
        };
        if !entry.problem.is_empty() || self.plan.is_empty() {
            let mut sentence = b"The entry '".to_vec();
            text::push_visible(&mut sentence, &entry.title);
            sentence.extend(b"' cannot be booted: ");
            text::push_visible(&mut sentence, &entry.problem);
            self.console.complain(&sentence);
            return self.console.end(EXIT_NOTHING);
        }
        let line = self.words.of(&entry.cmdline);
        self.console.stdout().put(&self.plan);
        self.console.stdout().put(&line);
        self.console.end(0)
    }
}

impl Words {
    /// The kernel's command line, of an entry's. One that names no console that the machine has gets it.
    fn of(&self, entry: &[u8]) -> Vec<u8> {
        let mut line = self
            .instead
            .as_ref()
            .map_or(entry, |text| text.as_bytes())
            .to_vec();
        if let Some(append) = &self.append {
            add(&mut line, append.as_bytes());
        }
        if let (Some(console), None) = (self.console, &self.instead) {
            let word = format!("console={console}");
            let is_named = line.split(u8::is_ascii_whitespace).any(|own| {
                own.strip_prefix(word.as_bytes())
                    .is_some_and(|rest| matches!(rest, [] | [b',', ..]))
            });
            if !is_named {
                add(&mut line, word.as_bytes());
            }
        }
        line
    }
}

/// Puts words behind a command line.
fn add(line: &mut Vec<u8>, words: &[u8]) {
    if !line.is_empty() {
        line.push(b' ');
    }
    line.extend(words);
}

impl Output for ScanOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.console.record(kind, payload, files)? {
            return Ok(());
        }
        if kind == RecordKind::BootPlan {
            self.plan = payload.to_vec();
        }
        self.found.record(kind, payload)
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = BootscanResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            ended => self.console.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(instead: Option<&str>, append: Option<&str>, console: Option<&'static str>) -> Words {
        Words {
            instead: instead.map(str::to_owned),
            append: append.map(str::to_owned),
            console,
        }
    }

    #[test]
    fn the_console_is_named_once() {
        let serial = words(None, None, Some("ttyS0"));
        for (entry, wanted) in [
            ("", "console=ttyS0"),
            ("root=/dev/vda1", "root=/dev/vda1 console=ttyS0"),
            ("console=ttyS0,115200 quiet", "console=ttyS0,115200 quiet"),
            ("a console=ttyS0", "a console=ttyS0"),
            ("console=tty0", "console=tty0 console=ttyS0"),
            ("console=ttyS01", "console=ttyS01 console=ttyS0"),
        ] {
            assert_eq!(serial.of(entry.as_bytes()), wanted.as_bytes(), "{entry}");
        }
        assert_eq!(words(None, None, None).of(b"quiet"), b"quiet");
    }

    #[test]
    fn words_go_behind_and_instead() {
        let both = words(None, Some("single"), Some("hvc0"));
        assert_eq!(both.of(b"quiet"), b"quiet single console=hvc0");
        let named = words(None, Some("console=hvc0"), Some("hvc0"));
        assert_eq!(named.of(b"quiet"), b"quiet console=hvc0");
        let instead = words(Some("mine"), Some("more"), Some("ttyS0"));
        assert_eq!(instead.of(b"quiet"), b"mine more");
    }
}
