//! A disk whose image an operation reads for as long as a guest uses it.

use crate::cli::{LimitOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::files::{BLOCKD, FileTable, Growth, Job, JobError, Output, RESULT_BYTES, Reads};
use crate::image::Image;
use crate::launch::{self, How};
use instar_sandbox::LiveImage;
use instar_sandbox::machine::DiskFile;
use instar_shared::live::{BLOCKD_READ_ONLY, BlockdConfig, BlockdResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::RunStats;

/// A disk over an image of this format, or of one that the operation finds.
///
/// # Errors
/// It cannot be said how much memory the operation may use.
pub fn image(
    disk: DiskFile,
    format: ImageFormat,
    limits: &LimitOptions,
) -> Result<LiveImage, UsageError> {
    let mut config = BlockdConfig::zeroed();
    config.format.set(format.raw());
    let typed = Image::file(disk.path, format);
    let mut input = if disk.read_only {
        config.flags.set(BLOCKD_READ_ONLY);
        launch::to_read(typed, Reads::Contents, false)
    } else {
        launch::to_change(typed, Growth::default(), limits)
    };
    input.direct = disk.direct;
    // The guest's time is limited, and not the operation's.
    let limits = LimitOptions {
        timeout: None,
        ..limits.clone()
    };
    let job = launch::job(
        How::default(),
        BLOCKD,
        config.as_bytes(),
        vec![input],
        &limits,
    )?;
    Ok(LiveImage {
        // Whoever repairs an image looks at what was found before a guest uses it.
        job: Job {
            repair: None,
            ..job
        },
        output: || output_of(JobKind::Check),
        guessed: format == ImageFormat::Probe,
        serial: disk.serial,
        rate: disk.rate,
    })
}

/// Tells the user what the operation of a disk says.
pub fn output_of(job: JobKind) -> Box<dyn Output> {
    Box::new(BlockdOutput(Console::new(job, false, false)))
}

/// What the operation says.
struct BlockdOutput(Console);

impl Output for BlockdOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        self.0.record_only(kind, payload, files)
    }

    fn ran(&mut self, stats: &RunStats) {
        self.0.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = BlockdResult::read_from_prefix(result.as_slice()) else {
            return self.0.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.0.end(0),
            ended => self.0.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.0.end_failed(error, files)
    }
}
