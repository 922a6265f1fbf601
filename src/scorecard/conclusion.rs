//! What follows from the answers, in a line.

use std::cmp::Reverse;

use super::{Answer, Level, Scorecard, Status, TargetScore};

/// How a target stands with the requirements of a level.
struct Standing<'s> {
    all: usize,
    met: usize,
    fails: Vec<&'s str>,
    undecided: Vec<&'s str>,
}

impl<'s> Standing<'s> {
    fn of(scorecard: &Scorecard, answers: &'s [Answer], level: Level) -> Self {
        let mut standing = Standing { all: 0, met: 0, fails: Vec::new(), undecided: Vec::new() };
        let pairs = scorecard.requirements.iter().zip(answers);
        for (_, answer) in pairs.filter(|(requirement, _)| requirement.level == level) {
            standing.all += 1;
            match answer.status {
                Status::Meets => standing.met += 1,
                Status::Fails => standing.fails.push(&answer.requirement),
                Status::Undecided => standing.undecided.push(&answer.requirement),
            }
        }
        standing
    }

    fn is_met(&self) -> bool {
        self.met == self.all
    }

    /// Which are not met, and how; empty if all are.
    fn shortfall(&self) -> String {
        let named = [("fails", &self.fails), ("undecided", &self.undecided)];
        let named = named.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<_> =
            named.map(|(what, names)| format!("{what}: {}", names.join(", "))).collect();
        parts.join("; ")
    }
}

/// What follows for a target.
pub(super) fn of_target(scorecard: &Scorecard, answers: &[Answer]) -> String {
    let musts = Standing::of(scorecard, answers, Level::Must);
    let shoulds = Standing::of(scorecard, answers, Level::Should);
    if !musts.is_met() {
        return musts.shortfall();
    }
    let met = match musts.all {
        1 => "meets the 1 must".into(),
        all => format!("meets all {all} musts"),
    };
    match (shoulds.all, shoulds.shortfall().as_str()) {
        (0, _) => met,
        (all, "") => format!("{met} and {all} of {all} shoulds"),
        (all, rest) => format!("{met} and {} of {all} shoulds ({rest})", shoulds.met),
    }
}

/// What follows for all targets.
pub(super) fn of_all(scorecard: &Scorecard, targets: &[TargetScore]) -> String {
    let standing = |level| {
        move |target: &'_ TargetScore| {
            let standing = Standing::of(scorecard, &target.answers, level);
            (standing.met, standing.all, standing.fails.is_empty())
        }
    };
    let (musts, shoulds) = (standing(Level::Must), standing(Level::Should));
    let (fit, unfit): (Vec<_>, Vec<_>) =
        targets.iter().partition(|target| matches!(musts(target), (met, all, _) if met == all));
    let names = |targets: &[&TargetScore]| {
        targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    match fit.as_slice() {
        [] if targets.is_empty() => "no target was judged".into(),
        [] => {
            let (open, failing): (Vec<_>, Vec<_>) =
                unfit.into_iter().partition(|target| musts(target).2);
            match open.as_slice() {
                [] => format!("no target meets all musts: {} fail", names(&failing)),
                open => format!("no target meets all musts yet: undecided for {}", names(open)),
            }
        }
        [only] => format!("{} alone meets all musts", only.name),
        several => {
            let all = names(several);
            let mut several = several.to_vec();
            several.sort_by_key(|target| Reverse(shoulds(target).0)); // It is stable.
            let (most, of, _) = shoulds(several[0]);
            let best = several.partition_point(|target| shoulds(target).0 == most);
            let best = &several[..best];
            match (of, best.len() == several.len()) {
                (0, _) => format!("{all} meet all musts"),
                (of, true) => format!("{all} meet all musts, each with {most} of {of} shoulds"),
                (of, false) => format!(
                    "{all} meet all musts; with {most} of {of} shoulds the best: {}",
                    names(best)
                ),
            }
        }
    }
}
