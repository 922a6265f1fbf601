//! What a backend declares against what a run shows of it.

use std::collections::BTreeMap;

use queueproof_backends::{
    Capabilities,
    Capability::{self, ConfirmedAck, DuplicateReported, Headers, Keys, StartEarliest},
};

use super::{Property, property};
use crate::results::{Demonstration, PropertyResult, Verdict};

/// What a property shows where it is there, beside what it needs.
static ALSO: &[(&str, &[Capability])] = &[
    ("pubsub/payload-integrity", &[Keys, Headers]),
    ("work-queue/ack-deletes", &[ConfirmedAck]),
    ("redelivery/never-after-ack", &[ConfirmedAck]),
    ("pubsub/late-subscriber", &[StartEarliest]),
    ("dedup/sequence-repeat", &[DuplicateReported]),
];

/// The capabilities that a property puts to the test.
pub fn shows(property: &Property) -> impl Iterator<Item = Capability> {
    let also = ALSO.iter().filter(|(id, _)| *id == property.id);
    property.needs.iter().copied().chain(also.flat_map(|(_, also)| also.iter().copied()))
}

/// What became of each capability that was declared: a failure of any property that needs it
/// refutes it, or at least the sum of what the backend declares.
pub fn demonstrated(
    declared: Option<&Capabilities>,
    results: &[PropertyResult],
) -> BTreeMap<Capability, Demonstration> {
    let Some(declared) = declared.filter(|_| !results.is_empty()) else { return BTreeMap::new() };
    let of = |capability: Capability| {
        let concerned = results.iter().filter(|result| {
            property(&result.id).is_some_and(|p| shows(p).any(|shown| shown == capability))
        });
        let verdicts: Vec<_> = concerned.map(|result| result.verdict).collect();
        if verdicts.contains(&Verdict::Fail) {
            Demonstration::Refuted
        } else if verdicts.contains(&Verdict::Pass) {
            Demonstration::Demonstrated
        } else {
            Demonstration::NotExercised
        }
    };
    let had = Capability::ALL.into_iter().filter(|&capability| declared.has(capability));
    had.map(|capability| (capability, of(capability))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::properties;

    #[test]
    fn every_capability_is_put_to_the_test_by_a_property() {
        for capability in Capability::ALL {
            assert!(properties().any(|p| shows(p).any(|c| c == capability)), "{capability}");
        }
    }

    #[test]
    fn what_a_property_also_shows_is_of_a_property_that_there_is() {
        for (id, _) in ALSO {
            assert!(property(id).is_some(), "{id}");
        }
    }
}
