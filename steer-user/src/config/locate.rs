//! From a place in the text to line, column and key.

use toml::de::{DeTable, DeValue};

/// Line and column of a byte offset, both from 1; columns count characters.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}

/// The key at a byte offset, such as `breakout[1].gateway`; empty when the text does not parse or
/// no key is there.
pub(super) fn key(text: &str, offset: usize) -> String {
    let Ok(table) = DeTable::parse(text) else {
        return String::new();
    };
    in_table(table.get_ref(), offset).unwrap_or_default()
}

fn in_table(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        // A table's own span is its header alone, so look inside first.
        let inner = in_value(value.get_ref(), offset).map(|rest| match rest.strip_prefix('[') {
            Some(_) => format!("{}{rest}", name.get_ref()),
            None => format!("{}.{rest}", name.get_ref()),
        });
        let here = name.span().contains(&offset) || value.span().contains(&offset);
        inner.or_else(|| here.then(|| name.get_ref().to_string()))
    })
}

fn in_value(value: &DeValue<'_>, offset: usize) -> Option<String> {
    match value {
        DeValue::Table(table) => in_table(table, offset),
        DeValue::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| match in_value(item.get_ref(), offset) {
                Some(rest) => Some(format!("[{index}].{rest}")),
                None => item.span().contains(&offset).then(|| format!("[{index}]")),
            }),
        _ => None,
    }
}
