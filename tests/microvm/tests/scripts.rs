//! Guests that do random things with everything they can reach: rings, control page, records and
//! doorbells. The host answers, refuses, or is done; it never crashes, and nothing else changes.

use anyhow::{Context, Result, bail, ensure};
use instar_microvm_tests::{Failed, Frozen, Guest, alone, limits, operation_file, writable_file};
use instar_shared::blk::RequestType;
use instar_shared::control::ControlPage;
use instar_shared::device::{AVAIL_OFFSET, QUEUE_SIZE};
use instar_shared::doorbell::Control;
use instar_shared::layout::{HEAP_START, QUEUES};
use instar_shared::ring::Descriptor;
use instar_shared::zerocopy::IntoBytes;
use instar_test_guests::{Case, STEP_KICK, STEP_STORE, STEP_WAIT, Step, WRITE_LIMIT};
use instar_tests::rng::Rng;
use instar_vmm::operation::RunError;
use std::cell::RefCell;
use std::mem::offset_of;
use std::rc::Rc;

/// Scripts in a plain run; `INSTAR_SCRIPTS` sets another number.
const SCRIPTS: u64 = 300;
/// Selectors of [`Step::target`].
const TO_CONTROL: u64 = 0;
/// Where the control page says how full the record window is.
const RECORD_BYTES: u64 = offset_of!(ControlPage, record_bytes) as u64;
const TO_RECORDS: u64 = 1 << 18;
const TO_QUEUE: u64 = 2 << 18;
const TO_HEAP: u64 = 3 << 18;
/// Where the first data buffer of a request lies in the heap.
const RANGE_AT: u64 = 0x2000;

#[test]
fn random_scripts_are_answered_or_refused() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("scripts");
        let rounds = std::env::var("INSTAR_SCRIPTS")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(SCRIPTS);
        let (mut done, mut refused) = (0_u64, 0_u64);
        for round in 0..rounds {
            let steps = script(&mut rng);
            let ended = run(&steps, rng.below(2) == 0)
                .with_context(|| format!("round {round} of seed {}: {steps:x?}", rng.seed()))?;
            *(if ended { &mut done } else { &mut refused }) += 1;
        }
        println!("{rounds} scripts: {done} ran to their end, {refused} were refused");
        ensure!(
            rounds < SCRIPTS || (done > rounds / 20 && refused > rounds / 20),
            "{done} done, {refused} refused: these scripts test little"
        );
        Ok(())
    })
}

/// Whether the script ran to its end; refusals and panics on request are fine.
fn run(steps: &[Step], writable: bool) -> Result<bool> {
    let file = tempfile::tempfile()?;
    file.set_len(1 << 20)?;
    let disk = if writable {
        writable_file(file.try_clone()?, WRITE_LIMIT)?
    } else {
        operation_file(file.try_clone()?)?
    };
    let frozen = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&frozen);
    let (outcome, _) = Guest::new(Case::Script)
        .steps(steps)
        .file(disk)
        .limits(limits(5000, 60_000))
        .before(move |memory| *keep.borrow_mut() = Frozen::of(memory).ok())
        .run()?;
    let frozen = frozen
        .take()
        .context("the guest's memory could not be read")?;
    frozen.compare(false)?;
    let len = file.metadata()?.len();
    let most = if writable { WRITE_LIMIT } else { 1 << 20 };
    ensure!(len <= most, "the disk has {len} bytes");
    match outcome {
        Ok(_) => Ok(true),
        Err(RunError::Protocol(_) | RunError::Panicked(_)) => Ok(false),
        Err(other) => bail!("{other}"),
    }
}

fn script(rng: &mut Rng) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..=rng.below(6) {
        match rng.below(11) {
            0..6 => request(rng, &mut steps),
            6 | 7 => steps.push(kick(control(rng))),
            8 => record(rng, &mut steps),
            9 => steps.push(store(rng.next_u64(), rng.next_u64(), rng.next_u64(), 16)),
            _ if rng.below(4) == 0 => steps.push(Step {
                kind: STEP_WAIT.into(),
                ..kick(3)
            }),
            _ => steps.push(kick(0)),
        }
    }
    steps
}

