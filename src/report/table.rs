//! Results for people: the verdicts, then the breaches, then what was not decided and why.

use std::{collections::BTreeMap, fmt::Write};

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, presets,
};

use super::Style;
use crate::results::{Demonstration, PropertyResult, Results, TargetResult, Verdict};

/// Results as text.
pub fn render(results: &Results, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut out, results, style);
    out
}

fn write_all(out: &mut String, results: &Results, style: Style) -> std::fmt::Result {
    writeln!(out, "{}", verdicts(results, style))?;
    if let Some(figures) = figures(results, style) {
        writeln!(out, "{figures}")?;
    }
    anomalies(out, results, style)?;
    // A workload is scheduled whatever the backend can; what it has nothing of is not judged.
    let skipped = match results.targets.iter().any(is_scheduled) {
        true => "skipped: the workload has nothing of it",
        false => "skipped: the backend declares that it cannot",
    };
    let undecided = [
        (Verdict::Unknown, "not decided"),
        (Verdict::Broken, "the environment failed"),
        (Verdict::Skipped, skipped),
    ];
    for (verdict, title) in undecided {
        reasons(out, results, verdict, title, style)?;
    }
    undemonstrated(out, results, style)?;
    absent(out, results, style)?;
    writeln!(out, "\n{}", summary(results))
}

