//! Completions as a shell uses them, and manual pages as they are installed.

use std::path::Path;

use anyhow::{Result, ensure};
use instar_tests::run::{Outcome as Done, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// Asks bash what fits the last of the words.
const ASK: &str = r#"
source /dev/stdin <<<"$SCRIPT"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p "$1" | sed 's/.*-F \([^ ]*\) .*/\1/') "$1" "${@: -1}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

fn instar(scratch: &Scratch, args: &[&str]) -> Result<Done> {
    let done = Run::new(&tools::instar()?, scratch.path())
        .args(args)
        .go()?;
    done.expect_code(0)?;
    Ok(done)
}

/// What bash offers for the last of the words.
fn offered(scratch: &Scratch, script: &str, words: &[&str]) -> Result<Vec<String>> {
    let done = Run::new(&tools::in_path(Path::new("bash"))?, scratch.path())
        .env("SCRIPT", script)
        .args(["-c", ASK, "ask"])
        .args(words)
        .go()?;
    ensure!(done.stderr.is_empty(), "{words:?}: {}", done.describe());
    done.expect_code(0)?;
    Ok(done.out().lines().map(str::to_owned).collect())
}

#[test]
fn bash_offers_commands_and_options_under_both_names() -> Outcome {
    let scratch = Scratch::new()?;
    for name in ["instar", "qemu-img"] {
        let done = instar(&scratch, &["completions", "bash", "--name", name])?;
        for (words, wanted) in [
            (&["conv"][..], &["convert"][..]),
            (&["com"], &["compare", "commit"]),
            (&["manu"], &[]),
            (
                &["convert", "--targ"],
                &[
                    "--target-image-opts",
                    "--target-format",
                    "--target-cache",
                    "--target-is-zero",
                    "--target-options",
                ],
            ),
            (&["info", "--backing"], &["--backing-chain"]),
            (&["resize", "disk.qcow2", "--shr"], &["--shrink"]),
        ] {
            let mut typed = vec![name];
            typed.extend(words);
            let mut got = offered(&scratch, &done.out(), &typed)?;
            got.retain(|word| !word.is_empty());
            got.sort();
            let mut wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            wanted.sort();
            ensure!(got == wanted, "{typed:?}: {got:?}, not {wanted:?}");
        }
    }
    Ok(())
}

#[test]
fn manual_pages_are_written_for_every_command() -> Outcome {
    let scratch = Scratch::new()?;
    for name in ["instar", "qemu-img"] {
        instar(&scratch, &["manual", "--name", name, "."])?;
        for page in ["", "-amend", "-bitmap", "-convert", "-snapshot"] {
            let file = scratch.file(&format!("{name}{page}.1"));
            let text = std::fs::read_to_string(&file)?;
            ensure!(
                text.starts_with(&format!(".TH {name}{page} 1"))
                    || text.contains(&format!("\n.TH {name}{page} 1")),
                "{text}"
            );
        }
    }
    let pages = std::fs::read_dir(scratch.path())?.count();
    ensure!(pages == 35, "{pages} pages");
    let nowhere = Run::new(&tools::instar()?, scratch.path())
        .args(["manual", "no/such"])
        .go()?;
    nowhere.expect_code(1)?;
    let sentence = "Cannot write the manual page of 'instar': No such file or directory";
    ensure!(nowhere.err().contains(sentence), "{}", nowhere.describe());
    Ok(())
}
