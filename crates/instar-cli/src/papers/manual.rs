//! Manual pages: one of the program, one of each command.

use super::{ProgramName, described};
use crate::cli::UsageError;
use crate::failure::system_text;
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::io;
use std::path::{Path, PathBuf};

// Options of `manual`.
#[derive(Args, Debug)]
pub struct ManualOptions {
    /// Folder that the pages are written to
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Name that the program is started by
    #[arg(long, value_name = "NAME", default_value = "instar")]
    pub name: ProgramName,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// A page could not be written.
pub fn run(options: &ManualOptions) -> Result<u8, UsageError> {
    let program = described(options.name);
    let pages = std::iter::once(&program).chain(program.get_subcommands());
    for command in pages {
        write(command, options.name, &options.folder).map_err(|error| {
            UsageError::plain(format!(
                "Cannot write the manual page of '{}': {}",
                command.get_name(),
                system_text(&error)
            ))
        })?;
    }
    Ok(0)
}

fn write(command: &Command, name: ProgramName, folder: &Path) -> io::Result<()> {
    let page = Man::new(command.clone());
    let file = folder.join(page.get_filename());
    std::fs::write(file, rendered(page, command, name)?)
}

/// The text of a page.
pub(super) fn rendered(page: Man, command: &Command, name: ProgramName) -> io::Result<Vec<u8>> {
    let source = format!("instar {}", env!("CARGO_PKG_VERSION"));
    let page = page.source(source).manual("Disk images");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    let notes = command.get_after_help().map(ToString::to_string);
    after(&notes.unwrap_or_default()).to_writer(&mut text)?;
    see_also(command, name).to_writer(&mut text)?;
    Ok(text)
}

/// What stands below the options in the help: prose, exit codes, examples.
fn after(notes: &str) -> Roff {
    let mut roff = Roff::new();
    let mut heading = "NOTES";
    let mut written = "";
    for block in notes.split("\n\n") {
        let mut lines = block.lines().peekable();
        match lines.peek() {
            Some(&"Examples:") => (heading, _) = ("EXAMPLES", lines.next()),
            Some(&"Exit codes:") => (heading, _) = ("EXIT STATUS", lines.next()),
            _ => {}
        }
        if heading != written && lines.peek().is_some() {
            roff.control("SH", [heading]);
            written = heading;
        }
        for line in lines {
            // An indented line is a row of its own.
            if let Some(row) = line.strip_prefix("  ") {
                roff.control("nf", []);
                roff.text([roman(row)]);
                roff.control("fi", []);
            } else {
                roff.text([roman(line)]);
            }
        }
    }
    roff
}

/// The pages beside a command's.
fn see_also(command: &Command, name: ProgramName) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let beside = if command.has_subcommands() {
        let names = command.get_subcommands().map(Command::get_name);
        let pages: Vec<_> = names
            .map(|sub| format!("{}-{sub}(1)", name.word()))
            .collect();
        pages.join(", ")
    } else {
        format!("{}(1)", name.word())
    };
    roff.text([roman(beside)]);
    roff
}
