//! Each hostile guest in a real microVM, and how it must end.

use anyhow::{Result, bail, ensure};
use instar_microvm_tests::{
    Failed, Frozen, Guest, Host, Outcome, alone, limits, operation_file, writable_file,
};
use instar_shared::layout::SECRETS;
use instar_shared::record::RecordKind;
use instar_shared::secret::SecretRole;
use instar_test_guests::{Case, DONE_MAGIC, Ending, SECRET, WRITE_LIMIT};
use instar_vmm::memory::GuestSlot;
use instar_vmm::operation::{CrashReport, RunError, Secret, Zeroizing};
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

macro_rules! hostile {
    ($($name:ident => $case:ident;)+) => {
        $(
            #[test]
            fn $name() -> Result<(), Failed> {
                alone(|| judge(Case::$case))
            }
        )+

        const JUDGED: &[Case] = &[$(Case::$case),+];
    };
}

hostile! {
    behave => Behave;
    read_disk => ReadDisk;
    until_cancelled => UntilCancelled;
    script => Script;
    syscall => Syscall;
    sysenter => Sysenter;
    int_3 => Int3;
    int_80 => Int80;
    int_page_fault => IntPageFault;
    int_255 => Int255;
    int_1 => Int1;
    popf_iopl => PopfIopl;
    popf_trap_flag => PopfTrapFlag;
    popf_nested_task => PopfNestedTask;
    iret_to_ring_0 => IretToRing0;
    undefined => Undefined;
    divide => Divide;
    write_text => WriteText;
    write_constants => WriteConstants;
    execute_heap => ExecuteHeap;
    execute_stack => ExecuteStack;
    read_null => ReadNull;
    jump_null => JumpNull;
    stack_overflow => StackOverflow;
    stack_null => StackNull;
    forbidden_out => ForbiddenOut;
    forbidden_in => ForbiddenIn;
    trap_port => TrapPort;
    jump_system => JumpSystem;
    read_system => ReadSystem;
    jump_system_end => JumpSystemEnd;
    non_canonical => NonCanonical;
    halt => Halt;
    clear_interrupts => ClearInterrupts;
    read_cr_3 => ReadCr3;
    write_cr_0 => WriteCr0;
    read_msr => ReadMsr;
    write_msr => WriteMsr;
    load_gdt => LoadGdt;
    load_idt => LoadIdt;
    load_task_register => LoadTaskRegister;
    load_segment => LoadSegment;
    write_back => WriteBack;
    far_return => FarReturn;
    hypercall => Hypercall;
    stack_non_canonical => StackNonCanonical;
    write_debug => WriteDebug;
    doorbell_read => DoorbellRead;
    doorbell_byte => DoorbellByte;
    doorbell_straddle => DoorbellStraddle;
    doorbell_string => DoorbellString;
    doorbell_string_read => DoorbellStringRead;
    write_boot_page => WriteBootPage;
    write_config => WriteConfig;
    write_device_table => WriteDeviceTable;
    past_control => PastControl;
    past_records => PastRecords;
    before_stack => BeforeStack;
    past_stack => PastStack;
    past_heap => PastHeap;
    far_above => FarAbove;
    execute_records => ExecuteRecords;
    past_slot => PastSlot;
    past_heap_wide => PastHeapWide;
    execute_past_heap => ExecutePastHeap;
    read_secrets => ReadSecrets;
    read_into_secrets => ReadIntoSecrets;
    write_from_secrets => WriteFromSecrets;
    take_secret => TakeSecret;
    endless_loop => Loop;
    kick_loop => KickLoop;
    wait_loop => WaitLoop;
    short_wait_loop => ShortWaitLoop;
    drain_loop => DrainLoop;
    unknown_kick => UnknownKick;
    kick_empty_slot => KickEmptySlot;
    kick_unknown_queue => KickUnknownQueue;
    flood_records => FloodRecords;
    flood_progress => FloodProgress;
    grant_loop => GrantLoop;
    file_loop => FileLoop;
    record_kind_unknown => RecordKindUnknown;
    record_past_fill => RecordPastFill;
    record_len_max => RecordLenMax;
    fill_past_window => FillPastWindow;
    fill_in_header => FillInHeader;
    record_rubbish => RecordRubbish;
    record_too_long => RecordTooLong;
    line_of_all_bytes => LineOfAllBytes;
    failure_short => FailureShort;
    progress_length => ProgressLength;
    image_short => ImageShort;
    image_names => ImageNames;
    rubbish_at_exit => RubbishAtExit;
    rubbish_result => RubbishResult;
    avail_jump => AvailJump;
    head_past_table => HeadPastTable;
    chain_loop => ChainLoop;
    next_past_table => NextPastTable;
    buffer_in_page_tables => BufferInPageTables;
    buffer_in_text => BufferInText;
    buffer_in_boot_page => BufferInBootPage;
    buffer_past_slot => BufferPastSlot;
    buffer_wraps => BufferWraps;
    buffer_empty => BufferEmpty;
    buffer_direction => BufferDirection;
    indirect_table => IndirectTable;
    header_short => HeaderShort;
    footer_short => FooterShort;
    same_chain_twice => SameChainTwice;
    request_unknown => RequestUnknown;
    request_write => RequestWrite;
    request_far_offset => RequestFarOffset;
    read_into_queue => ReadIntoQueue;
    ring_rubbish => RingRubbish;
    change_read_only => ChangeReadOnly;
    change_past_limit => ChangePastLimit;
    change_lengths => ChangeLengths;
    change_ranges => ChangeRanges;
    change_all => ChangeAll;
    write_direction => WriteDirection;
    write_from_page_tables => WriteFromPageTables;
    write_from_queue => WriteFromQueue;
    change_rubbish => ChangeRubbish;
    bad_file_requests => BadFileRequests;
    huge_grant => HugeGrant;
    panic => Panic;
    panic_long => PanicLong;
    allocate_huge => AllocateHuge;
    allocate_all => AllocateAll;
    allocate_and_free => AllocateAndFree;
    panic_full_window => PanicFullWindow;
    exit_in_flight => ExitInFlight;
    same_buffer_twice => SameBufferTwice;
    never_collects => NeverCollects;
    crew_works => CrewWorks;
    kick_nobody => KickNobody;
    crew_loops => CrewLoops;
    crew_faults => CrewFaults;
    crew_panics => CrewPanics;
    crew_opens => CrewOpens;
    crew_exits => CrewExits;
    crew_kicks_device => CrewKicksDevice;
    crew_waits => CrewWaits;
    crew_overflows => CrewOverflows;
    crew_faults_main_loops => CrewFaultsMainLoops;
}

