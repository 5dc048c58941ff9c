//! Bytes of a chain.

use crate::chain::Chain;
use crate::error::DataError;
use crate::layer::Layer;
use crate::tables::grow;
use crate::{FileOf, Run, RunKind};
use alloc::vec::Vec;
use instar_qcow2::header::CompressionType;
use instar_storage::{DataPlace, Read, Storage};

/// The input is no stream of that type, or decompresses to another length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// Takes compressed clusters apart.
pub trait Decompress {
    /// Fills all of `out` from the stream that `input` begins with; what follows the stream is ignored.
    ///
    /// # Errors
    /// [`Corrupt`]: it is no such stream, or gives fewer bytes.
    fn decompress(
        &mut self,
        kind: CompressionType,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), Corrupt>;
}

/// The last cluster that was decompressed.
#[derive(Debug, Default)]
pub(crate) struct Decompressed {
    /// Layer and place of the compressed bytes.
    of: Option<(usize, u64)>,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Decompressed {
    /// Copies a part of a cluster.
    fn copy<S: Storage>(
        &mut self,
        layer: (usize, &Layer<S>),
        stream: &Stream,
        codec: &mut dyn Decompress,
        to: &mut [u8],
    ) -> Result<(), DataError> {
        let id = (layer.0, stream.host_offset);
        if self.of != Some(id) {
            self.of = None;
            self.fill(layer.1, stream, codec)?;
            self.of = Some(id);
        }
        let from = self.out.get(stream.in_cluster..);
        match from.and_then(|from| from.get(..to.len())) {
            Some(from) => to.copy_from_slice(from),
            None => return Err(stream.corrupt()),
        }
        Ok(())
    }

    fn fill<S: Storage>(
        &mut self,
        layer: &Layer<S>,
        stream: &Stream,
        codec: &mut dyn Decompress,
    ) -> Result<(), DataError> {
        grow(&mut self.input, stream.max_bytes)?;
        self.input.truncate(stream.max_bytes);
        grow(&mut self.out, stream.cluster_len)?;
        self.out.truncate(stream.cluster_len);
        layer
            .store(FileOf::Image)
            .read_at(stream.host_offset, &mut self.input)?;
        codec
            .decompress(layer.compression(), &self.input, &mut self.out)
            .map_err(|Corrupt| stream.corrupt())
    }
}

/// Where a compressed cluster is.
struct Stream {
    host_offset: u64,
    max_bytes: usize,
    in_cluster: usize,
    cluster_len: usize,
}

impl Stream {
    const fn corrupt(&self) -> DataError {
        DataError::Decompress {
            host_offset: self.host_offset,
        }
    }
}

/// Reads of one file that are done at once.
struct Batch<'b> {
    depth: usize,
    file: FileOf,
    reads: Vec<Read<'b>>,
}

impl<S: Storage> Chain<S> {
    /// Fills `buf` from byte `offset`; past the end come zeros.
    ///
    /// # Errors
    /// What is wrong; `buf` is then unspecified.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        codec: &mut dyn Decompress,
    ) -> Result<(), DataError> {
        self.read_many([Read { offset, buf }], codec)
    }

    /// Does all reads, with one batch of requests for each file.
    ///
    /// # Errors
    /// What is wrong with one of them; all buffers are then unspecified.
    pub fn read_many<'b>(
        &self,
        reads: impl IntoIterator<Item = Read<'b>>,
        codec: &mut dyn Decompress,
    ) -> Result<(), DataError> {
        let mut batches: Vec<Batch<'b>> = Vec::new();
        for Read { offset, buf } in reads {
            self.plan_read(offset, buf, codec, &mut batches)?;
        }
        for batch in &mut batches {
            if let Some(layer) = self.layers().get(batch.depth) {
                layer.store(batch.file).read_batch(&mut batch.reads)?;
            }
        }
        Ok(())
    }

    /// Fills what needs no plain read, and adds the plain ones to their files' batches.
    fn plan_read<'b>(
        &self,
        offset: u64,
        buf: &'b mut [u8],
        codec: &mut dyn Decompress,
        batches: &mut Vec<Batch<'b>>,
    ) -> Result<(), DataError> {
        let (mut at, mut left) = (offset, buf);
        while !left.is_empty() {
            let run = self.run_at(at, left.len() as u64)?;
            let len = usize::try_from(run.len).unwrap_or(left.len());
            let (now, later) = left.split_at_mut(len.min(left.len()));
            match run.kind {
                RunKind::Data { file, host_offset } => {
                    let layer = self.layers().get(run.depth);
                    match layer.and_then(|layer| Some((layer.cipher()?, layer.store(file)))) {
                        Some((cipher, store)) => {
                            let place = DataPlace {
                                host: host_offset,
                                guest: at,
                            };
                            cipher.read(store, place, now)?;
                        }
                        None => {
                            let read = Read {
                                offset: host_offset,
                                buf: now,
                            };
                            push(batches, run.depth, file, read);
                        }
                    }
                }
                RunKind::Compressed { .. } => self.decompress(&run, now, codec)?,
                RunKind::Zero { .. } | RunKind::Unallocated => now.fill(0),
            }
            at = at.saturating_add(run.len);
            left = later;
        }
        Ok(())
    }

    /// Fills `to` with the part of a compressed cluster that `run` is.
    fn decompress(
        &self,
        run: &Run,
        to: &mut [u8],
        codec: &mut dyn Decompress,
    ) -> Result<(), DataError> {
        let RunKind::Compressed {
            host_offset,
            max_bytes,
            in_cluster,
            cluster_len,
        } = run.kind
        else {
            return Ok(());
        };
        let number = |n: u64| usize::try_from(n).map_err(|_| DataError::OutOfMemory);
        let stream = Stream {
            host_offset,
            max_bytes: number(max_bytes.into())?,
            in_cluster: number(in_cluster)?,
            cluster_len: number(cluster_len.into())?,
        };
        let layer = self.layers().get(run.depth).ok_or(stream.corrupt())?;
        let mut kept = self.decompressed.borrow_mut();
        kept.copy((run.depth, layer), &stream, codec, to)
    }
}

/// Adds a read to the batch of its file.
fn push<'b>(batches: &mut Vec<Batch<'b>>, depth: usize, file: FileOf, read: Read<'b>) {
    let of = |batch: &&mut Batch<'_>| batch.depth == depth && batch.file == file;
    match batches.iter_mut().find(of) {
        Some(batch) => batch.reads.push(read),
        None => batches.push(Batch {
            depth,
            file,
            reads: Vec::from([read]),
        }),
    }
}
