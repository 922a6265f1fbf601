//! A comparison for people: the verdicts side by side, then what changed, which figures moved, and
//! in what the circumstances differ.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write},
    ops::{Range, RangeInclusive},
};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table, Width};
use serde_json::Value;

use super::{
    Style, plain,
    table::{absent_title, table, title, verdict_cell, wrapped},
};
use crate::{
    compare::{Change, Comparison, Direction, Figure, Found, Row, Series},
    results::Verdict,
};

/// The least widths of a column with verdicts, characters: where a word of it, up to the larger
/// one, would be broken, columns go into another table.
const LEAST_WIDTHS: RangeInclusive<usize> = 12..=27;

/// The widest that the column of the properties' ids is kept whole, characters.
const WIDEST_ID: usize = 40;

/// The most circumstances that are listed: who has more looks for them in the JSON.
const MOST_CIRCUMSTANCES: usize = 100;

/// The longest value that is shown in full, characters.
const LONGEST_VALUE: usize = 80;

/// A comparison as text.
pub fn render(comparison: &Comparison, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut out, comparison, style);
    out
}

fn write_all(out: &mut String, comparison: &Comparison, style: Style) -> fmt::Result {
    side_by_side(out, comparison, style)?;
    changed(out, comparison, style)?;
    for series in &comparison.targets {
        figures(out, comparison, series, style)?;
    }
    circumstances(out, comparison, style)?;
    absent(out, comparison, style)?;
    if !comparison.warnings.is_empty() {
        writeln!(out, "\nto be read with care")?;
    }
    for warning in &comparison.warnings {
        wrapped(out, "  ", &plain(warning), style)?;
    }
    writeln!(out)?;
    wrapped(out, "", &summary(comparison), style)
}

/// The verdicts, in as many tables as the width asks for.
fn side_by_side(out: &mut String, comparison: &Comparison, style: Style) -> fmt::Result {
    let marks = marks(comparison);
    let count = comparison.columns.len();
    let fitting = table(style).width().map_or(count, |width| {
        // Each column has a border and a space on both sides; that of the marks is 4 wide.
        let taken = id_width(comparison) + 4 + if marks.is_empty() { 0 } else { 4 };
        usize::from(width).saturating_sub(taken) / (longest_word(comparison) + 3)
    });
    let tables = count.div_ceil(fitting.max(1)).max(1);
    // As even as can be: not a full table and then a single column.
    let most = count.div_ceil(tables).max(1);
    for first in (0..count).step_by(most) {
        let shown = first..count.min(first + most);
        writeln!(out, "{}", verdicts(comparison, shown, &marks, style))?;
    }
    Ok(())
}

/// How a property changed, by its id and the column in which it shows.
type Marks<'c> = HashMap<&'c str, BTreeMap<usize, Direction>>;

fn marks(comparison: &Comparison) -> Marks<'_> {
    let mut numbers = HashMap::new();
    for (number, column) in comparison.columns.iter().enumerate() {
        numbers.insert((column.target.as_str(), column.backend.as_str(), column.file), number);
    }
    let mut marks = Marks::new();
    for series in &comparison.targets {
        for change in &series.changes {
            let column = (series.target.as_str(), series.backend.as_str(), change.to.file);
            if let (Some(id), Some(number)) = (&change.property, numbers.get(&column)) {
                marks.entry(id).or_default().insert(*number, change.direction);
            }
        }
    }
    marks
}

/// How wide the ids are, characters.
fn id_width(comparison: &Comparison) -> usize {
    let ids = comparison.rows.iter().map(|row| row.property.chars().count());
    ids.max().unwrap_or(0).min(WIDEST_ID)
}

/// The longest word of a verdict, characters.
fn longest_word(comparison: &Comparison) -> usize {
    let found = comparison.rows.iter().flat_map(|row| &row.cells).map(|cell| &cell.found);
    let words = found.flat_map(|found| {
        let kinds = found.anomalies.iter().filter(|_| found.verdict == Verdict::Fail);
        let figure = found.key_figure.split_whitespace().map(|word| word.chars().count());
        kinds.map(|anomaly| anomaly.kind.chars().count()).chain(figure)
    });
    words.max().unwrap_or(0).clamp(*LEAST_WIDTHS.start(), *LEAST_WIDTHS.end())
}

