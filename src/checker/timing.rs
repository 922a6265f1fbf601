//! Figures of time, and whether something came too late.

use super::{
    AnomalyKind, Evidence, Findings,
    evidence::{Delivered, Time},
    millis, words,
};

/// Spans of time, for the figures.
#[derive(Debug, Default, Clone)]
pub struct Spans(Vec<Time>);

impl Spans {
    /// Adds one.
    pub fn add(&mut self, span: Time) {
        self.0.push(span);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shortest.
    pub fn min(&self) -> Time {
        self.0.iter().copied().min().unwrap_or(0)
    }

    /// The longest.
    pub fn max(&self) -> Time {
        self.0.iter().copied().max().unwrap_or(0)
    }

    /// The middle one.
    pub fn median(&self) -> Time {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    /// Notes count, shortest, middle and longest under names that begin with `name`, in
    /// milliseconds, and makes the range the key figure.
    pub fn observe(&self, name: &str, findings: &mut Findings) {
        findings.observe(&format!("{name}_count"), self.len());
        if self.is_empty() {
            return;
        }
        findings.observe(&format!("{name}_min_ms"), millis(self.min()));
        findings.observe(&format!("{name}_median_ms"), millis(self.median()));
        findings.observe(&format!("{name}_max_ms"), millis(self.max()));
        let (shortest, longest) = (words(self.min()), words(self.max()));
        findings.key_figure = match shortest == longest {
            true => format!("after {shortest}"),
            false => format!("after {shortest}–{longest}"),
        };
    }
}

/// Notes `kind` if something due by `due` came at `came`, later than tolerated. Lateness that a
/// stall of this program explains decides nothing, nor does one no greater, beyond the tolerance,
/// than the broker's answers took: on a busy machine all of it is slow.
pub fn late(
    evidence: &Evidence<'_>,
    findings: &mut Findings,
    kind: AnomalyKind,
    (due, came): (Time, Time),
    example: impl FnOnce() -> String,
) {
    let allowed = due.saturating_add(evidence.tolerance());
    if came <= allowed {
        return;
    }
    let allowed = allowed.saturating_add(evidence.stalled(due.min(came), came));
    if came <= allowed {
        findings.undecided("this program was held up by the machine while it waited");
        return;
    }
    let slowest = evidence.slowest_answer();
    if came <= allowed.saturating_add(slowest) {
        findings.undecided(format!(
            "something came later than tolerated from a broker that took up to {} to confirm a publish",
            words(slowest)
        ));
        return;
    }
    findings
        .anomaly(kind, || format!("{}: due by {}, came at {}", example(), words(due), words(came)));
}

/// The deliveries of each message in a subscription that were followed by another, with that one.
pub fn redeliveries<'e, 'h>(
    evidence: &'e Evidence<'h>,
    subscription: usize,
) -> impl Iterator<Item = (&'e Delivered<'h>, &'e Delivered<'h>)> + use<'e, 'h> {
    let by_message = evidence.subscriptions.get(subscription).map(|s| s.by_message.as_slice());
    by_message
        .unwrap_or_default()
        .iter()
        .flat_map(|deliveries| deliveries.windows(2))
        .map(|pair| (&evidence.deliveries[pair[0]], &evidence.deliveries[pair[1]]))
}
