//! How a request goes on: what it moves by itself, what it asks first, and what its end leaves to be asked.

use super::{LiveBackend, LiveFile};
use crate::block::{HostFile, Work};
use crate::live::map::part;
use crate::live::request::{Do, Request};
use crate::live::source::{
    Extent, ExtentKind, MAX_ALLOCATE_BYTES, MAX_FETCH_BYTES, Question, Questions,
};
use instar_devices::blk::{Completion, Errno};
use std::sync::Arc;

impl<Q: Questions> LiveBackend<Q> {
    /// Whether where the request's clusters are is another place when it is done.
    pub(super) fn changes_map(&mut self, request: &Request) -> bool {
        match request.what {
            Do::Read | Do::Flush => false,
            Do::Discard | Do::WriteZeroes { .. } => true,
            Do::Write => {
                let mut at = request.start;
                while at < request.end {
                    match self.map.get(at) {
                        Some(extent) if is_in_place(&extent) => at = extent.end(),
                        _ => return true,
                    }
                }
                false
            }
        }
    }

    pub(super) fn advance(&mut self, id: u64, request: &mut Request) {
        if request.error.is_some() {
            return;
        }
        match request.what {
            Do::Read => self.read(id, request),
            Do::Write if request.exclusive => self.write_new(id, request),
            Do::Write => self.overwrite(id, request),
            Do::Discard | Do::WriteZeroes { .. } => self.change(id, request),
            Do::Flush => self.flush(id, request),
        }
    }

    fn read(&mut self, id: u64, request: &mut Request) {
        while request.cursor < request.end && request.error.is_none() {
            let (at, rest) = (request.cursor, request.rest());
            let Some(extent) = self.map.get(at).and_then(|e| part(e, at, request.end)) else {
                if !std::mem::replace(&mut request.looking, true) {
                    let question = Question::Lookup {
                        start: at,
                        len: rest,
                    };
                    self.ask(id, request, question);
                }
                return;
            };
            let len = match extent.kind {
                ExtentKind::Fetch => extent.len.min(MAX_FETCH_BYTES),
                _ => extent.len,
            };
            match extent.kind {
                ExtentKind::Fetch => self.ask(id, request, Question::Fetch { start: at, len }),
                ExtentKind::Zero => self.zero(request, at, len),
                ExtentKind::Data { file, offset, .. } => {
                    self.transfer(id, request, (at, len), (file, offset));
                }
            }
            request.cursor = at.saturating_add(len);
        }
    }

    /// All of it is known to be written in place.
    fn overwrite(&mut self, id: u64, request: &mut Request) {
        while request.cursor < request.end && request.error.is_none() {
            let at = request.cursor;
            let extent = self.map.get(at).and_then(|e| part(e, at, request.end));
            let Some(extent) = extent.filter(is_in_place) else {
                request.fail(Errno::EIO);
                return;
            };
            if let ExtentKind::Data { file, offset, .. } = extent.kind {
                self.transfer(id, request, (at, extent.len), (file, offset));
            }
            request.cursor = extent.end();
        }
    }

    /// Asks for clusters, for one stretch after the other.
    fn write_new(&mut self, id: u64, request: &mut Request) {
        if request.cursor < request.end && request.asked == 0 {
            let (start, len) = (request.cursor, request.rest().min(MAX_ALLOCATE_BYTES));
            request.cursor = start.saturating_add(len);
            self.ask(id, request, Question::Allocate { start, len });
        }
    }

    /// Writes `start..end` of a request where the source said.
    pub(super) fn place(
        &mut self,
        id: u64,
        request: &mut Request,
        (start, end): (u64, u64),
        extents: &[Extent],
    ) {
        for extent in extents
            .iter()
            .filter_map(|extent| part(*extent, start, end))
        {
            if let ExtentKind::Data { file, offset, .. } = extent.kind {
                self.transfer(id, request, (extent.start, extent.len), (file, offset));
            }
        }
    }

    fn change(&mut self, id: u64, request: &mut Request) {
        if request.cursor < request.end {
            let (start, len) = (request.cursor, request.rest());
            request.cursor = request.end;
            let question = match request.what {
                Do::WriteZeroes { unmap } => Question::WriteZeroes { start, len, unmap },
                _ => Question::Discard { start, len },
            };
            self.ask(id, request, question);
        }
    }

    /// Data first, then, if anything has changed in the map, what the source has.
    fn flush(&mut self, id: u64, request: &mut Request) {
        if request.stage == 0 {
            request.stage = 1;
            let writable = |file: &&LiveFile| file.window.writable;
            let files = self.parts.files.iter().flatten().filter(writable);
            let files: Vec<Arc<HostFile>> = files.map(|file| Arc::clone(&file.file)).collect();
            for file in files {
                self.hand_over(id, request, file, Work::Sync, false);
            }
        }
        if request.stage == 1 && !request.has_parts() && self.changes != self.flushed {
            request.stage = 2;
            request.flushes = self.changes;
            self.ask(id, request, Question::Flush);
        }
    }

    /// Links what was written, or gives it back.
    pub(super) fn finish(&mut self, request: Request) -> Completion {
        let failed = request.error.is_some();
        for ticket in &request.tickets {
            self.changes = self.changes.saturating_add(1);
            let question = if failed {
                Question::Abandon { ticket: *ticket }
            } else {
                Question::Link { ticket: *ticket }
            };
            self.questions.ask(None, question);
        }
        if !failed {
            for extent in &request.placed {
                self.stale.changed(extent.start, extent.end());
                self.map.insert(*extent);
            }
        }
        let filled = match request.what {
            Do::Read => u32::try_from(request.end.saturating_sub(request.start)),
            _ => Ok(0),
        };
        Completion {
            result: request
                .error
                .map_or_else(|| filled.map_err(|_| Errno::EIO), Err),
        }
    }
}

const fn is_in_place(extent: &Extent) -> bool {
    matches!(extent.kind, ExtentKind::Data { in_place: true, .. })
}
