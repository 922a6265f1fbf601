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
struct Room {
    places: u64,
    taken: u64,
    /// When all places were taken last.
    full: Option<Time>,
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
    /// When it was cut, stalled, left or crashed last.
    pub(super) disturbed: Option<Time>,
    /// Whether it is disturbed at present.
    is_disturbed: bool,
    /// When it was disturbed for the first time.
    first_disturbed: Option<Time>,
    /// Its pools, and how much it got of each.
    pub(super) shares: Vec<Share>,
    /// How many requests it is at.
    holds: u32,
    /// When it began what it was at last, and when that ended: meanwhile something may have waited
    /// for it.
    pub(super) busy: Option<(Time, Time)>,
    /// When it was given something last.
    last: Option<Time>,
    /// The longest that it was given nothing.
    pub(super) idle: Time,
    /// Whether it is one of the slow.
    pub(super) slow: bool,
}

/// What an agent got of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) pool: u16,
    pub(super) received: u32,
    /// How many requests of the pool had been received when it got its first, that one included.
    pub(super) first: u64,
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

    /// Whether all that an agent's pool could execute at a time was under way at some moment since
    /// then.
    pub(super) fn was_full(&self, pool: u16, since: Time) -> bool {
        let room = self.rooms.get(usize::from(pool));
        room.is_some_and(|room| room.full.is_some_and(|full| full >= since))
    }

    fn entry(&mut self, workload: &Workload, agent: u32) -> Result<&mut Agent, String> {
        // A number far beyond all would be a history that nobody wrote.
        let limit = self.all.len() + 1_000_000;
        let place = agent as usize;
        if place >= limit {
            return Err(format!("agent {agent}, which did not join"));
        }
        if place >= self.all.len() {
            self.all.resize_with(place + 1, Agent::default);
        }
        let entry = &mut self.all[place];
        if entry.shares.is_empty() {
            let group = workload.agent_group(agent);
            let share = |&pool: &u16| Share { pool, received: 0, first: 0 };
            entry.shares = group.pools.iter().map(share).collect();
            entry.slow = group.slow;
        }
        Ok(entry)
    }

    /// Takes in a change of state; whether the agent lost what it held by it.
    pub(super) fn change(
        &mut self,
        workload: &Workload,
        agent: u32,
        is: AgentState,
        at: (Time, Time),
    ) -> Result<(), String> {
        let entry = self.entry(workload, agent)?;
        if is != AgentState::Joined && entry.joined.is_none() {
            return Err(format!("agent {agent}, which did not join"));
        }
        let places = u64::from(workload.agent_group(agent).concurrency);
        let mut change = 0_i64;
        match is {
            AgentState::Joined => {
                entry.joined = Some(at);
                change = 1;
            }
            AgentState::Left | AgentState::Crashed => {
                entry.gone = Some(at.0);
                change = -1;
            }
            AgentState::Healed | AgentState::Resumed => entry.is_disturbed = false,
            AgentState::Cut | AgentState::Stalled => entry.is_disturbed = true,
        }
        if is != AgentState::Joined {
            entry.disturbed = Some(at.1);
            entry.first_disturbed.get_or_insert(at.0);
        }
        let gone = if change < 0 { std::mem::take(&mut entry.holds) } else { 0 };
        for pool in entry.shares.iter().map(|share| usize::from(share.pool)).collect::<Vec<_>>() {
            let Some(room) = self.rooms.get_mut(pool) else { continue };
            match change {
                1 => room.places += places,
                -1 => {
                    room.places = room.places.saturating_sub(places);
                    room.taken = room.taken.saturating_sub(gone.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An agent was given a request of a pool.
    pub(super) fn took(
        &mut self,
        workload: &Workload,
        agent: u32,
        pool: u16,
        broadcast: bool,
        at: Time,
    ) -> Result<(), String> {
        let entry = self.entry(workload, agent)?;
        entry.holds += 1;
        if broadcast {
            return Ok(());
        }
        if let Some(last) = entry.last.replace(at) {
            entry.idle = entry.idle.max(at.saturating_sub(last));
        }
        let Some(room) = self.rooms.get_mut(usize::from(pool)) else { return Ok(()) };
        room.received += 1;
        room.taken += 1;
        if room.taken >= room.places {
            room.full = Some(at);
        }
        let nth = room.received;
        if let Some(share) = self.all[agent as usize].shares.iter_mut().find(|s| s.pool == pool) {
            share.received += 1;
            if share.received == 1 {
                share.first = nth;
            }
        }
        Ok(())
    }

    /// An agent is done with a request of a pool.
    pub(super) fn done(&mut self, agent: u32, pool: u16, broadcast: bool, at: (Time, Time)) {
        let Some(entry) = self.all.get_mut(agent as usize) else { return };
        entry.holds = entry.holds.saturating_sub(1);
        entry.busy = Some(at);
        if let Some(room) = self.rooms.get_mut(usize::from(pool)).filter(|_| !broadcast) {
            if room.taken >= room.places {
                room.full = Some(at.1);
            }
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

impl Agent {
    /// Whether it was there, undisturbed, throughout this time.
    pub(super) fn steady(&self, from: Time, until: Time) -> bool {
        self.joined.is_some_and(|joined| joined.1 <= from)
            && self.gone.is_none_or(|gone| gone >= until)
            && self.first_disturbed.is_none_or(|disturbed| disturbed >= until)
    }

    /// Whether it is there now and was not disturbed since then.
    pub(super) fn undisturbed_since(&self, from: Time) -> bool {
        self.joined.is_some_and(|joined| joined.1 <= from)
            && self.gone.is_none()
            && !self.is_disturbed
            && self.disturbed.is_none_or(|disturbed| disturbed < from)
    }

    /// Whether something happened to it since then.
    pub(super) fn disturbed_since(&self, from: Time) -> bool {
        self.is_disturbed || self.disturbed.is_some_and(|disturbed| disturbed >= from)
    }
}
