//! Descriptions of machines, there and back.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("vm.toml"))
}

#[test]
fn an_empty_file_is_a_machine_without_anything() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.serial(), Stream::Stdio);
    assert_eq!(config.cmdline(), "console=ttyS0");
}

#[test]
fn the_console_takes_the_terminal_from_the_serial_line() {
    let config = parse("kernel = 'k'\nconsole = 'stdio'\n")
        .unwrap()
        .complete();
    assert_eq!(config.serial, Some(Stream::None));
    assert_eq!(config.cmdline.as_deref(), Some("console=hvc0"));
    let config = parse("serial = 'none'").unwrap();
    assert_eq!(config.cmdline(), "");
    let config = parse("cmdline = ''\nserial = 'pty'").unwrap();
    assert_eq!(
        (config.cmdline(), config.serial()),
        (String::new(), Stream::Pty)
    );
}

#[test]
fn everything_is_read() {
    let text = "
        kernel = '/boot/vmlinuz'
        initrd = 'initrd'
        cmdline = 'quiet'
        cpus = 4
        memory = '6G'
        transport = 'mmio'
        serial = 'log.txt'
        console = 'pty'
        rng = true
        reboot = false
        shutdown-timeout = 5
        [[disk]]
        file = 'a.raw'
        readonly = true
        serial = 'A'
        direct = true
        bytes-per-second = '1M'
        requests-per-second = 100
        [[disk]]
        file = '/dev/sdb'
        [[net]]
        tap = 'tap0'
        mac = '02:00:00:00:00:01'
        [vsock]
        cid = 3
        socket = 'vm.sock'
        [cloud-init]
        user-data = 'user.yaml'
        ssh-key = ['key.pub', 'ssh-rsa AAAA me']
        hostname = 'guest'
    ";
    let config = parse(text).unwrap();
    assert_eq!(config.memory(), 6 << 30);
    assert_eq!(config.serial(), Stream::File("log.txt".into()));
    assert_eq!(config.disk.len(), 2);
    assert_eq!(config.net[0].mac, Some(Mac([2, 0, 0, 0, 0, 1])));
    assert_eq!(parse(&config.text().unwrap()), Ok(config));
}

#[test]
fn errors_name_the_line() {
    for (text, said) in [
        (
            "cpus = 1\nkernal = 'x'",
            "vm.toml:2: unknown field `kernal`",
        ),
        ("\n\nmemory = '1X'", "vm.toml:3: '1X' is not a size"),
        ("memory = true", "vm.toml:1: a size"),
        ("cpus = 300", "vm.toml:1: "),
        ("transport = 'isa'", "vm.toml:1: unknown variant `isa`"),
        (
            "[[disk]]\nreadonly = true",
            "vm.toml:1: missing field `file`",
        ),
        (
            "[[net]]\ntap = 'x'\nmac = '1:2'",
            "vm.toml:3: '1:2' is not a MAC",
        ),
        ("cpus = = 1", "vm.toml:1: "),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(said), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn addresses_are_read_and_made() {
    assert_eq!(
        Mac::parse("02:aB:00:00:00:ff").unwrap().to_string(),
        "02:ab:00:00:00:ff"
    );
    for text in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "2:0:0:0:0:1",
        "01:00:00:00:00:00",
        "00:00:00:00:00:00",
        "0x:00:00:00:00:00",
    ] {
        assert!(Mac::parse(text).is_err(), "{text}");
    }
    let made = Mac::of_name("tap0");
    assert_eq!(Mac::parse(&made.to_string()), Ok(made));
    assert_ne!(made, Mac::of_name("tap1"));
}

proptest! {
    #[test]
    fn sizes_come_back(bytes in any::<u32>(), shift in 0_u32..30) {
        let config = Config { memory: Some(Size(u64::from(bytes) << shift)), ..Config::default() };
        prop_assert_eq!(parse(&config.text().unwrap()), Ok(config));
    }

    #[test]
    fn no_text_is_trouble(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }
}
