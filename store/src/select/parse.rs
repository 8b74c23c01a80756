//! Text of a revision specification -> tree. Knows the signs and their order of binding, but no revision:
//! what a word means is decided in `eval`.
//!
//! Recursion happens only at parentheses and stops at [`DEPTH_MAX`].

/// Longest accepted specification.
const LENGTH_MAX: usize = 4096;
/// Most parentheses inside each other.
const DEPTH_MAX: usize = 64;

/// Parts joined by `,`.
#[derive(Debug, PartialEq)]
pub(super) struct List(pub(super) Vec<Meet>);

/// Parts joined by `&`.
#[derive(Debug, PartialEq)]
pub(super) struct Meet(pub(super) Vec<Range>);

/// What stands between two `&`.
#[derive(Debug, PartialEq)]
pub(super) enum Range {
    /// No `..`.
    One(Term),
    /// `first..last`, each of which may be missing.
    Span(Option<Term>, Option<Term>),
}

/// What stands between two signs.
#[derive(Debug, PartialEq)]
pub(super) enum Term {
    /// A number, id, keyword, date, `key:value` or tag; never empty, without blanks around it.
    Word(String),
    /// A function, or `None` for plain parentheses, and what is inside.
    Call(Option<Function>, List),
}

/// What can stand before `(`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    First,
    Last,
    Not,
    Reverse,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Open,
    Close,
    Comma,
    And,
    Dots,
    Word(&'a str),
}

/// Parses `spec`; the error is the reason, naming the token.
pub(super) fn parse(spec: &str) -> Result<List, String> {
    if spec.len() > LENGTH_MAX {
        return Err(format!("it is longer than {LENGTH_MAX} bytes"));
    }
    let tokens = tokens(spec);
    if tokens.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut parser = Parser { tokens: &tokens, next: 0, depth: 0 };
    let list = parser.list()?;
    match parser.peek() {
        None => Ok(list),
        Some(Token::Close) => Err("there is a \")\" without its \"(\"".to_owned()),
        Some(token) => Err(format!("{} was not expected", describe(Some(token)))),
    }
}

fn tokens(spec: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = spec;
    while !rest.is_empty() {
        let end = word_end(rest);
        // Other blanks may be part of a tag.
        let word = rest[..end].trim_ascii();
        if !word.is_empty() {
            tokens.push(Token::Word(word));
        }
        rest = &rest[end..];
        let token = match rest.as_bytes().first() {
            None => break,
            Some(b'(') => Token::Open,
            Some(b')') => Token::Close,
            Some(b',') => Token::Comma,
            Some(b'&') => Token::And,
            Some(_) => Token::Dots,
        };
        tokens.push(token);
        rest = &rest[if token == Token::Dots { 2 } else { 1 }..];
    }
    tokens
}

/// Where a word ends: at the next sign that does not stand in quotes. A quote opens at the beginning of a word or after
/// a colon, and only if it is closed again.
fn word_end(text: &str) -> usize {
    let mut quoted_until = 0;
    for (at, letter) in text.char_indices().filter(|&(_, letter)| "(),&.\"".contains(letter)) {
        if at < quoted_until {
            continue;
        }
        let before = text[..at].trim_end();
        match letter {
            '"' if before.is_empty() || before.ends_with(':') => {
                quoted_until = text[at + 1..].find('"').map_or(0, |length| at + length + 2);
            }
            '.' if !text[at..].starts_with("..") => {}
            '"' => {}
            _ => return at,
        }
    }
    text.len()
}

fn describe(token: Option<Token<'_>>) -> String {
    match token {
        None => "the end".to_owned(),
        Some(Token::Open) => "\"(\"".to_owned(),
        Some(Token::Close) => "\")\"".to_owned(),
        Some(Token::Comma) => "\",\"".to_owned(),
        Some(Token::And) => "\"&\"".to_owned(),
        Some(Token::Dots) => "\"..\"".to_owned(),
        Some(Token::Word(word)) => format!("{word:?}"),
    }
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    next: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).copied()
    }

    /// Steps over `token` if it comes next.
    fn take(&mut self, token: Token<'_>) -> bool {
        let here = self.peek() == Some(token);
        self.next += usize::from(here);
        here
    }

    fn list(&mut self) -> Result<List, String> {
        let mut parts = vec![self.meet()?];
        while self.take(Token::Comma) {
            parts.push(self.meet()?);
        }
        Ok(List(parts))
    }

    fn meet(&mut self) -> Result<Meet, String> {
        let mut parts = vec![self.range()?];
        while self.take(Token::And) {
            parts.push(self.range()?);
        }
        Ok(Meet(parts))
    }

    fn range(&mut self) -> Result<Range, String> {
        let first = if self.peek() == Some(Token::Dots) { None } else { Some(self.term()?) };
        if !self.take(Token::Dots) {
            return first.map(Range::One).ok_or_else(|| "a revision is missing".to_owned());
        }
        let last = match self.peek() {
            Some(Token::Word(_) | Token::Open) => Some(self.term()?),
            _ => None,
        };
        if self.peek() == Some(Token::Dots) {
            return Err("a range has two ends, there is one \"..\" too many".to_owned());
        }
        Ok(Range::Span(first, last))
    }

    fn term(&mut self) -> Result<Term, String> {
        let before = self.next;
        let word = match self.peek() {
            Some(Token::Word(word)) => {
                self.next += 1;
                Some(word)
            }
            _ => None,
        };
        if !self.take(Token::Open) {
            return match word {
                Some(word) => Ok(Term::Word(word.to_owned())),
                None => Err(self.missing(before)),
            };
        }
        let function = match word {
            None => None,
            Some("first") => Some(Function::First),
            Some("last") => Some(Function::Last),
            Some("not") => Some(Function::Not),
            Some("reverse") => Some(Function::Reverse),
            Some(other) => {
                return Err(format!("there is no function {other:?}, only first, last, not and reverse"));
            }
        };
        if self.depth == DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} parentheses are inside each other"));
        }
        self.depth += 1;
        let inner = self.list()?;
        self.depth -= 1;
        if !self.take(Token::Close) {
            return Err(match self.peek() {
                None => "a \")\" is missing at the end".to_owned(),
                other => format!("{} was not expected", describe(other)),
            });
        }
        Ok(Term::Call(function, inner))
    }

    fn missing(&self, at: usize) -> String {
        let found = describe(self.tokens.get(at).copied());
        match at.checked_sub(1) {
            None => format!("a revision is missing before {found}"),
            Some(before) => {
                format!("a revision is missing between {} and {found}", describe(Some(self.tokens[before])))
            }
        }
    }
}
