//! How the judge's rules fare where the truth is known: the table of docs/judge.md.
//!
//! ```text
//! cargo run --release --example judge -- 1000
//! ```

use overnight::{
    JudgeRule,
    judge::simulation::{BUSY, WORLDS, play},
};

fn main() {
    let nights = std::env::args().nth(1).and_then(|nights| nights.parse().ok()).unwrap_or(1000);
    println!("{nights} nights of 100 measurements, in units of one measurement's noise\n");
    println!(
        "| world | greedy: true / claimed | significant: true | posterior: true / claimed | covered |"
    );
    println!("|---|---|---|---|---|");
    // Worlds have nothing to do with each other.
    let rows: Vec<_> = std::thread::scope(|scope| {
        let rows = [&WORLDS[..], &BUSY[..]].concat().into_iter().map(|world| {
            scope.spawn(move || {
                let rules = [JudgeRule::Greedy, JudgeRule::Significant, JudgeRule::Posterior];
                (world, rules.map(|rule| play(&world, rule, nights)))
            })
        });
        let rows: Vec<_> = rows.collect();
        rows.into_iter()
            .map(|row| row.join().expect("a simulation has nothing to fail at"))
            .collect()
    });
    for (world, [greedy, significant, posterior]) in rows {
        println!(
            "| {} | {:.2} / {:.2} | {:.2} | {:.2} / {:.2} | {:.1} % |",
            world.name,
            greedy.true_gain,
            greedy.claimed_gain,
            significant.true_gain,
            posterior.true_gain,
            posterior.claimed_gain,
            100.0 * posterior.covered.unwrap_or_default()
        );
    }
}
