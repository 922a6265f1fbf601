//! From what the user wrote to a plan in which nothing is implicit.

use std::time::Duration;

use globset::GlobBuilder;

use super::{
    Config, ConfigError, List, Tls,
    layers::{check, lay},
};
use crate::{
    conformance::{Property, properties},
    flaw::Flaw,
    plan::{BackendPlan, Plan, Suite, TargetPlan},
};

/// The backends of this build, in the order of the tables.
pub const BACKENDS: &[&str] = &[
    "memory",
    #[cfg(feature = "nats")]
    "nats",
    #[cfg(feature = "pulsar")]
    "pulsar",
    #[cfg(feature = "nsq")]
    "nsq",
];

/// The backends of any build.
const KNOWN: [&str; 4] = ["memory", "nats", "pulsar", "nsq"];

/// What a workload can be scheduled on beside the backends: no queue, but what it is measured
/// against.
pub const BASELINES: &[&str] = &[
    #[cfg(feature = "etcd-ring")]
    "etcd-ring",
];

/// What the command line asks for beside the configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// The promise to break on purpose.
    pub flaw: Option<Flaw>,
    /// Whether it is for a workload of the scheduler, so that baselines can be chosen too.
    pub workload: bool,
}

impl Config {
    /// The plan.
    ///
    /// # Errors
    /// Names that do not exist, settings that contradict each other.
    pub fn plan(&self, selection: Selection) -> Result<Plan, ConfigError> {
        let properties = select(&self.property)?;
        let suite = self.suite.apply(self.profile);
        let target = |name: &str, backend: BackendPlan| -> Result<TargetPlan, ConfigError> {
            let settings = match &backend {
                BackendPlan::Memory(memory) => serde_json::to_value(memory),
                BackendPlan::Nats(nats) => serde_json::to_value(nats),
                BackendPlan::Pulsar(pulsar) => serde_json::to_value(pulsar),
                BackendPlan::Nsq(nsq) => serde_json::to_value(nsq),
                BackendPlan::EtcdRing(etcd) => serde_json::to_value(etcd),
            };
            let mut settings = settings.map_err(|e| ConfigError::new(e.to_string()))?;
            settings["suite"] =
                serde_json::to_value(&suite).map_err(|e| ConfigError::new(e.to_string()))?;
            // Results of a promise that was broken on purpose must not be taken for the broker's.
            if let Some(flaw) = selection.flaw {
                settings["flaw"] = flaw.name().into();
            }
            Ok(TargetPlan {
                name: name.into(),
                backend,
                settings,
                suite: suite.clone(),
                flaw: selection.flaw,
                optional: self.backend.0.iter().all(|wanted| wanted == "all" || wanted != name),
                properties: properties.clone(),
            })
        };
        let mut targets = Vec::new();
        if self.targets.is_empty() {
            for name in self.backends(selection.workload)? {
                targets.push(target(name, self.backend_plan(name)?)?);
            }
        }
        for (name, settings) in &self.targets {
            let key = format!("targets.{name}");
            let changes = [&settings.memory, &settings.nats, &settings.pulsar, &settings.nsq]
                .map(Option::as_ref);
            let backend = match changes {
                [Some(changes), None, None, None] => {
                    BackendPlan::Memory(changed(&self.memory, changes, &key)?)
                }
                [None, Some(changes), None, None] => {
                    BackendPlan::Nats(Box::new(changed(&self.nats, changes, &key)?))
                }
                [None, None, Some(changes), None] => {
                    BackendPlan::Pulsar(Box::new(changed(&self.pulsar, changes, &key)?))
                }
                [None, None, None, Some(changes)] => {
                    BackendPlan::Nsq(Box::new(changed(&self.nsq, changes, &key)?))
                }
                _ => {
                    let expected = KNOWN.join(" or ");
                    return Err(ConfigError::new(format!("{key}: expected one of {expected}")));
                }
            };
            available(backend.name())?;
            match &backend {
                BackendPlan::Memory(_) | BackendPlan::EtcdRing(_) => {}
                BackendPlan::Nats(nats) => nats.validate(&format!("{key}.nats"))?,
                BackendPlan::Pulsar(pulsar) => pulsar.validate(&format!("{key}.pulsar"))?,
                BackendPlan::Nsq(nsq) => nsq.validate(&format!("{key}.nsq"))?,
            }
            targets.push(TargetPlan { optional: false, ..target(name, backend)? });
        }
        Ok(Plan {
            seed: self.seed.unwrap_or_else(rand::random),
            jobs: self.jobs,
            prefix: self.prefix.clone(),
            out: self.out.clone(),
            targets,
        })
    }

