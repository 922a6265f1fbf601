//! Results for programs: the schema of [`crate::results`].

use crate::results::Results;

/// Results as indented JSON with a line end.
///
/// # Errors
/// Where they cannot be written as JSON, which no results of a run cause.
pub fn render(results: &Results) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(results).map(|text| text + "\n")
}
