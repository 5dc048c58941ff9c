//! The copy itself: what is written, and in which order it is begun and ended.

use crate::bitmaps;
use crate::files::{self, Made};
use crate::request::Request;
use crate::say::{self, Watch};
use alloc::boxed::Box;
use instar_codec::Decoder;
use instar_guest_ops::{Context, Crew, Disk};
use instar_layers::CompressionType;
use instar_plan_convert::{
    Below, Both, Chains, Engine, NewTarget, Onto, Part, RawTarget, Source, Squeezer, Target,
    Unpacker, Work,
};
use instar_plan_create::{NewImage, Options, Spec, create_raw};
use instar_qcow2::bitmaps::Bitmap;
use instar_shared::convert::{
    CONVERT_COMPRESS, CONVERT_DD, CONVERT_DURABLE, CONVERT_ONTO, CONVERT_TARGET_IS_ZERO,
};
use instar_storage::overlap::Crew as _;
use instar_storage::{Storage, StorageMut};
use op_chain::{Layers, Reported, Unlock, open_layers_with};
use op_output::Encrypt;

/// Memory for buffers, in bytes: twice what the windows take, and room for compression. What is not used costs nothing.
const BUFFER_BYTES: u64 = 72 << 20;
/// QEMU: what of a new raw file has blocks from the start, in bytes.
const FIRST_BLOCK_BYTES: usize = 4096;

/// The files that are written and what they lie on.
#[derive(Debug)]
pub struct Files {
    /// The target.
    pub target: Disk,
    data: Option<Disk>,
    below: Option<Layers>,
}

impl Files {
    fn open(ctx: &mut Context, request: &Request<'_>) -> Result<Self, Reported> {
        let config = request.config;
        let below = match disk(ctx, config.backing_slot.get())? {
            Some(disk) => {
                let unlock = Unlock::of(request.keys, disk.slot());
                Some(open_layers_with(ctx, disk, request.backing_format, unlock)?)
            }
            None => None,
        };
        Ok(Self {
            target: disk(ctx, config.target_slot.get())?.ok_or(Reported)?,
            data: disk(ctx, config.data_slot.get())?,
            below,
        })
    }
}

/// The disk in a slot; slot 0 is none.
fn disk(ctx: &mut Context, slot: u32) -> Result<Option<Disk>, Reported> {
    let slot = u16::try_from(slot).map_err(|_| Reported)?;
    if slot == 0 {
        return Ok(None);
    }
    ctx.disk(slot).map(Some).map_err(|_| Reported)
}

/// What is copied: images with their chains, or a part of them.
pub type Sources<'a> = Part<'a, Chains<'a, Disk, Decoder>>;

/// Copies the sources into the target, as `fill` does it; gives the target's virtual size.
///
/// # Errors
/// The record that says why has been sent.
pub fn copy(
    ctx: &mut Context,
    request: &Request<'_>,
    sources: &[Layers],
    bitmaps: &[Bitmap],
    fill: impl FnOnce(&Job<'_, Sources<'_>>, &mut Context) -> Result<(), Reported>,
) -> Result<u64, Reported> {
    let files = Files::open(ctx, request)?;
    let onto = match &files.below {
        Some(below) => Some(below.chain.len_bytes()),
        None => request.has(CONVERT_ONTO).then_some(u64::MAX),
    };
    let onto = onto.map(|len_bytes| Onto { len_bytes });
    let chains = sources.iter().map(|source| &source.chain);
    let source = Chains::new(chains, onto, Disk::slot, Decoder::new());
    // What is not granted is missed where it is needed.
    let _ = ctx.grant(BUFFER_BYTES);
    let config = request.config;
    let (skip, end) = (config.skip_bytes.get(), config.max_bytes.get());
    let part = Part::new(&source, skip, end);
    if request.has(CONVERT_DD) && skip > end.min(source.len_bytes()) {
        say::cannot_skip(ctx, request);
    }
    let job = Job {
        request,
        sources,
        source: &part,
        files: &files,
        bitmaps,
    };
    fill(&job, ctx)?;
    Ok(part.len_bytes())
}

/// A copy with all files open.
#[derive(Debug)]
pub struct Job<'a, S> {
    /// What the host asks for.
    pub request: &'a Request<'a>,
    /// The images that are read.
    pub sources: &'a [Layers],
    /// They as one disk.
    pub source: &'a S,
    /// The files that are written.
    pub files: &'a Files,
    /// Bitmaps of the first source that are copied, too.
    pub bitmaps: &'a [Bitmap],
}