    /// The backends that are asked for, each once.
    fn backends(&self, workload: bool) -> Result<Vec<&'static str>, ConfigError> {
        let mut names = Vec::new();
        let baselines = if workload { BASELINES } else { &[] };
        let all = || BACKENDS.iter().chain(baselines);
        for wanted in &self.backend.0 {
            available(wanted)?;
            if !workload && BASELINES.contains(&wanted.as_str()) {
                return Err(ConfigError::new(format!(
                    "backend: {wanted} is no queue, but a baseline of the scheduler: see queueproof \
                     schedule --backend {wanted}"
                )));
            }
            let found: Vec<_> =
                all().filter(|name| *wanted == "all" || **name == wanted).copied().collect();
            if found.is_empty() {
                return Err(unknown("backend", wanted, all().copied().chain(["all"])));
            }
            names.extend(found);
        }
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        if names.is_empty() {
            return Err(ConfigError::new("backend: the list is empty"));
        }
        Ok(names)
    }

    /// How to reach a backend.
    ///
    /// # Errors
    /// For one that does not exist.
    pub fn backend_plan(&self, name: &str) -> Result<BackendPlan, ConfigError> {
        match name {
            "memory" => Ok(BackendPlan::Memory(self.memory.clone())),
            "nats" => Ok(BackendPlan::Nats(Box::new(self.nats.clone()))),
            "pulsar" => Ok(BackendPlan::Pulsar(Box::new(self.pulsar.clone()))),
            "nsq" => Ok(BackendPlan::Nsq(Box::new(self.nsq.clone()))),
            "etcd-ring" => Ok(BackendPlan::EtcdRing(Box::new(self.etcd.clone()))),
            _ => Err(unknown("backend", name, BACKENDS.iter().copied())),
        }
    }

    /// Checks numbers and times, each by its key.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let Suite {
            ack_timeout,
            tolerance,
            dedup_window,
            nack_delay,
            messages,
            consumers,
            publishers,
            payload,
            deadline,
        } = self.suite.apply(self.profile);
        let hour = Duration::from_secs(3600);
        let tenth = Duration::from_millis(100);
        span("suite.ack_timeout", ack_timeout, tenth, hour)?;
        span("suite.tolerance", tolerance, Duration::from_millis(10), ack_timeout)?;
        span("suite.dedup_window", dedup_window, tenth, hour)?;
        span("suite.nack_delay", nack_delay, Duration::from_millis(10), hour)?;
        span("suite.deadline", deadline, (ack_timeout + tolerance) * 5, hour * 24)?;
        if tolerance * 2 > dedup_window {
            return Err(ConfigError::new(
                "suite.dedup_window: must be at least twice suite.tolerance, or nothing can be told",
            ));
        }
        range("suite.messages", messages, 20, 1_000_000)?;
        range("suite.consumers", consumers, 2, 64)?;
        range("suite.publishers", publishers, 2, 64)?;
        range("suite.payload", payload, 64, 1 << 20)?;
        range("jobs", self.jobs as u64, 1, 256)?;
        range("memory.max_payload", self.memory.max_payload, 1024, 64 << 20)?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(1..=12).contains(&self.prefix.len()) || !self.prefix.chars().all(plain) {
            return Err(ConfigError::new(format!(
                "prefix: {:?} is not 1 to 12 characters of a-z and 0-9",
                self.prefix
            )));
        }
        for name in self.targets.keys() {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                return Err(ConfigError::new(format!(
                    "targets: {name:?} is not a name of a-z, A-Z, 0-9, - . and _"
                )));
            }
        }
        self.nats.validate("nats")?;
        self.pulsar.validate("pulsar")?;
        self.nsq.validate("nsq")?;
        self.etcd.validate("etcd")
    }
}

