//! The system call filter: Docker's default profile as a BPF program, for x86-64 and i386 programs.
//!
//! Everything else is EPERM; what is newer than the profile is ENOSYS, so that programs fall back.
//! Also the filter for a namespace with one id, which answers 0 to what changes owners.

mod allowed;

use std::collections::BTreeSet;

use crate::sandbox::{identity::Mapping, prepare::Shield};

use allowed::{ALLOWED, Call, OF_IDS};

const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;

/// Numbers from here on are of the x32 way to call, which no image uses.
const X32_BIT: u32 = 0x4000_0000;

/// Newest number that the profile speaks of (`removexattrat`).
const NUMBER_KNOWN_MAX: u32 = 466;

/// All flags of clone(2) that make namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// Values of personality(2) that are allowed: `PER_LINUX`, `PER_LINUX32`, each with
/// `UNAME26`, and the question.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families that are refused: `AF_ALG`, `AF_VSOCK`.
const FAMILIES_REFUSED: [u32; 2] = [38, 40];

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NOT_THERE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const DONE: u32 = libc::SECCOMP_RET_ERRNO;

/// Calls with rules of their own, by architecture.
struct Special {
    clone: u32,
    clone3: u32,
    socket: u32,
    personality: u32,
}

const SPECIAL_X86_64: Special = Special { clone: 56, clone3: 435, socket: 41, personality: 135 };
const SPECIAL_I386: Special = Special { clone: 120, clone3: 435, socket: 359, personality: 136 };

/// The program for a process; empty for none.
pub(super) fn program(shield: Shield, mapping: Mapping) -> Vec<libc::sock_filter> {
    let mut all = Vec::new();
    if shield == Shield::Open && mapping != Mapping::Single {
        return all;
    }
    let native = architecture(shield, mapping, &SPECIAL_X86_64, |call| call.1);
    let old = architecture(shield, mapping, &SPECIAL_I386, |call| call.2);
    all.push(load(ARCH));
    // Jumps reach 255 instructions; a long one goes over an unconditional jump.
    all.push(jump(libc::BPF_JEQ, ARCH_X86_64, 1, 0));
    all.push(leap(native.len()));
    all.extend(native);
    all.push(jump(libc::BPF_JEQ, ARCH_I386, 1, 0));
    all.push(give(NOT_PERMITTED));
    all.extend(old);
    all
}

fn architecture(
    shield: Shield,
    mapping: Mapping,
    special: &Special,
    number: impl Fn(&Call) -> i32,
) -> Vec<libc::sock_filter> {
    let mut code = vec![load(NUMBER)];
    code.extend([jump(libc::BPF_JGE, X32_BIT, 0, 1), give(NOT_THERE)]);
    let numbers = |calls: &[Call]| -> BTreeSet<u32> {
        calls.iter().filter_map(|call| u32::try_from(number(call)).ok()).collect()
    };
    if mapping == Mapping::Single {
        ranges(&mut code, &numbers(OF_IDS), DONE);
    }
    if shield == Shield::Open {
        code.push(give(ALLOW));
        return code;
    }
    ranges(&mut code, &numbers(ALLOWED), ALLOW);
    code.extend([
        jump(libc::BPF_JEQ, special.clone, 0, 5),
        load(FIRST_ARGUMENT),
        and(CLONE_NAMESPACES),
        jump(libc::BPF_JEQ, 0, 0, 1),
        give(ALLOW),
        give(NOT_PERMITTED),
        jump(libc::BPF_JEQ, special.clone3, 0, 1),
        give(NOT_THERE),
        jump(libc::BPF_JEQ, special.socket, 0, 5),
        load(FIRST_ARGUMENT),
        jump(libc::BPF_JEQ, FAMILIES_REFUSED[0], 2, 0),
        jump(libc::BPF_JEQ, FAMILIES_REFUSED[1], 1, 0),
        give(ALLOW),
        give(NOT_PERMITTED),
    ]);
    code.extend([jump(libc::BPF_JEQ, special.personality, 0, 12), load(FIRST_ARGUMENT)]);
    for value in PERSONALITIES {
        code.extend([jump(libc::BPF_JEQ, value, 0, 1), give(ALLOW)]);
    }
    code.push(give(NOT_PERMITTED));
    code.extend([jump(libc::BPF_JGT, NUMBER_KNOWN_MAX, 0, 1), give(NOT_THERE)]);
    code.push(give(NOT_PERMITTED));
    code
}

/// Gives `verdict` for every number of the set, a run of neighbours at a time.
fn ranges(code: &mut Vec<libc::sock_filter>, numbers: &BTreeSet<u32>, verdict: u32) {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    for (first, last) in runs {
        code.extend([
            jump(libc::BPF_JGE, first, 0, 2),
            jump(libc::BPF_JGT, last, 1, 0),
            give(verdict),
        ]);
    }
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    let code = u16::try_from(code).expect("BPF codes are 16 bits wide");
    libc::sock_filter { code, jt, jf, k }
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn and(mask: u32) -> libc::sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0)
}

