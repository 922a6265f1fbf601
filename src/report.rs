//! From results to text: one file a format, all pure.

use crate::{config::Format, results::Results};

pub mod catalogue;
pub mod json;
pub mod table;

/// How text may look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Whether to use colours.
    pub color: bool,
    /// How many columns there are; no limit without.
    pub width: Option<u16>,
}

/// Results in a format.
///
/// # Errors
/// Where they cannot be written as JSON, which no results of a run cause.
pub fn render(
    format: Format,
    results: &Results,
    style: Style,
) -> Result<String, serde_json::Error> {
    match format {
        Format::Table => Ok(table::render(results, style)),
        Format::Json => json::render(results),
    }
}
