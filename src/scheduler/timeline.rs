//! What happens to schedulers, agents and the broker while a workload runs: a line each, as
//! `30s kill 1 scheduler`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment {
    /// When, since the epoch.
    pub at: Duration,
    /// What.
    pub action: Action,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Schedulers are stopped gracefully: those that are ahead first.
    StopSchedulers(u32),
    /// Schedulers are killed, likewise.
    KillSchedulers(u32),
    /// Schedulers do nothing for a while, likewise.
    PauseSchedulers(u32, Duration),
    /// Schedulers are added.
    AddSchedulers(u32),
    /// Agents join.
    JoinAgents(u32),
    /// Agents leave gracefully.
    LeaveAgents(u32),
    /// Agents crash: those that are executing something first.
    CrashAgents(u32),
    /// The connections of agents are cut for a while.
    CutAgents(u32, Duration),
    /// Agents hang for a while.
    StallAgents(u32, Duration),
    /// The (private) broker is stopped and started again.
    RestartBroker,
}

/// The forms that a line may have.
pub const FORMS: &str = "TIME stop|kill|add N schedulers, TIME pause N schedulers for DURATION, TIME \
    join|leave|crash N agents, TIME cut|stall N agents for DURATION, or TIME restart broker; as \
    `30s kill 1 scheduler`";

impl FromStr for Moment {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let wrong = || format!("{line:?} is no event of a timeline; expected {FORMS}");
        let words: Vec<_> = line.split_whitespace().collect();
        let span = |text: &str| {
            humantime::parse_duration(text).map_err(|error| format!("{line:?}: {text:?}: {error}"))
        };
        let (&at, rest) = words.split_first().ok_or_else(wrong)?;
        let action = match rest {
            ["restart", "broker"] => Action::RestartBroker,
            [verb, count, noun, rest @ ..] => {
                let count: u32 = count.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
                let noun = noun.strip_suffix('s').unwrap_or(noun);
                let lasting = match rest {
                    [] => None,
                    ["for", duration] => Some(span(duration)?),
                    _ => return Err(wrong()),
                };
                match (*verb, noun, lasting) {
                    ("stop", "scheduler", None) => Action::StopSchedulers(count),
                    ("kill", "scheduler", None) => Action::KillSchedulers(count),
                    ("pause", "scheduler", Some(span)) => Action::PauseSchedulers(count, span),
                    ("add", "scheduler", None) => Action::AddSchedulers(count),
                    ("join", "agent", None) => Action::JoinAgents(count),
                    ("leave", "agent", None) => Action::LeaveAgents(count),
                    ("crash", "agent", None) => Action::CrashAgents(count),
                    ("cut", "agent", Some(span)) => Action::CutAgents(count, span),
                    ("stall", "agent", Some(span)) => Action::StallAgents(count, span),
                    _ => return Err(wrong()),
                }
            }
            _ => return Err(wrong()),
        };
        Ok(Moment { at: span(at)?, action })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            humantime::format_duration(self.at).to_string().replace(' ', ""),
            self.action
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, count, noun, lasting) = match *self {
            Action::StopSchedulers(n) => ("stop", n, "scheduler", None),
            Action::KillSchedulers(n) => ("kill", n, "scheduler", None),
            Action::PauseSchedulers(n, span) => ("pause", n, "scheduler", Some(span)),
            Action::AddSchedulers(n) => ("add", n, "scheduler", None),
            Action::JoinAgents(n) => ("join", n, "agent", None),
            Action::LeaveAgents(n) => ("leave", n, "agent", None),
            Action::CrashAgents(n) => ("crash", n, "agent", None),
            Action::CutAgents(n, span) => ("cut", n, "agent", Some(span)),
            Action::StallAgents(n, span) => ("stall", n, "agent", Some(span)),
            Action::RestartBroker => return f.write_str("restart broker"),
        };
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{verb} {count} {noun}{plural}")?;
        match lasting {
            // Without spaces, so that it is one word.
            Some(span) => {
                let span = humantime::format_duration(span).to_string();
                write!(f, " for {}", span.replace(' ', ""))
            }
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(line: String) -> Result<Self, String> {
        line.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_alike() {
        for line in [
            "30s kill 1 scheduler",
            "1m30s stop 2 schedulers",
            "5s pause 1 scheduler for 1m5s",
            "0s add 1 scheduler",
            "10s join 5 agents",
            "10s leave 5 agents",
            "10s crash 10 agents",
            "10s cut 1 agent for 500ms",
            "10s stall 3 agents for 5s",
            "40s restart broker",
        ] {
            let moment: Moment = line.parse().unwrap();
            assert_eq!(moment.to_string(), line);
        }
    }

    #[test]
    fn what_is_no_event_is_refused_with_the_forms() {
        for line in [
            "",
            "30s",
            "kill 1 scheduler",
            "30s kill 0 schedulers",
            "30s kill scheduler",
            "30s pause 1 scheduler",
            "30s kill 1 scheduler for 5s",
            "30s cut 1 agent for",
            "30s eat 1 agent",
            "30s kill 1 agent",
            "x restart broker",
        ] {
            let error = line.parse::<Moment>().unwrap_err();
            assert!(error.contains(line), "{error}");
        }
    }
}
