//! Options of `run` as they are typed.

use super::*;
use crate::cli::{Cli, Command, Stop, parse};

fn typed(line: &str) -> (Box<RunOptions>, LimitOptions) {
    let words = line.split(' ').map(OsString::from);
    match parse(words) {
        Ok(Cli {
            command: Command::Run(options),
            limits,
            ..
        }) => (options, limits),
        Err(Stop::Wrong(error)) => panic!("{line}: {}", error.sentence),
        _ => panic!("{line}"),
    }
}

fn made(line: &str) -> Result<Config, String> {
    let (options, limits) = typed(line);
    options.over(Config::default(), &limits)
}

#[test]
fn options_make_a_machine() {
    let config = made(
        "instar run --kernel k --initrd i --cmdline -x --cpus 2 --memory 1G --transport mmio --rng --no-reboot \
         --disk a,,b=c,readonly,serial=X,format=qcow2 --disk /dev/sdb,direct=off,bytes-per-second=1M,requests-per-second=7 \
         --net tap:t0,mac=02:00:00:00:00:02 --vsock 7:/run/v:m,s --serial log --console pty --shutdown-timeout 4",
    )
    .unwrap();
    assert_eq!(config.kernel, Some("k".into()));
    assert_eq!(config.cmdline.as_deref(), Some("-x"));
    assert_eq!((config.cpus(), config.memory()), (2, 1 << 30));
    assert_eq!(config.transport, Transport::Mmio);
    assert!(config.rng && !config.reboot);
    assert_eq!(config.shutdown_timeout, 4);
    let first = Disk {
        file: "a,b=c".into(),
        format: Some(Format::Qcow2),
        readonly: true,
        serial: "X".into(),
        ..Disk::default()
    };
    let second = Disk {
        file: "/dev/sdb".into(),
        bytes_per_second: Size(1 << 20),
        requests_per_second: 7,
        ..Disk::default()
    };
    assert_eq!(config.disk, [first, second]);
    assert_eq!(config.net[0].tap, "t0");
    let vsock = config.vsock.unwrap();
    assert_eq!((vsock.cid, vsock.socket), (7, "/run/v:m,s".into()));
    assert_eq!(config.serial, Some(Stream::File("log".into())));
    assert_eq!(config.console, Stream::Pty);
}

#[test]
fn an_image_is_a_machine_with_other_defaults() {
    let config = made(
        "instar run d.img --entry 1>0 --append single --ssh-key a.pub --ssh-key b.pub --hostname h \
         --user-data u --meta-data m --network-config n",
    )
    .unwrap();
    assert_eq!(config.image, Some("d.img".into()));
    assert!(config.scans());
    assert_eq!(config.memory(), 1 << 30);
    assert!((1..=2).contains(&config.cpus()));
    assert_eq!(config.cloud_init.ssh_key, ["a.pub", "b.pub"]);
    let all = config.complete();
    assert!(all.rng && all.cpus.is_some() && all.memory.is_some());
    assert_eq!(all.cmdline, None);
    let text = all.text().unwrap();
    assert_eq!(Config::parse(&text, std::path::Path::new("t")), Ok(all));
    let other = made("instar run d.img --kernel k").unwrap();
    assert!(!other.scans() && other.memory() == 1 << 30);
}

#[test]
fn options_go_before_the_file() {
    let (options, limits) = typed("instar run --memory 64M --vsock cid=9,socket=s --config x.toml");
    let file = Config {
        kernel: Some("k".into()),
        cpus: Some(3),
        disk: vec![Disk {
            file: "d".into(),
            ..Disk::default()
        }],
        ..Config::default()
    };
    let config = options.over(file.clone(), &limits).unwrap();
    assert_eq!((config.cpus(), config.memory()), (3, 64 << 20));
    assert_eq!(config.disk, file.disk);
    assert_eq!(config.vsock.unwrap().cid, 9);
}

#[test]
fn what_is_wrong_is_said() {
    for (line, said) in [
        ("instar run i --snapshot-on-exit", "is not possible yet"),
        ("instar run --disk a,redonly", "--disk knows no 'redonly'"),
        (
            "instar run --disk a,readonly=maybe",
            "'readonly' is on or off",
        ),
        ("instar run --disk a,serial", "'serial' needs a value"),
        ("instar run --disk a,format=vmdk", "raw or qcow2"),
        (
            "instar run --disk a,requests-per-second=x",
            "'x' is not a number",
        ),
        (
            "instar run --net bridge:b",
            "--net expects user, passt, tap:NAME or none",
        ),
        ("instar run --net user,mtu=x", "'x' is not a number"),
        (
            "instar run --net tap:t,mac=03:00:00:00:00:00",
            "is not a MAC address",
        ),
        ("instar run --vsock /run/x", "--vsock expects CID:PATH"),
        ("instar run --vsock 99999999999:x", "is not a number"),
    ] {
        let error = made(line).unwrap_err();
        assert!(error.contains(said), "{line}: {error}");
    }
}

