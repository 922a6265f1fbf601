//! A score for people: which requirement which target meets, on what evidence, and what follows.

use std::fmt::{self, Write};

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, Table};

use super::{
    Style, plain,
    table::{table, title, wrapped},
};
use crate::scorecard::{Evidence, Score, Status, TargetScore};

/// A score as text.
pub fn render(score: &Score, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut out, score, style);
    out
}

fn write_all(out: &mut String, score: &Score, style: Style) -> fmt::Result {
    let about = match score.about.as_str() {
        "" => String::new(),
        about => format!(": {about}"),
    };
    wrapped(out, "", &plain(&format!("{}{about}", score.scorecard)), style)?;
    if !score.targets.is_empty() {
        writeln!(out, "{}\n\nevidence", answers(score, style))?;
    }
    for (number, asked) in score.requirements.iter().enumerate() {
        let words = format!("{} ({}): {}", asked.name, asked.level, asked.words);
        wrapped(out, "  ", &plain(&words), style)?;
        for target in &score.targets {
            let answer = &target.answers[number];
            let evidence: Vec<_> = answer.evidence.iter().map(in_words).collect();
            let line = format!("{} {}: {}", target.name, answer.status, evidence.join("; "));
            wrapped(out, "      ", &plain(&line), style)?;
        }
    }
    if !score.absent.is_empty() {
        let names = score.absent.join(", ");
        writeln!(out)?;
        wrapped(out, "", &plain(&format!("absent, so not judged: {names}")), style)?;
    }
    if !score.warnings.is_empty() {
        writeln!(out, "\nto be read with care")?;
    }
    for warning in &score.warnings {
        wrapped(out, "  ", &plain(warning), style)?;
    }
    writeln!(out)?;
    for target in &score.targets {
        wrapped(out, "", &plain(&format!("{} {}", head(target), target.conclusion)), style)?;
    }
    wrapped(out, "", &plain(&format!("conclusion: {}", score.conclusion)), style)
}

fn in_words(evidence: &Evidence) -> String {
    match evidence.of.as_str() {
        "" => evidence.words.clone(),
        of => format!("{of} {}", evidence.words),
    }
}

fn head(target: &TargetScore) -> String {
    title(&target.name, &target.backend, &target.broker_version)
}

/// Each requirement and each target.
fn answers(score: &Score, style: Style) -> Table {
    let mut table = table(style);
    let heads = score.targets.iter().map(|target| plain(&head(target)));
    table.set_header(["requirement".into(), String::new()].into_iter().chain(heads));
    for (number, asked) in score.requirements.iter().enumerate() {
        let found = score.targets.iter().map(|target| cell(target.answers[number].status, style));
        let asked = [Cell::new(plain(&asked.name)), Cell::new(asked.level)];
        table.add_row(asked.into_iter().chain(found));
    }
    // A word in two pieces can hardly be read.
    if let Some(levels) = table.column_mut(1) {
        levels.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

fn cell(status: Status, style: Style) -> Cell {
    let cell = Cell::new(match status {
        Status::Fails => "FAILS".into(),
        status => status.to_string(),
    });
    match status {
        _ if !style.color => cell,
        Status::Meets => cell.fg(Color::Green),
        Status::Fails => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Status::Undecided => cell.fg(Color::Yellow),
    }
}
