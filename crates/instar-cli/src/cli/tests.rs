//! Options as they are typed.

use super::*;

fn arguments(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

fn wrong(line: &str) -> String {
    match parse(arguments(line)) {
        Err(Stop::Wrong(error)) => error.sentence,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn definition_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn info_options_are_read() {
    let line = "instar info -b -f qcow2 -U --output=json --memory 512M a --timeout 1.5 --allow-path x --allow-path y";
    let cli = parse(arguments(line)).unwrap();
    assert_eq!(cli.limits.memory, Some(512 << 20));
    assert_eq!(cli.limits.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(
        cli.limits.allow_path,
        [PathBuf::from("x"), PathBuf::from("y")]
    );
    let Command::Info(info) = cli.command else {
        panic!("not info");
    };
    assert!(info.backing_chain && info.image.force_share && !info.image.image_opts);
    assert_eq!(info.image.files, ["a"]);
    assert_eq!(output_format(&info.output), Ok(Format::Json));
}

#[test]
fn long_options_may_be_cut_short() {
    let cli = parse(arguments("instar info --back --out json a")).unwrap();
    assert!(
        matches!(cli.command, Command::Info(info) if info.backing_chain && info.output == "json")
    );
}

#[test]
fn check_options_are_read() {
    let cli = parse(arguments("instar check -q -T none -r leaks a")).unwrap();
    let Command::Check(check) = cli.command else {
        panic!("not check");
    };
    assert!(check.quiet);
    assert_eq!(check.image.files, ["a"]);
    assert_eq!(cache_mode(check.cache.as_ref()), Ok(()));
    assert!(
        repair_mode(check.repair.as_ref())
            .unwrap_err()
            .sentence
            .contains("cannot repair")
    );
}

#[test]
fn wrong_use_is_one_sentence() {
    assert_eq!(wrong("instar"), "Not enough arguments");
    assert_eq!(wrong("instar bogus"), "Command not found: bogus");
    assert!(wrong("instar info --bogus a").contains("--bogus"));
    assert!(wrong("instar info -f").contains("--format"));
    assert!(wrong("instar info a --memory 12Q").contains("is not a size"));
    assert!(wrong("instar info a --memory 1").contains("at least 1M"));
    for seconds in ["0", "-1", "nan", "x", "1e99"] {
        assert!(wrong(&format!("instar info a --timeout={seconds}")).contains("seconds"));
    }
    let mode = OsString::from("bogus");
    let sentence = |result: Result<(), UsageError>| result.unwrap_err().sentence;
    assert_eq!(
        sentence(cache_mode(Some(&mode))),
        "Invalid source cache option: bogus"
    );
    assert_eq!(
        sentence(repair_mode(Some(&mode))),
        "--repair (-r) expects 'leaks' or 'all' not 'bogus'"
    );
    assert_eq!(
        output_format(&mode).unwrap_err().sentence,
        "--output expects 'human' or 'json' not 'bogus'"
    );
}

#[test]
fn help_and_version_are_printed() {
    for (line, part) in [
        ("instar --help", "Exit codes:"),
        ("instar info --help", "--backing-chain"),
        ("instar check -h", "--quiet"),
        ("instar --version", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(
            matches!(parse(arguments(line)), Err(Stop::Print(text)) if text.contains(part)),
            "{line}"
        );
    }
}

#[test]
fn allowed_folders_come_from_options_and_variable() {
    let folders = allowed_folders(&["a".into()], Some("b::/c".into()));
    assert_eq!(folders, ["a", "b", "/c"].map(PathBuf::from));
    assert!(allowed_folders(&[], None).is_empty());
}

#[test]
fn default_memory_is_within_its_bounds() {
    let bytes = default_memory().unwrap();
    assert!((MIN_MEMORY_BYTES..=8 << 30).contains(&bytes));
}
