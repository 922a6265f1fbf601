//! What there is: properties, flaws, capabilities, backends, and each one explained. Made from the
//! same tables that the suite runs from.

use std::fmt::Write;

use std::collections::BTreeMap;

use queueproof_backends::{Capability, Support, memory};
use serde_json::{Value, json};

use super::{Style, table::table};
use crate::{
    checker::AnomalyKind,
    config::{BACKENDS, Format, nearest},
    conformance::{Property, properties, shows},
    flaw::Flaw,
};

/// A list that can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Listing {
    /// The backends of this build.
    Backends,
    /// The properties of the suite.
    Properties,
    /// The flaws, with the properties that must catch each: the kill matrix.
    Flaws,
    /// What backends may declare.
    Capabilities,
}

/// What a backend is for, in a sentence.
fn backend_doc(name: &str) -> &'static str {
    match name {
        "memory" => "Embedded: the exact reference of the contract, on a simulated clock.",
        "nats" => {
            "NATS JetStream 2.10 or newer: at a URL, or on a private server started for the run."
        }
        "pulsar" => {
            "Apache Pulsar: at a URL, or on a private standalone started for the run (needs Java 17)."
        }
        "nsq" => "NSQ: nsqd at a URL, or a private one started for the run.",
        _ => "",
    }
}

/// What a backend of this build declares.
fn declares(name: &str) -> BTreeMap<Capability, Support> {
    match name {
        #[cfg(feature = "nats")]
        "nats" => queueproof_backends::nats::declares(),
        #[cfg(feature = "pulsar")]
        "pulsar" => queueproof_backends::pulsar::declares(),
        #[cfg(feature = "nsq")]
        "nsq" => queueproof_backends::nsq::declares(),
        "memory" => memory::declares(),
        _ => BTreeMap::new(),
    }
}

/// How a backend has a capability: a word for tables, and the backend's own words.
fn how(support: Option<&Support>) -> (&'static str, Option<&str>) {
    match support {
        Some(Support::Native) => ("yes", None),
        Some(Support::Emulated { how }) => ("in the client", Some(how)),
        Some(Support::Unsupported { why }) => ("no", Some(why)),
        None => ("no", None),
    }
}

/// A list in a format.
pub fn list(listing: Listing, format: Format, style: Style) -> String {
    let rows = rows(listing);
    match format {
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&rows).unwrap_or_default();
            text.push('\n');
            text
        }
        Format::Table => {
            let mut table = table(style);
            let header = columns(listing);
            table.set_header(header);
            for row in &rows {
                table.add_row(header.iter().map(|column| plain(&row[*column])));
            }
            format!("{table}\n")
        }
    }
}

/// A value as text: lists a line each.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join("\n"),
        Value::Object(fields) => fields.values().map(plain).collect::<Vec<_>>().join(" as "),
        other => other.to_string(),
    }
}

/// The columns of a list, in their order.
fn columns(listing: Listing) -> &'static [&'static str] {
    match listing {
        Listing::Backends => &["backend", "what it is"],
        Listing::Properties => &["property", "promise", "needs"],
        Listing::Flaws => &["flaw", "what it does", "caught by"],
        Listing::Capabilities => &CAPABILITY_COLUMNS,
    }
}

/// The columns of the list of capabilities: one a backend after the first two.
const CAPABILITY_COLUMNS: [&str; 2 + BACKENDS.len()] = {
    let mut columns = [""; 2 + BACKENDS.len()];
    columns[0] = "capability";
    columns[1] = "what it is";
    let mut nth = 0;
    while nth < BACKENDS.len() {
        columns[2 + nth] = BACKENDS[nth];
        nth += 1;
    }
    columns
};

fn rows(listing: Listing) -> Vec<Value> {
    match listing {
        Listing::Backends => BACKENDS
            .iter()
            .map(|name| json!({ "backend": name, "what it is": backend_doc(name) }))
            .collect(),
        Listing::Properties => properties()
            .map(|p| json!({ "property": p.id, "promise": p.title, "needs": needs(p) }))
            .collect(),
        Listing::Flaws => Flaw::all()
            .map(|flaw| {
                let caught: Vec<_> = catchers(flaw)
                    .map(|(p, kind)| json!({ "by": p.id, "kind": kind.name() }))
                    .collect();
                json!({ "flaw": flaw.name(), "what it does": flaw.doc(), "caught by": caught })
            })
            .collect(),
        Listing::Capabilities => Capability::ALL
            .into_iter()
            .map(|c| {
                let mut row = json!({ "capability": c.name(), "what it is": c.doc() });
                for name in BACKENDS {
                    row[*name] = how(declares(name).get(&c)).0.into();
                }
                row
            })
            .collect(),
    }
}

fn needs(property: &Property) -> Vec<&'static str> {
    property.needs.iter().map(|need| need.name()).collect()
}

/// The properties that must catch a flaw.
fn catchers(flaw: Flaw) -> impl Iterator<Item = (&'static Property, AnomalyKind)> {
    properties().flat_map(move |property| {
        let of_flaw = property.catches.iter().filter(move |(f, _)| *f == flaw);
        of_flaw.map(move |&(_, kind)| (property, kind))
    })
}

