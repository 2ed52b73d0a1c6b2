//! The node about how many layers an instruction becomes.

use super::{Children, Count, Kind, NodeSpec, Repeat, arg, prop};

pub(super) const LAYERS: NodeSpec = NodeSpec::new(
    "layers",
    "`split`: a COPY or ADD of more than `size` becomes several layers, cut by paths, so that a change of one file sends one of them.",
    r#"layers split size="16m" { often "app/src" "**/*.lock" }"#,
)
.args(&[arg("way", Kind::OneOf(&["split"]), Count::One)])
.props(&[
    prop("size", Kind::Scalar, "About what a layer holds (default 16m)."),
    prop("most", Kind::Scalar, "Most layers of one instruction (default 32)."),
])
.children(Children::Nodes(LAYERS_NODES))
.unset();

static LAYERS_NODES: &[NodeSpec] = &[NodeSpec::new(
    "often",
    "Paths in the image that change often, as in an ignore file: what one line names has layers of its own.",
    r#"often "app/src""#,
)
.args(&[arg("pattern", Kind::Text, Count::Many)])
.repeat(Repeat::Many)];
