//! Running statements.

use super::menu::Item;
use super::parse::{Block, Statement};
use super::words::{Values, Word, expand};
use super::{MAX_DEPTH, MAX_STEPS, MAX_VARIABLES, ScriptError};
use crate::Place;
use crate::disk::Disk;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// How a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// At its end, with this status.
    Next(bool),
    /// By `return`, `break` or `exit`: what is around it ends too, up to a call or a loop.
    Leave(bool),
}

/// What the commands of a menu entry have loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub kernel: Option<Place>,
    pub initrds: Vec<Place>,
    pub cmdline: Vec<u8>,
    /// What stands against it.
    pub problem: Option<String>,
}

/// A script that runs.
pub struct Machine<'d> {
    pub disk: &'d Disk,
    pub variables: BTreeMap<Vec<u8>, Vec<u8>>,
    functions: BTreeMap<Vec<u8>, Block>,
    /// Arguments of the function or menu entry that runs, from 1.
    pub arguments: Vec<Vec<u8>>,
    status: bool,
    steps: usize,
    depth: usize,
    /// The menu so far, and the submenu that is being filled.
    pub items: Vec<Item>,
    pub loaded: Loaded,
    /// Bodies are of menu entries: no new ones come.
    pub booting: bool,
}

impl Values for Machine<'_> {
    fn values(&self, name: &[u8]) -> Vec<Vec<u8>> {
        let number = core::str::from_utf8(name)
            .ok()
            .and_then(|n| n.parse::<usize>().ok());
        match (name, number) {
            (b"?", _) => [if self.status { "0" } else { "1" }.into()].into(),
            (b"@" | b"*", _) => self.arguments.clone(),
            (b"#", _) => [self.arguments.len().to_string().into_bytes()].into(),
            (_, Some(number)) => {
                let index = number.checked_sub(1);
                let found = index.and_then(|index| self.arguments.get(index));
                found.cloned().into_iter().collect()
            }
            _ => [self.get(name)].into(),
        }
    }
}

impl<'d> Machine<'d> {
    /// A machine whose `root` is the volume, as it is before the first command.
    pub fn new(disk: &'d Disk, config: &Place) -> Self {
        let mut machine = Self {
            disk,
            variables: BTreeMap::new(),
            functions: BTreeMap::new(),
            arguments: Vec::new(),
            status: true,
            steps: 0,
            depth: 0,
            items: Vec::new(),
            loaded: Loaded::default(),
            booting: false,
        };
        let root = disk.grub_name(config.volume);
        let folder = config.path.iter().rposition(|byte| *byte == b'/');
        let folder = config.path.get(..folder.unwrap_or(0)).unwrap_or(&[]);
        let prefix = [b"(", root.as_bytes(), b")", folder].concat();
        let platform: &[u8] = if disk.is_efi() { b"efi" } else { b"pc" };
        let cpu: &[u8] = if disk.is_efi() { b"x86_64" } else { b"i386" };
        for (name, value) in [
            (&b"root"[..], root.as_bytes()),
            (b"prefix", &prefix),
            (b"config_directory", &prefix),
            (b"grub_platform", platform),
            (b"grub_cpu", cpu),
        ] {
            machine.variables.insert(name.to_vec(), value.to_vec());
        }
        machine
    }

    /// The value of a variable; empty for none. Every feature that a script asks for is there.
    pub fn get(&self, name: &[u8]) -> Vec<u8> {
        match self.variables.get(name) {
            Some(value) => value.clone(),
            None if name.starts_with(b"feature_") => b"y".to_vec(),
            None => Vec::new(),
        }
    }

    /// Sets a variable.
    ///
    /// # Errors
    /// There are too many, or they are too large.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), ScriptError> {
        self.variables.insert(name.to_vec(), value.to_vec());
        let sizes = self
            .variables
            .iter()
            .map(|(n, v)| n.len().saturating_add(v.len()));
        if sizes.fold(0, usize::saturating_add) > MAX_VARIABLES {
            return Err(ScriptError::TooLarge);
        }
        Ok(())
    }

    /// What words become.
    ///
    /// # Errors
    /// They are too long.
    pub fn expand(&self, words: &[Word]) -> Result<Vec<Vec<u8>>, ScriptError> {
        expand(words, self)
    }

    fn step(&mut self) -> Result<(), ScriptError> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > MAX_STEPS {
            return Err(ScriptError::TooManySteps);
        }
        Ok(())
    }

    /// Runs a block one level deeper.
    ///
    /// # Errors
    /// The script is nested too deep, does not end, or is too large.
    pub fn run(&mut self, block: &Block) -> Result<Flow, ScriptError> {
        if self.depth >= MAX_DEPTH {
            return Err(ScriptError::TooDeep);
        }
        self.depth = self.depth.saturating_add(1);
        let flow = self.run_all(block);
        self.depth = self.depth.saturating_sub(1);
        flow
    }

    fn run_all(&mut self, block: &Block) -> Result<Flow, ScriptError> {
        for statement in block.iter() {
            self.step()?;
            match self.statement(statement)? {
                Flow::Next(status) => self.status = status,
                leave @ Flow::Leave(_) => return Ok(leave),
            }
        }
        Ok(Flow::Next(self.status))
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, ScriptError> {
        match statement {
            Statement::Command(words, block) => self.command(words, block.as_ref()),
            Statement::If(branches, otherwise) => {
                for (condition, body) in branches {
                    match self.run(condition)? {
                        Flow::Next(true) => return self.run(body),
                        Flow::Next(false) => {}
                        leave @ Flow::Leave(_) => return Ok(leave),
                    }
                }
                match otherwise {
                    Some(body) => self.run(body),
                    None => Ok(Flow::Next(true)),
                }
            }
            Statement::For(name, words, body) => {
                for value in self.expand(words)? {
                    self.step()?;
                    self.set(name, &value)?;
                    if let leave @ Flow::Leave(_) = self.run(body)? {
                        return Ok(leave);
                    }
                }
                Ok(Flow::Next(self.status))
            }
            Statement::While(condition, body, until) => {
                while self.run(condition)? == Flow::Next(!until) {
                    self.step()?;
                    if let leave @ Flow::Leave(_) = self.run(body)? {
                        return Ok(leave);
                    }
                }
                Ok(Flow::Next(self.status))
            }
            Statement::Function(name, body) => {
                self.functions.insert(name.clone(), body.clone());
                Ok(Flow::Next(true))
            }
        }
    }

    fn command(&mut self, words: &[Word], block: Option<&Block>) -> Result<Flow, ScriptError> {
        let words = self.expand(words)?;
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Flow::Next(true));
        };
        if name == b"!" {
            let flow = self.call(arguments, block)?;
            return Ok(match flow {
                Flow::Next(status) => Flow::Next(!status),
                leave @ Flow::Leave(_) => leave,
            });
        }
        self.call(&words, block)
    }

    /// Calls a function of the script, or else a command.
    fn call(&mut self, words: &[Vec<u8>], block: Option<&Block>) -> Result<Flow, ScriptError> {
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Flow::Next(true));
        };
        if let Some(body) = self.functions.get(name).cloned() {
            let outer = core::mem::replace(&mut self.arguments, arguments.to_vec());
            let flow = self.run(&body);
            self.arguments = outer;
            let (Flow::Next(status) | Flow::Leave(status)) = flow?;
            return Ok(Flow::Next(status));
        }
        self.built_in(name, arguments, block)
    }
}