/// A chain of up to four descriptors, mostly sound, at the next place of the available ring.
fn request(rng: &mut Rng, steps: &mut Vec<Step>) {
    let kinds = RequestType::ALL;
    let kind = *rng.pick(kinds);
    let start = rng.below(4096);
    steps.push(store(TO_HEAP, u64::from(kind.raw()), start, 16));
    let (data, data_writes) = match kind {
        RequestType::SetLength | RequestType::Sync => (0, 2),
        RequestType::WriteBytes => (1 + rng.below(2), 0),
        RequestType::Allocate | RequestType::DiscardBytes | RequestType::ZeroBytes => {
            let len = rng.next_u64() >> rng.below(64);
            steps.push(store(TO_HEAP | RANGE_AT, len, rng.below(3) / 2, 16));
            (1, 0)
        }
        _ => (1 + rng.below(2), 2),
    };
    let is_range = data == 1 && data_writes == 0 && kind != RequestType::WriteBytes;
    for index in 0..data + 2 {
        let last = index == data + 1;
        let (len, writes) = match index {
            0 => (16, 0),
            _ if last => (8, 2),
            _ if is_range && rng.below(20) != 0 => (16, 0),
            _ => (*rng.pick(&[8_u64, 16, 20, 512, 4096]), data_writes),
        };
        let mut addr = HEAP_START + 0x20_0000 + index * 0x2000;
        let mut rest = len | (writes | u64::from(!last)) << 32 | (index + 1) << 48;
        if rng.below(40) == 0 {
            addr = rng.next_u64() >> rng.below(64);
        }
        if rng.below(40) == 0 {
            rest ^= 1 << rng.below(64);
        }
        if rng.below(40) == 0 {
            addr = QUEUES.start + rng.below(8192);
        }
        let at = index * size_of::<Descriptor>() as u64;
        steps.push(store(TO_QUEUE | at, addr, rest, 16));
    }
    let sent = steps.iter().filter(|s| s.kind.get() == STEP_KICK).count() as u64;
    let index = if rng.below(20) == 0 {
        rng.next_u64()
    } else {
        sent + 1
    };
    let head = if rng.below(20) == 0 {
        rng.below(300)
    } else {
        0
    };
    let entry = sent % u64::from(QUEUE_SIZE) * 2;
    steps.push(store(TO_QUEUE | (AVAIL_OFFSET + 4 + entry), head, 0, 2));
    steps.push(store(TO_QUEUE | (AVAIL_OFFSET + 2), index, 0, 2));
    steps.push(kick(if rng.below(30) == 0 {
        u32::try_from(rng.next_u64() >> 32).unwrap_or(0)
    } else {
        0
    }));
}

fn control(rng: &mut Rng) -> u32 {
    let likely = [Control::Drain, Control::OpenFile, Control::GrantMemory];
    match rng.below(20) {
        0 => Control::Panic.raw(),
        1 => Control::Exit.raw(),
        _ => rng.pick(&likely).raw(),
    }
}

/// A record of some kind and length, and a drain of about that much.
fn record(rng: &mut Rng, steps: &mut Vec<Step>) {
    let kind = *rng.pick(&[1_u64, 1, 2, 2, 3, 4, 5, 6, 16, 17, 99]);
    let len = *rng.pick(&[0_u64, 8, 16, 16, 24, 4096, 32 << 10, (32 << 10) + 8]);
    steps.push(store(TO_RECORDS, kind | len << 32, rng.next_u64(), 16));
    let filled = if rng.below(4) == 0 {
        rng.below(1 << 19)
    } else {
        len + 8
    };
    steps.push(store(TO_CONTROL | RECORD_BYTES, filled, 0, 4));
    steps.push(kick(Control::Drain.raw()));
}

fn kick(value: u32) -> Step {
    Step {
        kind: STEP_KICK.into(),
        value: value.into(),
        at: 0.into(),
        bytes: [0; 16],
    }
}

/// Stores the first `len` bytes of two words.
fn store(at: u64, first: u64, second: u64, len: u32) -> Step {
    let mut bytes = [0; 16];
    bytes.copy_from_slice([first.to_le_bytes(), second.to_le_bytes()].as_bytes());
    Step {
        kind: STEP_STORE.into(),
        value: len.into(),
        at: at.into(),
        bytes,
    }
}