fn jump(test: u32, value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | test | libc::BPF_K, value, then, otherwise)
}

fn leap(over: usize) -> libc::sock_filter {
    let over = u32::try_from(over).expect("a filter has at most 4096 instructions");
    instruction(libc::BPF_JMP | libc::BPF_JA, over, 0, 0)
}

fn give(verdict: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, verdict, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers to a call.
    fn verdict(program: &[libc::sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0u32);
        loop {
            let one = &program[at];
            at += 1;
            let class = u32::from(one.code);
            if class == libc::BPF_RET | libc::BPF_K {
                return one.k;
            } else if class == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                value = match one.k {
                    NUMBER => number,
                    ARCH => arch,
                    FIRST_ARGUMENT => argument,
                    other => panic!("loads offset {other}"),
                };
            } else if class == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K {
                value &= one.k;
            } else if class == libc::BPF_JMP | libc::BPF_JA {
                at += one.k as usize;
            } else {
                let holds = match class & 0xf0 {
                    libc::BPF_JEQ => value == one.k,
                    libc::BPF_JGT => value > one.k,
                    libc::BPF_JGE => value >= one.k,
                    other => panic!("tests {other}"),
                };
                at += usize::from(if holds { one.jt } else { one.jf });
            }
        }
    }

    #[test]
    fn s24_verdicts_are_those_of_docker_s_default() {
        let docker = program(Shield::Full, Mapping::Initial);
        let table = [
            ("read", 0, 0, ALLOW),
            ("execve", 59, 0, ALLOW),
            ("chroot", 161, 0, ALLOW),
            ("ptrace", 101, 0, ALLOW),
            ("clone for a thread", 56, 0x3d_0f00, ALLOW),
            ("clone into a user namespace", 56, 0x1000_0000, NOT_PERMITTED),
            ("clone3", 435, 0, NOT_THERE),
            ("socket AF_INET", 41, 2, ALLOW),
            ("socket AF_ALG", 41, 38, NOT_PERMITTED),
            ("socket AF_VSOCK", 41, 40, NOT_PERMITTED),
            ("personality PER_LINUX32", 135, 8, ALLOW),
            ("personality ADDR_NO_RANDOMIZE", 135, 0x4_0000, NOT_PERMITTED),
            ("personality question", 135, 0xffff_ffff, ALLOW),
            ("mount", 165, 0, NOT_PERMITTED),
            ("umount2", 166, 0, NOT_PERMITTED),
            ("unshare", 272, 0, NOT_PERMITTED),
            ("setns", 308, 0, NOT_PERMITTED),
            ("bpf", 321, 0, NOT_PERMITTED),
            ("keyctl", 250, 0, NOT_PERMITTED),
            ("userfaultfd", 323, 0, NOT_PERMITTED),
            ("io_uring_setup", 425, 0, NOT_PERMITTED),
            ("perf_event_open", 298, 0, NOT_PERMITTED),
            ("open_by_handle_at", 304, 0, NOT_PERMITTED),
            ("kexec_load", 246, 0, NOT_PERMITTED),
            ("a call of the future", 999, 0, NOT_THERE),
            ("x32 read", X32_BIT, 0, NOT_THERE),
        ];
        for (name, number, argument, expected) in table {
            assert_eq!(verdict(&docker, ARCH_X86_64, number, argument), expected, "{name}");
        }
        assert_eq!(verdict(&docker, ARCH_I386, 3, 0), ALLOW, "i386 read");
        assert_eq!(verdict(&docker, ARCH_I386, 120, 0x1000_0000), NOT_PERMITTED, "i386 clone");
        assert_eq!(verdict(&docker, ARCH_I386, 21, 0), NOT_PERMITTED, "i386 mount");
        assert_eq!(verdict(&docker, 0xc000_00b7, 0, 0), NOT_PERMITTED, "another machine");
    }

    #[test]
    fn with_one_id_changes_of_owner_are_done_in_name_only() {
        let single = program(Shield::Full, Mapping::Single);
        for call in OF_IDS.iter().filter(|call| call.1 >= 0) {
            assert_eq!(verdict(&single, ARCH_X86_64, call.1.unsigned_abs(), 0), DONE, "{}", call.0);
        }
        assert_eq!(verdict(&single, ARCH_X86_64, 0, 0), ALLOW);
        assert!(program(Shield::Open, Mapping::Initial).is_empty());
    }

    #[test]
    fn the_program_fits_the_kernel() {
        assert!(program(Shield::Full, Mapping::Single).len() <= 4096);
    }
}