impl<S: Source> Job<'_, S> {
    /// Into a raw target that is there.
    ///
    /// # Errors
    /// The record that says why has been sent.
    pub fn fill_raw(&self, ctx: &mut Context) -> Result<(), Reported> {
        let disk = &self.files.target;
        self.check_size(ctx, disk.len_bytes().next_multiple_of(512))?;
        let mut target = RawTarget {
            file: disk.slot(),
            zeroed: self.request.has(CONVERT_TARGET_IS_ZERO),
        };
        self.run(ctx, &mut target, [disk], CompressionType::Zlib)?;
        disk.flush().map_err(|e| say::not_begun(ctx, e.errno))
    }

    /// Refuses a target of `len_bytes` that is too small.
    ///
    /// # Errors
    /// The record that says so has been sent.
    pub fn check_size(&self, ctx: &mut Context, len_bytes: u64) -> Result<(), Reported> {
        if len_bytes < self.source.len_bytes() {
            let sentence = format_args!("output file is smaller than input file");
            return Err(say::sentence(ctx, sentence));
        }
        Ok(())
    }

    /// To a raw target that is made.
    ///
    /// # Errors
    /// The record that says why has been sent.
    pub fn to_raw(&self, ctx: &mut Context) -> Result<(), Reported> {
        let disk = &self.files.target;
        let total = self.source.len_bytes();
        let options = &self.request.config.options;
        let preallocation = op_output::preallocation(options).ok_or(Reported)?;
        say::announce(ctx, disk.slot(), total)?;
        let made = self.made(disk);
        let created = create_raw(
            &made,
            total,
            preallocation,
            &mut Watch::new(ctx, self.request),
        );
        created.map_err(|error| say::not_created(ctx, self.request, &error))?;
        if disk.can_grow() && total > 0 {
            let zeros = [0; FIRST_BLOCK_BYTES];
            let len = usize::try_from(total).map_or(zeros.len(), |n| n.min(zeros.len()));
            let first = disk.write_at(0, zeros.get(..len).unwrap_or_default());
            first.map_err(|e| say::not_begun(ctx, e.errno))?;
        }
        let mut target = RawTarget {
            file: disk.slot(),
            zeroed: disk.can_grow(),
        };
        self.run(ctx, &mut target, [disk], CompressionType::Zlib)?;
        made.flush().map_err(|e| say::not_begun(ctx, e.errno))
    }

    /// To a qcow2 target that is made, which `encrypt` encrypts if it is to be.
    ///
    /// # Errors
    /// The record that says why has been sent.
    pub fn to_qcow2(&self, ctx: &mut Context, encrypt: &impl Encrypt) -> Result<(), Reported> {
        let (disk, request) = (&self.files.target, self.request);
        let total = self.source.len_bytes();
        let given = &request.config.options.encryption;
        let options = Options {
            encryption: encrypt.encryption(given),
            ..op_output::options(&request.config.options, total).ok_or(Reported)?
        };
        let spec = Spec::new(&options);
        let spec = spec.and_then(|spec| encrypt.check(ctx, given, disk.slot()).map(|()| spec));
        let spec = spec.map_err(|error| say::not_created(ctx, request, &error))?;
        say::announce(ctx, disk.slot(), total)?;
        if let Some(data) = &self.files.data {
            say::announce(ctx, data.slot(), total)?;
        }
        let image = self.made(disk);
        let data = self.files.data.as_ref().map(|data| self.made(data));
        let begun = NewImage::begin(&image, data.as_ref(), &spec, &mut Watch::new(ctx, request));
        let begun = begun.map_err(|error| say::not_created(ctx, request, &error))?;
        let cipher = encrypt.key(ctx, given, disk.slot(), &image, begun.crypto_header());
        let cipher = cipher.map_err(|error| say::not_created(ctx, request, &error))?;
        let numbers = (disk.slot(), self.files.data.as_ref().map_or(0, Disk::slot));
        let clean = disk.can_grow() && self.files.data.as_ref().is_none_or(Disk::can_grow);
        let below = self.files.below.as_ref();
        let below = below.map(|below| Below::new(&below.chain, Box::new(Decoder::new())));
        let target = NewTarget::new(begun, &spec, numbers, clean, below);
        let mut target = target.enciphered(cipher);
        let written = [Some(disk), self.files.data.as_ref()];
        self.run(
            ctx,
            &mut target,
            written.into_iter().flatten(),
            spec.compression(),
        )?;
        let mut filled = target.into_image();
        let cluster = spec.cluster_bits().size_bytes();
        let top = self.sources.first().and_then(|s| s.chain.layers().first());
        if let Some(top) = top {
            bitmaps::copy(ctx, top, self.bitmaps, &mut filled, cluster)?;
        }
        let finished = filled.finish();
        finished.map_err(|error| say::not_finished(ctx, &error))
    }

    fn made<'d>(&self, disk: &'d Disk) -> Made<'d> {
        Made::new(disk, self.request.has(CONVERT_DURABLE))
    }

    /// Copies everything into `target`, which lies in the files `written`, and whose compressed clusters are of this
    /// kind.
    ///
    /// # Errors
    /// The record that says why has been sent.
    pub fn run<'d>(
        &self,
        ctx: &mut Context,
        target: &mut dyn Target,
        written: impl IntoIterator<Item = &'d Disk>,
        kind: CompressionType,
    ) -> Result<(), Reported>
    where
        Self: 'd,
    {
        let set = files::set(self.sources, written).ok_or(Reported)?;
        let settings = self.request.settings();
        // There is one crew, for both kinds of work.
        let crew = Crew::start(ctx, Work::run);
        let both = Both::new(&crew);
        let squeezer = if self.request.has(CONVERT_COMPRESS) {
            let cluster = usize::try_from(target.cluster()).map_err(|_| Reported)?;
            Some(Squeezer::new(&both, kind, cluster))
        } else {
            None
        };
        let unpacker = (crew.cores() > 0).then(|| Unpacker::new(&both));
        let mut watch = Watch::new(ctx, self.request);
        let engine = Engine::new(&set, self.source, target, &mut watch, settings, squeezer);
        let result = engine.unpacking(unpacker).run();
        result.map_err(|error| say::copy_failed(ctx, self.request, &error))
    }
}
