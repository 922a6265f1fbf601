//! What the broker's process cost, from samples of its load.

use std::collections::BTreeMap;

use super::{BrokerState, Event, Load};

/// Samples of a broker's load beside what was executed meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    first: Option<Load>,
    /// Before the first tick, with all agents connected.
    begun: Option<Load>,
    last: Option<Load>,
    most: Load,
    executed: u64,
    /// How many connections there were before the broker was restarted, and when it ran again.
    storm: Option<(u64, u64)>,
    reconnected: Option<u64>,
}

impl Costs {
    /// Takes in an event that completed at a time.
    pub fn see(&mut self, at: u64, event: &Event) {
        match event {
            Event::Begin => self.begun = self.last,
            Event::Broker(BrokerState::Started) => {
                self.storm = self.last.and_then(|load| Some((load.connections?, at)));
                self.reconnected = None;
            }
            Event::Execute { ok: true, .. } => self.executed += 1,
            Event::Load(load) => {
                if let Some((before, started)) = self.storm
                    && load.connections.is_some_and(|connections| connections >= before)
                {
                    self.reconnected.get_or_insert(at.saturating_sub(started));
                }
                self.first.get_or_insert(*load);
                self.last = Some(*load);
                self.most = Load {
                    resident: self.most.resident.max(load.resident),
                    connections: self.most.connections.max(load.connections),
                    leases: self.most.leases.max(load.leases),
                    watchers: self.most.watchers.max(load.watchers),
                    ..self.most
                };
            }
            _ => {}
        }
    }

    /// The figures, units in their names; those are left out that cannot be told.
    pub fn figures(&self) -> BTreeMap<String, serde_json::Value> {
        let mut figures = BTreeMap::new();
        let (Some(first), Some(begun), Some(last)) = (self.first, self.begun, self.last) else {
            return figures;
        };
        let mut tell = |name: &str, value: Option<f64>| {
            if let Some(value) = value {
                figures.insert(name.to_string(), round(value).into());
            }
        };
        let thousands = self.executed as f64 / 1000.0;
        let per_thousand = |of: fn(&Load) -> Option<u64>, unit: f64| {
            let used = of(&last)?.saturating_sub(of(&begun)?);
            (thousands > 0.0).then_some(used as f64 / unit / thousands)
        };
        const MB: f64 = 1e6;
        tell("cpu_seconds_per_1000_executions", per_thousand(|load| load.cpu, 1e9));
        tell("written_mb_per_1000_executions", per_thousand(|load| load.written, MB));
        tell("messages_in_per_1000_executions", per_thousand(|load| load.messages_in, 1.0));
        tell("messages_out_per_1000_executions", per_thousand(|load| load.messages_out, 1.0));
        tell("resident_mb", self.most.resident.map(|bytes| bytes as f64 / MB));
        tell("connections", self.most.connections.map(|n| n as f64));
        tell("leases", self.most.leases.map(|n| n as f64));
        tell("watchers", self.most.watchers.map(|n| n as f64));
        let connected = begun.connections.zip(first.connections);
        let connected =
            connected.map(|(now, before)| now.saturating_sub(before)).filter(|n| *n >= MANY);
        let grown =
            begun.resident.zip(first.resident).map(|(now, before)| now.saturating_sub(before));
        let each = grown.zip(connected).map(|(grown, n)| grown as f64 / 1e3 / n as f64);
        tell("kb_per_connection", each);
        // To within the second between two samples.
        tell("all_reconnected_after_ms", self.reconnected.map(|nanos| nanos as f64 / 1e6));
        figures
    }
}

/// How many connections it takes until the broker's memory tells what one costs.
const MANY: u64 = 100;

/// Four digits are all that such a figure is worth.
fn round(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cpu: u64, resident: u64, connections: u64) -> Event {
        let (cpu, resident) = (Some(cpu * 1_000_000_000), Some(resident * 1_000_000));
        Event::Load(Load { cpu, resident, connections: Some(connections), ..Load::default() })
    }

    #[test]
    fn costs_count_from_the_epoch_and_per_thousand_executions() {
        let mut costs = Costs::default();
        for event in [load(1, 10, 1), load(5, 110, 1001), Event::Begin] {
            costs.see(0, &event);
        }
        for delivery in 0..2000 {
            costs.see(1, &Event::Execute { agent: 0, delivery, ok: true });
        }
        costs.see(2, &load(9, 90, 1001));
        let figures = costs.figures();
        assert_eq!(figures["cpu_seconds_per_1000_executions"], 2.0);
        assert_eq!(figures["resident_mb"], 110.0);
        assert_eq!(figures["kb_per_connection"], 100.0);
        assert!(!figures.contains_key("leases"), "what nobody told is left out");
    }

    #[test]
    fn after_a_restart_the_time_counts_until_all_are_connected_again() {
        let mut costs = Costs::default();
        let second = 1_000_000_000;
        costs.see(0, &load(1, 10, 500));
        costs.see(0, &Event::Begin);
        costs.see(second, &Event::Broker(BrokerState::Stopped));
        costs.see(2 * second, &Event::Broker(BrokerState::Started));
        costs.see(3 * second, &load(1, 10, 200));
        costs.see(5 * second, &load(1, 10, 500));
        costs.see(6 * second, &load(1, 10, 500));
        assert_eq!(costs.figures()["all_reconnected_after_ms"], 3000.0);
    }

    #[test]
    fn without_samples_there_are_no_figures() {
        let mut costs = Costs::default();
        costs.see(0, &Event::Begin);
        assert!(costs.figures().is_empty());
    }
}
