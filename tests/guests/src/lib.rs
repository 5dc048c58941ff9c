//! What the misbehaving guest can do, and how each must end.
//!
//! The program `instar-test-guests` reads a [`GuestConfig`] as its config and does
//! the [`Case`] that it names. The host's tests go through [`Case::ALL`] and compare
//! with [`Case::ending`].
#![no_std]

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
    /// A number that the case may use; no case does so far.
    pub argument: U64,
    /// Zero.
    pub reserved2: [u8; 48],
}

const _: () = assert!(size_of::<GuestConfig>() == 64);

impl GuestConfig {
    /// The config that asks for `case`.
    #[must_use]
    pub fn new(case: Case) -> Self {
        let mut config: Self = zerocopy::FromZeros::new_zeroed();
        config.case = U32::new(case.raw());
        config
    }
}

/// The result that a guest leaves which came to its end: [`DONE_MAGIC`], then zeros.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct GuestResult {
    /// [`DONE_MAGIC`].
    pub magic: U32,
    /// The case again.
    pub case: U32,
    /// Zero.
    pub reserved: [u8; 56],
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

    /// `syscall`: EFER.SCE is off.
    Syscall = 10 => Ending::Crash(&[UD]);
    /// `sysenter`: IA32_SYSENTER_CS is 0.
    Sysenter = 11 => Ending::Crash(&[GP, UD]);
    /// `int3`: the gate is not for ring 3.
    Int3 = 12 => Ending::Crash(&[BP, GP]);
    /// `int 0x80`: no gate.
    Int80 = 13 => PROTECTION;
    /// `int 14`: a gate, but not for ring 3.
    IntPageFault = 14 => PROTECTION;
    /// `int 255`.
    Int255 = 15 => PROTECTION;
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
    /// `in` from the kick port plus 2, which straddles it.
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
    /// Reads the byte after the heap.
    PastHeap = 67 => PAGE_FAULT;
    /// Reads far above all memory.
    FarAbove = 68 => PAGE_FAULT;
    /// Jumps into the record window.
    ExecuteRecords = 69 => PAGE_FAULT;

    /// Loops without a doorbell.
    Loop = 80 => Ending::Stall;
    /// Rings a doorbell without a request, for ever.
    KickLoop = 81 => Ending::Stall;
    /// Waits for nothing, for ever.
    WaitLoop = 82 => Ending::Stall;
    /// Waits a millisecond at a time, for ever.
    ShortWaitLoop = 83 => Ending::Stall;
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
    /// A data buffer that ends past the slot.
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