/// An empty table in the house style.
pub(super) fn table(style: Style) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = style.width {
        table.set_width(width);
    }
    if style.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn verdicts(results: &Results, style: Style) -> Table {
    // Without a terminal there is room for a column's usual words, however many there are.
    let wanted = u16::try_from(34 + 25 * results.targets.len()).unwrap_or(u16::MAX);
    let mut table = table(Style { width: style.width.map(|width| width.max(wanted)), ..style });
    let title = |target: &TargetResult| match target.absent {
        Some(_) => Cell::new(absent_title(&target.name)),
        None => {
            let title = title(&target.name, &target.backend, &target.broker_version);
            let flaw =
                target.settings["flaw"].as_str().map(|flaw| format!("\nwith the flaw {flaw}"));
            Cell::new(title + &flaw.unwrap_or_default())
        }
    };
    table.set_header(
        std::iter::once(Cell::new("property")).chain(results.targets.iter().map(title)),
    );
    let mut ids: Vec<&str> = Vec::new();
    for property in results.properties() {
        if !ids.contains(&property.id.as_str()) {
            ids.push(&property.id);
        }
    }
    for id in ids {
        let mut row = vec![Cell::new(id)];
        for target in &results.targets {
            let found = target.properties.iter().find(|p| p.id == id);
            row.push(found.map_or_else(|| Cell::new("-"), |p| cell(p, style)));
        }
        table.add_row(row);
    }
    // An id in two pieces can be neither read nor copied.
    if let Some(ids) = table.column_mut(0) {
        ids.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

/// The figures of a workload that was scheduled, in the order of the table: where each is, its
/// name there, and what it is called here.
static FIGURES: &[(&str, &str, &str)] = &[
    ("scheduling/every-tick-executed", "ticks", "ticks that were due"),
    ("scheduling/every-tick-executed", "executed", "of these executed"),
    ("scheduling/once-per-tick", "executions", "executions"),
    ("scheduling/once-per-tick", "extra_per_tick", "scheduled again, per tick"),
    ("scheduling/lateness", "received_p50_ms", "received after, ms: half"),
    ("scheduling/lateness", "received_p99_ms", "  99 of 100"),
    ("scheduling/lateness", "received_max_ms", "  all"),
    ("scheduling/lateness", "ended_p99_ms", "executed after, ms: 99 of 100"),
    ("scheduling/fair-coverage", "jain", "Jain's index of the shares"),
    ("scheduling/fair-coverage", "jain_by_chance", "  by chance"),
    ("scheduling/fair-coverage", "longest_idle_ms", "longest idle, ms"),
    ("scheduling/fair-coverage", "longest_idle_in_turn_ms", "  in turn"),
    ("scheduling/lateness", "connecting_ms", "all agents connected after, ms"),
    ("", "cpu_seconds_per_1000_executions", "broker: CPU s per 1,000 executions"),
    ("", "written_mb_per_1000_executions", "  MB written per 1,000"),
    ("", "messages_in_per_1000_executions", "  messages in per 1,000"),
    ("", "messages_out_per_1000_executions", "  messages out per 1,000"),
    ("", "resident_mb", "  memory, MB"),
    ("", "connections", "  connections"),
    ("", "kb_per_connection", "  KB per connection"),
    ("", "all_reconnected_after_ms", "  all connected again after, ms"),
    ("", "leases", "  leases"),
    ("", "watchers", "  watchers"),
];

/// Whether a target was given a workload of the scheduler, and not the suite.
fn is_scheduled(target: &TargetResult) -> bool {
    target.settings.get("schedule").is_some()
}

/// The figures of a workload; `None` where none was scheduled.
fn figures(results: &Results, style: Style) -> Option<Table> {
    let targets: Vec<_> = results.targets.iter().filter(|target| is_scheduled(target)).collect();
    let figure = |target: &TargetResult, property: &str, name: &str| {
        let observed = match property {
            "" => Some(&target.cost),
            id => target.properties.iter().find(|p| p.id == id).map(|p| &p.observed),
        };
        observed.and_then(|figures| figures.get(name)).map(ToString::to_string)
    };
    let mut table = table(style);
    table.set_header(
        std::iter::once(Cell::new("figure")).chain(targets.iter().map(|t| Cell::new(&t.name))),
    );
    let mut any = false;
    for (property, name, label) in FIGURES {
        let row: Vec<_> = targets.iter().map(|target| figure(target, property, name)).collect();
        if row.iter().all(Option::is_none) {
            continue;
        }
        any = true;
        let cells = row.into_iter().map(|value| {
            Cell::new(value.as_deref().unwrap_or("-")).set_alignment(CellAlignment::Right)
        });
        table.add_row(std::iter::once(Cell::new(label)).chain(cells));
    }
    if let Some(labels) = table.column_mut(0) {
        labels.set_constraint(ColumnConstraint::ContentWidth);
    }
    any.then_some(table)
}

/// What heads the column of a target.
pub(super) fn title(name: &str, backend: &str, version: &str) -> String {
    let version = if version.is_empty() { "?" } else { version };
    let backend = if name == backend { String::new() } else { format!("{backend} ") };
    format!("{name} ({backend}{version})")
}

/// What heads the column of a target that was not there.
pub(super) fn absent_title(name: &str) -> String {
    format!("{name} (absent)")
}

fn cell(property: &PropertyResult, style: Style) -> Cell {
    let kinds: Vec<_> =
        property.anomalies.iter().map(|a| format!("{} ×{}", a.kind, a.count)).collect();
    verdict_cell(property.verdict, &property.key_figure, &kinds.join(", "), style)
}

/// A verdict with what belongs beside it: the figure of a pass, the breaches of a fail.
pub(super) fn verdict_cell(verdict: Verdict, figure: &str, breaches: &str, style: Style) -> Cell {
    let words = match verdict {
        Verdict::Pass if !figure.is_empty() => format!("pass  {figure}"),
        Verdict::Fail => format!("FAIL  {breaches}"),
        verdict => verdict.to_string(),
    };
    let cell = Cell::new(words).set_alignment(CellAlignment::Left);
    if !style.color {
        return cell;
    }
    match verdict {
        Verdict::Pass => cell.fg(Color::Green),
        Verdict::Fail => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Verdict::Unknown | Verdict::Broken => cell.fg(Color::Yellow),
        Verdict::Skipped => cell.add_attribute(Attribute::Dim),
    }
}

fn anomalies(out: &mut String, results: &Results, style: Style) -> std::fmt::Result {
    let mut any = false;
    for target in &results.targets {
        for property in &target.properties {
            for anomaly in &property.anomalies {
                if !std::mem::replace(&mut any, true) {
                    writeln!(out, "\nanomalies, each with an example")?;
                }
                let head =
                    format!("{} {}: {} ×{}", target.name, property.id, anomaly.kind, anomaly.count);
                wrapped(out, "  ", &head, style)?;
                if let Some(example) = anomaly.examples.first() {
                    wrapped(out, "      ", example, style)?;
                }
            }
        }
    }
    Ok(())
}

/// What has a verdict, by target and reason: a common reason is told once.
fn reasons(
    out: &mut String,
    results: &Results,
    verdict: Verdict,
    title: &str,
    style: Style,
) -> std::fmt::Result {
    let mut by_reason: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for target in &results.targets {
        for property in target.properties.iter().filter(|p| p.verdict == verdict) {
            let key = (target.name.as_str(), property.reason.as_str());
            by_reason.entry(key).or_default().push(&property.id);
        }
    }
    if by_reason.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    for ((target, reason), ids) in by_reason {
        let ids = match ids.as_slice() {
            many if many.len() > 3 => format!("{} and {} more", many[0], many.len() - 1),
            few => few.join(", "),
        };
        wrapped(out, "  ", &format!("{target} {ids}"), style)?;
        wrapped(out, "      ", reason, style)?;
    }
    Ok(())
}

/// What is declared and was never put to the test.
fn undemonstrated(out: &mut String, results: &Results, style: Style) -> std::fmt::Result {
    let mut any = false;
    for target in &results.targets {
        let of = |kind: Demonstration| {
            let names = target.demonstrated.iter().filter(|(_, is)| **is == kind);
            names.map(|(capability, _)| capability.name()).collect::<Vec<_>>()
        };
        // Of some properties alone a run does not say much about the whole.
        let (shown, not) = (of(Demonstration::Demonstrated), of(Demonstration::NotExercised));
        if not.is_empty() || shown.len() < not.len() {
            continue;
        }
        if !std::mem::replace(&mut any, true) {
            writeln!(out, "\ndeclared, and not put to the test")?;
        }
        wrapped(out, "  ", &format!("{} {}", target.name, not.join(", ")), style)?;
    }
    Ok(())
}

/// The brokers that were asked for among all and are not there.
fn absent(out: &mut String, results: &Results, style: Style) -> std::fmt::Result {
    let absent = results.targets.iter().filter_map(|t| Some((&t.name, t.absent.as_ref()?)));
    for (nth, (name, why)) in absent.enumerate() {
        if nth == 0 {
            writeln!(out, "\nabsent: not on this machine, so not judged")?;
        }
        wrapped(out, "  ", name, style)?;
        wrapped(out, "      ", why, style)?;
    }
    Ok(())
}

/// Writes a text with an indent, broken between words where a width is given.
pub(super) fn wrapped(
    out: &mut String,
    indent: &str,
    text: &str,
    style: Style,
) -> std::fmt::Result {
    let width = style.width.map_or(usize::MAX, usize::from).max(40);
    let mut line = indent.to_string();
    for word in text.split_whitespace() {
        let used = line.chars().count();
        if used > indent.len() && used + 1 + word.chars().count() > width {
            writeln!(out, "{line}")?;
            line = indent.to_string();
        }
        if line.len() > indent.len() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

/// How many of which verdict, the seed, the time.
pub fn summary(results: &Results) -> String {
    let order = [Verdict::Pass, Verdict::Fail, Verdict::Unknown, Verdict::Broken, Verdict::Skipped];
    let counts: Vec<_> = order
        .into_iter()
        .map(|verdict| (results.properties().filter(|p| p.verdict == verdict).count(), verdict))
        .filter(|(count, _)| *count > 0)
        .map(|(count, verdict)| format!("{count} {verdict}"))
        .collect();
    format!(
        "{} · seed {} · {:.1} s",
        if counts.is_empty() { "nothing was checked".into() } else { counts.join(", ") },
        results.run.seed,
        results.run.duration_ms as f64 / 1e3
    )
}
