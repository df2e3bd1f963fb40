//! Why a feed was refused, in words for the operator.

use std::fmt;

use super::SetId;

/// A feed that was refused, with everything that is wrong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedError {
    name: String,
    problems: Vec<FeedProblem>,
}

/// One thing wrong in a feed: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedProblem {
    /// Where.
    pub place: Place,
    /// What, as a clause that follows the place: `is a private prefix`.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Where in a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A record that has no usable id: its position, counted from 1.
    Record(usize),
    /// A field or an entry of a set, such as `ips "10.0.0.0/8"`; empty for the set as a whole.
    Set(SetId, String),
}

/// More are counted, not shown: a file of the wrong kind is wrong in every line.
const SHOWN: usize = 10;

impl FeedError {
    pub(super) fn new(name: &str, problems: Vec<FeedProblem>) -> Self {
        Self {
            name: name.to_owned(),
            problems,
        }
    }

    /// Everything that is wrong, in the order of the file.
    pub fn problems(&self) -> &[FeedProblem] {
        &self.problems
    }
}

impl FeedProblem {
    pub(super) fn of_the_file(reason: impl Into<String>, remedy: &'static str) -> Self {
        Self {
            place: Place::File,
            reason: reason.into(),
            remedy,
        }
    }
}

impl std::error::Error for FeedError {}

impl fmt::Display for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the endpoint list {} is refused whole; endpoints already in use stay",
            self.name
        )?;
        for problem in self.problems.iter().take(SHOWN) {
            write!(f, "\n  {problem}")?;
        }
        if self.problems.len() > SHOWN {
            write!(f, "\n  and {} more", self.problems.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl fmt::Display for FeedProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}\n    remedy: {}",
            self.place, self.reason, self.remedy
        )
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::Record(position) => write!(f, "record {position}"),
            Self::Set(id, entry) if entry.is_empty() => write!(f, "set {id}:"),
            Self::Set(id, entry) => write!(f, "set {id}: {entry}"),
        }
    }
}
