//! What the commands print with.

use std::io::{self, ErrorKind, Write};

use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::endpoints::Feed;

/// The feed as JSON names it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FeedFacts {
    source: String,
    instance: String,
    /// Tells one content from another.
    digest: String,
}

impl FeedFacts {
    pub(super) fn of(feed: &Feed) -> Self {
        Self {
            source: feed.origin.to_string(),
            instance: feed.instance.to_string(),
            digest: feed.digest.to_string(),
        }
    }
}

/// The feed in a sentence.
pub(super) fn feed_line(feed: &Feed) -> String {
    format!(
        "{} ({}, digest {})",
        feed.origin, feed.instance, feed.digest
    )
}

/// A table for people: a line under its header and no others.
pub(super) fn table(header: &[&str]) -> Table {
    const LINE_UNDER_HEADER: &str = "     ──            ";
    let mut table = Table::new();
    table
        .load_preset(LINE_UNDER_HEADER)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// Writes text to standard output.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one JSON value and the end of its line.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))?;
    Ok(())
}

pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
