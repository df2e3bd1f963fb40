//! A configuration as the file has it, key by key, to say what a reload changed.

use std::{collections::BTreeMap, fmt};

use toml::{Table, Value};

/// Every key of a file with its value. Sections that repeat are told apart by their `name` or
/// `interface`, so that one more of them does not look like a change of all that follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written(BTreeMap<String, String>);

/// A key whose value is another than before; none: the key is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    key: String,
    before: Option<String>,
    after: Option<String>,
}

impl Written {
    /// Of a text that is TOML; of any other it is empty.
    pub(super) fn of(text: &str) -> Self {
        let mut written = Self::default();
        if let Ok(table) = text.parse::<Table>() {
            written.add_table("", &table);
        }
        written
    }

    /// What changed from this file to `after`, in the order of the keys.
    pub fn changes(&self, after: &Self) -> Vec<Difference> {
        let keys = self.0.keys().chain(after.0.keys());
        let mut changes: Vec<Difference> = keys
            .map(|key| Difference {
                key: key.clone(),
                before: self.0.get(key).cloned(),
                after: after.0.get(key).cloned(),
            })
            .filter(|change| change.before != change.after)
            .collect();
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        changes.dedup();
        changes
    }

    fn add_table(&mut self, prefix: &str, table: &Table) {
        for (key, value) in table {
            self.add(&format!("{prefix}{key}"), value);
        }
    }

    fn add(&mut self, key: &str, value: &Value) {
        match value {
            Value::Table(table) => self.add_table(&format!("{key}."), table),
            Value::Array(items) if items.iter().any(Value::is_table) => {
                for (index, item) in items.iter().enumerate() {
                    self.add(&format!("{key}.{}", name_of(item, index)), item);
                }
            }
            value => {
                self.0.insert(key.to_owned(), value.to_string());
            }
        }
    }
}

fn name_of(section: &Value, index: usize) -> String {
    ["name", "interface"]
        .into_iter()
        .find_map(|key| section.get(key)?.as_str())
        .map_or_else(|| (index + 1).to_string(), str::to_owned)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not set)".into());
        write!(
            f,
            "{}: {} -> {}",
            self.key,
            value(&self.before),
            value(&self.after)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(before: &str, after: &str) -> Vec<String> {
        let changes = Written::of(before).changes(&Written::of(after));
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_in_other_words_is_no_change() {
        let before = "mode = \"mark\"\n[mark]\nmask = 0x3f000000 # bits\n";
        let after = "mode='mark'\nmark.mask=1056964608";
        assert_eq!(changes(before, after), [""; 0]);
    }

    #[test]
    fn what_is_changed_added_and_removed_is_told_with_both_values() {
        let before = "mode = \"mark\"\n[select]\nexclude_sets = [10]\n";
        let after = "[select]\nexclude_sets = [10, 11]\ncategories = [\"optimize\"]\n";
        assert_eq!(
            changes(before, after),
            [
                "mode: \"mark\" -> (not set)",
                "select.categories: (not set) -> [\"optimize\"]",
                "select.exclude_sets: [10] -> [10, 11]",
            ]
        );
    }

    #[test]
    fn a_section_that_comes_before_others_changes_none_of_them() {
        let fiber = "[[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\n";
        let lte = "[[breakout]]\nname = \"lte\"\ninterface = \"wwan0\"\n";
        assert_eq!(
            changes(fiber, &format!("{lte}{fiber}")),
            [
                "breakout.lte.interface: (not set) -> \"wwan0\"",
                "breakout.lte.name: (not set) -> \"lte\"",
            ]
        );
    }
}
