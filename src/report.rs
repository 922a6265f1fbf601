//! From results to text: one file a format, all pure.

use crate::{compare::Comparison, config::Format, results::Results, scorecard::Score};

pub mod catalogue;
pub mod compare;
pub mod json;
pub mod scorecard;
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

/// A comparison in a format.
///
/// # Errors
/// Where it cannot be written as JSON, which no comparison causes.
pub fn render_comparison(
    format: Format,
    comparison: &Comparison,
    style: Style,
) -> Result<String, serde_json::Error> {
    match format {
        Format::Table => Ok(compare::render(comparison, style)),
        Format::Json => json::render(comparison),
    }
}

/// A score in a format.
///
/// # Errors
/// Where it cannot be written as JSON, which no score causes.
pub fn render_score(
    format: Format,
    score: &Score,
    style: Style,
) -> Result<String, serde_json::Error> {
    match format {
        Format::Table => Ok(scorecard::render(score, style)),
        Format::Json => json::render(score),
    }
}

/// The longest text of a file that is shown in one piece, characters.
const LONGEST_TEXT: usize = 1000;

/// Text of a file as it may be shown: on one line, a terminal obeys none of it, and it has an end.
pub fn plain(text: &str) -> String {
    let visible = |c: char| match c {
        c if c.is_whitespace() => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let mut plain: String = text.chars().take(LONGEST_TEXT).map(visible).collect();
    if text.chars().nth(LONGEST_TEXT).is_some() {
        plain.push('…');
    }
    plain
}
