//! The seccomp filters: for each thread the system calls that are left to it.
//!
//! Every filter is an allow-list; anything else kills the whole process. None
//! opens, connects (but that of a user network), executes, clones or makes memory executable; none but that of a
//! job that changes images writes to anything but the standard streams, and none but
//! that of a broker whose job makes files gives or takes a name. Where a few
//! comparisons narrow a call down, they are made: `ioctl` to the requests of a
//! running vCPU, `write` to the standard streams, messages to the broker's socket.

mod machine;
mod network;

use crate::layout;
use crate::open::READ_ONLY_REQUEST;
use instar_vmm::operation::ThreadKind;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as ArgLen, SeccompCmpOp as CmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// A filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel or the filter compiler refused.
    #[error("seccomp filter of the {thread}: {source}; the kernel needs CONFIG_SECCOMP_FILTER")]
    Filter {
        /// Whose filter.
        thread: &'static str,
        /// What was said.
        source: seccompiler::Error,
    },
    /// A system call that confines failed.
    #[error("{step}: {source}")]
    System {
        /// The call.
        step: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The parent died while the worker was made.
    #[error("the broker is gone")]
    Orphaned,
    /// Landlock is there, but refused.
    #[error("landlock: {0}")]
    Landlock(String),
}

/// Whose filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The thread of the worker that runs the vCPU and prints; its socket to the broker.
    Vcpu {
        /// Descriptor of the socket.
        socket: i32,
        /// The one on which a resident guest is asked.
        channel: Option<i32>,
        /// The job changes images. Those that are only read are kept safe by their descriptors.
        writes: bool,
    },
    /// A thread of the worker that moves bytes between files and guest memory.
    Io {
        /// The job changes images.
        writes: bool,
    },
    /// A thread of the worker that runs a further vCPU.
    FurtherVcpu,
    /// A thread of a machine that runs a Linux guest.
    Machine {
        /// Which one.
        kind: ThreadKind,
        /// Its process.
        own_pid: u32,
    },
    /// The process of a user network.
    Network,
    /// The broker, once the worker is there.
    Broker {
        /// The job makes files: they are emptied, and get their names.
        outputs: bool,
    },
}

/// What must hold of a call's arguments; each inner list is an alternative.
type Alternatives = Vec<Vec<Condition>>;

/// One comparison: argument number, how, value.
#[derive(Clone, Copy, Debug)]
enum Condition {
    Equals(u8, u64),
    NoneOf(u8, u64),
}

impl Filter {
    const fn name(self) -> &'static str {
        match self {
            Self::Vcpu { .. } => "vCPU thread",
            Self::Io { .. } => "I/O thread",
            Self::FurtherVcpu => "further vCPU's thread",
            Self::Machine { .. } => "machine's thread",
            Self::Network => "user network",
            Self::Broker { .. } => "broker",
        }
    }

    /// Installs the filter on the calling thread, for good; implies `no_new_privs`.
    ///
    /// # Errors
    /// [`JailError::Filter`].
    pub fn install(self) -> Result<(), JailError> {
        let failed = |source| JailError::Filter {
            thread: self.name(),
            source,
        };
        let program = self.compile().map_err(|e| failed(e.into()))?;
        seccompiler::apply_filter(&program).map_err(failed)
    }

    fn compile(self) -> Result<BpfProgram, seccompiler::BackendError> {
        let rules = self.rules().into_iter().map(|(call, alternatives)| {
            let rules: Result<Vec<_>, _> = alternatives.into_iter().map(rule).collect();
            rules.map(|rules| (call, rules))
        });
        let rules: BTreeMap<i64, Vec<SeccompRule>> = rules.collect::<Result<_, _>>()?;
        let arch = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            arch,
        )?
        .try_into()
    }

    fn rules(self) -> Vec<(i64, Alternatives)> {
        match self {
            Self::Machine { kind, own_pid } => machine::rules(kind, own_pid),
            Self::Network => network::rules(),
            _ => self.rules_of_job(),
        }
    }

    fn rules_of_job(self) -> Vec<(i64, Alternatives)> {
        let mut rules = common();
        let any = |calls: &[i64]| {
            calls
                .iter()
                .map(|call| (*call, Vec::new()))
                .collect::<Vec<_>>()
        };
        // Builds with debug assertions look whether a descriptor is open before they close it.
        let descriptor_flags = (libc::SYS_fcntl, second_is(&[libc::F_GETFD]));
        match self {
            Self::Vcpu {
                socket,
                channel,
                writes,
            } => {
                rules.extend(any(&VCPU));
                rules.extend(messages(socket, channel));
                rules.push(descriptor_flags);
                let device_requests: &[u64] = if writes {
                    rules.extend(any(&WRITING));
                    &DISCARD_REQUESTS
                } else {
                    &[]
                };
                let requests: [&[u64]; 3] = [&RUN_REQUESTS, &TERMINAL_REQUESTS, device_requests];
                rules.push((libc::SYS_ioctl, ioctls(&requests)));
                rules.extend(standard_streams(&[1, 2]));
            }
            Self::Io { writes } => {
                rules.extend(any(&READING));
                rules.push(descriptor_flags);
                if writes {
                    rules.extend(any(&WRITING));
                    rules.push((libc::SYS_ioctl, ioctls(&[&DISCARD_REQUESTS])));
                }
                rules.extend(standard_streams(&[2]));
            }
            Self::FurtherVcpu => {
                rules.push((libc::SYS_close, Vec::new()));
                rules.push(descriptor_flags);
                rules.push((libc::SYS_ioctl, ioctls(&[&RUN_REQUESTS])));
                rules.extend(standard_streams(&[2]));
            }
            Self::Machine { .. } | Self::Network => {}
            Self::Broker { outputs } => {
                rules.extend(any(&BROKER));
                if outputs {
                    rules.extend(any(&NAMING));
                }
                let device_requests = [u64::from(READ_ONLY_REQUEST)];
                let layout_requests: &[u64] = if outputs { &layout::REQUESTS } else { &[] };
                let requests: [&[u64]; 3] = [&TERMINAL_REQUESTS, &device_requests, layout_requests];
                rules.push((libc::SYS_ioctl, ioctls(&requests)));
                let commands = [
                    libc::F_GETFD,
                    libc::F_OFD_SETLK,
                    libc::F_OFD_GETLK,
                    libc::F_GETFL,
                    libc::F_SETFL,
                ];
                rules.push((libc::SYS_fcntl, second_is(&commands)));
                rules.extend(standard_streams(&[1, 2]));
            }
        }
        rules
    }
}

