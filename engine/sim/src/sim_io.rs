//! A simulated process's side of the seam.

use crate::world::World;
use tidelog_io::{BufferPool, Completion, Io, Op, Token, Wait, Waker};
use tidelog_types::Clock;

/// One life of a node, behind [`tidelog_io::Io`].
///
/// After a crash of its node, everything that it waits for and everything submitted later completes with
/// `Cancelled` and changes nothing. Dropping it ends the process, as [`World::kill`] does.
#[derive(Debug)]
pub struct SimIo {
    world: World,
    node: u64,
    life: u64,
    clock: Clock,
    pool: BufferPool,
}

impl SimIo {
    pub(crate) fn new(world: World, node: u64, life: u64, pool_idle_bytes: usize) -> SimIo {
        let clock = world.clock(node);
        SimIo { world, node, life, clock, pool: BufferPool::new(pool_idle_bytes) }
    }

    /// Whose it is.
    pub const fn node(&self) -> u64 {
        self.node
    }

    /// The world that it is in.
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Whether this process still runs.
    pub fn is_alive(&self) -> bool {
        self.world.state.borrow().nodes.get(&self.node).is_some_and(|n| n.is_life(self.life))
    }
}

impl Io for SimIo {
    fn submit(&mut self, token: Token, op: Op) {
        self.world.state.borrow_mut().submit(self.node, self.life, token, op);
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) -> usize {
        let count = self.world.state.borrow_mut().poll(self.node, self.life, wait, out);
        if self.is_alive() {
            self.clock = self.world.clock(self.node);
        } else if let Wait::Until(deadline) | Wait::Briefly(deadline) = wait {
            // Nothing comes any more, but a loop that waits for a moment must end.
            self.clock.now = self.clock.now.max(deadline);
        }
        count
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn random(&mut self) -> u64 {
        let mut state = self.world.state.borrow_mut();
        state.node_mut(self.node).random.bits()
    }

    fn buffers(&self) -> BufferPool {
        self.pool.clone()
    }

    fn waker(&self) -> Waker {
        Waker::none()
    }
}

impl Drop for SimIo {
    fn drop(&mut self) {
        // A test that fails may drop it in the middle of the world's work: then there is nothing left to keep
        // right.
        if let Ok(mut state) = self.world.state.try_borrow_mut() {
            state.exit(self.node, self.life);
        }
    }
}
