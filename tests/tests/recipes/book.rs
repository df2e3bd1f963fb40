//! The recipes as they are written: `docs/recipes.md`, by heading and block.

use std::{fs, path::Path};

use steer_tests::lab::Lab;

/// One recipe: what stands below a heading.
pub struct Recipe {
    heading: String,
    /// What follows the opening fence, and the text of the block.
    blocks: Vec<(String, String)>,
}

impl Recipe {
    /// The recipe with this heading.
    pub fn named(heading: &str) -> Self {
        let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recipes.md");
        let book = fs::read_to_string(book).unwrap();
        let mut blocks: Vec<(String, String)> = Vec::new();
        let (mut here, mut open) = (false, false);
        for line in book.lines() {
            if open {
                if line == "```" {
                    open = false;
                } else if here {
                    let (_, text) = blocks.last_mut().unwrap();
                    *text += line;
                    *text += "\n";
                }
            } else if let Some(title) = line.strip_prefix('#') {
                here = title.trim_start_matches('#').trim() == heading;
            } else if let Some(name) = line.strip_prefix("```") {
                open = true;
                if here {
                    blocks.push((name.to_owned(), String::new()));
                }
            }
        }
        assert!(!blocks.is_empty(), "there is no recipe {heading:?}");
        let heading = heading.to_owned();
        Self { heading, blocks }
    }

    /// The text of the block whose fence ends with `name`.
    pub fn block(&self, name: &str) -> &str {
        let found = self.blocks.iter().find(|(fence, _)| fence.ends_with(name));
        assert!(found.is_some(), "{:?} has no block {name}", self.heading);
        &found.unwrap().1
    }

    /// The configuration of steer.
    pub fn steer(&self) -> &str {
        self.block("steer.toml")
    }

    /// Runs the recipe's commands on the router.
    pub fn run_on_router(&self, lab: &Lab) {
        let commands = format!("set -e\n{}", self.block("sh router"));
        lab.router.output("sh", &["-c", &commands]).unwrap();
    }
}

/// Each recipe is named by what applies it: a test beside this file, or the kinds of links, which the
/// kernels of `cargo xtask kernels` have.
#[test]
fn each_recipe_has_a_test() {
    let tests = [
        include_str!("marks.rs"),
        include_str!("names.rs"),
        include_str!("networkd.rs"),
        include_str!("overlay.rs"),
        include_str!("resolver.rs"),
        include_str!("routing.rs"),
        include_str!("vrrp.rs"),
        include_str!("../../src/links.rs"),
    ];
    let book = include_str!("../../../docs/recipes.md");
    let recipes = book
        .split("\n## ")
        .flat_map(|section| section.split("\n### "));
    let mut count = 0;
    for recipe in recipes.filter(|it| it.contains("```toml steer.toml\n")) {
        let heading = recipe.lines().next().unwrap();
        let quoted = format!("\"{heading}\"");
        let named = tests.iter().any(|test| test.contains(&quoted));
        assert!(named, "no test applies the recipe {quoted}");
        count += 1;
    }
    assert!(count >= 10, "{count} recipes were found");
}
