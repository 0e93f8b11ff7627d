//! What the store is asked, as scripts that it runs whole. They go by its own clock.
//!
//! A session is three things, all in one shard, so that a script may touch them in a cluster: its
//! sealed value, which lives for its lifetime and [`GRACE`]; its place in the list of what is due,
//! by when it will have been idle for too long; and, after that, its place in the list of what has
//! been claimed, by when another may claim it.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Script, ScriptInvocation};

use super::sealed::{Name, SHARDS};
use crate::session::SessionSettings;
use crate::session::moment::milliseconds;

/// Where in the store all is, and how long it is kept.
#[derive(Clone, Debug)]
pub(super) struct Place {
    prefix: String,
    /// With the time that a use may be left unsaid for.
    idle: u64,
    lifetime: u64,
}

impl Place {
    pub(super) fn new(prefix: &str, settings: &SessionSettings) -> Self {
        let idle = milliseconds(settings.idle_timeout.0).max(1);
        Self {
            prefix: prefix.to_owned(),
            idle: idle.saturating_add(idle / 4),
            lifetime: milliseconds(settings.lifetime.0).max(1),
        }
    }

    /// The key of a session's value.
    pub(super) fn key(&self, name: Name) -> String {
        self.shard(name.shard()) + &name.digits()
    }

    /// Where removals are told.
    pub(super) fn channel(&self) -> String {
        format!("{}:removed", self.prefix)
    }

    /// A key that holds nothing, in each shard.
    pub(super) fn nothing(&self) -> Vec<String> {
        let keys = (0..SHARDS).map(|shard| self.shard(shard) + "nothing");
        keys.collect()
    }

    /// What each key of a shard begins with.
    fn shard(&self, shard: usize) -> String {
        format!("{}:{{{shard}}}:", self.prefix)
    }

    fn lists(&self, shard: usize) -> [String; 2] {
        ["due", "claimed"].map(|list| self.shard(shard) + list)
    }

    fn of_session<'s>(&self, script: &'s Script, name: Name) -> ScriptInvocation<'s> {
        let mut invocation = script.key(self.key(name));
        invocation.key(&self.lists(name.shard()));
        invocation.arg(name.digits());
        invocation
    }

    /// Gives the value and the milliseconds that are left of the lifetime, or nothing.
    pub(super) fn find(&self, name: Name) -> ScriptInvocation<'_> {
        let mut find = self.of_session(&FIND, name);
        find.arg(GRACE).arg(self.idle);
        find
    }

    /// Gives the milliseconds that are left of the lifetime.
    pub(super) fn insert(
        &self,
        name: Name,
        value: &[u8],
        age: Duration,
        told: &[u8],
    ) -> ScriptInvocation<'_> {
        let left = self.lifetime.saturating_sub(milliseconds(age));
        let mut insert = self.of_session(&INSERT, name);
        insert.arg(GRACE).arg(self.idle).arg(left.max(1));
        insert.arg(self.shard(name.shard())).arg(value);
        insert.arg(self.channel()).arg(told);
        insert
    }

    pub(super) fn remove(&self, name: Name, told: &[u8]) -> ScriptInvocation<'_> {
        let mut remove = self.of_session(&REMOVE, name);
        remove.arg(self.channel()).arg(told);
        remove
    }

    /// Gives for each session its name, its value and why it is over.
    pub(super) fn claim(&self, shard: usize, most: usize) -> ScriptInvocation<'_> {
        let [due, claimed] = self.lists(shard % SHARDS);
        let mut claim = CLAIM.key(due);
        claim.key(claimed);
        claim.arg(self.shard(shard % SHARDS)).arg(GRACE);
        claim.arg(milliseconds(LEASE)).arg(most);
        claim
    }

    pub(super) fn settle(&self, name: Name) -> ScriptInvocation<'_> {
        self.of_session(&SETTLE, name)
    }
}

/// Why [`Place::claim`] gives a session.
pub(super) mod cause {
    pub(in crate::session::shared) const IDLE: u8 = 1;
    pub(in crate::session::shared) const LIFETIME: u8 = 2;
}

/// How long a session that is over is kept for its backend to be told, in milliseconds.
const GRACE: u64 = 60 * 60 * 1000;

/// How long who claims a session has to settle it: longer than its backend is asked at the most. Where
/// more wait for that backend than it answers in this time, some are claimed and told of again.
const LEASE: Duration = Duration::from_secs(15 * 60);

/// A list lives for as long as anything on it. A write that takes no memory comes before any that
/// does: a script that has written may go on when the server's memory is full.
static FIND: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local grace, idle = tonumber(ARGV[2]), tonumber(ARGV[3])
         local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
         if not due or tonumber(due) <= now then return false end
         local value = redis.call('GET', KEYS[1])
         local left = redis.call('PTTL', KEYS[1]) - grace
         if not value or left <= 0 then return false end
         redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), left + grace))
         redis.pcall('ZADD', KEYS[2], now + math.min(idle, left), ARGV[1])
         return {value, left}",
    )
});

/// Clears away two that nobody has claimed in time, so that there are never more of these where
/// nobody does.
static INSERT: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local grace, idle, lifetime = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
         local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
         local left = redis.call('PTTL', KEYS[1]) - grace
         if due and tonumber(due) > now and left > 0 then
           redis.call('SET', KEYS[1], ARGV[6], 'KEEPTTL')
           redis.call('PUBLISH', ARGV[7], ARGV[8])
         else
           left = lifetime
           redis.call('SET', KEYS[1], ARGV[6], 'PX', left + grace)
           redis.call('ZREM', KEYS[3], ARGV[1])
         end
         redis.call('ZADD', KEYS[2], now + math.min(idle, left), ARGV[1])
         redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), left + grace))
         local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - grace, 'LIMIT', 0, 2)
         for _, name in ipairs(old) do
           redis.call('DEL', ARGV[5] .. name)
           redis.call('ZREM', KEYS[2], name)
         end
         return left",
    )
});

static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "redis.call('DEL', KEYS[1])
         redis.call('ZREM', KEYS[2], ARGV[1])
         redis.call('ZREM', KEYS[3], ARGV[1])
         redis.call('PUBLISH', ARGV[2], ARGV[3])",
    )
});

/// First those whose claim has run out.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local grace, lease, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
         local given = {}
         for _, list in ipairs({KEYS[2], KEYS[1]}) do
           local over = redis.call('ZRANGEBYSCORE', list, '-inf', now, 'LIMIT', 0, most - #given)
           for _, name in ipairs(over) do
             local value = redis.call('GET', ARGV[1] .. name)
             redis.call('ZREM', list, name)
             if value then
               local cause = 0
               if list == KEYS[1] then
                 cause = redis.call('PTTL', ARGV[1] .. name) <= grace and 2 or 1
               end
               redis.call('ZADD', KEYS[2], now + lease, name)
               given[#given + 1] = {name, value, cause}
             end
           end
         end
         if #given > 0 then redis.call('PEXPIRE', KEYS[2], grace + lease) end
         return given",
    )
});

static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    script("if redis.call('ZREM', KEYS[3], ARGV[1]) == 1 then redis.call('DEL', KEYS[1]) end")
});

fn script(body: &str) -> Script {
    let now = "local time = redis.call('TIME')
               local now = time[1] * 1000 + math.floor(time[2] / 1000)";
    Script::new(&format!("{now}\n{body}"))
}