/// Explains a property, group, flaw, capability, kind of anomaly or backend.
///
/// # Errors
/// For a name that means nothing, with the nearest that does.
pub fn explain(name: &str) -> Result<String, String> {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_explanation(&mut out, name);
    if !out.is_empty() {
        return Ok(out);
    }
    let known = properties()
        .map(|p| p.id)
        .chain(Flaw::all().map(Flaw::name))
        .chain(Capability::ALL.iter().map(|c| c.name()))
        .chain(AnomalyKind::ALL.iter().map(|a| a.name()))
        .chain(BACKENDS.iter().copied());
    Err(match nearest(name, known) {
        Some(near) => format!("there is nothing called {name:?}; did you mean {near}?"),
        None => format!("there is nothing called {name:?}; see queueproof list --help"),
    })
}

fn write_explanation(out: &mut String, name: &str) -> std::fmt::Result {
    for property in properties().filter(|p| p.id == name) {
        writeln!(out, "{}\n{}\n\n{}\n", property.id, property.title, fill(property.doc))?;
        writeln!(out, "It needs: {}", needs(property).join(", "))?;
        writeln!(out, "It is proved to catch:")?;
        for (flaw, kind) in property.catches {
            writeln!(out, "  {:<24} as {kind}", flaw.name())?;
        }
        writeln!(out, "\nRun it alone: queueproof conform --property {}", property.id)?;
    }
    let group = name.trim_end_matches('/');
    if properties().any(|p| p.group() == group) {
        writeln!(out, "{group}: a group of properties")?;
        for property in properties().filter(|p| p.group() == group) {
            writeln!(out, "  {:<30} {}", property.id, property.title)?;
        }
    }
    for flaw in Flaw::all().filter(|f| f.name() == name) {
        writeln!(out, "{name}: a flaw, put in on purpose\n{}\n", flaw.doc())?;
        writeln!(out, "It must be caught by:")?;
        for (property, kind) in catchers(flaw) {
            writeln!(out, "  {:<30} as {kind}", property.id)?;
        }
        writeln!(out, "\nSee it caught: queueproof conform --flaw {name}")?;
    }
    for capability in Capability::ALL.into_iter().filter(|c| c.name() == name) {
        writeln!(out, "{name}: a capability\n{}\n\nIt is shown by:", capability.doc())?;
        for property in properties().filter(|p| shows(p).any(|c| c == capability)) {
            writeln!(out, "  {}", property.id)?;
        }
        writeln!(out, "\nThe backends have it:")?;
        for backend in BACKENDS {
            let declared = declares(backend);
            let (word, words) = how(declared.get(&capability));
            let words = words.map(|words| format!(": {words}")).unwrap_or_default();
            writeln!(out, "  {backend:<10} {word}{words}")?;
        }
    }
    for &kind in AnomalyKind::ALL.iter().filter(|a| a.name() == name) {
        writeln!(out, "{name}: a kind of anomaly\n{}", kind.doc())?;
    }
    for backend in BACKENDS.iter().filter(|b| **b == name) {
        writeln!(out, "{name}: a backend\n{}\n\nIt declares:", backend_doc(backend))?;
        for (capability, support) in declares(backend) {
            let (word, words) = how(Some(&support));
            let words = words.map(|words| format!(": {words}")).unwrap_or_default();
            writeln!(out, "  {:<20} {word}{words}", capability.name())?;
        }
    }
    Ok(())
}

/// Breaks a paragraph into lines of 80 columns.
fn fill(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column + 1 + length > 80 {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// The README's page of capabilities: who has what, and in which words not.
pub fn capabilities_markdown() -> String {
    let mut out = format!("| capability | {} |\n", BACKENDS.join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(BACKENDS.len()));
    let declared: Vec<_> = BACKENDS.iter().map(|name| (name, declares(name))).collect();
    for capability in Capability::ALL {
        let words = declared.iter().map(|(_, declared)| how(declared.get(&capability)).0);
        let words: Vec<_> = words.collect();
        let _ = writeln!(out, "| `{}` | {} |", capability.name(), words.join(" | "));
    }
    for (name, declared) in &declared {
        let all = declared.iter().map(|(capability, support)| (capability, how(Some(support))));
        let told: Vec<_> = all.filter(|(_, (_, words))| words.is_some()).collect();
        if told.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n**{name}**\n");
        for (capability, (word, words)) in told {
            let words = words.unwrap_or_default();
            let _ = writeln!(out, "- `{}`: {word}: {words}.", capability.name());
        }
    }
    out
}

/// The README's table of properties.
pub fn markdown() -> String {
    let mut out = String::from("| property | promise | needs |\n|---|---|---|\n");
    for property in properties() {
        let needs = needs(property).join(", ");
        let _ = writeln!(out, "| `{}` | {} | {needs} |", property.id, property.title);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn everything_that_has_a_name_is_explained() {
        let names = properties()
            .flat_map(|p| [p.id, p.group()])
            .chain(Flaw::all().map(Flaw::name))
            .chain(Capability::ALL.iter().map(|c| c.name()))
            .chain(AnomalyKind::ALL.iter().map(|a| a.name()))
            .chain(BACKENDS.iter().copied());
        for name in names {
            assert!(explain(name).unwrap().len() > name.len() + 10, "{name}");
        }
    }

    #[test]
    fn a_name_that_means_nothing_gets_the_nearest_that_does() {
        let error = explain("redelivery/ack-timout").unwrap_err();
        assert!(error.ends_with("did you mean redelivery/ack-timeout?"), "{error}");
        assert!(explain("xyzzy").is_err());
    }

    #[test]
    fn every_flaw_is_caught_by_a_property() {
        for flaw in Flaw::all() {
            assert!(catchers(flaw).next().is_some(), "{}", flaw.name());
        }
    }
}