/// The verdicts of some columns.
fn verdicts(
    comparison: &Comparison,
    shown: Range<usize>,
    marks: &Marks<'_>,
    style: Style,
) -> Table {
    let mark = |row: &Row| {
        let of_row = marks.get(row.property.as_str())?;
        of_row.range(shown.clone()).map(|(_, direction)| *direction).min()
    };
    let marked = comparison.rows.iter().any(|row| mark(row).is_some());
    let mut table = table(style);
    let columns = &comparison.columns;
    let repeated = columns.iter().enumerate().any(|(number, column)| {
        columns[..number].iter().any(|earlier| earlier.target == column.target)
    });
    let heads = columns[shown.clone()].iter().map(|column| {
        let mut head = plain(&match column.absent {
            Some(_) => absent_title(&column.target),
            None => title(&column.target, &column.backend, &column.broker_version),
        });
        if repeated {
            head = format!("{head}\n{}", plain(&comparison.files[column.file].label));
        }
        Cell::new(head)
    });
    let corner = marked.then(|| Cell::new(""));
    table.set_header(corner.into_iter().chain([Cell::new("property")]).chain(heads));
    let id = usize::from(marked);
    if let (Some(column), Ok(width)) = (table.column_mut(id), u16::try_from(id_width(comparison))) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 2)));
    }
    let all = shown.len() == columns.len();
    for row in &comparison.rows {
        // Cells are in the order of their columns.
        let from = row.cells.partition_point(|cell| cell.column < shown.start);
        let to = row.cells.partition_point(|cell| cell.column < shown.end);
        let cells = &row.cells[from..to];
        if cells.is_empty() && !all {
            continue;
        }
        let mut found = cells.iter().peekable();
        let verdicts =
            shown.clone().map(|number| match found.next_if(|cell| cell.column == number) {
                Some(cell) => found_cell(&cell.found, style),
                None => dim(if columns[number].absent.is_some() { "absent" } else { "-" }, style),
            });
        let mark = marked.then(|| mark_cell(mark(row), style));
        let id = Cell::new(plain(&row.property));
        table.add_row(mark.into_iter().chain([id]).chain(verdicts));
    }
    table
}

fn found_cell(found: &Found, style: Style) -> Cell {
    verdict_cell(found.verdict, &plain(&found.key_figure), &plain(&breaches(found)), style)
}

fn dim(text: &str, style: Style) -> Cell {
    let cell = Cell::new(text);
    if style.color { cell.add_attribute(Attribute::Dim) } else { cell }
}

fn mark_cell(change: Option<Direction>, style: Style) -> Cell {
    let Some(direction) = change else { return Cell::new("") };
    let cell = Cell::new(mark(direction));
    match direction {
        _ if !style.color => cell,
        Direction::Worse => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Direction::Other => cell.fg(Color::Yellow),
        Direction::Better => cell.fg(Color::Green),
    }
}

fn mark(direction: Direction) -> &'static str {
    match direction {
        Direction::Worse => "▼",
        Direction::Other => "≠",
        Direction::Better => "▲",
    }
}

fn breaches(found: &Found) -> String {
    let kinds = found.anomalies.iter().map(|a| format!("{} ×{}", plain(&a.kind), a.count));
    kinds.collect::<Vec<_>>().join(", ")
}

/// What changed, the worst first; what is the same of several properties is told once.
fn changed(out: &mut String, comparison: &Comparison, style: Style) -> fmt::Result {
    if comparison.targets.iter().all(|series| series.files.len() + series.absent.len() < 2) {
        if comparison.files.len() > 1 {
            writeln!(out, "\nno target is in more than one file: nothing to compare over time")?;
        }
        return Ok(());
    }
    let mut groups: Vec<(Direction, String, Vec<&str>, String, &str)> = Vec::new();
    let mut numbers: HashMap<(usize, Direction, String, &str), usize> = HashMap::new();
    for (number, series) in comparison.targets.iter().enumerate() {
        for change in &series.changes {
            let step = step(comparison, change);
            let reason = change.to.found.as_ref().map_or("", |found| &found.reason);
            let key = (number, change.direction, step.clone(), reason);
            let group = *numbers.entry(key).or_insert_with(|| {
                let target = plain(&series.target);
                groups.push((change.direction, target, Vec::new(), step, reason));
                groups.len() - 1
            });
            groups[group].2.extend(change.property.as_deref());
        }
    }
    if groups.is_empty() {
        return writeln!(out, "\nno verdict changed");
    }
    groups.sort_by_key(|(direction, ..)| *direction); // It is stable.
    writeln!(out, "\nchanged: ▼ for the worse, ▲ to a pass, ≠ otherwise")?;
    for (direction, target, ids, step, reason) in groups {
        let ids = match ids.as_slice() {
            [] => String::new(),
            [first, rest @ ..] if rest.len() > 2 => {
                format!(" {} and {} more", plain(first), rest.len())
            }
            few => format!(" {}", plain(&few.join(", "))),
        };
        let mut line = String::new();
        wrapped(&mut line, "    ", &format!("{target}{ids}: {step}"), style)?;
        write!(out, "  {} {}", mark(direction), line.trim_start())?;
        if !reason.is_empty() {
            wrapped(out, "      ", &plain(reason), style)?;
        }
    }
    Ok(())
}

