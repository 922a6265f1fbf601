//! The agents, as their events tell of them: who is there, who was disturbed, who got how much.

use crate::{
    checker::evidence::Time,
    scheduler::{AgentState, Workload},
};

/// All agents that there ever were, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Agents {
    all: Vec<Agent>,
    /// For each pool: how many of its agents are there, and how many requests they may execute.
    rooms: Vec<Room>,
}

/// A pool's room.
#[derive(Debug, Default, Clone)]
pub(super) struct Room {
    places: u64,
    taken: u64,
    /// When all places were taken last.
    pub(super) full: Option<Time>,
    /// When one of its agents went, was cut or hung last.
    pub(super) disturbed: Option<Time>,
    /// How many requests those that did so may have had in their hands, unseen.
    pub(super) unseen: u64,
    /// How many requests were received.
    received: u64,
}

/// An agent.
#[derive(Debug, Default)]
pub(super) struct Agent {
    /// When it joined: invoked and completed.
    pub(super) joined: Option<(Time, Time)>,
    /// When it left or crashed.
    pub(super) gone: Option<Time>,
    /// When it was cut or hung.
    away: Vec<Away>,
    /// Its pools, and how much it got of each.
    pub(super) shares: Vec<Share>,
    /// Its last execution, from its receipt to its settlement: until then something may have
    /// waited for it.
    pub(super) busy: Option<(Time, Time)>,
    /// When it was given something last.
    last: Option<Time>,
    /// The longest that it was given nothing.
    pub(super) idle: Time,
    /// Whether it is one of the slow.
    pub(super) slow: bool,
    /// Which group of the workload it is of: agents of one are alike.
    pub(super) group: usize,
}

/// A span in which an agent was cut off or hung.
#[derive(Debug, Clone, Copy)]
struct Away {
    cut: bool,
    from: Time,
    /// `Time::MAX` until it is over.
    to: Time,
}

/// What an agent got of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) pool: u16,
    pub(super) received: u32,
    /// How many requests of the pool had been received when it got its first, that one included.
    pub(super) first: u64,
    /// How many of its requests it is at.
    holds: u32,
}

impl Agents {
    pub(super) fn new(workload: &Workload) -> Self {
        Agents { all: Vec::new(), rooms: vec![Room::default(); workload.pools.len()] }
    }

    pub(super) fn get(&self, agent: u32) -> Option<&Agent> {
        self.all.get(agent as usize)
    }

