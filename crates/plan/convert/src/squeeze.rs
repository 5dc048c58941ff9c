//! Compression of clusters, on all cores.
//!
//! Clusters are gathered into jobs, in the guest's order; a [`Crew`] runs them beside the first core, which runs one
//! itself when the crew has enough. Whatever is done first, results are taken in order, so that the target is
//! packed in order and equal for any number of cores.
//!
//! ```text
//!   cluster --> filling --> waiting --> crew or first core --> done --in order--> packed --> written
//!      ^                                                                  |
//!      '------------------------------ free <-----------------------------'
//! ```

use crate::ConvertError;
use crate::window::WINDOW_BYTES;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use instar_codec::Encoder;
use instar_layers::CompressionType;
use instar_storage::overlap::Crew;

/// Bytes that a job compresses, unless the cluster is larger.
const JOB_BYTES: usize = 256 << 10;

/// A cluster of a job.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// First byte, as the guest counts.
    guest: u64,
    /// Bytes of what it was compressed to; 0: it did not become smaller.
    len: usize,
}

/// Clusters that are compressed together, with all the memory that it takes.
#[derive(Debug)]
pub struct Squeeze {
    encoder: Encoder,
    serial: u64,
    cluster_bytes: usize,
    clusters: Vec<Cluster>,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What became of a cluster.
#[derive(Debug)]
pub(crate) enum Squeezed<'a> {
    /// It is smaller.
    Packed(&'a [u8]),
    /// It is not.
    Plain(&'a [u8]),
}

impl Squeeze {
    fn new(kind: CompressionType, cluster_bytes: usize) -> Result<Self, ConvertError> {
        let bytes = JOB_BYTES.max(cluster_bytes);
        let mut job = Self {
            encoder: Encoder::new(kind, cluster_bytes).ok_or(ConvertError::OutOfMemory)?,
            serial: 0,
            cluster_bytes,
            clusters: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
        };
        let reserved = [
            job.input.try_reserve_exact(bytes),
            job.output.try_reserve_exact(bytes),
            job.clusters
                .try_reserve_exact(bytes.checked_div(cluster_bytes).unwrap_or(1)),
        ];
        if reserved.iter().any(Result::is_err) {
            return Err(ConvertError::OutOfMemory);
        }
        job.output.resize(bytes, 0);
        Ok(job)
    }

    /// Compresses all clusters; allocates nothing.
    pub fn run(&mut self) {
        let inputs = self.input.chunks(self.cluster_bytes);
        let outputs = self.output.chunks_mut(self.cluster_bytes);
        for ((cluster, input), output) in self.clusters.iter_mut().zip(inputs).zip(outputs) {
            // One byte less than the cluster, or it is no gain.
            let room = output.len().saturating_sub(1);
            let output = output.get_mut(..room).unwrap_or_default();
            cluster.len = self.encoder.compress(input, output).unwrap_or(0);
        }
    }

    /// The clusters and what became of them.
    pub(crate) fn results(&self) -> impl Iterator<Item = (u64, Squeezed<'_>)> {
        let inputs = self.input.chunks(self.cluster_bytes);
        let outputs = self.output.chunks(self.cluster_bytes);
        let all = self.clusters.iter().zip(inputs).zip(outputs);
        all.map(|((cluster, input), output)| {
            let packed = output.get(..cluster.len).unwrap_or_default();
            let squeezed = if packed.is_empty() {
                Squeezed::Plain(input)
            } else {
                Squeezed::Packed(packed)
            };
            (cluster.guest, squeezed)
        })
    }

    const fn is_full(&self) -> bool {
        self.input.len().saturating_add(self.cluster_bytes) > self.input.capacity()
    }
}

/// Jobs in all their states.
pub struct Squeezer<'a> {
    crew: &'a dyn Crew<Squeeze>,
    kind: CompressionType,
    cluster_bytes: usize,
    free: VecDeque<Box<Squeeze>>,
    /// Jobs that exist.
    jobs: usize,
    filling: Option<Box<Squeeze>>,
    waiting: VecDeque<Box<Squeeze>>,
    done: VecDeque<Box<Squeeze>>,
    /// Number of the next job that is filled, and of the next whose result is taken.
    next: Range<u64>,
}

impl fmt::Debug for Squeezer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Squeezer")
            .field("kind", &self.kind)
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

impl<'a> Squeezer<'a> {
    /// Compresses clusters of `cluster_bytes` on `crew`.
    pub const fn new(
        crew: &'a dyn Crew<Squeeze>,
        kind: CompressionType,
        cluster_bytes: usize,
    ) -> Self {
        Self {
            crew,
            kind,
            cluster_bytes,
            free: VecDeque::new(),
            jobs: 0,
            filling: None,
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            next: 0..0,
        }
    }

