//! What the misbehaving guest can do, and how each must end.
//!
//! The program `instar-test-guests` reads a [`GuestConfig`] as its config and does
//! the [`Case`] that it names. The host's tests go through [`Case::ALL`] and compare
//! with [`Case::ending`].
#![no_std]

extern crate alloc;

mod change;

pub use change::{FIXED_LEN, SEED_FIXED, change};

use instar_shared::device::QUEUE_STRIDE;
use instar_shared::layout::{CONTROL, HEAP_START, QUEUES, RECORDS};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The config of the test guest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct GuestConfig {
    /// A [`Case`].
    pub case: U32,
    /// Zero.
    pub reserved: U32,
    /// A number that the case says what it is; else 0.
    pub argument: U64,
    /// Zero.
    pub reserved2: [u8; 48],
}

const _: () = assert!(size_of::<GuestConfig>() == 64);

/// What [`Case::Script`] does, one after the other; the steps follow the config.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Step {
    /// A `STEP_*`; anything else ends the script.
    pub kind: U32,
    /// The doorbell's value; of [`STEP_STORE`] the number of bytes, at most 16.
    pub value: U32,
    /// Where the bytes go: an offset from the start of what the guest may write, see [`Step::target`].
    pub at: U64,
    /// The bytes.
    pub bytes: [u8; 16],
}

const _: () = assert!(size_of::<Step>() == 32);

/// [`Step::kind`]: stores bytes.
pub const STEP_STORE: u32 = 1;
/// [`Step::kind`]: kicks.
pub const STEP_KICK: u32 = 2;
/// [`Step::kind`]: waits.
pub const STEP_WAIT: u32 = 3;
/// Most steps that fit the config region.
pub const MAX_STEPS: usize = 500;

const _: () = assert!(
    (size_of::<GuestConfig>() + MAX_STEPS * size_of::<Step>()) as u64
        <= instar_shared::layout::CONFIG.size
);

impl Step {
    /// The guest address that a step stores to: control page, record window, the queue of slot 0, or
    /// the first 64 KiB of the heap past 2 MiB, by the top two bits of `at`'s lower 20.
    #[must_use]
    pub const fn target(at: u64) -> u64 {
        let offset = at & 0x3_ffff;
        match at >> 18 & 3 {
            0 => CONTROL.start + offset % (CONTROL.size - 16),
            1 => RECORDS.start + offset % (RECORDS.size - 16),
            2 => QUEUES.start + offset % (QUEUE_STRIDE - 16),
            _ => HEAP_START + 0x20_0000 + offset % 0xfff0,
        }
    }
}

impl GuestConfig {
    /// The config that asks for `case`.
    #[must_use]
    pub fn new(case: Case) -> Self {
        let mut config: Self = zerocopy::FromZeros::new_zeroed();
        config.case = U32::new(case.raw());
        config
    }
}

/// The result that a guest leaves which came to its end.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct GuestResult {
    /// [`DONE_MAGIC`].
    pub magic: U32,
    /// The case again.
    pub case: U32,
    /// What the case found out, as its description says; else 0.
    pub answer: U64,
    /// Zero.
    pub reserved: [u8; 48],
}

/// A hash of bytes in their order, the same on both sides: FNV-1a, 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Takes further bytes in.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// How long a disk may become that [`Case::is_writing`] writes, in bytes.
pub const WRITE_LIMIT: u64 = 2 << 20;
/// The secret of [`Case::has_secret`].
pub const SECRET: [u8; 9] = *b"pass word";
/// What [`Case::WriteFails`] writes.
pub const FAILING_BYTES: usize = 5 << 20;

impl Case {
    /// Whether slot 0 must be a disk that may be written, up to [`WRITE_LIMIT`].
    #[must_use]
    pub const fn is_writing(self) -> bool {
        matches!(self.raw(), 141..150 | 161)
    }

    /// Whether the machine must have [`SECRET`], for the image two steps below the one in slot 0.
    #[must_use]
    pub const fn has_secret(self) -> bool {
        matches!(self.raw(), 160..165)
    }
}

