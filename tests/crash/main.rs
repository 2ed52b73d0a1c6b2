//! Whatever ends the tool, nothing that it said it did is lost, and nobody has to repair anything.
//!
//! The tool is killed at its system calls, the power of its disk is cut, its disk is full, its calls fail, its store
//! cannot be written to. Each case is named after its entry in the list of faults (`f01` …), goes through as many rounds
//! as fit into the normal suite, and through `CRASH_ROUNDS` of them when that is set. What was seen is printed as a table:
//! rounds; what was acknowledged and is gone; names and facts about content that is not there; repairs that the next
//! command needed; and the slowest next command.

#![expect(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod full;
mod kills;
mod mounted;
mod place;
mod power;
mod readonly;
mod running;
mod size;
mod strace;
mod tags;
mod tally;

#[expect(dead_code, reason = "these tests need a part of what those of the tool stand on")]
#[path = "../e2e/support/mod.rs"]
mod support;
