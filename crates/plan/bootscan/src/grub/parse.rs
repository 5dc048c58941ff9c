//! From text to statements.

use super::words::{Piece, Word};
use super::{MAX_DEPTH, ScriptError};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Statements, one after the other.
pub type Block = Rc<Vec<Statement>>;

/// A statement.
#[derive(Clone, Debug)]
pub enum Statement {
    /// A command, and the block that stands behind it: that of a menu entry.
    Command(Vec<Word>, Option<Block>),
    /// Conditions with what they lead to, and what is done else.
    If(Vec<(Block, Block)>, Option<Block>),
    /// `for NAME in WORDS`.
    For(Vec<u8>, Vec<Word>, Block),
    /// `while`, or with `true` `until`.
    While(Block, Block, bool),
    /// `function NAME`.
    Function(Vec<u8>, Block),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// End of a line, or `;`.
    End,
    Open,
    Close,
}

/// Statements of a script.
///
/// # Errors
/// It is none.
pub fn parse(text: &[u8]) -> Result<Block, ScriptError> {
    let mut parser = Parser {
        text,
        at: 0,
        line: 1,
        peeked: None,
    };
    let block = parser.block(&[], 0)?;
    match parser.next()? {
        None => Ok(block),
        Some(_) => Err(parser.syntax()),
    }
}

struct Parser<'t> {
    text: &'t [u8],
    at: usize,
    line: u32,
    peeked: Option<Token>,
}

