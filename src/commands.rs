//! The command line: what is done. The only place that writes to standard output.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::CommandFactory;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use tokio_util::sync::CancellationToken;

use crate::{
    brokers::{self, BrokerError, ErrorClass, Places, StartSettings, Wanted, background},
    cli::{Brokers, Clean, Cli, Command, Compare, Conform, Schedule, Scorecard, Target},
    compare::{self, Change, FailOn},
    config::{BACKENDS, Color, Config, ConfigError, Format, Layers, Selection, VARIABLES},
    judge, names,
    plan::{BackendPlan, TargetPlan},
    progress::{Live, Progress},
    report::{self, Style, catalogue},
    results::Results,
    runner, schedule, scorecard,
    target::{self, Reached, Unreached, Waiting},
};

/// Why a command failed, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    code: u8,
    words: String,
}

impl Failure {
    fn usage(words: impl ToString) -> Self {
        Failure { code: 2, words: words.to_string() }
    }

    fn environment(words: impl ToString) -> Self {
        Failure { code: 3, words: words.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::usage(error)
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        match error.class {
            ErrorClass::Usage => Failure::usage(error),
            _ => Failure::environment(error),
        }
    }
}

/// Does what the command line says.
pub fn run(cli: &Cli) -> ExitCode {
    log(cli.verbose);
    match execute(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Nobody may be listening.
            let _ = writeln!(io::stderr(), "queueproof: {}", failure.words);
            ExitCode::from(failure.code)
        }
    }
}

fn execute(cli: &Cli) -> Result<u8, Failure> {
    match &cli.command {
        Command::Conform(conform) => self::conform(cli, conform),
        Command::Schedule(schedule) => self::schedule(cli, schedule, false),
        Command::Simulate(schedule) => self::schedule(cli, schedule, true),
        Command::Judge { dir, format } => judge_again(cli, dir, *format),
        Command::Compare(compare) => self::compare(cli, compare),
        Command::Scorecard(scorecard) => self::scorecard(cli, scorecard),
        Command::List { what, format } => {
            let color = plain_layers()?.merge()?.color;
            print(&catalogue::list(*what, *format, style(cli.color.unwrap_or(color))))
        }
        Command::Explain { id } => print(&catalogue::explain(id).map_err(Failure::usage)?),
        Command::Brokers(command) => self::brokers(command),
        Command::Clean(clean) => self::clean(clean),
        Command::Config(target) => show_config(target),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "queueproof", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// The environment alone.
fn plain_layers() -> Result<Layers, ConfigError> {
    Target::default().layers()
}

/// Writes a result to standard output. A reader that has seen enough is not an error.
fn print(text: &str) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::environment(format!("the result cannot be written: {error}")))
        }
        _ => Ok(0),
    }
}

fn style(color: Color) -> Style {
    let terminal = io::stdout().is_terminal();
    let color = match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    };
    // Without a terminal as wide as one commonly is.
    Style { color, width: (!terminal).then_some(100) }
}

fn log(verbose: u8) {
    let level =
        ["warn,async_nats=off", "info,async_nats=warn", "debug"][usize::from(verbose.min(2))];
    let filter = std::env::var("QUEUEPROOF_LOG").unwrap_or_else(|_| level.into());
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // A second one, in tests, changes nothing.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).try_init();
}

/// Ends a run on SIGINT and SIGTERM; a second signal ends the program at once (a private broker's
/// guard sees to that broker).
fn on_signal(cancel: &CancellationToken, flag: &Arc<AtomicBool>) -> Result<(), Failure> {
    let mut signals = Signals::new(TERM_SIGNALS)
        .map_err(|e| Failure::environment(format!("signals cannot be caught: {e}")))?;
    let (cancel, flag) = (cancel.clone(), Arc::clone(flag));
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(128 + signal);
            }
            let _ = writeln!(io::stderr(), "queueproof: interrupted, tidying up");
            cancel.cancel();
        }
    });
    Ok(())
}

fn conform(cli: &Cli, conform: &Conform) -> Result<u8, Failure> {
    let config = conform.layers()?.merge()?;
    let plan = config.plan(Selection { flaw: conform.flaw, ..Selection::default() })?;
    let (cancel, interrupted) = (CancellationToken::new(), Arc::default());
    on_signal(&cancel, &interrupted)?;
    let progress = Progress::new(&plan, io::stderr().is_terminal());
    let results = runner::run(&plan, &cancel, &|event| progress.show(event));
    progress.finish();
    let results = results.map_err(Failure::usage)?;
    if let Some(folder) = &config.out {
        tracing::info!("histories are in {}", folder.display());
    }
    finish(&results, config.format, style(cli.color.unwrap_or(config.color)))
}

