//! Figures that moved. How long a property took is not one: that is the suite's time, not the
//! broker's.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::{LONGEST_NAME, Tolerance};
use crate::results::PropertyResult;

/// A list with more entries than this is one figure, not one an entry.
const MOST_ENTRIES: usize = 64;

/// A property of which a figure moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Its id.
    pub property: String,
    /// The files that have it.
    pub files: Vec<usize>,
    /// The figure that the table shows, in each of them; empty for none.
    pub key_figures: Vec<String>,
    /// What moved.
    pub figures: Vec<Figure>,
}

/// A figure that moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name, with its unit; an entry of a list has its number in brackets.
    pub name: String,
    /// Its value in each file that has the property; `None` where it is missing.
    pub values: Vec<Option<Value>>,
    /// The largest change from a file to the next, or from the first to the last, percent of the
    /// earlier value; `None` where that was 0, or where they are not both numbers.
    pub change_percent: Option<f64>,
}

/// The figures of a property that moved; `None` if none did.
pub(super) fn moved(
    id: &str,
    files: &[(usize, Option<&PropertyResult>)],
    tolerance: Tolerance,
) -> Option<Moved> {
    let found: Vec<_> = files.iter().filter_map(|(file, found)| Some((*file, (*found)?))).collect();
    let observed: Vec<_> = found.iter().map(|(_, property)| flat(property)).collect();
    let names: BTreeSet<&String> = observed.iter().flat_map(BTreeMap::keys).collect();
    let figures: Vec<_> = names
        .into_iter()
        .filter_map(|name| {
            let values: Vec<_> = observed.iter().map(|o| o.get(name).copied()).collect();
            figure(name, &values, tolerance)
        })
        .collect();
    (!figures.is_empty()).then(|| Moved {
        property: id.into(),
        files: found.iter().map(|(file, _)| *file).collect(),
        key_figures: found.iter().map(|(_, property)| property.key_figure.clone()).collect(),
        figures,
    })
}

/// A figure through the files; `None` if it stayed.
fn figure(name: &str, values: &[Option<&Value>], tolerance: Tolerance) -> Option<Figure> {
    // A drift in steps that are small each shows from the first to the last.
    let ends = values.first().copied().zip(values.last().copied());
    let pairs = values.windows(2).map(|pair| (pair[0], pair[1])).chain(ends);
    let mut moved = false;
    let mut change: Option<f64> = None;
    for (from, to) in pairs {
        let percent = match (from, to) {
            (Some(Value::Number(from)), Some(Value::Number(to))) => percent(from, to),
            (from, to) => {
                moved |= from != to;
                continue;
            }
        };
        // What is the limit exactly has not passed it, whatever rounding makes of it.
        if percent.abs() <= tolerance.percent() * (1.0 + 1e-9) {
            continue;
        }
        moved = true;
        if percent.is_finite() && change.is_none_or(|most| percent.abs() > most.abs()) {
            change = Some(percent);
        }
    }
    let values = values.iter().map(|value| value.cloned());
    moved.then(|| Figure { name: name.into(), values: values.collect(), change_percent: change })
}

/// The change from one number to another, percent of the first; infinite from 0.
fn percent(from: &Number, to: &Number) -> f64 {
    // Large integers differ where their nearest floating point numbers do not.
    let difference = match (from.as_i128(), to.as_i128()) {
        (Some(from), Some(to)) => (to - from) as f64,
        _ => to.as_f64().unwrap_or(0.0) - from.as_f64().unwrap_or(0.0),
    };
    match difference {
        0.0 => 0.0,
        difference => difference / from.as_f64().unwrap_or(0.0).abs() * 100.0,
    }
}

/// The figures of a property by name, lists and objects taken apart.
fn flat(property: &PropertyResult) -> BTreeMap<String, &Value> {
    let mut figures = BTreeMap::new();
    for (name, value) in &property.observed {
        take_apart(name.clone(), value, &mut figures);
    }
    figures
}

fn take_apart<'v>(name: String, value: &'v Value, figures: &mut BTreeMap<String, &'v Value>) {
    let short = name.len() <= LONGEST_NAME;
    match value {
        // What is not known is as good as not there.
        Value::Null => {}
        Value::Array(values) if short && values.len() <= MOST_ENTRIES => {
            for (index, value) in values.iter().enumerate() {
                take_apart(format!("{name}[{index}]"), value, figures);
            }
        }
        Value::Object(values) if short && values.len() <= MOST_ENTRIES => {
            for (key, value) in values {
                take_apart(format!("{name}.{key}"), value, figures);
            }
        }
        value => {
            figures.insert(name, value);
        }
    }
}
