//! What the session store costs: time by the number of sessions in it, and memory a session. Of a
//! shared one, what is near and what is not. And what sealed ids cost.
//!
//! ```text
//! cargo bench --bench sessions
//! ```
//!
//! The shared store is measured where `redis-server` is installed.

mod support;

use std::alloc::System;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futures::FutureExt;
use pingora_mcp::mcp::ClientSessionId;
use pingora_mcp::session::{
    MemoryStore, Seals, SessionSettings, SessionStore, SharedStore, StoreSettings,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::store::{Filled, Template, unbounded};
use support::time;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

criterion_group! {
    name = benches;
    config = time::criterion();
    targets = sessions, seals, shared
}
criterion_main!(benches);

fn sessions(criterion: &mut Criterion) {
    // The largest first, in a process whose memory nothing else has used.
    for count in [1_000_000, 100_000, 10_000, 1_000] {
        let before = resident();
        let region = Region::new(ALLOCATOR);
        let filled = Filled::new(count);
        let change = region.change();
        // The list of ids is the benchmark's own.
        let list = std::mem::size_of_val(&*filled.ids);
        let allocated = change.bytes_allocated - change.bytes_deallocated - list;
        println!(
            "{count} sessions: {} bytes allocated each",
            allocated / count
        );
        if let (Some(before), Some(after)) = (before, resident())
            && after > before + list
        {
            println!(
                "{count} sessions: {} bytes resident each",
                (after - before - list) / count
            );
        }
        filled.measure(criterion);
    }
}

fn seals(criterion: &mut Criterion) {
    let yaml = "{ seal: { keys: [5a0c6f1e7d93b824f6e1d0c9b8a73625] } }";
    let seals = Seals::new(&serde_saphyr::from_str(yaml).unwrap());
    let (id, binding) = Template::new().session();
    criterion.bench_function("seal", |bencher| bencher.iter(|| seals.seal(id, &binding)));
    let region = Region::new(ALLOCATOR);
    let seal = seals.seal(id, &binding).unwrap();
    let change = region.change();
    let kept = change.bytes_allocated - change.bytes_deallocated;
    println!(
        "a seal: {} characters, {kept} bytes allocated",
        seal.as_str().len()
    );
    let (seal, route) = (seal.as_str().as_bytes(), &binding.route);
    criterion.bench_function("unseal", |bencher| {
        bencher.iter(|| seals.open(id, seal, route).unwrap());
    });
    let other = ClientSessionId::mint();
    criterion.bench_function("unseal a forged one", |bencher| {
        bencher.iter(|| seals.open(other, seal, route).unwrap_err());
    });
}

/// A find that needs no round trip, beside the same of the memory store; and one that does.
fn shared(criterion: &mut Criterion) {
    let Some(server) = Server::start() else {
        return println!("no redis-server here: the shared store is not measured");
    };
    let template = Template::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let memory = MemoryStore::new(unbounded());
    let near = server.store("capacity: 2000000");
    // It knows one session at a time: each of two in turn is not that one.
    let far = server.store("capacity: 1, evict: oldest");
    let open = |store: &SharedStore| runtime.block_on(template.open_in(store));
    let in_memory: Vec<_> = (0..1000).map(|_| template.open(&memory)).collect();
    let in_near: Vec<_> = (0..1000).map(|_| open(&near)).collect();

    let mut group = criterion.benchmark_group("find of 1000");
    let mut turn = in_memory.iter().cycle();
    group.bench_function("memory", |bencher| {
        bencher.iter(|| {
            let found = memory.find(*turn.next().unwrap()).now_or_never();
            found.expect("memory answers at once").unwrap().unwrap()
        });
    });
    let mut turn = in_near.iter().cycle();
    group.bench_function("shared, near", |bencher| {
        bencher.iter(|| {
            let found = near.find(*turn.next().unwrap()).now_or_never();
            found
                .expect("what is near is found at once")
                .unwrap()
                .unwrap()
        });
    });
    let mut turn = in_near.iter().cycle();
    group.bench_function("shared, far", |bencher| {
        bencher.iter(|| {
            let found = runtime.block_on(far.find(*turn.next().unwrap()));
            found.unwrap().unwrap()
        });
    });
    group.bench_function("shared, insert and remove", |bencher| {
        bencher.iter(|| runtime.block_on(near.remove(open(&near))).unwrap());
    });
}

/// A Redis of the benchmark's own.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start() -> Option<Self> {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]);
        let command = command.arg(port.to_string()).stdout(Stdio::null());
        let server = Self {
            process: command.spawn().ok()?,
            port,
        };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    fn store(&self, limits: &str) -> SharedStore {
        let yaml = format!(
            "{{ {limits}, max_per_client: none, max_new_per_client: none, store: {{ redis: {{ \
             url: \"redis://127.0.0.1:{}\", keys: [MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f] }} }} }}",
            self.port
        );
        let settings: SessionSettings = serde_saphyr::from_str(&yaml).unwrap();
        let StoreSettings::Redis(redis) = &settings.store else {
            unreachable!("it is what was written");
        };
        SharedStore::new((**redis).clone(), &settings)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This process's memory in RAM, in bytes.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