#[test]
fn what_does_not_go_together_is_said() {
    use super::super::check::check;
    for (line, said) in [
        ("instar run --cpus 1", "there is nothing to start"),
        ("instar run --kernel k --firmware f", "exclude each other"),
        ("instar run --firmware f --cmdline x", "belong to --kernel"),
        ("instar run --kernel k --entry 0", "belong to what a disk"),
        ("instar run i --firmware f --append x", "belong to what a"),
        ("instar run i --initrd x", "--initrd belongs to --kernel"),
        ("instar run --kernel k --cpus 0", "1 to 32 vCPUs"),
        ("instar run --kernel k --cpus 33", "1 to 32 vCPUs"),
        ("instar run --kernel k --memory 33M", "multiple of 2M"),
        ("instar run --kernel k --memory 2M", "at least 32M"),
        (
            "instar run --kernel k --serial stdio --console stdio",
            "only one of",
        ),
        (
            "instar run --kernel k --disk a,serial=123456789012345678901",
            "at most 20",
        ),
        (
            "instar run --kernel k --net tap:a/b",
            "is not the name of a tap",
        ),
        (
            "instar run --kernel k --net tap:0123456789abcdef",
            "is not the name of a tap",
        ),
        (
            "instar run --kernel k --net user --net user",
            "at most one network of --net user and --net passt",
        ),
        (
            "instar run --kernel k --net none --net user",
            "--net none stands alone",
        ),
        (
            "instar run --kernel k --net tap:t --allow host",
            "belong to --net user",
        ),
        (
            "instar run --kernel k --net user --net passt",
            "at most one network of --net user and --net passt",
        ),
        (
            "instar run --kernel k --net passt --deny lan",
            "what a guest reaches through passt is passt's to decide",
        ),
        (
            "instar run --kernel k --net passt --net-log l",
            "belong to --net user",
        ),
        (
            "instar run --kernel k --net passt,dns=192.0.2.1:53",
            "'192.0.2.1:53' is not the address of a DNS server for passt",
        ),
        (
            "instar run --kernel k --net passt --forward 2222:22",
            "no forwarded port",
        ),
        ("instar run --kernel k --net user,mtu=100", "576 to 65520"),
        ("instar run --kernel k --net user,dns=x", "'x' is not the"),
        (
            "instar run --kernel k --forward 2222:22",
            "no forwarded port",
        ),
        ("instar run --kernel k --allow 1.2.3.4/16", "is no rule"),
        ("instar run --kernel k --allow all", "can only be denied"),
        ("instar run --kernel k --vsock 2:x", "is 3 or more"),
        ("instar run --kernel k --vsock 3:", "needs the path"),
        ("instar run --kernel k --disk ,readonly", "no file name"),
    ] {
        let error = made(line).and_then(|config| check(&config)).unwrap_err();
        assert!(error.contains(said), "{line}: {error}");
    }
}

#[test]
fn a_user_network_is_there_where_it_is_named_or_an_image_is_booted() {
    use super::super::check::check;
    let line = "instar run --kernel k --forward tcp:2222:22 --allow host --deny all --net-log l";
    let config = made(line).unwrap();
    assert_eq!(check(&config), Ok(()));
    let net = &config.net[0];
    assert_eq!(net.kind, Some(NetKind::User));
    assert_eq!(
        (&*net.forward, &*net.allow),
        (&["tcp:2222:22".into()][..], &["host".into()][..])
    );
    assert_eq!(
        (&*net.deny, &net.log),
        (&["all".into()][..], &Some("l".into()))
    );
    let all = config.complete();
    let text = all.text().unwrap();
    assert_eq!(Config::parse(&text, std::path::Path::new("t")), Ok(all));
    assert!(made("instar run --kernel k").unwrap().net.is_empty());
    let image = made("instar run d.img").unwrap();
    assert_eq!(image.net, [Net::of_kind(NetKind::User)]);
    let none = made("instar run d.img --net none").unwrap();
    assert_eq!((check(&none), none.net.len()), (Ok(()), 1));
}

#[test]
fn passt_is_told_of_ports_and_servers() {
    use super::super::check::check;
    let line = "instar run d.img --net passt,mtu=1500,dns=2001:db8::1 --forward udp:53:53";
    let config = made(line).unwrap();
    assert_eq!(check(&config), Ok(()));
    let net = Net {
        mtu: Some(1500),
        dns: vec!["2001:db8::1".into()],
        forward: vec!["udp:53:53".into()],
        ..Net::of_kind(NetKind::Passt)
    };
    assert_eq!(config.net, [net]);
    let all = config.complete();
    let text = all.text().unwrap();
    assert!(text.contains("kind = \"passt\""), "{text}");
    assert_eq!(Config::parse(&text, std::path::Path::new("t")), Ok(all));
}
