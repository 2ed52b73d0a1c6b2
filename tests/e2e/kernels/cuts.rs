//! Power cuts: a virtual machine is switched off in the middle of builds, and what its disk had is all that is left.

use super::{
    OVERLAY, build,
    machine::{Disk, Kernel},
};
use idpbuilder::store::{CheckDepth, Store};

use crate::support::{Folder, Turn};

/// All but snapshots, which are not copied out with all that they have.
const FULL: CheckDepth = CheckDepth::Full(|_, _| None);
/// How often it is switched off in every run of the tests; `IDPBUILDER_TEST_CUTS=50` does it as often as that.
const CUTS: u32 = 1;

/// How many images are done in a round before it is switched off.
const DONE: u32 = 2;

/// Builds without an end, all of it new each time; every image that is done is written down where it lasts.
const BUILDS: &str = "cd $(mktemp -d -p /data); n=0; while true; do n=$((n+1)); dd if=/dev/urandom of=file bs=100k count=9 2>/dev/null
    printf 'FROM busybox\\nCOPY file /file\\nRUN cat /file /file > /twice\\n' > Dockerfile
    id=$(idpbuilder build -q -t made:$n-$ROUND --build-context busybox=oci-layout:///bases/busybox .) || exit 1
    echo $id >> /data/done; sync /data/done; sync /data; done";

#[test]
fn a_power_cut_in_the_middle_of_builds_loses_nothing_that_was_said_to_be_done() {
    let _turn = Turn::wait("machine");
    let cuts = std::env::var("IDPBUILDER_TEST_CUTS").map_or(CUTS, |count| count.parse().unwrap());
    let disk = Disk::new(Kernel::Trixie);
    for round in 0..cuts {
        let mut machine = disk.start();
        machine.root(OVERLAY).ok();
        let before = machine.root("touch done; sync; wc -l < done").ok();
        machine.begin(&format!(
            "ROUND={round}; {{ ( {BUILDS} ) > /dev/null 2> said || cat said > /dev/ttyS1; }} &
             until [ $(wc -l < done) -ge $(({before} + {DONE})) ]; do sleep 0.1; done
             sleep 0.{}; echo now > /dev/ttyS1; sleep 1000",
            round % 10
        ));
        assert_eq!(machine.line("builds"), "now", "round {round}");
        drop(machine);

        let mut machine = disk.start();
        machine.root(OVERLAY).ok();
        let images = machine.root("for id in $(cat done); do idpbuilder inspect $id > /dev/null || echo lost $id; done").ok();
        assert_eq!(images, "", "round {round}, {before} before");
        machine.root(&build("FROM busybox\nRUN echo again > /again", "")).ok();
        machine.root("sync; mount -o remount,ro /").ok();
        drop(machine);
        // A whole look at the store, from outside.
        let copy = Folder::new();
        disk.copy_out("/.idpbuilder/images", copy.path());
        let store = Store::open(&copy.path().join("images")).unwrap();
        let found = store.check(FULL).unwrap();
        // What was being written may be there in part, and nothing speaks of it.
        assert!(found.is_sound(), "round {round}: {:?}", found.damages);
    }
}
