use super::*;

fn texts(rules: &[&str]) -> Vec<String> {
    rules.iter().map(|rule| (*rule).to_owned()).collect()
}

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    Policy::new(&texts(allow), &texts(deny)).unwrap()
}

fn allows(policy: &Policy, to: &str) -> bool {
    let (protocol, rest) = to.split_once(' ').unwrap();
    let (address, port) = rest.rsplit_once(' ').unwrap();
    let target = Target {
        protocol: match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => Protocol::Icmp,
        },
        address: address.parse().unwrap(),
        port: port.parse().unwrap(),
        own: false,
    };
    policy.decide(&target, Instant::now()) == Verdict::Allow
}

#[test]
fn addresses_are_of_the_kind_that_the_registries_say() {
    let cases = [
        (
            Place::Host,
            "127.0.0.1 127.9.9.9 10.0.2.2 10.0.2.3 ::1 ::ffff:127.0.0.1",
        ),
        (
            Place::Lan,
            "10.0.0.1 10.0.3.1 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 100.64.0.1 198.18.0.1 \
             168.63.129.16 fd00::1 fe80::1 ::ffff:192.168.0.1 64:ff9b::a00:1 2002:c0a8:1::1 fec0::1 4000::1 \
             64:ff9b:1::c0a8:1 2001:0:4136:e378::1 100::1",
        ),
        (
            Place::Nowhere,
            "0.0.0.0 0.1.2.3 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 10.0.2.9 10.0.2.15 10.0.2.255 \
             ff02::1 ::",
        ),
        (
            Place::Public,
            "1.1.1.1 8.8.8.8 172.32.0.1 100.128.0.1 192.169.0.1 11.0.0.1 9.255.255.255 2606:4700::1 \
             64:ff9b::808:808 ::ffff:8.8.8.8 2a00:1450::1",
        ),
    ];
    for (want, addresses) in cases {
        for address in addresses.split_ascii_whitespace() {
            assert_eq!(place(address.parse().unwrap()), want, "{address}");
        }
    }
}

#[test]
fn host_and_lan_are_denied_and_the_rest_is_allowed() {
    let policy = policy(&[], &[]);
    for to in ["tcp 1.1.1.1 80", "udp 8.8.8.8 53", "icmp 1.1.1.1 0"] {
        assert!(allows(&policy, to), "{to}");
    }
    for to in [
        "tcp 10.0.2.2 80",
        "tcp 127.0.0.1 80",
        "tcp 192.168.0.1 80",
        "udp 224.0.0.251 5353",
        "icmp 169.254.169.254 0",
        "tcp 0.0.0.0 80",
    ] {
        assert!(!allows(&policy, to), "{to}");
    }
}

#[test]
fn what_is_denied_goes_before_what_is_allowed_and_both_before_the_rest() {
    let policy = policy(
        &[
            "192.168.0.0/16",
            "host:8080",
            "tcp:1.2.3.0/24:80-89",
            "lan:53",
        ],
        &["192.168.7.0/24", "udp:9.9.9.9", "icmp:8.8.8.8"],
    );
    let allowed = [
        "tcp 192.168.1.1 22",
        "tcp 10.0.2.2 8080",
        "udp 10.1.1.1 53",
        "tcp 9.9.9.9 53",
        "tcp 8.8.8.8 1",
    ];
    let denied = [
        "tcp 192.168.7.1 22",
        "tcp 10.0.2.2 8081",
        "tcp 10.1.1.1 54",
        "udp 9.9.9.9 53",
        "icmp 8.8.8.8 0",
        // No rule reaches where nobody is.
        "udp 10.0.2.77 53",
    ];
    for to in allowed {
        assert!(allows(&policy, to), "{to}");
    }
    for to in denied {
        assert!(!allows(&policy, to), "{to}");
    }
}

#[test]
fn nothing_is_allowed_but_by_rules_when_all_is_denied() {
    let policy = policy(&["tcp:1.2.3.0/24:80-89", "icmp:1.1.1.1"], &["all"]);
    assert!(allows(&policy, "tcp 1.2.3.4 80"));
    assert!(allows(&policy, "tcp 1.2.3.4 89"));
    assert!(allows(&policy, "icmp 1.1.1.1 0"));
    for to in [
        "tcp 1.2.3.4 90",
        "udp 1.2.3.4 80",
        "tcp 1.1.1.1 80",
        "tcp 1.2.4.4 80",
    ] {
        assert!(!allows(&policy, to), "{to}");
    }
}

