//! Results for programs: the schemas of [`crate::results`] and [`crate::compare`].

use serde::Serialize;

/// Results, or a comparison, as indented JSON with a line end.
///
/// # Errors
/// Where they cannot be written as JSON, which no results of a run cause.
pub fn render(results: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(results).map(|text| text + "\n")
}