/// Cases that need more than a disk; `flows.rs` has them.
const FLOWS: &[Case] = &[
    Case::Checksum,
    Case::OpenMany,
    Case::ReadFails,
    Case::Extents,
    Case::ChangeDisk,
    Case::WriteFails,
    Case::ZerosForever,
    Case::CopyThrough,
    Case::CopyRange,
    Case::CopyOntoItself,
];

#[test]
fn every_case_is_run() {
    for case in Case::ALL {
        let times = JUDGED.iter().chain(FLOWS).filter(|c| *c == case).count();
        assert_eq!(times, 1, "{}", case.name());
    }
}

/// Runs `case` and compares its end with what it must be.
fn judge(case: Case) -> Result<()> {
    let frozen = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&frozen);
    let disk = pattern_file()?;
    let device = if case.is_writing() {
        writable_file(disk.try_clone()?, WRITE_LIMIT)?
    } else {
        operation_file(disk.try_clone()?)?
    };
    let left = Rc::new(RefCell::new(None));
    let keep_memory = Rc::clone(&left);
    let mut guest = Guest::new(case)
        .file(device)
        .limits(limits(1000, longest(case)))
        .before(move |memory| {
            *keep.borrow_mut() = Frozen::of(memory).ok();
            *keep_memory.borrow_mut() = Some(Arc::clone(memory));
        });
    if case.has_secret() {
        guest = guest.secret(secret());
    }
    let (outcome, host) = guest.run()?;
    no_secret_is_left(left.take())?;
    match frozen.take() {
        Some(frozen) => frozen.compare(may_crash(case))?,
        None => bail!("the guest's memory could not be read"),
    }
    disk_is_as_allowed(case, &disk)?;
    if let Err(error) = &outcome {
        let text = error.to_string();
        println!("{}: {text}", case.name());
        ensure!(
            !text.contains('\n') && text.starts_with("operation "),
            "no sentence: {text}"
        );
    }
    ensure!(
        as_it_must(case, &outcome)?,
        "{} must end as {:?}, but: {}",
        case.name(),
        case.ending(),
        words(&outcome)
    );
    if case == Case::FloodRecords {
        ensure!(host.records.len() > 100, "few records came through");
    }
    said_its_name(case, &host)
}

fn secret() -> Secret {
    Secret {
        slot: 0,
        depth: 2,
        role: SecretRole::Open,
        bytes: Zeroizing::new(SECRET.to_vec()),
    }
}

/// However the run ended, the secret region is empty.
fn no_secret_is_left(memory: Option<Arc<GuestSlot>>) -> Result<()> {
    let Some(memory) = memory else {
        bail!("the guest's memory was not kept");
    };
    let mut region = vec![1; usize::try_from(SECRETS.size)?];
    memory.read(SECRETS.start, &mut region)?;
    ensure!(region.iter().all(|byte| *byte == 0), "a secret is left");
    Ok(())
}

const fn may_crash(case: Case) -> bool {
    matches!(case.ending(), Ending::Crash(_) | Ending::DoneOrCrash)
}

/// Wall time in milliseconds: the guest time of a stall takes long on a busy machine.
fn longest(case: Case) -> u64 {
    match case.ending() {
        Ending::Timeout => 3000,
        _ => 60_000,
    }
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Ok(_) => "it was done".into(),
        Err(error) => error.to_string(),
    }
}