impl Parser<'_> {
    const fn syntax(&self) -> ScriptError {
        ScriptError::Syntax(self.line)
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.text.get(self.at).copied();
        if byte.is_some() {
            self.at = self.at.saturating_add(1);
        }
        if byte == Some(b'\n') {
            self.line = self.line.saturating_add(1);
        }
        byte
    }

    fn look(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn peek(&mut self) -> Result<Option<&Token>, ScriptError> {
        if self.peeked.is_none() {
            self.peeked = self.token()?;
        }
        Ok(self.peeked.as_ref())
    }

    fn next(&mut self) -> Result<Option<Token>, ScriptError> {
        match self.peeked.take() {
            Some(token) => Ok(Some(token)),
            None => self.token(),
        }
    }

    fn token(&mut self) -> Result<Option<Token>, ScriptError> {
        loop {
            let Some(byte) = self.look() else {
                return Ok(None);
            };
            match byte {
                b' ' | b'\t' | b'\r' => {
                    self.byte();
                }
                b'\\' if self.text.get(self.at.saturating_add(1)) == Some(&b'\n') => {
                    self.byte();
                    self.byte();
                }
                b'#' => {
                    while self.look().is_some_and(|b| b != b'\n') {
                        self.byte();
                    }
                }
                b'\n' | b';' => {
                    self.byte();
                    return Ok(Some(Token::End));
                }
                b'{' | b'}' if self.stands_alone() => {
                    self.byte();
                    return Ok(Some(if byte == b'{' {
                        Token::Open
                    } else {
                        Token::Close
                    }));
                }
                _ => return self.word().map(|word| Some(Token::Word(word))),
            }
        }
    }

    /// Whether the byte here is a word of its own.
    fn stands_alone(&self) -> bool {
        let next = self.text.get(self.at.saturating_add(1));
        next.is_none_or(|b| b.is_ascii_whitespace() || matches!(b, b';' | b'{' | b'}'))
    }

    fn word(&mut self) -> Result<Word, ScriptError> {
        let mut word = Word::default();
        while let Some(byte) = self.look() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' => break,
                b'\'' => {
                    self.byte();
                    word.touch();
                    loop {
                        match self.byte().ok_or(self.syntax())? {
                            b'\'' => break,
                            byte => word.push(byte),
                        }
                    }
                }
                b'"' => self.quoted(&mut word)?,
                b'\\' => {
                    self.byte();
                    match self.byte() {
                        Some(b'\n') | None => {}
                        Some(byte) => word.push(byte),
                    }
                }
                b'$' => self.variable(&mut word, false)?,
                _ => {
                    self.byte();
                    word.push(byte);
                }
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, word: &mut Word) -> Result<(), ScriptError> {
        self.byte();
        word.touch();
        loop {
            match self.look().ok_or(self.syntax())? {
                b'"' => {
                    self.byte();
                    return Ok(());
                }
                b'$' => self.variable(word, true)?,
                b'\\' => {
                    self.byte();
                    match self.byte().ok_or(self.syntax())? {
                        b'\n' => {}
                        byte @ (b'"' | b'$' | b'\\') => word.push(byte),
                        byte => {
                            word.push(b'\\');
                            word.push(byte);
                        }
                    }
                }
                byte => {
                    self.byte();
                    word.push(byte);
                }
            }
        }
    }

    /// `$NAME`, `${NAME}` or one of `$?`, `$@`, `$*`, `$#`; else a plain `$`.
    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), ScriptError> {
        self.byte();
        let mut name = Vec::new();
        match self.look() {
            Some(b'{') => {
                self.byte();
                loop {
                    match self.byte().ok_or(self.syntax())? {
                        b'}' => break,
                        byte => name.push(byte),
                    }
                }
            }
            Some(byte @ (b'?' | b'@' | b'*' | b'#')) => {
                self.byte();
                name.push(byte);
            }
            _ => {
                let digits = self.look().is_some_and(|b| b.is_ascii_digit());
                let part = |b: u8| {
                    b.is_ascii_digit() || (!digits && (b.is_ascii_alphabetic() || b == b'_'))
                };
                while let Some(byte) = self.look().filter(|b| part(*b)) {
                    self.byte();
                    name.push(byte);
                }
            }
        }
        if name.is_empty() {
            word.push(b'$');
        } else {
            word.0.push(Piece::Variable { name, quoted });
        }
        Ok(())
    }

    /// Statements up to one of the words in `ends`, up to `}` or the end, which are not taken.
    fn block(&mut self, ends: &[&[u8]], depth: usize) -> Result<Block, ScriptError> {
        if depth > MAX_DEPTH {
            return Err(ScriptError::TooDeep);
        }
        let mut statements = Vec::new();
        loop {
            match self.peek()? {
                None | Some(Token::Close) => break,
                Some(Token::End) => {
                    self.next()?;
                }
                Some(Token::Open) => return Err(self.syntax()),
                Some(Token::Word(word)) => {
                    if word.literal().is_some_and(|w| ends.contains(&w.as_slice())) {
                        break;
                    }
                    statements.push(self.statement(depth.saturating_add(1))?);
                }
            }
        }
        Ok(Rc::new(statements))
    }

    fn statement(&mut self, depth: usize) -> Result<Statement, ScriptError> {
        let Some(Token::Word(first)) = self.next()? else {
            return Err(self.syntax());
        };
        match first.literal().as_deref() {
            Some(b"if") => self.condition(depth),
            Some(b"for") => self.for_loop(depth),
            Some(b"while") => self.while_loop(depth, false),
            Some(b"until") => self.while_loop(depth, true),
            Some(b"function") => {
                let name = self.name()?;
                let body = self.braces(depth)?.ok_or(self.syntax())?;
                Ok(Statement::Function(name, body))
            }
            _ => {
                let mut words = [first].to_vec();
                words.extend(self.words()?);
                let block = self.braces(depth)?;
                Ok(Statement::Command(words, block))
            }
        }
    }

    /// The words up to the end of the command.
    fn words(&mut self) -> Result<Vec<Word>, ScriptError> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek()? {
            words.push(word.clone());
            self.next()?;
        }
        Ok(words)
    }

    fn name(&mut self) -> Result<Vec<u8>, ScriptError> {
        match self.next()? {
            Some(Token::Word(word)) => word.literal().ok_or(self.syntax()),
            _ => Err(self.syntax()),
        }
    }

    /// A block in braces, if one follows.
    fn braces(&mut self, depth: usize) -> Result<Option<Block>, ScriptError> {
        if self.peek()? != Some(&Token::Open) {
            return Ok(None);
        }
        self.next()?;
        let block = self.block(&[], depth)?;
        match self.next()? {
            Some(Token::Close) => Ok(Some(block)),
            _ => Err(self.syntax()),
        }
    }

    fn keyword(&mut self, keyword: &[u8]) -> Result<(), ScriptError> {
        if self.name()? == keyword {
            return Ok(());
        }
        Err(self.syntax())
    }

    fn condition(&mut self, depth: usize) -> Result<Statement, ScriptError> {
        let mut branches = Vec::new();
        let mut otherwise = None;
        loop {
            let condition = self.block(&[b"then"], depth)?;
            self.keyword(b"then")?;
            let body = self.block(&[b"elif", b"else", b"fi"], depth)?;
            branches.push((condition, body));
            match self.name()?.as_slice() {
                b"elif" => {}
                b"else" => {
                    otherwise = Some(self.block(&[b"fi"], depth)?);
                    self.keyword(b"fi")?;
                    break;
                }
                b"fi" => break,
                _ => return Err(self.syntax()),
            }
        }
        Ok(Statement::If(branches, otherwise))
    }

    fn for_loop(&mut self, depth: usize) -> Result<Statement, ScriptError> {
        let name = self.name()?;
        self.keyword(b"in")?;
        let words = self.words()?;
        let body = self.do_block(depth)?;
        Ok(Statement::For(name, words, body))
    }

    fn while_loop(&mut self, depth: usize, until: bool) -> Result<Statement, ScriptError> {
        let condition = self.block(&[b"do"], depth)?;
        let body = self.do_block(depth)?;
        Ok(Statement::While(condition, body, until))
    }

    fn do_block(&mut self, depth: usize) -> Result<Block, ScriptError> {
        while self.peek()? == Some(&Token::End) {
            self.next()?;
        }
        self.keyword(b"do")?;
        let body = self.block(&[b"done"], depth)?;
        self.keyword(b"done")?;
        Ok(body)
    }
}