    /// Jobs that the clusters of a window take.
    fn jobs_of_window(&self) -> usize {
        let bytes = JOB_BYTES.max(self.cluster_bytes) as u64;
        let jobs = WINDOW_BYTES.div_ceil(bytes);
        usize::try_from(jobs).unwrap_or(usize::MAX)
    }

    /// Whether there is room for the clusters of a window.
    pub(crate) fn has_room(&self) -> bool {
        let window = self.jobs_of_window();
        let most = self.crew.room().saturating_add(window).saturating_add(1);
        let left = most
            .saturating_sub(self.jobs)
            .saturating_add(self.free.len());
        left >= window
    }

    /// Takes clusters, the last of which may be cut short: zeros follow then.
    pub(crate) fn take(&mut self, guest: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        let mut guest = guest;
        for cluster in bytes.chunks(self.cluster_bytes) {
            let mut job = match self.filling.take() {
                Some(job) => job,
                None => self.new_job()?,
            };
            let end = job.input.len().saturating_add(self.cluster_bytes);
            job.input.extend_from_slice(cluster);
            job.input.resize(end, 0);
            job.clusters.push(Cluster { guest, len: 0 });
            guest = guest.saturating_add(cluster.len() as u64);
            if job.is_full() {
                self.waiting.push_back(job);
            } else {
                self.filling = Some(job);
            }
        }
        Ok(())
    }

    fn new_job(&mut self) -> Result<Box<Squeeze>, ConvertError> {
        let mut job = match self.free.pop_back() {
            Some(job) => job,
            None => {
                self.jobs = self.jobs.saturating_add(1);
                Box::new(Squeeze::new(self.kind, self.cluster_bytes)?)
            }
        };
        job.input.clear();
        job.clusters.clear();
        job.serial = self.next.end;
        self.next.end = self.next.end.saturating_add(1);
        Ok(job)
    }

    /// No more clusters come.
    pub(crate) fn end(&mut self) {
        self.waiting.extend(self.filling.take());
    }

    /// Gives out jobs and takes back what is done; true if there was anything to do.
    pub(crate) fn work(&mut self) -> bool {
        let mut worked = false;
        while let Some(job) = self.waiting.pop_front() {
            match self.crew.submit(job) {
                Ok(()) => worked = true,
                Err(job) => {
                    self.waiting.push_front(job);
                    break;
                }
            }
        }
        // The crew has enough: one is left for this core.
        if let Some(mut job) = self.waiting.pop_front() {
            job.run();
            self.done.push_back(job);
            worked = true;
        }
        while let Some(job) = self.crew.poll() {
            self.done.push_back(job);
            worked = true;
        }
        worked
    }

    /// The next job in order, if it is done.
    pub(crate) fn next_done(&mut self) -> Option<Box<Squeeze>> {
        let next = self.next.start;
        let index = self.done.iter().position(|job| job.serial == next)?;
        self.next.start = next.saturating_add(1);
        self.done.remove(index)
    }

    /// Takes a job back whose results were used.
    pub(crate) fn give_back(&mut self, job: Box<Squeeze>) {
        self.free.push_back(job);
    }

    /// Whether all clusters have been compressed and their results used.
    pub(crate) fn is_idle(&self) -> bool {
        self.next.start == self.next.end
    }

    /// Jobs that the crew has.
    pub(crate) fn in_flight(&self) -> usize {
        self.crew.in_flight()
    }

    /// Jobs that are done wait to be taken.
    pub(crate) fn any_done(&self) -> bool {
        self.crew.any_done()
    }

    /// Waits for the crew.
    pub(crate) fn stop(&mut self) {
        while self.crew.wait().is_some() {}
    }
}
