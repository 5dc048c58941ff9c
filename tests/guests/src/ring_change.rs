//! Requests that change slot 0, well-formed and not.

use crate::control::store;
use crate::ring::{DATA, DATA_BYTES, Request, base, load};
use crate::{check, fail};
use instar_guest_ops::Context;
use instar_shared::blk::{RANGE_WRITE_ZEROS, RangeArg, RequestType, Status, VendorFooter};
use instar_shared::layout::SYSTEM;
use instar_test_guests::{Case, WRITE_LIMIT};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

const RANGE_BYTES: u32 = size_of::<RangeArg>() as u32;
const FAR: u64 = i64::MAX as u64;

const EINVAL: u32 = 22;
const EFBIG: u32 = 27;
const EROFS: u32 = 30;

/// The requests with a range.
const RANGES: [RequestType; 3] = [
    RequestType::Allocate,
    RequestType::DiscardBytes,
    RequestType::ZeroBytes,
];

/// The driver: how many requests were sent.
#[derive(Default)]
struct Driver {
    sent: u16,
}

impl Driver {
    /// Sends a request and returns its errno, 0 if it was done.
    fn send(&mut self, request: &Request) -> u32 {
        let footer: VendorFooter = request.answer_after(self.sent);
        self.sent = self.sent.wrapping_add(1);
        let done = footer.status == Status::Ok.raw();
        let failed = footer.status == Status::IoErr.raw() && footer.errno.get() != 0;
        check(done || failed, "another status");
        check(footer.reserved == [0; 3], "rubbish in the footer");
        footer.errno.get()
    }

    fn data(&mut self, kind: RequestType, start: u64, len: u32) -> u32 {
        self.send(&Request::change(kind, start, DATA, len))
    }

    fn range(&mut self, kind: RequestType, start: u64, len: u64, flags: u64) -> u32 {
        let arg = RangeArg {
            len: U64::new(len),
            flags: U64::new(flags),
        };
        store(DATA, arg.as_bytes());
        self.data(kind, start, RANGE_BYTES)
    }
}

pub(crate) fn run(ctx: &mut Context, case: Case) {
    let mut driver = Driver::default();
    match case {
        Case::ChangeReadOnly => read_only(&mut driver),
        Case::ChangePastLimit => past_limit(&mut driver),
        Case::ChangeLengths => lengths(&mut driver),
        Case::ChangeRanges => ranges(&mut driver),
        Case::ChangeAll => all(&mut driver),
        Case::WriteDirection => {
            let mut request = Request::change(RequestType::WriteBytes, 0, DATA, DATA_BYTES);
            request.turn();
            request.send(0);
            fail("the host took the chain");
        }
        Case::WriteFromPageTables => {
            Request::change(RequestType::WriteBytes, 0, SYSTEM.start, DATA_BYTES).send(0);
            fail("the host took the chain");
        }
        Case::WriteFromQueue => {
            let request = Request::change(RequestType::WriteBytes, 0, base(), 8192);
            check(driver.send(&request) == 0, "a write failed");
        }
        Case::ZerosForever => {
            let kind = RequestType::Allocate;
            driver.range(kind, 0, 1 << 50, RANGE_WRITE_ZEROS);
            fail("1 PiB was written");
        }
        _ => rubbish(&mut driver, ctx.boot().entropy),
    }
}

fn read_only(driver: &mut Driver) {
    let refused = |errno| check(errno == EROFS, "a read-only disk was changed");
    refused(driver.data(RequestType::WriteBytes, 0, DATA_BYTES));
    refused(driver.data(RequestType::SetLength, 0, 0));
    for kind in RANGES {
        refused(driver.range(kind, 0, 4096, 0));
    }
    refused(driver.range(RequestType::Allocate, 0, 4096, RANGE_WRITE_ZEROS));
    let footer: VendorFooter =
        Request::change(RequestType::Sync, 0, DATA, 0).answer_after(driver.sent);
    check(
        footer.status == Status::Unsupported.raw(),
        "a flush of what cannot be written",
    );
}

fn past_limit(driver: &mut Driver) {
    let refused = |errno| check(errno == EFBIG, "a change passed the limit");
    for start in [WRITE_LIMIT - 4095, WRITE_LIMIT, 1 << 40, FAR - 4096] {
        refused(driver.data(RequestType::WriteBytes, start, DATA_BYTES));
        refused(driver.range(RequestType::ZeroBytes, start, 4096, 0));
        refused(driver.range(RequestType::Allocate, start, 4096, 0));
        refused(driver.range(RequestType::Allocate, start, 4096, RANGE_WRITE_ZEROS));
    }
    for len in [WRITE_LIMIT + 1, 1 << 50, FAR] {
        refused(driver.data(RequestType::SetLength, len, 0));
        refused(driver.range(RequestType::ZeroBytes, 0, len, 0));
        refused(driver.range(RequestType::Allocate, 0, len, 0));
        refused(driver.range(RequestType::Allocate, 0, len, RANGE_WRITE_ZEROS));
    }
    let last = WRITE_LIMIT - u64::from(DATA_BYTES);
    let errno = driver.data(RequestType::WriteBytes, last, DATA_BYTES);
    check(errno == 0, "the last bytes cannot be written");
}

