//! What the threads of a machine that runs a Linux guest may call.

use super::{
    Alternatives, Condition, DISCARD_REQUESTS, READING, TERMINAL_REQUESTS, WRITING, common, ioctls,
    second_is,
};
use instar_vmm::operation::ThreadKind;

/// Calls of every thread of a machine: its descriptors, which are all that it has, and waiting for them.
const EVERY: [i64; 14] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_timerfd_settime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
];

/// What only x86-64 has beside their newer forms.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 2] = [libc::SYS_epoll_wait, libc::SYS_poll];
/// What only x86-64 has beside their newer forms.
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// Calls on sockets that are there.
const SOCKETS: [i64; 7] = [
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];

/// Requests of a vCPU while it runs, and of the devices whose registers it reaches.
const RUN_REQUESTS: [u64; 5] = [
    0xae80,      // KVM_RUN
    0x8090_ae81, // KVM_GET_REGS, for a report
    0x8138_ae83, // KVM_GET_SREGS
    0x4040_ae79, // KVM_IOEVENTFD, when the guest moves a base address register
    0x4008_ae6a, // KVM_SET_GSI_ROUTING, when it writes them
];
/// Requests to tap devices: what the guest takes.
const TAP_REQUESTS: [u64; 2] = [
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d8, // TUNSETVNETHDRSZ
];
/// Sets whether a descriptor blocks.
const BLOCKING_REQUEST: [u64; 1] = [
    0x5421, // FIONBIO
];

/// What a thread of this kind may call; `own_pid` is its process's.
pub fn rules(kind: ThreadKind, own_pid: u32) -> Vec<(i64, Alternatives)> {
    let mut rules = common();
    // To a thread of this process any signal goes: it takes a vCPU out of the guest.
    rules.retain(|(call, _)| *call != libc::SYS_tgkill);
    let to_itself = vec![vec![Condition::Equals(0, own_pid.into())]];
    rules.push((libc::SYS_tgkill, to_itself));
    let mut free: Vec<i64> = EVERY.into_iter().chain(OLD).collect();
    let mut requests: Vec<&[u64]> = vec![&TAP_REQUESTS, &TERMINAL_REQUESTS];
    match kind {
        ThreadKind::MachineVcpu | ThreadKind::Machine | ThreadKind::Vcpu => {
            requests.push(&RUN_REQUESTS);
        }
        ThreadKind::Device => {
            free.extend(SOCKETS);
            free.extend(READING);
            free.extend(WRITING);
            requests.push(&DISCARD_REQUESTS);
            requests.push(&BLOCKING_REQUEST);
        }
        ThreadKind::Io => {
            free.extend(READING);
            free.extend(WRITING);
            requests.push(&DISCARD_REQUESTS);
        }
    }
    free.sort_unstable();
    free.dedup();
    rules.retain(|(call, _)| !free.contains(call));
    rules.extend(free.into_iter().map(|call| (call, Vec::new())));
    rules.push((libc::SYS_ioctl, ioctls(&requests)));
    rules.push((libc::SYS_fcntl, second_is(&[libc::F_GETFD, libc::F_GETFL])));
    rules
}
