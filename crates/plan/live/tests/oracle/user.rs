//! Who uses a live image: moves the data, as the image says where.

use crate::image::{BASE, DATA, IMAGE, Live, Store, open};
use instar_plan_live::{ExtentKind, Extents, LiveError};
use instar_storage::{MemStorage, Storage};
use instar_tests::judge::load;
use instar_tests::kinds::SIZE;
use instar_tests::rng::Rng;
use std::path::Path;

/// A write whose ticket is open.
pub struct Open {
    ticket: u32,
    at: u64,
    bytes: Vec<u8>,
    /// The clusters: start and end.
    clusters: (u64, u64),
}

/// A disk in use, and what it has to hold.
pub struct User<'a, S> {
    pub live: Live<'a, S>,
    files: (&'a S, Option<&'a S>),
    base: Option<MemStorage>,
    pub model: Vec<u8>,
    pub open: Vec<Open>,
    /// Bytes may be in place while their ticket is open: only a bitmap has yet to hear of them.
    shows_early: bool,
    found: Extents,
}

impl<'a, S: Store> User<'a, S> {
    /// Opens the image in `dir`, which has `model` as content.
    pub fn new(dir: &Path, files: (&'a S, Option<&'a S>), model: Vec<u8>, what: &[&str]) -> Self {
        let name = match what.first() {
            Some(&"backing") => Some("base.raw"),
            Some(&"compressed backing") => Some("base.qcow2"),
            _ => None,
        };
        Self {
            live: open(dir, files.0, files.1),
            files,
            base: name.map(|name| load(&dir.join(name))),
            model,
            open: Vec::new(),
            shows_early: what.contains(&"bitmap"),
            found: Extents::default(),
        }
    }

