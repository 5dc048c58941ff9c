use super::*;

const READER: Filter = Filter::Vcpu {
    socket: 4,
    channel: None,
    writes: false,
};
const WRITER: Filter = Filter::Vcpu {
    socket: 4,
    channel: None,
    writes: true,
};
const RESIDENT: Filter = Filter::Vcpu {
    socket: 4,
    channel: Some(5),
    writes: true,
};
const BROKER_ONLY: Filter = Filter::Broker { outputs: false };
const MAKER: Filter = Filter::Broker { outputs: true };
const IO_WRITER: Filter = Filter::Io { writes: true };
const FILTERS: [Filter; 9] = [
    READER,
    WRITER,
    RESIDENT,
    Filter::Io { writes: false },
    IO_WRITER,
    Filter::FurtherVcpu,
    BROKER_ONLY,
    MAKER,
    Filter::Network,
];

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
fn no_filter_opens_executes_or_connects_but_a_network_s() {
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
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_mkdirat,
        libc::SYS_truncate,
        libc::SYS_fchmod,
        libc::SYS_fchown,
        libc::SYS_copy_file_range,
        libc::SYS_sendfile,
        libc::SYS_pwrite64,
        libc::SYS_pwritev2,
        libc::SYS_ftruncate,
        libc::SYS_io_uring_setup,
        libc::SYS_process_vm_writev,
        libc::SYS_rt_sigaction,
    ];
    for filter in FILTERS {
        let calls = allowed(filter);
        let own: &[i64] = match filter {
            MAKER => &NAMING,
            WRITER | IO_WRITER => &WRITING,
            RESIDENT => &[&WRITING[..], &[libc::SYS_sendto]].concat(),
            Filter::Network => &[libc::SYS_socket, libc::SYS_connect, libc::SYS_sendto],
            _ => &[],
        };
        let wrong = |call: &&i64| calls.contains(call) && !own.contains(call);
        assert_eq!(never.iter().find(wrong), None, "{filter:?}");
        let broker = [BROKER_ONLY, MAKER].contains(&filter);
        assert_eq!(calls.contains(&libc::SYS_openat2), broker);
    }
}

#[test]
fn only_a_job_that_changes_images_may_write_and_nothing_else_besides() {
    for call in WRITING {
        assert!(!allowed(READER).contains(&call) && !allowed(BROKER_ONLY).contains(&call));
    }
    let mut more = allowed(WRITER);
    more.retain(|call| !allowed(READER).contains(call));
    assert_eq!(more, WRITING);
    let requests = |filter: Filter| {
        let rules = filter.rules().into_iter();
        let ioctl = rules.filter(|(call, _)| *call == libc::SYS_ioctl);
        format!("{:?}", ioctl.collect::<Vec<_>>())
    };
    for request in DISCARD_REQUESTS {
        let condition = format!("{:?}", Condition::Equals(1, request));
        assert!(requests(WRITER).contains(&condition));
        assert!(!requests(READER).contains(&condition));
        assert!(!requests(BROKER_ONLY).contains(&condition));
    }
    for request in layout::REQUESTS {
        let condition = format!("{:?}", Condition::Equals(1, request));
        let may = FILTERS.map(|filter| requests(filter).contains(&condition));
        assert_eq!(may, FILTERS.map(|filter| filter == MAKER));
    }
    let mut more = allowed(MAKER);
    more.retain(|call| !allowed(BROKER_ONLY).contains(call));
    assert_eq!(more, NAMING);
}