/// Runs a workload of the scheduler, in real or in simulated time.
fn schedule(cli: &Cli, schedule: &Schedule, simulate: bool) -> Result<u8, Failure> {
    let config = schedule.config()?;
    // A mistake in it is told before anything runs.
    let scorecard = schedule.scorecard.as_deref().map(scorecard::file::read).transpose()?;
    let plan = config.plan(Selection { flaw: schedule.flaw, workload: true })?;
    let real = |target: &&TargetPlan| !matches!(target.backend, BackendPlan::Memory(_));
    if let Some(target) = plan.targets.iter().find(real).filter(|_| simulate) {
        return Err(Failure::usage(format!(
            "simulate: {} has no simulated clock, only the embedded broker has; see queueproof schedule",
            target.name
        )));
    }
    let (cancel, interrupted) = (CancellationToken::new(), Arc::default());
    on_signal(&cancel, &interrupted)?;
    let live = Live::new(io::stderr().is_terminal());
    let results = schedule::run(&plan, &config.schedule, &cancel, &|shown| live.show(&shown));
    live.finish();
    let results = results.map_err(Failure::usage)?;
    let style = style(cli.color.unwrap_or(config.color));
    let Some(scorecard) = scorecard else { return finish(&results, config.format, style) };
    if config.format == Format::Table {
        finish(&results, config.format, style)?;
    }
    let score = scorecard::evaluate(&scorecard, &results.targets);
    print(&report::render_score(config.format, &score, style).map_err(Failure::environment)?)?;
    Ok(score.exit_code())
}

/// Prints results; their exit code.
fn finish(results: &Results, format: Format, style: Style) -> Result<u8, Failure> {
    print(&report::render(format, results, style).map_err(Failure::environment)?)?;
    Ok(results.exit_code())
}

fn judge_again(cli: &Cli, dir: &Path, format: Option<Format>) -> Result<u8, Failure> {
    let config = plain_layers()?.merge()?;
    let results = judge::judge(dir).map_err(Failure::usage)?;
    let style = style(cli.color.unwrap_or(config.color));
    finish(&results, format.unwrap_or(config.format), style)
}

fn compare(cli: &Cli, compare: &Compare) -> Result<u8, Failure> {
    let config = plain_layers()?.merge()?;
    let inputs = compare::read::read(&compare.files).map_err(Failure::usage)?;
    let comparison = compare::compare(&inputs, compare.tolerance);
    let breaches = match compare.fail_on {
        Some(fail_on) => {
            let breaches = comparison.breaches(fail_on);
            breaches.map_err(|error| Failure::usage(report::plain(&error.to_string())))?
        }
        None => Vec::new(),
    };
    let format = compare.format.unwrap_or(config.format);
    let style = style(cli.color.unwrap_or(config.color));
    print(&report::render_comparison(format, &comparison, style).map_err(Failure::environment)?)?;
    match (compare.fail_on, breaches.as_slice()) {
        (Some(fail_on), [first, rest @ ..]) => {
            Err(Failure { code: 1, words: breached(fail_on, &comparison, *first, rest.len()) })
        }
        _ => Ok(0),
    }
}

fn scorecard(cli: &Cli, asked: &Scorecard) -> Result<u8, Failure> {
    let config = plain_layers()?.merge()?;
    let scorecard = scorecard::file::read(&asked.scorecard)?;
    let inputs = compare::read::read(&asked.files).map_err(Failure::usage)?;
    let targets: Vec<_> = inputs.into_iter().flat_map(|(_, results)| results.targets).collect();
    let score = scorecard::evaluate(&scorecard, &targets);
    let format = asked.format.unwrap_or(config.format);
    let style = style(cli.color.unwrap_or(config.color));
    print(&report::render_score(format, &score, style).map_err(Failure::environment)?)?;
    Ok(score.exit_code())
}

/// Why a comparison failed, in words.
fn breached(
    fail_on: FailOn,
    comparison: &compare::Comparison,
    (target, change): (&str, &Change),
    more: usize,
) -> String {
    let property = change.property.as_deref().map(|id| format!(" {id}")).unwrap_or_default();
    let step = report::compare::step(comparison, change);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("--fail-on {fail_on}: {}: {step}{more}", report::plain(&format!("{target}{property}")))
}

fn show_config(target: &Target) -> Result<u8, Failure> {
    let config: Config = target.layers()?.merge()?;
    config.plan(Selection::default())?;
    let mut text = String::from("# The effective configuration. The environment's variables are\n");
    for (variable, key) in VARIABLES {
        text.push_str(&format!("#   {variable} for {key}\n"));
    }
    text.push_str(&serde_yaml::to_string(&config).map_err(Failure::environment)?);
    print(&text)
}