/// A backend that exists, and not in this build, is told so.
fn available(name: &str) -> Result<(), ConfigError> {
    if KNOWN.contains(&name) && !BACKENDS.contains(&name) {
        return Err(ConfigError::new(format!(
            "backend: this build of queueproof is without {name} (the Cargo feature `{name}`)"
        )));
    }
    Ok(())
}

impl Tls {
    pub(super) fn validate(&self, key: &str) -> Result<(), ConfigError> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(ConfigError::new(format!("{key}.tls: cert_file and key_file go together")));
        }
        Ok(())
    }
}

/// Settings with a target's changes.
fn changed<T: serde::Serialize + serde::de::DeserializeOwned>(
    general: &T,
    changes: &serde_yaml::Value,
    key: &str,
) -> Result<T, ConfigError> {
    let problem = |e: serde_yaml::Error| ConfigError::new(format!("{key}: {e}"));
    let mut value = serde_yaml::to_value(general).map_err(problem)?;
    lay(&mut value, changes.clone());
    check(value, &key)
}

/// The properties that a list of ids, groups and patterns names, in the order of the tables.
fn select(wanted: &List) -> Result<Vec<&'static Property>, ConfigError> {
    if wanted.0.is_empty() {
        return Ok(properties().collect());
    }
    let mut chosen = vec![false; properties().count()];
    for text in &wanted.0 {
        let pattern = GlobBuilder::new(text).literal_separator(false).build();
        let pattern = pattern
            .map_err(|e| ConfigError::new(format!("property: {text:?} is no pattern: {e}")))?
            .compile_matcher();
        let mut found = false;
        for (property, chosen) in properties().zip(&mut chosen) {
            if pattern.is_match(property.id) || property.group() == text.trim_end_matches('/') {
                *chosen = true;
                found = true;
            }
        }
        if !found {
            {
                let ids: Vec<_> = properties().map(|p| p.id).collect();
                return Err(unknown("property", text, ids.into_iter()));
            }
        }
    }
    Ok(properties().zip(chosen).filter(|(_, chosen)| *chosen).map(|(p, _)| p).collect())
}

fn unknown(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'static str> + Clone,
) -> ConfigError {
    match nearest(name, known.clone()) {
        Some(near) => {
            ConfigError::new(format!("{what}: there is no {name:?}; did you mean {near}?"))
        }
        None => {
            let known: Vec<_> = known.collect();
            ConfigError::new(format!(
                "{what}: there is no {name:?}; there are {}",
                known.join(", ")
            ))
        }
    }
}

/// The name that was meant perhaps.
pub fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|known| {
            // Without its group a property is known too.
            let short = known.rsplit('/').next().unwrap_or(known);
            let likeness = strsim::jaro_winkler(name, known).max(strsim::jaro_winkler(name, short));
            (likeness, known)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

pub(super) fn span(
    key: &str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let words = |d| humantime::format_duration(d).to_string();
    Err(ConfigError::new(format!(
        "{key}: {} is not between {} and {}",
        words(value),
        words(least),
        words(most)
    )))
}

/// Checks a backend's limits for connecting and for answers.
pub(super) fn timeouts(key: &str, connect: Duration, request: Duration) -> Result<(), ConfigError> {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
    span(&format!("{key}.connect_timeout"), connect, least, most)?;
    span(&format!("{key}.request_timeout"), request, least, most)
}

/// Checks an HTTP address; it is shown with the settings, so it must hold no secret. The error does
/// not show it.
pub(super) fn http_address(key: &str, url: &str) -> Result<(), ConfigError> {
    let problem = if !(url.starts_with("http://") || url.starts_with("https://")) {
        "an HTTP address begins with http:// or https://"
    } else if url.contains(['@', '?', '#']) {
        "an address holds no user, password or query: see `auth` for credentials"
    } else {
        return Ok(());
    };
    Err(ConfigError::new(format!("{key}: {problem}")))
}

pub(super) fn range<N: Into<u64>>(
    key: &str,
    value: N,
    least: u64,
    most: u64,
) -> Result<(), ConfigError> {
    let value = value.into();
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(format!("{key}: {value} is not between {least} and {most}")))
}