    /// Those that were there, numbered.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Agent)> {
        (0..).zip(&self.all).filter(|(_, agent)| agent.joined.is_some())
    }

    pub(super) fn room(&self, pool: u16) -> Option<&Room> {
        self.rooms.get(usize::from(pool))
    }

    /// An agent that is to be there.
    fn there(all: &mut [Agent], agent: u32) -> Result<&mut Agent, String> {
        let entry = all.get_mut(agent as usize).filter(|entry| entry.joined.is_some());
        entry.ok_or_else(|| format!("agent {agent}, which did not join"))
    }

    fn join(&mut self, workload: &Workload, agent: u32, at: (Time, Time)) -> Result<(), String> {
        let place = agent as usize;
        // They are numbered in the order of their making, but may be ready in another.
        if place >= self.all.len() + 1_000_000 {
            return Err(format!("agent {agent}, where there are {}", self.all.len()));
        }
        if place >= self.all.len() {
            self.all.resize_with(place + 1, Agent::default);
        }
        let group = workload.agent_group(agent);
        let nth = workload.agents.iter().position(|other| std::ptr::eq(other, group));
        let share = |&pool: &u16| Share { pool, received: 0, first: 0, holds: 0 };
        self.all[place] = Agent {
            joined: Some(at),
            shares: group.pools.iter().map(share).collect(),
            slow: group.slow,
            group: nth.unwrap_or(0),
            ..Agent::default()
        };
        Ok(())
    }

    /// Takes in a change of state.
    pub(super) fn change(
        &mut self,
        workload: &Workload,
        agent: u32,
        is: AgentState,
        at: (Time, Time),
    ) -> Result<(), String> {
        if is == AgentState::Joined {
            self.join(workload, agent, at)?;
        }
        let places = u64::from(workload.agent_group(agent).concurrency);
        let entry = Self::there(&mut self.all, agent)?;
        let was = if is == AgentState::Joined { false } else { entry.is_there() };
        match is {
            AgentState::Joined => {}
            AgentState::Left | AgentState::Crashed => entry.gone = Some(at.0),
            AgentState::Cut | AgentState::Stalled => {
                let cut = is == AgentState::Cut;
                entry.away.push(Away { cut, from: at.0, to: Time::MAX });
            }
            AgentState::Healed | AgentState::Resumed => {
                let cut = is == AgentState::Healed;
                let over = |away: &&mut Away| away.cut == cut && away.to == Time::MAX;
                if let Some(away) = entry.away.iter_mut().find(over) {
                    away.to = at.1;
                }
            }
        }
        let now = entry.is_there();
        let leaves = matches!(
            is,
            AgentState::Left | AgentState::Crashed | AgentState::Cut | AgentState::Stalled
        );
        for share in &self.all[agent as usize].shares {
            let Some(room) = self.rooms.get_mut(usize::from(share.pool)) else { continue };
            let holds = u64::from(share.holds);
            match (was, now) {
                (false, true) => {
                    room.places += places;
                    room.taken += holds;
                }
                (true, false) => {
                    room.places = room.places.saturating_sub(places);
                    room.taken = room.taken.saturating_sub(holds);
                }
                _ => {}
            }
            room.look(at.1);
            if leaves {
                room.disturbed = Some(at.1);
                room.unseen += places;
            }
        }
        Ok(())
    }

    /// An agent was given a request of a pool, that others may execute in its stead.
    pub(super) fn took(&mut self, agent: u32, pool: u16, at: Time) -> Result<(), String> {
        let entry = Self::there(&mut self.all, agent)?;
        if let Some(last) = entry.last.replace(at) {
            entry.idle = entry.idle.max(at.saturating_sub(last));
        }
        let there = entry.is_there();
        let share = entry.shares.iter_mut().find(|share| share.pool == pool);
        let Some((room, share)) = self.rooms.get_mut(usize::from(pool)).zip(share) else {
            return Ok(());
        };
        room.received += 1;
        share.holds += 1;
        share.received += 1;
        if share.received == 1 {
            share.first = room.received;
        }
        if there {
            room.taken += 1;
            room.look(at);
        }
        Ok(())
    }

    /// An agent was at a request of a pool for this time, and is done with it.
    pub(super) fn done(&mut self, agent: u32, pool: u16, broadcast: bool, at: (Time, Time)) {
        let Some(entry) = self.all.get_mut(agent as usize) else { return };
        entry.busy = Some(at);
        if broadcast {
            return;
        }
        let there = entry.is_there();
        let share = entry.shares.iter_mut().find(|share| share.pool == pool && share.holds > 0);
        let Some((room, share)) = self.rooms.get_mut(usize::from(pool)).zip(share) else { return };
        share.holds -= 1;
        if there {
            room.look(at.1);
            room.taken = room.taken.saturating_sub(1);
        }
    }

    /// The epoch: idle times count from here.
    pub(super) fn begin(&mut self, at: Time) {
        for agent in &mut self.all {
            agent.last = Some(at);
        }
    }

    /// The end: idle times count until here.
    pub(super) fn end(&mut self, at: Time) {
        for agent in &mut self.all {
            if let Some(last) = agent.last {
                agent.idle = agent.idle.max(at.saturating_sub(last));
            }
        }
    }
}

impl Room {
    /// Notes that there is no place left, if so.
    fn look(&mut self, at: Time) {
        if self.taken >= self.places {
            self.full = Some(at);
        }
    }
}

impl Agent {
    fn is_there(&self) -> bool {
        self.joined.is_some()
            && self.gone.is_none()
            && self.away.iter().all(|away| away.to != Time::MAX)
    }

    /// Whether it was there, undisturbed, throughout this time.
    pub(super) fn steady(&self, from: Time, until: Time) -> bool {
        self.joined.is_some_and(|joined| joined.1 <= from)
            && self.gone.is_none_or(|gone| gone >= until)
            && self.away.iter().all(|away| away.from >= until)
    }

    /// Whether it is there now and was not disturbed since then.
    pub(super) fn undisturbed_since(&self, from: Time) -> bool {
        self.joined.is_some_and(|joined| joined.1 <= from)
            && self.gone.is_none()
            && self.away.iter().all(|away| away.to < from)
    }

    /// Whether something happened to it within this time.
    pub(super) fn disturbed_within(&self, from: Time, until: Time) -> bool {
        self.gone.is_some_and(|gone| (from..=until).contains(&gone))
            || self.away.iter().any(|away| away.from <= until && away.to >= from)
    }

    /// Whether it left, or its connection was cut, within this time: then the broker may hand on
    /// what it had. One that merely hangs keeps that until the lock passes.
    pub(super) fn parted_within(&self, from: Time, until: Time) -> bool {
        self.gone.is_some_and(|gone| (from..=until).contains(&gone))
            || self.away.iter().any(|away| away.cut && away.from <= until && away.to >= from)
    }
}
