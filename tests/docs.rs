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

/// Demands that a section of the README is this, or makes it so where that is asked for.
fn is_current(name: &str, current: &str) {
    let old = section(name);
    if old == current {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_none() {
        panic!("the README's {name} are not current: UPDATE_DOCS=1 cargo test --test docs");
    }
    let readme = fs::read_to_string("README.md").unwrap();
    let marked = |inside: &str| format!("<!-- {name} -->\n{inside}<!-- /{name} -->");
    fs::write("README.md", readme.replace(&marked(&old), &marked(current))).unwrap();
}

#[test]
fn the_readme_lists_the_properties_and_the_capabilities_that_there_are() {
    is_current("properties", &catalogue::markdown());
    is_current("capabilities", &catalogue::capabilities_markdown());
}

#[test]
fn the_readmes_results_are_of_all_properties_on_all_backends() {
    let results = section("results");
    for property in properties() {
        assert!(results.contains(property.id), "{} is missing", property.id);
    }
    for backend in queueproof::config::BACKENDS {
        assert!(results.contains(&format!(" {backend} (")), "{backend} is missing");
    }
}
