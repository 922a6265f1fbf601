//! The command line: what can be said.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    compare::{FailOn, Tolerance},
    config::{Color, Config, ConfigError, Format, Layers, Profile},
    flaw::Flaw,
    report::catalogue::Listing,
    scheduler::{Moment, Strategy},
};

/// Proves or refutes what a message broker promises, with evidence.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 all pass or are skipped, 1 a property failed, 2 a mistake in \
    what was asked for, 3 the environment is broken, 4 not decided."
)]
pub struct Cli {
    /// When to use colours (NO_COLOR is honoured)
    #[arg(long, global = true, value_name = "WHEN")]
    pub color: Option<Color>,
    /// Say more on standard error; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the suite against brokers and print the verdicts
    #[command(after_help = "Examples:
  queueproof conform                                  the embedded backend
  queueproof conform --backend nats                   a NATS server, started for the run
  queueproof conform --url nats://10.0.0.7:4222       yours; only topics named qp-… are touched
  queueproof conform --backend all --property dedup   one group, on every backend that is there")]
    Conform(Conform),
    /// Schedule checks on a pool of agents, as Sensu does, and judge and measure it
    #[command(after_help = "Examples:
  queueproof schedule --backend nats --agents 200 --checks 100 --duration 60s
  queueproof schedule --backend all --event '30s kill 1 scheduler' --event '30s crash 10 agents'
  queueproof schedule --backend pulsar --strategy sequence --schedulers 5
  queueproof schedule --config configs/schedule.yaml --out runs/today

Events: TIME stop|kill|add N schedulers, TIME pause N schedulers for DURATION,
TIME join|leave|crash N agents, TIME cut|stall N agents for DURATION, TIME restart broker.")]
    Schedule(Schedule),
    /// The same on the embedded broker in simulated time: a day takes seconds
    #[command(after_help = "Example:
  queueproof simulate --agents 20000 --checks 1000 --interval 1m --duration 24h --seed 7")]
    Simulate(Schedule),
    /// Judge the saved histories of a run again
    Judge {
        /// The folder that --out named
        dir: PathBuf,
        /// How to print the results
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
    },
    /// Compare saved results: targets side by side, and the same target over time
    #[command(after_help = "Examples:
  queueproof conform --backend all --format json > today.json
  queueproof compare today.json                                   its targets side by side
  queueproof compare nats.json pulsar.json                        two brokers, from two machines
  queueproof compare base.json today.json --fail-on regression    in CI: ends with 1 if it got worse
  queueproof conform --format json | queueproof compare base.json -

Exit codes: 0 compared, 1 --fail-on found what it looks for, 2 a file cannot be read, or with
--fail-on nothing in one file has its like in another.")]
    Compare(Compare),
    /// Say whether saved results meet the requirements of a workload, and on what evidence
    #[command(after_help = "Examples:
  queueproof conform --backend all --format json > conform.json
  queueproof schedule --backend all --format json > schedule.json
  queueproof scorecard configs/sensu.yaml conform.json schedule.json
  queueproof conform --format json | queueproof scorecard configs/sensu.yaml -

configs/sensu.yaml is one to start from: any workload can have its own.

Exit codes: 0 a target meets all musts, 1 every target fails one, 2 a file cannot be read, 4 not
decided.")]
    Scorecard(Scorecard),
    /// List what there is
    List {
        /// Which list
        what: Listing,
        /// How to print it
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
    /// Explain a property, group, flaw, capability, kind of anomaly or backend
    Explain {
        /// Its name, as the lists and tables show it
        id: String,
    },
    /// Install, start and stop brokers on this machine
    #[command(subcommand)]
    Brokers(Brokers),
    /// Delete what runs that did not end left on a broker
    Clean(Clean),
    /// Print the effective configuration, as a file that can be read again
    Config(Target),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Which targets, with which settings. Flags win over the environment, that over the file.
#[derive(Debug, Default, Args)]
pub struct Target {
    /// The backend, or several, or all that are there [default: memory]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub backend: Vec<String>,
    /// The broker's address, as nats://HOST:PORT, pulsar://HOST:PORT or nsq://HOST:PORT; without one
    /// a private broker is started
    #[arg(long)]
    pub url: Option<String>,
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key of the configuration, as suite.messages=500
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Sizes and times: some seconds, or a minute against a real broker [default: quick]
    #[arg(long)]
    pub profile: Option<Profile>,
}

/// The suite.
#[derive(Debug, Args)]
pub struct Conform {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Only these: ids, groups or patterns, as dedup or '*/ack-*'
    #[arg(long, value_name = "ID|GROUP", value_delimiter = ',')]
    pub property: Vec<String>,
    /// The seed of all random choices, as a run printed it
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many properties run at the same time [default: 12]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// How to print the results [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Keep the histories in this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Break a promise of the backend on purpose, to see it found (see list flaws)
    #[arg(long, value_name = "NAME", value_parser = flaw, hide_short_help = true)]
    pub flaw: Option<Flaw>,
}

/// A workload of the scheduler.
#[derive(Debug, Args)]
pub struct Schedule {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// How many schedulers publish, none of which knows of the others [default: 3]
    #[arg(long, value_name = "N")]
    pub schedulers: Option<u16>,
    /// How many agents are in the pool [default: 20]
    #[arg(long, value_name = "N")]
    pub agents: Option<u32>,
    /// How many checks there are [default: 10]
    #[arg(long, value_name = "N")]
    pub checks: Option<u32>,
    /// How often each check is due [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub interval: Option<Duration>,
    /// How long checks fall due [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// How a tick is scheduled once [default: the best that the backend has]
    #[arg(long, value_name = "STRATEGY")]
    pub strategy: Option<Strategy>,
    /// How far the schedulers' clocks are off, at most [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub skew: Option<Duration>,
    /// Give each agent a connection of its own
    #[arg(long)]
    pub connection_per_agent: bool,
    /// What happens meanwhile, as '30s kill 1 scheduler'; may be given several times
    #[arg(long = "event", value_name = "EVENT")]
    pub events: Vec<Moment>,
    /// The seed of all random choices, as a run printed it
    #[arg(long)]
    pub seed: Option<u64>,
    /// How to print the results [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Keep the history in this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print what a scorecard says of it, beneath the table (in JSON: instead of the results)
    #[arg(long, value_name = "FILE")]
    pub scorecard: Option<PathBuf>,
    /// Make a mistake on purpose, to see it found (see list flaws)
    #[arg(long, value_name = "NAME", value_parser = flaw, hide_short_help = true)]
    pub flaw: Option<Flaw>,
}

/// Comparing.
#[derive(Debug, Args)]
pub struct Compare {
    /// Results that conform or judge printed as JSON, the earliest first; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// By how much a figure may differ before it counts as moved: percent, 0 to 1000
    #[arg(long, value_name = "PERCENT", default_value = "10")]
    pub tolerance: Tolerance,
    /// End with 1 if a verdict changed, or got worse, from a file to the next
    #[arg(long, value_name = "WHAT")]
    pub fail_on: Option<FailOn>,
    /// How to print the comparison [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
}

/// Evaluating.
#[derive(Debug, Args)]
pub struct Scorecard {
    /// The requirements (YAML)
    #[arg(value_name = "SCORECARD")]
    pub scorecard: PathBuf,
    /// Results that conform, schedule or judge printed as JSON; of a property that several have,
    /// the last counts; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How to print the answers [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
}

/// Local brokers.
#[derive(Debug, Subcommand)]
pub enum Brokers {
    /// Show known brokers, what is installed, and what would be used
    List,
    /// Install brokers through their own ecosystems' package clients
    Install {
        /// Which ones, as nats
        #[arg(required = true)]
        names: Vec<String>,
        /// Another version than the one queueproof was tested with
        #[arg(long)]
        version: Option<String>,
    },
    /// Start a broker in the background
    Start {
        /// Which one
        name: String,
        /// Another version than the one queueproof was tested with
        #[arg(long)]
        version: Option<String>,
    },
    /// Show the brokers that were started in the background
    Status,
    /// Stop a broker that was started in the background, and delete its data
    Stop {
        /// Which one
        name: String,
        /// Keep its data for the next start
        #[arg(long)]
        keep: bool,
    },
}

/// Cleaning up.
#[derive(Debug, Args)]
pub struct Clean {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Also delete what runs left that began longer ago than this, whosever they are
    #[arg(long, value_name = "AGE", default_value = "6h", value_parser = humantime::parse_duration)]
    pub older_than: Duration,
    /// Only say what would be deleted
    #[arg(long)]
    pub dry_run: bool,
}

/// A flaw by its name.
fn flaw(name: &str) -> Result<Flaw, String> {
    Flaw::all().find(|flaw| flaw.name() == name).ok_or_else(|| {
        match crate::config::nearest(name, Flaw::all().map(Flaw::name)) {
            Some(near) => format!("there is no such flaw; did you mean {near}?"),
            None => "there is no such flaw; see queueproof list flaws".into(),
        }
    })
}

impl Target {
    /// The layers of file, environment and these flags.
    ///
    /// # Errors
    /// A mistake in a flag.
    pub fn layers(&self) -> Result<Layers, ConfigError> {
        let mut layers = Layers::default();
        layers.file(self.config.clone());
        layers.environment(|name| std::env::var(name).ok())?;
        for text in &self.set {
            layers.set_flag(text)?;
        }
        if let Some(profile) = self.profile {
            let name = match profile {
                Profile::Quick => "quick",
                Profile::Full => "full",
            };
            layers.set("--profile", "profile", name);
        }
        if let Some(url) = &self.url {
            let backend = layers.set_url("--url", url)?;
            let named = |name: &str| self.backend.iter().any(|b| b == name);
            if self.backend.is_empty() {
                layers.set("--url", "backend", backend);
            } else if !named(backend) && !named("all") {
                return Err(ConfigError::new(format!(
                    "--url: this is an address of {backend}; did you mean --backend {backend}?"
                )));
            }
        }
        if !self.backend.is_empty() {
            layers.set("--backend", "backend", &self.backend.join(","));
        }
        Ok(layers)
    }
}

impl Conform {
    /// The layers, with what only a run has.
    ///
    /// # Errors
    /// A mistake in a flag.
    pub fn layers(&self) -> Result<Layers, ConfigError> {
        let mut layers = self.target.layers()?;
        if !self.property.is_empty() {
            layers.set("--property", "property", &self.property.join(","));
        }
        if let Some(jobs) = self.jobs {
            layers.set("--jobs", "jobs", &jobs.to_string());
        }
        of_run(&mut layers, self.seed, self.format, self.out.as_deref());
        Ok(layers)
    }
}

impl Schedule {
    /// The configuration, with what only a workload has.
    ///
    /// # Errors
    /// A mistake in a flag, or in the file.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut layers = self.target.layers()?;
        of_run(&mut layers, self.seed, self.format, self.out.as_deref());
        let mut numbers = |flag: &str, key: &str, value: Option<String>| {
            if let Some(value) = value {
                layers.set(flag, key, &value);
            }
        };
        let words = |span: Duration| humantime::format_duration(span).to_string();
        let count = self.schedulers.map(|n| n.to_string());
        numbers("--schedulers", "schedule.schedulers.count", count);
        numbers("--skew", "schedule.schedulers.skew", self.skew.map(words));
        numbers("--duration", "schedule.duration", self.duration.map(words));
        if self.connection_per_agent {
            numbers("--connection-per-agent", "schedule.connection_per_agent", Some("true".into()));
        }
        let mut config = layers.merge()?;
        let schedule = &mut config.schedule;
        schedule.strategy = self.strategy.or(schedule.strategy);
        schedule.timeline.extend(self.events.iter().cloned());
        // Lists have no keys: a flag is for the only entry.
        let several = |flag: &str, what: &str| {
            ConfigError::new(format!(
                "{flag}: the configuration has several groups of {what}; set it there"
            ))
        };
        if let Some(agents) = self.agents {
            let [group] = schedule.agents.as_mut_slice() else {
                return Err(several("--agents", "agents"));
            };
            group.count = agents;
        }
        if let Some(checks) = self.checks {
            let [group] = schedule.checks.as_mut_slice() else {
                return Err(several("--checks", "checks"));
            };
            group.count = checks;
        }
        if let Some(interval) = self.interval {
            let [group] = schedule.checks.as_mut_slice() else {
                return Err(several("--interval", "checks"));
            };
            (group.interval, group.cron) = (Some(interval), None);
        }
        Ok(config)
    }
}

/// Sets what every run has.
fn of_run(layers: &mut Layers, seed: Option<u64>, format: Option<Format>, out: Option<&Path>) {
    if let Some(seed) = seed {
        layers.set("--seed", "seed", &seed.to_string());
    }
    if let Some(format) = format {
        let name = match format {
            Format::Table => "table",
            Format::Json => "json",
        };
        layers.set("--format", "format", name);
    }
    if let Some(out) = out {
        layers.set("--out", "out", &out.display().to_string());
    }
}
