//! The documentation says what the code does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use queueproof::{conformance::properties, report::catalogue};

/// What is between two marks of the README.
fn section(name: &str) -> String {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, rest) = readme.split_once(&format!("<!-- {name} -->\n")).expect(name);
    rest.split_once(&format!("<!-- /{name} -->")).expect(name).0.to_string()
}

#[test]
fn the_readme_lists_the_properties_that_there_are() {
    let current = catalogue::markdown();
    if section("properties") == current {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let readme = fs::read_to_string("README.md").unwrap();
        let old = section("properties");
        let marked = |inside: &str| format!("<!-- properties -->\n{inside}<!-- /properties -->");
        fs::write("README.md", readme.replace(&marked(&old), &marked(&current))).unwrap();
        return;
    }
    panic!("the README's table is not current: UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn the_readmes_results_are_of_all_properties() {
    let results = section("results");
    for property in properties() {
        assert!(results.contains(property.id), "{} is missing", property.id);
    }
}