fn as_it_must(case: Case, outcome: &Outcome) -> Result<bool> {
    let done = match outcome {
        Ok(completed) => completed.result.starts_with(&DONE_MAGIC.to_le_bytes()),
        Err(_) => false,
    };
    let refused = matches!(outcome, Err(RunError::Protocol(_)));
    Ok(match (case.ending(), outcome) {
        (Ending::Done, _) => done,
        (Ending::DoneWithRubbish, Ok(completed)) => completed.result == [0xff; 256],
        (Ending::DoneOrCrash, Err(RunError::Crashed(report))) => crash_is_told(case, report)?,
        (Ending::DoneOrCrash, Err(RunError::Stopped { .. })) => true,
        (Ending::DoneOrCrash, _) => done,
        (Ending::Crash(vectors), Err(RunError::Crashed(report))) => {
            vectors.contains(&report.frame().vector) && crash_is_told(case, report)?
        }
        (Ending::Stop(text), Err(RunError::Stopped { reason, position })) => {
            reason.contains(text) && position.contains(" in instar_test_guests::")
        }
        (Ending::Panic(text), Err(RunError::Panicked(message))) => message.contains(text),
        (Ending::Refused, _) => refused,
        (Ending::DoneOrRefused, _) => done || refused,
        (Ending::Stall, Err(RunError::Stalled { .. }))
        | (Ending::Timeout, Err(RunError::TimedOut { .. })) => true,
        _ => false,
    })
}

/// The report names the exception, where it happened, and for a page fault the address and its region.
fn crash_is_told(case: Case, report: &CrashReport) -> Result<bool> {
    let (frame, text) = (report.frame(), report.to_string());
    ensure!(
        text.contains(frame.name),
        "no name of the exception: {text}"
    );
    if let Some(address) = frame.fault_address {
        ensure!(
            text.contains(&format!("{} {address:#x}, ", frame.detail)),
            "no address: {text}"
        );
    }
    let instruction = format!(" at {:#x}", frame.instruction);
    ensure!(text.contains(&instruction), "no instruction: {text}");
    for word in told(case, frame.fault_address == Some(0)) {
        ensure!(text.contains(word), "\"{word}\" is missing: {text}");
    }
    Ok(true)
}

/// What the report of a crash must say besides.
fn told(case: Case, at_null: bool) -> &'static [&'static str] {
    const SYMBOL: &str = " in instar_test_guests::";
    match case {
        Case::Syscall if at_null => &["execute 0x0", "null page"],
        Case::JumpNull => &["execute 0x0", "null page"],
        Case::ReadNull => &["read of unmapped 0x0", "null page", SYMBOL],
        Case::StackNull => &["write to unmapped 0xff8", "null page", SYMBOL],
        Case::ExecuteHeap | Case::ExecutePastHeap => &["execute", "in the heap"],
        Case::ExecuteStack => &["execute", "in the stack region"],
        Case::ExecuteRecords => &["execute 0x1120000", "in the records region"],
        Case::JumpSystem | Case::JumpSystemEnd => &["execute", "in the system region"],
        Case::ReadSystem => &["read of", "in the system region", SYMBOL],
        Case::WriteText | Case::WriteConstants => &["write to protected", "in the image", SYMBOL],
        Case::StackOverflow => &["write to unmapped", "stack overflow", SYMBOL],
        Case::WriteBootPage => &["write to protected", "in the boot page", SYMBOL],
        Case::WriteConfig => &["write to protected", "in the config region", SYMBOL],
        Case::WriteDeviceTable => &["write to protected", "in the device table", SYMBOL],
        Case::PastControl | Case::PastRecords | Case::PastStack => {
            &["read of unmapped", "between regions", SYMBOL]
        }
        Case::BeforeStack => &["read of unmapped", "stack overflow", SYMBOL],
        Case::ReadSecrets => &["read of unmapped", "in the secrets region", SYMBOL],
        Case::PastSlot | Case::FarAbove => &["read of unmapped", "past it", SYMBOL],
        _ => &[SYMBOL],
    }
}

/// The cases that do nothing wrong speak; the line must have come through.
fn said_its_name(case: Case, host: &Host) -> Result<()> {
    if case.raw() < 10 {
        let line = format!("case {}", case.name()).into_bytes();
        ensure!(
            host.records.first() == Some(&(RecordKind::Line, line)),
            "its first line did not come through"
        );
    }
    Ok(())
}

/// 1 MiB that is neither zero nor regular.
fn pattern() -> Vec<u8> {
    (0..1_u32 << 18)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

fn pattern_file() -> Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&pattern())?;
    Ok(file)
}

/// No disk passes its limit, and one that may not be changed is as it was.
fn disk_is_as_allowed(case: Case, disk: &File) -> Result<()> {
    let len = disk.metadata()?.len();
    if case.is_writing() {
        ensure!(len <= WRITE_LIMIT, "the disk has {len} bytes");
        return Ok(());
    }
    let mut bytes = vec![0; usize::try_from(len)?];
    disk.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes == pattern(), "a read-only disk was changed");
    Ok(())
}
