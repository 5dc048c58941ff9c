use super::*;

const FILTERS: [Filter; 2] = [Filter::Vcpu { socket: 4 }, Filter::Broker];

fn allowed(filter: Filter) -> Vec<i64> {
    filter.rules().into_iter().map(|(call, _)| call).collect()
}

#[test]
fn filters_compile_and_stay_small() {
    for filter in FILTERS {
        let instructions = filter.compile().unwrap().len();
        assert!(
            instructions < 300,
            "{filter:?}: {instructions} instructions"
        );
    }
}

#[test]
fn no_filter_names_a_call_twice() {
    for filter in FILTERS {
        let mut calls = allowed(filter);
        calls.sort_unstable();
        let all = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), all, "{filter:?}");
    }
}

#[test]
fn no_filter_opens_executes_or_connects() {
    let never = [
        libc::SYS_openat,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_ptrace,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_kill,
        libc::SYS_sendto,
        libc::SYS_pwrite64,
        libc::SYS_pwritev2,
        libc::SYS_io_uring_setup,
        libc::SYS_process_vm_writev,
        libc::SYS_rt_sigaction,
    ];
    for filter in FILTERS {
        let calls = allowed(filter);
        assert!(never.iter().all(|call| !calls.contains(call)), "{filter:?}");
        assert_eq!(calls.contains(&libc::SYS_openat2), filter == Filter::Broker);
    }
}
