//! Every crash point of a log in which everything happens, and of the openings behind it.
//!
//! A point is an operation that changes the disk, and what of it is there afterwards: nothing, all of it, or some sectors of a
//! write, every subset of them where the write has few that make a difference. After each, what WAL logs must keep is checked:
//! what was acknowledged is there, nothing else than what was told, recovering again gives the same, every entry is found where
//! the lookup says, and a reading of the whole log from its oldest segment agrees.
//!
//! All of them take minutes: the tests that are not ignored take every so-manieth. The rest:
//! `cargo test -p tidelog-wal --test points -- --ignored --nocapture`

mod common;

use common::scripts::{busy, busy_options};
use common::{NODE, Rig, judge};
use tidelog_sim::{Moment, WriteShape};

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Inside, Moment::After];
/// Writes of which so many sectors make a difference are torn in every way.
const SECTORS_MAX: u32 = 8;
/// How often the others, and what is not a write, are torn by draw.
const DRAWN: u64 = 6;

#[derive(Clone, Copy, Debug)]
struct Point {
    seed: u64,
    boundary: u64,
    moment: Moment,
}

/// All subsets of `of`.
fn subsets(of: u64) -> impl Iterator<Item = u64> {
    let mut next = Some(0u64);
    std::iter::from_fn(move || {
        let now = next?;
        next = (now != of).then(|| (now.wrapping_sub(of)) & of);
        Some(now)
    })
}

/// The points of an operation: whole and not at all, and in every way that `shape` says.
fn points_at(boundary: u64, shape: Option<&WriteShape>, out: &mut Vec<Point>) {
    let mut point = |seed, moment| out.push(Point { seed, boundary, moment });
    point(1, Moment::Before);
    point(1, Moment::After);
    match shape {
        Some(shape) if shape.sectors <= 64 && shape.changed.count_ones() <= SECTORS_MAX => {
            subsets(shape.changed).for_each(|mask| point(1, Moment::Sectors(mask)));
        }
        _ => (1..=DRAWN).for_each(|seed| point(seed, Moment::Inside)),
    }
}

/// All points of the script.
fn points() -> Vec<Point> {
    let mut rig = Rig::new(1, busy_options());
    rig.world.watch_writes(NODE);
    rig.open().unwrap();
    busy(&mut rig);
    let stats = rig.wal().stats();
    assert!(
        stats.summaries > 0 && stats.checkpoints > 1 && stats.reclaimed > 1 && stats.moved_records > 0,
        "{stats:?}"
    );
    let shapes = rig.world.take_writes(NODE);
    let mut out = Vec::new();
    for boundary in 0..rig.world.disk_ops(NODE) {
        points_at(boundary, shapes.iter().find(|shape| shape.number == boundary), &mut out);
    }
    out
}

/// The script up to the power loss at `point`.
fn struck(point: Point) -> Rig {
    let mut rig = Rig::new(point.seed, busy_options());
    rig.world.crash_at(NODE, point.boundary, point.moment);
    if rig.open().is_ok() {
        busy(&mut rig);
    }
    if rig.alive() {
        // With another seed, completions come in another order, and the script may be shorter by an operation or two.
        assert_ne!(point.seed, 1, "{point:?} is a point of this script");
        rig.world.crash(NODE);
    }
    rig
}

fn each_point(stride: usize) {
    let points = points();
    let boundaries = points.last().unwrap().boundary + 1;
    let mut struck_points = 0;
    for point in points.iter().step_by(stride) {
        judge(struck(*point), &format!("{point:?}"));
        struck_points += 1;
    }
    println!("{struck_points} of {} crash points at {boundaries} operations", points.len());
    assert!(struck_points > 500, "{struck_points} crash points");
}

#[test]
fn a_slice_of_the_crash_points_of_a_long_log() {
    each_point(43);
}

#[test]
#[ignore = "minutes: the head of this file says how"]
fn all_crash_points_of_a_long_log() {
    each_point(1);
}

/// An opening that is crashed at `boundary`. Whether it got so far.
fn crash_opening(rig: &mut Rig, boundary: u64, moment: Moment) -> bool {
    rig.io = None;
    rig.wal = None;
    rig.io = Some(rig.world.node(NODE));
    rig.world.crash_at(NODE, boundary, moment);
    let opened = rig.open();
    let crashed = !rig.alive();
    if let (Err(error), false) = (&opened, crashed) {
        panic!("crashing an opening at {boundary} {moment:?}: {error}");
    }
    if !crashed {
        rig.world.crash(NODE);
    }
    crashed
}

/// The log is crashed at every `stride`-th of its operations, the opening behind it at each of its own in every way, and the
/// opening behind that one once more: for each `pairs`-th crash of the log at every `thin`-th operation, otherwise at the same.
fn openings(stride: usize, pairs: usize, thin: usize) {
    let boundaries = points().last().unwrap().boundary + 1;
    let (mut crashes, mut twice, mut longest) = (0u64, 0u64, 0);
    for (nth, boundary) in (0..boundaries).enumerate().step_by(stride) {
        let first = Point { seed: 1, boundary, moment: MOMENTS[nth % 3] };
        // What the opening does, by one that is let through.
        let (operations, shapes) = {
            let mut rig = struck(first);
            rig.world.watch_writes(NODE);
            rig.world.take_writes(NODE);
            rig.open().unwrap_or_else(|e| panic!("{first:?}: {e}"));
            let operations = rig.world.disk_ops(NODE);
            (operations, rig.world.take_writes(NODE))
        };
        longest = longest.max(operations);
        let mut ways = Vec::new();
        for at in 0..operations {
            // Every subset of the sectors only where the pairs are: it would be hours.
            let shape = shapes.iter().find(|shape| shape.number == at);
            match shape {
                Some(_) if nth % pairs == 0 => points_at(at, shape, &mut ways),
                _ => ways.extend(MOMENTS.map(|moment| Point { seed: 1, boundary: at, moment })),
            }
        }
        for (way, second) in ways.iter().enumerate() {
            let all =
                if nth % pairs == 0 && !matches!(second.moment, Moment::Sectors(_)) { operations } else { 1 };
            for other in (way as u64 % thin as u64..all).step_by(if all == 1 { 1 } else { thin }) {
                let third = MOMENTS[(way + other as usize) % 3];
                let at = if all == 1 { second.boundary } else { other };
                let what = format!("{first:?}, opening {second:?}, again {at} {third:?}");
                let mut rig = struck(first);
                crashes += u64::from(crash_opening(&mut rig, second.boundary, second.moment));
                twice += u64::from(crash_opening(&mut rig, at, third));
                judge(rig, &what);
            }
        }
    }
    println!(
        "{crashes} openings crashed, {twice} of those behind them; the longest had {longest} operations"
    );
    assert!(crashes > 100 && twice > 100, "{crashes} and {twice} openings crashed");
}

#[test]
fn a_slice_of_the_openings_of_a_long_log() {
    openings(101, 2, 5);
}

#[test]
#[ignore = "minutes: the head of this file says how"]
fn all_openings_of_a_long_log_crashed_twice() {
    openings(1, 31, 1);
}
