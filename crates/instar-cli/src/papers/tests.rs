//! Nothing that can be typed is missing.

use super::*;
use clap::Arg;
use clap_mangen::Man;

const NAMES: [ProgramName; 2] = [ProgramName::Instar, ProgramName::QemuImg];

fn completions_of(shell: Shell, name: ProgramName) -> String {
    script(shell, name).unwrap()
}

fn page_of(command: &Command, name: ProgramName) -> String {
    let page = manual::rendered(Man::new(command.clone()), command, name).unwrap();
    String::from_utf8(page).unwrap().replace("\\-", "-")
}

/// The commands under a name as the parser has them, each with its options.
fn commands(name: ProgramName) -> Vec<Command> {
    let mut whole = Cli::command();
    whole.build();
    let own = |sub: &Command| {
        ["run", "serve", "bootscan"].contains(&sub.get_name()) && name == ProgramName::QemuImg
    };
    let shown = whole
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && !own(sub));
    shown.cloned().collect()
}

/// The options of a command that are shown, in their spellings.
fn spellings(command: &Command) -> Vec<String> {
    let shown = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !arg.is_positional());
    let words = |arg: &Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        [long, short].into_iter().flatten().collect::<Vec<_>>()
    };
    shown.flat_map(words).collect()
}

/// The text between two marks, the first of which must be there.
fn part<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text
        .find(from)
        .unwrap_or_else(|| panic!("no {from:?} in:\n{text}"));
    let rest = &text[start + from.len()..];
    &rest[..rest.find(to).unwrap_or(rest.len())]
}

#[test]
fn there_are_as_many_commands_as_qemu_img_has() {
    assert_eq!(commands(ProgramName::QemuImg).len(), 15, "info, check, …");
    assert_eq!(
        commands(ProgramName::Instar).len(),
        18,
        "and run, serve and bootscan"
    );
}

#[test]
fn bash_completes_every_option_of_every_command() {
    for name in NAMES {
        let text = completions_of(Shell::Bash, name);
        assert!(text.contains(&format!("-o default {}\n", name.word())));
        for command in commands(name) {
            let place = format!("\n        instar__subcmd__{})", command.get_name());
            let options = part(&text, &place, ";;\n        ");
            let options = part(options, "opts=\"", "\"");
            let words: Vec<_> = options.split(' ').collect();
            for option in spellings(&command) {
                assert!(
                    words.contains(&option.as_str()),
                    "{place} {option}: {options}"
                );
            }
        }
    }
}

#[test]
fn the_other_shells_complete_every_option() {
    for name in NAMES {
        let zsh = completions_of(Shell::Zsh, name).replace("\n            (", "\n(");
        let fish = completions_of(Shell::Fish, name);
        for command in commands(name) {
            let sub = command.get_name();
            let of_zsh = part(&zsh, &format!("\n({sub})\n"), "\n;;\n");
            let seen = format!("__fish_seen_subcommand_from {sub}\"");
            let with: Vec<_> = fish
                .lines()
                .filter(|line| {
                    line.contains(&seen) || line.contains(&format!("using_subcommand {sub}\""))
                })
                .collect();
            for option in spellings(&command) {
                let quoted = [
                    format!("'{option}"),
                    format!("'*{option}"),
                    format!("){option}"),
                    format!("]{option}"),
                ];
                assert!(
                    quoted.iter().any(|word| of_zsh.contains(word)),
                    "zsh {sub} {option}: {of_zsh}"
                );
                let word = option.strip_prefix("--").map_or_else(
                    || format!(" -s {} ", &option[1..]),
                    |long| format!(" -l {long} "),
                );
                assert!(
                    with.iter().any(|line| format!("{line} ").contains(&word)),
                    "fish {sub} {option}: {with:?}"
                );
            }
        }
    }
}

#[test]
fn pages_tell_every_option_and_lose_no_line_of_the_help() {
    for name in NAMES {
        let program = described(name);
        let first = page_of(&program, name);
        for command in commands(name) {
            let sub = command.get_name();
            assert!(
                first.contains(&format!("{}-{sub}(1)", name.word())),
                "{sub}"
            );
            let page = page_of(program.find_subcommand(sub).unwrap(), name);
            for option in spellings(&command) {
                let bold = format!("\\fB{option}\\fR");
                assert!(page.contains(&bold), "{sub} {option}:\n{page}");
            }
            let about = Cli::command()
                .find_subcommand(sub)
                .unwrap()
                .get_about()
                .unwrap()
                .to_string();
            assert!(
                page.contains(&about.replace('\'', "\\*(Aq")),
                "{sub} {about:?}:\n{page}"
            );
            let notes = command.get_after_help().unwrap().to_string();
            let notes = notes.replace("instar ", &format!("{} ", name.word()));
            for line in notes.lines().filter(|line| !line.ends_with(':')) {
                let line = line.trim().replace('\'', "\\*(Aq");
                assert!(page.contains(&line), "{sub} {line:?}:\n{page}");
            }
        }
    }
}

#[test]
fn the_other_name_stands_everywhere() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let text = completions_of(shell, ProgramName::QemuImg);
        let at_shell = |word: &str| word == "instar" || word == "instar:";
        let registered = text
            .lines()
            .filter(|line| line.contains("compl") || line.contains("compdef"));
        for line in registered {
            assert!(!line.split(' ').any(at_shell), "{shell}: {line}");
        }
        assert!(text.contains("qemu-img"), "{shell}");
    }
    let program = described(ProgramName::QemuImg);
    for command in program.get_subcommands() {
        let page = page_of(command, ProgramName::QemuImg);
        let title = page.lines().find(|line| line.starts_with(".TH"));
        assert!(title.unwrap().starts_with(".TH qemu-img-"), "{title:?}");
        let below = page.lines().filter(|line| !line.starts_with(".TH"));
        assert!(!below.collect::<String>().contains("instar "), "{page}");
    }
}
