//! Rings in etcd: what Sensu's `ringv2` does with it, request by request.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, KeyValue,
    PutOptions, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
};

/// A connection to etcd.
#[derive(Clone)]
pub(super) struct Store {
    client: Client,
}

/// A check's trigger.
#[derive(Debug, Clone)]
pub(super) struct Trigger {
    /// Its key.
    pub(super) key: String,
    /// What the keys of the agents of its ring begin with.
    pub(super) items: String,
    /// The interval, seconds.
    pub(super) seconds: i64,
}

/// What the keys of a ring's agents begin with.
pub(super) fn items(prefix: &str, ring: &str) -> String {
    format!("{prefix}/rings/{ring}/items/")
}

/// The key of a check's trigger. The number of agents that each firing names, 1, is part of it.
pub(super) fn trigger(prefix: &str, ring: &str, check: &str, seconds: i64) -> String {
    format!("{prefix}/rings/{ring}/triggers/{check}/1/{seconds}")
}

/// How long an agent lives in a ring without a sign of life, seconds: the default of sensu-agent's
/// `--keepalive-warning-timeout`.
pub(super) const ITEM_TTL: i64 = 120;

/// How long etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// Connects, and makes sure that etcd answers.
    pub(super) async fn connect(endpoint: &str) -> Result<Self, Error> {
        let options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_timeout(PATIENCE);
        let client = Client::connect([endpoint], Some(options)).await?;
        let store = Store { client };
        // Connecting asks nobody yet.
        store.answers().await?;
        Ok(store)
    }

    /// Asks etcd for something.
    pub(super) async fn answers(&self) -> Result<(), Error> {
        self.client.kv_client().get("queueproof", None).await.map(drop)
    }

    /// The lease that etcd makes of one of so many seconds, seconds.
    pub(super) async fn shortest(&self, seconds: i64) -> Result<i64, Error> {
        let mut leases = self.client.lease_client();
        let lease = leases.grant(seconds, None).await?;
        leases.revoke(lease.id()).await?;
        Ok(lease.ttl())
    }

    /// Puts an agent into a ring, or extends its lease; whether it was not there.
    pub(super) async fn add(&self, items: &str, agent: &str) -> Result<bool, Error> {
        let key = format!("{items}{agent}");
        let mut leases = self.client.lease_client();
        let there = self.client.kv_client().get(key.clone(), None).await?;
        // This asks for one extension, and fails if the lease has just ended.
        if let Some(lease) = there.kvs().first().map(KeyValue::lease)
            && leases.keep_alive(lease).await.is_ok()
        {
            return Ok(false);
        }
        let lease = leases.grant(ITEM_TTL, None).await?.id();
        let leased = PutOptions::new().with_lease(lease);
        self.client.kv_client().put(key, "", Some(leased)).await?;
        Ok(true)
    }

    /// Takes an agent out of a ring. Its lease is left to end by itself.
    pub(super) async fn remove(&self, items: &str, agent: &str) -> Result<(), Error> {
        let key = format!("{items}{agent}");
        self.client.kv_client().delete(key, None).await.map(drop)
    }

    /// Makes sure that a check has a trigger, if its ring has agents: the first one's turn is next.
    pub(super) async fn ensure(&self, trigger: &Trigger) -> Result<(), Error> {
        let first = GetOptions::new().with_prefix().with_limit(1);
        let (key, items) = (trigger.key.clone(), trigger.items.clone());
        let both = [TxnOp::get(key, None), TxnOp::get(items, Some(first))];
        let answer = self.client.kv_client().txn(Txn::new().and_then(both)).await?;
        let answers = answer.op_responses();
        let [TxnOpResponse::Get(there), TxnOpResponse::Get(first)] = answers.as_slice() else {
            return Err(Error::Internal("not two answers to two questions".into()));
        };
        let next = names(first.kvs(), &trigger.items);
        match next.first() {
            Some(next) if there.kvs().is_empty() => self.put(trigger, next).await.map(drop),
            _ => Ok(()),
        }
    }

    /// A trigger that named `turn` was deleted. Puts it anew for the agent after the one whose turn
    /// it is, unless another backend was first. The agent whose turn it is, and whether it was this
    /// backend; `None` if the ring is empty.
    pub(super) async fn advance(
        &self,
        trigger: &Trigger,
        turn: &str,
    ) -> Result<Option<(String, bool)>, Error> {
        let mut two = self.next_two(&trigger.items, turn).await?.into_iter();
        let Some(agent) = two.next() else { return Ok(None) };
        // A ring of one goes round in itself.
        let after = two.next().unwrap_or_else(|| agent.clone());
        let won = self.put(trigger, &after).await?;
        Ok(Some((agent, won)))
    }

    /// The agent of that name, or else the next, and the one after it: round and round.
    async fn next_two(&self, items: &str, turn: &str) -> Result<Vec<String>, Error> {
        let mut kv = self.client.kv_client();
        let end = [items.as_bytes(), &[0xff]].concat();
        let from = GetOptions::new().with_range(end).with_limit(2);
        let found = kv.get(format!("{items}{turn}"), Some(from)).await?;
        let mut two = names(found.kvs(), items);
        let missing = 2_usize.saturating_sub(two.len());
        if missing > 0 {
            let limit = i64::try_from(missing).unwrap_or(2);
            let first = GetOptions::new().with_prefix().with_limit(limit);
            two.extend(names(kv.get(items, Some(first)).await?.kvs(), items));
        }
        Ok(two)
    }

    /// Puts a trigger on a new lease, if there is none; whether it did.
    async fn put(&self, trigger: &Trigger, next: &str) -> Result<bool, Error> {
        let mut leases = self.client.lease_client();
        let lease = leases.grant(trigger.seconds, None).await?.id();
        let free = Compare::version(trigger.key.clone(), CompareOp::Equal, 0);
        let put = TxnOp::put(trigger.key.clone(), next, Some(PutOptions::new().with_lease(lease)));
        let txn = Txn::new().when([free]).and_then([put]);
        let won = self.client.kv_client().txn(txn).await?.succeeded();
        if !won {
            // Where this fails, too, the lease ends by itself.
            let _ = leases.revoke(lease).await;
        }
        Ok(won)
    }

    /// What to watch for a check: its ring's agents, and the deletions of its trigger; from a
    /// revision, or from now.
    pub(super) fn watches(trigger: &Trigger, from: Option<i64>) -> [(String, WatchOptions); 2] {
        let from = from.unwrap_or(0);
        let items = WatchOptions::new().with_prefix().with_start_revision(from);
        let deletions = WatchOptions::new()
            .with_prev_key()
            .with_filters([WatchFilterType::NoPut])
            .with_start_revision(from);
        [(trigger.items.clone(), items), (trigger.key.clone(), deletions)]
    }

    /// The client of watchers.
    pub(super) fn watcher(&self) -> etcd_client::WatchClient {
        self.client.watch_client()
    }

    /// Deletes all rings below a prefix.
    pub(super) async fn clear(&self, prefix: &str) -> Result<(), Error> {
        let all = DeleteOptions::new().with_prefix();
        self.client.kv_client().delete(format!("{prefix}/"), Some(all)).await.map(drop)
    }
}

fn names(items: &[KeyValue], prefix: &str) -> Vec<String> {
    let name = |item: &KeyValue| item.key_str().ok()?.strip_prefix(prefix).map(str::to_string);
    items.iter().filter_map(name).collect()
}
