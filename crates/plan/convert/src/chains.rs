//! Backing chains as a source.

use crate::{ReadError, Source, Span, Stream, What};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use instar_layers::{Chain, DataError, Decompress, FileOf, Run, RunKind};
use instar_storage::{Cipher, Storage};

/// What a copy onto a backing file leaves to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onto {
    /// Virtual size of the target's backing file in bytes.
    pub len_bytes: u64,
}

/// Images, each with its backing chain, one after the other.
pub struct Chains<'a, S, D> {
    chains: Vec<(u64, &'a Chain<S>)>,
    len: u64,
    onto: Option<Onto>,
    number: fn(&S) -> u16,
    codec: RefCell<D>,
}

impl<S, D> fmt::Debug for Chains<'_, S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chains")
            .field("len", &self.len)
            .field("onto", &self.onto)
            .finish_non_exhaustive()
    }
}

impl From<DataError> for ReadError {
    fn from(error: DataError) -> Self {
        Self {
            errno: error.errno(),
            notice: error.notice().map(|notice| notice.to_string()),
        }
    }
}

impl<'a, S: Storage, D: Decompress> Chains<'a, S, D> {
    /// Concatenates `chains`. `number` is a store's number in requests. With `onto`, there is one chain, and only
    /// what its top image itself holds is copied.
    pub fn new(
        chains: impl IntoIterator<Item = &'a Chain<S>>,
        onto: Option<Onto>,
        number: fn(&S) -> u16,
        codec: D,
    ) -> Self {
        let mut len = 0_u64;
        let mut placed = Vec::new();
        for chain in chains {
            placed.push((len, chain));
            len = len.saturating_add(chain.len_bytes());
        }
        Self {
            chains: placed,
            len,
            onto,
            number,
            codec: RefCell::new(codec),
        }
    }

    /// The chain that holds `offset`, the offset in it, and the bytes from there to its end.
    fn find(&self, offset: u64) -> Option<(&'a Chain<S>, u64, u64)> {
        self.chains.iter().rev().find_map(|(start, chain)| {
            let inner = offset.checked_sub(*start)?;
            let left = chain.len_bytes().checked_sub(inner)?;
            (left > 0).then_some((*chain, inner, left))
        })
    }

    /// The compressed cluster that `run` is, if it is all of it.
    fn stream(&self, chain: &Chain<S>, run: &Run) -> Option<Stream> {
        let layer = chain.layers().get(run.depth)?;
        match run.kind {
            RunKind::Compressed {
                host_offset,
                max_bytes,
                in_cluster: 0,
                cluster_len,
            } if run.len == u64::from(cluster_len) => Some(Stream {
                file: (self.number)(layer.store(FileOf::Image)),
                offset: host_offset,
                max_bytes,
                cluster_bytes: cluster_len,
                kind: layer.compression(),
            }),
            _ => None,
        }
    }

    /// The span at `offset` of a chain.
    fn span(&self, chain: &Chain<S>, offset: u64, max: u64) -> Result<Span, DataError> {
        let run = match self.onto {
            Some(_) => chain.run_at_above(offset, max, 1)?,
            None => chain.run_at(offset, max)?,
        };
        let mut len = run.len;
        let what = match run.kind {
            RunKind::Data { file, host_offset } => match chain.layers().get(run.depth) {
                Some(layer) => {
                    let hole = layer.hole_at(file, host_offset, len)?;
                    let (is_hole, here) = hole.unwrap_or((false, len));
                    len = here;
                    let (file, offset, guest) =
                        ((self.number)(layer.store(file)), host_offset, run.offset);
                    let data = if layer.cipher().is_some() {
                        What::Sealed {
                            file,
                            offset,
                            guest,
                        }
                    } else {
                        What::Data { file, offset }
                    };
                    if is_hole { What::Zero } else { data }
                }
                None => What::Packed(None),
            },
            RunKind::Compressed { .. } => What::Packed(self.stream(chain, &run)),
            RunKind::Zero { .. } => What::Zero,
            RunKind::Unallocated => What::Below,
        };
        let span = Span { len, what };
        Ok(self.onto.map_or_else(
            || left_to_none(span),
            |onto| left_to_backing(span, offset, onto, chain),
        ))
    }
}

/// A span where the target has no backing file.
const fn left_to_none(span: Span) -> Span {
    match span.what {
        What::Below => Span {
            len: span.len,
            what: What::Zero,
        },
        _ => span,
    }
}

/// A span where the target has a backing file.
///
/// What the top image does not hold is left to it, as far as the image has a backing file there itself; else it is
/// zeros. Zeros past the end of the target's backing file need not be written.
fn left_to_backing<S: Storage>(span: Span, offset: u64, onto: Onto, chain: &Chain<S>) -> Span {
    let below = chain.layers().get(1).map_or(0, |layer| layer.len_bytes());
    let cut = |at: u64| match at.checked_sub(offset) {
        Some(left) if left > 0 => span.len.min(left),
        _ => span.len,
    };
    let past = offset >= onto.len_bytes;
    match span.what {
        What::Zero | What::Below if past => Span {
            len: span.len,
            what: What::Below,
        },
        What::Below if offset >= below => Span {
            len: cut(onto.len_bytes),
            what: What::Zero,
        },
        What::Below => Span {
            len: cut(below),
            what: What::Below,
        },
        What::Zero => Span {
            len: cut(onto.len_bytes),
            what: What::Zero,
        },
        What::Data { .. } | What::Sealed { .. } | What::Packed(_) => span,
    }
}

impl<S: Storage, D: Decompress> Source for Chains<'_, S, D> {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn span_at(&self, offset: u64, max: u64) -> Result<Span, ReadError> {
        let Some((chain, inner, left)) = self.find(offset) else {
            return Ok(Span {
                len: max.max(1),
                what: What::Zero,
            });
        };
        Ok(self.span(chain, inner, max.min(left))?)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut codec = self.codec.borrow_mut();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let Some((chain, inner, left)) = self.find(at) else {
                rest.fill(0);
                break;
            };
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            chain.read_at(inner, now, &mut *codec)?;
            at = at.saturating_add(len as u64);
            rest = later;
        }
        Ok(())
    }

    fn cipher(&self, file: u16) -> Option<&'static dyn Cipher> {
        let layers = self.chains.iter().flat_map(|(_, chain)| chain.layers());
        let mut owners = layers.filter(|layer| {
            let store = layer.store(layer.data_file_of());
            (self.number)(store) == file
        });
        owners.next()?.cipher()
    }
}