fn lengths(driver: &mut Driver) {
    let refused = |errno| check(errno == EINVAL, "a request of another length was done");
    refused(driver.data(RequestType::WriteBytes, 0, 0));
    refused(driver.data(RequestType::SetLength, 0, 1));
    refused(driver.data(RequestType::SetLength, 0, RANGE_BYTES));
    for kind in RANGES {
        for len in [0, RANGE_BYTES - 1, RANGE_BYTES + 1, DATA_BYTES] {
            refused(driver.data(kind, 0, len));
        }
    }
}

fn ranges(driver: &mut Driver) {
    let refused = |errno| check(errno == EINVAL, "a range that cannot be was taken");
    for kind in RANGES {
        for (start, len) in [
            (0, 0),
            (u64::MAX, 1),
            (1, u64::MAX),
            (FAR, 1),
            (1, FAR),
            (FAR + 1, 0),
        ] {
            refused(driver.range(kind, start, len, 0));
        }
        for flags in [2, 3, 1 << 63, u64::MAX] {
            refused(driver.range(kind, 0, 4096, flags));
        }
    }
    refused(driver.range(RequestType::ZeroBytes, 0, 4096, RANGE_WRITE_ZEROS));
    refused(driver.range(RequestType::DiscardBytes, 0, 4096, RANGE_WRITE_ZEROS));
    refused(driver.data(RequestType::WriteBytes, u64::MAX, DATA_BYTES));
    refused(driver.data(RequestType::WriteBytes, FAR - 4095, DATA_BYTES));
    refused(driver.data(RequestType::SetLength, FAR + 1, 0));
    refused(driver.data(RequestType::SetLength, u64::MAX, 0));
    let mut request = Request::change(RequestType::SetLength, 0, DATA, 0);
    request.reserved = 1;
    refused(driver.send(&request));
}

fn all(driver: &mut Driver) {
    let done = |errno| check(errno == 0, "a change failed");
    done(driver.range(RequestType::DiscardBytes, 0, FAR, 0));
    done(driver.range(RequestType::DiscardBytes, FAR - 1, 1, 0));
    done(driver.data(RequestType::SetLength, 0, 0));
    done(driver.range(RequestType::DiscardBytes, 0, 1, 0));
    done(driver.range(RequestType::ZeroBytes, 0, WRITE_LIMIT, 0));
    done(driver.range(RequestType::Allocate, 0, WRITE_LIMIT, 0));
    done(driver.range(RequestType::Allocate, 0, WRITE_LIMIT, RANGE_WRITE_ZEROS));
    done(driver.range(RequestType::ZeroBytes, 0, WRITE_LIMIT, 0));
    done(driver.data(RequestType::Sync, u64::MAX, 0));
    store(DATA, &[0xff; 8]);
    let mut read = Request::change(RequestType::ReadBytes, WRITE_LIMIT - 8, DATA, 8);
    read.turn();
    check(driver.send(&read) == 0, "the end cannot be read");
    check(load::<u64>(DATA) == 0, "zeroes are not zeros");
}

/// Requests of all kinds at places around the limit and far from it. Any answer will do.
fn rubbish(driver: &mut Driver, entropy: [u8; 64]) {
    let mut state = load_word(&entropy);
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 24
    };
    for _ in 0..2000 {
        let kind = RequestType::WriteBytes.raw() + (next() % 5) as u32;
        let Ok(kind) = RequestType::try_from(kind) else {
            fail("the kinds are not in a row");
        };
        let shift = next() % 64;
        let start = (next() << 30 | next()) >> shift;
        let len = (next() << 30 | next()) >> (next() % 64);
        let errno = if next() % 4 == 0 {
            driver.data(kind, start, (next() % u64::from(DATA_BYTES)) as u32)
        } else {
            driver.range(kind, start, len, next() % 3)
        };
        check(errno < 4096, "no errno");
    }
}

fn load_word(entropy: &[u8; 64]) -> u64 {
    entropy
        .iter()
        .fold(0, |word, byte| word.rotate_left(8) ^ u64::from(*byte))
}