    /// Reads what is at `at`, as the image says where.
    pub fn read(&mut self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0xee; len as usize];
        let (mut from, end) = (at, at + len);
        while from < end {
            self.live.lookup(from, end - from, &mut self.found).unwrap();
            assert!(self.found.start <= from && self.found.end() > from);
            assert!(self.found.end() <= SIZE);
            let mut start = self.found.start;
            for extent in self.found.list.clone() {
                assert!(extent.len > 0 && extent.len % 512 == 0);
                let (low, high) = (start.max(from), (start + extent.len).min(end));
                if low < high {
                    let buf = &mut bytes[(low - at) as usize..(high - at) as usize];
                    self.read_extent(extent.kind, low - start, low, buf);
                }
                start += extent.len;
            }
            from = self.found.end().min(end);
        }
        bytes
    }

    fn read_extent(&mut self, kind: ExtentKind, skip: u64, guest: u64, buf: &mut [u8]) {
        match kind {
            ExtentKind::Data { file, offset, .. } => {
                let at = offset + skip;
                match file {
                    IMAGE => self.files.0.read_at(at, buf).unwrap(),
                    DATA => self.files.1.unwrap().read_at(at, buf).unwrap(),
                    BASE => self.base.as_ref().unwrap().read_at(at, buf).unwrap(),
                    _ => panic!("file {file}"),
                }
            }
            ExtentKind::Zero => buf.fill(0),
            ExtentKind::Fetch => self.live.fetch(guest, buf).unwrap(),
        }
    }

    fn store(&self, kind: ExtentKind, skip: u64, bytes: &[u8]) {
        let ExtentKind::Data {
            file,
            offset,
            in_place: true,
        } = kind
        else {
            panic!("{kind:?} is not to be written");
        };
        let file = match file {
            IMAGE => self.files.0,
            DATA => self.files.1.unwrap(),
            _ => panic!("file {file} is written to"),
        };
        file.write_at(offset + skip, bytes).unwrap();
    }

    /// Writes what may be written in place, and returns how much that was.
    fn write_in_place(&mut self, at: u64, bytes: &[u8]) -> u64 {
        self.live
            .lookup(at, bytes.len() as u64, &mut self.found)
            .unwrap();
        let mut start = self.found.start;
        let mut done = 0;
        for extent in self.found.list.clone() {
            let end = start + extent.len;
            let ours = matches!(extent.kind, ExtentKind::Data { in_place: true, .. });
            let (low, high) = (start.max(at), end.min(at + bytes.len() as u64));
            if !ours || low >= high {
                if low < high {
                    break;
                }
            } else {
                let part = &bytes[(low - at) as usize..(high - at) as usize];
                self.store(extent.kind, low - start, part);
                self.model[low as usize..high as usize].copy_from_slice(part);
                done = high - at;
            }
            start = end;
        }
        done
    }

    /// How many of the bytes at `at` may not be written in place.
    fn not_in_place(&mut self, at: u64, len: u64) -> u64 {
        self.live.lookup(at, len, &mut self.found).unwrap();
        let mut end = self.found.start;
        for extent in &self.found.list {
            if matches!(extent.kind, ExtentKind::Data { in_place: true, .. }) {
                break;
            }
            end += extent.len;
        }
        (end - at).min(len)
    }

    /// Begins a write: what is in place is done, for the stretch behind it there is a ticket. None if the clusters are
    /// busy.
    pub fn begin(&mut self, at: u64, bytes: &[u8]) -> Option<Open> {
        let done = self.write_in_place(at, bytes);
        let (at, bytes) = (at + done, &bytes[done as usize..]);
        if bytes.is_empty() {
            return None;
        }
        let len = self.not_in_place(at, bytes.len() as u64);
        let bytes = &bytes[..len as usize];
        let cluster = self.live.cluster_bytes();
        let clusters = (at / cluster * cluster, (at + len).next_multiple_of(cluster));
        let busy = |open: &Open| open.clusters.0 < clusters.1 && clusters.0 < open.clusters.1;
        let given = self.live.allocate(at, len, &mut self.found);
        if self.open.iter().any(busy) {
            assert!(matches!(given, Err(LiveError::Busy)), "{given:?}");
            return None;
        }
        let ticket = given.unwrap_or_else(|e| panic!("{at}+{len}: {e:?}"));
        assert!(self.found.start <= at && self.found.end() >= at + len);
        assert!(self.found.start >= clusters.0 && self.found.end() <= clusters.1);
        let mut start = self.found.start;
        for extent in self.found.list.clone() {
            let (low, high) = (start.max(at), (start + extent.len).min(at + len));
            if low < high {
                let part = &bytes[(low - at) as usize..(high - at) as usize];
                self.store(extent.kind, low - start, part);
            }
            start += extent.len;
        }
        let open = Open {
            ticket,
            at,
            bytes: bytes.to_vec(),
            clusters,
        };
        if ticket == 0 {
            self.wrote(&open);
            return None;
        }
        Some(open)
    }

    fn wrote(&mut self, open: &Open) {
        self.model[open.at as usize..][..open.bytes.len()].copy_from_slice(&open.bytes);
    }

    /// Ends a write, or has it never been.
    pub fn end(&mut self, open: &Open, link: bool) {
        if link {
            self.live.link(open.ticket).unwrap();
            self.wrote(open);
        } else {
            self.live.abandon(open.ticket).unwrap();
            // Where only a bitmap had to hear of it, the bytes are there all the same.
            let now = self.read(open.at, open.bytes.len() as u64);
            let range = open.at as usize..open.at as usize + now.len();
            let old = &self.model[range.clone()];
            let shown = |index: usize, byte: u8| self.shows_early && byte == open.bytes[index];
            let mut bytes = now.iter().zip(old).enumerate();
            let fits = bytes.all(|(index, (now, old))| now == old || shown(index, *now));
            assert!(fits, "abandoned bytes are there");
            self.model[range].copy_from_slice(&now);
        }
        assert_eq!(self.live.link(open.ticket), Err(LiveError::NoTicket));
    }

    /// Zeros, in one of three ways; nothing if the clusters are busy.
    pub fn zeros(&mut self, rng: &mut Rng, at: u64, len: u64) {
        let way = rng.below(3);
        let done = match way {
            0 => self.live.discard(at, len),
            way => self.live.write_zeroes(at, len, way == 1),
        };
        if done == Err(LiveError::Busy) {
            return;
        }
        done.unwrap();
        let range = at as usize..(at + len) as usize;
        if way > 0 {
            self.model[range].fill(0);
            return;
        }
        // A discard may do nothing.
        let now = self.read(at, len);
        let old = &self.model[range.clone()];
        let fits = now
            .iter()
            .zip(old)
            .all(|(now, old)| *now == 0 || now == old);
        assert!(fits, "a discard changes bytes to others than zeros");
        self.model[range].copy_from_slice(&now);
    }

    /// Its user's data comes first.
    pub fn flush(&mut self) {
        self.files.0.flush().unwrap();
        if let Some(data) = self.files.1 {
            data.flush().unwrap();
        }
        self.live.flush().unwrap();
    }

    /// Reads all and compares.
    pub fn compare(&mut self, what: &dyn std::fmt::Debug) {
        if self.shows_early && !self.open.is_empty() {
            return;
        }
        let now = self.read(0, SIZE);
        let differs = now.iter().zip(&self.model).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what:?}");
    }

    /// Ends all writes, and closes the image.
    pub fn close(mut self) -> Vec<u8> {
        for open in std::mem::take(&mut self.open) {
            self.end(&open, true);
        }
        self.live.close().unwrap();
        self.model
    }
}
