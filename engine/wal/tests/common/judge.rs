//! What must hold after a crash, whatever it was.

use super::{DIR, NODE, Rig, kept};
use std::path::Path;
use tidelog_wal::inspect;

/// What must hold after any crash; an opening compares the log with the model itself.
pub fn judge(mut rig: Rig, what: &str) {
    rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(rig.check_all());
    let before = kept(&rig.now);
    rig.close();
    rig.open().unwrap_or_else(|e| panic!("{what}, again: {e}"));
    assert_eq!(kept(&rig.now), before, "{what}: recovering again gives the same state");
    assert!(rig.check_all());
    rig.close();
    rig.io = None;
    rig.wal = None;
    let report =
        inspect::verify(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default()).unwrap();
    // What the crash left undecided is in the log as lost, and `verify` counts it; there is nothing else.
    let lost = rig.lost.len() as u64;
    assert_eq!(report.lost, lost, "{what}: {report:?}");
    assert_eq!(report.is_damaged(), lost > 0, "{what}: {report:?}");
}