/// The kinds of breaches, without their counts, which mostly differ between properties.
fn kinds(found: &Found) -> String {
    let kinds = found.anomalies.iter().map(|anomaly| plain(&anomaly.kind));
    kinds.collect::<Vec<_>>().join(", ")
}

/// A change in words. Of two files it is plain which is before and which after.
pub fn step(comparison: &Comparison, change: &Change) -> String {
    let label = |file: usize| plain(&comparison.files[file].label);
    let place = |file: usize| match comparison.files.len() {
        2 => String::new(),
        _ => format!(" ({})", label(file)),
    };
    let words = |found: &Found| match found.verdict {
        Verdict::Fail => format!("FAIL {}", kinds(found)),
        verdict => verdict.to_string(),
    };
    let (from, to) = (change.from.file, change.to.file);
    match (&change.from.found, &change.to.found) {
        (Some(before), Some(after)) if words(before) == words(after) => {
            format!("back in {}: {}", label(to), words(after))
        }
        (Some(before), Some(after)) => {
            format!("{}{} → {}{}", words(before), place(from), words(after), place(to))
        }
        (Some(before), None) => {
            format!("{} → not in {}", words(before), label(to))
        }
        (None, Some(after)) => format!("new in {}: {}", label(to), words(after)),
        (None, None) if change.direction == Direction::Worse => {
            format!("verdicts in {} → none in {}", label(from), label(to))
        }
        (None, None) => format!("no verdict in {} → some in {}", label(from), label(to)),
    }
}

/// The figures of a target that moved.
fn figures(
    out: &mut String,
    comparison: &Comparison,
    series: &Series,
    style: Style,
) -> fmt::Result {
    if series.moved.is_empty() {
        return Ok(());
    }
    let labels: Vec<_> =
        series.files.iter().map(|file| plain(&comparison.files[*file].label)).collect();
    let mut table = table(style);
    table.set_header(["property", "figure", &labels.join(" → "), "change"]);
    for moved in &series.moved {
        let mut id = plain(&moved.property);
        let (partly, everywhere): (Vec<&Figure>, Vec<_>) =
            moved.figures.iter().partition(|figure| figure.values.contains(&None));
        for figure in everywhere {
            let values: Vec<_> =
                figure.values.iter().map(|v| v.as_ref().map_or_else(String::new, value)).collect();
            table.add_row([
                Cell::new(std::mem::take(&mut id)),
                Cell::new(plain(&figure.name)),
                Cell::new(values.join(" → ")),
                Cell::new(change(figure)).set_alignment(CellAlignment::Right),
            ]);
        }
        // The figures that come and go together do so in one row.
        let mut together: Vec<(Vec<bool>, Vec<&Figure>)> = Vec::new();
        for figure in partly {
            let there: Vec<_> = figure.values.iter().map(Option::is_some).collect();
            match together.iter_mut().find(|(other, _)| *other == there) {
                Some((_, figures)) => figures.push(figure),
                None => together.push((there, vec![figure])),
            }
        }
        for (there, figures) in together {
            let places = moved.files.iter().zip(&there).filter(|(_, there)| **there);
            let places: Vec<_> =
                places.map(|(file, _)| plain(&comparison.files[*file].label)).collect();
            let names: Vec<_> = figures.iter().map(|figure| plain(&figure.name)).collect();
            let gone = there.last() == Some(&false);
            table.add_row([
                Cell::new(std::mem::take(&mut id)),
                Cell::new(names.join(", ")),
                Cell::new(format!("only in {}", places.join(", "))),
                Cell::new(if gone { "missing" } else { "new" }).set_alignment(CellAlignment::Right),
            ]);
        }
    }
    let tolerance = comparison.tolerance_percent;
    let target = plain(&series.target);
    let care = match comparison.circumstances.is_empty() {
        true => "",
        false => " (the circumstances differ, see below)",
    };
    writeln!(out, "\n{target}: figures that moved by more than {tolerance}{care}\n{table}")
}

