//! What the process of a user network may call: sockets of the internet, and waiting for them.

use super::{Alternatives, common, first_is, second_is};

/// Calls without a condition.
const FREE: [i64; 18] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_ppoll,
];
/// What only x86-64 has beside its newer form.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 1] = [libc::SYS_epoll_wait];
/// What only x86-64 has beside its newer form.
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// The whole list.
pub fn rules() -> Vec<(i64, Alternatives)> {
    let mut rules = common();
    let free = FREE.into_iter().chain(OLD);
    rules.extend(free.map(|call| (call, Vec::new())));
    let families = first_is(&[libc::AF_INET, libc::AF_INET6]);
    rules.push((libc::SYS_socket, families));
    let levels = second_is(&[libc::SOL_SOCKET, libc::IPPROTO_TCP]);
    rules.push((libc::SYS_setsockopt, levels));
    rules.push((libc::SYS_fcntl, second_is(&[libc::F_GETFD, libc::F_GETFL])));
    rules
}