/// Calls of the vCPU thread without a condition. musl has `preadv2` without flags as `preadv`.
const VCPU: [i64; 9] = [
    libc::SYS_preadv2,
    libc::SYS_preadv,
    libc::SYS_fadvise64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
];

/// Calls of an I/O thread without a condition.
const READING: [i64; 6] = [
    libc::SYS_preadv2,
    libc::SYS_preadv,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
];

/// Calls of a thread that changes images, none of which makes, names or removes a file.
const WRITING: [i64; 9] = [
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_copy_file_range,
    libc::SYS_fstatfs,
    libc::SYS_pwritev2,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
];

/// Calls of the broker without a condition.
const BROKER: [i64; 15] = [
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_send_signal,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
];

/// Calls of a broker whose job makes files.
const NAMING: [i64; 5] = [
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_linkat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
];

/// Requests of a vCPU while it runs, and to describe a crash.
#[cfg(target_arch = "x86_64")]
const RUN_REQUESTS: [u64; 4] = [
    0xae80,      // KVM_RUN
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION, when memory is granted
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
];
/// Requests of a vCPU while it runs, and to describe a crash.
#[cfg(target_arch = "aarch64")]
const RUN_REQUESTS: [u64; 3] = [
    0xae80,      // KVM_RUN
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION, when memory is granted
    0x4010_aeab, // KVM_GET_ONE_REG
];

/// Parts of a block device that are given back, or made zero.
const DISCARD_REQUESTS: [u64; 2] = [
    0x1277, // BLKDISCARD
    0x127f, // BLKZEROOUT
];

/// Whether a stream is a terminal, and how wide.
const TERMINAL_REQUESTS: [u64; 2] = [
    0x5401, // TCGETS
    0x5413, // TIOCGWINSZ
];

/// What every thread may: its own memory, waiting, the clock, the end.
fn common() -> Vec<(i64, Alternatives)> {
    let free = [
        libc::SYS_futex,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    let plain_memory = || vec![vec![Condition::NoneOf(2, executable)]];
    let abort = u64::from(libc::SIGABRT.cast_unsigned());
    let narrowed = [
        (libc::SYS_mmap, plain_memory()),
        (libc::SYS_mprotect, plain_memory()),
        (libc::SYS_tgkill, vec![vec![Condition::Equals(2, abort)]]),
        (libc::SYS_tkill, vec![vec![Condition::Equals(1, abort)]]),
    ];
    free.into_iter()
        .map(|call| (call, Vec::new()))
        .chain(narrowed)
        .collect()
}

/// Messages of a worker: with the broker, and with who asks a resident guest.
fn messages(socket: i32, channel: Option<i32>) -> Vec<(i64, Alternatives)> {
    let on = |descriptor: i32, calls: [i64; 2]| calls.map(|call| (call, first_is(&[descriptor])));
    let mut rules = on(socket, [libc::SYS_sendmsg, libc::SYS_recvmsg]).to_vec();
    if let Some(channel) = channel {
        rules.extend(on(channel, [libc::SYS_sendto, libc::SYS_recvfrom]));
    }
    rules
}

fn standard_streams(descriptors: &[i32]) -> [(i64, Alternatives); 2] {
    [libc::SYS_write, libc::SYS_writev].map(|call| (call, first_is(descriptors)))
}

fn first_is(values: &[i32]) -> Alternatives {
    values
        .iter()
        .map(|value| vec![Condition::Equals(0, value.cast_unsigned().into())])
        .collect()
}

fn second_is(values: &[i32]) -> Alternatives {
    values
        .iter()
        .map(|value| vec![Condition::Equals(1, value.cast_unsigned().into())])
        .collect()
}

fn ioctls(lists: &[&[u64]]) -> Alternatives {
    lists
        .iter()
        .copied()
        .flatten()
        .map(|request| vec![Condition::Equals(1, *request)])
        .collect()
}

fn rule(conditions: Vec<Condition>) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.into_iter().map(|condition| match condition {
        Condition::Equals(argument, value) => {
            SeccompCondition::new(argument, ArgLen::Dword, CmpOp::Eq, value)
        }
        Condition::NoneOf(argument, mask) => {
            SeccompCondition::new(argument, ArgLen::Dword, CmpOp::MaskedEq(mask), 0)
        }
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