/// How a figure changed.
fn change(figure: &Figure) -> String {
    let numbers = figure.values.iter().flatten().all(Value::is_number);
    match figure.change_percent {
        Some(percent) if percent.abs() < 10.0 => format!("{percent:+.1} %"),
        Some(percent) if percent.abs() < 1e6 => format!("{percent:+.0} %"),
        Some(percent) => format!("{percent:+.0e} %"),
        None if numbers => "from 0".into(),
        None => String::new(),
    }
}

/// In what the circumstances differ.
fn circumstances(out: &mut String, comparison: &Comparison, style: Style) -> fmt::Result {
    if comparison.circumstances.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ndifferences in circumstances")?;
    for difference in comparison.circumstances.iter().take(MOST_CIRCUMSTANCES) {
        let target = difference.target.as_ref().map_or(String::new(), |t| format!("{} ", plain(t)));
        let values = difference.values.iter().map(|shared| {
            let value = shared.value.as_ref().map_or("none".into(), value);
            format!("{value} ({})", plain(&shared.of.join(", ")))
        });
        let values: Vec<_> = values.collect();
        let line = format!("{target}{}: {}", plain(&difference.what), values.join(", "));
        wrapped(out, "  ", &line, style)?;
    }
    match comparison.circumstances.len().saturating_sub(MOST_CIRCUMSTANCES) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more, which --format json lists"),
    }
}

/// The targets that a file names and has no verdict of, and why.
fn absent(out: &mut String, comparison: &Comparison, style: Style) -> fmt::Result {
    let absent = comparison.columns.iter().filter_map(|c| Some((c, c.absent.as_ref()?)));
    for (nth, (column, why)) in absent.enumerate() {
        if nth == 0 {
            writeln!(out, "\nabsent: named, and not judged")?;
        }
        let label = plain(&comparison.files[column.file].label);
        wrapped(out, "  ", &format!("{} ({label})", plain(&column.target)), style)?;
        wrapped(out, "      ", &plain(why), style)?;
    }
    Ok(())
}

/// How much was compared, and how much is not the same.
fn summary(comparison: &Comparison) -> String {
    let counted = |count: usize, one: &str, many: &str| {
        format!("{count} {}", if count == 1 { one } else { many })
    };
    let mut parts = vec![
        counted(comparison.files.len(), "file", "files"),
        counted(comparison.targets.len(), "target", "targets"),
    ];
    let compared: usize = comparison.targets.iter().map(|series| series.compared).sum();
    if comparison.files.len() > 1 {
        parts.push(format!("{} compared", counted(compared, "property", "properties")));
    }
    let mut parts = vec![parts.join(", ")];
    let changes = || comparison.targets.iter().flat_map(|series| &series.changes);
    let names = [
        (Direction::Worse, "worse"),
        (Direction::Better, "better"),
        (Direction::Other, "otherwise changed"),
    ];
    let directions: Vec<_> = names
        .into_iter()
        .map(|(direction, name)| (changes().filter(|c| c.direction == direction).count(), name))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    if !directions.is_empty() {
        parts.push(directions.join(", "));
    }
    let moved: usize =
        comparison.targets.iter().flat_map(|s| &s.moved).map(|moved| moved.figures.len()).sum();
    if moved > 0 {
        parts.push(format!("{} moved", counted(moved, "figure", "figures")));
    }
    if !comparison.circumstances.is_empty() {
        let count = comparison.circumstances.len();
        parts.push(counted(count, "circumstance differs", "circumstances differ"));
    }
    parts.join(" · ")
}

/// A value in few characters.
fn value(value: &Value) -> String {
    let text = match value {
        Value::String(text) if text.is_empty() => "empty".into(),
        Value::String(text) => plain(text),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => short(float),
            _ => number.to_string(),
        },
        Value::Array(values) if values.len() > 8 => format!("{} values", values.len()),
        other => plain(&other.to_string()),
    };
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A number with four digits that count, or all those before the point.
fn short(float: f64) -> String {
    let digits = float.abs().log10().floor();
    if float != 0.0 && !(-4.0..15.0).contains(&digits) {
        return format!("{float:.3e}");
    }
    let decimals = (3.0 - digits.max(-4.0)).clamp(0.0, 7.0) as usize;
    let text = format!("{float:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}
