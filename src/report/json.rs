//! Results for programs: the schemas of [`crate::results`], [`crate::compare`] and
//! [`crate::scorecard`].

use serde::Serialize;

/// Results, a comparison or a score as indented JSON with a line end.
///
/// # Errors
/// Where they cannot be written as JSON, which no results of a run cause.
pub fn render(results: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(results).map(|text| text + "\n")
}
