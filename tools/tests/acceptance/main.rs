//! The program as its users meet it: real node processes, real directories, the real kernel.
//!
//! Every test runs processes of this very binary and judges what they print and how they end. Nothing in here sleeps for a
//! guessed time: a test waits for what it needs, and gives up after a deadline that a busy machine keeps too.

mod aim;
mod clock;
mod cluster;
mod command;
mod crash;
mod damage;
mod directory;
mod disk;
mod flips;
mod full;
mod history;
mod host;
mod hostile;
mod identity;
mod kernel;
mod logging;
mod node;
mod replication;
mod rig;
mod slow;
mod stalled;