#[test]
fn an_address_of_the_host_is_the_host() {
    let own = |policy: &Policy| {
        let target = Target {
            protocol: Protocol::Tcp,
            address: [203, 0, 113, 5].into(),
            port: 80,
            own: true,
        };
        policy.decide(&target, Instant::now()) == Verdict::Allow
    };
    assert!(!own(&policy(&[], &[])));
    assert!(own(&policy(&["host"], &[])));
    assert!(own(&policy(&["203.0.113.5:80"], &[])));
    assert!(own(&policy(&["203.0.113.5/32"], &["203.0.113.6"])));
    assert!(!own(&policy(&["host"], &["203.0.113.0/24"])));
}

#[test]
fn a_network_does_not_open_the_host_that_lies_in_it() {
    for wide in ["0.0.0.0/0", "203.0.113.0/24", "10.0.0.0/8", "lan"] {
        let policy = policy(&[wide], &["all"]);
        let own = Target {
            protocol: Protocol::Tcp,
            address: [203, 0, 113, 5].into(),
            port: 80,
            own: true,
        };
        let verdict = policy.decide(&own, Instant::now());
        assert!(
            matches!(verdict, Verdict::Deny(why) if why.contains("host")),
            "{wide}"
        );
        for to in ["tcp 127.0.0.1 80", "tcp 10.0.2.2 80", "udp 10.0.2.3 54"] {
            assert!(!allows(&policy, to), "{wide}: {to}");
        }
    }
    let loopback = policy(&["127.0.0.0/8"], &[]);
    assert!(allows(&loopback, "tcp 127.0.0.1 80"));
    assert!(!allows(&loopback, "tcp 10.0.2.2 80"));
    assert!(allows(&policy(&["10.0.2.2"], &[]), "tcp 10.0.2.2 80"));
    let wide = policy(&["0.0.0.0/0"], &["all"]);
    assert!(allows(&wide, "tcp 8.8.8.8 80") && allows(&wide, "tcp 192.168.0.1 80"));
}

#[test]
fn what_is_no_rule_refuses_everything() {
    let wrong = [
        "",
        ":80",
        "tcp:",
        "1.2.3.4:",
        "1.2.3.4:0",
        "1.2.3.4:90-80",
        "1.2.3.4:80,90",
        "1.2.3.4/33",
        "1.2.3.4/16",
        "1.2.3/24",
        "sctp:1.2.3.4",
        "exa mple.com",
        "*",
        "*.*.com",
        "1.2.3.4.5",
        "[1.2.3.4]:80",
        "[::1",
        "fe80::/65x",
        "icmp:1.1.1.1:80",
        "a..b",
        "-a.com",
        "tcp:all",
        "all:80",
        "999.1.1.1",
        "*.",
        ".",
        "1.1.1.1:+80",
    ];
    for text in wrong {
        assert!(Policy::new(&texts(&[text]), &[]).is_err(), "allow {text:?}");
        assert!(Policy::new(&[], &texts(&[text])).is_err(), "deny {text:?}");
    }
    assert_eq!(
        Policy::new(&texts(&["all"]), &[]).unwrap_err(),
        RuleError::AllowAll
    );
    let narrowed = Policy::new(&[], &texts(&["example.com:80"]));
    assert_eq!(
        narrowed.unwrap_err(),
        RuleError::DeniedName("example.com:80".into())
    );
    let many = vec!["host".to_owned(); MAX_RULES + 1];
    assert_eq!(Policy::new(&many, &[]).unwrap_err(), RuleError::TooMany);
    for right in [
        "::1",
        "[::1]:80",
        "[2001:db8::/32]:1-2",
        "2001:db8::/32",
        "tcp:[::1]",
        "a.b.",
        "0.0.0.0/0",
        "::/0",
    ] {
        assert!(Policy::new(&texts(&[right]), &[]).is_ok(), "{right}");
    }
}
