use super::*;
use crate::bell::Bell;
use crate::threads::Confine;
use instar_devices::blk::GuestBuffer;
use instar_shared::layout::HEAP_START;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use vm_memory::GuestAddress;

const LIMITS: ChangeLimits = ChangeLimits {
    read_only: false,
    block_device: false,
    max_len_bytes: 1 << 40,
};

struct Bed {
    slot: Arc<GuestSlot>,
    file: File,
    backend: FileBackend,
}

fn buffer(at: u64, len: u32) -> GuestBuffer {
    GuestBuffer {
        addr: GuestAddress(HEAP_START + at),
        len,
    }
}

fn backend(file: File, slot: &Arc<GuestSlot>, limits: ChangeLimits) -> FileBackend {
    let shared = Shared {
        files: Files::default(),
        pool: None,
        handover: Handover::Operation,
    };
    FileBackend::new(0, file, Arc::clone(slot), limits, shared)
}

impl Bed {
    fn new(limits: ChangeLimits, content: &[u8]) -> Self {
        let slot = GuestSlot::new(64 << 20).unwrap();
        // In the build folder, which is on a real file system.
        let this = std::env::current_exe().unwrap();
        let mut file = tempfile::tempfile_in(this.parent().unwrap()).unwrap();
        file.write_all(content).unwrap();
        let backend = backend(file.try_clone().unwrap(), &slot, limits);
        Self {
            slot,
            file,
            backend,
        }
    }

    /// Does a request to its end, as the machine's wait does; says how often it waited.
    fn run(&mut self, kind: IoKind, buffers: Vec<GuestBuffer>) -> (Result<u32, Errno>, u32) {
        let mut waits = 0;
        match self.backend.submit(7, IoRequest { kind, buffers }) {
            Submission::Done(completion) => (completion.result, waits),
            Submission::Pending => loop {
                waits += 1;
                assert!(self.backend.poll().is_none(), "it may not sleep yet");
                assert!(self.backend.allow_sleep());
                if let Some((token, completion)) = self.backend.poll() {
                    assert_eq!(token, 7);
                    assert!(!self.backend.allow_sleep(), "nothing is left");
                    return (completion.result, waits);
                }
            },
        }
    }

