//! Options as they are typed.

use super::*;
use crate::info::Format;
use instar_shared::check::RepairMode;

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
    assert!(info.backing_chain && info.image.force_share && !info.image.how.image_opts);
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
    assert_eq!(cache_mode("source ", check.cache.as_ref()), Ok(()));
    assert_eq!(
        repair_mode(check.repair.as_ref()),
        Ok(Some(RepairMode::Leaks))
    );
}

fn check(line: &str) -> (Option<String>, Vec<OsString>) {
    match parse(arguments(line)).map(|cli| cli.command) {
        Ok(Command::Check(check)) => {
            let repair = check.repair.map(|value| value.into_string().unwrap());
            (repair, check.image.files)
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn repair_takes_the_next_word_only_if_it_is_a_value_and_a_file_is_left() {
    for (line, repair, files) in [
        ("instar check a", None, "a"),
        ("instar check -r a", Some("leaks"), "a"),
        ("instar check --repair a", Some("leaks"), "a"),
        ("instar check --rep a", Some("leaks"), "a"),
        ("instar check a --repair", Some("leaks"), "a"),
        ("instar check -r all a", Some("all"), "a"),
        ("instar check --repair all a", Some("all"), "a"),
        ("instar check a -r all", Some("all"), "a"),
        ("instar check --repair=all a", Some("all"), "a"),
        ("instar check -rall a", Some("all"), "a"),
        ("instar check -qr all a", Some("all"), "a"),
        ("instar check -qUr a", Some("leaks"), "a"),
        ("instar check -r all -r leaks a", Some("leaks"), "a"),
        ("instar check --repair all", Some("leaks"), "all"),
        ("instar check -r leaks -r all", Some("leaks"), "all"),
        ("instar check -r -- all", Some("leaks"), "all"),
        ("instar check -r all -- leaks", Some("all"), "leaks"),
        ("instar check -r leaks all", Some("leaks"), "all"),
        ("instar check --repair= a", Some(""), "a"),
        ("instar check -- --repair", None, "--repair"),
        ("instar --memory 4M check -r all a", Some("all"), "a"),
    ] {
        let expected = (repair.map(str::to_owned), vec![OsString::from(files)]);
        assert_eq!(check(line), expected, "{line}");
    }
    assert_eq!(
        wrong("instar check -r bogus a"),
        "--repair (-r) expects 'leaks' or 'all' not 'bogus'"
    );
    assert_eq!(check("instar check -r all a b").1.len(), 2);
}

#[test]
fn a_size_after_the_file_may_look_like_an_option() {
    for (line, words) in [
        ("instar resize a -5M", ["a", "-5M"]),
        ("instar resize a -5M --shrink", ["a", "-5M"]),
        ("instar resize --shrink -f qcow2 a -5M", ["a", "-5M"]),
        ("instar resize a +5M -q", ["a", "+5M"]),
        ("instar resize -- a -5M", ["a", "-5M"]),
        ("instar resize a -- -5M", ["a", "-5M"]),
        ("instar resize a -", ["a", "-"]),
    ] {
        match parse(arguments(line)).map(|cli| cli.command) {
            Ok(Command::Resize(resize)) => assert_eq!(resize.words, words, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    for line in [
        "instar resize -5M a",
        "instar resize a 5M -3M",
        "instar resize a -k",
        "instar resize a --5",
        "instar resize -U a 5M",
        "instar bitmap -q --add a b",
        "instar amend -U -o size=1M a",
        "instar snapshot -T none a",
    ] {
        let sentence = wrong(line);
        let known = ["invalid option -- '", "unrecognized option '-"];
        assert!(
            known.iter().any(|start| sentence.starts_with(start)),
            "{sentence}"
        );
        assert!(!sentence.contains('\0'), "{sentence}");
    }
    assert!(wrong("instar resize --timeout -5 a 1M").contains("'-5' is not a number"));
}

#[test]
fn bitmap_actions_keep_their_order() {
    let line = "instar bitmap --merge x --add -g 1M --disable --merge --add a --clear b --enable --remove --add";
    let Ok(Command::Bitmap(bitmap)) = parse(arguments(line)).map(|cli| cli.command) else {
        panic!("not bitmap");
    };
    let names: Vec<_> = bitmap.actions.iter().map(Action::name).collect();
    assert_eq!(
        names.join(" "),
        "merge add disable merge clear enable remove add"
    );
    assert_eq!(bitmap.actions[0], Action::Merge("x".into()));
    assert_eq!(bitmap.actions[3], Action::Merge("--add".into()));
    assert_eq!(bitmap.words, ["a", "b"]);
}

#[test]
fn limits_are_read_for_every_command() {
    for command in ["check", "snapshot", "resize", "amend", "bitmap"] {
        let line = format!("instar {command} --max-growth 1.5G");
        assert_eq!(
            parse(arguments(&line)).unwrap().limits.max_growth,
            Some(3 << 29)
        );
    }
    assert!(wrong("instar resize --max-growth x").contains("is not a size"));
}

#[test]
fn wrong_use_is_one_sentence() {
    assert_eq!(wrong("instar"), "Not enough arguments");
    assert_eq!(wrong("instar bogus"), "Command not found: bogus");
    for (line, sentence) in [
        ("instar info --bogus=3 a", "unrecognized option '--bogus=3'"),
        ("instar info -f", "option requires an argument -- 'f'"),
        ("instar info -bf", "option requires an argument -- 'f'"),
        (
            "instar info --format",
            "option '--format' requires an argument",
        ),
        (
            "instar check --quiet=3 a",
            "option '--quiet' doesn't allow an argument",
        ),
        (
            "instar check --f a",
            "option '--f' is ambiguous; possibilities: '--format' '--force-share'",
        ),
    ] {
        assert_eq!(wrong(line), sentence);
    }
    assert!(wrong("instar info a --memory 12Q").contains("is not a size"));
    assert!(wrong("instar info a --memory 1").contains("at least 1M"));
    for seconds in ["0", "-1", "nan", "x", "1e99"] {
        assert!(wrong(&format!("instar info a --timeout={seconds}")).contains("seconds"));
    }
    let mode = OsString::from("bogus");
    assert_eq!(
        cache_mode("source ", Some(&mode)).unwrap_err().sentence,
        "Invalid source cache option: bogus"
    );
    assert_eq!(
        repair_mode(Some(&mode)).unwrap_err().sentence,
        "--repair (-r) expects 'leaks' or 'all' not 'bogus'"
    );
    assert_eq!(
        output_format(&mode).unwrap_err().sentence,
        "--output expects 'human' or 'json' not 'bogus'"
    );
}

#[test]
fn each_commands_help_starts_with_what_it_is_about() {
    let abouts: Vec<(String, String)> = Cli::command()
        .get_subcommands()
        .map(|command| {
            let about = command.get_about().map(ToString::to_string);
            (command.get_name().to_owned(), about.unwrap_or_default())
        })
        .collect();
    assert!(abouts.len() > 10);
    for (command, about) in abouts {
        let words = ["instar", &command, "-h"].map(OsString::from);
        match parse(words) {
            Err(Stop::Print(text)) => {
                assert!(
                    !about.is_empty() && text.starts_with(&about),
                    "{command}: {text}"
                );
            }
            other => panic!("{command}: {other:?}"),
        }
    }
}

#[test]
fn help_and_version_are_printed() {
    for (line, part) in [
        ("instar --help", "Exit codes:"),
        ("instar info --help", "--backing-chain"),
        ("instar check -h", "--quiet"),
        ("instar snapshot -h", "before-upgrade"),
        ("instar resize --help", "[+|-]SIZE"),
        ("instar amend --help", "-o help"),
        ("instar bitmap --help", "--merge <SOURCE>"),
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
    assert!((values::MIN_MEMORY_BYTES..=8 << 30).contains(&bytes));
}
