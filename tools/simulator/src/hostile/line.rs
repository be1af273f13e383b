//! One connection of the hostile member, and how far its handshake is.

use bytes::Bytes;
use tidelog_io::ConnId;
use tidelog_sim::Random;

/// Frames that wait to be sent on one connection, at most.
const QUEUE_MAX: usize = 256;

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    /// None: it is being dialled.
    pub(super) conn: Option<ConnId>,
    /// The node at its other end, once that is known.
    pub(super) to: Option<u64>,
    pub(super) dialled: bool,
    pub(super) attempt: u64,
    /// The process that it pretends to be; 0: not drawn yet.
    own: u64,
    /// The process at its other end; 0: it has not said it yet.
    pub(super) theirs: u64,
    /// It has named the other one's process.
    pub(super) greeted: bool,
    /// The other one has named its process.
    pub(super) present: bool,
    pub(super) counted: bool,
    pub(super) heard: Vec<u8>,
    pub(super) queue: Vec<Bytes>,
    pub(super) sending: bool,
}

impl Line {
    fn new(conn: Option<ConnId>, to: Option<u64>) -> Line {
        Line {
            conn,
            dialled: to.is_some(),
            to,
            attempt: 0,
            own: 0,
            theirs: 0,
            greeted: false,
            present: false,
            counted: false,
            heard: Vec::new(),
            queue: Vec::new(),
            sending: false,
        }
    }

    pub(super) fn accepted(conn: ConnId) -> Line {
        Line::new(Some(conn), None)
    }

    pub(super) fn dialled(to: u64) -> Line {
        Line::new(None, Some(to))
    }

    /// The process that it is on this connection, and now and then another one from here on.
    pub(super) fn process(&mut self, random: &mut Random) -> u64 {
        if self.own == 0 || random.below(50) == 0 {
            self.own = random.bits() | 1;
        }
        if self.dialled && self.attempt == 0 {
            self.attempt = random.between((1, 1 << 20));
        }
        self.own
    }

    /// Whether both ends have named each other's process, as far as it knows.
    pub(super) fn is_up(&self) -> bool {
        self.greeted && self.present
    }

    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_MAX
    }
}
