//! The simulated world passes the suite that the real back-ends pass.

use tidelog_io::conformance::{Setup, run_all};
use tidelog_sim::World;

#[test]
fn the_simulated_world_keeps_the_promises_of_the_seam() {
    for seed in 0..20 {
        run_all(&mut || {
            let world = World::new(seed);
            Setup {
                io: Box::new(world.node(1)),
                dir: "/data/scratch".into(),
                listen: Some("127.0.0.1:0".parse().expect("an address")),
                wakes: false,
                keep: Box::new(world),
            }
        });
    }
}