    fn change(&mut self, kind: IoKind) -> Result<u32, Errno> {
        self.run(kind, Vec::new()).0
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.file.metadata().unwrap().len()).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

#[test]
fn writes_are_gathered_and_grow_the_file() {
    let mut bed = Bed::new(LIMITS, b"0123456789");
    bed.slot.write(HEAP_START, b"abcdef").unwrap();
    bed.slot.write(HEAP_START + 100, b"ghi").unwrap();
    let buffers = vec![buffer(1, 4), buffer(100, 3)];
    let (result, _) = bed.run(IoKind::Write { offset: 8 }, buffers);
    assert_eq!(result, Ok(0));
    assert_eq!(bed.content(), b"01234567bcdeghi");
    assert_eq!(bed.change(IoKind::Flush), Ok(0));
    // More vectors than one call takes.
    let many = (0..3000).map(|_| buffer(2, 2)).collect();
    assert_eq!(bed.run(IoKind::Write { offset: 0 }, many).0, Ok(0));
    assert_eq!(bed.content(), b"cd".repeat(3000));
}

#[test]
fn nothing_passes_the_limit_and_nothing_changes_a_read_only_file() {
    let limits = ChangeLimits {
        max_len_bytes: 10,
        ..LIMITS
    };
    let read_only = ChangeLimits {
        read_only: true,
        ..LIMITS
    };
    for (limits, expected) in [(limits, Errno::EFBIG), (read_only, Errno::EROFS)] {
        let mut bed = Bed::new(limits, b"12345678");
        let far = i64::MAX as u64;
        let write = |offset| (IoKind::Write { offset }, vec![buffer(0, 4)]);
        let none = |kind| (kind, Vec::new());
        let zeroes = |offset, len, unmap| none(IoKind::WriteZeroes { offset, len, unmap });
        let allocate = |offset, len, zeros| none(IoKind::Allocate { offset, len, zeros });
        for (kind, buffers) in [
            write(7),
            write(far - 4),
            zeroes(10, 1, true),
            zeroes(0, far, true),
            zeroes(u64::MAX, u64::MAX, false),
            allocate(7, 4, false),
            allocate(0, far, true),
            none(IoKind::SetLength { len: 11 }),
            none(IoKind::SetLength { len: far }),
        ] {
            assert_eq!(bed.run(kind, buffers).0, Err(expected), "{kind:?}");
        }
        assert_eq!(bed.content(), b"12345678");
        assert_eq!(bed.change(IoKind::Flush), Ok(0));
    }
    let mut bed = Bed::new(limits, b"12345678");
    let (result, _) = bed.run(IoKind::Write { offset: 6 }, vec![buffer(0, 4)]);
    assert_eq!(result, Ok(0), "up to the limit");
    assert_eq!(bed.change(IoKind::SetLength { len: 3 }), Ok(0));
    assert_eq!(bed.content(), b"123");
}

#[test]
fn limit_can_be_widened() {
    let limits = ChangeLimits {
        max_len_bytes: 0,
        ..LIMITS
    };
    let mut bed = Bed::new(limits, b"");
    let write = || (IoKind::Write { offset: 0 }, vec![buffer(0, 4)]);
    let (kind, buffers) = write();
    assert_eq!(bed.run(kind, buffers).0, Err(Errno::EFBIG));
    bed.backend.set_max_len(4);
    let (kind, buffers) = write();
    assert_eq!(bed.run(kind, buffers).0, Ok(0));
    assert_eq!(bed.change(IoKind::SetLength { len: 5 }), Err(Errno::EFBIG));
    assert_eq!(bed.content().len(), 4);
}

#[test]
fn zeroes_and_discards_make_holes_and_zeroes_grow_the_file() {
    const LEN: usize = 256 << 10;
    for unmap in [true, false] {
        let mut bed = Bed::new(LIMITS, &[0xaa; LEN]);
        bed.file.sync_all().unwrap();
        let (offset, len) = (65_537, 131_072);
        assert_eq!(
            bed.change(IoKind::WriteZeroes { offset, len, unmap }),
            Ok(0)
        );
        let mut expected = vec![0xaa; LEN];
        expected[65_537..65_537 + 131_072].fill(0);
        assert_eq!(bed.content(), expected);
        let blocks = bed.file.metadata().unwrap().blocks();
        assert!(!unmap || blocks < 300, "no hole: {blocks} blocks");

        let offset = LEN as u64 - 5;
        assert_eq!(
            bed.change(IoKind::WriteZeroes { offset, len, unmap }),
            Ok(0)
        );
        expected[LEN - 5..].fill(0);
        expected.resize(LEN - 5 + 131_072, 0);
        assert_eq!(bed.content(), expected);
        // Wholly past the end, and beyond what any disk has.
        let (offset, len) = (1 << 39, 1 << 39);
        assert_eq!(
            bed.change(IoKind::WriteZeroes { offset, len, unmap }),
            Ok(0)
        );
        assert_eq!(bed.file.metadata().unwrap().len(), 1 << 40);
    }
    let mut bed = Bed::new(LIMITS, &[0xaa; LEN]);
    for (offset, len) in [
        (4096, 65_536),
        (0, 0),
        (1 << 50, 1 << 50),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(bed.change(IoKind::Discard { offset, len }), Ok(0));
    }
    assert_eq!(bed.content().len(), LEN);
    assert_eq!(bed.content()[..4096], [0xaa; 4096]);
    assert_eq!(bed.content()[69_632..], [0xaa; LEN - 69_632]);
}

#[test]
fn space_is_reserved_and_long_zeros_are_written_in_pieces() {
    let mut bed = Bed::new(LIMITS, b"kept");
    let reserve = |zeros, offset, len| IoKind::Allocate { offset, len, zeros };
    assert_eq!(bed.change(reserve(false, 0, 1 << 20)), Ok(0));
    assert_eq!(bed.file.metadata().unwrap().len(), 1 << 20);
    assert!(bed.file.metadata().unwrap().blocks() >= 2048);
    assert_eq!(bed.content()[..5], *b"kept\0");

    let len = 100 << 20;
    let (result, waits) = bed.run(reserve(true, 2, len), Vec::new());
    assert_eq!(result, Ok(0));
    assert!(waits > 0, "limits are looked at in between");
    let metadata = bed.file.metadata().unwrap();
    assert_eq!(metadata.len(), len + 2);
    assert!(metadata.blocks() >= len / 512);
    assert_eq!(bed.content()[..4], *b"ke\0\0");
}

#[test]
fn a_device_keeps_its_length() {
    let limits = ChangeLimits {
        block_device: true,
        ..LIMITS
    };
    // A file stands for the device: its calls are refused, as by a device without them.
    let mut bed = Bed::new(limits, &[0xaa; 20_000]);
    let (offset, zeros, unmap) = (0, false, true);
    let len = 8192;
    assert_eq!(bed.change(IoKind::SetLength { len: 20_000 }), Ok(0));
    assert_eq!(bed.change(IoKind::SetLength { len }), Err(Errno::EINVAL));
    let allocate = IoKind::Allocate { offset, len, zeros };
    assert_eq!(bed.change(allocate), Err(Errno::EOPNOTSUPP));
    let past = IoKind::WriteZeroes {
        offset: 19_999,
        len: 2,
        unmap,
    };
    assert_eq!(bed.change(past), Err(Errno(28)));
    let (offset, len) = (3, 10_000);
    assert_eq!(bed.change(IoKind::Discard { offset, len }), Ok(0));
    assert_eq!(bed.content(), [0xaa; 20_000]);
    assert_eq!(
        bed.change(IoKind::WriteZeroes { offset, len, unmap }),
        Ok(0)
    );
    let mut expected = vec![0xaa; 20_000];
    expected[3..10_003].fill(0);
    assert_eq!(bed.content(), expected);
}

#[test]
fn what_the_host_says_reaches_the_guest() {
    let mut bed = Bed::new(LIMITS, b"");
    let read_only = File::open("/dev/null").unwrap();
    bed.backend = backend(read_only, &bed.slot, LIMITS);
    let (result, _) = bed.run(IoKind::Write { offset: 0 }, vec![buffer(0, 4)]);
    assert_eq!(result, Err(Errno(9)), "EBADF");
    assert_eq!(bed.change(IoKind::SetLength { len: 1 }), Err(Errno::EINVAL));
    let full = File::options().write(true).open("/dev/full").unwrap();
    bed.backend = backend(full, &bed.slot, LIMITS);
    let (result, _) = bed.run(IoKind::Write { offset: 0 }, vec![buffer(0, 4)]);
    assert_eq!(result, Err(Errno(28)), "ENOSPC");
    assert_eq!(bed.change(IoKind::Flush), Err(Errno::EINVAL));
}

/// A bed whose long requests go to threads, and where those report.
fn with_threads() -> (Bed, Arc<Bell>) {
    let mut bed = Bed::new(LIMITS, b"");
    let bell = Arc::new(Bell::new(0));
    let pool = IoPool::new(bell.clone());
    pool.start(2, &(Arc::new(|_| Ok(())) as Confine)).unwrap();
    let shared = Shared {
        files: Files::default(),
        pool: Some(Arc::new(pool)),
        handover: Handover::Operation,
    };
    let file = bed.file.try_clone().unwrap();
    bed.backend = FileBackend::new(0, file, Arc::clone(&bed.slot), LIMITS, shared);
    (bed, bell)
}

/// Polls all requests that threads have; their results by token.
fn finish(bed: &mut Bed, bell: &Bell) -> BTreeMap<Token, Result<u32, Errno>> {
    let mut results = BTreeMap::new();
    while bed.backend.on_threads() > 0 {
        for done in bell.wait(Duration::from_secs(60), true).finished {
            bed.backend.take_finished(done.token, done.completion);
            let (token, completion) = bed.backend.poll().unwrap();
            assert!(results.insert(token, completion.result).is_none());
        }
    }
    assert!(bed.backend.poll().is_none());
    results
}

#[test]
fn long_requests_go_to_threads_and_short_ones_do_not() {
    let (mut bed, bell) = with_threads();
    bed.slot.write(HEAP_START, &[7; 1 << 16]).unwrap();
    let write = |offset, len| IoRequest {
        kind: IoKind::Write { offset },
        buffers: vec![buffer(0, len)],
    };
    for token in 0..20 {
        let long = write(token << 16, 1 << 16);
        assert_eq!(bed.backend.submit(token, long), Submission::Pending);
    }
    assert_eq!(bed.backend.submit(99, write(20 << 16, 100)), done(0));
    let results = finish(&mut bed, &bell);
    assert_eq!(results.len(), 20);
    assert!(results.values().all(|result| *result == Ok(0)));
    assert!(bed.content() == vec![7; (20 << 16) + 100]);
    let flush = IoRequest {
        kind: IoKind::Flush,
        buffers: Vec::new(),
    };
    assert_eq!(bed.backend.submit(5, flush), Submission::Pending);
    assert_eq!(finish(&mut bed, &bell), BTreeMap::from([(5, Ok(0))]));
}

/// Zeros that make the file longer never make it shorter than a write on a thread has made it meanwhile.
#[test]
fn zeros_past_the_end_do_not_cut_what_threads_write() {
    let (mut bed, bell) = with_threads();
    bed.slot.write(HEAP_START, &[7; 1 << 16]).unwrap();
    for round in 0..200_u64 {
        let start = round << 18;
        let write = IoRequest {
            kind: IoKind::Write {
                offset: start + (1 << 17),
            },
            buffers: vec![buffer(0, 1 << 16)],
        };
        let zeros = IoRequest {
            kind: IoKind::WriteZeroes {
                offset: start,
                len: 1 << 17,
                unmap: true,
            },
            buffers: Vec::new(),
        };
        bed.backend.submit(0, write);
        bed.backend.submit(1, zeros);
        assert!(finish(&mut bed, &bell).values().all(Result::is_ok));
        let mut seen = vec![0; 3 << 16];
        bed.file.read_exact_at(&mut seen, start).unwrap();
        assert!(seen[..1 << 17].iter().all(|byte| *byte == 0), "{round}");
        assert!(seen[1 << 17..].iter().all(|byte| *byte == 7), "{round}");
    }
}
