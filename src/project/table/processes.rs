//! Nodes about the processes of a `RUN`: what they may use and reach.

use super::{Count, Kind, NodeSpec, Repeat, arg, prop};

pub(super) const LIMITS: NodeSpec = NodeSpec::new(
    "limits",
    "What the processes of a `RUN` may use together; they add up by name.",
    r#"limits memory="2g" cpus="1.5" ulimits="nofile=4096 core=0""#,
)
.props(&[
    prop("memory", Kind::Scalar, "Memory, such as 512m."),
    prop("memory-swap", Kind::Scalar, "Memory and swap together; `-1` for no limit."),
    prop("cpus", Kind::Scalar, "Processors, such as 1.5."),
    prop("cpu-shares", Kind::Scalar, "Weight against others when processors are short."),
    prop("cpu-period", Kind::Scalar, "Length of the period of `cpu-quota`, in microseconds."),
    prop("cpu-quota", Kind::Scalar, "Processor time in each period, in microseconds."),
    prop("pids", Kind::Scalar, "Processes and threads at once (default 4096); `-1` for no limit."),
    prop("shm-size", Kind::Scalar, "Size of /dev/shm (default 64m)."),
    prop("cgroup-parent", Kind::Text, "Control group that those of the processes are made in."),
    prop("ulimits", Kind::Text, "Limits of each process: NAME=SOFT[:HARD], separated by spaces."),
])
.repeat(Repeat::Many)
.unset();

pub(super) const NETWORK: NodeSpec = NodeSpec::new(
    "network",
    "Network of a RUN that does not say: `host` (default), `none`, or `sandbox` (its own; neither the machine's loopback nor the metadata of clouds, whatever a process may do).",
    "network sandbox",
)
.args(&[arg("mode", Kind::OneOf(&["host", "none", "sandbox"]), Count::One)])
.unset();

pub(super) const HOSTS: NodeSpec = NodeSpec::new(
    "hosts",
    "Names that processes know besides, with their addresses; `host-gateway` is this machine.",
    r#"hosts registry.internal="10.0.0.7" builder="host-gateway""#,
)
.free_props(Kind::Text)
.repeat(Repeat::Many)
.unset();

pub(super) const DNS: NodeSpec = NodeSpec::new(
    "dns",
    "Name servers of processes, and how they ask; what is not said is as on this machine.",
    r#"dns "9.9.9.9" "2620:fe::9" search="corp.example lan" options="ndots:2""#,
)
.args(&[arg("server", Kind::Text, Count::Any)])
.props(&[
    prop(
        "search",
        Kind::Text,
        "Domains in which names are looked up, separated by spaces; `.` for none.",
    ),
    prop("options", Kind::Text, "Options of the resolver, separated by spaces."),
])
.unset();
