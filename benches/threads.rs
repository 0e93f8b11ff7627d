//! What the session store costs where several threads use it: the time that passes for each
//! operation of any of them, by the number of sessions and of threads.
//!
//! ```text
//! cargo bench --bench threads
//! ```

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use futures::executor::block_on;
use mimalloc::MiMalloc;
use pingora_mcp::session::SessionStore;
use support::store::{Filled, Template};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(10);
    targets = sessions
}
criterion_main!(benches);

fn sessions(criterion: &mut Criterion) {
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let Filled { store, ids, .. } = &Filled::new(count);
        for threads in [1, 2, 4, 8, 16] {
            criterion.bench_function(&format!("find of {count} by {threads}"), |bencher| {
                bencher.iter_custom(|calls| {
                    together(threads, |thread| {
                        let own = ids.iter().cycle().skip(thread * count / threads);
                        for id in own.take(calls as usize / threads) {
                            block_on(store.find(*id)).unwrap().unwrap();
                        }
                    })
                });
            });
            let name = format!("insert and remove of {count} by {threads}");
            criterion.bench_function(&name, |bencher| {
                bencher.iter_custom(|calls| {
                    let template = &Template::new();
                    together(threads, |_| {
                        for _ in 0..calls as usize / threads {
                            block_on(async { store.remove(template.open_in(store).await).await })
                                .unwrap();
                        }
                    })
                });
            });
        }
    }
}

/// How long `threads` take that all do `work` and begin at the same time.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let (work, all_here) = (&work, &Barrier::new(threads));
    let begun = thread::scope(|scope| {
        let spawned = (0..threads).map(|thread| {
            scope.spawn(move || {
                all_here.wait();
                let begun = Instant::now();
                work(thread);
                begun
            })
        });
        let running: Vec<_> = spawned.collect();
        let begun = running.into_iter().map(|thread| thread.join().unwrap());
        begun.min().unwrap()
    });
    begun.elapsed()
}