impl Case {
    /// The I/O threads and further vCPUs that the case needs.
    #[must_use]
    pub const fn threads(self) -> (u8, u8) {
        match self.raw() {
            170..180 => (2, 0),
            180..200 => (1, 1),
            _ => (0, 0),
        }
    }
}

/// First word of the result of a guest that came to its end.
pub const DONE_MAGIC: u32 = 0x444f_4e45;

/// How a guest must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It comes to its end and leaves a [`GuestResult`].
    Done,
    /// It comes to its end and leaves rubbish as its result: the run itself is well.
    DoneWithRubbish,
    /// It comes to its end, or a crash stops it: processors differ.
    DoneOrCrash,
    /// A crash by one of these x86-64 exception vectors.
    Crash(&'static [u8]),
    /// It rings a doorbell as no guest does: a report with this text says so.
    Stop(&'static str),
    /// Its own panic message, with this text in it.
    Panic(&'static str),
    /// The host refuses what it sent or wrote: a report that says what.
    Refused,
    /// The host refuses, or lets it be: no rule is broken for sure.
    DoneOrRefused,
    /// It never ends: the limit on guest time without progress stops it.
    Stall,
    /// It never ends and reports progress all the time: only a time limit stops it.
    Timeout,
}

macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident = $number:literal => $ending:expr;)+) => {
        /// What the guest does.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Case { $($(#[$doc])* $name = $number,)+ }

        impl Case {
            /// All cases, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The number in [`GuestConfig::case`].
            #[must_use]
            pub const fn raw(self) -> u32 {
                self as u32
            }

            /// The case's name, for messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// How it must end on x86-64.
            #[must_use]
            pub const fn ending(self) -> Ending {
                match self { $(Self::$name => $ending,)+ }
            }
        }

        impl TryFrom<u32> for Case {
            type Error = u32;
            fn try_from(raw: u32) -> Result<Self, u32> {
                match raw { $($number => Ok(Self::$name),)+ other => Err(other) }
            }
        }
    };
}

/// #DE, division error.
const DE: u8 = 0;
/// #DB, debug.
const DB: u8 = 1;
/// #BP, breakpoint.
const BP: u8 = 3;
/// #UD, invalid opcode.
const UD: u8 = 6;
/// #SS, stack fault.
const SS: u8 = 12;
/// #GP, general protection.
const GP: u8 = 13;
/// #PF, page fault.
const PF: u8 = 14;

const PAGE_FAULT: Ending = Ending::Crash(&[PF]);
const PROTECTION: Ending = Ending::Crash(&[GP]);

