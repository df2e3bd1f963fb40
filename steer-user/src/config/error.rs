//! What is wrong with a configuration, in words for the operator.

use std::{fmt, io, ops::Range};

use super::locate;

/// A configuration that cannot be used, with everything that is wrong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    name: String,
    problems: Vec<ConfigProblem>,
}

/// One mistake: where it is, what it is, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// The key, such as `breakout[1].gateway`; may be empty.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
    /// The text of that line, and how many characters of it are meant.
    excerpt: Option<(String, usize)>,
}

impl ConfigError {
    pub(super) fn new(name: &str, problems: Vec<ConfigProblem>) -> Self {
        Self {
            name: name.to_owned(),
            problems,
        }
    }

    pub(super) fn unreadable(name: &str, error: &io::Error) -> Self {
        let remedy = "name the configuration with --config FILE, and let steer read it";
        let problem = ConfigProblem::of_the_file(format!("cannot be read: {error}"), remedy);
        Self::new(name, vec![problem])
    }

    /// Everything that is wrong.
    pub fn problems(&self) -> &[ConfigProblem] {
        &self.problems
    }
}

impl ConfigProblem {
    pub(super) fn of_the_file(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            line: 0,
            column: 0,
            key: String::new(),
            reason: reason.into(),
            remedy: remedy.into(),
            excerpt: None,
        }
    }

    pub(super) fn at(
        text: &str,
        span: Range<usize>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (line, column) = locate::line_and_column(text, span.start);
        let excerpt = text.lines().nth(line.saturating_sub(1)).map(|content| {
            let rest = content.chars().count().saturating_sub(column - 1);
            let meant = text.get(span.clone()).unwrap_or_default().chars().count();
            (content.to_owned(), meant.clamp(1, rest.max(1)))
        });
        Self {
            line,
            column,
            key: locate::key(text, span.start),
            reason: reason.into(),
            remedy: remedy.into(),
            excerpt,
        }
    }

    /// A mistake that the parser found: the syntax, an unknown key, a value of a wrong type.
    pub(super) fn of_the_syntax(text: &str, error: &toml::de::Error) -> Self {
        let message = error.message().trim().replace('\n', ", ");
        let remedy = if message.starts_with("unknown field") {
            "remove the key or correct its spelling"
        } else if message.starts_with("missing field") {
            "add the key; `steer check --sample` shows every key with its meaning"
        } else {
            "correct it; `steer check --sample` shows every key with its meaning"
        };
        match error.span() {
            Some(span) => Self::at(text, span, message, remedy),
            None => Self::of_the_file(message, remedy),
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let mistakes = if count == 1 { "mistake" } else { "mistakes" };
        write!(
            f,
            "the configuration {} has {count} {mistakes}; nothing was changed",
            self.name
        )?;
        for problem in &self.problems {
            write!(f, "\n\n{}", self.name)?;
            if problem.line != 0 {
                write!(f, ":{}:{}", problem.line, problem.column)?;
            }
            write!(f, ": {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)?;
        if let Some((content, meant)) = &self.excerpt {
            let number = self.line.to_string();
            let (blank, indent) = (" ".repeat(number.len()), " ".repeat(self.column - 1));
            let marks = "^".repeat(*meant);
            write!(
                f,
                "\n {blank} |\n {number} | {content}\n {blank} | {indent}{marks}"
            )?;
        }
        write!(f, "\n   remedy: {}", self.remedy)
    }
}