fn brokers(command: &Brokers) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    match command {
        Brokers::List => {
            let mut text = String::new();
            for listing in brokers::list(&places)? {
                let kind = listing.kind;
                text.push_str(&format!("{} (tested with {})\n", kind.name, kind.pinned));
                let installed = match listing.installed.as_slice() {
                    [] => "none".into(),
                    versions => versions.join(", "),
                };
                text.push_str(&format!("  installed by queueproof: {installed}\n"));
                let version = match &listing.version {
                    Some(Ok(version)) => format!(", version {version}"),
                    Some(Err(error)) => format!(", {error}"),
                    None => String::new(),
                };
                match &listing.used {
                    Ok(found) => {
                        text.push_str(&format!("  used: {}{version}\n", found.path.display()))
                    }
                    Err(error) => text.push_str(&format!("  used: none. {error}\n")),
                }
                for running in &listing.running {
                    let at = addresses(running);
                    text.push_str(&format!("  running: {} at {at}\n", running.name));
                }
            }
            print(&text)
        }
        Brokers::Install { names, version } => {
            on_signal(&CancellationToken::new(), &interrupted)?;
            for name in names {
                let kind = brokers::kind(name)?;
                let mut tell = |line: &str| drop(writeln!(io::stderr(), "{line}"));
                let installed =
                    brokers::install(&places, kind, version.as_deref(), &interrupted, &mut tell)?;
                let how = if installed.already { "is installed already" } else { "installed" };
                let at = installed.path.display();
                print(&format!("{name} {} {how}: {at}\n", installed.version))?;
            }
            Ok(0)
        }
        Brokers::Start { name, version } => {
            on_signal(&CancellationToken::new(), &interrupted)?;
            let kind = brokers::kind(name)?;
            let wanted = Wanted { binary: None, version: version.clone() };
            let found = brokers::find(&places, kind, &wanted)?;
            let settings = StartSettings::new(found.path);
            let tell = |line: &str| drop(writeln!(io::stderr(), "{line}"));
            let started = background::start(&places, name, kind, settings, &interrupted, &tell)?;
            print(&format!(
                "{} {} runs at {}\n",
                started.name,
                started.version,
                addresses(&started)
            ))
        }
        Brokers::Status => {
            let all = background::status(&places)?;
            if all.is_empty() {
                return print("no broker was started in the background\n");
            }
            for broker in all {
                let state = if broker.running { "runs" } else { "is dead" };
                let log = broker.log();
                print(&format!(
                    "{} {} {state} at {}, pid {}, log {}\n",
                    broker.name,
                    broker.version,
                    addresses(&broker),
                    broker.pid(),
                    log.display()
                ))?;
            }
            Ok(0)
        }
        Brokers::Stop { name, keep } => {
            let stopped = background::stop(&places, name, *keep)?;
            print(&format!("{} {} stopped\n", stopped.name, stopped.version))
        }
    }
}

/// Where a broker is, as it is shown.
fn addresses(broker: &background::Background) -> String {
    match &broker.admin_url {
        Some(admin) => format!("{}, administration at {admin}", broker.url),
        None => broker.url.clone(),
    }
}

fn clean(clean: &Clean) -> Result<u8, Failure> {
    let config = clean.target.layers()?.merge()?;
    let plan = config.plan(Selection::default())?;
    let mut seen = 0;
    let nobody = Waiting { interrupted: &AtomicBool::new(false), tell: &|_| {} };
    for target in &plan.targets {
        if !target.backend.is_remote() {
            continue; // What is embedded or private is gone with its run.
        }
        seen += 1;
        let reached = Reached::new(target, nobody).map_err(|why| match why {
            Unreached::Absent(why) | Unreached::Broken(why) => Failure::environment(why),
        })?;
        let runtime = target::runtime(false).map_err(Failure::environment)?;
        let report = runtime.block_on(async {
            let connection = reached.connector.connect(None).await?;
            let mut report = String::new();
            for topic in connection.topics(&format!("{}-", plan.prefix)).await? {
                let owner = names::owner(&plan.prefix, &topic);
                if !owner.is_some_and(|owner| {
                    owner.is_dead(clean.older_than, brokers::is_process_running)
                }) {
                    continue;
                }
                if !clean.dry_run {
                    connection.delete_topic(&topic).await?;
                }
                let done = if clean.dry_run { "would delete" } else { "deleted" };
                report.push_str(&format!("{} {done} {topic}\n", target.name));
            }
            connection.close().await;
            Ok::<_, queueproof_backends::BackendError>(report)
        });
        let report = report.map_err(Failure::environment)?;
        match report.as_str() {
            "" => print(&format!("{}: nothing of dead runs\n", target.name))?,
            report => print(report)?,
        };
    }
    if seen == 0 {
        return Err(Failure::usage(format!(
            "clean: no broker with an address is configured; give --url (backends: {})",
            BACKENDS.join(", ")
        )));
    }
    Ok(0)
}