cases! {
    /// Nothing wrong: leaves a result.
    Behave = 0 => Ending::Done;
    /// Reads slot 0 to its end and leaves a result.
    ReadDisk = 1 => Ending::Done;
    /// Reads slot 0 from byte `argument` on in pieces of all sizes; the answer is the [`Hash`]. Sends one
    /// line when it is past the middle, before it reads on.
    Checksum = 2 => Ending::Done;
    /// Opens `argument` files by name (`file-1` and so on), then reads all of them, slot 0 first; the
    /// answer is the [`Hash`] of their bytes.
    OpenMany = 3 => Ending::Done;
    /// Works and reports progress until it is cancelled; the answer is 1.
    UntilCancelled = 4 => Ending::Timeout;
    /// Reads 4 KiB at byte `argument` of slot 0, which must fail; the answer is the errno.
    ReadFails = 5 => Ending::Done;
    /// Asks for the runs of data and holes of slot 0; the answer is the [`Hash`] of them, each as offset,
    /// length and 1 or 0, 8 bytes each, little-endian.
    Extents = 6 => Ending::Done;
    /// Does the [`Step`]s that follow its config.
    Script = 7 => Ending::Done;
    /// Does [`change`] to slot 0 with the seed `argument`; the answer is what it returns.
    ChangeDisk = 8 => Ending::Done;
    /// Writes [`FAILING_BYTES`] at byte `argument` of slot 0, which must fail, and then knows how long the
    /// disk is; the answer is the errno, and from bit 32 on the length.
    WriteFails = 9 => Ending::Done;

    /// `syscall`: EFER.SCE is off. kvm_pvm, which has to take the instruction for its own use, jumps to the
    /// entry point that nobody set: a page fault at 0.
    Syscall = 10 => Ending::Crash(&[UD, PF]);
    /// `sysenter`: IA32_SYSENTER_CS is 0.
    Sysenter = 11 => Ending::Crash(&[GP, UD]);
    /// `int3`: the gate is not for ring 3.
    Int3 = 12 => Ending::Crash(&[BP, GP]);
    /// `int 0x80`: no gate. kvm_pvm says invalid opcode for software interrupts.
    Int80 = 13 => Ending::Crash(&[GP, UD]);
    /// `int 14`: a gate, but not for ring 3.
    IntPageFault = 14 => Ending::Crash(&[GP, UD]);
    /// `int 255`.
    Int255 = 15 => Ending::Crash(&[GP, UD]);
    /// `int1`.
    Int1 = 16 => Ending::Crash(&[DB, GP]);
    /// `popf` that sets IOPL 3, then `out` to a port that is not a doorbell.
    PopfIopl = 17 => PROTECTION;
    /// `popf` that sets TF: a trap after the next instruction.
    PopfTrapFlag = 18 => Ending::Crash(&[DB]);
    /// `popf` that sets NT, then `iretq`.
    PopfNestedTask = 19 => PROTECTION;
    /// `iretq` to ring 0.
    IretToRing0 = 20 => PROTECTION;
    /// `ud2`.
    Undefined = 21 => Ending::Crash(&[UD]);
    /// Division by zero.
    Divide = 22 => Ending::Crash(&[DE]);
    /// Writes to its own text.
    WriteText = 23 => PAGE_FAULT;
    /// Writes to its own constants.
    WriteConstants = 24 => PAGE_FAULT;
    /// Jumps to code that it wrote to the heap.
    ExecuteHeap = 25 => PAGE_FAULT;
    /// Jumps to code that it wrote to the stack.
    ExecuteStack = 26 => PAGE_FAULT;
    /// Reads address 0.
    ReadNull = 27 => PAGE_FAULT;
    /// Jumps to address 0.
    JumpNull = 28 => PAGE_FAULT;
    /// Recurses until the stack is used up.
    StackOverflow = 29 => PAGE_FAULT;
    /// Pushes with a stack pointer of 0.
    StackNull = 30 => PAGE_FAULT;
    /// `out` to the port next to a doorbell.
    ForbiddenOut = 31 => PROTECTION;
    /// `in` from the wait port plus 2, which straddles its end.
    ForbiddenIn = 32 => PROTECTION;
    /// `out` to a trap port, as the trap page does.
    TrapPort = 33 => PROTECTION;
    /// Jumps to the start of the system region.
    JumpSystem = 34 => PAGE_FAULT;
    /// Reads every page of the system region; the first must fault.
    ReadSystem = 35 => PAGE_FAULT;
    /// Jumps just past the system region's page tables, to its last page.
    JumpSystemEnd = 36 => PAGE_FAULT;
    /// Reads an address that is not canonical.
    NonCanonical = 37 => PROTECTION;
    /// `hlt`.
    Halt = 38 => PROTECTION;
    /// `cli`.
    ClearInterrupts = 39 => PROTECTION;
    /// Reads CR3.
    ReadCr3 = 40 => PROTECTION;
    /// Writes CR0.
    WriteCr0 = 41 => PROTECTION;
    /// `rdmsr`.
    ReadMsr = 42 => PROTECTION;
    /// `wrmsr` of EFER.
    WriteMsr = 43 => PROTECTION;
    /// `lgdt`.
    LoadGdt = 44 => PROTECTION;
    /// `lidt`.
    LoadIdt = 45 => PROTECTION;
    /// `ltr`.
    LoadTaskRegister = 46 => PROTECTION;
    /// Loads a data segment with a ring 0 selector.
    LoadSegment = 47 => PROTECTION;
    /// `wbinvd`.
    WriteBack = 48 => PROTECTION;
    /// A far return to the ring 0 code segment.
    FarReturn = 49 => PROTECTION;
    /// `vmcall`: a hypercall that the host does not know.
    Hypercall = 50 => Ending::DoneOrCrash;
    /// A stack pointer that is not canonical.
    StackNonCanonical = 51 => Ending::Crash(&[SS, GP]);
    /// Changes the arm64 or x86-64 debug registers: `mov dr7`.
    WriteDebug = 52 => PROTECTION;

    /// `in` from the kick port, which answers nothing.
    DoorbellRead = 53 => Ending::Stop("read of port 0x510");
    /// One byte to the kick port.
    DoorbellByte = 54 => Ending::Stop("write of 1 bytes to port 0x510");
    /// Four bytes to the kick port plus 2: half of each doorbell.
    DoorbellStraddle = 55 => Ending::Stop("write of 4 bytes to port 0x512");
    /// `rep outsd` of many values to the kick port: one kick each, or a string that is refused.
    DoorbellString = 56 => Ending::DoneOrCrash;
    /// `rep insd` from the kick port.
    DoorbellStringRead = 57 => Ending::Stop("read of port 0x510");

    /// Writes to the boot page.
    WriteBootPage = 60 => PAGE_FAULT;
    /// Writes to the config.
    WriteConfig = 61 => PAGE_FAULT;
    /// Writes to the device table.
    WriteDeviceTable = 62 => PAGE_FAULT;
    /// Reads the page after the control region.
    PastControl = 63 => PAGE_FAULT;
    /// Reads the byte after the record window.
    PastRecords = 64 => PAGE_FAULT;
    /// Reads the byte before the stack.
    BeforeStack = 65 => PAGE_FAULT;
    /// Reads the byte after the stack.
    PastStack = 66 => PAGE_FAULT;
    /// Reads the byte after the heap, where the page tables have room for what may be granted.
    PastHeap = 67 => Ending::Stop("where there is no memory");
    /// Reads far above all memory.
    FarAbove = 68 => PAGE_FAULT;
    /// Jumps into the record window.
    ExecuteRecords = 69 => PAGE_FAULT;
    /// Has all memory granted, then reads the byte after it.
    PastSlot = 70 => PAGE_FAULT;
    /// Reads 16 bytes after the heap into a vector register, which the hypervisor may not know to emulate.
    PastHeapWide = 71 => Ending::Stop("where there is no memory");
    /// Jumps past the heap.
    ExecutePastHeap = 72 => PAGE_FAULT;

    /// Reads the secret region of a machine that has no secrets.
    ReadSecrets = 73 => PAGE_FAULT;

    /// Loops without a doorbell.
    Loop = 80 => Ending::Stall;
    /// Rings a doorbell without a request, for ever.
    KickLoop = 81 => Ending::Stall;
    /// Waits for nothing, for ever.
    WaitLoop = 82 => Ending::Refused;
    /// Waits for nothing, a millisecond at a time, for ever.
    ShortWaitLoop = 83 => Ending::Refused;
    /// Drains an empty record window, for ever.
    DrainLoop = 84 => Ending::Stall;
    /// Rings unknown control values.
    UnknownKick = 85 => Ending::Refused;
    /// Kicks a slot that no device is in.
    KickEmptySlot = 86 => Ending::Refused;
    /// Kicks a queue that the device does not have.
    KickUnknownQueue = 87 => Ending::Refused;
    /// Sends lines for ever.
    FloodRecords = 88 => Ending::Stall;
    /// Sends progress for ever.
    FloodProgress = 89 => Ending::Timeout;
    /// Asks for memory for ever.
    GrantLoop = 90 => Ending::Stall;
    /// Asks for files that cannot be, for ever.
    FileLoop = 91 => Ending::Stall;

    /// A record of a kind that does not exist.
    RecordKindUnknown = 100 => Ending::Refused;
    /// A record that is longer than the filled part of the window.
    RecordPastFill = 101 => Ending::Refused;
    /// A record of the greatest length a header can say.
    RecordLenMax = 102 => Ending::Refused;
    /// More filled bytes than the window has.
    FillPastWindow = 103 => Ending::Refused;
    /// A fill that ends inside a record header.
    FillInHeader = 104 => Ending::Refused;
    /// A window of random bytes.
    RecordRubbish = 105 => Ending::Refused;
    /// A record payload longer than the contract allows.
    RecordTooLong = 106 => Ending::Refused;
    /// A line of all byte values.
    LineOfAllBytes = 107 => Ending::DoneOrRefused;
    /// A failure record shorter than its head.
    FailureShort = 108 => Ending::Refused;
    /// A progress record of another length.
    ProgressLength = 109 => Ending::Refused;
    /// An image record cut short.
    ImageShort = 110 => Ending::Refused;
    /// An image record whose names are longer than the record.
    ImageNames = 111 => Ending::Refused;
    /// Rubbish at exit instead of at a drain.
    RubbishAtExit = 112 => Ending::Refused;
    /// Rubbish in the whole result region.
    RubbishResult = 113 => Ending::DoneWithRubbish;

    /// An available index that jumps by more than the queue.
    AvailJump = 120 => Ending::Refused;
    /// A head past the descriptor table.
    HeadPastTable = 121 => Ending::Refused;
    /// A chain that loops.
    ChainLoop = 122 => Ending::Refused;
    /// A `next` past the descriptor table.
    NextPastTable = 123 => Ending::Refused;
    /// A data buffer in the page tables.
    BufferInPageTables = 124 => Ending::Refused;
    /// A data buffer in the program's text.
    BufferInText = 125 => Ending::Refused;
    /// A data buffer in the boot page.
    BufferInBootPage = 126 => Ending::Refused;
    /// A data buffer that ends past all memory there can be.
    BufferPastSlot = 127 => Ending::Refused;
    /// A data buffer whose end wraps around.
    BufferWraps = 128 => Ending::Refused;
    /// A data buffer of no bytes.
    BufferEmpty = 129 => Ending::Refused;
    /// A data buffer that the device may not write.
    BufferDirection = 130 => Ending::Refused;
    /// A descriptor that claims to be an indirect table.
    IndirectTable = 131 => Ending::Refused;
    /// A header that is too short.
    HeaderShort = 132 => Ending::Refused;
    /// No room for the footer.
    FooterShort = 133 => Ending::Refused;
    /// The same chain twice while it is in flight, or after: the second time is a new request.
    SameChainTwice = 134 => Ending::DoneOrRefused;
    /// A request type that does not exist; the device answers, the guest checks it.
    RequestUnknown = 135 => Ending::Done;
    /// A write to a read-only disk; the device answers, the guest checks it.
    RequestWrite = 136 => Ending::Done;
    /// A read at the greatest offset; the device answers, the guest checks it.
    RequestFarOffset = 137 => Ending::Done;
    /// Reads into its own virtqueue: what the device does to the ring is the guest's trouble.
    ReadIntoQueue = 138 => Ending::DoneOrRefused;
    /// Random descriptors, rings and indices, seeded by the entropy of the boot page.
    RingRubbish = 139 => Ending::DoneOrRefused;
    /// Every request that changes something, to a disk that is read-only; the guest checks each answer.
    ChangeReadOnly = 140 => Ending::Done;
    /// Changes that pass [`WRITE_LIMIT`] of a disk that may be written; the guest checks each answer.
    ChangePastLimit = 141 => Ending::Done;
    /// Changes with more or fewer bytes than they have; the guest checks each answer.
    ChangeLengths = 142 => Ending::Done;
    /// Ranges that cannot be: of nothing, past all offsets, with unknown flags, reserved bytes that are
    /// set; the guest checks each answer.
    ChangeRanges = 143 => Ending::Done;
    /// Zeroes, reserves and discards all that it may, and all that there is not; then reads zeros.
    ChangeAll = 144 => Ending::Done;
    /// A write whose data buffer is for the device to write.
    WriteDirection = 145 => Ending::Refused;
    /// A write from the page tables.
    WriteFromPageTables = 146 => Ending::Refused;
    /// A write of its own virtqueue, as the device works on it.
    WriteFromQueue = 147 => Ending::Done;
    /// Random changes, seeded by the entropy of the boot page: kinds, places, lengths and flags.
    ChangeRubbish = 148 => Ending::Done;
    /// Lets the host write zeros to 1 PiB of slot 0.
    ZerosForever = 149 => Ending::Stall;

    /// File requests that make no sense; each must be answered without opening.
    BadFileRequests = 150 => Ending::Done;
    /// Asks for more memory than there is; the answer must be bounded.
    HugeGrant = 151 => Ending::Done;
    /// Panics.
    Panic = 152 => Ending::Panic("on purpose");
    /// Panics with a message longer than a record.
    PanicLong = 153 => Ending::Panic("[...]");
    /// Allocates 1 TiB.
    AllocateHuge = 154 => Ending::Panic("memory allocation of 1099511627776 bytes failed");
    /// Allocates until nothing is left.
    AllocateAll = 155 => Ending::Panic("memory allocation of");
    /// Allocates and frees for a while, and checks what it wrote.
    AllocateAndFree = 156 => Ending::Done;
    /// Panics while the record window is full to the brim.
    PanicFullWindow = 157 => Ending::Panic("on purpose");

    /// Has slot 0 read into the secret region.
    ReadIntoSecrets = 160 => Ending::Refused;
    /// Has slot 0 written from the secret region.
    WriteFromSecrets = 161 => Ending::Refused;
    /// Looks for its secret, finds it once, and not in the region any more; then fills the region.
    TakeSecret = 162 => Ending::Done;

    /// Reads slot 0 and writes slot 1 in buffers of `argument` bytes, eight at once; the answer is the number
    /// of bytes.
    CopyThrough = 170 => Ending::Done;
    /// Has slot 0 copied to slot 1; the answer is the length of slot 1.
    CopyRange = 171 => Ending::Done;
    /// Copies that slot 0, of 16 KiB, cannot take, and one that it can; the answer is 1 if that arrived.
    CopyOntoItself = 172 => Ending::Done;
    /// Ends with many reads in flight.
    ExitInFlight = 173 => Ending::Done;
    /// Two reads in flight into one buffer.
    SameBufferTwice = 174 => Ending::Done;
    /// Fills the queue and never looks at what comes back.
    NeverCollects = 175 => Ending::Stall;
    /// Jobs on a further vCPU beside reads of slot 0; the answer is the number of further vCPUs.
    CrewWorks = 180 => Ending::Done;
    /// Kicks a vCPU that is not there.
    KickNobody = 181 => Ending::Refused;
    /// A job that never ends.
    CrewLoops = 182 => Ending::Stall;
    /// A job that reads address 8.
    CrewFaults = 183 => PAGE_FAULT;
    /// A job that panics.
    CrewPanics = 184 => Ending::Panic("on purpose, elsewhere");
    /// A job that asks for a file.
    CrewOpens = 185 => Ending::Refused;
    /// A job that exits.
    CrewExits = 186 => Ending::Refused;
    /// A job that kicks a device.
    CrewKicksDevice = 187 => Ending::Refused;
    /// A job that waits: nobody is left that could end the first vCPU's wait.
    CrewWaits = 188 => Ending::Refused;
    /// A job that recurses until its stack is used up.
    CrewOverflows = 189 => PAGE_FAULT;
    /// A job that reads address 8 while the first vCPU loops.
    CrewFaultsMainLoops = 190 => PAGE_FAULT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_numbers_invert() {
        for case in Case::ALL {
            assert_eq!(Case::try_from(case.raw()), Ok(*case));
            assert_eq!(GuestConfig::new(*case).case.get(), case.raw());
        }
        assert_eq!(Case::try_from(9999), Err(9999));
    }
}
